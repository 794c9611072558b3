"""Operations of a leader that holds too few grants: each waits for a quorum's answers to heartbeats that were sent after it
came (R8), reads and writes alike, so that a leader that slept refuses what it can no longer do instead of leaving its
outcome unknown."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from metastore.clock import now_ns
from metastore.core.replica import ACTIVE
from metastore.errors import MetastoreError, Overloaded, Unavailable
from metastore.operations import ID_AT, Op, size_of
from metastore.partition.ports import ReplySink
from metastore.partition.refusals import Refusals
from metastore.partition.state import PartitionState, Waiting
from metastore.partition.waiters import error_result

MAX_WAITING: Final = 4096
#: so long an operation waits for a quorum
PATIENCE_NS: Final = 2_000_000_000


class Confirmation:
    """See the module. True while any wait."""

    def __init__(self, state: PartitionState, refusals: Refusals) -> None:
        self.state, self.refusals = state, refusals
        self._waiting: deque[tuple[int, Waiting]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """An operation that cannot be carried out until a quorum has answered."""
        now = now_ns()
        missing = self.refusals.missing(now)
        if missing or len(self._waiting) >= MAX_WAITING:
            error: MetastoreError = (
                self.refusals.no_quorum(missing)
                if missing
                else Overloaded("too many operations wait for a quorum here", retry_after_s=0.5)
            )
            connection.answer(error_result(op[ID_AT], error))
            return
        agenda = self.state.agenda
        mark = agenda.confirm(self.state.p)
        size = size_of(op)
        agenda.memory.waiting += size
        self._waiting.append((mark, (connection, client, op, min(deadline, now + PATIENCE_NS), size)))

    def settle(self, now: int, carry_out: Callable[[Waiting], None]) -> None:
        """Carry out what a quorum has confirmed, refuse what waited too long."""
        replica, refusals = self.state.replica, self.refusals
        while self._waiting:
            mark, waiting = self._waiting[0]
            if replica.role != ACTIVE:
                error = refusals.not_leader()
            elif replica.damaged:
                error = refusals.damage()
            elif replica.confirmed_since(mark):
                carry_out(self._take_first())
                continue
            elif now > waiting[3]:
                error = Unavailable(
                    f"partition {self.state.p}: no quorum of replicas answered",
                    retry_after_s=1,
                    partition=self.state.p,
                )
            else:
                return
            self._refuse_first(error)

    def end(self, error: MetastoreError) -> None:
        """All of them are answered with ``error``."""
        while self._waiting:
            self._refuse_first(error)

    def _refuse_first(self, error: MetastoreError) -> None:
        connection, _, op, _, _ = self._take_first()
        connection.answer(error_result(op[ID_AT], error))

    def _take_first(self) -> Waiting:
        _, waiting = self._waiting.popleft()
        self.state.agenda.memory.waiting -= waiting[4]
        return waiting
