"""Placement: which cell should hold a partition, which nodes its replicas. Pure.

The ring (uhashring, its default hash, vnodes pinned) gives each partition an order of cells; a
cap per cell keeps the fullest within one partition of the mean (consistent hashing with
bounded loads). The result is *stored* and changed only by moves; nothing recomputes where
data lives from the ring alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from uhashring import HashRing

from metastore.errors import InvalidRequest
from metastore.keys import PartitionMap
from metastore.layout import ConfigRecord, NodeRecord

VNODES = 160
RING: dict[str, Any] = {"vnodes": VNODES, "hash": "uhashring-default"}
MAX_REPLICAS = 3


@lru_cache(maxsize=8)
def _ring(cells: tuple[str, ...]) -> HashRing:
    return HashRing(nodes=list(cells), vnodes=VNODES)


def preference(cells: Sequence[str], partition: int) -> list[str]:
    """The cells in the order that the ring prefers them for a partition."""
    ring = _ring(tuple(sorted(cells)))
    return [item["nodename"] for item in ring.range(f"partition-{partition}", size=len(cells))]


def place_cells(cells: Sequence[str], partitions: int) -> dict[int, str]:
    """Partition -> cell, each its share to within one (consistent hashing with bounded loads)."""
    if not cells:
        raise InvalidRequest("there is no cell to place partitions in")
    share, extra = divmod(partitions, len(cells))
    load = dict.fromkeys(cells, 0)
    placed: dict[int, str] = {}
    for p in range(partitions):
        cell = next(c for c in preference(cells, p) if load[c] < share or (load[c] == share and extra))
        extra -= load[cell] == share
        load[cell] += 1
        placed[p] = cell
    return placed


def place_replicas(nodes: Sequence[NodeRecord], count: int, turn: int) -> list[NodeRecord]:
    """``count`` nodes, first choice for leader first; zones spread, first choices in turn."""
    if not nodes:
        raise InvalidRequest("a cell without nodes cannot hold a partition")
    ordered = sorted(nodes, key=lambda n: n.node)
    start = turn % len(ordered)
    # the second choice varies too, so that a dead node's leaders spread over the others
    rest = ordered[start + 1 :] + ordered[:start]
    skip = (turn // len(ordered)) % len(rest) if rest else 0
    candidates = [ordered[start], *rest[skip:], *rest[:skip]]
    chosen: list[NodeRecord] = []
    while candidates and len(chosen) < count:
        zones = {n.zone for n in chosen if n.zone}
        pick = next((n for n in candidates if n.zone not in zones), candidates[0])
        candidates.remove(pick)
        chosen.append(pick)
    return chosen


def plan_initial(cells: Mapping[str, Sequence[NodeRecord]], partitions: int) -> dict[str, list[ConfigRecord]]:
    """The first config of every partition, by cell. Deterministic."""
    ranges = PartitionMap.even(partitions).ranges
    placed = place_cells(sorted(cells), partitions)
    turns = dict.fromkeys(cells, 0)
    plan: dict[str, list[ConfigRecord]] = {cell: [] for cell in cells}
    for p, cell in sorted(placed.items()):
        nodes = cells[cell]
        replicas = place_replicas(nodes, min(MAX_REPLICAS, len(nodes)), turns[cell])
        turns[cell] += 1
        members = tuple((n.node, n.store_id) for n in replicas)
        plan[cell].append(ConfigRecord(p, ranges[p].lo, ranges[p].hi, 0, None, members))
    return plan
