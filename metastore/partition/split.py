"""A partition is split in two, live (R18): the leader's preparation, up to the entry that does it, and where the range ends
from then on.

The leader counts, slice by slice, what lies above the point, so that the entry can say how much each half
holds; proposes the entry in a moment when nothing waits; and from then on serves nothing above the point.
Each replica that applies the entry parts with the upper half. Its first leader and its replicas follow from the
entry, so that it serves also when etcd goes away right then; the leader has etcd record it (core.changing).
"""

from __future__ import annotations

from typing import Final

from metastore.clock import now_ns
from metastore.core.configs import pack_config
from metastore.core.events import PartingProposed, Propose, SplitApplied
from metastore.core.messages import FULL
from metastore.core.replica import ACTIVE
from metastore.core.rows import SplitOff, SplitResult, UpperHalf
from metastore.keys import end_point
from metastore.layout import ConfigRecord, SplitRecord, first_epoch, term_of
from metastore.partition.state import PartitionState

SLICE_RECORDS: Final = 2000
SLICE_BYTES: Final = 2 << 20
MAX_LAG: Final = 64


class Preparation:
    """Of one split; forgotten when leadership ends."""

    def __init__(self, state: PartitionState, wanted: SplitRecord) -> None:
        self.state = state
        self.wanted = wanted
        state.machine.proposals.count_above(wanted.at.to_bytes(8, "big"))

    @property
    def counted(self) -> bool:
        counting = self.state.machine.proposals.counting
        return counting is not None and counting.cursor is None

    def step(self) -> None:
        """Count one slice. Raises CorruptState."""
        state, counting = self.state, self.state.machine.proposals.counting
        assert counting is not None
        if counting.cursor is not None:
            found = state.store.scan(counting.cursor, state.hi, SLICE_RECORDS, SLICE_BYTES)
            state.machine.proposals.count_slice(found.rows, found.next)


class Split:
    """See the module. ``wanted``: what etcd's records ask for."""

    def __init__(self, state: PartitionState) -> None:
        self.state = state
        self.wanted: SplitRecord | None = None
        #: while a leader prepares
        self.preparation: Preparation | None = None

    def _happens(self, event: SplitApplied | PartingProposed) -> None:
        self.state.agenda.handle(now_ns(), event)

    # --- where the range ends -----------------------------------------------------------------

    def narrow(self) -> None:
        """R18: where the range ends that is served here, by the word of those who know: etcd's record, the splits that the
        state has, and the one that is proposed, above which nothing may be proposed after it. One that is
        forgotten again is none."""
        state = self.state
        config, parting = state.replica.config, state.replica.parting
        assert config is not None
        proposed = () if parting is None else (end_point(parting),)
        state.hi = min([end_point(config.hi), *(split.at for split in state.machine.splits), *proposed])
        self.tell_split()

    def tell_split(self) -> None:
        """The replica has the last split recorded, if it is a leader's and etcd does not know yet."""
        state, replica = self.state, self.state.replica
        if state.machine.splits:
            split = state.machine.splits[-1]
            if replica.config is not None and int.from_bytes(split.at, "big") < replica.config.hi:
                durable = split.child not in state.store.opening()
                self._happens(SplitApplied(state.p, child_config(state.p, split), durable))

    # --- preparing ----------------------------------------------------------------------------

    @property
    def is_counted(self) -> bool:
        """Whether it is to be proposed as soon as nothing waits."""
        return self.preparation is not None and self.preparation.counted

    def forget(self) -> None:
        """Leadership begins or ends: what was prepared, or proposed and not committed, is none."""
        self.preparation = None
        if self.state.replica.parting is not None:
            self._happens(PartingProposed(self.state.p, None))
        self.narrow()

    def prepare(self) -> None:
        """Begin, or go on, with one slice. Raises CorruptState."""
        wanted, state = self.wanted, self.state
        if wanted is None or state.replica.parting is not None:
            return
        if not may_split(state, wanted):
            if self.preparation is not None:
                self.preparation, state.machine.proposals.counting = None, None
            return
        if self.preparation is None or self.preparation.wanted != wanted:
            self.preparation = Preparation(state, wanted)
        self.preparation.step()

    def propose(self, now: int) -> None:
        """Everything is counted and nothing waits to be proposed."""
        state, replica, preparation = self.state, self.state.replica, self.preparation
        assert preparation is not None
        wanted = preparation.wanted
        if replica.role != ACTIVE or not may_split(state, wanted):
            return
        index = replica.log.last_index + 1
        term = replica.term
        assert term is not None
        me = replica.ctx.me.node
        members = sorted(term.config.replicas, key=lambda member: member[0] != me)  # this node first
        payload = state.machine.proposals.resolve_split(
            index, term.epoch, wanted.child, term.config.hi - 1, members
        )
        self.preparation = None
        self._happens(PartingProposed(state.p, wanted.at))
        self.narrow()
        state.agenda.handle(now, Propose(state.p, payload))
        assert replica.log.last_index == index

    def upper_half(self, split_result: SplitResult) -> UpperHalf:
        """What the store parts with when it applies the entry, as this node is a member of it or not."""
        split, me = split_result.split, self.state.replica.ctx.me
        mine = (me.node, me.store) in split.members
        config = pack_config(child_config(self.state.p, split)) if mine else None
        return UpperHalf(split.child, split.at, split_result.metadata, config)


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


def may_split(state: PartitionState, wanted: SplitRecord) -> bool:
    """Whether now is a time for it: this leader's replicas are all here and nothing else changes."""
    replica, term, around = state.replica, state.replica.term, state.around
    if replica.role != ACTIVE or term is None or not around.can_elect() or replica.ctx.moves_paused:
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
    if any(split.child == wanted.child for split in state.machine.splits):
        return False
    last = replica.log.last_index
    connected = around.connected()
    return all(
        n in connected and pr.sealed and not pr.probing and last - pr.match <= MAX_LAG
        for n, pr in term.progress.items()
        if n != term.me
    )
