"""Room on the data folder's disk and in the state's map: when there is little, and when there is none. R14 is right
about a write that failed; this is how none fails for want of room.

Below the *low-water mark* what adds data is refused (node.host), what frees room goes on. Deletes give nothing back
to the disk, since the state's file never shrinks: they leave pages in it for later writes. So what may still be added is what
is free on the disk, or in the map, whichever is less, *and* what is free within the state.

What goes on needs room too: the log its next segment, the state some pages for each transaction. So

- the blocks of a transaction are allocated before it begins (``Blocks``): one for which there are none is
  not begun, and comes later, while its changes stay in the overlay and in the log;
- a segment that cannot be made is made later (storage.log);
- when less than a segment is free, the *reserve*, a file of zeros, is given up, and so is the log that is kept for
  followers that lag. The reserve is made again once there is room.

*Full* is a disk on which nothing more can be logged. Such a node takes no entries: it lags, and lives.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from metastore.errors import NoRoom
from metastore.storage.disk import Disk
from metastore.storage.engine import Pages

log = logging.getLogger("metastore.store")

RESERVE_NAME: Final = "reserve"
#: more than one segment, for the state and for what others write meanwhile
SLACK_BYTES: Final = 16 << 20
#: what stays in the log's last segment for seals, no-ops and facts when nothing else is taken any more
LOG_KEPT_BYTES: Final = 8 << 20
#: the map's own mark: the low-water mark, but never more than this part of it
MAP_PART: Final = 8
#: the blocks of a transaction, and as many more, if they are there to be had
AHEAD_BYTES: Final = 4 << 20
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Space:
    """See the module. ``low_bytes``: the mark, 0 = none; ``reserve_bytes``: 0 = none."""

    def __init__(
        self, folder: Path, disk: Disk, segment_bytes: int, low_bytes: int = 0, reserve_bytes: int = 0
    ) -> None:
        self.disk = disk
        self.folder = folder
        self.reserve_path = folder / RESERVE_NAME
        self.segment_bytes = segment_bytes
        self.low_bytes = low_bytes
        self.reserve_bytes = reserve_bytes
        self.disk_free, self.disk_total = disk.space(folder)
        self.pages = Pages(0, 0, 0)
        #: what may still be added, in bytes; and from where on writes begin again
        self.room = 0
        self.low = False
        self.full = False
        #: hardly a segment is free: what can be done without is given up
        self.critical = False
        self.reserve_held = False
        self._told = ""

    @property
    def resume_bytes(self) -> int:
        """Once below the mark, from here on there is room again."""
        return self.low_bytes + self.low_bytes // 4

    @property
    def floor_bytes(self) -> int:
        """What has to be free on the disk for everything to go on."""
        return self.segment_bytes + SLACK_BYTES

    # --- looking ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Before recovery: whatever that needs, it gets the reserve for."""
        self.reserve_held = self.reserve_path.exists()
        if self.disk_free < self.floor_bytes:
            self.give_up_reserve()

    def look(self, pages: Pages, pending: int, log_room: int, blocked: bool, stuck: bool) -> None:
        """Measure and judge. ``pages``: of the state; ``pending``: changes that are not in it yet; ``log_room``: what can be logged without another segment; ``blocked``: a
        transaction waits for room; ``stuck``: and no more changes can wait with it."""
        self.disk_free, self.disk_total = self.disk.space(self.folder)
        self.pages = pages
        self.critical = self.disk_free < self.floor_bytes
        if self.critical:
            self.give_up_reserve()
        on_disk = self.disk_free + pages.ahead + pages.free - pending
        in_map = pages.limit - pages.used + pages.free - pending
        self.room = max(0, min(on_disk, in_map))
        was = self.low
        share = self.resume_bytes if was else self.low_bytes
        mark = min(share, pages.limit // MAP_PART)
        self.low = blocked or on_disk < share or in_map < mark or (bool(self.low_bytes) and self.critical)
        self.full = stuck or (self.disk_free < self.segment_bytes and log_room < self.kept_bytes)
        self._tell(was)

    @property
    def kept_bytes(self) -> int:
        return min(LOG_KEPT_BYTES, self.segment_bytes // 2)

    def _tell(self, was: bool) -> None:
        level = "full" if self.full else "low" if self.low else ""
        if level != self._told:
            figures = f"{self.disk_free >> 20} MiB are free on the disk, {self.room >> 20} MiB may be added"
            if level:
                log.warning("disk space is %s: %s (disk_low_mib = %d)", level, figures, self.low_bytes >> 20)
            else:
                log.info("there is disk space again: %s", figures)
            self._told = level

    def text(self) -> str:
        """How much there is, for people."""
        return (
            f"{self.disk_free >> 20} MiB are free on its disk and {self.room >> 20} MiB may be added, "
            f"the mark is {self.low_bytes >> 20} MiB (disk_low_mib)"
        )

    # --- the reserve ------------------------------------------------------------------------

    def give_up_reserve(self) -> None:
        if not self.reserve_held:
            return
        try:
            self.disk.remove(self.reserve_path)
            self.reserve_held = False
            log.warning(
                "the disk is nearly full: the reserve of %d MiB is released", self.reserve_bytes >> 20
            )
        except OSError as e:
            log.warning("the reserve file cannot be removed: %s", e)

    def wants_reserve(self) -> bool:
        """Whether there is room to make it (again)."""
        needed = max(self.resume_bytes, 2 * self.floor_bytes) + self.reserve_bytes
        return bool(self.reserve_bytes) and not self.reserve_held and not self.low and self.disk_free > needed

    def make_reserve(self) -> None:
        """May take a while; not for the loop's thread."""
        try:
            self.disk.allocate(self.reserve_path, self.reserve_bytes)
            self.reserve_held = True
        except OSError as e:
            log.warning("the reserve file cannot be made: %s", e)

    def stats(self) -> dict[str, int]:
        """Figures for status and metrics."""
        return {
            "disk_free_bytes": self.disk_free,
            "disk_total_bytes": self.disk_total,
            "state_bytes": self.pages.used,
            "state_free_bytes": self.pages.free,
            "state_limit_bytes": self.pages.limit,
            "room_bytes": self.room,
            "room_low_mark_bytes": self.low_bytes,
            "room_low": int(self.low),
            "room_full": int(self.full),
            "reserve_bytes": self.reserve_bytes if self.reserve_held else 0,
        }


class Blocks:
    """The blocks of the state's file on the disk. LMDB writes into those that are there: a write for which the disk has
    no block is not begun. For the writer's thread."""

    def __init__(self, path: Path, allocate: Callable[[int, int, int], None] = os.posix_fallocate) -> None:
        self._allocate: Callable[[int, int, int], None] | None = allocate
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        #: up to where blocks are known to be there
        self.end = min(found.st_size, found.st_blocks * 512)

    def ensure(self, used: int, more: int) -> None:
        """Have blocks for ``more`` bytes beyond ``used``. Raises NoRoom; nothing is lost then."""
        end = used + more
        if self._allocate is None or end <= self.end:
            return
        start = max(self.end, used)
        for wanted in (end + AHEAD_BYTES, end):
            try:
                self._allocate(self._fd, start, wanted - start)
                self.end = wanted
                return
            except OSError as e:
                if e.errno in _CANNOT:
                    self._allocate = None  # this file system cannot: it is as it was without
                    return
                failed = e
        if failed.errno not in NO_ROOM and failed.errno != errno.EFBIG:
            raise failed
        raise NoRoom(f"the disk has no room for {more} bytes of the state: {failed.strerror}")

    def close(self) -> None:
        os.close(self._fd)
