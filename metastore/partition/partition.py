"""One partition on a node: its replica and state machine, its waiting operations. Puts the parts together, and is the only
one that knows them all.

Writes gather until the log is free (``writes``); reads are answered from the committed state while grants hold (``reads``);
otherwise both wait for a quorum (``confirmation``). What is committed becomes state (``applying``) and is told to those who
watch (``watches``).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from metastore.clock import now_ns
from metastore.core.dedupe import Window
from metastore.core.events import SplitTaken
from metastore.core.replica import ACTIVE
from metastore.core.views import ReplicaView
from metastore.errors import CorruptState, MetastoreError
from metastore.operations import (
    COMPOUND,
    CONSISTENCY_AT,
    ID_AT,
    KEY_AT,
    KIND_AT,
    LINEARIZABLE,
    MANY_KEYS,
    READS,
    SEQ_AT,
    WRITES,
    Op,
    is_read,
    keys_of,
)
from metastore.partition.applying import Applying
from metastore.partition.confirmation import Confirmation
from metastore.partition.log import PartitionLog
from metastore.partition.policies import Policies
from metastore.partition.ports import Agenda, PartitionSlice, ReplySink, Surroundings
from metastore.partition.reads import Reads
from metastore.partition.refusals import Refusals
from metastore.partition.split import Split
from metastore.partition.state import PROPOSING, PartitionState, Waiting
from metastore.partition.transition import Transition
from metastore.partition.waiters import error_result
from metastore.partition.watches import PartitionWatches
from metastore.partition.writes import Writes

#: over how long operations a second are counted
RATE_NS: Final = 5_000_000_000


class Partition:
    """See the module. ``max_pending``: writes that may wait to be proposed."""

    def __init__(
        self,
        replica: ReplicaView,
        store: PartitionSlice,
        agenda: Agenda,
        around: Surroundings,
        policies: Policies,
        max_pending: int,
    ) -> None:
        self.state = state = PartitionState(replica, store, agenda, around)
        self.p, self.replica, self.machine = state.p, replica, state.machine
        self.store, self.agenda, self.around, self.policies = store, agenda, around, policies
        self.refusals = Refusals(state)
        self.confirmation = Confirmation(state, self.refusals)
        self.transition = Transition(state, self.refusals)
        self.writes = Writes(state, self.refusals, self.confirmation, self.transition, max_pending)
        self.reads = Reads(state, self.refusals, self.confirmation, self.transition)
        self.waiters, self.deadlines = self.writes.waiters, self.writes.deadlines
        self.split = Split(state)
        self.log = PartitionLog(state)
        self.watches = PartitionWatches(state, self.refusals, self.log, policies)
        self.applying = Applying(state, self.split, self.watches, self.deadlines)
        self.window = Window()
        #: operations of clients so far, and a second over the last while
        self.operations = 0
        self.rate = 0.0
        self._rated = (0, now_ns())

    @property
    def role(self) -> str:
        return self.replica.role

    @property
    def applied(self) -> int:
        """The last entry that the state has."""
        return self.store.applied

    # --- the beginning ------------------------------------------------------------------------

    def load(self) -> None:
        """Begin with what the store has: at the start, after a snapshot (R17), or as what was split off (R18)."""
        if self.load_state():
            self.watches.snapshot_installed()

    def load_state(self) -> bool:
        """What the state has. False when it cannot be read (R14): nothing is applied to it then either."""
        self.machine.reset()
        try:
            self.machine.load(self.store.metadata())
        except CorruptState as e:
            self.state.frozen = True
            self.around.rotten(self.p, e)
            return False
        self.state.frozen = False
        self.split.narrow()
        return True

    def take_split(self) -> None:
        """R18: the store has made this copy, if it was empty, what its parent's entry split off."""
        if self.replica.is_empty and self.store.applied:
            self.load()
            taken = SplitTaken(self.p, self.store.applied, self.store.applied_epoch)
            self.agenda.handle(now_ns(), taken)

    # --- operations -----------------------------------------------------------------------------

    def operate(self, connection: ReplySink, client: bytes, op: Op, deadline: int, now: int) -> None:
        """One checked operation of a client, that came at ``now``. Its answer goes to ``connection``, now or later."""
        self.operations += 1
        kind, state = op[KIND_AT], self.state
        if self.replica.damaged and self.refusals.refuses_damaged(connection, op):
            return
        if not state.lo <= op[KEY_AT] < state.hi or (
            kind in MANY_KEYS and not all(map(state.covers, keys_of(op)))
        ):
            if self.transition.is_parting() and not self.transition.full:
                self.transition.add(connection, client, op, deadline)
                return
            error: MetastoreError | None = self.refusals.elsewhere()
        else:
            error = self.refuse(client, op)
            if error is not None and kind in WRITES and op[SEQ_AT] and not self.replica.can_read(now):
                error = None  # whether it is a retry only a leader knows, and one that is confirmed as such
        if error is not None:
            connection.answer(error_result(op[ID_AT], error))
        elif kind in READS:
            if op[CONSISTENCY_AT[kind]] == LINEARIZABLE:
                self.reads.linearizable(connection, client, op, deadline)
            else:
                self.reads.local(connection, op)
        elif kind in COMPOUND and is_read(op):
            self.reads.linearizable(connection, client, op, deadline)
        else:
            self.writes.write(connection, client, op, deadline, now)

    def refuse(self, client: bytes, op: Op) -> MetastoreError | None:
        """What the namespace's policy, or the room on the disks, has against an operation; nothing, when it is a
        retry of what was done before there was anything against it: that gets the first outcome (R7)."""
        error = self.policies.refuse(self.machine, op)
        if error is None and self.around.tight and op[KIND_AT] in WRITES:
            error = self.refusals.no_room(op)
        if error is None or op[KIND_AT] not in WRITES or not op[SEQ_AT]:
            return error
        known = self.writes.has_pending(client, op[SEQ_AT]) or self.machine.proposals.knows(client, op)
        return None if known else error

    def _operate_again(self, waiting: Waiting) -> None:
        """One that waited to hear who leads, as if it came now."""
        connection, client, op, deadline, _ = waiting
        self.operations -= 1
        self.operate(connection, client, op, deadline, now_ns())

    def _operate_confirmed(self, waiting: Waiting) -> None:
        """One that came before a quorum has confirmed this leader."""
        connection, client, op, deadline, _ = waiting
        if is_read(op):
            connection.answer(*self.reads.read(connection, op, 0))
            return
        # policies may have changed meanwhile: what is proposed after a change obeys it
        refused = self.refuse(client, op)
        if refused is None:
            self.writes.queue(connection, client, op, deadline)
        else:
            connection.answer(error_result(op[ID_AT], refused))

    def serve_waiting(self) -> None:
        """Those who waited to hear who leads, or where their key went, are served as if they came now."""
        self.transition.serve(self._operate_again)

    def confirm_waiting(self, now: int) -> bool:
        """Carry out what a quorum has confirmed, refuse what waited too long; whether any wait on."""
        self.confirmation.settle(now, self._operate_confirmed)
        return len(self.confirmation) > 0

    # --- entries --------------------------------------------------------------------------------

    def propose_pending(self, now: int) -> None:
        """The log is free: propose what has gathered, or the split that waits for a moment when nothing does."""
        idle, split = self.writes.propose(now), self.split
        if idle and split.preparation is not None and split.is_counted and not self.confirmation:
            split.propose(now)

    def apply_to(self, upto: int) -> None:
        """Apply committed entries in order and answer those who wait for them (R6)."""
        self.applying.apply_to(upto)
        self.waiters.answer(upto)
        if self.writes.pending and not self.waiters:
            self.agenda.wake()

    # --- leadership -----------------------------------------------------------------------------

    def on_role(self, role: str, was: str) -> None:
        """Leadership begins or ends here: what was proposed and is not committed is forgotten;
        who waits for it learns that its outcome is not known (R7)."""
        now = now_ns()
        if role in PROPOSING and was in PROPOSING:  # one term: what it proposed stays valid
            if role == ACTIVE:  # what was over while it was about to resign was passed over
                self.deadlines.start(now, self.machine.timed)
                self.serve_waiting()
            return
        self.machine.proposals.abandon()
        self.split.forget()
        if role in PROPOSING:
            self.deadlines.start(now, self.machine.timed)  # R15: anew, in full
            self.window.begin(now, self.replica.log.last_index)
        else:
            self.deadlines.stop()
            self.window.end()
            if self.watches.count:
                self.watches.end_all(self.refusals.not_leader(), also_any=False)
            self.writes.end_proposed()
            self.confirm_waiting(now)
            if self.writes.pending:
                self.propose_pending(now_ns())
        if not self.transition.is_changing_hands():
            self.serve_waiting()

    def retire(self) -> None:
        """The partition leaves this node, whatever its role here: everybody who waits is sent elsewhere, and nothing is
        proposed any more."""
        moved = self.around.whereabouts(self.p)
        self.machine.proposals.abandon()
        self.deadlines.stop()
        self.window.end()
        self.transition.end(moved)
        self.writes.end_proposed()
        self.watches.end_all(moved)
        self.confirmation.end(moved)
        self.writes.end_pending(moved)

    # --- time -----------------------------------------------------------------------------------

    def sweep(self, now: int) -> None:
        """Let records expire; keep watches informed; answer those whose time is up; get on with a split."""
        writes, waiters = self.writes, self.waiters
        if self.deadlines.running and self.deadlines:
            writes.expire(now)
        self.machine.proposals.horizon = self.window.horizon(now, self.replica.log.last_index)
        self.watches.sweep(now)
        if self.transition.is_due(now):
            self.transition.end(self.refusals.not_leader(), now)
        if now - self._rated[1] > RATE_NS:
            self.rate = (self.operations - self._rated[0]) * 1e9 / (now - self._rated[1])
            self._rated = self.operations, now
        if now > writes.pending_until:
            writes.drop_late(now)
        if waiters or now > waiters.until:
            writes.end_late(now)
        if self.split.wanted is not None:
            self._get_on_with_split(now)

    def _get_on_with_split(self, now: int) -> None:
        split, writes = self.split, self.writes
        try:
            split.prepare()
        except CorruptState as e:
            self.refusals.is_rotten(e)
            return
        if split.is_counted and not writes.pending and not writes.expired and not self.confirmation:
            if self.store.syncing:
                self.agenda.propose(self.p)
            else:
                split.propose(now)

    # --- for tools ------------------------------------------------------------------------------

    def digest(self) -> Generator[None, None, dict[str, Any] | None]:
        """See ``Reads.digest``."""
        return self.reads.digest()
