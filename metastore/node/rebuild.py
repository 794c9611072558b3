"""A copy whose state, or whose log, is damaged is given up, and rebuilt from a healthy replica (R14).

Rot is found by a reader of a row or an entry, or by the scrub. An entry that the state has is missed only by those that
read the past, and they get a snapshot, or list anew. One that the state lacks is worse: this replica has
acknowledged what it has not, so it leads nothing and counts in no quorum until a snapshot of what is behind that entry
has come. Where the state alone is damaged, the replica's log and its seal are sound: what it has acknowledged stays true. But nothing is read from the state any more, by clients or for a snapshot; the replica does not
campaign, and hands leadership over if it has it (R11), or else serves nothing. It asks the leader for a snapshot, which
takes the place of the state alone, and applies again what its log has above that. A crash on the way changes nothing: either
the new slot is in its place, or the damage is found again.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from metastore.clock import now_ns
from metastore.core.events import EntryLost, RebuildDue, StateLost, TransferWanted
from metastore.core.replica import ACTIVE
from metastore.errors import CorruptState, CorruptTree, RottenEntry
from metastore.logs import log_event
from metastore.node.ports import HasConfig, HasCore, HasHalt, HasLinks, HasPartitions, HasStore, HasTicks
from metastore.partition.partition import Partition

log = logging.getLogger("metastore.rebuilding")

HAND_OVER_NS: Final = 1_000_000_000


class Here(HasConfig, HasCore, HasHalt, HasPartitions, HasLinks, HasStore, HasTicks, Protocol):
    """What this needs of the node."""


class Rebuild:
    """See the module. ``why``: partitions here whose state is damaged, and how that is known."""

    def __init__(self, node: Here) -> None:
        self.node = node
        self.why: dict[int, str] = {}
        self.rebuilt = 0
        self._handed_over_ns: dict[int, int] = {}

    def found(self, p: int, error: CorruptState) -> None:
        """The state of a partition is not what was put there; or nothing is, and the node stops."""
        if isinstance(error, CorruptTree):
            self.node.halt.fail(error)
            return
        partition = self.node.partitions.get(p)
        if partition is None or (p in self.why and partition.replica.damaged):
            return
        why = self.why[p] = error.message
        self.node.core.handle(now_ns(), StateLost(p))
        fields = {"node": self.node.config.node, "partition": p, "epoch": partition.replica.sealed_epoch}
        log.error(
            "partition %d: its state is damaged (%s); it is rebuilt from another replica",
            p,
            why,
            extra=fields,
        )
        self.node.ticks.wake()

    def lost(self, error: RottenEntry) -> None:
        """An entry of a partition's log is not what was written. Where the state has it, it is gone as if by compaction;
        where it does not, this copy lacks what it has acknowledged, and is rebuilt from a snapshot that has it."""
        self.node.store.rotten_entry(error)
        p, index = error.detail["partition"], error.detail["index"]
        partition = self.node.partitions.get(p)
        if (
            partition is None
            or index <= partition.applied
            or (p in self.why and partition.replica.lost_index == index)
        ):
            return
        self.why[p] = error.message
        fields = {"node": self.node.config.node, "partition": p, "epoch": partition.replica.sealed_epoch}
        log.error("partition %d: %s; it is rebuilt from another replica", p, error.message, extra=fields)
        self.node.core.handle(now_ns(), EntryLost(p, index))
        self.node.ticks.hold_back(p)
        self.node.ticks.wake()

    def tick(self, now: int) -> None:
        """Get on with it."""
        for p in list(self.why):
            partition = self.node.partitions.get(p)
            if partition is None:
                del self.why[p]
            elif not partition.replica.damaged:
                del self.why[p]
                self.rebuilt += 1
                fields = {
                    "node": self.node.config.node,
                    "partition": p,
                    "epoch": partition.replica.sealed_epoch,
                }
                log_event(log, "rebuilt: its state is sound again", **fields)
            elif partition.replica.role == ACTIVE:
                self._hand_over(now, partition)
            else:
                self.node.core.handle(now, RebuildDue(p))

    def _hand_over(self, now: int, partition: Partition) -> None:
        """To the replica that lacks least, now and then another one."""
        term = partition.replica.term
        if term is None or now - self._handed_over_ns.get(partition.p, 0) < HAND_OVER_NS:
            return
        self._handed_over_ns[partition.p] = now
        up = [n for n, _ in term.config.members() if n in self.node.links.connected() and n in term.others()]
        steady = self.node.core.ctx.lapses.steady(now, up)
        for target in sorted(up, key=lambda n: (n not in steady, -term.progress[n].match)):
            if partition.replica.can_transfer(target):
                self.node.core.handle(now, TransferWanted(partition.p, target))
                return
