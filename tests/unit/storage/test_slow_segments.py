"""A segment that takes long to make holds up the log, and nobody else."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from metastore.core.entry import pack_entry
from metastore.errors import StorageError
from metastore.storage.disk import Disk
from metastore.storage.records import EntryRecord
from metastore.storage.store import StorageOptions, Store

SLOW_S = 0.4
OPTIONS = StorageOptions(segment_bytes=64 << 10, log_retention_bytes=1 << 20)


class SlowDisk(Disk):
    def __init__(self, error: int = errno.EIO) -> None:
        self.made = 0
        self.error = error
        self.fails_from = 1 << 30

    def create(self, path: Path, size: int) -> None:
        self.made += 1
        time.sleep(SLOW_S)
        if self.made >= self.fails_from:
            raise OSError(self.error, os.strerror(self.error))
        super().create(path, size)


def opened(folder: Path, disk: Disk) -> Store:
    return Store.open(folder, cluster="c", node="n", options=OPTIONS, disk=disk)


async def fill(store: Store, count: int) -> float:
    """Append ``count`` entries of 16 KiB; the longest that the loop stood still meanwhile."""
    part = store.log.partitions[0].index
    longest, last = 0.0, time.monotonic()
    until = last + 10
    for _ in range(count):
        store.append(EntryRecord(0, 0, pack_entry(part.last_index + 1, 1, bytes(16 << 10))))
    while store.durable_seq < store.last_seq and store.log.failure is None and time.monotonic() < until:
        store.kick()
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest


async def test_the_loop_goes_on(tmp_path: Path) -> None:
    """Eleven entries need four segments, which take over a second and a half to make."""
    disk = SlowDisk()
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    longest = await fill(store, 11)
    assert store.durable_seq == store.last_seq
    assert not failures
    assert disk.made >= 4
    assert longest < SLOW_S / 2, f"the loop stood still for {longest:.2f} s"
    assert not store.syncing
    await store.close()
    again = opened(tmp_path, Disk())
    assert again.log.partitions[0].index.last_index == 11
    assert len(again.read_entries(0, 1, 1 << 20)) == 11
    again.abandon()


async def test_what_is_appended_meanwhile_waits(tmp_path: Path) -> None:
    store = opened(tmp_path, SlowDisk())
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda error: None)
    store.add_partition(0)
    await fill(store, 3)  # the first segment was made with the store, and is full now
    store.append(EntryRecord(0, 0, pack_entry(4, 1, bytes(16 << 10))))
    store.kick()
    await asyncio.sleep(SLOW_S / 4)
    assert store.syncing, "nothing can be written yet, so others gather"
    assert store.syncing_for_s() > SLOW_S / 8
    assert store.durable_seq == 3
    await fill(store, 1)
    assert store.durable_seq == store.last_seq
    await store.close()


async def test_a_segment_that_cannot_be_made_ends_the_store(tmp_path: Path) -> None:
    """Ahead of its time that is only told; when it is needed, it is tried once more (R14)."""
    disk = SlowDisk(errno.EIO)
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    disk.fails_from = 3
    await fill(store, 4)
    await asyncio.sleep(2 * SLOW_S)
    assert disk.made >= 3
    assert not failures
    await fill(store, 5)
    assert len(failures) == 1
    assert "Input/output error" in str(failures[0])
    with pytest.raises(StorageError):
        store.append(EntryRecord(0, 0, pack_entry(10, 1, b"")))
    await store.close()


async def test_a_segment_for_which_there_is_no_room_is_waited_for(tmp_path: Path) -> None:
    """Nothing is in it yet, so nothing has failed; what waits to be logged is logged when there is room."""
    disk = SlowDisk(errno.ENOSPC)
    store = opened(tmp_path, disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.add_partition(0)
    disk.fails_from = 3
    await fill(store, 4)
    appended = asyncio.create_task(fill(store, 5))
    while not store.log.no_room:
        await asyncio.sleep(0.01)
    assert store.durable_seq < store.last_seq
    assert store.syncing, "who leads here has to know that the log stands still"
    disk.fails_from = 1 << 30
    await appended
    assert store.durable_seq == store.last_seq
    assert not failures
    assert not list((tmp_path / "log").glob("*.new"))
    await store.close()
