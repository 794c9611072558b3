"""What a diagnosis is made from, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cellctl.records import Records
from metastore.coordination.etcd_members import EtcdMember
from metastore.layout import HistoryRecord
from metastore.namespaces import MAX_NAMESPACES

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``what`` was seen, ``why`` it matters, what to ``do``."""

    level: Level
    about: str
    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a diagnosis is made from. ``records`` and ``history``: None = etcd does not answer; ``asked_ms``:
    when the nodes were asked, on this machine's clock, between these two."""

    statuses: Mapping[str, dict[str, Any] | None]
    cells: Mapping[str, str]
    rows: Sequence[dict[str, Any]]
    asked_ms: tuple[int, int]
    records: Records | None = None
    history: Sequence[HistoryRecord] | None = None
    router_error: str = ""
    #: that have a policy
    namespaces: int = 0
    #: and how many may, by the router's setting
    max_namespaces: int = MAX_NAMESPACES
    members: Sequence[EtcdMember] = ()

    def up(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, view in sorted(self.statuses.items()):
            if view is not None:
                yield name, view
