"""What a store has promised it keeps: seals, drops, snapshots, and a state that is never ahead of the log (R1, R6, R10,
R14, R17)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from metastore.core.entry import pack_entry
from metastore.errors import StorageError
from metastore.storage.records import ConfigEntry, EntryRecord, SealEntry, TruncateEntry
from metastore.storage.store import Store
from tests.unit.storage.test_store import P, blobs, entry, lkey, open_store, record

EPOCH = 1 << 16
EVERYTHING = (b"", b"\xff" * 9, 1000, 1 << 30)


def filled(path: Path, count: int = 5) -> Store:
    """A partition sealed at EPOCH with so many entries, all applied and none of it in the state yet."""
    store = open_store(path)
    store.add_partition(P)
    store.append(SealEntry(P, EPOCH, b"owner", b"config"))
    for i in range(1, count + 1):
        store.append(entry(i))
        store.apply(P, i, 1, [(lkey(i), record(i))], set())
    store.run_round()
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
    store.run_round()
    again = reopened(store, tmp_path)
    assert (again.partitions[P].sealed_epoch, again.partitions[P].owner) == (EPOCH, b"owner")
    again.abandon()


@pytest.mark.parametrize("flush", [False, True])
def test_the_last_seal_and_config_are_found_again(tmp_path: Path, flush: bool) -> None:
    store = filled(tmp_path)
    store.append(SealEntry(P, EPOCH + 1, b"next", b"config 2"))
    store.append(ConfigEntry(P, b"config 3"))
    store.run_round()
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
        store.append(EntryRecord(P, 0, pack_entry(i, 1, b"x")))
    store.append(EntryRecord(P, 3, pack_entry(4, 1, b"x")))
    store.append(TruncateEntry(P, 3))
    store.run_round()
    again = reopened(store, tmp_path)
    assert again.partitions[P].commit_index == 3
    assert again.partitions[P].log.last_index == 3
    again.abandon()


async def test_the_state_is_never_ahead_of_the_log(tmp_path: Path) -> None:
    """A transaction with an entry whose log record is lost by the crash would have applied what never was."""
    store = filled(tmp_path)
    store.run_flush()
    loop = asyncio.get_running_loop()
    rounds: list[Any] = []
    store.log.writer = rounds.append
    store.start(loop, lambda seq: None, lambda error: None)
    store.append(entry(6))
    store.apply(P, 6, 1, [(lkey(6), record(6))], set())
    store.kick()
    store._freeze()
    await store.run_in_writer(lambda: None)
    assert store.state.metas()[P].applied == 5
    store.log.write_pieces(rounds.pop())
    store.log.round_written(None)
    while store._flushing is not None:
        await asyncio.sleep(0)
    assert store.state.metas()[P].applied == 6
    store.log.writer = None
    assert store._timer is not None
    store._timer.cancel()
    store.abandon()


def test_a_round_that_is_not_written_is_not_durable(tmp_path: Path) -> None:
    """Neither is what was appended while it was under way."""
    store = filled(tmp_path)
    durable = store.durable_seq
    first = store.append(entry(6))
    pieces = store.log._take_round()
    store.append(entry(7))
    assert store.durable_seq == durable
    store.log.write_pieces(pieces)
    store.log._round_ended()
    assert store.durable_seq == first
    store.abandon()


# --- R10: dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", [False, True])
def test_a_dropped_partition_is_gone_but_for_what_it_has_promised(tmp_path: Path, flush: bool) -> None:
    store = filled(tmp_path)
    store.run_flush()
    store.append(SealEntry(P, EPOCH + 1, b"next", b"config 2"))
    store.drop_partition(P)
    store.run_round()
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
    assert store.scan(P, *EVERYTHING) == []
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
        store.append(EntryRecord(P, 0, pack_entry(i, EPOCH + 1, b"new")))
    store.apply(P, 1, EPOCH + 1, [(lkey(9), record(9))], set())
    store.run_round()
    if flush:
        store.run_flush()
    again = reopened(store, tmp_path)
    again.add_partition(P)
    info = again.partitions[P]
    assert blobs(again)[-2:] == [pack_entry(i, EPOCH + 1, b"new") for i in (1, 2)][-len(blobs(again)) :]
    assert info.log.last_position() == (EPOCH + 1, 2)
    assert info.applied_index == (1 if flush else 0)
    assert again.scan(P, *EVERYTHING) == ([(lkey(9), record(9))] if flush else [])
    again.abandon()


def test_changes_that_are_not_in_the_state_go_with_a_drop(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.drop_partition(P)
    store.add_partition(P)
    assert store.get(P, lkey(1)) is None
    store.run_flush()
    assert store.scan(P, *EVERYTHING) == []
    store.abandon()


# --- R17: switched ------------------------------------------------------------------------------------------------


async def test_a_snapshot_replaces_what_is_not_in_the_state_yet_too(tmp_path: Path) -> None:
    """Changes of the old state, committed here or on their way to the state, would stand over the new one's rows."""
    for flushed in (False, True):
        path = tmp_path / str(flushed)
        store = filled(path)
        if flushed:
            store.run_flush()
            store.append(entry(6))
            store.apply(P, 6, 1, [(lkey(6), record(6)), (lkey(77), record(1))], set())
            store.run_round()
        installer = store.begin_install(P)
        await installer.add([(1, lkey(77), record(77))])
        await installer.finish(300, 2)
        for _ in range(2):
            assert store.scan(P, *EVERYTHING) == [(lkey(77), record(77))]
            assert store.get(P, lkey(77)) == record(77)
            assert store.get(P, lkey(1)) is None
            info = store.partitions[P]
            assert (info.applied_index, info.applied_epoch, info.sealed_epoch) == (300, 2, EPOCH)
            assert info.log.last_position() == (2, 300)
            store.run_flush()
            store = reopened(store, path)
        store.abandon()


async def test_a_snapshot_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    installer = store.begin_install(P)
    await installer.add([(1, lkey(77), record(77)), (2, b"m", b"row")])
    await installer.abort()
    assert store.get(P, lkey(77)) is None
    store = reopened(store, tmp_path)
    assert store.get(P, lkey(77)) is None
    store.abandon()


def test_a_snapshot_that_is_read_does_not_move_on(tmp_path: Path) -> None:
    """R17: one moment's state, at the position that it names."""
    store = filled(tmp_path)
    store.run_flush()
    reader = store.open_snapshot(P)
    store.append(entry(6))
    store.apply(P, 6, 1, [(lkey(6), record(6)), (lkey(1), None)], set())
    store.run_flush()
    rows = reader.chunk(1 << 20)
    assert (reader.index, reader.epoch) == (5, 1)
    assert sorted(rows) == sorted((1, lkey(i), record(i)) for i in range(1, 6))
    reader.close()
    store.abandon()
