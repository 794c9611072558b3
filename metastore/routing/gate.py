"""Admission: bounds the operations that are under way to each cell. Beyond it calls wait their turn until their
deadline, so that a dead cell takes up its own share only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from metastore.errors import DeadlineExceeded, Overloaded

MAX_UNDER_WAY: Final = 1024
MAX_WAITING: Final = 65_536


class Admission:
    """At most ``limit`` operations under way to each cell, at most MAX_WAITING that wait for it."""

    def __init__(self, limit: int = MAX_UNDER_WAY) -> None:
        self.limit = limit
        self.waiting = 0
        self._under_way: dict[str, int] = {}
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def under_way(self) -> int:
        return sum(self._under_way.values())

    def try_enter(self, cell: str) -> bool:
        count = self._under_way.get(cell, 0)
        if count >= self.limit:
            return False
        self._under_way[cell] = count + 1
        return True

    async def enter(self, cell: str, until: float) -> None:
        """Wait for a turn. Raises DeadlineExceeded at ``until`` (loop time), Overloaded at once when too
        many wait; nothing was done in either case."""
        if self.waiting >= MAX_WAITING:
            raise Overloaded(
                f"{MAX_WAITING} operations wait in this client, the limit: the cells are slow or down, or too much is sent at a time",
                retry_after_s=1,
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._queues.setdefault(cell, deque()).append(turn)
        timer = loop.call_at(until, self._late, turn, cell)
        self.waiting += 1
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(cell)  # let in, and cancelled in the same moment
            raise
        finally:
            self.waiting -= 1
            timer.cancel()

    def _late(self, turn: asyncio.Future[None], cell: str) -> None:
        if not turn.done():
            text = f"the deadline passed while {self.limit} operations to cell {cell} were under way, the limit for one cell: the cell is slow or down"
            turn.set_exception(DeadlineExceeded(text))

    def leave(self, cell: str) -> None:
        """Hand the place on, or give it back."""
        queue = self._queues.get(cell)
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._under_way[cell] -= 1
