"""The store of a node: one data folder with a lock, an identity, one log and one state.

    DIR/LOCK   DIR/store.json   DIR/log/*.seg   DIR/state/   (design.md: A node)

``append`` numbers records, ``kick`` begins a sync round, ``on_durable`` tells what is synced.
``apply`` puts committed changes into the overlay; the state follows in transactions of its
own, never ahead of what the log has durable. Every failed write ends the store (R14).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from metastore import fields
from metastore.core.messages import Lineage, Run
from metastore.errors import CorruptLog, CorruptState, NoRoom, RottenEntry, StorageError
from metastore.keys import END_OF_RING
from metastore.storage.disk import Disk
from metastore.storage.facts import keep_fact, read_fact
from metastore.storage.identity import (
    lock_folder,
    make_folders,
    new_identity,
    read_identity,
    write_identity,
)
from metastore.storage.kept import FACT_ROWS, PART_BYTES, KeptRows, parts_of
from metastore.storage.lmdb_engine import LmdbEngine
from metastore.storage.log import NodeLog
from metastore.storage.overlay import Overlay
from metastore.storage.partition_log import PartitionLog
from metastore.storage.records import ConfigEntry, DropEntry, Fact, SealEntry, TruncateEntry
from metastore.storage.recovery import Recovery
from metastore.storage.scrub import RottenBlock, RottenRow, Scrub
from metastore.storage.segments import BEGINNING, Border, Segment, SegmentFiles
from metastore.storage.slots import NO_SLOT, PartitionInfo, Slots
from metastore.storage.snapshot import SnapshotInstaller, SnapshotReader
from metastore.storage.space import Space
from metastore.storage.state import (
    BORDER_ROW,
    MAP_TABLE,
    META_TABLE,
    NODE_ROW,
    READ_CACHE_BYTES,
    Job,
    Meta,
    Row,
    Rubbish,
    State,
    meta_key,
    record_writes,
)

log = logging.getLogger("metastore.store")

#: a durable fact: which processes have run on the store, the newest first (R13)
FACT_RUNS: Final = "runs"
_RUNS: Final = fields.several(fields.row(fields.whole(), fields.text, fields.whole(), fields.whole()))
#: a fact that is logged so that a segment which has rotted is the last one no more
FACT_LEFT: Final = "left_segment"
FLUSH_INTERVAL_S: Final = 0.25
HOLD_AFTER_S: Final = 10.0
#: how long it may take until nothing needs a segment that has rotted
LET_GO_S: Final = 10.0
PUSH_S: Final = 0.002


Plain = SealEntry | ConfigEntry | Fact | DropEntry
"""Records that change no partition's log: those that do name the epoch under which they do (R1)."""


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Bounds in bytes, but where the name says otherwise."""

    segment_bytes: int = 32 << 20
    log_retention_bytes: int = 128 << 20
    cache_bytes: int = 64 << 20
    overlay_limit_bytes: int = 64 << 20
    flush_bytes: int = 8 << 20
    flush_changes: int = 5_000
    flush_age_s: float = 1.0
    map_size_bytes: int = 64 << 30
    read_cache_bytes: int = READ_CACHE_BYTES
    #: how much the scrub reads a second, 0 = it does not run
    scrub_bytes_s: int = 0
    #: below so much room what adds data is refused; 0 = no mark (storage.space)
    low_bytes: int = 0
    reserve_bytes: int = 0


class Fork(NamedTuple):
    """R18: what an applied entry splits off. All from the point ``at`` on is ``child``'s, which begins with the rows
    ``aux``. ``config``: the child's first one, packed; None = this store is no member, and what lies above goes."""

    child: int
    at: bytes
    aux: list[tuple[bytes, bytes]]
    config: bytes | None


class _Flush(NamedTuple):
    """One state transaction to be: it may go once the log is durable up to ``seq``."""

    generation: Overlay
    slots: dict[int, int]
    rows: Job
    seq: int
    applied: list[tuple[int, int, int]]
    #: the records that it changes, once it is known what they are called in the state
    changed: dict[bytes, bytes | None]
    #: how many rows are kept beside the facts
    kept: int


class Store:
    """See the module. All methods are for the loop thread."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], created: bool, options: StorageOptions
    ) -> None:
        self.folder = folder
        self.store_id: str = identity["store_id"]
        self.created = created
        self.options = options
        self.facts: dict[str, Any] = {}
        self.kept = KeptRows()
        self.partitions: dict[int, PartitionInfo] = {}
        self.slots = Slots(self.partitions)
        self.scan_next: bytes | None = None
        self.scan_bytes_left = 0
        self.flushes = 0
        self.last_flush_ms = 0
        self.log: NodeLog
        self.state: State
        self.space: Space
        #: a state transaction waits for room
        self.blocked = False
        #: of the log, and not yet deleted
        self._leaving: list[Segment] = []
        self._active = Overlay()
        #: so much is not in the state yet that writes are refused
        self.overlay_full = False
        self._flush_changes = options.flush_changes
        self._active_since = 0.0
        self._flushing: Overlay | None = None
        self._flush_job: _Flush | None = None
        self._dirty: set[int] = set()
        self._durable_applied: dict[int, int] = {}
        self._checkpoint_seq = 0
        #: the newest record that is more than a fact (``mark``)
        self._data_seq = 0
        #: the newest fact
        self._facts_seq = 0
        #: partitions split off that no flush has yet: of which, and their aux rows; and those that are being
        #: flushed (R18)
        self._forks: dict[int, tuple[int, list[tuple[bytes, bytes]]]] = {}
        self._forking: dict[int, int] = {}
        #: partitions whose staged slot is being switched in
        self._switching: set[int] = set()
        #: partition -> entries above this are kept for a while
        self._held: dict[int, int] = {}
        self._aux_sources: dict[int, Callable[[bytes], bytes | None]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state-writer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Task[None] | None = None
        self.scrub = Scrub(self, options.scrub_bytes_s)
        self._scrubbing: asyncio.Task[None] | None = None
        #: segments up to this one go as soon as the state has what is in them
        self._rotten_segment = 0
        self._on_durable: Callable[[int], None] = lambda seq: None
        self._on_failure: Callable[[StorageError], None] = lambda error: None
        self._failed: StorageError | None = None
        self.on_compacted: Callable[[int, int], None] = lambda p, index: None
        self.on_forked: Callable[[int, int], None] = lambda child, parent: None
        #: what is in the state of a partition is not what was put there, and why that is known
        self.on_rotten: Callable[[int, CorruptState], None] = lambda p, error: None
        #: whether some partition's state is on its way from another replica: what needs that may take long
        self.is_rebuilding: Callable[[], bool] = lambda: False
        self._lock_fd = -1

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
        folder, disk = Path(path), disk or Disk()
        make_folders(folder, disk)
        lock_fd = lock_folder(folder)
        try:
            found = read_identity(folder, cluster, node)
            identity = found or new_identity(cluster, node)
            store = cls(folder, identity, found is None, options or StorageOptions())
        except BaseException:
            os.close(lock_fd)
            raise
        store._lock_fd = lock_fd
        try:
            store.make_space(disk)
            store.recover(disk, store._open_state())
            if store.created:
                write_identity(folder, identity, disk)
        except BaseException:
            store.abandon()
            raise
        return store

    def make_space(self, disk: Disk) -> None:
        """Room for what recovery needs."""
        options = self.options
        self.space = Space(self.folder, disk, options.segment_bytes, options.low_bytes, options.reserve_bytes)
        self.space.begin()

    def _open_state(self) -> State:
        options = self.options
        engine = LmdbEngine.open(self.folder / "state", options.map_size_bytes)
        try:
            return State(engine, self.created, options.read_cache_bytes)
        except BaseException:
            engine.close()
            raise

    def recover(self, disk: Disk, state: State) -> None:
        """Bring log and state together, or make them. Raises CorruptLog, CorruptState."""
        self.make_space(disk)
        files = SegmentFiles(self.folder / "log", disk, self.store_id, self.options.segment_bytes)
        self.log = NodeLog(files, self.options.cache_bytes)
        self.state = state
        if self.created:
            self._begin(files)
        saved = state.saved()
        if saved is None or saved.node["store"] != self.store_id:
            raise CorruptState(
                f"{self.folder / 'state'} is not the state of store {self.store_id}, or lost; replace the node"
            )
        row, border, metas = saved
        self.facts = dict(row["facts"])
        self.facts.pop(FACT_ROWS, None)  # of a build that does not know what it is
        self._load_kept(row.get("rows"))
        self.log.last_seq = self.log.durable_seq = self._checkpoint_seq = row["seq"]
        self.log.block = self.log.durable_block = max(row["block"], border.block - 1)
        found = self.state.slots()
        free_slot = max(found | {s for m in metas.values() for s in (m.slot, m.shared)}, default=0) + 1
        recovery = Recovery(self.log, metas, self.facts, self.kept, free_slot)
        files.recover(border, row["block"], recovery.on_block)
        self.log.recovered()
        recovery.finish()
        for p, meta in metas.items():
            part = self.log.partitions[p]
            known = max(recovery.commits.get(p, 0), meta.commit)
            meta.commit = max(meta.applied, min(known, part.index.last_index))
            self.partitions[p] = PartitionInfo(meta, part.index)
            self._durable_applied[p] = meta.applied
        self.slots.recovered(found, recovery.free_slot)
        self._dirty = set(metas)

    def _load_kept(self, count: int | None) -> None:
        """``count``: of the rows that there have to be, None = the build that ran here last knows nothing of them."""
        rows = self.state.map_rows()
        if count is not None and len(rows) != count:
            raise CorruptState(
                f"the state has {len(rows)} rows of the topology, and there were {count}; replace the node"
            )
        self.kept.load(rows, count is not None)

    def _begin(self, files: SegmentFiles) -> None:
        """Log and state of a new store. Raises CorruptLog, CorruptState when there is one already."""
        files.begin()
        saved = self.state.saved()
        if self.state.slots() or (saved is not None and (saved.metas or saved.node["seq"])):
            raise CorruptState(
                f"store.json is missing though there is a state in {self.folder}; replace the node"
            )
        self.state.write(
            [
                (META_TABLE, NODE_ROW, self._node_row(0, 0)),
                (META_TABLE, BORDER_ROW, msgpack.packb(BEGINNING)),
            ]
        )

    @property
    def lineage(self) -> Lineage:
        """R13: which processes have run on the store."""
        none: tuple[tuple[Any, ...], ...] = ()
        return Lineage(tuple(Run(*run) for run in read_fact(self.facts, FACT_RUNS, _RUNS, none, none)))

    @property
    def mark(self) -> int:
        """R13: the newest record that is durable and may have been answered for: a copy of the folder that ends before it is
        an old one, whoever runs on it next. What the node notes of others is not counted, or two that tell each other their
        marks would never come to rest."""
        return min(self._data_seq, self.log.durable_seq)

    def raise_generation(self, incarnation: str) -> None:
        """One process more runs on the store (R13). Durable when this returns; to be called before ``start``, and
        before the process's first message. Raises StorageError."""
        self._note_lineage(self.lineage.begun(incarnation, self.log.last_seq))
        self.run_round()

    def note_asked(self, asked: int) -> int:
        """What the present run knows of etcd's record of it (R13); the record's number. Durable as ``keep_fact``."""
        seq = self._note_lineage(self.lineage.noted(asked))
        self._save_soon()
        return seq

    def _note_lineage(self, lineage: Lineage) -> int:
        return self.append(Fact(FACT_RUNS, [list(run) for run in lineage.runs]))

    def keep_fact(self, key: str, value: Any) -> None:
        """A durable fact: durable when this returns if the store has not been started, else soon."""
        self.append(Fact(key, value))
        self._save_soon()

    def keep_rows(self, rows: Mapping[bytes, bytes | None], whole: bool) -> int:
        """Rows beside the facts (``kept``), all of them or (not ``whole``) what has changed, None = gone; the number of the
        record with which they are durable, as one."""
        seq = self.last_seq
        for part in parts_of(rows, whole, min(PART_BYTES, self.options.segment_bytes // 4)):
            seq = self.append(Fact(FACT_ROWS, part))
        return seq

    def _save_soon(self) -> None:
        if self._loop is None:
            self.run_round()
        else:
            self.kick()

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_durable: Callable[[int], None],
        on_failure: Callable[[StorageError], None],
    ) -> None:
        """From here on rounds and flushes run in their threads and call back in the loop."""
        self._loop, self._on_durable, self._on_failure = loop, on_durable, on_failure
        self.log.start(loop, self._round_durable, self._fail)
        self.look()
        self._timer = loop.create_task(self._flush_forever())
        self._timer.add_done_callback(self._timer_ended)
        if self.options.scrub_bytes_s:
            self._scrubbing = loop.create_task(self.scrub.run_forever())
            self._scrubbing.add_done_callback(self._scrub_ended)

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    def _fail(self, error: StorageError) -> None:
        if self._failed is None:
            self._failed = error
            self._on_failure(error)

    def _scrub_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error if isinstance(error, StorageError) else StorageError(f"scrub: {error!r}"))

    def rotten(self, damage: RottenRow | RottenBlock) -> None:
        """The scrub has found damage (R14): that of a partition goes to ``on_rotten``, any other ends the store."""
        if isinstance(damage, RottenBlock):
            path = self.log.files.path(damage.segment)
            self._let_go(
                damage.segment,
                CorruptLog(f"{path} is corrupt at offset {damage.offset}; replace the node"),
            )
            return
        error = CorruptState(
            f"the stored row of {damage.key[:80]!r} in {damage.table} does not match its checksum"
        )
        if damage.table in ("meta", "map"):
            self._fail(error)
        for p in self.slots.owners(damage.table, damage.key):
            self.on_rotten(p, error)

    def rotten_entry(self, error: RottenEntry) -> None:
        """A read has found what the scrub had not come to yet (R14)."""
        segment = error.detail["segment"]
        if segment > self._rotten_segment:  # else it is known, and read again
            self.scrub.damage += 1
        self._let_go(segment, error)

    def _let_go(self, segment: int, error: CorruptLog) -> None:
        """R14: a segment has rotted. Nothing needs it once it is written no more and the state has all that is in it; if that
        does not come about soon, or when the copies that lack something have been rebuilt, the store ends."""
        if segment <= self._rotten_segment or self._failed is not None:
            return
        if self._loop is None:
            self._fail(error)
            return
        log.error("%s; what is in its segment is saved in the state, and then that goes", error.message)
        self._rotten_segment = segment
        if segment >= self.log.files.segments[-1].number:
            self.log.leave(segment)
            self.keep_fact(FACT_LEFT, segment)
        self._loop.call_later(LET_GO_S, self._look_for_rotten, error)

    def _look_for_rotten(self, error: CorruptLog) -> None:
        if not self._has_rotten_segment() or self._failed is not None:
            return
        if self.is_rebuilding():
            assert self._loop is not None
            self._loop.call_later(LET_GO_S, self._look_for_rotten, error)
        else:
            self._fail(error)

    def _has_rotten_segment(self) -> bool:
        return self.log.files.segments[0].number <= self._rotten_segment

    # --- partitions ---------------------------------------------------------------------------

    def add_partition(self, p: int) -> None:
        """An empty replica of a partition that this store does not hold (R13). One that it held
        before and dropped knows its sealed epoch still (R10)."""
        info = self.partitions.get(p)
        if info is None:
            part = self.log.partitions[p] = PartitionLog()
            self.partitions[p] = PartitionInfo(Meta(self.slots.take()), part.index)
        elif info.meta.dropped:
            info.meta.slot, info.meta.shared, info.meta.dropped = self.slots.take(), 0, False
            info.meta.start, info.meta.end = b"", END_OF_RING
            self._durable_applied[p] = 0
        self._dirty.add(p)

    def drop_partition(self, p: int) -> None:
        """Delete a removed replica's data; its sealed epoch stays for ever (R10). Raises StorageError while what
        was split off it, or the split that made it, is not durable (``forks``, R18)."""
        if self.forks(p):
            raise StorageError(f"R18: partition {p} cannot be dropped while {self.forks(p)} are not durable")
        info = self.partitions[p]
        meta = info.meta
        seq = self.append(DropEntry(p))
        meta.dropped = True
        meta.applied = meta.applied_epoch = meta.commit = 0
        meta.log_from_seq = seq
        self._dirty.add(p)
        self._active.drop(p)
        self.slots.garbage.append(self.slots.rows_of(p, seq))
        meta.shared = 0
        self._aux_sources.pop(p, None)
        self._held.pop(p, None)
        self.log.partitions[p].reset(0, 0)
        self._durable_applied[p] = 0

    def _part(self, p: int, index: int, epoch: int, fork: Fork) -> None:
        """R18: entry ``index`` of ``p`` is applied and parts with what lies above. The flush that has the parent at
        this entry has the child too; ``on_forked`` tells when it is durable. A child that is here, but still
        empty, becomes the fork; one that came from elsewhere stays as it is."""
        parent, child = self.partitions[p].meta, fork.child
        known = self.partitions.get(child)
        end, parent.end = parent.end, fork.at
        above = self._active.split(p, fork.at)
        if fork.config is None or (known is not None and not self._is_empty(child)):
            # the rows of a copy that came otherwise are in a slot of its own
            if known is None or known.meta.dropped or self.holds(child):
                rubbish = Rubbish(self.log.last_seq, NO_SLOT, parent.data_slot, fork.at, end)
                self.slots.parted.append((p, index, rubbish))
            return
        if known is None:
            part = self.log.partitions[child] = PartitionLog()
            known = self.partitions[child] = PartitionInfo(Meta(0, config=fork.config), part.index)
        else:
            self.slots.discard(known.meta.slot)
        meta = known.meta
        meta.slot, meta.shared = self.slots.take(), parent.data_slot
        meta.config = meta.config or fork.config
        meta.start, meta.end = fork.at, end
        meta.applied, meta.applied_epoch, meta.commit = index, epoch, index
        meta.log_from_seq = self.log.last_seq
        self.log.partitions[child].reset(index, epoch)
        self._durable_applied[child] = 0
        if above is not None:
            self._active.partitions[child] = above
        self._forks[child] = p, fork.aux
        self._dirty.add(child)

    def is_forking(self, p: int) -> bool:
        """Whether ``p`` has been split off, and no flush has made it so yet: it is not to be opened."""
        return p in self._forks or p in self._forking

    def _is_empty(self, p: int) -> bool:
        """Whether this replica has had nothing yet: no entry, no snapshot, none on its way in."""
        info = self.partitions[p]
        return not (info.meta.dropped or info.meta.applied or info.log.last_index or p in self._switching)

    def holds(self, p: int) -> bool:
        """Whether there is a durable copy of ``p`` here, of whatever age."""
        return self._durable_applied.get(p, 0) > 0

    def forks(self, p: int) -> list[int]:
        """What was split off ``p``, and ``p`` itself if it was, as far as no flush has made it so yet (R18)."""
        pending = [*self._forks.items(), *((c, (parent, [])) for c, parent in self._forking.items())]
        return [child for child, (parent, _) in pending if p in (child, parent)]

    def set_aux_source(self, p: int, source: Callable[[bytes], bytes | None]) -> None:
        """Who tells the present value of a dirty aux row when a flush freezes the overlay."""
        self._aux_sources[p] = source

    def load_aux(self, p: int) -> list[tuple[bytes, bytes]]:
        return self.state.aux_rows(self.partitions[p].meta.slot)

    # --- the log --------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        return self.log.last_seq

    @property
    def durable_seq(self) -> int:
        return self.log.durable_seq

    @property
    def syncing(self) -> bool:
        """What is appended now waits for a later round."""
        return self.log.syncing or self.log.short

    def append(self, record: Plain) -> int:
        """Buffer a record that changes no log; its number. Durable once ``durable_seq`` reaches it."""
        if isinstance(record, SealEntry) and record.epoch <= self.partitions[record.p].meta.sealed:
            sealed = self.partitions[record.p].meta.sealed
            raise StorageError(
                f"R1: partition {record.p} has sealed {sealed}; it is not lowered to {record.epoch}"
            )
        seq = self.log.append(record)
        if isinstance(record, SealEntry):
            meta = self.partitions[record.p].meta
            meta.sealed, meta.owner, meta.config = record.epoch, record.owner, record.config
            self._dirty.add(record.p)
        elif isinstance(record, ConfigEntry):
            self.partitions[record.p].meta.config = record.config
            self._dirty.add(record.p)
        elif isinstance(record, Fact):
            keep_fact(self.facts, self.kept, record)
            self._facts_seq = seq
            return seq
        self._data_seq = seq
        return seq

    def append_entries(self, p: int, epoch: int, commit: int, blobs: list[bytes]) -> int:
        """Buffer entries of one partition, written under ``epoch``; the number of the last one. Raises StorageError
        unless ``epoch`` is the one sealed (R1)."""
        self._must_be_sealed(p, epoch)
        self._data_seq = seq = self.log.append_entries(p, commit, blobs)
        return seq

    def truncate(self, p: int, epoch: int, keep_index: int) -> int:
        """Remove the entries above ``keep_index``, under ``epoch``; the record's number. Raises as ``append_entries``."""
        self._must_be_sealed(p, epoch)
        self._data_seq = seq = self.log.append(TruncateEntry(p, keep_index))
        return seq

    def _must_be_sealed(self, p: int, epoch: int) -> None:
        """R1: the storage write itself compares: what changes a log goes by here."""
        sealed = self.partitions[p].meta.sealed
        if epoch != sealed:
            raise StorageError(
                f"R1: partition {p} has sealed epoch {sealed}; nothing is written under {epoch}"
            )

    def kick(self) -> None:
        self.log.kick()

    def syncing_for_s(self) -> float:
        """How long the round under way has taken so far."""
        if self._loop is None or not self.syncing:
            return 0.0
        return self._loop.time() - self.log.syncing_since_s

    def hold_log(self, p: int, index: int) -> None:
        """Keep entries above ``index``, within bounds: a snapshot at it is on its way (R17)."""
        self._held[p] = min(index, self._held.get(p, index))

    def release_log(self, p: int) -> None:
        """The snapshot has arrived or failed; whoever got it has a while to ask for what follows."""
        if self._loop is not None:
            self._loop.call_later(HOLD_AFTER_S, self._held.pop, p, None)

    def read_entries(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        return self.log.read(p, first, max_bytes)

    def run_round(self) -> None:
        self.log.run_round()

    def _round_durable(self, seq: int) -> None:
        self._submit_flush()
        self._on_durable(seq)

    # --- reading the state ------------------------------------------------------------------------

    def _note_overlay(self) -> None:
        flushing = self._flushing
        held = self._active.bytes + (flushing.bytes if flushing is not None else 0)
        self.overlay_full = held > self.options.overlay_limit_bytes

    def get(self, p: int, lkey: bytes) -> bytes | None:
        """The committed record, packed, or None."""
        part = self._active.partitions.get(p)
        if part is not None and lkey in part.records:
            return part.records[lkey]
        if self._flushing is not None:
            part = self._flushing.partitions.get(p)
            if part is not None and lkey in part.records:
                return part.records[lkey]
        meta = self.partitions[p].meta
        return self.state.get(meta.shared or meta.slot, lkey)

    def scan(
        self,
        p: int,
        start: bytes,
        end: bytes,
        limit: int,
        max_bytes: int,
        wanted: bytes = b"",
        max_looks: int = 1 << 62,
    ) -> list[tuple[bytes, bytes]]:
        """Records with ``start <= lkey < end`` in order, at most ``limit``, of those whose namespace
        and key begin with ``wanted``. ``scan_next``: where to go on when ``limit``, ``max_bytes`` or
        ``max_looks`` (records looked at) ended it early; None = there is nothing more.
        ``scan_bytes_left``: what was left of ``max_bytes``."""
        info = self.partitions[p]
        start, end = max(start, info.meta.start), min(end, info.meta.end)
        changed = [
            generation.partitions[p]
            for generation in (self._active, self._flushing)
            if generation is not None and p in generation.partitions
        ]
        sources = [part.scan(start, end) for part in changed if part.may_hold(start, end)]
        if not sources:
            found = self.state.scan_short(
                info.meta.data_slot, start, end, limit, max_bytes, wanted, max_looks
            )
            if found is not None:
                short, self.scan_next, self.scan_bytes_left = found
                return short
        stored: Iterator[tuple[bytes, bytes | None]] = self.state.scan(info.meta.data_slot, start, end)
        # merge is stable: with equal keys the earlier iterable goes first, and so the newest
        merged = heapq.merge(*sources, stored, key=itemgetter(0)) if sources else stored
        rows: list[tuple[bytes, bytes]] = []
        last: bytes | None = None
        for lkey, record in merged:
            if lkey == last:
                continue
            if len(rows) >= limit or max_bytes <= 0 or max_looks <= 0:
                self.scan_next, self.scan_bytes_left = lkey, max_bytes
                return rows
            last = lkey
            max_looks -= 1
            if record is not None and (not wanted or lkey.startswith(wanted, 8)):
                rows.append((lkey, record))
                max_bytes -= len(lkey) + len(record)
        self.scan_next, self.scan_bytes_left = None, max_bytes
        return rows

    # --- applying and flushing ----------------------------------------------------------------------

    def apply(
        self,
        p: int,
        index: int,
        epoch: int,
        changes: list[tuple[bytes, bytes | None]],
        aux: set[bytes],
        fork: Fork | None = None,
    ) -> None:
        """Committed changes of entry ``index``, and what it splits off (R18); visible at once, in LMDB later."""
        meta = self.partitions[p].meta
        assert index == meta.applied + 1, f"R6: entry {index} applied after {meta.applied}"
        meta.applied, meta.applied_epoch = index, epoch
        if index > meta.commit:
            meta.commit = index
        active = self._active
        if not active.changes:
            self._active_since = self._now()
        active.apply(p, changes, aux)
        self._note_overlay()
        self._dirty.add(p)
        if fork is not None:
            self._part(p, index, epoch, fork)
        if fork or active.bytes > self.options.flush_bytes or active.changes > self._flush_changes:
            self._freeze()

    def _timer_ended(self, task: asyncio.Task[None]) -> None:
        """R14: without it nothing is saved by age, and nobody looks at the room."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(
                error if isinstance(error, StorageError) else StorageError(f"the store's timer: {error!r}")
            )

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            self.look()
            due = self._active.changes and self._now() - self._active_since > self.options.flush_age_s
            if due or self._needs_checkpoint():
                self._freeze()
            if self.slots.garbage and self._flushing is None and self._failed is None:
                await self._delete_garbage()
            if self.space.wants_reserve():
                await self.run_in_writer(self.space.make_reserve)

    def look(self) -> None:
        """How much room there is; what waits for some is tried again."""
        pages, flushing = self.state.engine.pages(), self._flushing
        pending = self._active.bytes + (flushing.bytes if flushing is not None else 0)
        stuck = self.blocked and self.overlay_full
        self.space.look(pages, pending, self.log.room(), self.blocked, stuck)
        if self._failed is None:
            self._submit_flush()
            # without waiting for a flush: nothing may have changed since the last one
            if self.space.critical:
                self._remove_segments()
            else:
                self._delete_leaving()
            if self.space.disk_free > self.options.segment_bytes:
                self.log.retry()

    def _retention(self) -> int:
        """How much log is kept for followers that lag: none when there is hardly room for the log itself, and no segment
        that has rotted."""
        if self.space.critical:
            return 0
        files, kept = self.log.files, self.options.log_retention_bytes
        if self._has_rotten_segment():
            kept = min(kept, (files.segments[-1].number - self._rotten_segment) * files.segment_bytes)
        return kept

    async def _delete_garbage(self) -> None:
        garbage = self.slots.garbage[0]
        try:
            durable = self.durable_seq >= garbage.seq
            if durable and not await self.run_in_writer(self.state.delete_step, garbage):
                self.slots.garbage.remove(garbage)
                self.state.cache.clear()
        except NoRoom:
            pass  # later
        except StorageError as e:
            self._fail(e)

    def _needs_checkpoint(self) -> bool:
        """The log is over its retention and waits for facts or idle partitions to be saved: once a segment, so that it
        ends whatever else keeps some."""
        files = self.log.files
        return self._has_rotten_segment() or (
            (bool(self._dirty) or self._facts_seq > self._checkpoint_seq)
            and files.total_bytes() > self._retention()
            and len(files.segments) > 1
            and files.segments[-2].last_seq > self._checkpoint_seq
        )

    def _freeze(self) -> None:
        """Make the active generation the flushing one, with all rows that go with it."""
        if self._flushing is not None or self._switching or self._failed is not None:
            return
        self._flushing, self._active = self._active, Overlay()
        # not in step: replicas apply the same changes, and a quorum of them should not be busy at once
        self._flush_changes = int(self.options.flush_changes * random.uniform(0.6, 1.4))
        generation = self._flushing
        state = self.state
        slots = {p: self.partitions[p].meta.data_slot for p in generation.partitions}
        job: Job = []
        for p, keys in generation.dirty_aux.items():
            source = self._aux_sources.get(p)
            if source is not None:
                slot = self.partitions[p].meta.slot
                job += [state.aux_write(slot, key, source(key)) for key in sorted(keys)]
        forks, self._forks = self._forks, {}
        self._forking = {child: parent for child, (parent, _) in forks.items()}
        for p, (_, rows) in forks.items():
            slot = self.partitions[p].meta.slot
            job += [state.aux_write(slot, key, row) for key, row in rows]
        dirty, self._dirty = self._dirty, set()
        applied = [(p, self.partitions[p].meta.slot, self.partitions[p].meta.applied) for p in dirty]
        job += [(META_TABLE, meta_key(p), self.partitions[p].meta.pack()) for p in dirty]
        kept, count = self.kept.unsaved()
        job += [(MAP_TABLE, key, row) for key, row in kept.items()]
        self._flush_job = _Flush(generation, slots, job, self.log.last_seq, applied, {}, count)
        self._submit_flush()

    def _submit_flush(self) -> None:
        """Hand the frozen generation to the writer once the log has all of it durable."""
        flush = self._flush_job
        if flush is None or self.log.durable_seq < flush.seq or self._loop is None:
            return
        self._flush_job = None
        node_row = self._node_row(flush.seq, flush.kept)
        began = time.monotonic()
        future = self._loop.run_in_executor(self._writer, self._write_flush, flush, node_row)
        future.add_done_callback(lambda f: self._flushed(f, flush, began))

    def _write_flush(self, flush: _Flush, node_row: bytes) -> None:
        """In the writer thread: the frozen generation does not change any more."""
        job: list[Row] = []
        for p, part in flush.generation.partitions.items():
            job += record_writes(flush.slots[p], part.records)
        flush.changed.update(job)
        self.state.write([*flush.rows, (META_TABLE, NODE_ROW, node_row)], job)

    def _node_row(self, seq: int, kept: int) -> bytes:
        row: bytes = msgpack.packb(
            {
                "store": self.store_id,
                "facts": self.facts,
                "seq": seq,
                "block": self.log.durable_block,
                "rows": kept,
            }
        )
        return row

    def _flushed(self, future: asyncio.Future[None], flush: _Flush, began: float) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, NoRoom):
            if not self.blocked:
                log.error("%s; it is tried again until there is room", error)
            self._flush_job, self.blocked = flush, True
            return
        if future.cancelled() or error is not None:
            if error is not None:
                self._fail(
                    error if isinstance(error, StorageError) else StorageError(f"state writer: {error!r}")
                )
            return
        self._flush_done(flush)
        self.last_flush_ms = int((time.monotonic() - began) * 1000)

    def _flush_done(self, flush: _Flush) -> None:
        self.state.renew(flush.changed)  # before the overlay goes: no read may miss it
        self._flushing, self.blocked = None, False
        self._note_overlay()
        self.flushes += 1
        self._checkpoint_seq = flush.seq
        for p, slot, applied in flush.applied:
            if self.partitions[p].meta.slot == slot:  # not dropped and taken up again meanwhile
                self._durable_applied[p] = applied
        forked, self._forking = self._forking, {}
        self.slots.discard_parted(self._durable_applied.__getitem__)
        for child, parent in forked.items():
            self.on_forked(child, parent)
        self._remove_segments()
        if self._active.bytes > self.options.flush_bytes or self._forks or self.slots.parted:
            self._freeze()

    def _remove_segments(self) -> None:
        """The oldest segments go that the state reflects, beyond what is kept for followers."""
        shortened, removed = self.log.remove_segments(
            lambda p: self._durable_applied.get(p, 0),
            self._checkpoint_seq,
            self._retention(),
            {} if self.space.critical or self._has_rotten_segment() else self._held,
        )
        self._leaving += removed
        self._delete_leaving()
        for p in shortened:
            self.on_compacted(p, self.log.partitions[p].index.base_index)

    def _delete_leaving(self) -> None:
        """Segments that nobody needs any more go, now or when there is room for the word of it."""
        if not self._leaving:
            return
        segments, self._leaving = self._leaving, []
        oldest = self.log.files.segments[0]
        border = Border(oldest.number, oldest.first_block)
        if self._loop is None:
            self._delete_segments(segments, border)
            return
        future = self._loop.run_in_executor(self._writer, self._delete_segments, segments, border)
        future.add_done_callback(partial(self._segments_deleted, segments))

    def _delete_segments(self, segments: list[Segment], border: Border) -> None:
        """The state knows first where the log begins: one that begins later is a loss."""
        self.state.write([(META_TABLE, BORDER_ROW, msgpack.packb(border))])
        try:
            self.log.files.delete(segments)
        except OSError as e:  # they are deleted at the next start
            log.warning("log segments could not be deleted: %s", e)

    def _segments_deleted(self, segments: list[Segment], future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, NoRoom):
            self._leaving[:0] = segments
        elif error is not None:
            self._fail(error if isinstance(error, StorageError) else StorageError(f"state writer: {error!r}"))

    async def save(self, p: int, index: int) -> None:
        """Have the state hold the partition up to entry ``index``, which is applied. Raises StorageError."""
        while self._durable_applied.get(p, 0) < index:
            await self._push()

    async def _push(self) -> None:
        """Get a flush on its way, or on; returns a little later. Raises StorageError."""
        if self._failed is not None:
            raise self._failed
        self._freeze()
        self.kick()
        self._submit_flush()
        await asyncio.sleep(PUSH_S)

    def run_flush(self) -> None:
        """A whole flush here and now (no thread): for tests and simulation."""
        self.run_round()
        self._freeze()
        flush, self._flush_job = self._flush_job, None
        if flush is not None:
            self._write_flush(flush, self._node_row(flush.seq, flush.kept))
            self._flush_done(flush)

    async def run_in_writer(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work`` in the state's writer thread, after what was given to it before."""
        if self._loop is None:
            return work(*args)
        return await self._loop.run_in_executor(self._writer, work, *args)

    # --- snapshots ------------------------------------------------------------------------------

    def open_snapshot(self, p: int) -> SnapshotReader:
        return SnapshotReader(self.state, p)

    def begin_install(self, p: int) -> SnapshotInstaller:
        if p not in self.partitions:
            raise StorageError(f"this store holds no replica of partition {p}")
        return SnapshotInstaller(self, p, self.slots.take())

    async def rebuild_slot(self, p: int, slot: int, index: int, epoch: int) -> bool:
        """One transaction makes the staged slot the state of a partition whose own is damaged. The log stays as it is,
        and what it has above ``index`` is applied again. False when it does not reach down to there any more.
        Nothing may be applied in the partition until this returns."""
        while self.forks(p):  # what was split off stands on the old rows until it is durable (R18)
            await self._push()
        info = self.partitions[p]
        self._switching.add(p)  # no flush may write the partition's old row after the new one
        try:
            while self._flushing is not None:
                await self._push()
            if not info.log.base_index <= index <= info.log.last_index:
                return False
            self._durable_applied[p] = index  # segments with what follows stay
            new = replace(info.meta, slot=slot, shared=0, start=b"", end=END_OF_RING)
            new.applied, new.applied_epoch = index, epoch
            await self._write_meta(p, new)
        finally:
            self._switching.discard(p)
        if info.meta.dropped:  # meanwhile
            return False
        old = self.slots.rows_of(p, 0)
        meta = info.meta
        meta.slot, meta.shared, meta.applied, meta.applied_epoch = slot, 0, index, epoch
        meta.start, meta.end = b"", END_OF_RING
        self._active.drop(p)
        self._dirty.add(p)
        self.state.renew({})
        self.slots.garbage.append(old)
        return True

    async def switch_slot(self, p: int, slot: int, index: int, epoch: int) -> None:
        """R17: one transaction makes the staged slot the partition's state. Nothing may be
        appended to or applied in the partition until this returns, but seals and configs."""
        while self.forks(
            p
        ):  # what was split off stands on the old rows and the old log until it is durable (R18)
            await self._push()
        meta = self.partitions[p].meta
        from_seq = self.log.last_seq
        self._switching.add(p)  # no flush may write the partition's old row after the new one
        try:
            # records up to ``from_seq`` become void: none of these numbers may be given out again
            # by a recovery that finds a shorter log
            while self._flushing is not None or self.durable_seq < from_seq:
                await self._push()
            new = Meta(slot, index, epoch, index, meta.sealed, meta.owner, meta.config, from_seq)
            await self._write_meta(p, new)
        finally:
            self._switching.discard(p)
        # a seal recorded meanwhile is in the log and in ``meta``, which stays the live object
        self._active.drop(p)
        old = self.slots.rows_of(p, 0)
        meta.slot, meta.shared, meta.applied, meta.applied_epoch = slot, 0, index, epoch
        meta.start, meta.end = b"", END_OF_RING
        meta.commit, meta.log_from_seq = index, from_seq
        self._dirty.add(p)
        self.state.renew({})
        self.log.partitions[p].reset(index, epoch)
        self._durable_applied[p] = index
        if meta.config:  # what came by snapshot is acknowledged like any entry: the mark says so too (R13)
            self.append(ConfigEntry(p, meta.config))
        if self._forks:
            self._freeze()
        self.slots.garbage.append(old)

    async def _write_meta(self, p: int, new: Meta) -> None:
        while True:
            try:
                await self.run_in_writer(self.state.write, [(META_TABLE, meta_key(p), new.pack())])
                return
            except NoRoom:
                await asyncio.sleep(FLUSH_INTERVAL_S)

    def delete_slot(self, slot: int) -> None:
        self.slots.discard(slot)

    # --- the end --------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures for status and metrics."""
        flushing = self._flushing
        return {
            "log_segments": len(self.log.files.segments),
            "log_bytes": self.log.files.total_bytes(),
            "log_rounds_total": self.log.rounds,
            "log_last_sync_us": self.log.last_sync_us,
            "overlay_bytes": self._active.bytes + (flushing.bytes if flushing else 0),
            "overlay_changes": self._active.changes + (flushing.changes if flushing else 0),
            "state_flushes_total": self.flushes,
            "state_last_flush_ms": self.last_flush_ms,
            **self.scrub.stats(self._now()),
            **self.space.stats(),
        }

    async def close(self) -> None:
        """Sync the log, save the state, let go of the folder. After a failure only the last."""
        for task in (self._timer, self._scrubbing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._failed is None and self._loop is not None:
            await self.log.drain()
            for _ in itertools.repeat(None, 10_000):
                if self._failed is not None or (
                    self._flushing is None and not self._active.changes and not self._dirty
                ):
                    break
                self._freeze()
                self.kick()
                self._submit_flush()
                await asyncio.sleep(0.002)
        self.abandon()

    def abandon(self) -> None:
        """Close without saving anything, as a crash would."""
        if hasattr(self, "log"):  # else it was never opened
            self.log.close()
        self.scrub.close()
        self._writer.shutdown(wait=True, cancel_futures=True)
        if hasattr(self, "state"):
            self.state.close()
        os.close(self._lock_fd)
