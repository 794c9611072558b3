"""What the disk was told to keep it keeps, or the store says so (R14): a bit anywhere, a file that is not there."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest

from metastore.core.entry import entry_position, pack_entry
from metastore.core.fences import FENCE_PREFIX
from metastore.core.rows import digest_key
from metastore.errors import (
    ConfigError,
    CorruptLog,
    CorruptState,
    CorruptTree,
    RottenEntry,
    StorageError,
)
from metastore.records import pack_record
from metastore.storage import damage as damage_module
from metastore.storage.memory_engine import MemorySnapshot
from metastore.storage.options import StorageOptions
from metastore.storage.records import EntryRecord, Fact, SealEntry
from metastore.storage.rows import SUMS_BYTES
from metastore.storage.scrub import RottenBlock
from metastore.storage.segments import BLOCK_HEAD, SEGMENT_HEAD
from metastore.storage.snapshot import DATA
from metastore.storage.snapshot import METADATA as AUX_ROW
from metastore.storage.state import (
    DATA_TABLE,
    MAP_TABLE,
    METADATA_TABLE,
    TABLES,
    GarbageRange,
    State,
    record_writes,
)
from metastore.storage.store import Store
from tests.processes import copy_of_running
from tests.typed import put_in_log
from tests.unit.storage.engines import FaultyEngine, lmdb_state, rot, rows_in
from tests.unit.storage.test_store import SMALL, open_store, segments

E1 = 1 << 16
OPTIONS = replace(SMALL, segment_bytes=8 << 10, log_retention_bytes=16 << 10, cache_bytes=0)
KEYS = [bytes([n]) * 8 + b"ns\0key-%d" % n for n in range(1, 6)] + [b"\x03" * 8 + b"ns\0" + b"long" * 130]
ABSENT = [b"\0" * 8 + b"ns\0a", b"\x03" * 8 + b"ns\0b", b"\xf0" * 8 + b"ns\0c", KEYS[-1] + b"d"]
FENCE = digest_key(FENCE_PREFIX, b"ns\0lock")
METADATA = {b"m": b"meta of the machine", FENCE: msgpack.packb([b"ns\0lock", 0x7766554433])}
#: what a store says that does not trust its disk
TOLD = (CorruptLog, CorruptState, ConfigError)


def made(path: Path) -> None:
    """Two partitions, everything flushed, so that the state vouches for all of the log."""
    store = open_store(path, OPTIONS)
    for p in (1, 2):
        store.add_partition(p)
        store.set_metadata_source(p, METADATA.get)
        store.append(SealEntry(p, E1, b"owner", b"config"))
    store.append(Fact("largest_grant_ns", 900))
    store.keep_rows({b"head": b"of the map", b"nodes/n1": b"where it is"}, complete=True)
    for index, key in enumerate(KEYS, 1):
        for p in (1, 2):
            put_in_log(store, EntryRecord(p, index - 1, pack_entry(index, E1, b"payload-%d" % index)))
            value = pack_record(index, 1, b"value-%d-%d" % (p, index))
            store.apply(p, index, E1, [(key, value)], set(METADATA))
        store.sync_now()
    put_in_log(store, EntryRecord(2, 6, pack_entry(7, E1, b"not committed")))
    store.run_flush()
    store.abandon()


def answers(path: Path) -> list[Any]:
    """Everything that the store says, question by question; damage that is told is an answer."""
    store = open_store(path, OPTIONS)
    everything = b"", b"\xff" * 9
    questions: list[Callable[[], Any]] = [
        lambda: (store.facts, store.store_id, list(store.partitions)),
        store.kept.found,
    ]
    for p, info in store.partitions.items():
        slot = info.meta.slot
        questions += [
            partial(lambda info: (info.meta, info.log.last_position()), info),
            partial(store.read_entries, p, info.log.base_index + 1, 1 << 20),
            partial(store.load_metadata, p),
            partial(store.scan, p, *everything, 100, 1 << 20),
            partial(lambda slot: list(store.state.scan(slot, *everything)), slot),
        ]
        for key in KEYS + ABSENT:
            few = key[:8], key[:8] + b"\xff"
            questions += [
                partial(store.get, p, key),
                partial(store.scan, p, *few, 100, 1 << 20),
                partial(lambda slot, few: list(store.state.scan(slot, *few)), slot, few),
                partial(store.scan, p, key, b"\xff" * 9, 1, 1 << 20),
            ]
    found = [asked(question) for question in questions]
    store.abandon()
    return found


def asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except TOLD:
        return TOLD


def ranges(path: Path, file: Path) -> Iterator[int]:
    """The offsets in ``file`` that hold something."""
    raw = file.read_bytes()
    if file.name != "data.mdb":
        yield from range(len(raw.rstrip(b"\0")))
        return
    store = open_store(path, OPTIONS)
    patterns = [b"data", b"aux", b"meta", b"map"]
    for table in (*TABLES, MAP_TABLE):
        patterns += [key + row for key, row in rows_in(store.state, table)]
    store.abandon()
    for pattern in patterns:
        at = raw.find(pattern)
        assert at >= 0, "a row lies in one piece"
        while at >= 0:  # also where an older version of the page is
            yield from range(at, at + len(pattern))
            at = raw.find(pattern, at + 1)


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory, if there is one: thousands of stores are opened, each with its syncs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


LOG, STATE = "log/0000000000000001.seg", "state/data.mdb"


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("store.json", 1),
        (LOG, 17),
        (STATE, 17),
        pytest.param(LOG, 1, marks=pytest.mark.nightly),
        pytest.param(STATE, 1, marks=pytest.mark.nightly),
    ],
)
def test_each_byte(quick_path: Path, name: str, every: int) -> None:
    """A bit of each byte in turn, or of one byte in ``every``: the same answers, or damage is told; never a wrong answer."""
    path, kept = quick_path / "store", quick_path / "kept"
    made(path)
    before = answers(path)
    file = path / name
    told = 0
    offsets = list(ranges(path, file))[::every]
    shutil.copytree(path, kept)
    raw = bytearray(file.read_bytes())
    for offset in offsets:
        raw[offset] ^= 1 << offset % 8
        file.write_bytes(raw)
        raw[offset] ^= 1 << offset % 8
        after = asked(lambda: answers(path))
        told += after is TOLD or TOLD in after
        for was, now in zip(before, before if after is TOLD else after, strict=True):
            assert now in (was, TOLD), f"damage at {offset} of {name} passes for truth"
        for other in (p for p in kept.rglob("*") if p.is_file() and p.name != "LOCK"):
            shutil.copyfile(other, path / other.relative_to(kept))
    assert told > len(offsets) * (0.2 if name == STATE else 0.95)


def test_a_bit_that_rots_while_the_node_runs(tmp_path: Path) -> None:
    """I2: each byte of an entry's record on disk, its index and epoch among them, is looked at when it is read back."""
    store = open_store(tmp_path, OPTIONS)
    store.add_partition(1)
    store.append(SealEntry(1, 7 << 16, b"me", b"config"))
    blobs = [pack_entry(i, 5 << 16, b"payload-%d" % i) for i in range(1, 4)]
    for blob in blobs:
        put_in_log(store, EntryRecord(1, 0, blob))
        store.sync_now()
    file = segments(tmp_path)[0]
    raw = bytearray(file.read_bytes())
    start = raw.index(blobs[1])
    commit = range(start - 8, start)  # said when it came; recovery alone looks at it, by the block's checksum
    for offset in range(start - 17, start + len(blobs[1])):
        raw[offset] ^= 1
        file.write_bytes(raw)
        raw[offset] ^= 1
        if offset in commit:
            assert store.read_entries(1, 2, 1) == blobs[1:2]
        else:
            with pytest.raises(CorruptLog, match=r"seg offset \d+"):
                store.read_entries(1, 2, 1)
    store.abandon()


# --- borders: nothing found is not all is well ------------------------------------------------------


@pytest.mark.parametrize("in_second", [True, False])
@pytest.mark.parametrize("how", ["first block", "all blocks", "the file"])
def test_damage_to_the_oldest_segment(tmp_path: Path, in_second: bool, how: str) -> None:
    """Partition 1 has acknowledged, durable entries that are not applied (a follower that has not heard of the
    commit). A flush saves the other partition's state, and its checkpoint lies behind those records."""
    store = open_store(tmp_path)
    for p in (1, 2):
        store.add_partition(p)
        store.append(SealEntry(p, E1, b"me", b"config"))
    store.sync_now()
    for i in range(1, 11):
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, b"payload-%d" % i)))
    store.run_flush()
    i = 0
    while len(segments(tmp_path)) < 2:  # the other's records fill the segment and begin the next
        i += 1
        put_in_log(store, EntryRecord(2, 0, pack_entry(i, E1, b"x" * 4000)))
        store.apply(2, i, E1, [], set())
        store.sync_now()
    store.run_flush()
    if in_second:
        put_in_log(store, EntryRecord(2, 0, pack_entry(i + 1, E1, b"x" * 4000)))
        store.sync_now()
    store.abandon()
    file = segments(tmp_path)[0]
    raw = bytearray(file.read_bytes())
    if how == "the file":
        file.unlink()
    elif how == "all blocks":
        file.write_bytes(raw[: SEGMENT_HEAD.size] + bytes(len(raw) - SEGMENT_HEAD.size))
    else:
        raw[SEGMENT_HEAD.size + 60] ^= 1
        file.write_bytes(raw)
    with pytest.raises(CorruptLog, match=r"0001\.seg"):
        open_store(tmp_path)


def test_the_log_begins_where_the_state_says(tmp_path: Path) -> None:
    """After compaction too: the oldest segment left may not be missing, nor lack its first block. One that was on its
    way out when the process was killed goes."""
    store = open_store(tmp_path, OPTIONS)
    store.add_partition(1)
    i = 0
    while segments(tmp_path)[0].name.startswith("0000000000000001"):
        i += 1
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, b"x" * 1500)))
        store.sync_now()
        store.apply(1, i, E1, [], set())
        if i == 5:
            oldest = segments(tmp_path)[0].read_bytes()
        if i % 5 == 0:
            store.run_flush()
    store.abandon()
    (tmp_path / "log" / "0000000000000001.seg").write_bytes(oldest)
    again = open_store(tmp_path, OPTIONS)
    assert again.partitions[1].log.last_index == i
    again.abandon()
    first = segments(tmp_path)[0]
    assert not first.name.endswith("1.seg")
    raw = bytearray(first.read_bytes())
    raw[SEGMENT_HEAD.size + 50] ^= 4
    first.write_bytes(raw)
    with pytest.raises(CorruptLog, match=f"{first.name} is corrupt at offset {SEGMENT_HEAD.size} "):
        open_store(tmp_path, OPTIONS)
    first.unlink()
    with pytest.raises(CorruptLog, match=f"{first.name} is missing"):
        open_store(tmp_path, OPTIONS)


def nothing_flushed(path: Path) -> None:
    store = open_store(path)
    store.add_partition(1)
    for i in range(1, 4):
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, b"acknowledged")))
    store.sync_now()
    store.abandon()


@pytest.mark.parametrize("fill", [made, nothing_flushed])
@pytest.mark.parametrize(
    ("gone", "error", "message"),
    [
        ("log", CorruptLog, "log is missing though"),
        ("log/0000000000000001.seg", CorruptLog, r"0001\.seg is missing"),
        ("state", CorruptState, r"data\.mdb is missing though"),
        ("state/data.mdb", CorruptState, r"data\.mdb is missing though"),
        ("store.json", (CorruptLog, CorruptState), r"store\.json is missing though"),
        ("store.json and log", None, ""),
    ],
)
def test_parts_that_are_missing(
    tmp_path: Path, fill: Callable[[Path], None], gone: str, error: type[Exception] | None, message: str
) -> None:
    """Also when nothing was ever flushed: what was acknowledged may be in the part that is missing."""
    fill(tmp_path)
    for name in gone.split(" and "):
        part = tmp_path / name
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()
    if error is None:
        error, message = CorruptState, r"store\.json is missing though there is a state"
        if fill is nothing_flushed:
            open_store(
                tmp_path
            ).abandon()  # nothing tells it from a creation that was cut short: a new store (R13)
            return
    for _ in range(2):  # and the next start says the same
        with pytest.raises(error, match=message):
            open_store(tmp_path)


def test_a_state_of_another_store(tmp_path: Path) -> None:
    for name in "ab":
        made(tmp_path / name)
    shutil.copyfile(tmp_path / "a" / "state" / "data.mdb", tmp_path / "b" / "state" / "data.mdb")
    with pytest.raises(CorruptState, match="is not the state of store"):
        open_store(tmp_path / "b")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"[]", b"null", b'{"format":3}', b'{"format":3,"crc":1}']
)
def test_an_identity_that_is_none(tmp_path: Path, content: bytes) -> None:
    made(tmp_path)
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(CorruptLog, match=r"store\.json is damaged"):
        open_store(tmp_path)


def test_a_creation_that_is_cut_short_begins_anew(tmp_path: Path) -> None:
    """Killed before store.json is written, whatever else is there already."""
    store = open_store(tmp_path)
    store.abandon()
    (tmp_path / "store.json").unlink()
    (tmp_path / "log" / "0000000000000002.new").write_bytes(b"")
    again = open_store(tmp_path)
    assert again.created
    assert again.store_id != store.store_id
    again.abandon()
    open_store(tmp_path).abandon()


def test_a_slot_that_nobody_has_is_not_emptied_of_what_rotted(tmp_path: Path) -> None:
    """The slot in a row's key rots: it is not taken for what a crash left behind, and deleted."""
    made(tmp_path)
    store = open_store(tmp_path, OPTIONS)
    slot = store.partitions[2].meta.slot
    key, row = next(
        (k, r) for k, r in rows_in(store.state, METADATA_TABLE) if k[:4] == slot.to_bytes(4, "big")
    )
    store.abandon()
    file = tmp_path / "state" / "data.mdb"
    raw = file.read_bytes()
    assert key + row in raw
    file.write_bytes(raw.replace(key + row, b"\0\0\0\x77" + key[4:] + row))
    assert asked(lambda: answers(tmp_path)) is TOLD


def test_a_rotten_key_is_not_deleted() -> None:
    """It may be another's: a slot that is emptied goes row by row, and each is the one that was put there."""
    state = State(FaultyEngine(), True)
    keys = [b"\0" * 8 + b"ns\0%d" % n for n in range(5)]
    for slot in (5, 6):
        state.write([], record_writes(slot, dict.fromkeys(keys, b"record")))
    rot(state, DATA_TABLE, 7, lambda key, row: (key[:3] + b"\5" + key[4:] + b"x", row))
    there = rows_in(state, DATA_TABLE)
    with pytest.raises(CorruptTree):
        state.delete_step(GarbageRange(0, 5, 5))
    assert rows_in(state, DATA_TABLE) == there


def test_a_table_that_cannot_be_walked_is_told() -> None:
    class Broken(FaultyEngine):
        def snapshot(self) -> MemorySnapshot:
            raise self.unreadable("page not found")

    state = State(FaultyEngine(), True)
    state.engine = Broken()
    with pytest.raises(CorruptTree, match=r"table data of the state cannot be read \(page not found\)"):
        state.check_rows("data", b"", 1)


# --- the scrub ----------------------------------------------------------------------------------------


async def scrubbed(path: Path, options: StorageOptions = OPTIONS) -> tuple[list[Any], Store]:
    """One pass over a store: the damage that it finds."""
    store = open_store(path, options)
    found: list[Any] = []
    store.scrub.on_found = found.append
    await store.scrub.one_pass()
    return found, store


async def test_a_scrub_reads_everything(tmp_path: Path) -> None:
    made(tmp_path)
    found, store = await scrubbed(tmp_path)
    assert not found
    tables = (*TABLES, MAP_TABLE)
    rows = sum(len(key) + len(row) for table in tables for key, row in rows_in(store.state, table))
    assert store.scrub.bytes == rows + store.log.files.segments[0].end - SEGMENT_HEAD.size
    assert store.stats()["scrub_passes_total"] == 1
    store.abandon()


async def test_a_scrub_finds_each_row(tmp_path: Path) -> None:
    """Whichever it is: a value by its key; a key that has rotted says that nothing can be looked for any more."""
    made(tmp_path)
    file = tmp_path / "state" / "data.mdb"
    good = file.read_bytes()
    store = open_store(tmp_path, OPTIONS)
    rows = {table: rows_in(store.state, table) for table in (*TABLES, MAP_TABLE)}
    store.abandon()
    for table, pairs in rows.items():
        for key, row in pairs:
            value = len(key) + len(row) - SUMS_BYTES
            for at in (0, len(key) - 1, len(key), value - 1, value, len(key) + len(row) - 1):
                garbled = bytearray(key + row)
                garbled[at] ^= 0x80
                file.write_bytes(good.replace(key + row, garbled))
                state = lmdb_state(tmp_path / "state", False)
                try:
                    _, _, bad = state.check_rows(table, b"", 1 << 30)
                    found: list[bytes] = []
                    after: bytes | None = b""
                    while after is not None:  # and by slices of a row each
                        after, _, some = state.check_rows(table, after, 1)
                        found += some
                except CorruptTree:
                    assert at < len(key) or at >= value
                else:
                    assert bad == found == [key]
                    assert len(key) <= at < value
                state.close()
    file.write_bytes(good)


async def test_keys_that_are_out_of_order(tmp_path: Path) -> None:
    """What was put while another key was rotten may lie where nobody finds it, also when that one is gone."""
    made(tmp_path / "good")
    astray = 0
    for at in range(12):
        path = tmp_path / str(at)
        shutil.copytree(tmp_path / "good", path)
        file = path / "state" / "data.mdb"
        state = lmdb_state(path / "state", False)
        key, row = rows_in(state, DATA_TABLE)[at]
        state.close()
        rotten = b"\x77" + key[1:]
        file.write_bytes(file.read_bytes().replace(key + row, rotten + row))
        state = lmdb_state(path / "state", False)
        state.write([], [(b"\0\0\0\x05" + KEYS[0], b"where it does not belong")])
        state.close()
        file.write_bytes(file.read_bytes().replace(rotten + row, key + row))
        state = lmdb_state(path / "state", False)
        keys = [k for k, _ in rows_in(state, DATA_TABLE)]
        if keys != sorted(keys):
            astray += 1
            with pytest.raises(CorruptTree):
                state.check_rows("data", b"", 1 << 30)
        else:
            assert state.check_rows("data", b"", 1 << 30)[2] == []
        state.close()
    assert astray


async def test_a_scrub_finds_a_block(tmp_path: Path) -> None:
    """Any byte of any block, in any segment; what is not written yet, and what is compacted, is none of its business."""
    store = open_store(tmp_path, OPTIONS)
    store.add_partition(1)
    starts = []
    for i in range(1, 13):
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, bytes([i]) * (50 if i % 3 else 2500))))
        store.sync_now()
        starts.append(store.log.partitions[1].locations[-1] - BLOCK_HEAD.size)
    assert len(store.log.files.segments) > 1
    put_in_log(store, EntryRecord(1, 0, pack_entry(13, E1, b"waits")))
    found: list[Any] = []
    store.scrub.on_found = found.append
    await store.scrub.one_pass()
    assert not found
    for segment in store.log.files.segments:
        raw = segment.path.read_bytes()
        for at in [*range(SEGMENT_HEAD.size, segment.end, 97), segment.end - 1]:
            garbled = bytearray(raw)
            garbled[at] ^= 1
            segment.path.write_bytes(garbled)
            await store.scrub.one_pass()
            block = max(start for start in starts if start <= segment.number << 32 | at)
            assert found == [RottenBlock(segment.number, block & 0xFFFFFFFF)]
            found.clear()
        segment.path.write_bytes(raw)
    store.abandon()


@pytest.mark.parametrize("applied", [True, False])
async def test_a_rotten_segment_goes_once_the_state_has_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    """And if it cannot, since an entry in it is not committed yet, the store ends."""
    monkeypatch.setattr(damage_module, "LET_GO_S", 20.0 if applied else 0.1)
    options = replace(OPTIONS, log_retention_bytes=1 << 20, scrub_bytes_s=1 << 20)
    store = open_store(tmp_path, options)
    store.add_partition(1)
    for i in range(1, 13):
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, bytes(2500))))
        store.sync_now()
        if applied or i < 2:
            store.apply(1, i, E1, [], set())
    store.hold_log(1, 0)  # a follower is about to need it: it gets a snapshot
    first = segments(tmp_path)[0]
    raw = bytearray(first.read_bytes())
    raw[SEGMENT_HEAD.size + 90] ^= 1
    first.write_bytes(raw)
    failed: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failed.append)
    while not failed and first.exists():
        await asyncio.sleep(0.01)
    if applied:
        assert not failed
        assert store.log.files.segments[0].number == 2, "and no more than that"
    else:
        assert "is corrupt at offset 64; replace the node" in str(failed[0])
    await store.close()
    if applied:
        open_store(tmp_path, options).abandon()


async def test_rot_that_the_scrub_finds_ends_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry in it is not committed, and nowhere else."""
    monkeypatch.setattr(damage_module, "LET_GO_S", 0.2)
    made(tmp_path)
    store = open_store(tmp_path, replace(OPTIONS, scrub_bytes_s=1 << 20))
    file = segments(tmp_path)[0]
    raw = bytearray(file.read_bytes())
    raw[SEGMENT_HEAD.size + 90] ^= 1
    file.write_bytes(raw)
    failed = asyncio.get_running_loop().create_future()
    store.start(asyncio.get_running_loop(), lambda seq: None, failed.set_result)
    assert "is corrupt at offset 64; replace the node" in str(await failed)
    await store.close()


# --- a damaged copy is rebuilt ----------------------------------------------------------------------------


def rotten_row(path: Path, table: str, at: int) -> None:
    """A bit in the value of a row rots."""
    store = open_store(path, OPTIONS)
    key, row = rows_in(store.state, table)[at]
    store.abandon()
    file = path / "state" / "data.mdb"
    raw = file.read_bytes()
    assert key + row in raw
    file.write_bytes(raw.replace(key + row, key + bytes([row[0] ^ 8]) + row[1:]))


@pytest.mark.parametrize(("table", "count"), [("data", 12), ("aux", 4)])
async def test_rot_is_found_by_whose_it_is(tmp_path: Path, table: str, count: int) -> None:
    made(tmp_path / "good")
    for at in range(count):
        shutil.copytree(tmp_path / "good", tmp_path / str(at))
        rotten_row(tmp_path / str(at), table, at)
        store = open_store(tmp_path / str(at), OPTIONS)
        found: list[int] = []
        store.damage.on_rotten = lambda p, error, found=found: found.append(p)  # type: ignore[misc]
        await store.scrub.one_pass()
        assert found == [at // (count // 2) + 1]
        store.abandon()


@pytest.mark.parametrize("at", range(12))
async def test_the_state_is_replaced_and_the_log_stays(tmp_path: Path, at: int) -> None:
    """A snapshot as of entry 4 takes the place of a damaged state at 6; what rotted goes with the old slot, and what is
    another's stays."""
    made(tmp_path)
    good = answers(tmp_path)
    rotten_row(tmp_path, "data", at)
    store = open_store(tmp_path, OPTIONS)
    p = at // 6 + 1
    installer = store.begin_install(p)
    rows = [(DATA, key, pack_record(n, 1, b"value-%d-%d" % (p, n))) for n, key in enumerate(KEYS[:4], 1)]
    await installer.add([*rows, *((AUX_ROW, key, row) for key, row in METADATA.items())])
    assert await installer.rebuild(4, E1)
    info = store.partitions[p]
    assert (info.applied_index, info.log.last_index) == (4, 6 if p == 1 else 7)
    for n in (5, 6):
        value = pack_record(n, 1, b"value-%d-%d" % (p, n))
        store.apply(p, n, E1, [(KEYS[n - 1], value)], set(METADATA))
    store.run_flush()
    for garbage in store.slots.garbage:
        while store.state.delete_step(garbage):
            pass
    await store.scrub.one_pass()
    assert store.damage.count == 0, "nothing of it is left"
    for key in KEYS:
        for q in (1, 2):
            assert store.get(q, key) in good
            assert store.get(q, key) is not None
    store.abandon()
    again = open_store(tmp_path, OPTIONS)
    assert [again.partitions[q].applied_index for q in (1, 2)] == [6, 6]
    assert all(len(again.scan(q, b"", b"\xff" * 9, 100, 1 << 20)[0]) == 6 for q in (1, 2))
    again.abandon()


@pytest.mark.parametrize("written", [False, True])
async def test_killed_while_it_is_replaced(tmp_path: Path, written: bool) -> None:
    """Before the transaction the damage is found again; after it, the log has what follows the snapshot."""
    made(tmp_path)
    rotten_row(tmp_path, "data", 2)
    store = open_store(tmp_path, OPTIONS)
    installer = store.begin_install(1)
    await installer.add(
        [(DATA, key, pack_record(n, 1, b"value-1-%d" % n)) for n, key in enumerate(KEYS[:4], 1)]
    )
    if written:
        assert await installer.rebuild(4, E1)
    store.abandon()
    again = open_store(tmp_path, OPTIONS)
    info = again.partitions[1]
    assert info.log.last_index == 6
    assert info.commit_index == 6, "what was applied once is known to be committed"
    assert info.applied_index == (4 if written else 6)
    if written:
        assert [entry_position(b)[0] for b in again.read_entries(1, 5, 1 << 20)] == [5, 6]
        assert len(again.scan(1, b"", b"\xff" * 9, 100, 1 << 20)[0]) == 4
    else:
        with pytest.raises(CorruptState):
            again.scan(1, b"", b"\xff" * 9, 100, 1 << 20)
    again.abandon()


async def test_a_snapshot_that_the_log_does_not_reach_down_to(tmp_path: Path) -> None:
    made(tmp_path)
    store = open_store(tmp_path, OPTIONS)
    store.log.partitions[1].compact(5)
    assert not await store.begin_install(1).rebuild(4, E1)
    assert not await store.begin_install(1).rebuild(9, E1)
    assert store.partitions[1].applied_index == 6
    store.abandon()


# --- a segment that is written still ------------------------------------------------------------------------


@pytest.mark.parametrize("by_a_read", [True, False])
async def test_a_segment_that_is_written_still_is_left(tmp_path: Path, by_a_read: bool) -> None:
    """Whoever finds that it has rotted: what is logged from then on goes to the next one, and it goes itself. Killed at
    any moment the store has what it had, or says that it is damaged."""
    options = replace(OPTIONS, log_retention_bytes=1 << 20, scrub_bytes_s=0 if by_a_read else 1 << 20)
    store = open_store(tmp_path / "store", options)
    store.add_partition(1)
    for i in range(1, 4):
        put_in_log(store, EntryRecord(1, 0, pack_entry(i, E1, b"payload-%d" % i)))
        store.sync_now()
        store.apply(1, i, E1, [(KEYS[i], pack_record(i, 1, b"v%d" % i))], set())
    assert len(store.log.files.segments) == 1
    first = segments(tmp_path / "store")[0]
    raw = bytearray(first.read_bytes())
    raw[(store.log.partitions[1].locations[1] & 0xFFFFFFFF) + 40] ^= 1
    first.write_bytes(raw)
    failed: list[StorageError] = []
    store.start(asyncio.get_running_loop(), lambda seq: None, failed.append)
    if by_a_read:
        with pytest.raises(RottenEntry) as e:
            store.read_entries(1, 2, 1)
        assert store.read_entries(1, 1, 1 << 20) == [pack_entry(1, E1, b"payload-1")], "what comes before it"
        store.rotten_entry(e.value)
        store.rotten_entry(e.value)
    moments = 0
    while not failed and first.exists():
        moments += 1
        killed = tmp_path / f"killed-{moments}"
        copy_of_running(tmp_path / "store", killed)
        again = asked(lambda killed=killed: open_store(killed, options))  # type: ignore[misc]
        if again is not TOLD:
            assert {r for _, r in again.scan(1, b"", b"\xff" * 9, 10, 1 << 20)[0]} <= {
                pack_record(i, 1, b"v%d" % i) for i in range(1, 4)
            }
            assert again.partitions[1].log.last_index == 3, "nothing that was durable is missed in silence"
            again.abandon()
        shutil.rmtree(killed)
        await asyncio.sleep(0.01)
    assert not failed
    assert moments > 1
    assert store.log.files.segments[0].number == 2
    put_in_log(store, EntryRecord(1, 0, pack_entry(4, E1, b"on")))
    await store.close()
    again = open_store(tmp_path / "store", options)
    assert again.partitions[1].log.last_index == 4
    assert len(again.scan(1, b"", b"\xff" * 9, 10, 1 << 20)[0]) == 3
    again.abandon()
