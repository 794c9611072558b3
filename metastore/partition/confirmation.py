"""Operations of a leader that holds too few grants: each waits for a quorum's answers to heartbeats that were sent after it
came (R8), reads and writes alike, so that a leader that slept refuses what it can no longer do instead of leaving its
outcome unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metastore.clock import now_ns
from metastore.core.replica import ACTIVE
from metastore.errors import MetastoreError, Overloaded, Unavailable
from metastore.operations import ID_AT, Op
from metastore.partition.ports import ReplySink
from metastore.partition.queue import WaitingQueue
from metastore.partition.state import Waiting
from metastore.partition.waiters import error_result

#: so long an operation waits for a quorum
PATIENCE_NS: Final = 2_000_000_000


class Confirmation(WaitingQueue):
    """See the module. The number that each waits with: of the heartbeat that has to be answered."""

    def add(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """An operation that cannot be carried out until a quorum has answered."""
        now = now_ns()
        missing = self.refusals.missing(now)
        if missing or self.full:
            error: MetastoreError = (
                self.refusals.no_quorum(missing)
                if missing
                else Overloaded("too many operations wait for a quorum here", retry_after_s=0.5)
            )
            connection.answer(error_result(op[ID_AT], error))
            return
        mark = self.state.agenda.confirm(self.state.p)
        self._append(mark, connection, client, op, min(deadline, now + PATIENCE_NS))

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
