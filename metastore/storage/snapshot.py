"""Snapshots of one partition, out of the state and into it (R17)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from metastore.errors import Unavailable
from metastore.storage.state import State

DATA, METADATA = 1, 2
SnapshotRow = tuple[int, bytes, bytes]
"""DATA or AUX, key, value."""


class SnapshotReader:
    """One consistent view of what the state has of a partition, at ``(epoch, index)``. Pins pages of
    the state while open: close it."""

    def __init__(self, state: State, p: int) -> None:
        self._state = state
        self._snapshot = state.engine.snapshot()
        meta = state.meta_in(p, self._snapshot)
        if meta is None:
            self._snapshot.close()
            raise Unavailable(f"partition {p} has nothing applied on disk yet")
        self.index, self.epoch, self._meta = meta.applied, meta.applied_epoch, meta
        self._metadata = self._state.metadata_rows_in(meta.slot, self._snapshot)
        self._rows = self._all_rows()

    def metadata(self, key: bytes) -> bytes | None:
        """One of its aux rows."""
        return dict(self._metadata).get(key)

    def _all_rows(self) -> Iterator[SnapshotRow]:
        for storage_key, record in self._state.scan(
            self._meta.data_slot, self._meta.start, self._meta.end, self._snapshot
        ):
            yield DATA, storage_key, record
        for key, row in self._metadata:
            yield METADATA, key, row

    def chunk(self, max_bytes: int) -> list[SnapshotRow]:
        """The next rows, about ``max_bytes`` of them; none at the end."""
        rows: list[SnapshotRow] = []
        for row in self._rows:
            rows.append(row)
            max_bytes -= len(row[1]) + len(row[2]) + 8
            if max_bytes <= 0 or len(rows) >= 8000:
                break
        return rows

    def close(self) -> None:
        self._snapshot.close()


class Target(Protocol):
    """Where a snapshot is installed (``switching``)."""

    async def stage(self, slot: int, rows: list[SnapshotRow], /) -> None:
        """Write rows of a slot that no partition has."""

    async def switch(self, p: int, slot: int, index: int, epoch: int, /) -> None:
        """Make a staged slot the partition's state, with a log that begins after it."""

    async def rebuild(self, p: int, slot: int, index: int, epoch: int, /) -> bool:
        """Make a staged slot the partition's state, with the log as it is, if that reaches down to there."""

    def discard(self, slot: int, /) -> None:
        """A staged slot is not needed."""


class SnapshotInstaller:
    """Stages rows in a fresh slot; ``finish`` switches it in by one transaction."""

    def __init__(self, target: Target, p: int, slot: int) -> None:
        self._target = target
        self._p = p
        self._slot = slot
        self._used = False

    async def add(self, rows: list[SnapshotRow]) -> None:
        """Stage rows; returns when they are written. Raises StorageError."""
        self._used = True
        await self._target.stage(self._slot, rows)

    async def finish(self, index: int, epoch: int) -> None:
        """Switch: from here the partition's log begins after ``(epoch, index)``."""
        await self._target.switch(self._p, self._slot, index, epoch)

    async def rebuild(self, index: int, epoch: int) -> bool:
        """Switch the state alone: the log, which is sound, stays. False when it begins above ``index``."""
        return await self._target.rebuild(self._p, self._slot, index, epoch)

    async def abort(self) -> None:
        if self._used:
            self._target.discard(self._slot)
