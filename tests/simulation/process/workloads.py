"""What clients do in the simulated world; each workload ends with a check of its own."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from metastore.client import AsyncClient
from metastore.errors import MetastoreError
from metastore.keys import storage_key_of
from metastore.routing.dispatcher import RequestIds
from tests.chaos.mixed import LOOKS, Mixed, homes_of
from tests.chaos.traffic import Traffic
from tests.checkers.history import Operation
from tests.checkers.linearizability import check_group, check_versions, groups
from tests.integration.harness import keys_by_partition
from tests.simulation.process.loop import SimLoop
from tests.simulation.process.reading import StaleReader, WatchReader, truth_of
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.process.world import World


class Workloads:
    """Plans name the methods that begin a workload, and how many of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loops: list[SimLoop] = []
        self.traffics: list[tuple[SimLoop, Traffic | Mixed]] = []
        self.counters: list[tuple[SimLoop, Counter]] = []
        self.stale: list[tuple[SimLoop, StaleReader]] = []
        self.watches: list[WatchReader] = []
        #: what goes on until everything else has ended
        self.following: list[asyncio.Task[Any]] = []
        self.rollers: list[Roller] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.keys: dict[int, list[str]] = {}

    def start(self) -> None:
        for name, count in self.world.plan.workloads.items():
            for number in range(count):
                getattr(self, name)(number)

    def client(self) -> tuple[SimLoop, AsyncClient]:
        """A client process, connected."""
        world = self.world
        loop = SimLoop(world.events, f"clients{len(self.loops)}", world.network)
        self.loops.append(loop)
        names = sorted(world.processes)

        async def begin() -> AsyncClient:
            client = AsyncClient([f"{n}:1" for n in names], cluster="sim")
            client.dispatcher.ids = RequestIds(b"client-%09d" % len(self.loops))
            await client.dispatcher.start(5.0)
            return client

        return loop, world.await_(loop, begin, 10)

    def registers(self, number: int) -> None:
        """Reads, puts, conditional puts and deletes on a few keys of each partition."""
        loop, client = self.client()
        if not self.keys:
            self.keys = keys_by_partition(client, self.world.plan.keys, "chaos")
        keys = [k for ks in self.keys.values() for k in ks]

        def clock() -> int:
            return self.world.events.now

        traffic = Traffic([client], keys, self.world.seed + number, clock=clock, tasks=4, name=f"t{number}.")
        self.traffics.append((loop, traffic))
        self.tasks.append(loop.enter(lambda: loop.create_task(traffic.run())))

    def readers(self, number: int) -> None:
        """Who only reads stays with a leader that is cut off, as long as it answers: its writers
        wait. To go with ``registers``."""
        loop, client = self.client()
        keys = [k for ks in self.keys.values() for k in ks]

        def clock() -> int:
            return self.world.events.now

        traffic = Readers([client], keys, self.world.seed + 50 + number, clock=clock, tasks=2)
        self.traffics.append((loop, traffic))
        self.tasks.append(loop.enter(lambda: loop.create_task(traffic.run())))

    def mixed(self, number: int) -> None:
        """Everything that a namespace has, on the same folders, one in each partition: they share what they know."""
        loop, client = self.client()
        world = self.world
        others = [t for _, t in self.traffics if isinstance(t, Mixed)]
        homes = others[0].homes if others else homes_of(client, 1)

        def clock() -> int:
            return world.events.now

        mixed = Mixed([client], homes, world.seed + number, clock=clock, tasks=3, name=f"m{number}.")
        mixed.default_ttl_s = world.plan.default_ttl_s
        if others:
            mixed.last, mixed.tokens = others[0].last, others[0].tokens
        self.traffics.append((loop, mixed))
        self.tasks.append(loop.enter(lambda: loop.create_task(mixed.run())))

    def lookers(self, number: int) -> None:
        """Who only looks, and touches, stays with a leader that is cut off. To go with ``mixed``."""
        self.mixed(100 + number)
        _, looker = self.traffics[-1]
        assert isinstance(looker, Mixed)
        looker.kinds = LOOKS

    def rolling(self, number: int) -> None:
        """Large values in all partitions but the first, so that logs are short and the first falls behind."""
        loop, client = self.client()
        roller = Roller(client, number)
        self.rollers.append(roller)
        self.tasks.append(loop.enter(lambda: loop.create_task(roller.run())))

    def counting(self, number: int) -> None:
        """Increments, of which each counts once, or (outcome unknown) at most once."""
        loop, client = self.client()
        counter = Counter(client, f"count{number}")
        self.counters.append((loop, counter))
        self.tasks.append(loop.enter(lambda: loop.create_task(counter.run())))

    def stale_readers(self, number: int) -> None:
        """Who reads at any replica, with a bound or a version. To go with ``registers``."""
        world, (loop, client) = self.world, self.client()
        keys = [k for ks in self.keys.values() for k in ks]
        reader = StaleReader(
            client,
            keys,
            world.seed + 70 + number,
            lambda: world.events.now,
            lambda: [op for _, t in self.traffics for op in t.history[-30:]],
        )
        self.stale.append((loop, reader))
        world.await_(loop, lambda: reader.begin([ks[0] for ks in self.keys.values()]), 10)
        world.until(world.all_applied, 5, "I8: replicas lag behind at the start")
        self.tasks.append(loop.enter(lambda: loop.create_task(reader.run())))

    def watchers(self, number: int) -> None:
        """Who watches: at leaders or at any replica, eagerly or slowly, by turns. To go with ``registers``."""
        loop, client = self.client()
        watch = WatchReader(
            client, loop.name, self.world.seed + 90 + number, number % 4 != 0, bool(number & 2)
        )
        self.watches.append(watch)
        self.following.append(loop.enter(lambda: loop.create_task(watch.run())))

    def finish(self) -> None:
        """Everything serves again; a last look at all."""
        world = self.world
        for loop, traffic in self.traffics:
            if not isinstance(traffic, Readers):
                world.await_(loop, partial(traffic.until_all_serve, 15.0), 20)
        for worker in [*(w for _, w in [*self.traffics, *self.counters, *self.stale]), *self.rollers]:
            worker.stop = True
        world.until(lambda: all(t.done() for t in self.tasks), 20, "I8: clients hang")
        self.end_watches()
        for task in [*self.tasks, *self.following]:
            task.result()
        for loop, traffic in self.traffics:
            world.await_(loop, traffic.read_all, 20)
        for loop, counter in self.counters:
            world.await_(loop, counter.look, 20)
        for loop, reader in self.stale:
            world.await_(loop, reader.look, 20)

    def end_watches(self) -> None:
        """Nobody writes any more: each is told the rest of what there is."""
        world, watches = self.world, self.watches
        if not watches:
            return
        for watch in watches:
            watch.hurry = True
        world.until(world.all_applied, 5, "I8: replicas do not catch up")
        truth = truth_of(world, "chaos")
        late = "watch: the last changes are not told"
        world.until(lambda: all(w.is_done(truth) for w in watches), 20, late)
        for watch in watches:
            watch.stop = True
        world.until(lambda: all(t.done() for t in self.following), 5, "I8: watches hang")

    def judge(self) -> None:
        history = [op for _, t in self.traffics for op in t.history]
        of_key: dict[str, int] = {}
        for _, traffic in self.traffics:
            table = traffic.clients[0].dispatcher.table
            for key in traffic.keys:
                of_key[key] = table.route(storage_key_of(traffic.namespace, key)).id
        for ops in groups(history):
            problem = check_group(ops)
            if problem:
                raise Violation(f"I5: {problem}", of_key.get(ops[0].keys[0]))
        by_key: dict[str, list[Operation]] = defaultdict(list)
        for op in history:
            by_key[op.key].append(op)
        for _, reader in self.stale:
            reader.judge(by_key, of_key)
        truth = truth_of(self.world, "chaos") if self.watches else {}
        for watch in self.watches:
            watch.judge(truth)
        for problem in check_versions(history, of_key):
            raise Violation(f"I5: {problem}")
        for _, counter in self.counters:
            if counter.problem:
                raise Violation(f"I5: {counter.problem}", counter.partition)


class Readers(Traffic):
    """Traffic that changes nothing."""

    async def _task(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        ns = self.clients[0].namespace("chaos")
        while not self.stop:
            await self.one(number, ns, rng.choice(self.keys), 0.0, "")
            await asyncio.sleep(0.01 * rng.random())


@dataclass
class Roller:
    """One client that fills the logs."""

    client: AsyncClient
    number: int
    stop: bool = False

    async def run(self) -> None:
        ns = self.client.namespace("rolling")
        keys = [k for p, ks in keys_by_partition(self.client, 2, "rolling").items() if p for k in ks]
        count = 0
        while not self.stop:
            count += 1
            with contextlib.suppress(MetastoreError):
                await ns.put(keys[count % len(keys)], bytes(1500), deadline_s=3.0)
            await asyncio.sleep(0.004)


@dataclass
class Counter:
    """One client that counts, and knows between what its counter must be."""

    client: AsyncClient
    key: str
    stop: bool = False
    sure: int = 0
    unsure: int = 0
    problem: str = ""

    @property
    def partition(self) -> int:
        return self.client.dispatcher.table.route(storage_key_of("counters", self.key)).id

    async def run(self) -> None:
        ns = self.client.namespace("counters")
        while not self.stop:
            try:
                result = await ns.add(self.key, 1, deadline_s=4.0)
                self.sure += 1
                self.see(result.value)
            except MetastoreError as e:
                self.unsure += e.outcome == "unknown"
            await asyncio.sleep(0.01)

    async def look(self) -> None:
        record = await self.client.namespace("counters").get(self.key)
        self.see(int(record.value) if record else 0)

    def see(self, value: int) -> None:
        if not self.sure <= value <= self.sure + self.unsure:
            self.problem = (
                f"{self.key} is {value}: {self.sure} increments are sure, {self.unsure} may have been"
            )
