"""Where a watch stands: every version it may begin after, every moment it may fall behind, across splits.
The watches of one partition over a log in memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

from metastore.core.entry import entry_payload, pack_entry
from metastore.core.machine import Machine
from metastore.core.replica import ACTIVE
from metastore.core.rows import Applied, changes_of
from metastore.errors import Compacted, MetastoreError, Moved, Unavailable
from metastore.keys import END_OF_RING
from metastore.operations import PUT
from metastore.partition.watches import PartitionWatches
from metastore.wire import frames
from metastore.wire.client_messages import WATCH_ANY

EPOCH = 1 << 16


class Reader:
    """One end of a connection: what it was told, watch by watch."""

    def __init__(self) -> None:
        self.full = False
        self.told: dict[int, int] = {}
        self.events: dict[int, list[tuple[int, bytes]]] = {}
        self.ended: dict[int, MetastoreError] = {}

    def congested(self, limit: int) -> bool:
        return self.full

    def write(self, data: bytes) -> None:
        for kind, (number, version, events) in frames.FrameDecoder().feed(data):
            assert kind == frames.EVENTS
            assert number not in self.ended
            assert version >= self.told.get(number, 0)
            self.told[number] = version
            self.events.setdefault(number, []).extend((at, storage_key) for _, storage_key, at, _ in events)
            assert all(at <= version for _, _, at, _ in events), "with a version it has all up to that"

    def watch_ended(self, number: int, error: MetastoreError) -> None:
        self.ended[number] = error


class Partition:
    """All that the watches of a partition need: a machine, and the log of what it applied."""

    p = 0
    role = ACTIVE
    listing_ns = 0

    def __init__(self) -> None:
        self.lo, self.hi = bytes(8), END_OF_RING
        self.state: dict[bytes, bytes] = {}
        self.machine = Machine(self.state.get)
        self.entries: list[bytes] = []
        self.base = self.applied = self.numbers = 0
        #: (version, key) of every change
        self.changes: list[tuple[int, bytes]] = []
        self.replica: Any = self
        self.store: Any = self
        self.agenda: Any = self
        me: Any = self
        self.watches = PartitionWatches(me, me, me, me)

    def feed(self, p: int) -> None: ...

    def refuse_range(self, start: bytes, end: bytes) -> None: ...

    def can_read(self, now: int) -> bool:
        return True

    has_quorum = can_read

    def elsewhere(self) -> MetastoreError:
        return Moved("it is another's")

    def has_state(self) -> bool:
        return self.applied > 0

    def read(self, first: int, max_bytes: int) -> list[bytes]:
        assert first > self.base
        return self.entries[first - 1 : first + 1]  # two at most: feeding goes by slices

    def write(self, *storage_keys: bytes) -> None:
        """One entry with these changes; without any, a new leader's."""
        ops = [(b"", [0, PUT, 0, k, 0, 0, 0, None, b"v", "", None]) for k in storage_keys]
        payload = self.machine.proposals.resolve(self.applied + 1, ops)[0] if ops else b""
        assert payload is not None
        self._apply(payload)

    def split(self, at: bytes) -> None:
        self.machine.proposals.count_above(at)
        self.machine.proposals.count_slice([(k, r) for k, r in self.state.items() if k >= at], None)
        payload = self.machine.proposals.resolve_split(
            self.applied + 1, EPOCH, 9, (1 << 64) - 1, [("n", "s")]
        )
        self.hi = at
        self._apply(payload)

    def _apply(self, payload: bytes) -> None:
        index = self.applied + 1
        applied: Applied = self.machine.apply(index, payload)
        self.entries.append(pack_entry(index, EPOCH, payload))
        self.applied = index
        for version, (storage_key, record) in enumerate(applied.changes, applied.base + 1):
            self.changes.append((version, storage_key))
            assert record is not None
            self.state[storage_key] = record
        if applied.split_result is not None:
            self.watches.split()
        self.watches.applied(index, applied)

    def watch(self, reader: Reader, start: bytes, end: bytes, after: int | None, flags: int = 0) -> int:
        self.numbers += 1
        number = self.numbers
        self.listing_ns = 0  # a turn of its own
        self.watches.add(reader, [number, 0, start, end, after, flags, b""])
        return number

    def pump(self) -> None:
        while self.watches.pump():
            pass

    def between(self, start: bytes, end: bytes, after: int, upto: int) -> list[tuple[int, bytes]]:
        return [(v, k) for v, k in self.changes if after < v <= upto and start <= k < end]


def key(rng: random.Random) -> bytes:
    return bytes([rng.randrange(256)]) + bytes(7) + b"n\0k"


def test_a_watch_begins_right_after_any_version() -> None:
    """Whatever the entries look like: of several changes, of none, new leaders'."""
    for seed in range(30):
        rng, host = random.Random(seed), Partition()
        for _ in range(20):
            host.write(*(key(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 5)))))
        for after in range(host.machine.last_version + 1):
            reader = Reader()
            number = host.watch(reader, bytes(8), END_OF_RING, after)
            host.pump()
            assert reader.events[number] == host.changes[after:], (seed, after)
            assert not reader.ended


@pytest.mark.parametrize("kept", [1, 2, 5, 12])
def test_what_is_not_kept_any_more_is_not_passed_over(kept: int) -> None:
    rng, host = random.Random(kept), Partition()
    for _ in range(20):
        host.write(*(key(rng) for _ in range(rng.choice((1, 1, 3)))))
    host.write()
    host.write()  # new leaders: of these there is no version to look at
    host.base = host.applied - kept
    lost = host.machine.last_version - sum(
        len(changes_of(entry_payload(e)).changes) for e in host.entries[-kept:]
    )
    for after in range(host.machine.last_version + 1):
        reader = Reader()
        number = host.watch(reader, bytes(8), END_OF_RING, after)
        host.pump()
        if after < lost:
            assert isinstance(reader.ended[number], Compacted)
        else:
            assert reader.events[number] == host.changes[after:]


def test_across_splits_however_far_behind() -> None:
    """Each watch has every change in its range up to the version it was told last, once, and that is never one
    which part of its range does not have."""
    moved = behind = 0
    for seed in range(150):
        rng, host = random.Random(seed), Partition()
        readers = [Reader() for _ in range(3)]
        began: list[tuple[Reader, int, bytes, bytes, int]] = []
        #: points that were split off, and at which version
        splits: list[tuple[bytes, int]] = []
        host.write(key(rng))
        for _ in range(60):
            dice = rng.random()
            if dice < 0.1:
                reader = rng.choice(readers)
                start, end = sorted([bytes([rng.randrange(256)]) + bytes(7), key(rng)[:8]])
                if rng.random() < 0.5:
                    start, end = host.lo, host.hi
                last = host.machine.last_version
                after = rng.choice((None, last, rng.randrange(last + 1)))
                number = host.watch(reader, start, end, after)
                if number not in reader.ended:
                    began.append((reader, number, start, end, last if after is None else after))
            elif dice < 0.25:
                reader = rng.choice(readers)
                reader.full = not reader.full
            elif dice < 0.3 and len(splits) < 3 and host.hi[0] > 8:
                at = bytes([rng.randrange(1, host.hi[0])]) + bytes(7)
                splits.append((at, host.machine.last_version))
                host.split(at)
            elif dice < 0.4:
                host.watches.pump()
            elif dice < 0.45:
                host.watches._progress_ns = -(10**18)
                host.watches.sweep(0)
            else:
                storage_keys = [k for k in (key(rng) for _ in range(rng.randrange(4))) if k < host.hi]
                host.write(*storage_keys)
            behind += len(host.watches._behind)
        for reader in readers:
            reader.full = False
        host.pump()
        for reader, number, start, end, after in began:
            parted = next((version for at, version in splits if at < end), None)
            if parted is not None and after > parted:
                pytest.fail("a watch of what another partition has was taken")
            upto = host.machine.last_version if parted is None else parted
            told = reader.told[number]
            assert told <= upto, seed
            assert reader.events.get(number, []) == host.between(start, end, after, upto), seed
            if parted is not None:
                assert told == upto, "it goes on from as far as all of its range was here"
                assert isinstance(reader.ended[number], Moved)
                moved += 1
            else:
                assert number not in reader.ended
    assert min(moved, behind) > 100


def test_nothing_begins_where_there_is_no_state() -> None:
    """A replica that was just opened knows no version at all, not version 0."""
    host, reader = Partition(), Reader()
    for after in (None, 0, 3):
        number = host.watch(reader, bytes(8), END_OF_RING, after, WATCH_ANY)
        assert isinstance(reader.ended[number], Unavailable)
    assert not reader.told
