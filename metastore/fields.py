"""What the fields of a record may be: readers of plain values, and shapes made of them. Pure.

A record comes from etcd, from a peer or from a disk, and nothing of it is believed before it has been read here: each
field has a type and bounds. What a shape does not know is of a later version: it is kept (``more``), so that a build that
writes the record again writes that too. Strings that look like numbers are no numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson

from metastore.decoding import Undecodable, load_json
from metastore.errors import InvalidRequest

T = TypeVar("T")
#: a value -> what it says; raises ValueError with what is wrong with it
Read = Callable[[Any], T]

MAX_NAME: Final = 255
MAX_TEXT: Final = 4096
MAX_WHOLE: Final = (1 << 63) - 1
#: what of a later version is kept of a record, as JSON, in bytes
MAX_MORE: Final = 16 << 10
_POINT: Final = re.compile(r"[0-9a-f]{1,17}\Z")


class BadRecord(InvalidRequest, ValueError):
    """A record that is not valid; the message says what of it, and what it would have to be."""


def whole(low: int = 0, high: int = MAX_WHOLE) -> Read[int]:
    """A whole number within bounds."""

    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{value!r:.60} is not a whole number from {low} to {high}")
        return value

    return read


def real(low: float, high: float) -> Read[float]:
    """A number within bounds."""

    def read(value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{value!r:.60} is not a number from {low:g} to {high:g}")
        return float(value)

    return read


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"{value!r:.60} is not true or false")
    return value


def text(value: Any) -> str:
    """Text of at most MAX_TEXT characters, which may be empty."""
    if type(value) is not str or len(value) > MAX_TEXT or not _is_unicode(value):
        raise ValueError(f"{value!r:.60} is not text of at most {MAX_TEXT} characters")
    return value


def name(value: Any) -> str:
    """A name that can be part of a key: 1 to MAX_NAME printable characters, no slash."""
    if type(value) is not str or len(value) > MAX_NAME or not _is_name(value):
        raise ValueError(f"{value!r:.60} is not a valid name: 1 to {MAX_NAME} printable characters without /")
    return value


@lru_cache(4096)
def _is_name(value: str) -> bool:
    """Tables are full of the same few names."""
    return value != "" and value.isprintable() and "/" not in value


def point(value: Any) -> int:
    """A point of the ring, 0 to 2**64, as hexadecimal text."""
    if type(value) is not str or not _POINT.match(value) or int(value, 16) > 1 << 64:
        raise ValueError(f"{value!r:.60} is not a point: hexadecimal text up to 10000000000000000")
    return int(value, 16)


def address(value: Any) -> str:
    """``host:port``, or ``[IPv6]:port``."""
    host, _, port = value.rpartition(":") if type(value) is str else ("", "", "")
    good = (
        host
        and len(value) <= MAX_NAME
        and value.isascii()
        and value.isprintable()
        and not {"/", " "} & set(value)
    )
    if not good or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{value!r:.60} is not host:port")
    return str(value)


def maybe(read: Read[T]) -> Read[T | None]:
    """What ``read`` reads, or nothing."""

    def read_maybe(value: Any) -> T | None:
        return None if value is None else read(value)

    return read_maybe


def several(read: Read[T], low: int = 0, high: int = 1024) -> Read[tuple[T, ...]]:
    """A list, each of it as ``read`` reads it."""

    def read_all(value: Any) -> tuple[T, ...]:
        if type(value) not in (list, tuple) or not low <= len(value) <= high:
            raise ValueError(f"{value!r:.60} is not a list of {low} to {high}")
        return tuple(map(read, value))

    return read_all


def row(*reads: Read[Any]) -> Read[tuple[Any, ...]]:
    """A list of so many, each as its own reader reads it."""

    def read_row(value: Any) -> tuple[Any, ...]:
        if type(value) not in (list, tuple) or len(value) != len(reads):
            raise ValueError(f"{value!r:.60} is not a list of {len(reads)}")
        return tuple(read(part) for read, part in zip(reads, value, strict=True))

    return read_row


def mapping(key: Read[str], read: Read[T], high: int) -> Read[dict[str, T]]:
    """An object with any members, each as ``read`` reads it."""

    def read_mapping(value: Any) -> dict[str, T]:
        if type(value) is not dict or len(value) > high:
            raise ValueError(f"{value!r:.60} is not an object of at most {high} members")
        return {key(k): read(v) for k, v in value.items()}

    return read_mapping


def anything(value: Any) -> Any:
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_json(raw: bytes, what: str) -> Any:
    """A JSON document. Raises BadRecord."""
    try:
        return load_json(raw)
    except Undecodable as e:
        raise BadRecord(f"{what} is not JSON ({e}): {bytes(raw[:60])!r}"[:300]) from None


class Field(NamedTuple):
    """How a field is read; ``default``: what it is when it is missing, ... = it must be there."""

    read: Read[Any]
    default: Any = ...


class Shape(Generic[T]):
    """A kind of record: its fields, and what is made of them. ``make`` is called with the fields by name; it
    raises ValueError when they contradict each other. With ``keeps`` what is of a later version is among them, as ``more``."""

    def __init__(
        self, what: str, make: Callable[..., T], fields: Mapping[str, Field], *, keeps: bool = False
    ) -> None:
        self.what = what
        self.fields = dict(fields)
        self._make = make
        self._keeps = keeps

    def read(self, plain: Any) -> T:
        """What a plain value says. Raises BadRecord."""
        if type(plain) is not dict:
            raise BadRecord(f"{self.what} is an object, not {plain!r:.60}")
        found: dict[str, Any] = {}
        at = ""
        try:
            for at, (read, default) in self.fields.items():
                if at in plain:
                    found[at] = read(plain[at])
                elif default is ...:
                    raise ValueError("it is missing")
                else:
                    found[at] = default
            if self._keeps:
                at = "more"
                found["more"] = b"" if plain.keys() <= self.fields.keys() else self._more(plain)
            at = ""
            return self._make(**found)
        except (ValueError, InvalidRequest, RecursionError) as e:
            where = f"{at} of {self.what}" if at else self.what
            raise BadRecord(f"{where}: {e}"[:300]) from None

    def read_json(self, raw: bytes) -> T:
        """What a JSON document says. Raises BadRecord."""
        return self.read(from_json(raw, self.what))

    def _more(self, plain: dict[Any, Any]) -> bytes:
        more = {key: value for key, value in plain.items() if key not in self.fields}
        try:
            raw = orjson.dumps(more, option=orjson.OPT_SORT_KEYS)
        except (TypeError, RecursionError) as e:  # of orjson too
            raise ValueError(f"members that are not JSON: {e}") from None
        if len(raw) > MAX_MORE:
            raise ValueError(f"{len(raw)} bytes of members that are not known here; {MAX_MORE} are kept")
        return raw


def with_more(plain: dict[str, Any], more: bytes) -> dict[str, Any]:
    """A record as it is written: what is known here, and what a later version had written beside it."""
    return {**load_json(more), **plain} if more else plain
