"""Reading committed records of a partition: what is not in the state yet goes before what is."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from operator import itemgetter

from metastore.storage.overlay import Changes
from metastore.storage.slots import PartitionInfo
from metastore.storage.state import State

Scanned = tuple[list[tuple[bytes, bytes]], bytes | None, int]
"""``(rows, next, bytes left)``. ``next``: the key to go on at when a bound ended it early; None = there is nothing more."""


class Records:
    """See the module."""

    __slots__ = ("_changes", "_partitions", "_state")

    def __init__(self, partitions: Mapping[int, PartitionInfo], changes: Changes, state: State) -> None:
        self._partitions, self._changes, self._state = partitions, changes, state

    def get(self, p: int, storage_key: bytes) -> bytes | None:
        """The committed record, packed, or None. Raises CorruptState."""
        changes = self._changes
        part = changes.active.partitions.get(p)
        if part is not None and storage_key in part.records:
            return part.records[storage_key]
        if changes.flushing is not None:
            part = changes.flushing.partitions.get(p)
            if part is not None and storage_key in part.records:
                return part.records[storage_key]
        meta = self._partitions[p].meta
        return self._state.get(meta.shared or meta.slot, storage_key)

    def scan(
        self,
        p: int,
        start: bytes,
        end: bytes,
        limit: int,
        max_bytes: int,
        wanted: bytes = b"",
        max_looks: int = 1 << 62,
    ) -> Scanned:
        """Records with ``start <= storage_key < end`` in order, at most ``limit``, of those whose namespace and key begin with
        ``wanted``. It ends early at ``limit`` records, ``max_bytes`` or ``max_looks`` (records looked at). Raises CorruptState."""
        meta, changes = self._partitions[p].meta, self._changes
        start, end = max(start, meta.start), min(end, meta.end)
        changed = [
            generation.partitions[p]
            for generation in (changes.active, changes.flushing)
            if generation is not None and p in generation.partitions
        ]
        sources = [part.scan(start, end) for part in changed if part.may_hold(start, end)]
        if not sources:
            found = self._state.scan_short(meta.data_slot, start, end, limit, max_bytes, wanted, max_looks)
            if found is not None:
                return found
        stored: Iterator[tuple[bytes, bytes | None]] = self._state.scan(meta.data_slot, start, end)
        # merge is stable: with equal keys the earlier iterable goes first, and so the newest
        merged = heapq.merge(*sources, stored, key=itemgetter(0)) if sources else stored
        rows: list[tuple[bytes, bytes]] = []
        last: bytes | None = None
        for storage_key, record in merged:
            if storage_key == last:
                continue
            if len(rows) >= limit or max_bytes <= 0 or max_looks <= 0:
                return rows, storage_key, max_bytes
            last = storage_key
            max_looks -= 1
            if record is not None and (not wanted or storage_key.startswith(wanted, 8)):
                rows.append((storage_key, record))
                max_bytes -= len(storage_key) + len(record)
        return rows, None, max_bytes
