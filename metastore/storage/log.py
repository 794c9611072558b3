"""The log of a node: one append-only sequence for all its partitions, with group commit.

``append`` buffers a record and numbers it; a *group commit* writes and syncs all that gathered, in one
writer thread, while the next group commit gathers. ``durable_seq`` is the last record known synced.
A failed write or sync ends the log for good (R14).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from metastore.core.entry import MAX_READ_ENTRIES, check_entry, entry_position
from metastore.errors import CorruptLog, RottenEntry, StorageError
from metastore.storage.partition_log import PartitionLog
from metastore.storage.records import (
    ENTRY_HEAD,
    MAX_RECORD_BYTES,
    EntryRecord,
    Record,
    TruncateEntry,
    pack_entry_record,
    pack_record,
    unpack_records,
)
from metastore.storage.segments import (
    BLOCK_HEAD,
    SEGMENT_HEAD,
    Block,
    Segment,
    SegmentFiles,
    block_bytes,
)
from metastore.storage.space import NO_ROOM

log = logging.getLogger("metastore.log")

TARGET_BLOCK_BYTES = 4 << 20
HELD_FACTOR = 4
GUESS_BYTES = 16 << 10


class _Piece(NamedTuple):
    segment: Segment
    offset: int
    data: bytes


class NodeLog:
    """See the module. Not thread-safe: used from the loop thread, but for the writer's own part."""

    def __init__(self, files: SegmentFiles, cache_bytes: int) -> None:
        self.files = files
        self.partitions: dict[int, PartitionLog] = {}
        self.last_seq = 0
        self.durable_seq = 0
        self.block = 0
        self.durable_block = 0
        self.syncing = False
        #: no group commit can begin before a segment is made
        self.short = False
        self.syncing_since_s = 0.0
        self.failure: StorageError | None = None
        self.group_commits = 0
        self.last_sync_us = 0
        self.bytes_written = 0
        self._cache_limit = cache_bytes
        self._cache_bytes = 0
        self._cached: deque[tuple[int, int, bytes]] = deque()
        #: packed, and of an entry partition, index and bytes; of anything else -1
        self._waiting: list[tuple[bytes, int, int, bytes]] = []
        self._group_last_seq = 0
        #: segment and offset where what is durable ends
        self.durable_end = (0, 0)
        self._group_end = (0, 0)
        self._next_segment: Segment | None = None
        #: nothing more is written to segments up to this one
        self._left = 0
        #: the disk has no room for the segment that is needed: it is tried again (``retry``)
        self.no_room = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: queue.SimpleQueue[list[_Piece] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._preparing = False
        self._preparer: threading.Thread | None = None
        #: writes a group instead of the log's own thread, and calls ``group_written`` (simulation)
        self.writer: Callable[[list[_Piece]], None] | None = None
        self._on_durable: Callable[[int], None] = lambda seq: None
        self._on_failure: Callable[[StorageError], None] = lambda error: None

    # --- recovery -------------------------------------------------------------------------

    def replay(self, block: Block, apply: Callable[[int, int, Record], None]) -> None:
        """Take one recovered block; ``apply(seq, location, record)`` for each of its records."""
        seq = block.first_seq
        if seq > self.last_seq + 1:
            raise CorruptLog(
                f"{block.segment.path} begins at record {seq}, the state ends at {self.last_seq}: segments before "
                "it are missing; replace the node, its data is on the other replicas"
            )
        for offset, record in unpack_records(block.body):
            location = block.segment.number << 32 | (block.offset + BLOCK_HEAD.size + offset)
            apply(seq, location, record)
            if type(record) is EntryRecord:
                self._note(block.segment, record)
            seq += 1
        block.segment.last_seq = seq - 1
        self.last_seq = self.durable_seq = max(seq - 1, self.last_seq)
        self.block = self.durable_block = block.number

    @staticmethod
    def _note(segment: Segment, record: EntryRecord) -> None:
        index = entry_position(record.blob)[0]
        if index > segment.max_index.get(record.p, 0):
            segment.max_index[record.p] = index

    def recovered(self) -> None:
        """Every block has been replayed."""
        self.durable_end = self._end()

    # --- appending --------------------------------------------------------------------------

    def append(self, record: Record) -> int:
        """Buffer ``record``; its number. Raises StorageError after a failure (R14)."""
        if type(record) is EntryRecord:
            return self.append_entries(record.p, record.commit, [record.blob])
        if self.failure is not None:
            raise self.failure
        if type(record) is TruncateEntry:
            self.partitions[record.p].truncate(record.keep_index)
        self._waiting.append((pack_record(record), -1, 0, b""))
        self.last_seq += 1
        return self.last_seq

    def append_entries(self, p: int, commit: int, blobs: list[bytes]) -> int:
        """Buffer entries of one partition; the number of the last one."""
        if self.failure is not None:
            raise self.failure
        part, waiting = self.partitions[p], self._waiting
        for blob in blobs:
            index, epoch = entry_position(blob)
            part.append(index, epoch, 0)
            part.blobs[index] = blob
            self._cached.append((p, index, blob))
            self._cache_bytes += len(blob)
            waiting.append((pack_entry_record(p, commit, blob), p, index, blob))
        self.last_seq += len(blobs)
        return self.last_seq

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def started(self) -> bool:
        """Whether group commits are written by a thread."""
        return self._loop is not None

    def _take_group(self) -> list[_Piece]:
        """Lay out what waits as blocks and give entries their locations; no more of it than there
        are segments for."""
        waiting, self._waiting = self._waiting, []
        seq = self.last_seq - len(waiting) + 1
        pieces: list[_Piece] = []
        target = min(TARGET_BLOCK_BYTES, self.files.segment_bytes // 4)
        start = 0
        while start < len(waiting):
            size, stop = 0, start
            while stop < len(waiting) and (stop == start or size + len(waiting[stop][0]) <= target):
                size += len(waiting[stop][0])
                stop += 1
            segment = self._segment_for(BLOCK_HEAD.size + size)
            if segment is None:
                self._waiting = waiting[start:]
                break
            self.block += 1
            body_at = segment.end + BLOCK_HEAD.size
            taken = waiting[start:stop]
            for raw, p, index, blob in taken:
                if p >= 0:
                    self._place(segment, p, index, blob, segment.number << 32 | body_at)
                body_at += len(raw)
            body = b"".join([raw for raw, _, _, _ in taken])
            data = block_bytes(self.block, seq, self.durable_block, body)
            pieces.append(_Piece(segment, segment.end, data))
            segment.end += len(data)
            seq += stop - start
            segment.last_seq = seq - 1
            start = stop
        self._group_last_seq = seq - 1
        self._group_end = self._end()
        return pieces

    def _end(self) -> tuple[int, int]:
        last = self.files.segments[-1]
        return last.number, last.end

    def _place(self, segment: Segment, p: int, index: int, blob: bytes, location: int) -> None:
        part = self.partitions.get(p)
        # a truncation may have taken it back, and another entry its place, since it was buffered
        if part is not None and part.blobs.get(index) is blob:
            part.locations[index - part.index.base_index - 1] = location
        if index > segment.max_index.get(p, 0):
            segment.max_index[p] = index

    def _segment_for(self, size: int) -> Segment | None:
        """Where a block of ``size`` goes; None while the segment for it is being made, which takes
        as long as the disk does and is nothing for the loop's thread to wait for."""
        segments = self.files.segments
        if segments[-1].end + size <= self.files.segment_bytes and segments[-1].number > self._left:
            return segments[-1]
        if SEGMENT_HEAD.size + size > self.files.segment_bytes:
            raise StorageError(
                f"a log block of {size} bytes does not fit a segment of {self.files.segment_bytes}: "
                "raise segment_mib"
            )
        number = segments[-1].number + 1
        segment, self._next_segment = self._next_segment, None
        if segment is None:
            if self._thread is not None:
                self._prepare_soon(number, needed=True)
                return None
            segment = self.files.create(number)
        segment.first_block = self.block + 1
        segments.append(segment)
        if self._thread is not None:
            self._prepare_soon(number + 1, needed=False)
        return segment

    def leave(self, number: int) -> None:
        """What is logged from here on goes to segments after this one."""
        self._left = max(self._left, number)

    def _prepare_soon(self, number: int, needed: bool) -> None:
        if self._preparing:
            return
        self._preparing = True
        self._preparer = threading.Thread(
            target=self._prepare, args=(number, needed), name="log-prepare", daemon=True
        )
        self._preparer.start()

    def _prepare(self, number: int, needed: bool) -> None:
        """In a thread of its own."""
        made: Segment | OSError
        try:
            made = self.files.create(number)
        except OSError as e:
            made = e
        assert self._loop is not None
        self._call(self._loop, self._prepared, made, needed)

    def _prepared(self, made: Segment | OSError, needed: bool) -> None:
        """A segment made ahead of its time may fail: the disk may have room when it is needed. Nor is one for
        which there is no room a failed write (R14): nothing is in it yet, and it is made anew."""
        self._preparing = False
        if isinstance(made, Segment):
            self._next_segment, self.no_room = made, False
        elif needed and made.errno in NO_ROOM:
            if not self.no_room:
                log.error("the disk has no room for another log segment; writes wait until there is")
            self.no_room = True
            return
        elif needed:
            self._failed(made)
        else:
            log.warning("the next log segment could not be prepared: %s", made)
        self.start_sync()

    def retry(self) -> None:
        """A segment for which there was no room is tried again; one for the future too."""
        if self.no_room:
            self.start_sync()
        elif self._thread is not None and self._next_segment is None and self.files.segments:
            self._prepare_soon(self.files.segments[-1].number + 1, needed=False)

    def room(self) -> int:
        """Bytes that can be logged before another segment is needed."""
        segments = self.files.segments
        left = self.files.segment_bytes - segments[-1].end if segments else 0
        more = self.files.segment_bytes if self._next_segment is not None else 0
        return left + more - sum([len(waiting[0]) for waiting in self._waiting])

    # --- group commits -----------------------------------------------------------------------------

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_durable: Callable[[int], None],
        on_failure: Callable[[StorageError], None],
    ) -> None:
        self._loop, self._on_durable, self._on_failure = loop, on_durable, on_failure
        if self.writer is None:
            self.writer = self._jobs.put
            self._thread = threading.Thread(target=self._write_forever, name="log-writer", daemon=True)
            self._thread.start()

    def start_sync(self) -> None:
        """Begin a group commit if none is running and something waits."""
        if self._waiting and not self.syncing and self.failure is None and self._loop is not None:
            try:
                pieces = self._take_group()
            except (OSError, StorageError) as e:
                self._failed(e)
                return
            if not pieces:  # the segment they need is being made, which starts a sync again
                if not self.short:
                    self.short, self.syncing_since_s = True, self._loop.time()
                return
            self.syncing, self.short = True, False
            self.syncing_since_s = self._loop.time()
            assert self.writer is not None
            self.writer(pieces)

    def sync_now(self) -> None:
        """The pending group commit, here and now (no thread): for tests and simulation."""
        if self._waiting:
            try:
                self.write_pieces(self._take_group())
            except OSError as e:
                self._failed(e)
                raise self.failure or e from None
            self._group_ended()

    def write_pieces(self, pieces: list[_Piece]) -> None:
        """The writer's part. Raises OSError."""
        disk = self.files.disk
        for segment, offset, data in pieces:
            disk.write_synced(segment.fd, data, offset)

    def _write_forever(self) -> None:
        loop = self._loop
        assert loop is not None
        while True:
            pieces = self._jobs.get()
            if pieces is None:
                return
            began = time.monotonic_ns()
            try:
                self.write_pieces(pieces)
            except Exception as e:
                self._call(loop, self.group_written, e)
                return
            self.last_sync_us = (time.monotonic_ns() - began) // 1000
            self._call(loop, self.group_written, None)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: object) -> None:
        try:
            loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            pass  # the loop has ended; nobody waits any more

    def _group_ended(self) -> None:
        self.durable_seq = self._group_last_seq
        self.durable_end = self._group_end
        self.durable_block = self.block
        self.group_commits += 1
        while self._cache_bytes > self._cache_limit and self._cached:
            p, index, blob = self._cached[0]
            part = self.partitions.get(p)
            if part is not None and part.blobs.get(index) is blob:
                if part.locations[index - part.index.base_index - 1] == 0:
                    break  # not written yet: it cannot be read back from the disk
                del part.blobs[index]
            self._cached.popleft()
            self._cache_bytes -= len(blob)

    def group_written(self, error: Exception | None) -> None:
        """In the loop's thread: the group commit is durable, or has failed."""
        if error is not None:
            self._failed(error)
            return
        self.syncing = False
        self._group_ended()
        self._on_durable(self.durable_seq)
        self.start_sync()

    def _failed(self, error: Exception) -> None:
        self.failure = StorageError(
            f"the log cannot be written ({error}); this node stops: check the disk, then replace or restart it"
        )
        self._on_failure(self.failure)

    async def drain(self) -> None:
        """Everything appended becomes durable; used when closing."""
        while (self._waiting or self.syncing) and self.failure is None:
            self.start_sync()
            await asyncio.sleep(0.001)

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=10)
        if self._preparer is not None:
            self._preparer.join(timeout=10)
        if self._next_segment is not None:
            self.files.disk.close(self._next_segment.fd)
        self.files.close()

    # --- reading ------------------------------------------------------------------------------

    def read(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        """Entry blobs of ``p`` from ``first`` on, at least one, up to one that has rotted. Raises RottenEntry when that is
        the first, CorruptLog, IndexError."""
        part = self.partitions[p]
        index = part.index
        if not index.base_index < first <= index.last_index:
            raise IndexError(f"partition {p}: entry {first} is not within the log")
        blobs: list[bytes] = []
        while first <= index.last_index and (max_bytes > 0 or not blobs) and len(blobs) < MAX_READ_ENTRIES:
            blob = part.blobs.get(first)
            if blob is None:
                try:
                    blob = self._read_one(part.locations[first - index.base_index - 1], p, first)
                except RottenEntry:
                    if blobs:
                        return blobs
                    raise
            blobs.append(blob)
            max_bytes -= len(blob)
            first += 1
        return blobs

    def _read_one(self, location: int, p: int, index: int) -> bytes:
        number, offset = location >> 32, location & 0xFFFFFFFF
        segment = next((s for s in self.files.segments if s.number == number), None)
        if segment is None:
            raise CorruptLog(f"partition {p}: entry {index} lies in log segment {number}, which was deleted")
        disk = self.files.disk
        try:
            data = disk.read(segment.fd, GUESS_BYTES, offset)
            length = ENTRY_HEAD.unpack_from(data)[0] if len(data) >= ENTRY_HEAD.size else 0
            stop = 4 + min(length, MAX_RECORD_BYTES)
            if stop > len(data):
                data += disk.read(segment.fd, stop - len(data), offset + len(data))
        except OSError as e:
            raise StorageError(f"{segment.path} cannot be read at offset {offset}: {e}") from None
        wanted = index, self.partitions[p].index.epoch_at(index)
        try:
            for _, record in unpack_records(data[:stop]):
                if type(record) is EntryRecord and record.p == p and check_entry(record.blob) == wanted:
                    return record.blob
            what = "is another one"
        except CorruptLog as e:
            what = str(e)
        raise RottenEntry(
            f"{segment.path} offset {offset}: entry {index} of partition {p} has rotted: {what}",
            partition=p,
            index=index,
            segment=number,
            offset=offset,
        )

    # --- removal ------------------------------------------------------------------------------

    def remove_segments(
        self,
        applied: Callable[[int], int],
        checkpoint_seq: int,
        retention_bytes: int,
        held: Mapping[int, int] | None = None,
    ) -> tuple[list[int], list[Segment]]:
        """Forget the oldest segments beyond the retention, as far as the state reflects all that
        is in them. The partitions whose logs became shorter, and the files to delete. ``held``: entries
        above these somebody is about to need, kept up to HELD_FACTOR times the retention."""
        shortened: set[int] = set()
        removed: list[Segment] = []
        segments = self.files.segments
        while len(segments) > 1 and self.files.total_bytes() > retention_bytes:
            first = segments[0]
            if first.last_seq > checkpoint_seq or segments[1].last_seq > self.durable_seq:
                break
            if any(not self._is_applied(p, top, applied(p)) for p, top in first.max_index.items()):
                break
            wanted = any(first.max_index.get(p, 0) > index for p, index in (held or {}).items())
            if wanted and self.files.total_bytes() <= HELD_FACTOR * retention_bytes:
                break
            for p, top in first.max_index.items():
                part = self.partitions.get(p)
                if part is not None and part.index.base_index < top:
                    # what is left of older entries here was truncated and written anew later
                    part.compact(part.last_in(first.number, top))
                    shortened.add(p)
            removed.append(segments.pop(0))
        return sorted(shortened), removed

    def _is_applied(self, p: int, top: int, applied: int) -> bool:
        """Whether the state has all of ``p`` up to ``top``; what was truncated is not missed."""
        part = self.partitions.get(p)
        return part is None or applied >= min(top, part.index.last_index)
