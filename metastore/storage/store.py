"""The store of a node: one data folder with a lock, an identity, one log and one state.

    DIR/LOCK   DIR/store.json   DIR/log/*.seg   DIR/state/

The parts, each of which knows only those before it:

    folder         whose the folder is, and its lock         space          room on the disk
    log, state     what is on the disk                       writer         the state's thread; fail-stop (R14)
    transactions   all that is ever written to the state     slots          what is known of each partition
    changes        applied and not yet in the state          splits         children not yet durable (R18)
    records        reading both                              journal        the way into the log (R1); facts
    retention      which segments stay                       checkpoints    applying, and the flush of what was applied
    switching      snapshots in the place of a state (R17)   scrub, damage  rot (R14)
    upkeep         what is done by the clock

``append`` numbers records, ``start_sync`` begins a group commit, ``on_durable`` (``start``) says what is synced. ``apply`` puts committed
changes into the overlay; the state follows in transactions of its own, never ahead of what the log has durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from metastore.core.messages import Lineage
from metastore.errors import StorageError
from metastore.storage.checkpoints import Checkpoints
from metastore.storage.damage import Damage
from metastore.storage.disk import Disk
from metastore.storage.folder import Folder
from metastore.storage.journal import Journal
from metastore.storage.lmdb_engine import LmdbEngine
from metastore.storage.opening import open_log
from metastore.storage.options import StorageOptions
from metastore.storage.overlay import Changes
from metastore.storage.partition_log import PartitionLog
from metastore.storage.reading import Records
from metastore.storage.records import DropEntry
from metastore.storage.retention import Retention
from metastore.storage.scrub import Scrub
from metastore.storage.snapshot import SnapshotReader
from metastore.storage.space import Space
from metastore.storage.splits import Splits
from metastore.storage.state import State
from metastore.storage.switching import Switching
from metastore.storage.transactions import Transactions
from metastore.storage.upkeep import Upkeep
from metastore.storage.writer import Writer

DRAIN_S = 0.002


class Store:
    """See the module. All methods are for the loop's thread. Names that are bound below are described where they are defined."""

    def __init__(
        self, folder: Folder, disk: Disk, state: State, options: StorageOptions, space: Space | None = None
    ) -> None:
        """Recover what is in the folder, or begin it. Raises CorruptLog, CorruptState."""
        self.options = options
        self.store_id, self.created = folder.store_id, folder.created
        self._folder = folder
        self.space = space or room_of(folder.path, disk, options)
        self.state, self.writer = state, Writer()
        self.transactions = Transactions(state, folder.store_id)
        opened = open_log(folder, disk, state, self.transactions, options)
        self.log, self.slots = opened.log, opened.slots
        self.partitions = self.slots.partitions
        self.facts, self.kept = opened.facts, opened.kept
        self._make_parts(opened.seq)
        self._bind()
        self._tasks: list[asyncio.Task[None]] = []

    def _make_parts(self, seq: int) -> None:
        """``seq``: the record of the log up to which the state has all."""
        log, slots, state, writer = self.log, self.slots, self.state, self.writer
        transactions, options = self.transactions, self.options
        self.changes = Changes(options.overlay_limit_bytes)
        self.records = Records(self.partitions, self.changes, state)
        self.splits = Splits(slots, self.changes, log)
        self.journal = Journal(log, slots, self.facts, self.kept)
        self.retention = Retention(options.log_retention_bytes, log, self.space, slots, transactions, writer)
        self.checkpoints = Checkpoints(
            options,
            slots,
            self.changes,
            self.splits,
            self.journal,
            self.retention,
            state,
            transactions,
            writer,
            seq,
        )
        self.switching = Switching(
            slots, self.changes, self.splits, self.journal, self.checkpoints, state, transactions, writer
        )
        self.damage = Damage(slots, self.journal, self.retention, writer)
        self.scrub = Scrub(log, state, options.scrub_bytes_s, self.damage.found)
        self.upkeep = Upkeep(
            slots,
            self.changes,
            log,
            self.space,
            self.retention,
            self.checkpoints,
            state,
            transactions,
            writer,
        )

    def _bind(self) -> None:
        """What users call, bound once to the part that does it: a second call for each operation would be dear."""
        log, journal, checkpoints = self.log, self.journal, self.checkpoints
        self.get, self.scan = self.records.get, self.records.scan
        self.start_sync, self.sync_now, self.read_entries = log.start_sync, log.sync_now, log.read
        self.append, self.append_entries, self.truncate = (
            journal.append,
            journal.append_entries,
            journal.truncate,
        )
        self.keep_fact, self.keep_rows = journal.keep_fact, journal.keep_rows
        self.raise_generation, self.note_asked = journal.raise_generation, journal.note_asked
        self.apply, self.set_metadata_source = checkpoints.apply, checkpoints.set_metadata_source
        self.save, self.run_flush = checkpoints.save, checkpoints.run
        self.hold_log, self.release_log = self.retention.hold, self.retention.release
        self.holds, self.pending_splits, self.is_splitting = (
            self.slots.holds,
            self.splits.pending_of,
            self.splits.is_pending,
        )
        self.begin_install = self.switching.begin
        self.rotten_entry = self.damage.entry
        self.look = self.upkeep.look

    # --- opening ----------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        cluster: str,
        node: str,
        options: StorageOptions | None = None,
        disk: Disk | None = None,
    ) -> Store:
        """Open or create the folder and recover. Raises ConfigError (locked, other cluster, node
        or format), CorruptLog and StorageError."""
        disk, options = disk or Disk(), options or StorageOptions()
        with contextlib.ExitStack() as undo:
            folder = Folder.open(Path(path), cluster, node, disk)
            undo.callback(folder.close)
            space = room_of(folder.path, disk, options)
            state = _open_state(folder, options)
            undo.callback(state.close)
            store = cls(folder, disk, state, options, space)
            undo.pop_all()
            undo.callback(store.abandon)
            folder.seal(disk)
            undo.pop_all()
        return store

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_durable: Callable[[int], None],
        on_failure: Callable[[StorageError], None],
    ) -> None:
        """From here on group commits and flushes run in their threads and call back in the loop."""

        def durable(seq: int) -> None:
            self.checkpoints.submit()
            on_durable(seq)

        self.writer.start(loop, on_failure)
        self.log.start(loop, durable, self.writer.fail)
        self.look()
        self._keep_going(loop, "the store's timer", self.upkeep.run_forever())
        if self.options.scrub_bytes_s:
            self._keep_going(loop, "scrub", self.scrub.run_forever())

    def _keep_going(self, loop: asyncio.AbstractEventLoop, what: str, coroutine: Any) -> None:
        task = loop.create_task(coroutine)
        task.add_done_callback(partial(self.writer.task_ended, what))
        self._tasks.append(task)

    # --- partitions -------------------------------------------------------------------------

    def add_partition(self, p: int) -> None:
        """An empty replica of a partition that this store does not hold (R13). One that it held
        before and dropped knows its sealed epoch still (R10)."""
        if p not in self.log.partitions:
            self.log.partitions[p] = PartitionLog()
        self.slots.add(p, self.log.partitions[p])

    def drop_partition(self, p: int) -> None:
        """Delete a removed replica's data; its sealed epoch stays for ever (R10). Raises StorageError while what
        was split off it, or the split that made it, is not durable (``pending_splits``, R18)."""
        if self.pending_splits(p):
            raise StorageError(
                f"R18: partition {p} cannot be dropped while {self.pending_splits(p)} are not durable"
            )
        self.slots.drop(p, self.append(DropEntry(p)))
        self.checkpoints.forget(p)
        self.retention.forget(p)
        self.log.partitions[p].reset(0, 0)

    def load_metadata(self, p: int) -> list[tuple[bytes, bytes]]:
        """The metadata rows of the state. Raises CorruptState."""
        return self.state.metadata_rows(self.partitions[p].meta.slot)

    def open_snapshot(self, p: int) -> SnapshotReader:
        return SnapshotReader(self.state, p)

    # --- what there is ----------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        return self.log.last_seq

    @property
    def durable_seq(self) -> int:
        return self.log.durable_seq

    @property
    def lineage(self) -> Lineage:
        return self.journal.lineage

    @property
    def mark(self) -> int:
        return self.journal.mark

    @property
    def syncing(self) -> bool:
        """What is appended now waits for a later group commit."""
        return self.log.syncing or self.log.short

    def syncing_for_s(self) -> float:
        """How long the group commit under way has taken so far."""
        if self.writer.loop is None or not self.syncing:
            return 0.0
        return self.writer.loop.time() - self.log.syncing_since_s

    def stats(self) -> dict[str, Any]:
        """Figures for status and metrics."""
        return {
            "log_segments": len(self.log.files.segments),
            "log_bytes": self.log.files.total_bytes(),
            "log_rounds_total": self.log.group_commits,
            "log_last_sync_us": self.log.last_sync_us,
            "overlay_bytes": self.changes.bytes,
            "overlay_changes": self.changes.changes,
            "state_flushes_total": self.checkpoints.count,
            "state_last_flush_ms": self.checkpoints.last_ms,
            "scrub_damage_total": self.damage.count,
            **self.scrub.stats(self.writer.now_s()),
            **self.space.stats(),
        }

    # --- the end ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Sync the log, save the state, let go of the folder. After a failure only the last."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.writer.failure is None and self.writer.loop is not None:
            await self.log.drain()
            for _ in itertools.repeat(None, 10_000):
                if self.writer.failure is not None or self.checkpoints.idle:
                    break
                self.checkpoints.freeze()
                self.start_sync()
                self.checkpoints.submit()
                await asyncio.sleep(DRAIN_S)
        self.abandon()

    def abandon(self) -> None:
        """Close without saving anything, as a crash would."""
        self.log.close()
        self.scrub.close()
        self.writer.close()
        self.state.close()
        self._folder.close()


def room_of(path: Path, disk: Disk, options: StorageOptions) -> Space:
    """Room for what recovery needs: the reserve is given up when there is little."""
    space = Space(path, disk, options.segment_bytes, options.low_bytes, options.reserve_bytes)
    space.begin()
    return space


def _open_state(folder: Folder, options: StorageOptions) -> State:
    engine = LmdbEngine.open(folder.path / "state", options.map_size_bytes)
    try:
        return State(engine, folder.created, options.read_cache_bytes)
    except BaseException:
        engine.close()
        raise
