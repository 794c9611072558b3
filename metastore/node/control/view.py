"""What the control plane's records ask of one node: which partitions it is to have, which of them may go. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from metastore.layout import ConfigRecord, Member, MoveRecord, term_of


class Place(Enum):
    """Where a partition is, as its record says."""

    #: on other nodes
    ELSEWHERE = "elsewhere"
    #: here, were its range not another's: nothing is opened for it
    ASIDE = "aside"
    HERE = "here"


class Copy(NamedTuple):
    """The copy that this store has of a partition."""

    #: the epoch that it has sealed
    sealed_epoch: int
    #: the revision of the record that it goes by
    config_mod_revision: int
    #: whether a snapshot is being installed
    installing: bool


def is_to_join(config: ConfigRecord, move: MoveRecord | None, mine: Member) -> bool:
    """Whether a move is to make this store a member (R10)."""
    return move is not None and not move.cancel and mine in move.target and mine not in config.members()


def place_of(config: ConfigRecord, move: MoveRecord | None, mine: Member, open_: bool, aside: bool) -> Place:
    """Where a partition is. ``open_``: it is open here; ``aside``: its range is another's in the map."""
    if mine not in config.members() and not is_to_join(config, move, mine):
        return Place.ELSEWHERE
    return Place.ASIDE if aside and not open_ else Place.HERE


def is_withdrawn(config: ConfigRecord, move: MoveRecord | None, mine: Member) -> bool:
    """Whether this store was to join, and is not any more."""
    return mine not in config.members() and (move is None or move.cancel)


def may_be_dropped(config: ConfigRecord, mod_revision: int, mine: Member, copy: Copy) -> bool:
    """R10: whether the record, as etcd has it, confirms that the copy is none that counts. One that is older than what the
    copy goes by, or of an earlier term than it has sealed, confirms nothing."""
    if mod_revision < copy.config_mod_revision or mine in config.members():
        return False
    return term_of(config.epoch) >= term_of(copy.sealed_epoch) and not copy.installing


def differs(usage: dict[str, list[int]], published: dict[str, list[int]]) -> bool:
    """Whether what a node leads is another than it has published, by over a hundredth."""
    return usage.keys() != published.keys() or any(
        abs(new - old) * 100 > old for ns in usage for new, old in zip(usage[ns], published[ns], strict=True)
    )
