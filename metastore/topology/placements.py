"""Where one partition is: what a record of etcd says of it, and the same as plain data. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from metastore import fields
from metastore.fields import Field, Shape
from metastore.layout import MAX_EPOCH, MAX_MEMBERS, MAX_PARTITION, ConfigRecord


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one partition is. ``replicas``: node names in order of preference."""

    id: int
    lo: int
    hi: int
    cell: str
    replicas: tuple[str, ...]
    leader: str | None = None
    epoch: int = 0
    #: (partition, entry) that it was split off, None = it has been there from the start
    parent: tuple[int, int] | None = None
    #: the store of each replica (R13), in the order of ``replicas``; empty = not known
    stores: tuple[str, ...] = ()


def placement_of(cell: str, config: ConfigRecord) -> Placement:
    """What a record of etcd says."""
    replicas = tuple(node for node, _ in config.members())
    stores = tuple(store for _, store in config.members())
    parent = config.parent and (config.parent[0], config.parent[2])
    return Placement(
        config.partition, config.lo, config.hi, cell, replicas, config.leader, config.epoch, parent, stores
    )


def placement_to_plain(p: Placement) -> dict[str, Any]:
    """For msgpack and JSON; points as hexadecimal text."""
    return {
        "id": p.id,
        "lo": f"{p.lo:016x}",
        "hi": f"{p.hi:016x}",
        "cell": p.cell,
        "replicas": list(p.replicas),
        "leader": p.leader,
        "epoch": p.epoch,
        "parent": list(p.parent) if p.parent else None,
        "stores": list(p.stores),
    }


def _placement(**read: Any) -> Placement:
    placement = Placement(**read)
    if not placement.lo < placement.hi:
        raise ValueError(f"the range from {placement.lo:016x} to {placement.hi:016x} is empty")
    return placement


NUMBER = fields.whole(0, MAX_PARTITION)
_NAMES = fields.several(fields.name, 0, 2 * MAX_MEMBERS)
PLACEMENT: Final = Shape(
    "a placement",
    _placement,
    {
        "id": Field(NUMBER),
        "lo": Field(fields.point),
        "hi": Field(fields.point),
        "cell": Field(fields.name),
        "replicas": Field(_NAMES),
        "leader": Field(fields.maybe(fields.name)),
        "epoch": Field(fields.whole(0, MAX_EPOCH)),
        "parent": Field(fields.maybe(fields.row(NUMBER, fields.whole())), None),
        "stores": Field(_NAMES, ()),
    },
)


def placement_from_plain(p: Any) -> Placement:
    """Raises BadRecord."""
    return PLACEMENT.read(p)


def same_range(a: Placement | None, b: Placement | None) -> bool:
    """Whether both are there, and cover the same points."""
    return a is not None and b is not None and (a.lo, a.hi) == (b.lo, b.hi)
