"""A journal as bytes: what a node writes out at fail-stop or when it is asked, and what ``metastore.replay`` reads. Pure.

``magic (8 bytes, the last three digits are the version) | CRC-32 of the rest (u32) | zlib of msgpack``. docs/formats.md has the form of
each value. Objects are written by the names of their kinds and fields, so a build that does not know one says which.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from struct import Struct
from types import UnionType
from typing import Any, Final, get_args

import msgpack

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import messages as m
from metastore.core.journal import Half, LogRead
from metastore.core.lapses import Lapse
from metastore.core.logindex import LogIndex
from metastore.core.readable import field_names
from metastore.core.settings import CoreSettings
from metastore.core.term import Progress, SealAnswer, Term
from metastore.decoding import Undecodable, inflate, unpack_own
from metastore.errors import CorruptLog, InvalidRequest, RottenEntry
from metastore.layout import ConfigRecord, MoveRecord

MAGIC: Final = b"MSREC001"
_CRC: Final = Struct("<I")
#: a half has bounds of its own; this is for a file that somebody else has made
MAX_FILE_BYTES: Final = 256 << 20
MAX_BODY_BYTES: Final = 1 << 30
_MAX_WHOLE: Final = (1 << 63) - 1


def _kinds() -> dict[str, type[Any]]:
    unions: tuple[UnionType, ...] = (ev.Event, fx.Effect)
    kinds = [kind for union in unions for kind in get_args(union)]
    kinds += [*m.KINDS.values(), m.Process, ev.Restored, LogRead]
    kinds += [Term, Progress, SealAnswer, Lapse, CoreSettings, ConfigRecord, MoveRecord]
    return {kind.__name__: kind for kind in kinds}


#: everything that a journal may hold beside plain values
KINDS: Final = _kinds()
_FIELDS: Final = {kind: field_names(kind) for kind in KINDS.values()}


@dataclass(frozen=True, slots=True)
class Recording:
    """``build``: of the node that wrote it; ``at_ms``: the time of day then; ``why``: what made it write."""

    build: str
    node: str
    at_ms: int
    why: str
    halves: list[Half]


# --- to bytes --------------------------------------------------------------------------------------


def pack(recording: Recording) -> bytes:
    """The file. Takes a while: an event takes some twenty microseconds."""
    halves = [
        [plain(half.checkpoint), [plain(record) for record in half.records]] for half in recording.halves
    ]
    head = [recording.build, recording.node, recording.at_ms, recording.why]
    body = zlib.compress(msgpack.packb([*head, halves]), 1)
    return b"".join((MAGIC, _CRC.pack(zlib.crc32(body)), body))


def plain(value: Any) -> Any:
    """``value`` as msgpack takes it: what is no plain value is a list that begins with the sign of its kind."""
    kind = type(value)
    if kind is int:
        return value if -_MAX_WHOLE <= value <= _MAX_WHOLE else ["i", str(value)]
    if value is None or kind in (bool, str, bytes, float):
        return value
    if kind is list:
        return ["l", *map(plain, value)]
    if kind is tuple:
        return ["t", *map(plain, value)]
    if kind is dict:
        return ["d", *(plain(x) for item in value.items() for x in item)]
    if kind is set or kind is frozenset:
        return ["s" if kind is set else "f", *map(plain, sorted(value))]
    if kind is LogIndex:
        return ["x", value.base_epoch, value.base_index, value.last_index, *_runs(value)]
    if kind is RottenEntry:
        return ["e", value.message, plain(value.detail)]
    if kind is fx.PersistEntries:  # what the payloads mean follows from them
        value = value._replace(entries=None)
    names = _FIELDS[kind]
    return ["n", kind.__name__, *(x for name in names for x in (name, plain(getattr(value, name))))]


def _runs(log: LogIndex) -> list[list[int]]:
    return [list(log._firsts), list(log._epochs)]


# --- and back --------------------------------------------------------------------------------------


def unpack(raw: bytes) -> Recording:
    """Raises InvalidRequest when it is no recording, or of another version; CorruptLog when it is damaged."""
    if raw[:5] != MAGIC[:5]:
        raise InvalidRequest("this is no recording of a node's events: it does not begin as one does")
    if raw[:8] != MAGIC:
        raise InvalidRequest(
            f"this recording is of version {raw[5:8]!r}, and this build reads {MAGIC[5:8]!r} only; "
            "replay it with the build that wrote it"
        )
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidRequest(f"the recording has {len(raw)} bytes, over the limit of {MAX_FILE_BYTES}")
    body = raw[8 + _CRC.size :]
    if len(raw) < 8 + _CRC.size or zlib.crc32(body) != _CRC.unpack_from(raw, 8)[0]:
        raise CorruptLog("the recording does not match its checksum: it was cut off, or has been damaged")
    try:
        build, node, at_ms, why, halves = unpack_own(inflate(body, MAX_BODY_BYTES))
        made = [Half(made_of(checkpoint), [made_of(r) for r in records]) for checkpoint, records in halves]
    except (Undecodable, ValueError, TypeError, LookupError) as e:
        raise InvalidRequest(
            f"this build cannot read the recording ({type(e).__name__}: {e}); replay it with the build that wrote it"
        ) from None
    return Recording(build, node, at_ms, why, made)


def made_of(value: Any) -> Any:
    """What ``plain`` was given. Raises ValueError, TypeError or LookupError."""
    if type(value) is not list:
        return value
    make = _MAKERS[value[0]]
    return make(value[1:])


def _named(rest: list[Any]) -> Any:
    name, values = rest[0], rest[1:]
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"there is no {name}")
    given = {values[i]: made_of(values[i + 1]) for i in range(0, len(values), 2)}
    unknown = given.keys() - set(_FIELDS[kind])
    if unknown:
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}")
    if not is_dataclass(kind):
        return kind(**given)
    made = object.__new__(kind)
    for field in fields(kind):
        if field.name not in given and field.default is MISSING:
            raise ValueError(f"{name} without {field.name}")
        object.__setattr__(made, field.name, given.get(field.name, field.default))
    return made


def _log(rest: list[Any]) -> LogIndex:
    log = LogIndex(rest[0], rest[1])
    log.last_index, log._firsts, log._epochs = rest[2], list(rest[3]), list(rest[4])
    return log


def _map(rest: list[Any]) -> dict[Any, Any]:
    return {made_of(rest[i]): made_of(rest[i + 1]) for i in range(0, len(rest), 2)}


_MAKERS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "i": lambda rest: int(rest[0]),
    "l": lambda rest: [made_of(x) for x in rest],
    "t": lambda rest: tuple(made_of(x) for x in rest),
    "d": _map,
    "s": lambda rest: {made_of(x) for x in rest},
    "f": lambda rest: frozenset(made_of(x) for x in rest),
    "x": _log,
    "e": lambda rest: RottenEntry(rest[0], **made_of(rest[1])),
    "n": _named,
}
