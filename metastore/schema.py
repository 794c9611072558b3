"""The door through which etcd's records come: which kind of record a key has, and what its value says. Pure.

Every key below the cluster's root is checked here by all its readers: nodes, routers and cellctl. A key
of a kind that is not known is of a later version, and passed over. A record whose key or value is not valid is
BadRecord: who follows etcd keeps what it knew of that record until then (metastore.following).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from metastore import fields, layout
from metastore.errors import InvalidRequest
from metastore.fields import BadRecord, Read
from metastore.keys import check_namespace
from metastore.namespaces import POLICY

T = TypeVar("T")
Parts = tuple[str, ...]

#: the longest value of a record, in bytes; of what nodes publish of many namespaces more
MAX_VALUE: Final = 64 << 10
MAX_USAGE: Final = 2 << 20
#: namespaces in one record of what a node publishes; how many have a policy is bounded elsewhere (namespaces.MAX_NAMESPACES)
MAX_PUBLISHED: Final = 1 << 20
#: of a namespace's policy, of which every node, router and client has all: what this version writes has under 300
MAX_POLICY: Final = 4 << 10

Usage = dict[str, list[int]]
"""Namespace -> [records, bytes]."""


@dataclass(frozen=True, slots=True)
class Presence:
    """``presence/{node}``: which process has the node's lease."""

    incarnation: str

    def to_bytes(self) -> bytes:
        return self.incarnation.encode()


@dataclass(frozen=True, slots=True)
class Mark:
    """A key that says all there is by being there: ``drained/{node}``, ``paused``."""

    def to_bytes(self) -> bytes:
        return b"{}"


@dataclass(frozen=True, slots=True)
class Kind:
    """``key``: what stands in its key behind the kind's name. ``read``: its value; raises BadRecord or ValueError.
    ``of``: what of a record its key has to say too, in the key's order ("" = nothing)."""

    key: tuple[Read[Any], ...]
    read: Callable[[bytes], Any]
    of: tuple[str, ...] = ()
    max_bytes: int = MAX_VALUE


def _number(value: Any) -> int:
    """A partition's number, as it stands in a key."""
    if (
        type(value) is not str
        or not value.isascii()
        or not value.isdigit()
        or int(value) > layout.MAX_PARTITION
    ):
        raise ValueError(f"{value!r:.60} is not a partition number")
    return int(value)


def _presence(raw: bytes) -> Presence:
    return Presence(fields.text(raw.decode()))


def _mark(raw: bytes) -> Mark:
    return Mark()


def _next_partition(raw: bytes) -> int:
    return _number(raw.decode())


def next_partition_to_bytes(number: int) -> bytes:
    """``next_partition``: the lowest number that no partition has had."""
    return b"%d" % number


_SUMS: Final = fields.mapping(check_namespace, fields.row(fields.whole(), fields.whole()), high=MAX_PUBLISHED)


def usage_to_json(usage: Usage) -> bytes:
    """``usage/{node}``."""
    return orjson.dumps(usage)


def _usage(raw: bytes) -> Usage:
    found = _SUMS(fields.from_json(raw, "what a node publishes"))
    return {name: list(sums) for name, sums in found.items()}


KINDS: Final[dict[str, Kind]] = {
    "meta": Kind((), layout.META.read_json),
    "lineage": Kind((), layout.LINEAGE.read_json),
    "cells": Kind((fields.name,), layout.CELL.read_json),
    "drained": Kind((fields.name,), _mark),
    "features": Kind((), layout.FEATURES.read_json),
    "paused": Kind((), _mark),
    "nodes": Kind((fields.name,), layout.NODE.read_json, ("node",)),
    "presence": Kind((fields.name,), _presence),
    "config": Kind((fields.name, _number), layout.CONFIG.read_json, ("", "partition")),
    "leader": Kind((fields.name, _number), layout.LEADER.read_json),
    "moves": Kind((_number,), layout.MOVE.read_json, ("partition",)),
    "splits": Kind((_number,), layout.SPLIT.read_json, ("partition",)),
    "next_partition": Kind((), _next_partition),
    "namespaces": Kind((check_namespace,), POLICY.read_json, max_bytes=MAX_POLICY),
    "usage": Kind((fields.name,), _usage, max_bytes=MAX_USAGE),
}


def shown(key: str) -> str:
    """A key as it can be printed, logged and sent: what is no UTF-8 in it as ``\\\\xff``."""
    text = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def kind_of(parts: Parts) -> str | None:
    """The kind of a key (the parts below the cluster's root), None = of a later version. Raises BadRecord when the
    key is not valid."""
    kind = KINDS.get(parts[0])
    try:
        "/".join(parts).encode()
    except UnicodeEncodeError:
        raise BadRecord("its key is not UTF-8") from None
    if kind is None or len(parts) != 1 + len(kind.key):
        return None
    try:
        for read, part in zip(kind.key, parts[1:], strict=True):
            read(part)
    except (ValueError, InvalidRequest) as e:
        raise BadRecord(f"its key: {e}"[:300]) from None
    return parts[0]


def read(parts: Parts, value: bytes) -> Any:
    """What the record at a key (the parts below the cluster's root) says; None of a key of a later version. Raises
    BadRecord."""
    name = kind_of(parts)
    if name is None:
        return None
    kind = KINDS[name]
    if len(value) > kind.max_bytes:
        raise BadRecord(f"it has {len(value)} bytes; {kind.max_bytes} are the most")
    try:
        found = kind.read(value)
    except BadRecord:
        raise
    except (ValueError, InvalidRequest) as e:  # of what is no UTF-8 too
        raise BadRecord(f"{e}"[:300]) from None
    for of, key, part in zip(kind.of, kind.key, parts[1:], strict=False):
        if of and getattr(found, of) != key(part):
            raise BadRecord(f"it is of {of} {getattr(found, of)!r:.80}, and its key of {part!r:.80}")
    return found


def read_record(parts: Parts, value: bytes, wanted: type[T]) -> T:
    """``read`` of a key that has to be of this kind. Raises BadRecord."""
    found = read(parts, value)
    if not isinstance(found, wanted):
        raise BadRecord(f"{'/'.join(parts)!r:.80} is not the key of such a record")
    return found
