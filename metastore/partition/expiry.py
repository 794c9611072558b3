"""When records with a TTL are over, on the leader's clock (R15).

Kept by an active leader only. When leadership changes all of them start anew in full; a record goes
only through a replicated delete that names its version. Nothing here takes long, however many there
are: a beginning is spread over many calls, and time that does not count is one number.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

MS = 1_000_000
#: taken in by one call of ``due``
BEGIN_AT_ONCE = 20_000


class Deadlines:
    """Times in ns; those kept inside are less the time that does not count."""

    def __init__(self) -> None:
        self.running = False
        self._extra = 0
        self._until: dict[bytes, tuple[int, int]] = {}
        self._heap: list[tuple[int, bytes]] = []
        #: what has begun and was not looked at yet
        self._rest: Iterator[tuple[bytes, tuple[int, int]]] | None = None
        self._timed: Mapping[bytes, tuple[int, int]] = {}
        self._began = 0

    def start(self, now: int, timed: Mapping[bytes, tuple[int, int]]) -> None:
        """All anew: ``timed`` is storage_key -> (version, ttl_ms), and goes on being changed by its owner."""
        self.running, self._extra, self._began = True, 0, now
        self._until, self._heap = {}, []
        self._rest, self._timed = iter(list(timed.items())), timed

    def stop(self) -> None:
        self.running = False
        self._until, self._heap, self._rest = {}, [], None

    def add_time(self, duration: int) -> None:
        """So much time does not count: the process slept."""
        self._extra += duration

    def changed(self, now: int, storage_key: bytes, timed: tuple[int, int] | None) -> None:
        """A committed change of a record: its ``(version, ttl_ms)``, None = no TTL, or no record."""
        if timed is None:
            self._until.pop(storage_key, None)
        else:
            self._set(storage_key, timed[0], now - self._extra + timed[1] * MS)

    def renew(self, now: int, storage_key: bytes, timed: tuple[int, int] | None) -> None:
        """A touch."""
        if timed is not None:
            self._set(storage_key, timed[0], now - self._extra + timed[1] * MS)

    def _set(self, storage_key: bytes, version: int, until: int) -> None:
        self._until[storage_key] = version, until
        heapq.heappush(self._heap, (until, storage_key))
        if len(self._heap) > 1000 + 4 * len(self._until):  # what was renewed over and over
            self._heap = [(until, storage_key) for storage_key, (_, until) in self._until.items()]
            heapq.heapify(self._heap)

    def _begin(self) -> None:
        """Take in some of what began."""
        rest, timed = self._rest, self._timed
        assert rest is not None
        for _ in range(BEGIN_AT_ONCE):
            item = next(rest, None)
            if item is None:
                self._rest = None
                return
            storage_key, known = item
            if storage_key not in self._until and timed.get(storage_key) == known:
                self._set(storage_key, known[0], self._began + known[1] * MS)

    def due(self, now: int, limit: int) -> list[tuple[bytes, int]]:
        """``(storage_key, version)`` of records that are over, each told once, at most ``limit`` of them."""
        if self._rest is not None:
            self._begin()
        now -= self._extra
        found: list[tuple[bytes, int]] = []
        heap = self._heap
        while heap and heap[0][0] <= now and len(found) < limit:
            until, storage_key = heapq.heappop(heap)
            at = self._until.get(storage_key)
            if at is not None and at[1] == until:
                found.append((storage_key, at[0]))
        return found

    def put_back(self, found: list[tuple[bytes, int]]) -> None:
        """They were due, and could not go: ``due`` tells them once more."""
        for storage_key, version in found:
            at = self._until.get(storage_key)
            if at is not None and at[0] == version:
                heapq.heappush(self._heap, (at[1], storage_key))

    def is_over(self, now: int, storage_key: bytes, version: int) -> bool:
        """Whether it is so still: nothing changed or touched the record since it was due."""
        at = self._until.get(storage_key)
        return at is not None and at[0] == version and at[1] <= now - self._extra

    def __bool__(self) -> bool:
        """Whether anything may ever be due."""
        return bool(self._until) or self._rest is not None
