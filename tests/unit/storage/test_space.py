"""Room: where the marks are, what is waited for when there is none, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metastore.core.entry import pack_entry
from metastore.errors import NoRoom, StorageError
from metastore.records import pack_record
from metastore.storage.disk import Disk
from metastore.storage.engine import Pages
from metastore.storage.options import StorageOptions
from metastore.storage.records import EntryRecord
from metastore.storage.space import AHEAD_BYTES, MAP_PART, SLACK_BYTES, Blocks, Space
from metastore.storage.store import Store
from tests.typed import put_in_log

MIB = 1 << 20
SEGMENT = 2 * MIB
FLOOR = SEGMENT + SLACK_BYTES
PLENTY = Pages(1 << 40, 0, 0)


class SmallDisk(Disk):
    """A real one that says how much is free."""

    def __init__(self, free: int = 1 << 40) -> None:
        self.free = free

    def space(self, folder: Path) -> tuple[int, int]:
        return self.free, 1 << 41


def space(folder: Path, disk: SmallDisk, low: int = 100 * MIB, reserve: int = 0) -> Space:
    found = Space(folder, disk, SEGMENT, low, reserve)
    found.begin()
    return found


def look(s: Space, pages: Pages = PLENTY, **more: Any) -> tuple[bool, bool]:
    s.look(pages, **({"pending": 0, "log_room": SEGMENT, "blocked": False, "stuck": False} | more))
    return s.low, s.full


def test_below_the_mark_and_a_quarter_above_it(tmp_path: Path) -> None:
    disk = SmallDisk(100 * MIB)
    s = space(tmp_path, disk)
    assert look(s) == (False, False)
    disk.free -= 1
    assert look(s) == (True, False)
    disk.free = 125 * MIB - 1
    assert look(s) == (True, False), "not to and fro"
    disk.free = 125 * MIB
    assert look(s) == (False, False)


def test_what_deletes_left_in_the_state_counts(tmp_path: Path) -> None:
    s = space(tmp_path, SmallDisk(60 * MIB))
    assert look(s) == (True, False)
    assert look(s, Pages(1 << 40, 500 * MIB, 65 * MIB)) == (False, False)
    assert s.room == 125 * MIB
    assert look(s, Pages(1 << 40, 500 * MIB, 65 * MIB), pending=26 * MIB) == (True, False), (
        "accepted, not there yet"
    )
    assert look(s, replace(PLENTY, ahead=65 * MIB)) == (False, False), (
        "blocks that the state has beyond what it uses"
    )


def test_the_map_has_a_mark_too(tmp_path: Path) -> None:
    s = space(tmp_path, SmallDisk())
    limit = 1 << 30
    assert look(s, Pages(limit, limit - 100 * MIB, 0)) == (False, False)
    assert look(s, Pages(limit, limit - 100 * MIB + 4096, 0)) == (True, False)
    assert look(s, Pages(limit, limit, 125 * MIB)) == (False, False)
    small = 64 * MIB
    s = space(tmp_path, SmallDisk())
    assert look(s, Pages(small, small - small // MAP_PART, 0)) == (False, False), (
        "a small map is not closed at once"
    )
    assert look(s, Pages(small, small - small // MAP_PART + 1, 0)) == (True, False)


def test_without_a_mark_only_what_must_be_is_refused(tmp_path: Path) -> None:
    disk = SmallDisk(0)
    s = space(tmp_path, disk, low=0)
    assert look(s) == (False, False)
    assert look(s, blocked=True) == (True, False)
    assert look(s, blocked=True, stuck=True) == (True, True)


def test_full_is_when_nothing_more_can_be_logged(tmp_path: Path) -> None:
    disk = SmallDisk(SEGMENT - 1)
    s = space(tmp_path, disk)
    assert look(s, log_room=s.kept_bytes) == (True, False)
    assert look(s, log_room=s.kept_bytes - 1) == (True, True)
    disk.free = SEGMENT
    assert look(s, log_room=0) == (True, False), "the next segment can be made"


def test_the_reserve_is_given_up_and_made_again(tmp_path: Path) -> None:
    disk, reserve = SmallDisk(), 3 * MIB
    s = space(tmp_path, disk, reserve=reserve)
    look(s)
    assert s.wants_reserve()
    s.make_reserve()
    assert os.stat(s.reserve_path).st_blocks * 512 >= reserve
    assert not s.wants_reserve()
    disk.free = FLOOR
    look(s)
    assert s.reserve_held, "low, and enough for everything that goes on"
    disk.free = FLOOR - 1
    look(s)
    assert s.critical
    assert not s.reserve_path.exists()
    disk.free = 125 * MIB + reserve
    look(s)
    assert not s.wants_reserve(), "it would be low again with it"
    disk.free += 1
    look(s)
    assert s.wants_reserve()


def test_a_start_on_a_full_disk_has_the_reserve(tmp_path: Path) -> None:
    disk = SmallDisk()
    s = space(tmp_path, disk, reserve=MIB)
    look(s)
    s.make_reserve()
    disk.free = FLOOR - 1
    assert not space(tmp_path, disk, reserve=MIB).reserve_held
    assert not s.reserve_path.exists()


# --- the state's file --------------------------------------------------------------------


def test_blocks_are_there_before_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8192))
    asked: list[int] = []
    room = 5 * MIB

    def allocate(fd: int, start: int, size: int) -> None:
        asked.append(start + size)
        if start + size > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    blocks = Blocks(path, allocate)
    blocks.ensure(8192, 4096)
    assert asked == [8192 + 4096 + AHEAD_BYTES]
    blocks.ensure(16384, AHEAD_BYTES - 4096)
    assert len(asked) == 1, "they are there"
    blocks.ensure(room - MIB, MIB)
    assert (asked[1:], blocks.end) == ([room + AHEAD_BYTES, room], room), "as many as there are to be had"
    with pytest.raises(NoRoom, match="1048576 bytes of the state"):
        blocks.ensure(room, MIB)
    blocks.ensure(room - MIB, MIB)
    blocks.close()


def test_a_file_system_that_cannot_allocate_is_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")

    def allocate(fd: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    blocks = Blocks(tmp_path / "data", allocate)
    blocks.ensure(0, 1 << 50)
    blocks.ensure(0, 1 << 51)
    blocks.close()


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (errno.ENOSPC, NoRoom),
        (errno.EDQUOT, NoRoom),
        (errno.EFBIG, NoRoom),
        (errno.EIO, OSError),
        (errno.EBADF, OSError),
    ],
)
def test_only_want_of_room_is_taken_for_that(tmp_path: Path, code: int, raised: type[Exception]) -> None:
    """R14: a disk that fails is not one that is full, after which all would go on."""
    (tmp_path / "data").write_bytes(b"")

    def allocate(fd: int, start: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    blocks = Blocks(tmp_path / "data", allocate)
    with pytest.raises(raised) as told:
        blocks.ensure(0, MIB)
    assert told.type is raised
    assert blocks.end == 0
    blocks.close()


def test_the_reals_disk_blocks(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    blocks = Blocks(tmp_path / "data")
    blocks.ensure(4096, MIB)
    assert os.stat(tmp_path / "data").st_blocks * 512 >= MIB
    assert (tmp_path / "data").read_bytes()[:1] == b"x"
    blocks.close()


# --- a store whose disk or map is full -----------------------------------------------------


def opened(folder: Path, disk: Disk, **options: Any) -> tuple[Store, list[StorageError]]:
    options = {"segment_bytes": SEGMENT, "log_retention_bytes": 64 * MIB, "flush_age_s": 0.05} | options
    store = Store.open(folder, cluster="c", node="n", options=StorageOptions(**options), disk=disk)
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    return store, failures


def change(store: Store, index: int, value: bytes | None, key: int | None = None) -> None:
    """Entry ``index``, committed and applied."""
    storage_key = b"%08d" % ((index if key is None else key) % 10**8) + b"n\0k"
    put_in_log(store, EntryRecord(0, index, pack_entry(index, 1, b"entry")))
    record = None if value is None else pack_record(index, index, value, b"", 0)
    store.apply(0, index, 1, [(storage_key, record)], set())
    store.start_sync()


async def until(what: Any) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_flush_without_room_is_made_later(tmp_path: Path) -> None:
    """Nothing was begun: what it would have written is served from the overlay, is in the log, and is written when
    there is room."""
    store, failures = opened(tmp_path, SmallDisk())
    store.add_partition(0)
    full = True
    real = store.state.engine.make_room

    def make_room(rows: int, size: int) -> None:
        if full:
            raise NoRoom("the disk has no room")
        real(rows, size)

    store.state.engine.make_room = make_room  # type: ignore[method-assign]
    for index in range(1, 11):
        change(store, index, b"v%d" % index)
    await until(lambda: store.checkpoints.blocked)
    store.look()
    assert store.space.low
    assert not store.space.full
    assert not failures
    assert store.get(0, b"00000007n\0k") is not None
    change(store, 11, None, key=7)
    assert store.get(0, b"00000007n\0k") is None, "deletes go on"
    full = False
    await until(
        lambda: (
            not store.checkpoints.blocked
            and not store.changes.active.changes
            and store.changes.flushing is None
        )
    )
    store.look()
    assert not store.space.low
    assert not failures
    await store.close()
    again, _ = opened(tmp_path, SmallDisk())
    assert again.get(0, b"00000007n\0k") is None
    assert again.get(0, b"00000008n\0k") is not None
    await again.close()


@pytest.mark.nightly
async def test_a_map_that_is_full_closes_to_what_adds_and_opens_when_room_is_made(tmp_path: Path) -> None:
    """It is low long before LMDB says MDB_MAP_FULL; deletes leave room in it, and then it is not low."""
    limit = 8 * MIB
    store, failures = opened(tmp_path, SmallDisk(), map_size_bytes=limit, low_bytes=MIB)
    store.add_partition(0)
    index = 0
    while not store.space.low:
        for _ in range(20):
            index += 1
            change(store, index, os.urandom(3000))
        await until(lambda: store.changes.flushing is None and not store.changes.active.changes)
        store.look()
        assert index < 5000, "it is never low"
    assert not failures
    assert store.space.room < MIB
    stats = store.stats()
    assert stats["state_limit_bytes"] == limit
    assert stats["state_bytes"] > limit // 2
    deleted = 0
    while store.space.low:
        for _ in range(20):
            index, deleted = index + 1, deleted + 1
            change(store, index, None, key=deleted)
        await until(lambda: store.changes.flushing is None and not store.changes.active.changes)
        store.look()
        assert deleted < 5000, "deletes make no room"
    assert not failures
    await store.close()


async def test_mdb_map_full_is_waited_out_too(tmp_path: Path) -> None:
    """Without a mark LMDB itself refuses; that transaction is void, and the node lives."""
    store, failures = opened(tmp_path, SmallDisk(), map_size_bytes=2 * MIB)
    store.add_partition(0)
    for index in range(1, 601):
        change(store, index, os.urandom(4000))
    await until(lambda: store.checkpoints.blocked)
    store.look()
    assert store.space.low
    assert not failures
    assert all(store.get(0, b"%08dn\0k" % i) for i in range(1, 601))
    store.abandon()
    again, failures = opened(tmp_path, SmallDisk(), map_size_bytes=64 * MIB)  # what the message says to do
    assert again.log.partitions[0].index.last_index == 600
    assert not failures
    await again.close()


@pytest.mark.parametrize("saved", [False, True])
async def test_little_room_keeps_no_log_for_others(tmp_path: Path, saved: bool) -> None:
    """Also when all is saved and nothing changes any more, so that no flush is due."""
    disk = SmallDisk()
    store, failures = opened(tmp_path, disk, low_bytes=100 * MIB, flush_age_s=0.02)
    store.add_partition(0)
    index = 0
    while len(store.log.files.segments) < 4:
        index += 1
        change(store, index, b"v")
        put_in_log(store, EntryRecord(0, index, pack_entry(index + 1, 1, bytes(200 << 10))))
        index += 1
        store.apply(0, index, 1, [], set())
        store.start_sync()
        await asyncio.sleep(0.005)
    if saved:
        await until(lambda: not store.slots.changed and store.changes.flushing is None)
        assert len(store.log.files.segments) == 4
    disk.free = FLOOR - 1
    await until(lambda: len(store.log.files.segments) == 1)
    await until(lambda: len(list((tmp_path / "log").glob("*.seg"))) <= 2)
    assert not failures
    await store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_segment_for_which_there_is_no_room_is_made_later(tmp_path: Path, code: int) -> None:
    """Nothing is in it yet, so no write has failed (R14); any other error is one."""
    store = Store.open(tmp_path, cluster="c", node="n")
    failures: list[Exception] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failures.append)
    store.log._prepared(OSError(code, "as told"), needed=True)
    if code == errno.EIO:
        assert failures
        store.abandon()
        return
    assert not failures
    assert store.log.no_room
    await store.close()
