"""Committed changes that are not in LMDB yet. Pure.

Flat per partition for O(1) reads; grouped by the 8-byte point for ordered scans, each group
sorted only when a scan comes by.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

#: rough cost of one change beyond its bytes: two dict slots, a list slot, object headers
CHANGE_OVERHEAD = 250


class PartitionOverlay:
    """Changes of one partition: storage_key -> record, None = deleted."""

    __slots__ = ("_points", "_sorted", "records")

    def __init__(self) -> None:
        self.records: dict[bytes, bytes | None] = {}
        self._points: dict[bytes, list[bytes]] = {}
        self._sorted: list[bytes] | None = None

    def put(self, storage_key: bytes, record: bytes | None) -> int:
        """Set a change; the bytes by which the overlay grew."""
        records = self.records
        size = len(record) if record else 0
        if storage_key in records:
            old = records[storage_key]
            records[storage_key] = record
            return size - (len(old) if old else 0)
        records[storage_key] = record
        point = storage_key[:8]
        group = self._points.get(point)
        if group is None:
            self._points[point] = [storage_key]
            if self._sorted is not None:
                insort(self._sorted, point)
        else:
            group.append(storage_key)
        return len(storage_key) + size + CHANGE_OVERHEAD

    def may_hold(self, start: bytes, end: bytes) -> bool:
        """False only when there is certainly no change with ``start <= storage_key < end``."""
        return start[:8] != end[:8] or start[:8] in self._points

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Changes with ``start <= storage_key < end``, in order. Not to be changed meanwhile."""
        if start[:8] == end[:8]:
            points: list[bytes] = [start[:8]] if start[:8] in self._points else []
        else:
            if self._sorted is None:
                self._sorted = sorted(self._points)
            points = self._sorted[bisect_left(self._sorted, start[:8]) :]
        for point in points:
            if point > end:
                return
            group = self._points[point]
            group.sort()  # nearly sorted most times: cheap
            at = bisect_left(group, start)
            for i in range(at, len(group)):
                storage_key = group[i]
                if storage_key >= end:
                    return
                yield storage_key, self.records[storage_key]

    def split(self, at: bytes) -> PartitionOverlay:
        """Part with the changes at the point ``at`` and above."""
        upper = PartitionOverlay()
        for storage_key in [k for k in self.records if k >= at]:
            upper.put(storage_key, self.records.pop(storage_key))
        self._points = {point: group for point, group in self._points.items() if point < at}
        self._sorted = None
        return upper


class Overlay:
    """One generation of changes over all partitions, with their applied positions."""

    def __init__(self) -> None:
        self.partitions: dict[int, PartitionOverlay] = {}
        self.dirty_metadata: dict[int, set[bytes]] = {}
        self.bytes = 0
        self.changes = 0

    def apply(self, p: int, changes: list[tuple[bytes, bytes | None]], metadata: set[bytes]) -> None:
        if changes:
            part = self.partitions.get(p)
            if part is None:
                part = self.partitions[p] = PartitionOverlay()
            grown = 0
            put = part.put
            for storage_key, record in changes:
                grown += put(storage_key, record)
            self.bytes += grown
            self.changes += len(changes)
        dirty = self.dirty_metadata.get(p)
        if dirty is None:
            self.dirty_metadata[p] = set(metadata)
        else:
            dirty |= metadata

    def split(self, p: int, at: bytes) -> PartitionOverlay | None:
        """Part with the changes of ``p`` at the point ``at`` and above; None when there are none of ``p``."""
        part = self.partitions.get(p)
        return None if part is None else part.split(at)

    def drop(self, p: int) -> None:
        self.partitions.pop(p, None)
        self.dirty_metadata.pop(p, None)


class Changes:
    """What is committed and not in the state yet: the generation that grows, and the one that is being flushed."""

    __slots__ = ("active", "flushing", "full", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        """``limit_bytes``: from here on no more writes are accepted."""
        self.limit_bytes = limit_bytes
        self.active = Overlay()
        self.flushing: Overlay | None = None
        self.full = False

    @property
    def bytes(self) -> int:
        flushing = self.flushing
        return self.active.bytes + (flushing.bytes if flushing is not None else 0)

    @property
    def changes(self) -> int:
        flushing = self.flushing
        return self.active.changes + (flushing.changes if flushing is not None else 0)

    def grown(self) -> None:
        """Changes came, or went into the state."""
        flushing = self.flushing
        held = self.active.bytes + (flushing.bytes if flushing is not None else 0)
        self.full = held > self.limit_bytes

    def freeze(self) -> Overlay:
        """The active generation becomes the one that is flushed, of which there is one at most."""
        assert self.flushing is None
        self.flushing, self.active = self.active, Overlay()
        return self.flushing

    def flushed(self) -> None:
        """The state has the generation that was being flushed."""
        self.flushing = None
        self.grown()
