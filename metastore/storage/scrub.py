"""The scrub: what lies on the disk is read again, so that rot is found before a failover needs the copy (R14).

A pass reads every row of the state and every durable block of the log and compares checksums; then the next one
begins. It is slow on purpose (``scrub_bytes_s``). A slice is read in a thread; the state's by a transaction of its own, so
that no old page is kept for it. Log blocks are read from the disk itself; pages of the state that are in memory
are judged as they are there, since LMDB maps them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from metastore.storage.disk import Disk
from metastore.storage.log import NodeLog
from metastore.storage.segments import BLOCK_HEAD, MAX_BLOCK_BYTES, SEGMENT_HEAD, Segment, parse_block
from metastore.storage.state import State

log = logging.getLogger("metastore.scrub")

SLICE_BYTES: Final = 64 << 10
#: between passes, however little there is to read
PAUSE_S: Final = 30.0


class RottenRow(NamedTuple):
    """The value under a key of the state (table ``data``, ``metadata``, ``meta`` or ``map``) is not as it was put."""

    table: str
    key: bytes


class RottenBlock(NamedTuple):
    """A block of the log that was durable does not check."""

    segment: int
    offset: int


class Scrub:
    """See the module. Its figures are for status and metrics. ``on_found``: told of all damage."""

    def __init__(
        self,
        node_log: NodeLog,
        state: State,
        bytes_s: int,
        on_found: Callable[[RottenRow | RottenBlock], None],
    ) -> None:
        self._log, self._state = node_log, state
        self.bytes_s = bytes_s
        self.on_found = on_found
        self.passes = 0
        self.bytes = 0
        self.passed_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")

    async def run_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.one_pass()
            self.passed_s = loop.time()
            await asyncio.sleep(PAUSE_S)

    async def one_pass(self) -> None:
        """All of it once. What is found goes to ``on_found``. Raises CorruptTree, OSError."""
        for name in ("meta", "map", "data", "aux"):
            after: bytes | None = b""
            while after is not None:
                after, size, bad = await self._in_thread(self._state.check_rows, name, after, SLICE_BYTES)
                for key in bad:
                    self._found(RottenRow(name, key))
                await self._pace(size)
        number, last = 0, self._log.durable_end[0]  # what is written meanwhile is the next pass's
        while (segment := self._next_segment(number)) is not None and segment.number <= last:
            number = segment.number
            await self._segment(segment)
        self.passes += 1

    def _next_segment(self, number: int) -> Segment | None:
        return next((s for s in self._log.files.segments if s.number > number), None)

    async def _segment(self, segment: Segment) -> None:
        """What was durable in it as this began."""
        last, end = self._log.durable_end
        stop = segment.end if segment.number < last else end if segment.number == last else 0
        pos, number = SEGMENT_HEAD.size, segment.first_block
        while pos < stop:
            try:
                came_to, number = await self._in_thread(
                    check_blocks, self._log.files.disk, segment.path, pos, stop, number
                )
            except FileNotFoundError:
                return  # compacted away meanwhile
            if came_to == pos:
                self._found(RottenBlock(segment.number, pos))
                return
            await self._pace(came_to - pos)
            pos = came_to

    def _found(self, damage: RottenRow | RottenBlock) -> None:
        log.error("the scrub found damage: %s", damage)
        self.on_found(damage)

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _pace(self, size: int) -> None:
        self.bytes += size
        if self.bytes_s:
            await asyncio.sleep(size / self.bytes_s)

    def stats(self, now_s: float) -> dict[str, Any]:
        return {
            "scrub_passes_total": self.passes,
            "scrub_bytes_total": self.bytes,
            "scrub_last_pass_age_s": round(now_s - self.passed_s, 1) if self.passes else None,
        }

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def check_blocks(disk: Disk, path: Path, pos: int, stop: int, number: int) -> tuple[int, int]:
    """Read the blocks of a segment from ``pos`` on, of which the first is to be ``number``: where the intact ones among
    the first SLICE_BYTES end, at least one, and the number of the next. ``pos`` itself: the first one is damaged.
    Raises OSError."""
    fd = disk.open(path)
    try:
        size = min(stop - pos, SLICE_BYTES)
        disk.forget(fd, pos, size)
        data = disk.read(fd, size, pos)
        if len(data) >= BLOCK_HEAD.size:
            whole = BLOCK_HEAD.size + min(BLOCK_HEAD.unpack_from(data)[2], MAX_BLOCK_BYTES)
            if len(data) < whole <= stop - pos:
                disk.forget(fd, pos, whole)
                data = disk.read(fd, whole, pos)
    finally:
        disk.close(fd)
    at = 0
    while (found := parse_block(data, at)) is not None and found[0] == number:
        number, at = number + 1, found[4]
    return pos + at, number
