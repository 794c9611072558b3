"""A partition is split in two, live (R18): the leader's preparation, up to the entry that does it.

The leader counts, slice by slice, what lies above the point, so that the entry can say how much each half
holds; proposes the entry in a moment when nothing waits; and from then on serves nothing above the point.
Whoever applies the entry parts with the upper half. Who leads that first, and who its replicas are, follows from the
entry, so that it serves also when etcd goes away right then; the leader has etcd record it (core.changing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metastore.core.machine import SplitOff
from metastore.core.messages import FULL
from metastore.core.replica import ACTIVE
from metastore.errors import CorruptState
from metastore.layout import ConfigRecord, SplitRecord, first_epoch, term_of

if TYPE_CHECKING:
    from metastore.node.host import PartitionHost

SLICE_RECORDS: Final = 2000
SLICE_BYTES: Final = 2 << 20
MAX_LAG: Final = 64


class Splitting:
    """One preparation; forgotten when leadership ends."""

    def __init__(self, host: PartitionHost, wanted: SplitRecord) -> None:
        self.host = host
        self.wanted = wanted
        self.at = wanted.at.to_bytes(8, "big")
        host.machine.count_above(self.at)

    @property
    def counted(self) -> bool:
        counting = self.host.machine.counting
        return counting is not None and counting.cursor is None

    def step(self) -> None:
        """Count one slice."""
        host, counting = self.host, self.host.machine.counting
        assert counting is not None
        if counting.cursor is not None:
            store = host.node.store
            end = host.hi
            rows = store.scan(host.p, counting.cursor, end, SLICE_RECORDS, SLICE_BYTES)
            host.machine.count_slice(rows, store.scan_next)

    def propose(self, now: int) -> None:
        """Everything is counted and nothing waits to be proposed."""
        host, replica = self.host, self.host.replica
        if replica.role != ACTIVE or not may_split(host, self.wanted):
            return
        index = replica.log.last_index + 1
        term = replica.term
        assert term is not None
        me = replica.ctx.me.node
        members = sorted(term.config.replicas, key=lambda member: member[0] != me)  # this node first
        payload = host.machine.resolve_split(
            index, term.epoch, self.wanted.child, term.config.hi - 1, members
        )
        host.splitting = None
        replica.parting = self.wanted.at
        host.narrow()
        proposed = replica.propose(now, payload)
        assert proposed == index


def child_config(parent: int, split: SplitOff) -> ConfigRecord:
    """What was split off ``parent`` begins with: everybody who applies the entry comes to the same. Its first term,
    which nobody but the entry can have made, is the one after the entry's; it belongs to who proposed the entry."""
    return ConfigRecord(
        split.child,
        int.from_bytes(split.at, "big"),
        split.last + 1,
        first_epoch(term_of(split.epoch) + 1),
        split.members[0][0],
        split.members,
        parent=(parent, split.epoch, split.entry),
    )


def may_split(host: PartitionHost, wanted: SplitRecord) -> bool:
    """Whether now is a time for it: this leader's replicas are all here and nothing else changes."""
    replica, term, node = host.replica, host.replica.term, host.node
    if replica.role != ACTIVE or term is None or not node.control.can_elect() or node.core.ctx.moves_paused:
        return False
    if (
        replica.damaged
        or replica.short_of_room(FULL)  # who parts before the entry can be logged serves nothing above
        or replica.move is not None
        or replica.split is not None
        or term.learners
        or term.config.joint
    ):
        return False
    if not replica.owns_record(term) or not term.config.lo < wanted.at < term.config.hi:
        return False
    if any(split.child == wanted.child for split in host.machine.splits):
        return False
    last = replica.log.last_index
    connected = node.links.connected()
    return all(
        n in connected and pr.sealed and not pr.probing and last - pr.match <= MAX_LAG
        for n, pr in term.progress.items()
        if n != term.me
    )


def tick(host: PartitionHost, now: int) -> None:
    """Begin, or go on."""
    wanted = host.wanted_split
    if wanted is None or host.replica.parting is not None:
        return
    if not may_split(host, wanted):
        if host.splitting is not None:
            host.splitting, host.machine.counting = None, None
        return
    if host.splitting is None or host.splitting.wanted != wanted:
        host.splitting = Splitting(host, wanted)
    try:
        host.splitting.step()
    except CorruptState as e:
        host.is_rotten(e)
        return
    if host.splitting.counted and not host.pending and not host.expired and not host.parked:
        if not host.node.store.syncing:
            host.splitting.propose(now)
        elif host not in host.node.writing:
            host.node.writing.append(host)
