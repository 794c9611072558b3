"""File operations of the log, behind one small class so that a simulated disk can stand in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_ZEROS = bytes(1 << 20)
#: the kernel or the file system knows no write that is synced in the same call
_NO_DSYNC = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Disk:
    """The real disk. Every method may raise OSError; nothing is ever tried twice (R14)."""

    #: whether a write and its sync are one call of the system
    one_call = True

    def list(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder))

    def space(self, folder: Path) -> tuple[int, int]:
        """Bytes that this process may still use on the folder's file system, and of it in all."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def allocate(self, path: Path, size: int) -> None:
        """A file that takes ``size`` bytes of the disk; what is in it matters to nobody."""
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def create(self, path: Path, size: int) -> None:
        """A file of ``size`` zeros, written out and synced, so that a later fdatasync of a
        write into it has no metadata to write. What could not be made whole is taken away again."""
        temporary = path.with_suffix(".new")
        fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            left = size
            while left:
                left -= os.write(fd, _ZEROS[: min(left, len(_ZEROS))])
            os.fsync(fd)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        os.rename(temporary, path)
        self.sync_folder(path.parent)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        done = os.pwrite(fd, data, offset)
        view = memoryview(data)
        while done < len(data):
            more = os.pwrite(fd, view[done:], offset + done)
            if more <= 0:
                raise OSError(f"short write of {len(data)} bytes at {offset}")
            done += more

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def write_synced(self, fd: int, data: bytes, offset: int) -> None:
        """``write`` and ``sync`` in one call of the system: the thread gives the interpreter up once, not twice."""
        done = 0
        if self.one_call:
            try:
                done = os.pwritev(fd, (data,), offset, os.RWF_DSYNC)
            except OSError as e:
                if e.errno not in _NO_DSYNC:
                    raise
                self.one_call = False  # refused, and so nothing was written
        if done < len(data):
            self.write(fd, data[done:] if done else data, offset + done)
            self.sync(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """``size`` bytes, fewer only at the end of the file: recovery takes the end of what it
        reads for the end of the log."""
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def forget(self, fd: int, offset: int, size: int) -> None:
        """What is read next there comes from the disk itself, as far as the system can do that."""
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def remove(self, path: Path) -> None:
        os.unlink(path)
        self.sync_folder(path.parent)

    def sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
