"""What keeps a client from hurting the cluster or its own process: backoff, retry budget, admission.

*Backoff* is exponential with full jitter. The *budget* is a token bucket that every retry draws
from: while it is empty, retries go at the backoff's ceiling and no faster, so that ten thousand
clients whose leaders died at once slow down. *Admission* bounds what is under way to each cell;
beyond it calls wait their turn until their deadline, so that a dead cell takes up its own share only.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Final

from metastore.errors import DeadlineExceeded, Overloaded

BACKOFF_S: Final = (0.01, 0.4)
BUDGET_TOKENS: Final = 100.0
BUDGET_PER_SUCCESS: Final = 0.1
BUDGET_PER_S: Final = 2.0
MAX_UNDER_WAY: Final = 1024
MAX_WAITING: Final = 65_536


def backoff_s(pauses: int) -> float:
    """How long to wait before the next attempt after so many pauses: full jitter, in seconds."""
    low, high = BACKOFF_S
    return random.uniform(0, min(high, low * 2**pauses))


class RetryBudget:
    """Tokens for retries: full at first, refilled by successes and, slowly, by time (loop time, in s)."""

    __slots__ = ("_at", "empty_count", "tokens")

    def __init__(self) -> None:
        self.tokens = BUDGET_TOKENS
        self._at = 0.0
        #: how often a retry found it empty
        self.empty_count = 0

    def take(self, now: float) -> bool:
        """Take a token; False when there is none: then wait for the backoff's ceiling."""
        self.tokens = min(BUDGET_TOKENS, self.tokens + (now - self._at) * BUDGET_PER_S)
        self._at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return True
        self.empty_count += 1
        return False

    def succeeded(self) -> None:
        """An operation was answered."""
        if self.tokens < BUDGET_TOKENS:
            self.tokens += BUDGET_PER_SUCCESS


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
            raise Overloaded(f"{MAX_WAITING} operations wait for their turn in this client", retry_after_s=1)
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
            text = f"{self.limit} operations to cell {cell} are under way, and the deadline passed"
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
