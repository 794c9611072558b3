"""The store: what was durable is there after any crash, damage is told, state follows the log."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metastore.core.entry import entry_position, pack_entry
from metastore.errors import ConfigError, CorruptLog, CorruptState, StorageError
from metastore.records import pack_record
from metastore.storage.disk import Disk
from metastore.storage.options import StorageOptions
from metastore.storage.records import EntryRecord, Fact, SealEntry, TruncateEntry
from metastore.storage.state import DATA_TABLE, record_writes
from metastore.storage.store import Store
from tests.typed import put_in_log
from tests.unit.storage.engines import rot

SMALL = StorageOptions(segment_bytes=64 << 10, log_retention_bytes=128 << 10, cache_bytes=8 << 10)
P = 3


class QuickDisk(Disk):
    """Files as they are, without the syncs: what a process's own crash leaves is the same."""

    def create(self, path: Path, size: int) -> None:
        path.write_bytes(bytes(size))

    def sync(self, fd: int) -> None:
        pass

    def write_synced(self, fd: int, data: bytes, offset: int) -> None:
        self.write(fd, data, offset)

    def sync_folder(self, folder: Path) -> None:
        pass


def open_store(path: Path, options: StorageOptions = SMALL, disk: Disk | None = None) -> Store:
    return Store.open(path, cluster="c", node="n", options=options, disk=disk or QuickDisk())


def entry(index: int, epoch: int = 1, payload: bytes = b"") -> EntryRecord:
    return EntryRecord(P, max(0, index - 1), pack_entry(index, epoch, payload or b"payload-%d" % index))


def blobs(store: Store, p: int = P) -> list[bytes]:
    log = store.partitions[p].log
    return store.read_entries(p, log.base_index + 1, 1 << 30) if log.last_index > log.base_index else []


def record(number: int) -> bytes:
    return pack_record(number, number, b"value-%d" % number)


def storage_key(number: int, tail: bytes = b"") -> bytes:
    return (number * 7919 % 97).to_bytes(8, "big") + b"ns\0k%d" % number + tail


def segments(path: Path) -> list[Path]:
    return sorted((path / "log").glob("*.seg"))


# --- recovery of the log ---------------------------------------------------------------------


def test_reopened_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.created
    store.add_partition(P)
    store.append(SealEntry(P, 1 << 16, b"me", b"config"))
    store.append(Fact("largest_grant_ns", 5))
    for i in range(1, 21):
        put_in_log(store, entry(i))
        if i % 5 == 0:
            store.sync_now()
    before = blobs(store)
    store.abandon()
    again = open_store(tmp_path)
    info = again.partitions[P]
    assert not again.created
    assert again.store_id == store.store_id
    assert (info.sealed_epoch, info.owner, info.config) == (1 << 16, b"me", b"config")
    assert again.facts["largest_grant_ns"] == 5
    assert blobs(again) == before
    assert info.commit_index == 19
    assert again.durable_seq == store.durable_seq
    again.abandon()


def test_what_was_not_synced_may_go_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_partition(P)
    for i in range(1, 4):
        put_in_log(store, entry(i))
    store.sync_now()
    put_in_log(store, entry(4))  # buffered only
    store.abandon()
    again = open_store(tmp_path)
    assert [entry_position(b)[0] for b in blobs(again)] == [1, 2, 3]
    put_in_log(again, entry(4, 2, b"another"))
    again.sync_now()
    again.abandon()
    third = open_store(tmp_path)
    assert blobs(third)[-1] == pack_entry(4, 2, b"another")
    third.abandon()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_last_round_is_cut_off(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The last round is torn at any byte, zeroed or garbled: earlier rounds stay, it goes whole."""
    path = tmp_path_factory.mktemp("torn")
    store = open_store(path)
    store.add_partition(P)
    group_commits = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    index = 0
    ends = []
    for size in group_commits:
        for _ in range(size):
            index += 1
            put_in_log(store, entry(index, payload=os.urandom(data.draw(st.integers(1, 300)))))
        store.sync_now()
        ends.append((store.log.files.segments[-1].end, index))
    store.abandon()
    (start, kept), (end, _) = ends[-2], ends[-1]
    at = data.draw(st.integers(start, end - 1))
    how = data.draw(st.sampled_from(["zero", "garble", "flip"]))
    file = segments(path)[0]
    raw = bytearray(file.read_bytes())
    if how == "zero":
        raw[at:end] = bytes(end - at)
    elif how == "garble":
        raw[at:end] = os.urandom(end - at)
    else:
        raw[at] ^= 0x40
    file.write_bytes(raw)
    again = open_store(path)
    found = [entry_position(b)[0] for b in blobs(again)]
    if (
        how == "zero"
        and raw[start:end] == file.read_bytes()[start:end]
        and found == list(range(1, index + 1))
    ):
        again.abandon()  # the torn bytes happened to be zeros already: nothing was lost
        return
    assert found == list(range(1, kept + 1))
    # and what is written next is not mixed up with what was cut
    put_in_log(again, entry(kept + 1, 9, b"new"))
    again.sync_now()
    again.abandon()
    third = open_store(path)
    assert [entry_position(b) for b in blobs(third)][-1] == (kept + 1, 9)
    third.abandon()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_in_the_middle_stops_the_node(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """R14: a block that later ones vouch for does not check: told with file and offset, not cut."""
    path = tmp_path_factory.mktemp("damaged")
    store = open_store(path)
    store.add_partition(P)
    ends = []
    for i in range(1, 7):
        put_in_log(store, entry(i, payload=b"x" * 50))
        store.sync_now()
        ends.append(store.log.files.segments[-1].end)
    store.abandon()
    # blocks 1 to 4: each is followed by one written when it was known to be durable
    at = data.draw(st.integers(64, ends[3] - 1))
    file = segments(path)[0]
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    before = file.read_bytes()
    with pytest.raises(CorruptLog, match=r"seg.*offset \d+.*replace the node"):
        open_store(path)
    assert file.read_bytes() == before


def test_damage_that_only_the_state_vouches_for(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_partition(P)
    for i in (1, 2):
        put_in_log(store, entry(i))
        store.sync_now()
        store.apply(P, i, 1, [(storage_key(i), record(i))], set())
    store.run_flush()
    end = store.log.files.segments[-1].end
    store.abandon()
    file = segments(tmp_path)[0]
    raw = bytearray(file.read_bytes())
    raw[end - 3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptLog):
        open_store(tmp_path)


def test_a_missing_segment_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path, StorageOptions(segment_bytes=64 << 10, log_retention_bytes=1 << 30))
    store.add_partition(P)
    for i in range(1, 40):
        put_in_log(store, entry(i, payload=os.urandom(8000)))
        store.sync_now()
    store.abandon()
    files = segments(tmp_path)
    assert len(files) > 3
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(CorruptLog, match="missing"):
        open_store(tmp_path)
    files[1].write_bytes(kept)
    files[0].unlink()
    with pytest.raises(CorruptLog, match=r"0001\.seg is missing"):
        open_store(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
    st.randoms(),
)
def test_like_a_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]], rng: random.Random
) -> None:
    """Appends, truncations, flushes and crashes against a list of entries and a dict."""
    path = tmp_path_factory.mktemp("model")
    store = open_store(path)
    store.add_partition(P)
    entries: list[bytes] = []
    durable: list[bytes] = []
    epoch, applied = 1, 0
    for count, back, crash in steps:
        if back and len(entries) - back >= applied:
            put_in_log(store, TruncateEntry(P, len(entries) - back))
            del entries[len(entries) - back :]
            epoch += 1
        for _ in range(count):
            blob = pack_entry(len(entries) + 1, epoch, rng.randbytes(rng.randrange(1, 3000)))
            put_in_log(store, EntryRecord(P, applied, blob))
            entries.append(blob)
        if rng.random() < 0.8:
            store.sync_now()
            durable = entries[:]
            if rng.random() < 0.5 and applied < len(entries):
                applied += 1
                changes = [(storage_key(applied), record(applied))]
                store.apply(P, applied, entry_position(entries[applied - 1])[1], list(changes), set())
            if rng.random() < 0.3:
                store.run_flush()
        if crash:
            store.abandon()
            store = open_store(path)
            store.add_partition(P)  # unknown if nothing of it was durable
            entries = durable[:]
            again = store.partitions[P].applied_index
            assert again <= applied
            for i in range(again + 1, applied + 1):  # the driver applies again what is committed
                blob = store.read_entries(P, i, 1)[0]
                assert blob == entries[i - 1]
                store.apply(P, i, entry_position(blob)[1], [(storage_key(i), record(i))], set())
        base = store.partitions[P].log.base_index
        assert blobs(store) == entries[base:]
        for i in range(1, applied + 1):
            assert store.get(P, storage_key(i)) == record(i)
    store.abandon()


def test_segments_go_once_applied_and_beyond_retention(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    shortened: list[tuple[int, int]] = []
    store.retention.on_compacted = lambda p, index: shortened.append((p, index))
    store.add_partition(P)
    for i in range(1, 101):
        put_in_log(store, entry(i, payload=os.urandom(4000)))
        store.sync_now()
        if i <= 60:
            store.apply(P, i, 1, [(storage_key(i), record(i))], set())
        if i % 20 == 0:
            store.run_flush()
    first = store.partitions[P].log.base_index
    assert 0 < first <= 60, "only what is applied may go"
    assert shortened[-1] == (P, first)
    expect = blobs(store)
    assert entry_position(expect[0])[0] == first + 1
    store.abandon()
    again = open_store(tmp_path)
    found = blobs(again)
    # the first entry found serves as the base after a restart
    assert found == expect[len(expect) - len(found) :]
    assert len(expect) - len(found) <= 1
    assert again.partitions[P].applied_index == 60
    again.abandon()


def test_an_entry_taken_back_opens_the_log(tmp_path: Path) -> None:
    """The oldest entry kept was truncated later, and another applied in its predecessor's place."""
    store = open_store(tmp_path)
    store.add_partition(P)
    for i in range(1, 8):
        put_in_log(store, entry(i, 2, os.urandom(9000)))  # 1 to 7 fill the first segment
        store.sync_now()
    put_in_log(store, entry(8, 2, os.urandom(3000)))
    store.sync_now()
    assert len(store.log.files.segments) == 2
    put_in_log(store, TruncateEntry(P, 6))
    for i in range(7, 40):
        put_in_log(store, entry(i, 3, os.urandom(9000 if i > 8 else 10)))
        store.sync_now()
    for i in range(1, 8):
        store.apply(P, i, 2 if i < 7 else 3, [(storage_key(i), record(i))], set())
    store.run_flush()
    assert store.log.files.segments[0].number == 2
    expect = blobs(store)
    store.abandon()
    again = open_store(tmp_path)
    found = blobs(again)
    assert found == expect[-len(found) :]
    assert entry_position(found[0])[0] <= 8
    assert again.partitions[P].log.last_position() == (3, 39)
    again.abandon()


# --- the state -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_reads_and_scans_over_all_generations(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = open_store(tmp_path_factory.mktemp("scan"))
    store.add_partition(P)
    tails = [
        b"",
        b"/" + b"x" * 470,
        b"/" + b"x" * 481,
        b"/" + b"x" * 482 + b"a",
        b"/" + b"x" * 482 + b"b",
        b"/" + b"x" * 900,
    ]
    keys = [n.to_bytes(8, "big") + b"ns\0k%d" % (n % 3) + t for n in range(4) for t in tails]
    model: dict[bytes, bytes] = {}
    steps = st.lists(st.tuples(st.sampled_from(keys), st.booleans(), st.integers(0, 5)), max_size=40)
    for index, (key, delete, flush) in enumerate(data.draw(steps), 1):
        put_in_log(store, entry(index))
        value = None if delete else record(index)
        store.apply(P, index, 1, [(key, value)], set())
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value
        if flush == 0:
            store.run_flush()
    for key in keys:
        assert store.get(P, key) == model.get(key)
    start, end = sorted(data.draw(st.tuples(st.sampled_from(keys), st.sampled_from(keys))))
    for low, high in ((start, end), (b"", b"\xff" * 9)):
        expect = sorted((k, v) for k, v in model.items() if low <= k < high)
        assert store.scan(P, low, high, 1000, 1 << 30)[0] == expect
        assert store.scan(P, low, high, 2, 1 << 30)[0] == expect[:2]
    store.abandon()


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_partition(P)
    put_in_log(store, entry(1))
    store.apply(P, 1, 1, [(storage_key(1), record(1))], set())
    store.run_flush()
    rot(store.state, DATA_TABLE, 0, lambda key, row: (key, b"?" + row[1:]))
    with pytest.raises(CorruptState, match="checksum"):
        store.get(P, storage_key(1))
    store.abandon()


def test_aux_rows_are_those_of_the_applied_index(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_partition(P)
    rows = {b"m": b"0"}
    store.set_metadata_source(P, rows.get)
    for i in range(1, 6):
        put_in_log(store, entry(i))
        rows[b"m"] = b"%d" % i
        store.apply(P, i, 1, [], {b"m"})
        if i == 3:
            store.run_flush()
    store.abandon()
    again = open_store(tmp_path)
    assert again.partitions[P].applied_index == 3
    assert again.load_metadata(P) == [(b"m", b"3")]
    again.abandon()


# --- snapshots -----------------------------------------------------------------------------------


async def _copy(source: Store, target: Store, *, finish: bool = True) -> tuple[int, int]:
    reader = source.open_snapshot(P)
    installer = target.begin_install(P)
    while rows := reader.chunk(2000):
        await installer.add(rows)
    reader.close()
    if finish:
        await installer.finish(reader.index, reader.epoch)
    return reader.index, reader.epoch


async def test_a_snapshot_replaces_log_and_state_together(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    source.add_partition(P)
    source.set_metadata_source(P, {b"m": b"meta"}.get)
    for i in range(1, 301):
        put_in_log(source, entry(i, 2))
        source.apply(P, i, 2, [(storage_key(i, b"y" * (500 if i % 50 == 0 else 0)), record(i))], {b"m"})
    source.run_flush()
    target.add_partition(P)
    target.append(SealEntry(P, 3 << 16, b"o", b"c"))
    for i in range(1, 8):  # an old, conflicting log and state
        put_in_log(target, entry(i, 1, b"old"))
        if i <= 2:
            target.apply(P, i, 1, [(storage_key(i), record(1000 + i))], set())
    target.run_flush()
    # staged only: a crash leaves the old state whole
    await _copy(source, target, finish=False)
    target.abandon()
    target = open_store(tmp_path / "b")
    assert target.partitions[P].applied_index == 2
    assert target.get(P, storage_key(1)) == record(1001)
    assert len(target.scan(P, b"", b"\xff" * 9, 1000, 1 << 30)[0]) == 2
    index, epoch = await _copy(source, target)
    for _ in range(2):
        info = target.partitions[P]
        assert (info.applied_index, info.applied_epoch, index, epoch) == (300, 2, 300, 2)
        assert info.sealed_epoch == 3 << 16
        assert (info.log.base_index, info.log.last_index) == (300, 300), "an old entry came back"
        everything = (P, b"", b"\xff" * 9, 1000, 1 << 30)
        assert target.scan(*everything) == source.scan(*everything)
        assert target.load_metadata(P) == [(b"m", b"meta")]
        target.abandon()  # a crash right after the switch; the void entries are still in the log
        target = open_store(tmp_path / "b")
    put_in_log(target, entry(301, 4))
    target.sync_now()
    target.abandon()
    target = open_store(tmp_path / "b")
    assert target.partitions[P].log.last_position() == (4, 301)
    target.abandon()
    source.abandon()


async def test_a_switch_amid_flushes(tmp_path: Path) -> None:
    """While the switch is written another partition's flush comes due, and seals arrive: after
    a crash the snapshot stands, and what was acknowledged behind it."""
    store = open_store(tmp_path)
    for p in (P, 5):
        store.add_partition(p)
    store.start(asyncio.get_running_loop(), lambda seq: None, lambda error: None)
    for i in range(1, 4):
        put_in_log(store, entry(i))
        store.apply(P, i, 1, [(storage_key(i), record(i))], set())
    put_in_log(store, entry(1)._replace(p=5))
    store.apply(5, 1, 1, [(storage_key(1), record(1))], set())
    for i in range(4, 9):
        put_in_log(store, entry(i))  # not durable yet: their numbers may not be given out again
    installer = store.begin_install(P)
    await installer.add([(1, storage_key(77), record(77))])
    write, began = store.writer.run, []

    async def slow(work: object, *args: object) -> None:
        began.append(store.durable_seq)
        store.append(SealEntry(P, 1 << 16, b"me", b"config"))
        store.checkpoints.freeze()
        await asyncio.sleep(0.02)
        await write(work, *args)  # type: ignore[arg-type]

    store.writer.run = slow  # type: ignore[method-assign]
    await installer.finish(300, 2)
    assert began >= [9]
    put_in_log(store, entry(301, 2))
    await store.log.drain()
    for _ in range(50):
        store.checkpoints.freeze()
        await asyncio.sleep(0.002)
    store.abandon()
    again = open_store(tmp_path)
    info = again.partitions[P]
    assert (info.applied_index, info.sealed_epoch) == (300, 1 << 16)
    assert info.log.last_position() == (2, 301)
    assert [k for k, _ in again.scan(P, b"", b"\xff" * 9, 9, 1 << 20)[0]] == [storage_key(77)]
    assert again.get(5, storage_key(1)) == record(1)
    again.abandon()


# --- threads, processes, failing disks ---------------------------------------------------------------


class FailingDisk(Disk):
    failing = False

    def write_synced(self, fd: int, data: bytes, offset: int) -> None:
        if self.failing:
            raise OSError(5, "Input/output error")
        super().write_synced(fd, data, offset)


async def test_a_failed_sync_is_the_end(tmp_path: Path) -> None:
    """R14: nothing of that round is acknowledged, nothing is tried again, everything is refused."""
    disk = FailingDisk()
    store = open_store(tmp_path, disk=disk)
    store.add_partition(P)
    durable: list[int] = []
    failures: list[StorageError] = []
    store.start(asyncio.get_running_loop(), durable.append, failures.append)
    seq = put_in_log(store, entry(1))
    store.start_sync()
    while not durable:
        await asyncio.sleep(0)
    disk.failing = True
    lost = put_in_log(store, entry(2))
    store.start_sync()
    while not failures:
        await asyncio.sleep(0)
    assert durable[-1] == seq < lost
    disk.failing = False
    with pytest.raises(StorageError, match="cannot be written"):
        put_in_log(store, entry(3))
    await store.close()
    assert store.durable_seq == seq


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        open_store(tmp_path)
    store.abandon()
    with pytest.raises(ConfigError, match="belongs to node 'n', not 'm'"):
        Store.open(tmp_path, cluster="c", node="m")
    with pytest.raises(ConfigError, match="belongs to cluster 'c', not 'd'"):
        Store.open(tmp_path, cluster="d", node="n")
    identity = tmp_path / "store.json"
    identity.write_text(identity.read_text().replace('"format":3', '"format":2'))
    with pytest.raises(ConfigError, match=r"data format 2; this version reads 3: .*another, empty folder"):
        open_store(tmp_path)


WRITER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.unit.storage.test_store import *
async def main():
    store = open_store(Path({path!r}), disk=Disk())
    store.add_partition(P)
    loop = asyncio.get_running_loop()
    index = store.partitions[P].log.last_index
    for i in range(store.partitions[P].applied_index + 1, index + 1):
        store.apply(P, i, 1, [(storage_key(i), record(i))], set())
    start, first = index, store.last_seq
    store.start(loop, lambda seq: print(start + seq - first, flush=True), lambda e: sys.exit(str(e)))
    while True:
        for _ in range(3):
            index += 1
            store.append(entry(index, payload=b"z" * (index % 700 + 1)))
            store.apply(P, index, 1, [(storage_key(index), record(index))], set())
        store.start_sync()
        while store.last_seq - store.durable_seq > 30:
            await asyncio.sleep(0)
asyncio.run(main())
"""


def test_kill_9_at_any_instant(tmp_path: Path) -> None:
    """Everything a killed process had said to be durable is there, in log and state."""
    root = str(Path(__file__).parents[3])
    acknowledged = 0
    for turn in range(5):
        script = WRITER.format(root=root, path=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        deadline = time.monotonic() + 30
        for line in process.stdout:
            acknowledged = int(line)
            if random.random() < 0.004 + 0.002 * turn or time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL)
                break
        acknowledged = max([acknowledged, *(int(x) for x in process.stdout.read().split("\n")[:-1])])
        process.wait()
        store = open_store(tmp_path)
        info = store.partitions[P]
        assert info.log.last_index >= acknowledged
        assert info.applied_index <= info.log.last_index
        first = info.log.base_index + 1
        for offset, blob in enumerate(blobs(store)):
            i = first + offset
            assert blob == pack_entry(i, 1, b"z" * (i % 700 + 1))
        for i in range(1, info.applied_index + 1, 17):
            assert store.get(P, storage_key(i)) == record(i)
        store.abandon()
    assert acknowledged > 0


def test_a_short_scan_is_a_scan(tmp_path: Path) -> None:
    """What is read at once, when the overlay has nothing there, is what is read row by row; so are its bounds."""
    store = open_store(tmp_path)
    store.add_partition(P)
    slot, state = store.partitions[P].meta.data_slot, store.state
    keys = [(n // 10).to_bytes(8, "big") + b"ns%d\0k%d" % (n % 2, n) for n in range(40)]
    state.write([], record_writes(slot, {key: record(n) for n, key in enumerate(keys)}))
    state.write([], record_writes(slot + 1, {keys[0]: record(99)}))
    state.renew({})
    for start, end in (
        (b"", b"\xff" * 9),
        (keys[7], keys[31]),
        (keys[3][:8], keys[12][:8]),
        (b"\xff", b"\xff" * 9),
    ):
        rows = list(state.scan(slot, start, end))
        assert state.scan_short(slot, start, end, 99, 1 << 20, b"", 99) == (
            rows,
            None,
            (1 << 20) - size_of(rows),
        )
        ns1 = [row for row in rows if row[0].startswith(b"ns1\0", 8)]
        assert state.scan_short(slot, start, end, 99, 1 << 20, b"ns1\0", 99) == (
            ns1,
            None,
            (1 << 20) - size_of(ns1),
        )
        if len(rows) > 5:
            assert state.scan_short(slot, start, end, 5, 1 << 20, b"", 99) == (
                rows[:5],
                rows[5][0],
                (1 << 20) - size_of(rows[:5]),
            )
            assert state.scan_short(slot, start, end, 99, 1 << 20, b"none", 5) == ([], rows[5][0], 1 << 20)
            found = state.scan_short(slot, start, end, 99, size_of(rows[:2]), b"", 99)
            assert found == (rows[:2], rows[2][0], 0)
    store.abandon()


def size_of(rows: list[tuple[bytes, bytes]]) -> int:
    return sum(len(storage_key) + len(packed) for storage_key, packed in rows)


@pytest.mark.parametrize("damaged", [b"", b"abc", b"long enough for two checksums"])
def test_a_short_scan_finds_damage(tmp_path: Path, damaged: bytes) -> None:
    store = open_store(tmp_path)
    store.add_partition(P)
    store.state.write([], record_writes(store.partitions[P].meta.data_slot, {storage_key(1): record(1)}))
    rot(store.state, DATA_TABLE, 0, lambda key, row: (key, damaged))
    with pytest.raises(CorruptState):
        store.scan(P, b"", b"\xff" * 9, 9, 1 << 20)
    store.abandon()


def test_a_log_is_changed_under_the_sealed_epoch_only(tmp_path: Path) -> None:
    """R1: entries come, and a suffix goes, under the very epoch that is sealed; the storage write itself compares."""
    store = open_store(tmp_path)
    store.add_partition(P)
    store.append(SealEntry(P, 5, b"me", b"config"))
    store.append_entries(P, 5, 0, [entry(1).blob, entry(2).blob])
    for epoch in (0, 4, 6):
        with pytest.raises(StorageError, match=f"has sealed epoch 5; nothing is written under {epoch}"):
            store.truncate(P, epoch, 1)
        with pytest.raises(StorageError, match=f"has sealed epoch 5; nothing is written under {epoch}"):
            store.append_entries(P, epoch, 0, [entry(3).blob])
    assert store.partitions[P].log.last_index == 2
    store.truncate(P, 5, 1)
    store.sync_now()
    store.abandon()
    again = open_store(tmp_path)
    assert again.partitions[P].log.last_index == 1
    again.abandon()
