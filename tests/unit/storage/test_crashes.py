"""The log on a disk that loses what was not synced: killed, without power, with failed syncs.

The promise: what was called durable, or was found by a recovery that went on, is found by
every later one (R5, R6), and nothing else is ever found in its place.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from weakref import WeakSet

import pytest

from metastore.core.logindex import LogIndex
from metastore.errors import CorruptLog, StorageError
from metastore.storage.log import NodeLog
from metastore.storage.options import StorageOptions
from metastore.storage.partition_log import PartitionLog
from metastore.storage.records import Fact, Record
from metastore.storage.segments import BEGINNING, BLOCK_HEAD, SEGMENT_HEAD, SegmentFiles, block_bytes
from metastore.storage.state import Meta, record_writes
from metastore.storage.store import Store
from tests.typed import put_in_log
from tests.unit.storage.simdisk import Cut, SimDisk

FOLDER = Path("/sim/log")
SEGMENT_BYTES = 4096
#: disks with a store on them, as store.json says
BEGUN: WeakSet[SimDisk] = WeakSet()


class Run:
    """One process's life on the disk: what it found, what it wrote, what it was told is durable."""

    def __init__(self, disk: SimDisk) -> None:
        self.log = NodeLog(SegmentFiles(FOLDER, disk, "s" * 32, SEGMENT_BYTES), 1 << 20)
        self.values: list[int] = []
        if disk not in BEGUN:
            self.log.files.begin()
            BEGUN.add(disk)
        self.log.files.recover(BEGINNING, 0, lambda block: self.log.replay(block, self.take))
        self.durable = len(self.values)

    def take(self, seq: int, location: int, record: Record) -> None:
        assert isinstance(record, Fact)
        assert seq == len(self.values) + 1, "numbers without gaps"
        self.values.append(record.value[0])

    def round(self, random: Random, value: int) -> int:
        for _ in range(random.randint(1, 4)):
            self.log.append(Fact("k", [value, b"x" * random.choice((0, 10, 700))]))
            self.values.append(value)
            value += 1
        self.log.sync_now()
        self.durable = len(self.values)
        return value


@pytest.mark.parametrize("seed", range(1500))
def test_what_was_durable_or_found_stays(seed: int) -> None:
    random = Random(seed)
    disk = SimDisk(random)
    promised: list[int] = []
    value = 1
    for _ in range(random.randint(2, 7)):
        run: Run | None = None
        disk.cut_after = random.choice((None, random.randrange(12), random.randrange(60)))
        try:
            run = Run(disk)
            assert run.values[: len(promised)] == promised
            promised = list(run.values)
            for number in range(random.randint(0, 6)):
                if random.random() < 0.05:
                    disk.fail_next_sync = True
                value = run.round(random, value) if number else run.round(random, value + 1000)
        except Cut:
            pass
        except StorageError:
            if run is None or run.log.failure is None:  # a failed sync is told; nothing else may be
                raise
        if run is not None:
            promised = run.values[: run.durable] if run.durable > len(promised) else promised
            value = max([value, *run.values]) + 1
        disk.fail_next_sync = False
        if random.random() < 0.5:
            disk.power_loss()
        else:
            disk.kill()
    assert Run(disk).values[: len(promised)] == promised


def test_a_segment_made_and_not_begun_is_made_anew() -> None:
    """Killed between the making of the file and its header: the next one starts over."""
    disk = SimDisk(Random(1))
    disk.create(FOLDER / f"{1:016d}.seg", SEGMENT_BYTES)
    value = Run(disk).round(Random(1), 1)
    disk.power_loss()
    assert Run(disk).values == list(range(1, value))


def test_a_header_gone_bad_is_told() -> None:
    disk = SimDisk(Random(1))
    Run(disk).round(Random(1), 1)
    (file,) = disk.files.values()
    file.cache[: SEGMENT_HEAD.size] = bytes(SEGMENT_HEAD.size)
    disk.kill()
    with pytest.raises(CorruptLog, match="header"):
        Run(disk)


def test_a_value_that_looks_like_a_block_vouches_for_nothing() -> None:
    """Data under somebody's control holds what looks like a later block; the end is torn."""
    disk = SimDisk(Random(1))
    run = Run(disk)
    run.log.append(Fact("k", [1, b""]))
    run.log.sync_now()
    forged = block_bytes(1, 1, 99, b"")
    run.log.append(Fact("k", [2, forged]))
    run.log.sync_now()
    (file,) = disk.files.values()
    second = run.log.files.segments[0].end - len(forged) - 60
    at = file.cache.index(b"\xb1\x0cK\x9e", SEGMENT_HEAD.size + BLOCK_HEAD.size)
    assert at < second + 60
    file.cache[at + 4] ^= 0xFF  # the second block, torn before it was ever durable
    disk.kill()
    assert Run(disk).values == [1]


def test_slots_with_rows_are_never_given_out(tmp_path: Path) -> None:
    """A staged snapshot was left behind by a crash; a partition found only in the log gets a
    slot of its own."""
    options = StorageOptions(segment_bytes=64 << 10)
    store = Store.open(tmp_path, cluster="c", node="n", options=options)
    store.add_partition(1)
    store.run_flush()
    staged = store.slots.take()
    store.state.write([], record_writes(staged, {b"\0" * 8 + b"ns\0ghost": b"row"}))
    store.add_partition(2)
    from tests.unit.storage.test_store import entry

    put_in_log(store, entry(1)._replace(p=2))
    store.sync_now()
    store.abandon()
    again = Store.open(tmp_path, cluster="c", node="n", options=options)
    assert again.get(2, b"\0" * 8 + b"ns\0ghost") is None
    assert again.scan(2, b"", b"\xff" * 9, 10, 1 << 20)[0] == []
    again.abandon()


def test_a_truncated_top_does_not_keep_segments_for_ever() -> None:
    log = NodeLog(SegmentFiles(FOLDER, SimDisk(Random(1)), "s" * 32, SEGMENT_BYTES), 1 << 20)
    log.partitions[1] = PartitionLog(LogIndex())
    assert log._is_applied(1, 9, 0), "entries up to 9 were taken back"
    log.partitions[1].append(1, 1, 0)
    assert not log._is_applied(1, 9, 0)


def test_meta_round_trip() -> None:
    meta = Meta(3, 5, 1 << 16, 5, 2 << 16, b"o", b"c", 77, True)
    assert Meta.unpack(meta.pack()) == meta
