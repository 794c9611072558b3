"""An epoch: the term, which only etcd hands out, and the restart within it (R12, R16). Pure."""

from __future__ import annotations

from typing import Final

RESTART_BITS: Final = 16
MAX_EPOCH: Final = (1 << 62) - 1


def term_of(epoch: int) -> int:
    """The part of an epoch that only etcd hands out."""
    return epoch >> RESTART_BITS


def first_epoch(term: int) -> int:
    """The first epoch (restart 0) of ``term``."""
    return term << RESTART_BITS
