"""Snapshots of one partition, out of the state and into it (R17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from metastore.errors import Unavailable
from metastore.storage.state import State, record_writes

DATA, AUX = 1, 2
Row = tuple[int, bytes, bytes]


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
        self._aux = self._state.aux_rows_in(meta.slot, self._snapshot)
        self._rows = self._all_rows()

    def aux(self, key: bytes) -> bytes | None:
        """One of its aux rows."""
        return dict(self._aux).get(key)

    def _all_rows(self) -> Iterator[Row]:
        for lkey, record in self._state.scan(
            self._meta.data_slot, self._meta.start, self._meta.end, self._snapshot
        ):
            yield DATA, lkey, record
        for key, row in self._aux:
            yield AUX, key, row

    def chunk(self, max_bytes: int) -> list[Row]:
        """The next rows, about ``max_bytes`` of them; none at the end."""
        rows: list[Row] = []
        for row in self._rows:
            rows.append(row)
            max_bytes -= len(row[1]) + len(row[2]) + 8
            if max_bytes <= 0 or len(rows) >= 8000:
                break
        return rows

    def close(self) -> None:
        self._snapshot.close()


class Target(Protocol):
    """A store that a snapshot is installed in."""

    state: State

    async def run_in_writer(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work`` in the state's writer thread."""

    async def switch_slot(self, p: int, slot: int, index: int, epoch: int) -> None:
        """Make a staged slot the partition's state, with a log that begins after it."""

    async def rebuild_slot(self, p: int, slot: int, index: int, epoch: int) -> bool:
        """Make a staged slot the partition's state, with the log as it is, if that reaches down to there."""

    def delete_slot(self, slot: int) -> None:
        """A staged slot is not needed."""


class SnapshotInstaller:
    """Stages rows in a fresh slot; ``finish`` switches it in by one transaction."""

    def __init__(self, store: Target, p: int, slot: int) -> None:
        self._store = store
        self._p = p
        self._slot = slot
        self._used = False

    async def add(self, rows: list[Row]) -> None:
        """Stage rows; returns when they are written. Raises StorageError."""
        state, slot = self._store.state, self._slot
        job = [state.aux_write(slot, key, value) for kind, key, value in rows if kind == AUX]
        records = record_writes(slot, {key: value for kind, key, value in rows if kind == DATA})
        self._used = True
        await self._store.run_in_writer(state.write, job, records)

    async def finish(self, index: int, epoch: int) -> None:
        """Switch: from here the partition's log begins after ``(epoch, index)``."""
        await self._store.switch_slot(self._p, self._slot, index, epoch)

    async def rebuild(self, index: int, epoch: int) -> bool:
        """Switch the state alone: the log, which is sound, stays. False when it begins above ``index``."""
        return await self._store.rebuild_slot(self._p, self._slot, index, epoch)

    async def abort(self) -> None:
        if self._used:
            self._store.delete_slot(self._slot)
