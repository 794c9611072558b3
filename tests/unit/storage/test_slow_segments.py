"""A segment that takes long to make holds up the log, and nobody else."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from metastore.core.entry import pack_entry
from metastore.errors import StorageError
from metastore.storage.disk import Disk
from metastore.storage.options import StorageOptions
from metastore.storage.records import EntryRecord
from metastore.storage.store import Store
from tests.typed import put_in_log

#: a turn of the loop that does not come in this time never does
HANG_S = 60.0
TURNS = 5
OPTIONS = StorageOptions(segment_bytes=64 << 10, log_retention_bytes=1 << 20)


class SlowDisk(Disk):
    """Making a segment lasts until the loop has let it: where the loop waited for it, nothing would go on."""

    def __init__(self, error: int = errno.EIO) -> None:
        self.made = 0
        self.error = error
        #: from when on it is
        self.slow = False
        self.making = False
        self.hung = False
        self.fails_from = 1 << 30
        self._go = threading.Event()

    def create(self, path: Path, size: int) -> None:
        self.made += 1
        if self.slow:
            self._go.clear()
            self.making = True
            self.hung |= not self._go.wait(HANG_S)
        if self.made >= self.fails_from:
            raise OSError(self.error, os.strerror(self.error))
        super().create(path, size)

    def let(self) -> None:
        """The loop's: what is being made is to be done now."""
        self.making = False
        self._go.set()


def opened(folder: Path, disk: Disk) -> Store:
    """The first segment is made with the store."""
    store = Store.open(folder, cluster="c", node="n", options=OPTIONS, disk=disk)
    if isinstance(disk, SlowDisk):
        disk.slow = True
    return store


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.002)


async def turn(store: Store, disk: SlowDisk, done: Callable[[], object]) -> int:
    """Turns of the loop until ``done``, the segments that are made meanwhile taking TURNS each; how many of them
    there were while one was being made."""
    turns = since = 0
    async with asyncio.timeout(HANG_S):
        while not done():
            store.start_sync()
            await asyncio.sleep(0.001)
            if disk.making:
                turns, since = turns + 1, since + 1
                if since >= TURNS:
                    since = 0
                    disk.let()
    return turns


async def fill(store: Store, disk: SlowDisk, count: int) -> int:
    """Append ``count`` entries of 16 KiB; turns as ``turn`` has them."""
    part = store.log.partitions[0].index
    for _ in range(count):
        put_in_log(store, EntryRecord(0, 0, pack_entry(part.last_index + 1, 1, bytes(16 << 10))))
    return await turn(
        store, disk, lambda: store.durable_seq == store.last_seq or store.log.failure is not None
    )


async def test_the_loop_goes_on(tmp_path: Path) -> None:
    """Eleven entries need four segments, and each takes several turns of the loop to make."""
    disk = SlowDisk()
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    turns = await fill(store, disk, 11)
    assert store.durable_seq == store.last_seq
    assert not failures
    assert disk.made >= 4
    assert not disk.hung, "the loop stood still while a segment was made"
    assert turns >= 3 * TURNS
    assert not store.syncing
    disk.let()
    closing = asyncio.create_task(store.close())
    await turn(store, disk, closing.done)
    again = opened(tmp_path, Disk())
    assert again.log.partitions[0].index.last_index == 11
    assert len(again.read_entries(0, 1, 1 << 20)) == 11
    again.abandon()


async def test_what_is_appended_meanwhile_waits(tmp_path: Path) -> None:
    disk = SlowDisk()
    store = opened(tmp_path, disk)
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda error: None)
    store.add_partition(0)
    await fill(store, disk, 3)  # the first segment was made with the store, and is full now
    put_in_log(store, EntryRecord(0, 0, pack_entry(4, 1, bytes(16 << 10))))
    store.start_sync()
    await until(lambda: disk.making)
    assert store.syncing, "nothing can be written yet, so others gather"
    before = store.syncing_for_s()
    await until(lambda: store.syncing_for_s() > before)
    assert store.durable_seq == 3
    disk.let()
    await fill(store, disk, 1)
    assert store.durable_seq == store.last_seq
    closing = asyncio.create_task(store.close())
    await turn(store, disk, closing.done)


async def test_a_segment_that_cannot_be_made_ends_the_store(tmp_path: Path) -> None:
    """Ahead of its time that is only told; when it is needed, it is tried once more (R14)."""
    disk = SlowDisk(errno.EIO)
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    disk.fails_from = 3
    await fill(store, disk, 4)
    await turn(store, disk, lambda: disk.made >= 3 and not disk.making)
    assert not failures
    await fill(store, disk, 5)
    assert len(failures) == 1
    assert "Input/output error" in str(failures[0])
    with pytest.raises(StorageError):
        put_in_log(store, EntryRecord(0, 0, pack_entry(10, 1, b"")))
    closing = asyncio.create_task(store.close())
    await turn(store, disk, closing.done)


async def test_a_segment_for_which_there_is_no_room_is_waited_for(tmp_path: Path) -> None:
    """Nothing is in it yet, so nothing has failed; what waits to be logged is logged when there is room."""
    disk = SlowDisk(errno.ENOSPC)
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    disk.fails_from = 3
    await fill(store, disk, 4)
    appended = asyncio.create_task(fill(store, disk, 5))
    await until(lambda: store.log.no_room)
    assert store.durable_seq < store.last_seq
    assert store.syncing, "who leads here has to know that the log stands still"
    disk.fails_from = 1 << 30
    await appended
    assert store.durable_seq == store.last_seq
    assert not failures
    closing = asyncio.create_task(store.close())
    await turn(store, disk, closing.done)
    # not before: the one that comes next may be in the making
    assert not list((tmp_path / "log").glob("*.new"))
