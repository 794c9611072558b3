"""Operations that came while leadership changed hands (R11), or while the upper half of the partition was being split off
(R18): each is better served a little later than sent to look around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metastore.clock import now_ns
from metastore.core.replica import ACTIVATING, ACTIVE, ADOPTING, RESIGNED, RESIGNING, SEALING
from metastore.operations import ID_AT, Op
from metastore.partition.ports import ReplySink
from metastore.partition.queue import WaitingQueue
from metastore.partition.state import Waiting
from metastore.partition.waiters import error_result

HANDING_OVER: Final = frozenset({RESIGNING, RESIGNED})
BEGINNING: Final = frozenset({SEALING, ADOPTING, ACTIVATING})
#: so long an operation waits to hear who leads, or where its key went
MAX_WAIT_NS: Final = 300_000_000


class Transition(WaitingQueue):
    """See the module. The number that each waits with: the moment until which it does."""

    def is_parting(self) -> bool:
        """R18: whether the upper half is on its way to be another partition, which is not open here yet."""
        replica = self.state.replica
        return replica.role == ACTIVE and (replica.parting is not None or bool(self.state.store.opening()))

    def is_changing_hands(self) -> bool:
        role, term = self.state.replica.role, self.state.replica.term
        if role in BEGINNING:
            return term is not None and now_ns() - term.started_ns < MAX_WAIT_NS
        return role in HANDING_OVER

    def reject(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """An operation for the leader, which this is not. While one hands over (R11), or has just begun, it waits."""
        if self.is_changing_hands() and not self.full:
            self.add(connection, client, op, deadline)
        else:
            connection.answer(error_result(op[ID_AT], self.refusals.not_leader()))

    def add(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """To be called while it is not ``full``."""
        self._append(now_ns() + MAX_WAIT_NS, connection, client, op, deadline)

    def is_due(self, now: int) -> bool:
        """Whether somebody has waited for long enough."""
        return bool(self._waiting) and now >= self._waiting[0][0]

    def serve(self, carry_out: Callable[[Waiting], None]) -> None:
        """Those who wait now are served as if they came now."""
        for _ in range(len(self._waiting)):
            carry_out(self._take_first())
