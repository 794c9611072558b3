"""Python's garbage collector, tuned for a server, and how long it makes the loop wait.

What lives from the start is frozen. What an operation makes is freed by its reference count, so the young
generation is looked at seldom, and the oldest, whose size is that of all that is remembered, very seldom.
"""

from __future__ import annotations

import gc
import time
from typing import Any

YOUNG, MIDDLE, OLD = 50_000, 20, 50


class Collector:
    """Collections and their pauses since ``tune``."""

    def __init__(self) -> None:
        self.collections = [0, 0, 0]
        self.total_ns = 0
        self.worst_ns = 0
        self._began_ns = 0

    def tune(self) -> None:
        """Once everything that lives for good is there."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, OLD)
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter_ns()
        if phase == "start":
            self._began_ns = now
        else:
            took = now - self._began_ns
            self.collections[info["generation"]] += 1
            self.total_ns += took
            self.worst_ns = max(self.worst_ns, took)

    def stats(self) -> dict[str, Any]:
        return {
            "collections": list(self.collections),
            "total_ms": round(self.total_ns / 1e6, 1),
            "worst_ms": round(self.worst_ns / 1e6, 2),
        }
