"""A disk in memory that loses what was not synced: for crash tests of the log.

What is written sits in a cache until a sync. A killed process leaves the cache as it is (and
still not durable); a power loss keeps any subset of the cached sectors; a failed sync drops
them from what will ever be written while reads go on showing them, as Linux does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NoReturn

from metastore.storage.disk import Disk

SECTOR = 512


class Cut(BaseException):
    """The process ends here; not an Exception, so that nothing handles it."""


class _File:
    def __init__(self, size: int) -> None:
        self.durable = bytearray(size)
        self.cache = bytearray(size)
        self.dirty: set[int] = set()

    def write(self, data: bytes, offset: int) -> None:
        missing = offset + len(data) - len(self.cache)
        if missing > 0:
            self.cache += bytes(missing)
        self.cache[offset : offset + len(data)] = data
        self.dirty |= set(range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1))

    def flush(self, sectors: set[int]) -> None:
        if len(self.durable) < len(self.cache):
            self.durable += bytes(len(self.cache) - len(self.durable))
        for sector in sectors:
            at = slice(sector * SECTOR, (sector + 1) * SECTOR)
            self.durable[at] = self.cache[at]


class SimDisk(Disk):
    """See the module. ``cut_after``: operations until ``Cut`` is raised; None = never."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.files: dict[Path, _File] = {}
        self.cut_after: int | None = None
        self.fail_next_sync = False
        self.fail_next_write = False
        #: what ``space`` says
        self.free = 1 << 40
        self.on_cut: Callable[[], None] = lambda: None
        self._open: dict[int, _File] = {}
        self._next_fd = 1000

    def _tick(self) -> bool:
        """Whether the process ends in this very operation."""
        if self.cut_after is None:
            return False
        self.cut_after -= 1
        return self.cut_after < 0

    def _cut(self) -> NoReturn:
        self.on_cut()
        raise Cut

    def _step(self) -> None:
        if self._tick():
            self._cut()

    # --- what befalls it ------------------------------------------------------------------

    def kill(self) -> None:
        """The process is gone, the kernel is not."""
        self._open.clear()
        self.cut_after = None

    def power_loss(self) -> None:
        self.kill()
        share = self.random.choice((0.0, 0.3, 0.7, 1.0))
        for file in self.files.values():
            file.flush({s for s in sorted(file.dirty) if self.random.random() < share})
            file.cache = bytearray(file.durable)
            file.dirty.clear()

    # --- Disk -----------------------------------------------------------------------------

    def space(self, folder: Path) -> tuple[int, int]:
        return self.free, self.free

    def allocate(self, path: Path, size: int) -> None:
        self.files[path] = _File(0)

    def list(self, folder: Path) -> list[str]:
        return sorted(p.name for p in self.files if p.parent == folder)

    def create(self, path: Path, size: int) -> None:
        if self._tick():
            self.files[path.with_suffix(".new")] = _File(size // 2)
            self._cut()
        self.files[path] = _File(size)
        self._step()

    def open(self, path: Path) -> int:
        self._step()
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._next_fd += 1
        self._open[self._next_fd] = self.files[path]
        return self._next_fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self.fail_next_write:
            self.fail_next_write = False
            self._open[fd].write(data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        if self._tick():
            done = self.random.randrange(len(data) + 1)
            if done:
                self._open[fd].write(data[:done], offset)
            self._cut()
        self._open[fd].write(data, offset)
        self._step()

    def sync(self, fd: int) -> None:
        self._step()
        file = self._open[fd]
        if self.fail_next_sync:
            self.fail_next_sync = False
            file.dirty.clear()
            raise OSError(5, "Input/output error")
        file.flush(file.dirty)
        file.dirty.clear()
        self._step()

    def write_synced(self, fd: int, data: bytes, offset: int) -> None:
        self.write(fd, data, offset)
        self.sync(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._open[fd].cache[offset : offset + size])

    def forget(self, fd: int, offset: int, size: int) -> None:
        pass

    def size(self, fd: int) -> int:
        return len(self._open[fd].cache)

    def remove(self, path: Path) -> None:
        self._step()
        del self.files[path]
        self._step()

    def sync_folder(self, folder: Path) -> None:
        self._step()
