"""What an operation of the HTTP API is: everything that its handler accepts and answers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from router.api.shapes import Param, Shape

MiB = 1 << 20


@dataclass(frozen=True)
class Body:
    """A request body. ``raw``: any bytes of any type; ``json`` and ``msgpack``: of that type only."""

    kind: Literal["raw", "json", "msgpack"]
    limit: int
    text: str
    shape: Shape | None = None

    @property
    def media(self) -> str:
        return {
            "raw": "application/octet-stream",
            "json": "application/json",
            "msgpack": "application/x-msgpack",
        }[self.kind]


@dataclass(frozen=True)
class Answer:
    """One answer that is no error. ``headers``: name -> what it says."""

    status: int
    text: str
    shape: Shape | None = None
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """``path``: ``{namespace}`` or ``{name}`` stands for one segment, ``{key}`` for all that follows.
    ``problems``: the statuses of its errors. ``example``: a curl command, URL standing for the router.
    ``admitted``: whether it counts against the bounds on requests, and is refused beyond them."""

    id: str
    method: str
    path: str
    tag: str
    summary: str
    text: str
    params: tuple[Param, ...] = ()
    body: Body | None = None
    answers: tuple[Answer, ...] = ()
    problems: tuple[int, ...] = ()
    example: str = ""
    admitted: bool = True

    def param(self, key: str) -> Param | None:
        return next((p for p in self.params if p.key == key), None)
