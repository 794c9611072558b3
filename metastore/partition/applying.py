"""Committed entries become state: in order, each once, and the followers of changes are notified (R6)."""

from __future__ import annotations

from typing import Any, Final

from metastore.clock import now_ns
from metastore.core.entry import entry_payload, entry_position
from metastore.core.rows import Applied
from metastore.errors import RottenEntry, StorageError
from metastore.partition.expiry import Deadlines
from metastore.partition.split import Split
from metastore.partition.state import PartitionState
from metastore.partition.watches import PartitionWatches

READ_BYTES: Final = 4 << 20
MAX_STAGED_BYTES: Final = 1 << 20


class Applying:
    """See the module."""

    def __init__(
        self, state: PartitionState, split: Split, watches: PartitionWatches, deadlines: Deadlines
    ) -> None:
        self.state, self.split, self.watches, self.deadlines = state, split, watches, deadlines
        #: entries that came from a leader and are not applied yet: index -> their bytes, and them decoded
        self.staged: dict[int, tuple[bytes, Any]] = {}
        self._staged_bytes = 0
        #: up to this entry those who follow the changes have been told
        self._told = 0

    def stage(self, blobs: list[bytes], entries: list[Any]) -> None:
        """Keep entries just appended to the log as they were decoded, for when they are committed. Who is
        far behind decodes them again."""
        if self._staged_bytes > MAX_STAGED_BYTES:
            self.staged.clear()
            self._staged_bytes = 0
        index = entry_position(blobs[0])[0]
        for blob, entry in zip(blobs, entries, strict=True):
            self.staged[index] = blob, b"" if entry is None else entry
            self._staged_bytes += len(blob)
            index += 1

    def unstage(self, index: int) -> Any:
        """Entry ``index`` decoded, if it is staged and still the one that the log has; else None."""
        blob, entry = self.staged.pop(index, (None, None))
        if blob is None:
            return None
        self._staged_bytes -= len(blob)
        return entry if self.state.store.has(index, blob) else None

    def apply_to(self, upto: int) -> None:
        """Apply committed entries in order (R6). An entry that the log has lost ends it early (R14)."""
        state = self.state
        store, machine = state.store, state.machine
        applied = store.applied
        while applied < upto and not state.frozen:
            index = applied + 1
            entry = self.unstage(index) if self.staged else None
            if entry is not None or machine.proposals.proposed(index):
                self.save(index, state.replica.log.epoch_at(index), machine.apply(index, entry))
                applied = index
                continue
            try:
                blobs = store.read(index, READ_BYTES)
            except RottenEntry as e:
                state.around.lost(e)
                break
            for blob in blobs:
                index, epoch = entry_position(blob)
                if index > upto:
                    break
                if index != applied + 1:
                    raise StorageError(f"partition {state.p}: entry {index} read after {applied}")
                self.unstage(index)
                self.save(index, epoch, machine.apply(index, entry_payload(blob)))
                applied = index

    def save(self, index: int, epoch: int, applied: Applied) -> None:
        """Entry ``index`` is applied: to the store, with what it splits off (R18), and to the followers of changes."""
        state, half = self.state, None
        if applied.split_result is not None:
            half = self.split.upper_half(applied.split_result)
        state.store.apply(index, epoch, applied.changes, applied.metadata, half)
        if half is not None:
            self.split.forget()
            self.watches.split()
        if index <= self._told:
            return  # applied again, to a state that was rebuilt
        self._told = index
        if self.watches.count:
            self.watches.applied(index, applied)
        deadlines, timed = self.deadlines, state.machine.timed
        if deadlines.running and (timed or deadlines):
            now = now_ns()
            for storage_key, _ in applied.changes:
                deadlines.changed(now, storage_key, timed.get(storage_key))
