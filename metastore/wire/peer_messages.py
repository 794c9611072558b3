"""Core messages as wire arrays and back, checked. Sans-I/O.

A PEER frame holds ``[[kind, field, ...], ...]``; kinds are numbered in core.messages. A value
of the wrong type raises ProtocolError: the connection ends and nothing else happens.
"""

from __future__ import annotations

from typing import Any, Final, get_type_hints

from metastore.core.messages import KINDS, NUMBERS, Process
from metastore.errors import ProtocolError

#: per kind: the plain type each field must have (containers are checked by their elements below)
_FIELD_TYPES: Final[dict[int, tuple[type[Any], ...]]] = {}
for _number, _cls in KINDS.items():
    _hints = get_type_hints(_cls)
    _FIELD_TYPES[_number] = tuple(getattr(t, "__origin__", t) for t in _hints.values())

_INT_ROWS: Final = {1: ("beats", 4), 2: ("refused", 2)}
_BYTES_LISTS: Final = frozenset({6, 10})


def encode(message: Any) -> list[Any]:
    return [NUMBERS[type(message)], *message]


def decode(raw: Any) -> Any:
    """One message. Raises ProtocolError."""
    if type(raw) is not list or not raw:
        raise ProtocolError("a peer message is not an array")
    kind = raw[0]
    types = _FIELD_TYPES.get(kind) if type(kind) is int else None
    if types is None:
        raise ProtocolError(f"unknown peer message {kind!r:.40}")
    if len(raw) != len(types) + 1:
        raise ProtocolError(f"peer message {kind} has {len(raw) - 1} fields instead of {len(types)}")
    for value, wanted in zip(raw[1:], types, strict=True):
        if type(value) is not wanted or (wanted is int and int(value) < 0):
            raise ProtocolError(f"peer message {kind}: {value!r:.40} where {wanted.__name__} was due")
    message = KINDS[kind](*raw[1:])
    rows = _INT_ROWS.get(kind)
    if rows is not None:
        _check_int_rows(getattr(message, rows[0]), rows[1])
    elif kind in _BYTES_LISTS:
        if not all(type(blob) is bytes for blob in message.entries):
            raise ProtocolError(f"peer message {kind}: an entry is not bytes")
    elif kind == 16:
        for row in message.rows:
            if type(row) is not list or len(row) != 3 or type(row[0]) is not int:
                raise ProtocolError("a snapshot row is not [kind, key, value]")
            if type(row[1]) is not bytes or type(row[2]) is not bytes:
                raise ProtocolError("a snapshot row is not made of bytes")
    return message


def _check_int_rows(rows: list[Any], width: int) -> None:
    for row in rows:
        if type(row) is not list or len(row) != width or not all(type(v) is int and v >= 0 for v in row):
            raise ProtocolError(f"{row!r:.60} where {width} counts were due")


def hello(cluster: str, me: Process, target_node: str, target_store: str) -> list[str]:
    """PEER_HELLO: who calls, and the very store it means to reach (R13)."""
    return [cluster, *me, target_node, target_store]


def read_hello(body: Any, cluster: str, me: Process) -> Process:
    """The caller of a PEER_HELLO; raises ProtocolError when it means another cluster or store."""
    if type(body) is not list or len(body) != 6 or not all(type(v) is str and len(v) <= 256 for v in body):
        raise ProtocolError("malformed peer hello")
    if body[0] != cluster:
        raise ProtocolError(f"peer {body[1]!r} is of cluster {body[0]!r}; this is {cluster!r}")
    if (body[4], body[5]) != (me.node, me.store):
        raise ProtocolError(
            f"peer {body[1]!r} looks for store {body[5]} of node {body[4]!r}; this is {me.store} of {me.node!r}"
        )
    return Process(body[1], body[2], body[3])


def read_hello_ok(body: Any) -> Process:
    if type(body) is not list or len(body) != 3 or not all(type(v) is str and len(v) <= 256 for v in body):
        raise ProtocolError("malformed answer to a peer hello")
    return Process(*body)
