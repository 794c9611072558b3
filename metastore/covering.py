"""Which of overlapping ranges cover the ring without gap or overlap. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Piece(NamedTuple):
    """A range ``lo <= point < hi`` that a partition may have."""

    id: int
    lo: int
    hi: int


def finest(pieces: Iterable[Piece], end: int) -> list[Piece] | None:
    """Those that reach from 0 to ``end``, each beginning where the one before ends, in order; None = there is no such way.

    Of several ways the one of most pieces: a record that should not be there seldom fits between others, and a partition
    that was split is finer than what it was. Of two equal ranges the lower id: it was there first.
    """
    #: point -> (how many pieces lead from there to the end, the first of them)
    best: dict[int, tuple[int, Piece | None]] = {end: (0, None)}
    for piece in sorted(pieces, key=lambda q: (-q.lo, q.id, q.hi)):
        after = best.get(piece.hi)
        if after is not None and piece.lo < piece.hi and after[0] + 1 > best.get(piece.lo, (0, None))[0]:
            best[piece.lo] = after[0] + 1, piece
    found = []
    at = 0
    while at != end:
        _, piece_there = best.get(at, (0, None))
        if piece_there is None:
            return None
        found.append(piece_there)
        at = piece_there.hi
    return found
