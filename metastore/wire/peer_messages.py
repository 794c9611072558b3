"""Core messages as wire arrays and back, checked. Sans-I/O.

A PEER frame holds ``[[kind, field, ...], ...]``; kinds are numbered in core.messages. Fields behind those that
are known, and kinds from OPTIONAL on, are of a later version, and passed over (wire.versions). A value
of the wrong type or out of bounds raises ProtocolError: the connection ends and nothing else
happens. What a value means in the state that the replica is in, the core judges.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple, get_type_hints

from metastore.core.messages import (
    KINDS,
    MAX_RUNS,
    NUMBERS,
    Append,
    Lineage,
    Process,
    Pulled,
    Run,
    Seen,
    SnapshotChunk,
)
from metastore.elements import shown
from metastore.errors import ProtocolError
from metastore.wire.versions import OPTIONAL, Levels, Spoken, levels_at, spoken_at

#: Epochs, indexes and numbers end far below where 64 bits do: what is added to one stays a count.
MAX_COUNT: Final = 1 << 62
MAX_PARTITIONS: Final = 1 << 16
#: of a hello: what a later version may say besides is passed over
MAX_HELLO_FIELDS: Final = 16
#: of a message, beyond those that are known
MAX_MORE_FIELDS: Final = 16
#: ten times what may be configured (grant_ms): a grant without end would be a licence for stale reads
MAX_GRANT_NS: Final = 600 * 1_000_000_000
_BOUNDS: Final = {"p": MAX_PARTITIONS, "grant_ns": MAX_GRANT_NS, "remaining_grant_ns": MAX_GRANT_NS}

#: per kind: the plain type each field must have, and the bound of a count (containers are checked below)
_FIELDS: Final[dict[int, tuple[tuple[type[Any], int], ...]]] = {}
for _number, _cls in KINDS.items():
    _hints = get_type_hints(_cls)
    _FIELDS[_number] = tuple(
        (getattr(t, "__origin__", t), _BOUNDS.get(name, MAX_COUNT)) for name, t in _hints.items()
    )

_INT_ROWS: Final = {1: ("beats", 4), 2: ("refused", 2), 15: ("splits", 2)}
_BYTES_LISTS: Final = frozenset({6, 10})
#: kinds with nothing but plain fields
_SIMPLE: Final = frozenset(KINDS) - {*_INT_ROWS, *_BYTES_LISTS, 16, 20}
#: what may be large: kind -> which of its fields
_BULKY: Final = {Append: 5, Pulled: 4, SnapshotChunk: 4}


def encode(message: Any) -> list[Any]:
    return [NUMBERS[type(message)], *message]


def bulk(message: Any) -> int:
    """About how many bytes of entries or rows the message carries."""
    at = _BULKY.get(type(message))
    if at is None:
        return 0
    return sum([len(b) if type(b) is bytes else len(b[1]) + len(b[2]) for b in message[at]])


def decode(raw: Any) -> Any:
    """One message; None = of a later version, and to be passed over. Raises ProtocolError."""
    if type(raw) is not list or not raw:
        raise ProtocolError("a peer message is not an array")
    kind = raw[0]
    fields = _FIELDS.get(kind) if type(kind) is int else None
    if fields is None:
        if type(kind) is int and OPTIONAL <= kind < 256:
            return None
        raise ProtocolError(f"unknown peer message {shown(kind)}")
    values = raw[1:]
    if len(values) != len(fields):
        if not len(fields) < len(values) <= len(fields) + MAX_MORE_FIELDS:
            raise ProtocolError(f"peer message {kind} has {len(values)} fields instead of {len(fields)}")
        del values[len(fields) :]
    for value, (wanted, bound) in zip(values, fields):  # noqa: B905 as long as each other: seen above
        if type(value) is not wanted or (wanted is int and not 0 <= value < bound):
            raise ProtocolError(
                f"peer message {kind}: {shown(value)} where {wanted.__name__} below {bound} was due"
            )
    message = KINDS[kind](*values)
    if kind in _SIMPLE:
        return message
    rows = _INT_ROWS.get(kind)
    if rows is not None:
        _check_int_rows(getattr(message, rows[0]), rows[1])
    elif kind in _BYTES_LISTS:
        if not all(type(blob) is bytes for blob in message.entries):
            raise ProtocolError(f"peer message {kind}: an entry is not bytes")
    elif kind == 20:
        if not _is_text(message.run):
            raise ProtocolError(f"peer message {kind}: {shown(message.run)} where a name was due")
    elif kind == 16:
        for row in message.rows:
            if type(row) is not list or len(row) != 3 or type(row[0]) is not int:
                raise ProtocolError("a snapshot row is not [kind, key, value]")
            if type(row[1]) is not bytes or type(row[2]) is not bytes:
                raise ProtocolError("a snapshot row is not made of bytes")
    return message


def _check_int_rows(rows: list[Any], width: int) -> None:
    for row in rows:
        if (
            type(row) is not list
            or len(row) != width
            or not all(type(v) is int and 0 <= v < MAX_COUNT for v in row)
        ):
            raise ProtocolError(f"{shown(row)} where {width} counts were due")


class Hello(NamedTuple):
    """What a node tells of itself: which process it is, the lineage of its store (R13), the versions of the protocol that it
    speaks, and feature levels."""

    process: Process
    lineage: Lineage
    spoken: Spoken
    levels: Levels = Levels()


def hello(cluster: str, mine: Hello, target_node: str, target_store: str) -> list[Any]:
    """PEER_HELLO: which process calls, and which store it means to reach."""
    return [cluster, *mine.process, target_node, target_store, *_about(mine)]


def hello_ok(mine: Hello) -> list[Any]:
    """PEER_HELLO_OK: who answers."""
    return [*mine.process, *_about(mine)]


def _about(mine: Hello) -> list[Any]:
    levels = [list(mine.levels)] if mine.levels != Levels() else []  # as it was, where nothing is new in it
    return [_told(mine.lineage), list(mine.spoken), *levels]


def _told(lineage: Lineage) -> list[list[str | int]]:
    """Each run, but what it knows of etcd, which is its own affair."""
    return [[run.generation, run.incarnation, run.end] for run in lineage.runs]


def read_seen(raw: Any) -> Seen | None:
    """What a refusal says that was seen of the store that is refused (R13); None when that is malformed, or not said."""
    if type(raw) is not list or len(raw) != 3:
        return None
    return Seen(*raw) if _is_run(raw) else None


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= 256


def _lineage(body: Any, texts: int, what: str) -> Lineage:
    """The lineage behind so many texts; no runs when none is told. What follows it is of a later version, and
    passed over. Raises ProtocolError."""
    if (
        type(body) is not list
        or not texts <= len(body) <= MAX_HELLO_FIELDS
        or not all(map(_is_text, body[:texts]))
    ):
        raise ProtocolError(f"malformed {what}")
    runs = body[texts] if len(body) > texts else []
    if type(runs) is not list or len(runs) > MAX_RUNS or not all(map(_is_run, runs)):
        raise ProtocolError(f"malformed {what}: {shown(runs)} as the runs of a store")
    if any(newer[0] <= older[0] for newer, older in pairwise(runs)):
        raise ProtocolError(f"malformed {what}: the runs {shown(runs)} are not in order")
    return Lineage(tuple(Run(*run) for run in runs))


def _is_run(raw: Any) -> bool:
    """``[generation, incarnation, record]``."""
    if type(raw) is not list or len(raw) != 3 or not _is_text(raw[1]):
        return False
    return all(type(count) is int and 0 <= count < MAX_COUNT for count in (raw[0], raw[2])) and raw[0] > 0


def read_hello(body: Any, cluster: str, me: Process) -> Hello:
    """What the caller of a PEER_HELLO tells; raises ProtocolError when it means another cluster or store."""
    lineage = _lineage(body, 6, "peer hello")
    if body[0] != cluster:
        raise ProtocolError(f"peer {shown(body[1])} is of cluster {shown(body[0])}; this is {cluster!r}")
    if (body[4], body[5]) != (me.node, me.store):
        raise ProtocolError(
            f"peer {shown(body[1])} looks for store {shown(body[5])} of node {shown(body[4])}; this is {me.store} of {me.node!r}"
        )
    return Hello(Process(body[1], body[2], body[3]), lineage, spoken_at(body, 7), levels_at(body, 8))


def read_hello_ok(body: Any) -> Hello:
    """What who answers tells. Raises ProtocolError."""
    lineage = _lineage(body, 3, "answer to a peer hello")
    return Hello(Process(body[0], body[1], body[2]), lineage, spoken_at(body, 4), levels_at(body, 5))
