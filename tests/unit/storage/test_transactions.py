"""Killed, or without power, before and after every transaction of the state and every step of the log: a script of all
that a store does is cut off at each of its steps in turn. What is recovered is what was promised, and a state that
the partition once had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from metastore.core.entry import entry_position, pack_entry
from metastore.core.messages import Seen
from metastore.core.rows import UpperHalf
from metastore.records import pack_record
from metastore.storage.folder import Folder
from metastore.storage.options import StorageOptions
from metastore.storage.records import ConfigEntry, EntryRecord, SealEntry
from metastore.storage.snapshot import DATA, METADATA
from metastore.storage.state import State
from metastore.storage.store import Store
from tests.typed import put_in_log
from tests.unit.storage.engines import FaultyEngine
from tests.unit.storage.simdisk import Cut, SimDisk

FOLDER = Path("/sim")
OPTIONS = StorageOptions(segment_bytes=2 << 10, log_retention_bytes=4 << 10, cache_bytes=0)
EPOCH, LATER = 1 << 16, 2 << 16
AT = b"\x80" + bytes(7)
KEYS = [bytes([0x11 * n]) * 8 + b"ns\0k%d" % n for n in range(1, 15)]
#: entry 12 of partition 1 splits off partition 2, that of partition 4 splits off partition 5, which was opened empty before
SPLIT = 12
CHILDREN = {1: 2, 4: 5}
#: what they do is what these do
LIKE = {1: 1, 2: 2, 3: 3, 4: 1, 5: 2}
AUX_KEY = b"m"

State_ = dict[bytes, bytes]


class Steps:
    """One count for disk and state: the process ends in step ``left``; None = it lives."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.done = 0

    def tick(self) -> bool:
        self.done += 1
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


class Disk(SimDisk):
    def __init__(self, steps: Steps) -> None:
        super().__init__(Random(1))
        self.steps = steps

    def _tick(self) -> bool:
        return self.steps.tick()


class Engine(FaultyEngine):
    def __init__(self, steps: Steps) -> None:
        super().__init__(self._step)
        self.steps = steps

    def _step(self) -> None:
        if self.steps.tick():
            raise Cut


def change(p: int, index: int) -> tuple[bytes, bytes | None]:
    """What entry ``index`` of a partition does, always the same; those of partition 2 lie above the point."""
    p = LIKE[p]
    key = KEYS[7 + index % 7] if p == 2 else KEYS[(3 * index) % 14]
    if p == 1 and index > SPLIT:
        key = KEYS[index % 7]
    return key, None if index % 5 == 0 else pack_record(index, 1, b"%d-%d" % (p, index))


def blob(p: int, index: int, epoch: int = EPOCH) -> bytes:
    return pack_entry(index, epoch, b"%d-%d" % (p, index) * 12)


def state_at(p: int, applied: int) -> State_:
    """The records of a partition as of an entry."""
    p = LIKE[p]
    found: State_ = {}
    whole = 1 if p == 2 else p
    for index in range(1, applied + 1):
        q = p if p == 2 and index > SPLIT else whole
        if index != SPLIT or p == 3:
            key, record = change(q, index)
            if record is None:
                found.pop(key, None)
            else:
                found[key] = record
    if p == 2:
        return {key: record for key, record in found.items() if key >= AT}
    return {key: record for key, record in found.items() if p == 3 or applied < SPLIT or key < AT}


def map_at(number: int) -> dict[bytes, bytes]:
    """The rows kept beside the facts after their change ``number``: many at 1 and 8, one each in between."""
    found: dict[bytes, bytes] = {}
    for n in range(1, number + 1):
        if n in (1, 8):
            found = {}
        found |= map_change(n)
        found.pop(b"nodes/%d" % (n % 7), None)
    return found


def map_change(n: int) -> dict[bytes, bytes]:
    names = range(12) if n in (1, 8) else [n % 12]
    return {b"head": b"%d" % n, **{b"nodes/%d" % name: b"%d-" % n * 25 for name in names}}


class Facts:
    """What else was called durable: the largest grant given (R8), the records that are known, which processes ran, and how
    far the log of the newest had come, as that was told (R13)."""

    def __init__(self) -> None:
        self.grant = 0
        self.configs: dict[int, int] = {}
        self.runs: list[str] = []
        self.mark = 0


class Life:
    """One process's life on a disk, and what was promised to others so far."""

    def __init__(
        self,
        disk: Disk,
        engine: Engine,
        created: bool,
        promised: dict[int, int],
        sealed: dict[int, int],
        facts: Facts | None = None,
    ) -> None:
        self.promised, self.sealed = promised, sealed
        self.facts = facts or Facts()
        #: number of the last change of the kept rows that was durable
        self.kept = 0
        folder = Folder(FOLDER, {"store_id": "s" * 32}, not created)
        self.store = Store(folder, disk, State(engine, not created), OPTIONS)
        for p in self.store.partitions:
            self.store.set_metadata_source(p, self.metadata(p))
        self.map = self.store.kept.found()

    def metadata(self, p: int) -> Callable[[bytes], bytes | None]:
        return lambda key: b"%d" % self.store.partitions[p].applied_index

    # --- what the driver does ------------------------------------------------------------------

    def run(self, name: str) -> None:
        """A process begins: durable before its first message."""
        self.store.raise_generation(name)
        self.facts.runs.append(name)
        self.facts.mark = 0

    def tell(self) -> None:
        """Peers hear how far the log has come."""
        if self.facts.runs:
            self.facts.mark = max(self.facts.mark, self.store.mark)

    def grant(self, largest: int) -> None:
        self.store.keep_fact("largest_grant_ns", largest)
        self.facts.grant = largest

    def know(self, p: int, number: int) -> None:
        self.store.append(ConfigEntry(p, b"%d" % number))
        self.store.sync_now()
        self.facts.configs[p] = number

    def seal(self, p: int, epoch: int = EPOCH) -> None:
        self.store.add_partition(p)
        self.store.set_metadata_source(p, self.metadata(p))
        if self.store.partitions[p].sealed_epoch < epoch:
            self.store.append(SealEntry(p, epoch, b"me", b"0"))
            self.store.sync_now()
            self.sealed[p] = epoch

    def keep(self, number: int) -> None:
        """A change of the kept rows, durable when this returns."""
        gone = {b"nodes/%d" % (number % 7): None}
        self.store.keep_rows({**map_change(number), **gone}, complete=number in (1, 8))
        self.store.sync_now()
        self.kept = number

    def write(self, p: int, upto: int, epoch: int = EPOCH) -> None:
        """Entries up to ``upto``, durable, and so acknowledged."""
        for index in range(self.store.partitions[p].log.last_index + 1, upto + 1):
            put_in_log(self.store, EntryRecord(p, 0, blob(p, index, epoch)))
        self.store.sync_now()
        self.promised[p] = max(self.promised.get(p, 0), upto)
        self.tell()

    def apply(self, p: int, upto: int) -> None:
        info = self.store.partitions[p]
        for index in range(info.applied_index + 1, upto + 1):
            epoch = info.log.epoch_at(index)
            if p in CHILDREN and index == SPLIT:
                child = CHILDREN[p]
                split_off = UpperHalf(child, AT, [(AUX_KEY, b"%d" % SPLIT)], b"0")
                self.store.apply(p, index, epoch, [], {AUX_KEY}, split_off)
                self.store.set_metadata_source(child, self.metadata(child))
            else:
                self.store.apply(p, index, epoch, [change(p, index)], {AUX_KEY})

    def flush(self) -> None:
        self.store.run_flush()
        while self.store.slots.garbage and self.store.durable_seq >= self.store.slots.garbage[0].seq:
            garbage = self.store.slots.garbage[0]
            if not self.store.state.delete_step(garbage):
                self.store.slots.garbage.remove(garbage)

    def snapshot(self, p: int, index: int, *, rebuild: bool = False) -> None:
        """One of another replica is installed; ``rebuild``: in the place of a damaged state."""

        async def install() -> None:
            installer = self.store.begin_install(p)
            records = sorted(state_at(p, index).items())
            for at in range(0, len(records), 3):
                await installer.add([(DATA, key, record) for key, record in records[at : at + 3]])
            await installer.add([(METADATA, AUX_KEY, b"%d" % index)])
            if rebuild:
                assert await installer.rebuild(index, EPOCH)
            else:
                await installer.finish(index, EPOCH)

        self.store.sync_now()
        asyncio.run(install())

    def drop(self, p: int) -> None:
        self.promised.pop(p, None)  # from here on nobody counts on it
        self.facts.configs.pop(p, None)
        self.store.drop_partition(p)
        self.store.sync_now()

    # --- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        store = self.store
        for p, upto in self.promised.items():
            info = store.partitions[p]
            assert info.log.last_index >= upto, f"partition {p}: {upto} was acknowledged"
        for p, epoch in self.sealed.items():
            assert store.partitions[p].sealed_epoch >= epoch, (
                "R1, R10: a seal stays, whatever becomes of the copy"
            )
        for p, info in store.partitions.items():
            if info.dropped:
                assert info.applied_index == info.log.last_index == 0
                continue
            self.check_state(p)
            first = info.log.base_index + 1
            if first <= info.log.last_index:
                for number, found in enumerate(store.read_entries(p, first, 1 << 30), first):
                    assert entry_position(found) == (number, info.log.epoch_at(number))
                    if info.log.epoch_at(number) == EPOCH:
                        assert found == blob(p, number)
        number = int(self.map.get(b"head", b"0"))
        assert number >= self.kept, f"the kept rows are of change {number}, and {self.kept} was durable"
        assert self.map == map_at(number), "they are as they were at one change"
        for p, q in CHILDREN.items():  # S3
            parent, child = store.partitions.get(p), store.partitions.get(q)
            there = child is not None and child.applied_index >= SPLIT
            assert (parent is not None and parent.applied_index >= SPLIT) == there, "both or neither"
        self.check_facts()

    def check_facts(self) -> None:
        store, facts = self.store, self.facts
        assert store.facts.get("largest_grant_ns", 0) >= facts.grant, "R8: a grant is forgotten"
        for p, number in facts.configs.items():
            assert int(store.partitions[p].config or b"-1") >= number, (
                f"partition {p}: its record is forgotten"
            )
        lineage = store.lineage
        ran = [run.incarnation for run in lineage.runs][::-1]
        assert ran[: len(facts.runs)] == facts.runs, "R13: a process that ran is forgotten"
        if facts.runs:
            told = Seen(len(facts.runs), facts.runs[-1], facts.mark)
            assert lineage.begun("next", store.log.last_seq).has(told), "R13: a mere restart is an old copy"

    def check_state(self, p: int) -> None:
        info = self.store.partitions[p]
        found = dict(self.store.scan(p, b"", b"\xff" * 9, 10_000, 1 << 30)[0])
        applied = info.applied_index
        assert found == state_at(p, applied), f"partition {p} at {applied}"
        if applied and (LIKE[p] != 2 or applied > SPLIT):
            assert dict(self.store.load_metadata(p)).get(AUX_KEY) == b"%d" % applied

    def finish(self) -> None:
        """What a later life does: apply what the log has, save it, and be whole."""
        store = self.store
        for p, info in list(store.partitions.items()):
            if not info.dropped and info.log.epoch_at(info.log.last_index) in (0, EPOCH):
                self.apply(p, info.log.last_index)
        self.flush()
        self.flush()
        self.check()


def script(life: Life) -> None:
    """Everything that a store does."""
    life.run("first")
    life.grant(100)
    life.seal(1)
    life.know(1, 1)
    life.write(1, 4)
    life.keep(1)
    life.apply(1, 3)
    life.keep(2)
    life.flush()
    life.seal(3)
    life.write(3, 3)
    life.apply(3, 2)
    life.write(1, 9)
    life.apply(1, 8)
    life.store.truncate(3, EPOCH, 2)  # a suffix that was not committed gives way
    life.promised[3] = 2
    life.write(3, 5)
    life.snapshot(3, 9)
    life.promised[3] = 9
    life.write(3, 11)
    life.flush()
    life.write(1, SPLIT + 1)
    life.apply(1, SPLIT + 1)  # and what it splits off, which is opened once it is durable
    life.flush()
    life.seal(2)
    life.write(2, SPLIT + 2)
    life.apply(2, SPLIT + 1)
    life.flush()
    life.write(1, SPLIT + 6)
    life.apply(1, SPLIT + 5)
    life.snapshot(1, SPLIT + 4, rebuild=True)
    life.apply(1, SPLIT + 6)
    life.seal(4)
    life.seal(5)  # opened empty, before its parent has come to the entry
    life.write(4, SPLIT + 1)
    life.know(5, 2)
    life.apply(4, SPLIT + 1)  # what is split off takes the empty one's place
    life.write(1, SPLIT + 7)
    life.flush()
    life.write(5, SPLIT + 2)
    life.grant(200)
    life.drop(3)
    life.run("second")
    life.know(1, 3)
    life.write(1, SPLIT + 9)
    life.flush()
    life.seal(3, LATER)  # taken up again, empty
    life.write(3, 6)
    life.apply(3, 4)
    for upto in range(SPLIT + 12, SPLIT + 42, 3):  # so that segments go, once what is in them is applied
        if upto == SPLIT + 27:
            life.apply(3, 6)
        life.write(1, upto)
        life.apply(1, upto)
        life.write(2, upto)
        life.keep((upto - SPLIT - 12) // 3 + 3)
        life.apply(2, upto)
        life.flush()
    life.snapshot(2, SPLIT + 50)
    life.promised[2] = SPLIT + 50
    life.flush()


def run(left: int | None) -> tuple[Disk, Engine, bool, Life | None, int]:
    steps = Steps(left)
    disk, engine = Disk(steps), Engine(steps)
    promised: dict[int, int] = {}
    sealed: dict[int, int] = {}
    facts = Facts()
    life: Life | None = None
    created = False
    try:
        life = Life(disk, engine, False, promised, sealed, facts)
        created = True
        script(life)
    except Cut:
        pass
    steps.left = None
    return disk, engine, created, life, steps.done


TOTAL = run(None)[4]


def test_the_script_does_it_all() -> None:
    _, _, _, life, steps = run(None)
    assert life is not None
    life.kept = 0  # of what it found
    life.check()
    assert life.store.log.files.segments[0].number >= 3
    assert steps == TOTAL > 200


@pytest.mark.parametrize("power", [False, True], ids=["killed", "without power"])
@pytest.mark.parametrize("part", range(8))
def test_cut_off_at_each_step(power: bool, part: int) -> None:
    for left in range(part, TOTAL, 8):
        disk, engine, created, life, _ = run(left)
        promised, sealed = (life.promised, life.sealed) if life is not None else ({}, {})
        facts = life.facts if life is not None else Facts()
        kept = life.kept if life is not None else 0
        disk.power_loss() if power else disk.kill()
        # the first recovery may be cut off as well
        disk.steps.left = left % 23
        try:
            again = Life(disk, engine, created, dict(promised), dict(sealed), facts)
        except Cut:
            disk.power_loss() if power else disk.kill()
            disk.steps.left = None
            again = Life(disk, engine, created, dict(promised), dict(sealed), facts)
        disk.steps.left = None
        try:
            again.kept = kept
            again.check()
            for p, info in again.store.partitions.items():  # what was found is promised from here on
                if not info.dropped:
                    promised[p] = info.log.last_index
            disk.power_loss()
            again = Life(disk, engine, True, dict(promised), dict(sealed), facts)
            again.kept = kept
            again.check()
            again.finish()
            last = Life(disk, engine, True, dict(promised), dict(sealed), facts)
            last.kept = kept
            last.check()
        except AssertionError as e:
            raise AssertionError(f"cut off in step {left} of {TOTAL}: {e}") from e
