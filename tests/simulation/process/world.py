"""Whole nodes and clients in simulated time: everything of metastore.node, storage, client and wire
runs as it is; simulated are time, network, disks, LMDB's file, etcd, and the death of processes.

A plan says what goes on: workloads and faults by name, with how often. Everything random comes
from the seed, so a seed is a schedule.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellctl.bootstrap import bootstrap
from metastore.client import AsyncClient
from metastore.client.dispatch import RequestIds
from metastore.config import NodeConfig
from metastore.coordination.interface import Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.core import effects as fx
from metastore.errors import MetastoreError
from metastore.keys import storage_key
from metastore.layout import ConfigRecord, Layout, MoveRecord
from metastore.node.clients import ClientConnection
from metastore.node.control import FACT_CLUSTER_ID, FACT_REVISION
from metastore.node.node import Node
from metastore.storage.state import State
from metastore.storage.store import StorageOptions, Store
from tests.chaos.traffic import Traffic
from tests.checkers.linearizability import check, check_versions
from tests.integration.harness import keys_by_partition
from tests.simulation.process.lmdb_env import MemoryEnv
from tests.simulation.process.loop import MS, Events, SimLoop, patch_clocks
from tests.simulation.process.network import Network
from tests.unit.storage.simdisk import Cut, SimDisk

FOLDER = Path("/sim")
SECOND = 1000 * MS
#: small, so that segments, flushes, compaction and snapshots are everyday events
STORAGE = StorageOptions(
    segment_bytes=16 << 10,
    log_retention_bytes=48 << 10,
    cache_bytes=2 << 10,
    flush_changes=40,
    flush_age_s=0.3,
)
SETTINGS = {
    "heartbeat_ms": 60,
    "grant_ms": 300,
    "suspect_after_ms": 400,
    "settle_ms": 30,
    "lease_ttl_s": 1.0,
    "clock_rate_error_ppm": 1000,
}
ETCD_PATIENCE_S = 1.5


class Violation(AssertionError):
    """A promise was broken; the message says which."""


@dataclass(frozen=True)
class Plan:
    """``faults``: name (a method of Faults) -> mean ms between two. ``workloads``: name (a method
    of Workloads) -> how many of it."""

    faults: dict[str, int] = field(default_factory=dict)
    workloads: dict[str, int] = field(default_factory=lambda: {"registers": 2})
    cells: int = 1
    nodes: int = 3
    partitions: int = 2
    max_delay_ms: int = 2
    slow_share: float = 0.0
    max_sync_ms: int = 6
    drift_ppm: int = 900
    seconds: float = 6.0


def store_id(name: str) -> str:
    return (name + "-store").ljust(32, "-")


class Process:
    """A node's machine: disk and LMDB file outlive the process that runs on it."""

    def __init__(self, world: World, name: str, cell: str) -> None:
        self.world = world
        self.name = name
        self.disk = SimDisk(world.events.random)
        self.disk.on_cut = self.cut
        self.env = MemoryEnv()
        self.lives = 0
        self.up = False
        self.dark = False
        self.node: Node
        self.loop: SimLoop
        self.config = NodeConfig(
            cluster="sim",
            cell=cell,
            node=name,
            data_dir="/sim",
            rpc=f"{name}:1",
            http=f"{name}:2",
            **SETTINGS,
        )
        drift = world.plan.drift_ppm
        self.rate = 1 + world.events.random.uniform(-drift, drift) / 1e6
        self.offset_ns = world.events.random.randrange(10**15)

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        self.lives += 1
        self.up, self.dark = True, False
        world = self.world
        world.network.dark.discard(self.name)
        self.loop = SimLoop(world.events, self.name, world.network, self.rate, self.offset_ns)
        try:
            self.loop.enter(lambda: self.loop.create_task(self._main()).add_done_callback(self._ended))
        except Cut:
            pass

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Cut):
            return
        if error is not None and not isinstance(error, OSError):  # which ends a real one too (R14)
            self.world.events.failure = error
        self.world.tell(f"{self.name} stops: {error or self.node.failure}")
        self.die(silently=False)
        self.world.events.at(self.world.events.random.randrange(600 * MS), self.restart)

    async def _main(self) -> None:
        """As metastore.node.main."""
        world = self.world
        store = Store(FOLDER, {"store_id": store_id(self.name)}, self.lives == 1, STORAGE)
        store.recover(self.disk, State(self.env))
        store.log.writer = self._write
        node = self.node = Node(self.config, store, f"{self.lives}")
        world.watch(self, node)
        node.start()
        await self.loop.create_server(lambda: ClientConnection(node), self.name, 1)
        coordinator = MemoryCoordinator(
            world.etcd,
            lambda: world.events.now / 1e9,
            store.facts.get(FACT_CLUSTER_ID),
            int(store.facts.get(FACT_REVISION, 0)),
            poll_s=0.04,
        )
        node.control.start(coordinator)
        try:
            async with asyncio.timeout(ETCD_PATIENCE_S):
                await node.control.ready.wait()
        except TimeoutError:
            pass
        node.core.resume_all(self.loop.now_ns())
        node.settle()
        await node.failed.wait()

    def _write(self, pieces: Any) -> None:
        """The log's writer thread."""
        log = self.node.store.log

        def work() -> None:
            try:
                log.write_pieces(pieces)
            except OSError as e:
                log.round_written(e)
            else:
                log.round_written(None)

        delay = self.world.events.random.randrange(1, self.world.plan.max_sync_ms * MS)
        self.loop.call_later(delay / 1e9, work)

    def cut(self) -> None:
        """The disk says that the process ends in the middle of this very operation."""
        self.loop.kill()
        self.world.events.at(0, lambda: self.crash("dies in a disk operation"))

    def die(self, *, silently: bool) -> None:
        self.up = False
        self.loop.kill()
        self.world.network.process_died(self.name, silently=silently)

    def crash(self, how: str, *, power: bool = False) -> None:
        """A kill, or with ``power`` the whole machine."""
        if not self.up:
            return
        world = self.world
        world.tell(f"{self.name} {how}")
        self.die(silently=power)
        if power:
            self.disk.power_loss()
            self.dark = True
            world.network.dark.add(self.name)
        else:
            self.disk.kill()
        world.events.at(world.events.random.choice((80, 1200)) * MS, self.restart)

    def restart(self) -> None:
        if not self.up:
            self.world.tell(f"{self.name} starts")
            self.disk.kill()  # what was left to happen in the middle of an operation will not
            self.start()


class World:
    """See the module."""

    def __init__(self, seed: int, plan: Plan, steps: int = 0) -> None:
        self.seed, self.plan, self.steps = seed, plan, steps
        random.seed(seed)
        patch_clocks()
        self.events = Events(seed)
        self.digest = hashlib.blake2b(digest_size=16)
        self.network = Network(self.events)
        self.network.max_delay_ns = plan.max_delay_ms * MS
        self.network.slow_share = plan.slow_share
        self.network.heard = lambda src, dst, data: self.digest.update(
            b"%d%s%s" % (self.events.now, src.encode(), dst.encode()) + data
        )
        self.etcd = MemoryEtcd()
        self.story: list[str] = []
        self.owners: dict[tuple[int, int], str] = {}
        self.applied: dict[tuple[int, int], bytes] = {}
        self.snapshots = 0
        self.healed = False
        self.clients: list[AsyncClient] = []
        self.faults = Faults(self)
        self.workloads = Workloads(self)
        self.processes = {
            f"c{c}n{n}": Process(self, f"c{c}n{n}", f"c{c}")
            for c in range(1, plan.cells + 1)
            for n in range(1, plan.nodes + 1)
        }
        self.operator = SimLoop(self.events, "operator", self.network)

    # --- telling ------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        self.story.append(f"{self.events.now / 1e9:8.4f} {text}")

    def watch(self, process: Process, node: Node) -> None:
        """See every change of role and every applied entry of this life."""
        role_changed, install = node._role_changed, node.snapshots._install

        def changed(effect: fx.RoleChanged) -> None:
            self.tell(f"{process.name} p{effect.p} {effect.role} {effect.epoch:x} {effect.reason}")
            if effect.role == "active":
                me = f"{process.name}/{process.lives}"
                if self.owners.setdefault((effect.p, effect.epoch), me) != me:
                    raise Violation(f"I1: epoch {effect.epoch:x} of p{effect.p} has two owners")
            role_changed(effect)

        async def installing(p: int, *args: Any) -> None:
            self.snapshots += 1
            self.tell(f"{process.name} p{p} installs a snapshot at {args[1]}")
            await install(p, *args)

        node._role_changed = changed  # type: ignore[method-assign]
        node.snapshots._install = installing  # type: ignore[method-assign]
        apply = node.store.apply

        def applied(p: int, index: int, epoch: int, changes: Any, aux: Any) -> None:
            mark = hashlib.blake2b(repr((epoch, changes)).encode(), digest_size=8).digest()
            if self.applied.setdefault((p, index), mark) != mark:
                raise Violation(
                    f"I3: {process.name} applies another entry {index} of p{p} than was applied before"
                )
            apply(p, index, epoch, changes, aux)

        node.store.apply = applied  # type: ignore[method-assign]

    # --- the run ----------------------------------------------------------------------------

    def play(self) -> World:
        """Faults, healing, every check. Raises Violation with seed and story."""
        try:
            self._play()
        except Exception as e:
            story = "\n".join(self.story[-70:])
            raise Violation(
                f"seed {self.seed} after {self.events.done} events: {type(e).__name__}: {e}\n{story}"
            ) from e
        return self

    def _play(self) -> None:
        plan, events = self.plan, self.events
        for process in self.processes.values():
            process.start()
        coordinator = MemoryCoordinator(self.etcd, lambda: events.now / 1e9)
        cells: dict[str, list[str]] = {}
        for process in self.processes.values():
            cells.setdefault(process.config.cell, []).append(process.name)
        self.await_(self.operator, lambda: bootstrap(coordinator, "sim", cells, plan.partitions), 10)
        self.until(self.all_led, 10, "no leaders at the start")
        self.workloads.start()
        for name, every in plan.faults.items():
            self.faults.repeat(getattr(self.faults, name), every * MS)
        self.run(int(plan.seconds * SECOND))
        self.faults.heal()
        self.until(self.all_led, 15, "no leaders after healing")
        self.until(self.all_moved, 30, "moves do not end")
        self.workloads.finish()
        self.until(self.all_equal, 15, "replicas differ after healing")
        self.workloads.judge()

    def run(self, duration_ns: int, until: Callable[[], bool] | None = None) -> bool:
        steps = self.steps

        def stop() -> bool:
            if steps and self.events.done >= steps:
                raise Violation(f"stopped after {steps} events, as asked")
            return until is not None and until()

        return self.events.run(duration_ns, stop if steps or until else None)

    def until(self, what: Callable[[], bool], patience_s: float, problem: str) -> None:
        deadline = self.events.now + int(patience_s * SECOND)
        while not what():
            if self.events.now > deadline:
                raise Violation(f"{problem}, {patience_s:.0f} s later")
            self.run(20 * MS)

    def await_(self, loop: SimLoop, what: Callable[[], Any], patience_s: float) -> Any:
        task = loop.enter(lambda: loop.create_task(what()))
        if not self.run(int(patience_s * SECOND), task.done):
            raise Violation(f"not done in {patience_s:.0f} s")
        return task.result()

    # --- what holds in the end ----------------------------------------------------------------

    def hosts(self, p: int) -> list[Any]:
        return [
            q.node.hosts[p]
            for q in self.processes.values()
            if q.up and hasattr(q, "node") and p in q.node.hosts
        ]

    def all_led(self) -> bool:
        return all(
            sum(1 for h in self.hosts(p) if h.replica.role == "active") == 1
            for p in range(self.plan.partitions)
        )

    def all_moved(self) -> bool:
        """Every move has ended, and who is no member holds nothing."""
        if any("/moves/" in key for key in self.etcd.kvs):
            return False
        for key, kv in self.etcd.kvs.items():
            if "/config/" in key:
                config = ConfigRecord.from_json(kv.value)
                if config.joint is not None:
                    return False
                holders = {h.node.config.node for h in self.hosts(config.partition)}
                if holders != {n for n, _ in config.replicas}:
                    return False
        return True

    def all_equal(self) -> bool:
        """Every replica of every partition has applied the same and holds the same."""
        for p in range(self.plan.partitions):
            hosts = self.hosts(p)
            if len(hosts) != min(3, self.plan.nodes) or len({h.applied for h in hosts}) != 1:
                return False
            states = {
                (
                    tuple(h.node.store.scan(p, b"", b"\xff" * 9, 10**6, 1 << 30)),
                    h.machine.last_version,
                    tuple((c, s.pack()) for c, s in sorted(h.machine.sessions.items())),
                )
                for h in hosts
            }
            if len(states) != 1:
                raise Violation(f"the replicas of p{p} hold different states at entry {hosts[0].applied}")
        return True


class Faults:
    """What may befall the world; each method does one thing to somebody, drawn from the seed."""

    def __init__(self, world: World) -> None:
        self.world = world

    def repeat(self, what: Callable[[], None], every_ns: int) -> None:
        world = self.world

        def fire() -> None:
            if not world.healed:
                what()
                self.repeat(what, every_ns)

        world.events.at(int(world.events.random.expovariate(1 / every_ns)) + 1, fire)

    def pick(self) -> Process:
        return self.world.processes[self.world.events.random.choice(sorted(self.world.processes))]

    def kill(self) -> None:
        """SIGKILL: one, or a whole cell."""
        victims = [self.pick()]
        if self.world.events.random.random() < 0.15:
            victims = [p for p in self.world.processes.values() if p.config.cell == victims[0].config.cell]
        for victim in victims:
            victim.crash("is killed")

    def power(self) -> None:
        """A machine, or all of them, without power: what was not synced is gone, or half of it."""
        victims = [self.pick()]
        if self.world.events.random.random() < 0.3:
            victims = list(self.world.processes.values())
        for victim in victims:
            victim.crash("loses power", power=True)

    def tear(self) -> None:
        """The process will die in the middle of one of its next disk operations."""
        victim = self.pick()
        if victim.up:
            victim.disk.cut_after = self.world.events.random.randrange(12)

    def fail_sync(self) -> None:
        """R14."""
        victim = self.pick()
        if victim.up:
            self.world.tell(f"{victim.name} will fail a sync")
            victim.disk.fail_next_sync = True

    def pause(self) -> None:
        """SIGSTOP, SIGCONT."""
        victim, world = self.pick(), self.world
        if not victim.up or victim.loop.paused:
            return
        loop = victim.loop
        world.tell(f"{victim.name} pauses")
        loop.pause()

        def wake() -> None:
            if not loop.dead:
                world.tell(f"{victim.name} wakes")
                loop.wake()

        world.events.at(world.events.random.randrange(1500 * MS), wake)

    def cut(self) -> None:
        """A link, one way or both, or a whole node."""
        world, random = self.world, self.world.events.random
        a, b = random.sample(sorted(world.processes), 2)
        links = {(a, b)} if random.random() < 0.5 else {(a, b), (b, a)}
        if random.random() < 0.3:
            others = [x for x in [*world.processes, "clients0", "clients1"] if x != a]
            links = {(a, x) for x in others}
            if random.random() < 0.5:
                links |= {(x, a) for x in others}
        world.tell(f"cut {sorted(links)}")
        world.network.cuts |= links
        world.events.at(random.randrange(1200 * MS), lambda: world.network.cuts.difference_update(links))

    def reset(self) -> None:
        """Streams between two nodes, or a client's, break while both live."""
        random = self.world.events.random
        a = self.pick().name
        b = random.choice([x for x in [*sorted(self.world.processes), "clients0", "clients1"] if x != a])
        self.world.tell(f"resets {a} - {b}")
        self.world.network.reset_between(a, b)
        self.world.network.reset_between(b, a)

    def etcd(self) -> None:
        """Away for a while, or an answer of it lost."""
        world, random = self.world, self.world.events.random
        if random.random() < 0.3:
            world.etcd.lose_next_answer = True
            return
        world.tell("etcd is away")
        world.etcd.up = False

        def back() -> None:
            world.etcd.up = True

        world.events.at(random.randrange(2500 * MS), back)

    def compact_etcd(self) -> None:
        self.world.etcd.compact()

    def move(self) -> None:
        """An operator wants a partition's replicas elsewhere, or changes their mind (R10)."""
        world, random, layout = self.world, self.world.events.random, Layout("sim")
        if not world.etcd.up:
            return
        p = random.randrange(world.plan.partitions)
        key = layout.move(p)
        known = world.etcd.kvs.get(key)
        if known is not None:
            if random.random() < 0.3:
                move = MoveRecord.from_json(known.value)
                world.tell(f"the move of p{p} is cancelled")
                world.etcd.txn([], [Put(key, dataclasses.replace(move, cancel=True).to_json())], [])
            return
        cell = f"c{random.randrange(world.plan.cells) + 1}"
        names = sorted(n for n, q in world.processes.items() if q.config.cell == cell)
        target = tuple((n, store_id(n)) for n in random.sample(names, min(3, len(names))))
        world.tell(f"p{p} is to move to {[n for n, _ in target]}")
        world.etcd.txn([], [Put(key, MoveRecord(p, cell, target, cause="test").to_json())], [])

    def hand_over(self) -> None:
        """A leader hands over (R11)."""
        process, world = self.pick(), self.world
        if not process.up or process.loop.paused or not hasattr(process, "node"):
            return

        def transfer() -> None:
            for host in process.node.hosts.values():
                if host.replica.role == "active" and host.replica.term is not None:
                    to = world.events.random.choice(sorted(host.replica.term.others()))
                    host.replica.transfer(process.loop.now_ns(), to)
            process.node.settle()

        process.loop.enter(transfer)

    def heal(self) -> None:
        """No more faults: everybody runs and hears everybody."""
        world = self.world
        world.healed = True
        world.tell("healed")
        world.network.cuts.clear()
        world.network.slow_share = 0.0
        world.etcd.up = True
        world.etcd.lose_next_answer = False
        for process in world.processes.values():
            process.disk.cut_after = None
            process.disk.fail_next_sync = False
            if process.up and process.loop.paused:
                process.loop.wake()
            process.restart()


class Workloads:
    """What clients do; each ends with a check of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loops: list[SimLoop] = []
        self.traffics: list[Traffic] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.keys: dict[int, list[str]] = {}
        self.counters: list[Counter] = []

    def start(self) -> None:
        for name, count in self.world.plan.workloads.items():
            for number in range(count):
                getattr(self, name)(number)

    def client(self, number: int) -> tuple[SimLoop, AsyncClient]:
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
        """Reads, puts, conditional puts and deletes on two keys of each partition."""
        loop, client = self.client(number)
        if not self.keys:
            self.keys = keys_by_partition(client, 2, "chaos")
        keys = [k for ks in self.keys.values() for k in ks]

        def clock() -> int:
            return self.world.events.now

        traffic = Traffic([client], keys, self.world.seed + number, clock=clock, tasks=4, name=f"t{number}.")
        self.traffics.append(traffic)
        self.tasks.append(loop.enter(lambda: loop.create_task(traffic.run())))

    def counting(self, number: int) -> None:
        """Increments, of which each counts once, or (outcome unknown) at most once."""
        loop, client = self.client(number)
        counter = Counter(client, f"count{number}")
        self.counters.append(counter)
        self.tasks.append(loop.enter(lambda: loop.create_task(counter.run())))

    def finish(self) -> None:
        """Everything serves again; a last look at all."""
        world = self.world
        for traffic, loop in zip(self.traffics, self.loops, strict=False):
            world.await_(loop, lambda t=traffic: t.until_all_serve(15.0), 20)
        for traffic in self.traffics:
            traffic.stop = True
        for counter in self.counters:
            counter.stop = True
        world.until(lambda: all(t.done() for t in self.tasks), 20, "clients hang")
        for task in self.tasks:
            task.result()
        for traffic, loop in zip(self.traffics, self.loops, strict=False):
            world.await_(loop, traffic.read_all, 20)
        for counter, loop in zip(self.counters, self.loops[len(self.traffics) :], strict=True):
            world.await_(loop, counter.look, 20)

    def judge(self) -> None:
        history = [op for t in self.traffics for op in t.history]
        problems = check(history)
        of_key = {key: p for p, keys in self.keys.items() for key in keys}
        problems += check_versions(history, of_key)
        problems += [c.problem for c in self.counters if c.problem]
        if problems:
            raise Violation("I5: " + "\n".join(problems[:3]))


@dataclass
class Counter:
    """One client that counts, and knows between what its counter must be."""

    client: AsyncClient
    key: str
    stop: bool = False
    sure: int = 0
    unsure: int = 0
    problem: str = ""

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


def keys_of(client: AsyncClient, namespace: str, key: str) -> int:
    """The partition of a key."""
    return client.dispatcher.table.route(storage_key(namespace, key)).id
