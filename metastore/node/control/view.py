"""What the control plane's records ask of one node: which partitions it is to have and when, which of them may go, which leader keys
are its own. Pure."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, NamedTuple

from metastore.layout import ConfigRecord, Member, MoveRecord, term_of

#: so long a child waits for its parent's entry before it is opened empty (R18)
PARENT_PATIENCE_NS: Final = 2_000_000_000


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


class Parent(NamedTuple):
    """The copy here of the partition that another was split off."""

    is_member: bool
    #: it has applied the entry that split off the other
    has_parted: bool


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


def waits_for_parent(pending: bool, held: bool, parent: Parent | None, waited_ns: int) -> bool:
    """R18: whether a child will be here as soon as the entry that split it off is applied and durable: it is ``pending``
    (applied, not durable) or may be soon. That may never be: then it is opened empty, and gets what it has to hold from other
    replicas. ``held``: the store has a copy of it; ``parent``: None = no copy is here."""
    if pending:
        return True
    if held or parent is None or parent.has_parted:
        return False
    return parent.is_member and waited_ns < PARENT_PATIENCE_NS


def is_missing(node: str, replicas: Collection[str] | None, gone: bool, durable: bool) -> bool:
    """R18: whether this store may be a member of a partition, and has no durable copy of it. ``replicas``: its nodes as the topology
    has them, None = it has them not; ``gone``: a record names this store no more, or the copy was dropped."""
    if gone or durable:
        return False
    return replicas is None or node in replicas


def leads_as_recorded(config: ConfigRecord | None, sealed_epoch: int, active: bool, node: str) -> bool:
    """R12: whether a leader here is the one that its record names: then the leader key is to be this node's."""
    if not active or config is None or config.leader != node:
        return False
    return term_of(config.epoch) == term_of(sealed_epoch)
