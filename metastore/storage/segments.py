"""Segments and blocks: the append-only file sequence under the log, and its recovery (R14).

A *group commit* of records is written as *blocks*, each with one checksum, a dense number ``block``,
and ``durable``: the highest block known synced when it was written. At recovery a block that
does not check is either the torn end of the last group commit or damage to what was once durable,
and ``durable`` tells: if any later block, or the state, vouches for the bad one, the log is
corrupt and the node stops; otherwise the rest was never acknowledged and is cut off.

Intact blocks that nothing vouches for may be in the kernel's cache only: their group commit was killed
before its sync, or its sync failed and the kernel counts the pages as clean all the same. They
are written once more and synced before anybody hears of them. That is no harm to one that is
durable: it is overwritten with itself, and a disk writes a sector whole or not at all.

The log begins where the state says (``Border``), so that there is no block, the first one included, that nobody
waits for. A store makes the first segment before anything else knows of the store, and the state says where the log begins
before the segments ahead of that go.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple

from metastore.errors import CorruptLog
from metastore.storage.disk import Disk

log = logging.getLogger("metastore.log")

SEGMENT_MAGIC: Final = b"MSLOG003"
SEGMENT_HEAD: Final = struct.Struct("<8s32sQ16x")
BLOCK_MAGIC: Final = b"\xb1\x0cK\x9e"
BLOCK_HEAD: Final = struct.Struct("<4sIIQQQ")
_BLOCK_REST: Final = struct.Struct("<IQQQ")
MAX_BLOCK_BYTES: Final = 16 << 20


class Border(NamedTuple):
    """Where the log begins: the number of its oldest segment, and of the first block in it."""

    segment: int
    block: int


#: of a new store
BEGINNING: Final = Border(1, 1)


@dataclass(slots=True)
class Segment:
    """One file. ``first_block``: the number of the first block in it, or to come into it; ``max_index``: partition ->
    highest entry index in it; ``last_seq``: of its records."""

    number: int
    path: Path
    fd: int
    end: int = SEGMENT_HEAD.size
    first_block: int = 0
    last_seq: int = 0
    max_index: dict[int, int] = field(default_factory=dict)


class Block(NamedTuple):
    """An intact block found at recovery."""

    segment: Segment
    offset: int
    number: int
    first_seq: int
    durable: int
    body: bytes


def block_bytes(number: int, first_seq: int, durable: int, body: bytes) -> bytes:
    rest = _BLOCK_REST.pack(len(body), number, first_seq, durable)
    return b"".join((BLOCK_MAGIC, struct.pack("<I", zlib.crc32(body, zlib.crc32(rest))), rest, body))


def parse_block(data: bytes, pos: int) -> tuple[int, int, int, bytes, int] | None:
    """``(number, first_seq, durable, body, end)`` of an intact block at ``pos``, or None."""
    if pos + BLOCK_HEAD.size > len(data):
        return None
    magic, crc, length, number, first_seq, durable = BLOCK_HEAD.unpack_from(data, pos)
    stop = pos + BLOCK_HEAD.size + length
    if magic != BLOCK_MAGIC or length > MAX_BLOCK_BYTES or stop > len(data):
        return None
    if zlib.crc32(memoryview(data)[pos + 8 : stop]) != crc:
        return None
    return number, first_seq, durable, data[pos + BLOCK_HEAD.size : stop], stop


class SegmentFiles:
    """The files of one log folder."""

    def __init__(self, folder: Path, disk: Disk, store_id: str, segment_bytes: int) -> None:
        self.folder = folder
        self.disk = disk
        self.store_id = store_id
        self.segment_bytes = segment_bytes
        self.segments: list[Segment] = []

    def path(self, number: int) -> Path:
        return self.folder / f"{number:016d}.seg"

    def create(self, number: int) -> Segment:
        """A new, empty, preallocated segment. May run in any thread."""
        path = self.path(number)
        self.disk.create(path, self.segment_bytes)
        fd = self.disk.open(path)
        self.disk.write(fd, SEGMENT_HEAD.pack(SEGMENT_MAGIC, self.store_id.encode(), number), 0)
        self.disk.sync(fd)
        return Segment(number, path, fd)

    def begin(self) -> None:
        """The first segment of a new store. What a creation that was cut short has left is removed; anything
        more than that raises CorruptLog."""
        for name in self.disk.list(self.folder):
            path = self.folder / name
            fd = self.disk.open(path)
            data = self.disk.read(fd, self.disk.size(fd), 0)
            self.disk.close(fd)
            if data[SEGMENT_HEAD.size :].strip(b"\0"):
                raise CorruptLog(f"store.json is missing though there is a log ({path}); replace the node")
            self.disk.remove(path)
        self.disk.close(self.create(BEGINNING.segment).fd)

    # --- recovery -------------------------------------------------------------------------

    def recover(self, border: Border, vouched_block: int, on_block: Callable[[Block], None]) -> None:
        """Give every intact block in order; a torn end is cut off. Raises CorruptLog (R14).

        ``border``: where the log begins, as the state knows; ``vouched_block``: the highest block that the state
        knows was durable.
        """
        self._open_all(border.segment)
        expect = border.block
        unsure: deque[tuple[int, Segment, int, bytes]] = deque()
        for position, segment in enumerate(self.segments):
            segment.first_block = expect
            data = self._read(segment)
            pos = SEGMENT_HEAD.size
            while True:
                found = parse_block(data, pos)
                if found is None or found[0] != expect:
                    break
                number, first_seq, durable, body, stop = found
                on_block(Block(segment, pos, number, first_seq, durable, body))
                unsure.append((number, segment, pos, data[pos:stop]))
                while unsure and unsure[0][0] <= max(durable, vouched_block):
                    unsure.popleft()
                expect, pos = number + 1, stop
            segment.end = pos
            if not self._continues(position, expect):
                self._check_end(position, pos, data, expect, vouched_block)
                self._cut(position, pos, data)
                break
        self._make_durable(unsure)

    def _make_durable(self, blocks: Iterable[tuple[int, Segment, int, bytes]]) -> None:
        """See the module: what was found is about to be called durable, so it has to be."""
        touched: dict[int, Segment] = {}
        if self.segments:
            last = self.segments[-1]
            self.disk.write(last.fd, self._head(last), 0)
            touched[last.number] = last
        for _, segment, offset, data in blocks:
            self.disk.write(segment.fd, data, offset)
            touched[segment.number] = segment
        for segment in touched.values():
            self.disk.sync(segment.fd)

    def _open_all(self, oldest: int) -> None:
        """From segment ``oldest`` on, without a gap; those before it were on their way out."""
        numbers = []
        for name in self.disk.list(self.folder):
            if name.endswith(".new"):
                self.disk.remove(self.folder / name)
            elif name.endswith(".seg") and name[:-4].isdecimal():
                numbers.append(int(name[:-4]))
        for number in sorted(n for n in numbers if n < oldest):
            self.disk.remove(self.path(number))
        numbers = sorted(n for n in numbers if n >= oldest)
        for number, wanted in zip_longest(numbers, range(oldest, oldest + max(1, len(numbers)))):
            if number != wanted:
                raise CorruptLog(
                    f"log segment {self.path(wanted)} is missing; replace the node, its data is on the other replicas"
                )
        for number in numbers:
            path = self.path(number)
            self.segments.append(Segment(number, path, self.disk.open(path)))
        # made, and the crash came before its whole header: no block can be in it, and none may
        # come into it, since without its header it could not be read again. The oldest one had its header
        # before anything said that the log begins with it
        while len(self.segments) > 1:
            last = self.segments[-1]
            data = self._raw(last)
            if data.startswith(self._head(last)) or data[SEGMENT_HEAD.size :].strip(b"\0"):
                break
            self.segments.pop()
            self.disk.close(last.fd)
            self.disk.remove(last.path)

    def _raw(self, segment: Segment) -> bytes:
        return self.disk.read(segment.fd, self.disk.size(segment.fd), 0)

    def _head(self, segment: Segment) -> bytes:
        return SEGMENT_HEAD.pack(SEGMENT_MAGIC, self.store_id.encode(), segment.number)

    def _read(self, segment: Segment) -> bytes:
        data = self._raw(segment)
        if not data.startswith(self._head(segment)):
            raise CorruptLog(
                f"{segment.path} has a header of another format, store or number, or a damaged one; "
                "replace the node"
            )
        return data

    def _continues(self, position: int, expect: int) -> bool:
        """Whether the next segment begins with the very next block."""
        if position + 1 >= len(self.segments):
            return False
        found = parse_block(self._read(self.segments[position + 1]), SEGMENT_HEAD.size)
        return found is not None and found[0] == expect

    def _check_end(self, position: int, pos: int, data: bytes, bad: int, vouched: int) -> None:
        """The log seems to end at ``pos``, where block ``bad`` was due: raise unless what follows was never
        durable."""
        segment = self.segments[position]
        later = self._vouched_later(data, pos, bad)
        for other in self.segments[position + 1 :]:
            found = self._vouched_later(self._read(other), SEGMENT_HEAD.size, bad)
            if found >= bad > later:
                log.error("%s vouches for block %d, which is not there", other.path, bad)
            later = max(later, found)
        if later >= bad or vouched >= bad:
            raise CorruptLog(
                f"{segment.path} is corrupt at offset {pos} (block {bad}, which was durable once); "
                "this replica stops: replace the node, its data is on the other replicas"
            )

    @staticmethod
    def _vouched_later(data: bytes, pos: int, bad: int) -> int:
        """The highest ``durable`` of any intact block after ``pos``; -1 if there is none.
        What cannot be a later block of this log, but is a value that looks like one, is left out."""
        best = -1
        at = data.find(BLOCK_MAGIC, pos)
        while at >= 0:
            found = parse_block(data, at)
            if found is not None and found[0] > bad and found[2] < found[0]:
                best = max(best, found[2])
                at = data.find(BLOCK_MAGIC, found[4])
            else:
                at = data.find(BLOCK_MAGIC, at + 1)
        return best

    def _cut(self, position: int, pos: int, data: bytes) -> None:
        """Zero the rest and drop later segments: nothing stale may follow what is written next."""
        segment = self.segments[position]
        rest = data[pos:]
        if rest.strip(b"\0"):
            log.warning(
                "%s: a torn write at offset %d was never acknowledged and is cut off", segment.path, pos
            )
            self.disk.write(segment.fd, b"\0" * len(rest), pos)
            self.disk.sync(segment.fd)
        for other in self.segments[position + 1 :]:
            self.disk.close(other.fd)
            self.disk.remove(other.path)
        del self.segments[position + 1 :]

    def delete(self, segments: list[Segment]) -> None:
        """Delete files that are out of ``self.segments`` already, oldest first. Any thread."""
        for segment in segments:
            self.disk.close(segment.fd)
            self.disk.remove(segment.path)

    def total_bytes(self) -> int:
        return len(self.segments) * self.segment_bytes

    def close(self) -> None:
        for segment in self.segments:
            self.disk.close(segment.fd)
        self.segments = []
