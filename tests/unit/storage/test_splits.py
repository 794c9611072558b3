"""R18 in the store: what an entry splits off is applied with the entry, and is durable before anything that it stands
on goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metastore.core.entry import pack_entry
from metastore.core.rows import UpperHalf
from metastore.errors import StorageError
from metastore.records import pack_record
from metastore.storage.records import EntryRecord, SealEntry
from metastore.storage.store import Store
from tests.typed import put_in_log
from tests.unit.storage.test_store import open_store

AT = b"\x80" + bytes(7)
LOW, HIGH = b"\x11" * 8 + b"ns\0low", b"\x99" * 8 + b"ns\0high"
EPOCH = 1 << 16
SPLIT_OFF = UpperHalf(2, AT, [(b"m", b"\x92\x02\x00")], b"the first config")


def records(store: Store, p: int) -> list[bytes]:
    return [storage_key for storage_key, _ in store.scan(p, b"", b"\xff" * 9, 100, 1 << 20)[0]]


def before_split(path: Path) -> Store:
    store = open_store(path)
    store.add_partition(1)
    store.append(SealEntry(1, EPOCH, b"me", b"config"))
    for i, key in ((1, LOW), (2, HIGH)):
        put_in_log(store, EntryRecord(1, i, pack_entry(i, EPOCH, b"")))
        store.apply(1, i, EPOCH, [(key, pack_record(i, i, b"acknowledged"))], set())
    return store


def apply_split(store: Store, split_off: UpperHalf = SPLIT_OFF) -> None:
    put_in_log(store, EntryRecord(1, 3, pack_entry(3, EPOCH, b"split")))
    store.sync_now()
    store.apply(1, 3, EPOCH, [], set(), split_off)


def delete_garbage(store: Store) -> None:
    while store.slots.garbage:
        garbage = store.slots.garbage[0]
        if not store.state.delete_step(garbage):
            store.slots.garbage.remove(garbage)
    store.state.renew({})


def split_during_flush(path: Path) -> Store:
    store = before_split(path)
    store.run_flush()
    store.checkpoints.freeze()  # a flush is under way when the split is applied
    apply_split(store)
    return store


@pytest.mark.parametrize("flush_changes", [1, 1000])
def test_parent_and_child_are_in_the_state_both_or_neither(tmp_path: Path, flush_changes: int) -> None:
    """S3. Also when the overlay has outgrown its bound, and applying the entry itself begins the flush."""
    store = before_split(tmp_path)
    store.checkpoints.flush_changes = flush_changes
    seen = []
    write = store.state.write

    def look(job: list, rows: object = ()) -> None:  # type: ignore[type-arg]
        write(job, rows)  # type: ignore[arg-type]
        with store.state.engine.snapshot() as snapshot:
            parent, child = (store.state.meta_in(p, snapshot) for p in (1, 2))
        seen.append((parent.applied if parent else 0, child is not None))

    store.state.write = look  # type: ignore[method-assign, assignment]
    apply_split(store)
    for i in range(4, 10):
        put_in_log(store, EntryRecord(1, i, pack_entry(i, EPOCH, b"")))
        store.sync_now()
        store.apply(1, i, EPOCH, [(LOW, pack_record(i, 1, b"later"))], set())
    store.run_flush()
    store.run_flush()
    store.abandon()
    assert seen
    assert all((applied >= 3) == child for applied, child in seen), seen
    again = open_store(tmp_path)
    assert records(again, 1) == [LOW]
    assert records(again, 2) == [HIGH]
    assert again.partitions[2].config == b"the first config"
    again.abandon()


def test_the_parent_is_not_dropped_before_the_fork_is_durable(tmp_path: Path) -> None:
    store = split_during_flush(tmp_path)
    told = []
    store.checkpoints.on_split = lambda child, parent: told.append((child, parent))
    with pytest.raises(StorageError, match="R18: partition 1 cannot be dropped"):
        store.drop_partition(1)
    store.run_flush()  # the one that was under way
    assert not store.holds(2)
    store.run_flush()
    assert store.holds(2)
    assert told == [(2, 1)]
    store.drop_partition(1)
    store.run_flush()
    delete_garbage(store)
    assert records(store, 2) == [HIGH]
    store.abandon()


async def test_a_snapshot_of_the_parent_waits_for_the_fork(tmp_path: Path) -> None:
    store = split_during_flush(tmp_path)
    installer = store.begin_install(1)
    await installer.add([(1, LOW, pack_record(9, 1, b"newer"))])
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda e: None)
    await installer.finish(10, EPOCH)
    assert store.holds(2)
    assert records(store, 2) == [HIGH]
    assert records(store, 1) == [LOW]
    await store.close()
    again = open_store(tmp_path)
    assert (records(again, 1), records(again, 2)) == ([LOW], [HIGH])
    again.abandon()


def test_an_empty_copy_becomes_the_fork(tmp_path: Path) -> None:
    """A child that was opened before the parent here had come to the entry."""
    store = before_split(tmp_path)
    store.add_partition(2)
    store.append(SealEntry(2, 5 * EPOCH, b"somebody", b"a later config"))
    store.run_flush()
    apply_split(store)
    store.run_flush()
    assert store.holds(2)
    store.abandon()
    again = open_store(tmp_path)
    info = again.partitions[2]
    assert (info.applied_index, info.applied_epoch, info.log.last_index) == (3, EPOCH, 3)
    assert (info.sealed_epoch, info.config) == (5 * EPOCH, b"a later config")
    assert records(again, 2) == [HIGH]
    again.abandon()


@pytest.mark.parametrize("why", ["no member", "came from elsewhere", "was dropped"])
def test_what_is_not_needed_goes(tmp_path: Path, why: str) -> None:
    store = before_split(tmp_path)
    split_off = SPLIT_OFF
    if why == "no member":
        split_off = SPLIT_OFF._replace(config=None)
    else:
        store.add_partition(2)
        put_in_log(store, EntryRecord(2, 1, pack_entry(1, EPOCH, b"")))
        store.apply(2, 1, EPOCH, [(HIGH, pack_record(1, 1, b"from elsewhere"))], set())
        store.run_flush()
    if why == "was dropped":
        store.drop_partition(2)
    store.run_flush()
    apply_split(store, split_off)
    store.run_flush()
    delete_garbage(store)
    assert records(store, 1) == [LOW]
    kept = [
        storage_key
        for storage_key, _ in store.state.scan(store.partitions[1].meta.data_slot, b"", b"\xff" * 9)
    ]
    assert kept == [LOW]
    if why == "came from elsewhere":
        assert records(store, 2) == [HIGH]
    store.abandon()


def test_a_snapshot_of_before_the_split_reaches_as_far_as_the_partition_did(tmp_path: Path) -> None:
    """The range is the state's own: what was split off later, or twice, is still in a view of before."""
    store = before_split(tmp_path)
    store.run_flush()
    apply_split(store)
    put_in_log(store, EntryRecord(1, 4, pack_entry(4, EPOCH, b"split")))
    store.sync_now()
    store.apply(1, 4, EPOCH, [], set(), UpperHalf(3, b"\x10" + bytes(7), [], b"config"))
    reader = store.open_snapshot(1)
    assert reader.index == 2
    assert [key for kind, key, _ in reader.chunk(1 << 20) if kind == 1] == [LOW, HIGH]
    reader.close()
    store.abandon()
    store = open_store(tmp_path)  # replayed by the node, but not yet
    reader = store.open_snapshot(1)
    assert [key for kind, key, _ in reader.chunk(1 << 20) if kind == 1] == [LOW, HIGH]
    reader.close()
    store.abandon()
