"""What a disk may lose when its power goes: everything written and not yet synced, in any part.

A node under test keeps a journal of what its log's writes overwrote, one file a segment, emptied by
each sync that has ended. After a ``kill -9`` the journal takes back a random part of those writes,
sector by sector: what a power cut may leave. (The state in LMDB is written in synced transactions.)
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

from metastore.storage.disk import Disk

SECTOR = 512
HEAD = struct.Struct("<QQ")


def folder_of(data_dir: str) -> Path:
    return Path(data_dir + ".unsynced")


class Journal:
    """Kept by the node: ``before`` each write, ``synced`` after each sync."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._files: dict[str, int] = {}

    def _file(self, fd: int) -> int:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name not in self._files:
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._files[name] = os.open(self.folder / name, flags, 0o644)
        return self._files[name]

    def before(self, fd: int, size: int, offset: int) -> None:
        old = os.pread(fd, size, offset)
        os.write(self._file(fd), HEAD.pack(offset, len(old)) + old)

    def synced(self, fd: int) -> None:
        os.ftruncate(self._file(fd), 0)

    def install(self) -> None:
        write, sync = Disk.write, Disk.sync

        def journalled_write(disk: Disk, fd: int, data: bytes, offset: int) -> None:
            self.before(fd, len(data), offset)
            write(disk, fd, data, offset)

        def journalled_sync(disk: Disk, fd: int) -> None:
            sync(disk, fd)
            self.synced(fd)

        Disk.write = journalled_write  # type: ignore[method-assign, assignment]
        Disk.sync = journalled_sync  # type: ignore[method-assign, assignment]


def take_back(folder: Path, log: Path, rng: random.Random) -> int:
    """Undo, on the disk of a dead node, a part of what it had not synced; bytes undone."""
    undone = 0
    for journal in sorted(folder.glob("*")):
        raw, writes, at = journal.read_bytes(), [], 0
        while at + HEAD.size <= len(raw):
            offset, size = HEAD.unpack_from(raw, at)
            writes.append((offset, raw[at + HEAD.size : at + HEAD.size + size]))
            at += HEAD.size + size
        segment = log / journal.name
        if writes and segment.exists():
            with segment.open("r+b") as f:
                for offset, old in reversed(writes):
                    for start in range(0, len(old), SECTOR):
                        if rng.random() < 0.8:
                            f.seek(offset + start)
                            f.write(old[start : start + SECTOR])
                            undone += len(old[start : start + SECTOR])
        journal.unlink()
    return undone
