"""Splits (R18) on whole nodes, by directed schedules: what random ones meet too seldom."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from cellctl.bootstrap import bootstrap
from metastore.client import AsyncClient
from metastore.coordination.interface import Put
from metastore.core.events import TransferWanted
from metastore.errors import MetastoreError
from metastore.keys import storage_key_of
from metastore.layout import Layout, SplitRecord
from metastore.partition.state import PartitionState
from tests.simulation.planting import Planter, must_be_seen, plant
from tests.simulation.process.etcd import SimCoordinator
from tests.simulation.process.loop import SimLoop
from tests.simulation.process.plans import Plan
from tests.simulation.process.process import Process
from tests.simulation.process.reading import StaleReader
from tests.simulation.process.world import SECOND, World, surroundings

LAYOUT = Layout("sim")


class Schedule:
    """A world without faults, its operator and one client."""

    def __init__(self, seed: int, **plan: Any) -> None:
        self.world = world = World(seed, Plan(faults={}, workloads={}, drift_ppm=0, **plan), name="directed")
        for process in world.processes.values():
            process.start()
        coordinator = SimCoordinator(world.network, world.etcd, "operator")
        cells = {"c1": list(world.processes)}
        world.await_(world.operator, lambda: bootstrap(coordinator, "sim", cells, world.plan.partitions), 10)
        world.until(world.all_led, 10, "no leaders")
        self.loop = SimLoop(world.events, "clients0", world.network)

        async def begin() -> AsyncClient:
            client = AsyncClient([f"{name}:1" for name in sorted(world.processes)], cluster="sim")
            await client.dispatcher.start(5.0)
            return client

        self.client = world.await_(self.loop, begin, 10)
        self.ns = self.client.namespace("n")

    def leader(self, p: int) -> Process:
        return next(
            q
            for q in self.world.processes.values()
            if q.runs and p in q.node.partitions and q.node.partitions[p].replica.role == "active"
        )

    def want_split(self, p: int) -> tuple[int, bytes]:
        """An operator asks for it: the child, and its first point."""
        config, child = self.world.config(p), self.world.plan.partitions
        at = (config.lo + config.hi) // 2
        puts = [
            Put(LAYOUT.next_partition, b"%d" % (child + 1)),
            Put(LAYOUT.split(p), SplitRecord(p, child, at, "test").to_json()),
        ]
        self.world.etcd.txn([], puts, [])
        return child, at.to_bytes(8, "big")

    def keys(self, p: int, count: int) -> list[str]:
        config = self.world.config(p)
        lo, hi = config.lo.to_bytes(8, "big"), config.hi.to_bytes(9, "big")[1:] or b"\xff" * 9
        hi = b"\xff" * 9 if config.hi >> 64 else hi
        names = (f"k{i}/x" for i in range(10_000))
        return [k for k in names if lo <= storage_key_of("n", k) < hi][:count]

    def put_all(self, keys: list[str], value: bytes = b"v", patience_s: float = 20) -> None:
        async def put() -> None:
            for key in keys:
                await self.ns.put(key, value)

        self.world.await_(self.loop, put, patience_s)

    def read_all(self, keys: list[str]) -> dict[str, str]:
        """Of each key the value, or what the client was told."""

        async def get() -> dict[str, str]:
            found = {}
            for key in keys:
                try:
                    record = await self.ns.get(key, deadline_s=3)
                    found[key] = "nothing" if record is None else record.value.decode()
                except Exception as e:
                    found[key] = f"{type(e).__name__}: {e}"
            return found

        return self.world.await_(self.loop, get, 4 * len(keys))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with surroundings():
        yield


@pytest.mark.parametrize("seed", [1, 2])
def test_etcd_goes_away_right_after_the_entry_is_proposed(seed: int) -> None:
    """I8, R18: what is above the point serves on without etcd, and etcd is told when it is back."""
    s = Schedule(seed, nodes=3, partitions=1)
    keys = s.keys(0, 40)
    s.put_all(keys)
    child, _ = s.want_split(0)
    processes = s.world.processes.values()
    s.world.run(5 * SECOND, lambda: any(q.node.partitions[0].replica.parting for q in processes))
    s.world.etcd.up = False
    s.world.run(3 * SECOND)
    assert LAYOUT.config("c1", child) not in s.world.etcd.kvs, "(the schedule was not met)"
    assert set(s.read_all(keys).values()) == {"v"}
    s.put_all(keys, b"w")
    leader = s.leader(child)
    leader.crash("is killed", longest_ms=2000)
    s.world.run(4 * SECOND)  # R16: another one leads the child, and etcd does not know of either
    assert set(s.read_all(keys).values()) == {"w"}
    s.put_all(keys, b"x")
    s.world.etcd.up = True
    s.world.until(lambda: LAYOUT.config("c1", child) in s.world.etcd.kvs, 10, "etcd is not told")
    s.world.until(s.world.all_led, 10, "no leaders")
    s.world.until(s.world.all_equal, 10, "replicas differ")
    assert set(s.read_all(keys).values()) == {"x"}
    assert s.world.events.failure is None


class OnlyInTheLog:
    """Three replicas of ``p``: ``a`` leads and has applied the entry that splits it; ``b`` has acknowledged it, was killed
    before it heard what became of it, and is down; ``c`` is cut off and has not got it. The log of ``a`` goes on
    without the entry, since another partition, which ``a`` and a fourth node have, has rolled it."""

    def __init__(self, seed: int, *, b_lives: bool = False, without_etcd: bool = False) -> None:
        self.s = s = Schedule(seed, nodes=4, partitions=2)
        self.world = world = s.world
        members = {p: {n for n, _ in world.config(p).replicas} for p in (0, 1)}
        assert members[0] != members[1], "(the schedule cannot be met)"
        p, q = 0, 1
        self.both = sorted(members[p] & members[q])
        self.a = self.led_by_one_of_both(p)
        self.d = world.processes[next(iter(members[q] - members[p]))]
        self.b, self.c = (world.processes[n] for n in sorted(members[p] - {self.a.name}))
        self.keys, self.others = s.keys(p, 40), s.keys(q, 60)
        s.put_all(self.keys)
        self.child, at = s.want_split(p)
        self.lower = [k for k in self.keys if storage_key_of("n", k) < at]
        self.entry = self.acknowledged_by_b(p)
        if not b_lives:
            self.b.die(silently=False)
            self.b.disk.kill()
        elif without_etcd:
            world.etcd.up = False
        world.until(lambda: self.a.node.store.holds(self.child), 5, "the fork is not durable")
        world.until(lambda: s.leader(q).name in (self.a.name, self.d.name), 10, "the other one is not led")
        s.put_all(self.others * 3, bytes(2000), 60)
        assert self.a.node.store.partitions[p].log.base_index >= self.entry, "(the schedule was not met)"

    def led_by_one_of_both(self, p: int) -> Process:
        s, leader = self.s, self.s.leader(p)
        if leader.name not in self.both:
            replica = leader.node.partitions[p].replica

            def hand_over() -> None:
                if replica.can_transfer(self.both[0]):
                    leader.node.core.handle(leader.loop.now_ns(), TransferWanted(p, self.both[0]))
                    leader.node.ticks.run_effects()

            leader.loop.enter(hand_over)
            s.world.run(SECOND)
            s.world.until(s.world.all_led, 5, "no leader")
        return s.leader(p)

    def acknowledged_by_b(self, p: int) -> int:
        world, a, b, c = self.world, self.a, self.b, self.c
        host = a.node.partitions[p]
        world.run(5 * SECOND, lambda: bool(host.replica.parting))
        entry = host.replica.log.last_index
        self.cut = [(a.name, c.name), (c.name, a.name), (b.name, c.name), (c.name, b.name)]
        for x, y in self.cut:
            world.network.reset_between(x, y)
        world.network.shut_links(self.cut)
        world.run(SECOND, lambda: b.node.store.partitions[p].log.last_index >= entry)
        seq = b.node.store.last_seq
        world.run(SECOND, lambda: b.node.store.durable_seq >= seq)
        world.network.shut_links([(a.name, b.name)])
        world.run(SECOND, lambda: host.applied >= entry)
        assert b.node.partitions[p].applied < entry <= host.applied, "(the schedule was not met)"
        return entry

    def reconnect(self) -> None:
        self.world.network.open_links([*self.cut, (self.a.name, self.b.name)])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_child_has_a_quorum_while_one_replica_has_what_it_began_with(seed: int) -> None:
    """R18, S2: nobody lost a disk, so the child serves, though two of three get the parent by snapshot, past the
    entry. The parent's log goes on without the entry before the last one is back."""
    s = OnlyInTheLog(seed)
    world, schedule = s.world, s.s
    s.reconnect()
    world.until(world.all_led, 10, "no leaders")
    schedule.put_all(s.lower * 3, b"v")
    schedule.put_all(s.others * 3, bytes(2000), 60)
    assert s.a.node.store.partitions[0].log.base_index > s.entry, "(the schedule was not met)"
    assert set(schedule.read_all(s.keys).values()) == {"v"}
    s.b.restart()
    world.until(world.all_equal, 10, "replicas differ")
    assert set(schedule.read_all(s.keys).values()) == {"v"}
    assert world.events.failure is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_snapshot_of_the_parent_takes_no_childs_rows(seed: int) -> None:
    """R17, R18, S1: two of three disks have what was acknowledged above the point. The one that had applied the
    entry is lost as soon as another has installed the parent's snapshot past the entry."""
    s = OnlyInTheLog(seed)
    world, host = s.world, s.c.node.partitions[0]
    s.reconnect()
    world.run(20 * SECOND, lambda: host.applied >= s.entry)
    assert host.applied >= s.entry
    assert s.c.node.store.holds(s.child), "S1: the rows are gone here, and the child is not here"
    s.a.die(silently=False)
    s.b.restart()
    world.until(world.all_led, 10, "no leaders")
    assert set(s.s.read_all(s.keys).values()) == {"v"}
    assert world.events.failure is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_hears_of_the_child_knows_that_the_entry_is_committed(seed: int) -> None:
    """R18, S2: b has the entry, and is told by etcd of what it split off before the parent's leader tells that it
    is committed; it may never tell."""
    s = OnlyInTheLog(seed, b_lives=True)
    world, host = s.world, s.b.node.partitions[0]
    world.until(lambda: host.applied >= s.entry, 2, "the entry is not applied")
    world.until(lambda: s.b.node.store.holds(s.child), 2, "the child is not there")
    assert world.network.is_shut((s.a.name, s.b.name)), "(the schedule was not met)"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_member_is_told_of_the_child_without_etcd(seed: int) -> None:
    """R18, S2: c never gets the entry; the parent's log goes on without it, and etcd is away. Both halves go on with
    c when b is gone."""
    s = OnlyInTheLog(seed, b_lives=True, without_etcd=True)
    world, schedule = s.world, s.s
    s.reconnect()
    assert set(schedule.read_all(s.keys).values()) == {"v"}
    world.until(lambda: s.c.node.store.holds(s.child), 10, "the child is not there")
    s.b.die(silently=False)
    world.run(3 * SECOND)
    schedule.put_all(s.keys, b"w")
    assert set(schedule.read_all(s.keys).values()) == {"w"}
    assert world.events.failure is None


# --- a replica that has nothing of the child yet (R8) -------------------------------------------------------------------------


def read_where_nothing_is(seed: int) -> None:
    """``c`` does not get the entry that splits the partition, and opens the child empty when it has waited long enough.
    Meanwhile a client reads and lists records of the beginning, of any age, at any replica. Raises Violation."""
    s = Schedule(seed, nodes=3, partitions=1)
    world, a = s.world, s.leader(0)
    reader = StaleReader(s.client, [], seed, lambda: world.events.now, list)
    world.await_(s.loop, lambda: reader.begin([f"k{i}/x" for i in range(20)]), 10)
    b, c = (q for q in world.processes.values() if q is not a)
    child, at = s.want_split(0)
    assert any(storage_key_of("old", key) >= at for key in reader.old)
    parent = a.node.partitions[0]
    world.run(5 * SECOND, lambda: bool(parent.replica.parting))
    cut = [(a.name, c.name), (c.name, a.name), (b.name, c.name), (c.name, b.name)]
    for x, y in cut:
        world.network.reset_between(x, y)
    world.network.shut_links(cut)
    world.until(lambda: child in c.node.partitions, 5, "the child is not opened")
    assert c.node.partitions[child].replica.is_empty, "(the schedule was not met)"

    async def look() -> None:
        rng = random.Random(seed)
        for _ in range(100):
            with contextlib.suppress(MetastoreError):
                await reader.read_old(rng)

    world.await_(s.loop, look, 60)
    assert c.node.partitions[child].replica.is_empty, "(the schedule was not met)"
    reader.judge({}, {})
    world.network.open_links(cut)
    world.until(world.all_equal, 10, "replicas differ")
    assert world.events.failure is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_has_nothing_yet_says_nothing(seed: int) -> None:
    read_where_nothing_is(seed)


def nothing_is_a_state(patch: Planter) -> None:
    """R8: a replica that has nothing yet answers as if there were no records."""
    patch.setattr(PartitionState, "has_state", lambda self: True)


def test_who_has_nothing_yet_and_says_so_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    must_be_seen(nothing_is_a_state, plant("stale", 1), monkeypatch, [2, 3], read_where_nothing_is)
