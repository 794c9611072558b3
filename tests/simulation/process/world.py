"""Whole nodes and clients in simulated time: everything of metastore.node, storage, client and wire
runs as it is; simulated are time, network, disks, LMDB's file, etcd, and the death of processes.

A plan says what goes on: workloads and faults by name, with how often. Everything random comes
from the seed, so a seed is a schedule.
"""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cellctl.bootstrap import bootstrap
from metastore.coordination.memory import MemoryEtcd
from metastore.errors import CoordinationError
from metastore.layout import ConfigRecord
from metastore.node import node as node_module
from metastore.node import peers, snapshots
from metastore.node.node import core_settings
from metastore.partition import watches
from metastore.storage import scrub, state
from tests.simulation.process.control_losses import ControlLosses
from tests.simulation.process.etcd import SimCoordinator
from tests.simulation.process.faults import Faults
from tests.simulation.process.loop import MS, Events, SimLoop, patch_clocks
from tests.simulation.process.losses import Losses
from tests.simulation.process.network import Link, Network
from tests.simulation.process.plans import LOSSES, PLANS, TOGETHER, TOGETHER_FROM, Plan
from tests.simulation.process.process import Process
from tests.simulation.process.recording import Judge
from tests.simulation.process.watcher import Watcher
from tests.simulation.process.workloads import Workloads
from tests.simulation.violation import Stopped, Violation, broken_by

SECOND = 1000 * MS
STORY_LINES = 100
#: bounds of the modules, so small that they are met every day
SMALL: list[tuple[Any, str, Any]] = [
    (snapshots, "CHUNK_BYTES", 300),
    (peers, "MAX_BUFFERED_BYTES", 16 << 10),
    (watches, "CONGESTED_BYTES", 500),
    (watches, "SLICE_BYTES", 300),
    (state, "DELETE_CHUNK", 5),
    (scrub, "PAUSE_S", 0.5),
    (
        node_module,
        "core_settings",
        lambda config: replace(core_settings(config), max_append_bytes=300, max_inflight_entries=8),
    ),
]


@contextmanager
def surroundings() -> Iterator[None]:
    """Small bounds; and no collector: when it finds something must not depend on other worlds."""
    collects = gc.isenabled()
    gc.disable()
    usual = [getattr(module, name) for module, name, _ in SMALL]
    try:
        for module, name, value in SMALL:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(SMALL, usual, strict=True):
            setattr(module, name, value)
        if collects:
            gc.enable()


class World:
    """See the module. ``steps``: stop after so many events (0: at the end); ``checked``: whether each step of each replica
    is judged by the rules."""

    def __init__(
        self, seed: int, plan: Plan, *, steps: int = 0, name: str = "", checked: bool = False
    ) -> None:
        self.seed, self.plan, self.steps, self.name = seed, plan, steps, name
        random.seed(seed)
        patch_clocks()
        self.events = Events(seed)
        self.digest = hashlib.blake2b(digest_size=16)
        self.network = Network(self.events)
        self.network.max_delay_ns = plan.max_delay_ms * MS
        self.network.slow_share = plan.slow_share
        self.network.heard = self._heard
        self.etcd = MemoryEtcd()
        self.story: list[tuple[int, int | None, str]] = []
        self.watcher = Watcher(self)
        self.judge = Judge(self.etcd, self.events.fail) if checked else None
        self.healed = False
        self.losses = Losses(self)
        self.control_losses = ControlLosses(self)
        self.faults = Faults(self)
        self.workloads = Workloads(self)
        self.processes = {
            f"c{c}n{n}": Process(self, f"c{c}n{n}", f"c{c}")
            for c in range(1, plan.cells + 1)
            for n in range(1, plan.nodes + 1)
        }
        self.operator = SimLoop(self.events, "operator", self.network)

    def _heard(self, link: Link, data: bytes) -> None:
        self.digest.update(b"%d%s%s%s" % (self.events.now, link[0].encode(), link[1].encode(), data))

    def client_names(self) -> list[str]:
        return [loop.name for loop in self.workloads.loops]

    # --- telling ------------------------------------------------------------------------------

    def tell(self, text: str, p: int | None = None) -> None:
        """Part of the story; of partition ``p`` only, or of all."""
        self.story.append((self.events.now, p, text))

    @property
    def done(self) -> int:
        """How many events have happened."""
        return self.events.done

    def told(self, p: int | None = None) -> str:
        """The end of the story, as far as it concerns ``p`` (None: all)."""
        lines = [line for line in self.story if p is None or line[1] in (None, p)]
        return "\n".join(f"{at / 1e9:9.4f} {text}" for at, _, text in lines[-STORY_LINES:])

    # --- the run ----------------------------------------------------------------------------

    def play(self) -> World:
        """Faults, healing, every check. Raises Violation with seed and story; with ``steps`` it
        may end early."""
        try:
            with surroundings():
                self._play()
        except Stopped:
            pass
        except Exception as e:
            p = getattr(e, "p", None)
            where = "" if p is None else f", partition {p}"
            raise Violation(
                f"seed {self.seed} ({self.name}) after {self.done} events{where}: {type(e).__name__}: {e}\n"
                f"{self.told(p)}\nreplay: make sim OF=process SEED={self.seed}",
                p,
                broken_by(e),
            ) from e
        return self

    def _play(self) -> None:
        plan = self.plan
        for process in self.processes.values():
            process.start()
        coordinator = SimCoordinator(self.network, self.etcd, "operator")
        cells: dict[str, list[str]] = {}
        for process in self.processes.values():
            cells.setdefault(process.config.cell, []).append(process.name)

        async def first_configs() -> None:
            """As an operator does who gets no answer: once more."""
            while True:
                try:
                    await bootstrap(coordinator, "sim", cells, plan.partitions)
                    return
                except CoordinationError as e:
                    self.tell(f"bootstrap: {e}")

        self.await_(self.operator, first_configs, 10)
        self.until(self.all_led, 10, "I8: no leaders at the start")
        self.workloads.start()
        for name, every in plan.faults.items():
            self.faults.repeat(getattr(self.faults, name), every * MS)
        self.run(int(plan.seconds * SECOND))
        self.faults.heal()
        self.until(self.control_losses.is_over, 15, "R13: etcd was rebuilt, and somebody distrusts it still")
        self.until(self.all_led, 5, "I8: no leaders after healing")
        self.until(self.all_moved, 10, "moves: they do not end")
        if not plan.faults.keys().isdisjoint({"rot", "rot_log"}):
            more = 2 if "rot" in plan.faults else 0
            passes = {q.name: q.node.store.scrub.passes + more for q in self.processes.values()}
            self.until(lambda: self.all_sound(passes), 20, "R14: what has rotted is not rebuilt")
        self.workloads.finish()
        self.until(self.all_equal, 5, "I8: replicas do not catch up after healing")
        self.workloads.judge()
        gc.collect()  # tells of errors that nobody looked at
        if self.events.failure is not None:
            raise self.events.failure

    def run(self, duration_ns: int, until: Callable[[], bool] | None = None) -> bool:
        events, steps = self.events, self.steps

        def stop() -> bool:
            if events.done >= steps:
                raise Stopped
            return until is not None and until()

        return events.run(duration_ns, stop if steps else until)

    def until(self, what: Callable[[], bool], patience_s: float, problem: str) -> None:
        deadline = self.events.now + int(patience_s * SECOND)
        while not what():
            if self.events.now > deadline:
                raise Violation(f"{problem}, {patience_s:.0f} s later")
            self.run(20 * MS)

    def await_(self, loop: SimLoop, what: Callable[[], Any], patience_s: float) -> Any:
        task = loop.enter(lambda: loop.create_task(what()))
        if not self.run(int(patience_s * SECOND), task.done):
            raise Violation(f"I8: not done in {patience_s:.0f} s")
        return task.result()

    # --- looking at it ------------------------------------------------------------------------

    def partitions(self) -> list[int]:
        """Those that etcd has records of."""
        found = {int(key.rsplit("/", 1)[1]) for key in self.etcd.kvs if "/config/" in key}
        return sorted(found) or list(range(self.plan.partitions))

    def config(self, p: int) -> ConfigRecord:
        """Its record in etcd."""
        return next(
            ConfigRecord.from_json(kv.value)
            for key, kv in self.etcd.kvs.items()
            if "/config/" in key and key.endswith(f"/{p:05d}")
        )

    def leads(self, process: Process) -> bool:
        return any(h.replica.role == "active" for h in process.node.partitions.values())

    def hosts(self, p: int) -> list[Any]:
        return [
            q.node.partitions[p]
            for q in self.processes.values()
            if q.up and hasattr(q, "node") and p in q.node.partitions
        ]

    def all_led(self) -> bool:
        return all(
            sum(1 for h in self.hosts(p) if h.replica.role == "active") == 1 for p in self.partitions()
        )

    def all_sound(self, passes: dict[str, int]) -> bool:
        """So many scrubs have gone through everything, and nobody has a damaged copy."""
        return all(
            q.node.store.scrub.passes >= passes[q.name] and not q.node.rebuild.why
            for q in self.processes.values()
        )

    def all_moved(self) -> bool:
        """Every move has ended, and who is no member holds nothing."""
        if self.losses.victim is not None or any("/moves/" in k or "/splits/" in k for k in self.etcd.kvs):
            return False
        for key, kv in self.etcd.kvs.items():
            if "/config/" in key:
                config = ConfigRecord.from_json(kv.value)
                if config.joint is not None:
                    return False
                holders = {h.replica.ctx.me.node for h in self.hosts(config.partition)}
                if holders != {n for n, _ in config.replicas}:
                    return False
        return True

    def all_applied(self) -> bool:
        """Every replica has applied as much as the others."""
        return all(len({h.applied for h in self.hosts(p)}) == 1 for p in self.partitions())

    def all_equal(self) -> bool:
        """Every replica of every partition has applied the same and holds the same."""
        for p in self.partitions():
            hosts = self.hosts(p)
            if len(hosts) != min(3, self.plan.nodes) or len({h.applied for h in hosts}) != 1:
                return False
            states = {
                (
                    tuple(h.store.scan(b"", b"\xff" * 9, 10**6, 1 << 30).rows),
                    h.machine.last_version,
                    tuple((c, s.pack()) for c, s in sorted(h.machine.sessions.items())),
                    tuple((ns, *held) for ns, held in sorted(h.machine.usage.items())),
                )
                for h in hosts
            }
            if len(states) != 1:
                raise Violation(f"states: the replicas hold different ones at entry {hosts[0].applied}", p)
            rows, _, _, usage = states.pop()
            held: dict[bytes, list[int]] = {}
            for storage_key, record in rows:
                sums = held.setdefault(storage_key[8 : storage_key.find(0, 8)], [0, 0])
                sums[0] += 1
                sums[1] += len(storage_key) + len(record)
            if usage != tuple((ns, *sums) for ns, sums in sorted(held.items())):
                raise Violation(f"usage: it says {usage}, there are {held}", p)
        return True


#: from here on seeds are fresh ones, and take all plans in turn
FRESH_SEEDS = 1 << 20
ALL_PLANS = PLANS | LOSSES | TOGETHER


def plan_of(seed: int) -> str:
    """The name of its plan."""
    plans = PLANS if seed < FRESH_SEEDS else ALL_PLANS if seed < TOGETHER_FROM else TOGETHER
    return list(plans)[seed % len(plans)]


def world_of(seed: int, steps: int = 0, checked: bool | None = None) -> World:
    """The world of a seed. ``checked``: whether each step of each replica is; by default in one of three, of each plan."""
    name = plan_of(seed)
    judged = (seed + seed // len(ALL_PLANS)) % 3 == 0 if checked is None else checked
    return World(seed, ALL_PLANS[name], steps=steps, name=name, checked=judged)
