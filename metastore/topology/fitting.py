"""Which partitions make a map: of records and words that may contradict each other, those that cover the ring. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from metastore.covering import Piece, finest
from metastore.keys import PartitionMap, PartitionRange
from metastore.topology.placements import Placement, same_range


def fitting(
    candidates: dict[int, Placement],
    learned: Mapping[int, Placement],
    before: Mapping[int, Placement],
    complete: bool,
) -> dict[int, Placement]:
    """Of the ``candidates``, what covers the ring: all of it where that fits; what did so ``before``, as it is now; else
    what makes most pieces. Where nothing does, what covered it before. ``learned``: those that only replicas have told of as
    yet; ``complete``: what was there before covered the ring."""
    if not learned:
        if _covers(candidates.values()):
            return candidates
        kept = {p: candidates[p] for p in before if p in candidates} if complete else {}
        if kept and all(same_range(kept.get(p), q) for p, q in before.items()):
            return kept
    found = finest(_pieces(candidates, learned), 1 << 64)
    if found is not None:
        return {
            piece.id: replace(candidates[piece.id], hi=piece.hi)
            if candidates[piece.id].hi != piece.hi
            else candidates[piece.id]
            for piece in found
        }
    if not complete:
        return candidates
    return {p: replace(candidates[p], lo=q.lo, hi=q.hi) if p in candidates else q for p, q in before.items()}


def _pieces(candidates: Mapping[int, Placement], learned: Mapping[int, Placement]) -> list[Piece]:
    """The ranges that partitions may have. One that was split ends where what was split off it begins, whatever an older
    word says (R18)."""
    pieces = [Piece(q.id, q.lo, q.hi) for q in candidates.values()]
    for child in learned.values():
        parent = candidates.get(child.parent[0]) if child.parent is not None else None
        if parent is not None and parent.lo < child.lo < parent.hi:
            pieces.append(Piece(parent.id, parent.lo, child.lo))
    return pieces


def _covers(placements: Iterable[Placement]) -> bool:
    try:
        PartitionMap(PartitionRange(q.id, q.lo, q.hi) for q in placements)
    except ValueError:
        return False
    return True
