"""Operations that wait before anything is done for them, in the order in which they came. What they take counts as memory that
clients make the node hold."""

from __future__ import annotations

from collections import deque
from typing import Final

from metastore.errors import MetastoreError
from metastore.operations import ID_AT, Op, size_of
from metastore.partition.ports import ReplySink
from metastore.partition.refusals import Refusals
from metastore.partition.state import PartitionState, Waiting
from metastore.partition.waiters import error_result

MAX_WAITING: Final = 4096


class WaitingQueue:
    """See the module. Each waits with a number, which never falls: what it waits for, or until when. True while any wait."""

    def __init__(self, state: PartitionState, refusals: Refusals) -> None:
        self.state, self.refusals = state, refusals
        self._waiting: deque[tuple[int, Waiting]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    def _append(self, number: int, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        size = size_of(op)
        self.state.agenda.memory.waiting += size
        self._waiting.append((number, (connection, client, op, deadline, size)))

    def _take_first(self) -> Waiting:
        _, waiting = self._waiting.popleft()
        self.state.agenda.memory.waiting -= waiting[4]
        return waiting

    def _refuse_first(self, error: MetastoreError) -> None:
        connection, _, op, _, _ = self._take_first()
        connection.answer(error_result(op[ID_AT], error))

    def end(self, error: MetastoreError, upto: int | None = None) -> None:
        """They are answered with ``error``. ``upto``: only those whose number is no higher."""
        while self._waiting and (upto is None or self._waiting[0][0] <= upto):
            self._refuse_first(error)
