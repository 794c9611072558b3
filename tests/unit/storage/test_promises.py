"""What a store has promised it keeps: seals, drops, snapshots, and a state that is never ahead of the log (R1, R6, R10,
R14, R17)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from metastore.core.entry import entry_position, pack_entry
from metastore.errors import CorruptLog, StorageError
from metastore.storage.records import ConfigEntry, EntryRecord, Fact, SealEntry, TruncateEntry
from metastore.storage.segments import block_bytes, parse_block
from metastore.storage.store import Store
from tests.typed import put_in_log
from tests.unit.storage.test_store import P, blobs, entry, open_store, record, segments, storage_key

EPOCH = 1 << 16
EVERYTHING = (b"", b"\xff" * 9, 1000, 1 << 30)


def filled(path: Path, count: int = 5) -> Store:
    """A partition sealed at EPOCH with so many entries, all applied and none of it in the state yet."""
    store = open_store(path)
    store.add_partition(P)
    store.append(SealEntry(P, EPOCH, b"owner", b"config"))
    for i in range(1, count + 1):
        put_in_log(store, entry(i))
        store.apply(P, i, 1, [(storage_key(i), record(i))], set())
    store.sync_now()
    return store


def reopened(store: Store, path: Path) -> Store:
    store.abandon()
    return open_store(path)


# --- R1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, EPOCH - 1, EPOCH + 1])
def test_the_write_itself_compares_the_epoch(tmp_path: Path, epoch: int) -> None:
    store = filled(tmp_path)
    blob = pack_entry(6, epoch, b"x")
    with pytest.raises(StorageError, match="R1"):
        store.append_entries(P, epoch, 0, [blob])
    assert store.partitions[P].log.last_index == 5
    store.append_entries(P, EPOCH, 0, [pack_entry(6, EPOCH, b"x")])
    assert store.partitions[P].log.last_index == 6
    store.abandon()


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH])
def test_a_seal_is_not_lowered_nor_given_to_another(tmp_path: Path, epoch: int) -> None:
    store = filled(tmp_path)
    with pytest.raises(StorageError, match="R1"):
        store.append(SealEntry(P, epoch, b"another", b"config"))
    store.sync_now()
    again = reopened(store, tmp_path)
    assert (again.partitions[P].sealed_epoch, again.partitions[P].owner) == (EPOCH, b"owner")
    again.abandon()


@pytest.mark.parametrize("flush", [False, True])
def test_the_last_seal_and_config_are_found_again(tmp_path: Path, flush: bool) -> None:
    store = filled(tmp_path)
    store.append(SealEntry(P, EPOCH + 1, b"next", b"config 2"))
    store.append(ConfigEntry(P, b"config 3"))
    store.sync_now()
    if flush:
        store.run_flush()
    again = reopened(store, tmp_path)
    info = again.partitions[P]
    assert (info.sealed_epoch, info.owner, info.config) == (EPOCH + 1, b"next", b"config 3")
    again.abandon()


# --- R6 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [4, 5, 7])
def test_entries_are_applied_in_order(tmp_path: Path, index: int) -> None:
    store = filled(tmp_path)
    with pytest.raises(AssertionError, match="R6"):
        store.apply(P, index, 1, [], set())
    store.abandon()


def test_what_is_known_committed_after_a_crash_is_in_the_log(tmp_path: Path) -> None:
    """An entry says what was committed when it came; a later one may have taken that index since."""
    store = open_store(tmp_path)
    store.add_partition(P)
    for i in range(1, 4):
        put_in_log(store, EntryRecord(P, 0, pack_entry(i, 1, b"x")))
    put_in_log(store, EntryRecord(P, 3, pack_entry(4, 1, b"x")))
    put_in_log(store, TruncateEntry(P, 3))
    store.sync_now()
    again = reopened(store, tmp_path)
    assert again.partitions[P].commit_index == 3
    assert again.partitions[P].log.last_index == 3
    again.abandon()


def in_state(store: Store) -> int:
    """The entry that the state on disk stands at."""
    reader = store.open_snapshot(P)
    reader.close()
    return reader.index


async def test_the_state_is_never_ahead_of_the_log(tmp_path: Path) -> None:
    """A transaction with an entry whose log record is lost by the crash would have applied what never was."""
    store = filled(tmp_path)
    store.run_flush()
    loop = asyncio.get_running_loop()
    group_commits: list[Any] = []
    store.log.writer = group_commits.append
    store.start(loop, lambda seq: None, lambda error: None)
    put_in_log(store, entry(6))
    store.apply(P, 6, 1, [(storage_key(6), record(6))], set())
    store.start_sync()
    store.checkpoints.freeze()
    await store.writer.run(lambda: None)
    assert in_state(store) == 5
    store.log.write_pieces(group_commits.pop())
    store.log.group_written(None)
    while store.changes.flushing is not None:
        await asyncio.sleep(0)
    assert in_state(store) == 6
    store.log.writer = None
    store._tasks[0].cancel()
    store.abandon()


def test_a_round_that_is_not_written_is_not_durable(tmp_path: Path) -> None:
    """Neither is what was appended while it was under way."""
    store = filled(tmp_path)
    durable = store.durable_seq
    first = put_in_log(store, entry(6))
    pieces = store.log._take_group()
    put_in_log(store, entry(7))
    assert store.durable_seq == durable
    store.log.write_pieces(pieces)
    store.log._group_ended()
    assert store.durable_seq == first
    store.abandon()


# --- R14 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(60))
def test_a_block_that_is_not_as_it_was_written_is_none(at: int) -> None:
    raw = bytearray(block_bytes(3, 7, 2, b"a body of some bytes"))
    assert parse_block(bytes(raw), 0) == (3, 7, 2, b"a body of some bytes", len(raw))
    if at < len(raw):
        raw[at] ^= 4
        assert parse_block(bytes(raw), 0) is None


def test_a_round_that_failed_ends_the_log(tmp_path: Path) -> None:
    """Nothing of it is durable, nothing is tried again, nothing more is taken."""
    store = filled(tmp_path)
    durable = store.durable_seq
    put_in_log(store, entry(6))
    store.log._take_group()
    store.log.group_written(OSError(5, "Input/output error"))
    assert store.durable_seq == durable
    with pytest.raises(StorageError, match="cannot be written"):
        put_in_log(store, entry(7))
    with pytest.raises(StorageError, match="cannot be written"):
        store.append(SealEntry(P, EPOCH + 1, b"next", b"config"))
    store.abandon()


def test_damage_to_what_only_the_state_vouches_for_is_told(tmp_path: Path) -> None:
    """The last block of the log: nothing after it says that it was durable, and nothing of it is applied."""
    store = filled(tmp_path)
    put_in_log(store, entry(6))
    store.sync_now()
    store.run_flush()
    end = store.log.files.segments[-1].end
    store.abandon()
    (file,) = segments(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[end - 3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptLog):
        open_store(tmp_path)


def test_a_block_that_is_missing_between_two_is_told(tmp_path: Path) -> None:
    """Blocks are numbered: what follows on without a gap of bytes need not follow on."""
    store = filled(tmp_path)
    (segment,) = store.log.files.segments
    ends = []
    for record_of in (entry(6), SealEntry(P, EPOCH + 1, b"next", b"config"), entry(7), entry(8)):
        put_in_log(store, record_of)
        store.sync_now()
        ends.append(segment.end)
    store.abandon()
    (file,) = segments(tmp_path)
    raw = file.read_bytes()
    gone = raw[: ends[0]] + raw[ends[1] :] + bytes(ends[1] - ends[0])
    file.write_bytes(gone)
    with pytest.raises(CorruptLog):
        open_store(tmp_path)


def test_what_was_cut_off_never_follows_what_is_written_next(tmp_path: Path) -> None:
    """Of a torn round of two blocks the second is whole, and has the number that is due after the next round."""
    store = filled(tmp_path)
    (segment,) = store.log.files.segments
    start = segment.end
    for i in (6, 7):
        put_in_log(store, entry(i, 1, b"torn" * 2500))
    store.sync_now()
    assert store.log.block == 3, "two blocks"
    store.abandon()
    (file,) = segments(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[start + 100] ^= 1
    file.write_bytes(raw)
    store = open_store(tmp_path)
    assert store.partitions[P].log.last_index == 5
    put_in_log(store, entry(6, 2, b"next" * 2500))
    store.sync_now()
    again = reopened(store, tmp_path)
    assert again.partitions[P].log.last_position() == (2, 6)
    assert blobs(again)[-1] == pack_entry(6, 2, b"next" * 2500)
    again.abandon()


def test_an_old_block_that_stands_where_the_next_is_due_is_not_read_again(tmp_path: Path) -> None:
    """Blocks are numbered: whatever looks like one and is another is no part of the log."""
    store = filled(tmp_path)
    (segment,) = store.log.files.segments
    ends = [segment.end]
    for value in (1, 2):
        store.append(Fact("fact", value))
        store.sync_now()
        ends.append(segment.end)
    store.abandon()
    (file,) = segments(tmp_path)
    raw = bytearray(file.read_bytes())
    old = raw[ends[0] : ends[1]]
    raw[ends[2] : ends[2] + len(old)] = old
    file.write_bytes(raw)
    again = open_store(tmp_path)
    assert again.facts["fact"] == 2
    again.abandon()


def test_facts_outlive_the_segments_that_they_came_in(tmp_path: Path) -> None:
    """A segment goes when all of it is in the state: also when no entry of it waits."""
    store = open_store(tmp_path)
    store.add_partition(P)
    for i in range(1, 60):
        put_in_log(store, entry(i, payload=bytes(4000)))
        store.sync_now()
        store.apply(P, i, 1, [], set())
        if i == 20:
            store.run_flush()
    flushed = store.checkpoints.seq
    _, removed = store.log.remove_segments(lambda p: 59, flushed, 1)
    assert removed
    assert all(segment.last_seq <= flushed for segment in removed)
    store.abandon()


def test_an_entry_that_is_not_written_yet_is_read_from_memory(tmp_path: Path) -> None:
    """However little of the cache is left."""
    store = open_store(tmp_path)
    store.add_partition(P)
    put_in_log(store, entry(1, payload=bytes(20_000)))
    pieces = store.log._take_group()
    put_in_log(store, entry(2, payload=bytes(20_000)))
    store.log.write_pieces(pieces)
    store.log._group_ended()
    assert [entry_position(b)[0] for b in store.read_entries(P, 1, 1 << 30)] == [1, 2]
    store.abandon()


def test_an_entry_that_was_taken_back_before_it_was_written_leaves_its_place_to_the_next(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path)
    put_in_log(store, entry(6, 1, b"taken back"))
    put_in_log(store, TruncateEntry(P, 5))
    put_in_log(store, entry(6, 2, b"in its stead"))
    put_in_log(store, entry(7, 2, b"and another"))
    part = store.log.partitions[P]
    gone = next(blob for _, p, index, blob in store.log._waiting if (p, index) == (P, 6))
    # a round that has room for the first of them only
    store.log._place(store.log.files.segments[-1], P, 6, gone, 12345)
    assert part.locations[5] == 0, "the next is not written yet"
    store.sync_now()
    part.blobs.clear()
    assert store.read_entries(P, 6, 1) == [pack_entry(6, 2, b"in its stead")]
    assert store.read_entries(P, 7, 1) == [pack_entry(7, 2, b"and another")]
    store.abandon()


@pytest.mark.parametrize("truncate", [False, True])
def test_a_log_that_contradicts_the_state_is_told(tmp_path: Path, truncate: bool) -> None:
    """It ends before what is applied, or has another entry there."""
    store = filled(tmp_path)
    store.run_flush()
    put_in_log(store, TruncateEntry(P, 4))
    if not truncate:
        put_in_log(store, entry(5, 2))
    store.sync_now()
    store.abandon()
    with pytest.raises(CorruptLog):
        open_store(tmp_path)


# --- R10: dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", [False, True])
def test_a_dropped_partition_is_gone_but_for_what_it_has_promised(tmp_path: Path, flush: bool) -> None:
    store = filled(tmp_path)
    store.run_flush()
    store.append(SealEntry(P, EPOCH + 1, b"next", b"config 2"))
    store.drop_partition(P)
    store.sync_now()
    if flush:
        store.run_flush()
    for _ in range(2):
        info = store.partitions[P]
        assert info.dropped
        assert (info.sealed_epoch, info.owner) == (EPOCH + 1, b"next")
        assert (info.applied_index, info.commit_index, info.log.last_index) == (0, 0, 0)
        store = reopened(store, tmp_path)
    store.add_partition(P)
    assert store.partitions[P].sealed_epoch == EPOCH + 1
    assert store.scan(P, *EVERYTHING)[0] == []
    store.abandon()


@pytest.mark.parametrize("flush", [False, True])
def test_what_comes_after_a_drop_is_the_new_replicas(tmp_path: Path, flush: bool) -> None:
    """Of the old one nothing comes back: neither entries of the log nor rows of the state."""
    store = filled(tmp_path)
    store.run_flush()
    store.drop_partition(P)
    store.add_partition(P)
    store.append(SealEntry(P, EPOCH + 1, b"next", b"config 2"))
    for i in (1, 2):
        put_in_log(store, EntryRecord(P, 0, pack_entry(i, EPOCH + 1, b"new")))
    store.apply(P, 1, EPOCH + 1, [(storage_key(9), record(9))], set())
    store.sync_now()
    if flush:
        store.run_flush()
    again = reopened(store, tmp_path)
    again.add_partition(P)
    info = again.partitions[P]
    assert blobs(again)[-2:] == [pack_entry(i, EPOCH + 1, b"new") for i in (1, 2)][-len(blobs(again)) :]
    assert info.log.last_position() == (EPOCH + 1, 2)
    assert info.applied_index == (1 if flush else 0)
    assert again.scan(P, *EVERYTHING)[0] == ([(storage_key(9), record(9))] if flush else [])
    again.abandon()


def test_changes_that_are_not_in_the_state_go_with_a_drop(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.drop_partition(P)
    store.add_partition(P)
    assert store.get(P, storage_key(1)) is None
    store.run_flush()
    assert store.scan(P, *EVERYTHING)[0] == []
    store.abandon()


# --- R17: switched ------------------------------------------------------------------------------------------------


async def test_a_snapshot_replaces_what_is_not_in_the_state_yet_too(tmp_path: Path) -> None:
    """Changes of the old state, committed here or on their way to the state, would stand over the new one's rows."""
    for flushed in (False, True):
        path = tmp_path / str(flushed)
        store = filled(path)
        if flushed:
            store.run_flush()
            put_in_log(store, entry(6))
            store.apply(P, 6, 1, [(storage_key(6), record(6)), (storage_key(77), record(1))], set())
            store.sync_now()
        installer = store.begin_install(P)
        await installer.add([(1, storage_key(77), record(77))])
        await installer.finish(300, 2)
        for _ in range(2):
            assert store.scan(P, *EVERYTHING)[0] == [(storage_key(77), record(77))]
            assert store.get(P, storage_key(77)) == record(77)
            assert store.get(P, storage_key(1)) is None
            info = store.partitions[P]
            assert (info.applied_index, info.applied_epoch, info.sealed_epoch) == (300, 2, EPOCH)
            assert info.log.last_position() == (2, 300)
            store.run_flush()
            store = reopened(store, path)
        store.abandon()


async def test_no_flush_is_frozen_while_a_snapshot_is_switched_in(tmp_path: Path) -> None:
    """It would write the partition's old row after the new one: a crash then, and the old state stood at a log that
    is void."""
    store = filled(tmp_path)
    store.add_partition(5)
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda error: None)
    installer = store.begin_install(P)
    await installer.add([(1, storage_key(77), record(77))])
    write, frozen = store.writer.run, list[bool]()

    async def meanwhile(work: Any, *args: Any) -> Any:
        put_in_log(store, EntryRecord(5, 0, pack_entry(1, 1, b"x")))
        store.apply(5, 1, 1, [(storage_key(1), record(1))], set())
        store.checkpoints.freeze()
        frozen.append(store.changes.flushing is not None)
        return await write(work, *args)

    store.writer.run = meanwhile  # type: ignore[method-assign]
    await installer.finish(300, 2)
    assert frozen == [False]
    assert in_state(store) == 300
    store.writer.run = write  # type: ignore[method-assign]
    await store.close()


async def test_a_snapshot_is_switched_in_once_the_log_is_durable_up_to_what_it_makes_void(
    tmp_path: Path,
) -> None:
    """Numbers of records that are void and not in the log yet would be given out again by a recovery that does not find
    them, and what is logged under them be taken for void."""
    store = filled(tmp_path)
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda error: None)
    installer = store.begin_install(P)
    await installer.add([(1, storage_key(77), record(77))])
    write, durable = store.writer.run, list[int]()

    async def noted(work: Any, *args: Any) -> Any:
        durable.append(store.durable_seq)
        return await write(work, *args)

    held: list[Any] = []
    writer, store.log.writer = store.log.writer, held.append  # the disk takes its time
    assert writer is not None
    put_in_log(store, entry(6))
    void = store.last_seq
    store.writer.run = noted  # type: ignore[method-assign]
    switching = asyncio.ensure_future(installer.finish(300, 2))
    try:
        for _ in range(50):
            await asyncio.sleep(0)
        assert not durable
        async with asyncio.timeout(30):
            while not held:
                await asyncio.sleep(0)
        assert not durable
    finally:
        store.log.writer = writer
        for pieces in held:
            writer(pieces)
        await switching
        store.writer.run = write  # type: ignore[method-assign]
        await store.close()
    assert durable[0] >= void


async def test_a_snapshot_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    installer = store.begin_install(P)
    await installer.add([(1, storage_key(77), record(77)), (2, b"m", b"row")])
    await installer.abort()
    assert store.get(P, storage_key(77)) is None
    store = reopened(store, tmp_path)
    assert store.get(P, storage_key(77)) is None
    store.abandon()


def test_a_snapshot_that_is_read_does_not_move_on(tmp_path: Path) -> None:
    """R17: one moment's state, at the position that it names."""
    store = filled(tmp_path)
    store.run_flush()
    reader = store.open_snapshot(P)
    put_in_log(store, entry(6))
    store.apply(P, 6, 1, [(storage_key(6), record(6)), (storage_key(1), None)], set())
    store.run_flush()
    rows = reader.chunk(1 << 20)
    assert (reader.index, reader.epoch) == (5, 1)
    assert sorted(rows) == sorted((1, storage_key(i), record(i)) for i in range(1, 6))
    reader.close()
    store.abandon()


@pytest.mark.parametrize("error", [RuntimeError("no such attribute"), StorageError("the disk is gone")])
async def test_a_timer_that_ends_fails_the_store(tmp_path: Path, error: Exception) -> None:
    """R14: nothing would be saved by age any more, and nobody look at the room."""
    store = Store.open(tmp_path, cluster="c", node="n")
    failed: asyncio.Future[StorageError] = asyncio.get_running_loop().create_future()
    store.start(asyncio.get_running_loop(), lambda seq: None, failed.set_result)

    def look() -> None:
        raise error

    store.upkeep.look = look  # type: ignore[method-assign]
    async with asyncio.timeout(30):
        told = await failed
    assert type(told) is StorageError
    assert str(error.args[0]) in told.message
    store.abandon()
