"""Writes gather until the log is free and are then resolved and proposed as one entry (R7); who waits for that entry is
answered when it is committed (R6)."""

from __future__ import annotations

from typing import Any, Final

from metastore.clock import now_ns
from metastore.core.events import Propose
from metastore.core.messages import FULL
from metastore.core.replica import ACTIVE, InvariantBroken
from metastore.errors import (
    CorruptState,
    DeadlineExceeded,
    DiskLow,
    MetastoreError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from metastore.operations import (
    ID_AT,
    KEY_AT,
    KIND_AT,
    OK,
    SEQ_AT,
    TOUCH,
    WEIGHED,
    WRITES,
    Op,
    size_of,
    work_of,
)
from metastore.partition.confirmation import Confirmation
from metastore.partition.expiry import Deadlines
from metastore.partition.ports import ReplySink
from metastore.partition.refusals import Refusals
from metastore.partition.state import PartitionState, Waiting
from metastore.partition.transition import Transition
from metastore.partition.waiters import FOREVER_NS, Waiters, error_result

MAX_BATCH_OPS: Final = 2048
MAX_BATCH_BYTES: Final = 4 << 20
#: operations that are proposed and not committed: followers that do not keep up get no more than that
MAX_PROPOSED = 16_384
#: proposed without giving way to others
MAX_ENTRIES_A_TICK: Final = 4
MAX_EXPIRED_AT_ONCE: Final = 256


def batch_length(pending: list[Waiting]) -> int:
    """How many of those waiting make one entry."""
    size, parts, count = 0, 0, 0
    for _, _, op, _, taken in pending:
        work, reads = work_of(op)
        parts += work
        size += taken + reads
        if count and (size > MAX_BATCH_BYTES or parts > MAX_BATCH_OPS):
            break
        count += 1
    return count


class Writes:
    """See the module. ``max_pending``: writes that may wait to be proposed."""

    def __init__(
        self,
        state: PartitionState,
        refusals: Refusals,
        confirmation: Confirmation,
        transition: Transition,
        max_pending: int,
    ) -> None:
        self.state, self.refusals = state, refusals
        self.confirmation, self.transition = confirmation, transition
        self.max_pending = max_pending
        self.memory = state.agenda.memory
        self.waiters = Waiters()
        self.deadlines = Deadlines()
        self.pending: list[Waiting] = []
        #: of those: the bytes they take, whether transactions are among them, and when the first of them is
        #: no longer waited for
        self.pending_bytes = 0
        self.pending_weighed = False
        self.pending_until = FOREVER_NS
        #: records whose time is over, which wait to be proposed: ``(storage_key, version)``
        self.expired: list[tuple[bytes, int]] = []

    # --- before ---------------------------------------------------------------------------------

    def write(self, connection: ReplySink, client: bytes, op: Op, deadline: int, now: int) -> None:
        """One write that nothing is held against, that came at ``now``."""
        replica = self.state.replica
        if replica.role != ACTIVE:
            self.transition.reject(connection, client, op, deadline)
        elif (
            len(self.pending) >= self.max_pending
            or len(self.waiters) >= MAX_PROPOSED
            or self.state.store.full
            or self.memory.writes_full
        ):
            error = Overloaded("too many writes wait here", retry_after_s=0.1)
            connection.answer(error_result(op[ID_AT], error))
        elif replica.can_read(now):
            self.queue(connection, client, op, deadline)
        else:
            self.confirmation.add(connection, client, op, deadline)

    def queue(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """To be proposed when the log is free."""
        pending = self.pending
        if not pending and not self.expired:
            self.state.agenda.propose(self.state.p)
        size = size_of(op)
        self.memory.waiting += size
        self.pending_bytes += size
        if op[KIND_AT] in WEIGHED:
            self.pending_weighed = True
        if deadline < self.pending_until:
            self.pending_until = deadline
        pending.append((connection, client, op, deadline, size))

    def has_pending(self, client: bytes, seq: int) -> bool:
        """Whether that request of that client waits to be proposed."""
        return any(
            other == client and w[KIND_AT] in WRITES and w[SEQ_AT] == seq
            for _, other, w, _, _ in self.pending
        )

    # --- proposing ------------------------------------------------------------------------------

    def propose(self, now: int) -> bool:
        """Resolve and propose what has gathered, as few entries as the bounds allow; whether nothing waits any more."""
        pending, self.pending = self.pending, []
        left, self.pending_bytes = self.pending_bytes, 0
        first_due, self.pending_until = self.pending_until, FOREVER_NS
        # many records may be over at once (R15: all begin anew together): so many to an entry
        expired, self.expired = self.expired[:MAX_EXPIRED_AT_ONCE], self.expired[MAX_EXPIRED_AT_ONCE:]
        state, replica, entries = self.state, self.state.replica, 0
        self._must_be_applied()
        full = self.refusals.no_room_at_all() if state.around.tight else None
        while pending or expired:
            if replica.role != ACTIVE or replica.damaged:
                self._refuse_all(pending, left)
                return False
            if entries == MAX_ENTRIES_A_TICK:
                break
            entries += 1
            if left <= MAX_BATCH_BYTES and len(pending) <= MAX_BATCH_OPS and not self.pending_weighed:
                batch, pending, taken = pending, [], left
            else:
                count = batch_length(pending)
                batch, pending = pending[:count], pending[count:]
                taken = sum([w[4] for w in batch])
            left -= taken
            self.memory.waiting -= taken
            if now > first_due:
                batch = self.without_late(now, batch)
            if full is not None:
                batch = self.without_new(batch, full)
                self.deadlines.put_back(expired)
                expired = []
            if first_due < self.waiters.until:
                self.waiters.until = first_due
            self._propose_entry(now, batch, expired)
            expired = []
        self.pending, self.pending_bytes = pending, left
        if pending:
            self.pending_until = first_due
        else:
            self.pending_weighed = False
        if not self.pending and not self.expired:
            return True
        state.agenda.propose(state.p)
        state.agenda.wake()
        return False

    def _must_be_applied(self) -> None:
        state, replica = self.state, self.state.replica
        applied = state.store.applied
        if applied < replica.commit_index and not (replica.installing or replica.damaged):
            raise InvariantBroken(
                f"R7: partition {state.p} would resolve at entry {applied}, {replica.commit_index} is committed"
            )

    def _refuse_all(self, pending: list[Waiting], size: int) -> None:
        """Nothing may be proposed here any more."""
        replica, refusals = self.state.replica, self.refusals
        error = refusals.damage() if replica.role == ACTIVE else refusals.not_leader()
        self.memory.waiting -= size
        for connection, _, op, _, _ in pending:
            connection.answer(error_result(op[ID_AT], error))

    def _propose_entry(self, now: int, batch: list[Waiting], expired: list[tuple[bytes, int]]) -> None:
        """One entry of all these; who needs none is answered at once."""
        state, replica, machine = self.state, self.state.replica, self.state.machine
        over: list[tuple[bytes, int]] = []
        if expired:
            over = [e for e in expired if state.covers(e[0]) and self.deadlines.is_over(now, *e)]
        index = replica.log.last_index + 1
        try:
            payload, results = machine.proposals.resolve(index, [(w[1], w[2]) for w in batch], over)
        except CorruptState as e:
            error = self.refusals.is_rotten(e)
            for connection, _, op, _, _ in batch:
                connection.answer(error_result(op[ID_AT], error))
            machine.proposals.abandon()  # what was proposed before is applied as the log has it
            return
        if payload is not None:
            state.agenda.handle(now, Propose(state.p, payload))
            assert replica.log.last_index == index
        applied, waiters = state.store.applied, self.waiters
        for (connection, _, op, deadline, _), (at, tail) in zip(batch, results, strict=True):
            if op[KIND_AT] == TOUCH:
                tail = self.touched(now, op, at, tail)
            if at > applied:
                waiters.append((at, connection, op[ID_AT], tail, deadline))
            else:
                connection.answer([op[ID_AT], *tail])

    @staticmethod
    def without_late(now: int, batch: list[Waiting]) -> list[Waiting]:
        """The senders of these have given up; they are answered that nothing was done."""
        error = DeadlineExceeded("the deadline passed before the write was proposed; nothing was done")
        for connection, _, op, deadline, _ in batch:
            if now > deadline:
                connection.answer(error_result(op[ID_AT], error))
        return [w for w in batch if now <= w[3]]

    def without_new(self, batch: list[Waiting], full: DiskLow) -> list[Waiting]:
        """Those that need no entry: what changes nothing, and retries of what has its outcome (R7)."""
        rest = []
        for waiting in batch:
            connection, client, op, _, _ = waiting
            if op[KIND_AT] not in WRITES or (op[SEQ_AT] and self.state.machine.proposals.knows(client, op)):
                rest.append(waiting)
            else:
                connection.answer(error_result(op[ID_AT], full))
        return rest

    def touched(self, now: int, op: Op, at: int, tail: tuple[Any, ...]) -> tuple[Any, ...]:
        """Renew on this leader's clock, and answer so only while it is the leader (R8, R15): a
        later one starts all TTLs anew, which is later still."""
        state = self.state
        if tail[0] == OK:
            storage_key = op[KEY_AT]
            self.deadlines.renew(now, storage_key, state.machine.timed.get(storage_key))
            if at <= state.store.applied and not state.replica.can_read(now_ns()):
                error = Unavailable(
                    f"partition {state.p}: no quorum confirms its leader now", retry_after_s=0.2
                )
                return error.status, error.message, error.detail
        return tail

    # --- what ends ------------------------------------------------------------------------------

    def end_proposed(self) -> None:
        """What was proposed here is not this replica's to commit any more."""
        error = OutcomeUnknown(
            f"partition {self.state.p}: leadership was lost before the write was committed",
            partition=self.state.p,
        )
        self.waiters.end(error)

    def end_pending(self, error: MetastoreError) -> None:
        """Nothing is proposed here any more."""
        for connection, _, op, _, _ in self.pending:
            connection.answer(error_result(op[ID_AT], error))
        self.memory.waiting -= self.pending_bytes
        self.pending, self.expired, self.pending_bytes = [], [], 0

    # --- time -----------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """Records whose time is over are to be proposed (R15)."""
        replica, room = self.state.replica, MAX_EXPIRED_AT_ONCE - len(self.expired)
        may = replica.role == ACTIVE and not replica.short_of_room(FULL)
        over = self.deadlines.due(now, room) if room > 0 and may else []
        if over:
            if not self.pending and not self.expired:
                self.state.agenda.propose(self.state.p)
            self.expired += over
            self.state.agenda.wake()

    def drop_late(self, now: int) -> None:
        """Those whose time is up while the log hangs hear that nothing was done."""
        self.pending = self.without_late(now, self.pending)
        size = sum([w[4] for w in self.pending])
        self.memory.waiting -= self.pending_bytes - size
        self.pending_bytes = size
        self.pending_until = min((w[3] for w in self.pending), default=FOREVER_NS)

    def end_late(self, now: int) -> None:
        """Those whose time is up, and those whose entry no quorum is there to commit hear that nothing is known of it."""
        p = self.state.p
        if self.waiters and (missing := self.refusals.missing(now)):
            error = OutcomeUnknown(
                f"partition {p}: proposed, and no quorum has acknowledged it: {', '.join(missing)} do not answer",
                partition=p,
                missing=missing,
            )
            self.waiters.end(error)
        elif now > self.waiters.until:
            text = f"partition {p}: proposed, and no quorum had acknowledged it when its time was up"
            self.waiters.end_late(now, OutcomeUnknown(text, partition=p))
