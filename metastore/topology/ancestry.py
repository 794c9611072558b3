"""Which partition was split off which (R18). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from metastore.topology.placements import Placement


def split_off(partitions: Mapping[int, Placement], ancestor: int, partition: int) -> int | None:
    """The entry of ``ancestor`` at which what is ``partition`` now was split off it; None when it was not."""
    at: int | None = None
    for _ in partitions:
        if partition == ancestor:
            return at
        placement = partitions.get(partition)
        if placement is None or placement.parent is None:
            return None
        partition, index = placement.parent
        at = index if at is None else min(at, index)
    return at if partition == ancestor else None


def lineage(partitions: Mapping[int, Placement], placement: Placement) -> list[int]:
    """The partition, and those that it was split off."""
    found = [placement.id]
    while placement.parent is not None and placement.parent[0] in partitions:
        placement = partitions[placement.parent[0]]
        if placement.id in found:
            break  # no record of ours says so
        found.append(placement.id)
    return found
