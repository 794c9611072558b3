"""When records with a TTL are over, on the leader's clock (R15).

Kept by an active leader only. When leadership changes, or the process slept, all of them start
anew in full; a record goes only through a replicated delete that names its version.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

MS = 1_000_000


class Deadlines:
    """Times in ns."""

    def __init__(self) -> None:
        self.running = False
        self._until: dict[bytes, tuple[int, int]] = {}
        self._heap: list[tuple[int, bytes]] = []

    def start(self, now: int, timed: Mapping[bytes, tuple[int, int]]) -> None:
        """All anew: ``timed`` is lkey -> (version, ttl_ms)."""
        self.running = True
        self._until = {lkey: (version, now + ttl_ms * MS) for lkey, (version, ttl_ms) in timed.items()}
        self._heap = [(until, lkey) for lkey, (_, until) in self._until.items()]
        heapq.heapify(self._heap)

    def stop(self) -> None:
        self.running = False
        self._until.clear()
        self._heap.clear()

    def changed(self, now: int, lkey: bytes, timed: tuple[int, int] | None) -> None:
        """A committed change of a record: its ``(version, ttl_ms)``, None = no TTL, or no record."""
        if timed is None:
            self._until.pop(lkey, None)
        else:
            self._set(lkey, timed[0], now + timed[1] * MS)

    def renew(self, now: int, lkey: bytes, timed: tuple[int, int] | None) -> None:
        """A touch."""
        if timed is not None and lkey in self._until:
            self._set(lkey, timed[0], now + timed[1] * MS)

    def _set(self, lkey: bytes, version: int, until: int) -> None:
        self._until[lkey] = version, until
        heapq.heappush(self._heap, (until, lkey))
        if len(self._heap) > 64 + 4 * len(self._until):  # what was renewed over and over
            self._heap = [(until, lkey) for lkey, (_, until) in self._until.items()]
            heapq.heapify(self._heap)

    def due(self, now: int, limit: int) -> list[tuple[bytes, int]]:
        """``(lkey, version)`` of records that are over, each told once, at most ``limit`` of them."""
        found: list[tuple[bytes, int]] = []
        heap = self._heap
        while heap and heap[0][0] <= now and len(found) < limit:
            until, lkey = heapq.heappop(heap)
            at = self._until.get(lkey)
            if at is not None and at[1] == until:
                found.append((lkey, at[0]))
        return found

    def is_over(self, now: int, lkey: bytes, version: int) -> bool:
        """Whether it is so still: nothing changed or touched the record since it was due."""
        at = self._until.get(lkey)
        return at is not None and at[0] == version and at[1] <= now

    def __len__(self) -> int:
        return len(self._until)
