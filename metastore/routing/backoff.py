"""How fast a client retries, so that it does not hurt the cluster. No I/O, no clock.

*Backoff* is exponential with full jitter. The *budget* is a token bucket that every retry draws from: while it is empty, retries go at
the backoff's ceiling and no faster, so that ten thousand clients whose leaders died at once slow down.
"""

from __future__ import annotations

import random
from typing import Final

BACKOFF_S: Final = (0.01, 0.4)
BUDGET_TOKENS: Final = 100.0
BUDGET_PER_SUCCESS: Final = 0.1
BUDGET_PER_S: Final = 2.0


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
