"""A seeded world around the real core: nodes, disks, network, clocks, etcd and clients.

Everything random comes from one generator, everything ordered from one event queue, so a seed
is a schedule: the same seed gives the same trace. Invariants are checked after every event.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core.events import SnapshotStaged
from metastore.core.messages import Appended, Process
from metastore.core.replica import ACTIVE, InvariantBroken
from metastore.core.rows import META_KEY, SESSION_PREFIX
from metastore.core.settings import MS
from metastore.layout import term_of
from tests.simulation.core.checks import Checks
from tests.simulation.core.clients import Client
from tests.simulation.core.etcd import Etcd, P
from tests.simulation.core.faults import Faults
from tests.simulation.core.node import Node
from tests.simulation.core.plans import FAULTY_NS, PLANS, SETTINGS, Plan
from tests.simulation.core.steps import Step
from tests.simulation.violation import Stopped, Violation, broken_by

STORY_LINES = 80
STEP_NS = 20 * MS
#: how long all must stay well once it is
AFTERWARDS_NS = 300 * MS


class World:
    """See the module. ``steps``: stop after so many events (0: at the end)."""

    def __init__(
        self, seed: int, plan: Plan, *, nodes: int = 3, clients: int = 5, steps: int = 0, name: str = ""
    ) -> None:
        self.seed, self.plan, self.steps, self.name = seed, plan, steps, name
        self.random = Random(seed)
        self.settings = replace(SETTINGS, **plan.settings)
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.done = 0
        self.story: list[str] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.healed = False
        #: whether each step of the core is checked against the rules (steps.Rules)
        self.checked = True
        #: when set: each step of each process, to be replayed
        self.trace: list[tuple[Process, int, Step]] | None = None
        self.cuts: set[tuple[str, str]] = set()
        self.resets: dict[tuple[str, str], int] = {}
        names = [f"n{i}" for i in range(nodes)]
        self.checks = Checks(self)
        self.etcd = Etcd(self, tuple((n, "s-" + n) for n in names))
        self.nodes = {n: Node(self, n) for n in names}
        self.faults = Faults(self)
        self.clients = [Client(self, i) for i in range(clients)]
        for node in self.nodes.values():
            node.rate = 1 + self.random.uniform(-plan.drift_ppm, plan.drift_ppm) / 1e6
            node.offset = self.random.randrange(10**12)
            node.start()
        for client in self.clients:
            self.at(self.random.randrange(50 * MS), client.next)
        self.at(10 * MS, self.etcd.tick)
        self.faults.start()

    # --- time and events ---------------------------------------------------------------------

    def at(self, delay: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, what))

    def after(self, delay: int, node: Node, what: Callable[[], None]) -> None:
        """An event of one process: lost with it, late when it is paused."""
        generation = node.generation

        def fire() -> None:
            if node.up and node.generation == generation:
                if self.now < node.paused_until:
                    node.backlog.append(fire)
                else:
                    what()

        self.at(delay, fire)

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now / 1e9:.4f} {text}")

    def told(self) -> str:
        """The end of the story."""
        return "\n".join(self.story[-STORY_LINES:])

    def pick(self) -> Node:
        return self.nodes[self.random.choice(sorted(self.nodes))]

    def run(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        queue, pop, stop = self.queue, heapq.heappop, self.steps or (1 << 62)
        while queue and queue[0][0] <= end:
            self.now, _, what = pop(queue)
            self.done += 1
            what()
            if self.done >= stop:
                raise Stopped
        self.now = end

    # --- network --------------------------------------------------------------------------------

    def send(self, src: Node, dst: str, message: Any) -> None:
        f, random = self.plan, self.random
        if type(message) is Appended:
            self.checks.check_match(src, self.nodes[dst], message)
        if (src.name, dst) in self.cuts or (not self.healed and random.random() < f.loss):
            return
        target, me = self.nodes[dst], src.me
        generation, link = target.generation, (src.name, dst)
        resets = self.resets.get(link, 0)

        def arrive() -> None:
            if self.resets.get(link, 0) == resets:
                self.deliver(target, generation, me, message)

        for _ in range(2 if not self.healed and random.random() < f.duplicate else 1):
            slow = not self.healed and random.random() < f.slow
            delay = 1 + random.randrange(f.slow_delay_ns if slow else f.max_delay_ns)
            self.at(delay, arrive)

    def deliver(self, target: Node, generation: int, src: Process, message: Any) -> None:
        # a connection ends with the process it was opened to (R13)
        if target.up and target.generation == generation:
            self.note(f"{target.name} {type(message).__name__}")
            if self.now < target.paused_until:
                target.backlog.append(lambda: self.deliver(target, generation, src, message))
            else:
                target.receive(src, message)

    def note(self, text: str) -> None:
        self.digest.update(f"{self.now}{text}".encode())

    def snapshot(self, node: Node, effect: fx.StartSnapshot) -> None:
        """Stream a consistent view of the applied state, in one piece, after a while."""
        target = self.nodes[effect.node]
        index, state = node.applied, dict(node.state)
        if index < node.replica.log.base_index:
            raise Violation("R17: the state is behind the log's base")
        epoch = node.replica.log.epoch_at(index)
        rows = [(META_KEY, node.machine.metadata(META_KEY) or b"")]
        rows += [(SESSION_PREFIX + c, s.pack()) for c, s in node.machine.sessions.items()]
        src, generation = node.me, target.generation
        if (node.name, effect.node) in self.cuts or not target.up:
            return

        def arrive() -> None:
            if target.up and target.generation == generation and not target.replica.installing:
                target.installing = (index, epoch, state, rows)
                target.do(SnapshotStaged(P, src, effect.epoch, index, epoch))
                target.run()

        late = self.random.choice((20, 200, 1500)) * MS
        self.after(1 + self.random.randrange(late), target, arrive)

    # --- the end ----------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults; everybody runs; etcd is not back yet."""
        self.healed = True
        self.cuts.clear()
        self.etcd.up = False
        for node in self.nodes.values():
            node.paused_until = 0
            node.wake()
            if not node.up:
                node.start()

    def play(self, faulty_ns: int = FAULTY_NS, calm_ns: int = 4_000 * MS) -> World:
        """Run with faults, then without, and require service and every promise kept. Raises
        Violation with seed and story; with ``steps`` it may end early."""
        try:
            self._play(faulty_ns, calm_ns)
        except Stopped:
            pass
        except (Violation, InvariantBroken, AssertionError, IndexError, KeyError) as e:
            raise Violation(
                f"seed {self.seed} ({self.name}) after {self.done} events: {type(e).__name__}: {e}\n{self.told()}\n"
                f"replay: make sim OF=core SEED={self.seed}",
                of=broken_by(e),
            ) from e
        return self

    def _play(self, faulty_ns: int, calm_ns: int) -> None:
        self.run(faulty_ns)
        self.heal()
        if self.etcd.config.epoch:  # etcd has named a leader at least once
            self.until(self.nobody_serves, calm_ns)
            self.run(AFTERWARDS_NS)
        self.etcd.up = True
        self.until(self.unsettled, calm_ns)
        self.run(AFTERWARDS_NS)
        for client in self.clients:
            client.stopped = True
        self.until(self.unfinished, 1500 * MS)
        problem = self.unsettled()
        if problem:
            raise Violation(problem)
        (leader,) = self.leaders()
        self.checks.check_history(leader)

    def until(self, problem: Callable[[], str], patience_ns: int) -> None:
        """Run until there is no ``problem``; if there still is one in the end, that is it."""
        deadline = self.now + patience_ns
        while problem():
            if self.now >= deadline:
                raise Violation(problem())
            self.run(STEP_NS)

    def leaders(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.replica.role == ACTIVE]

    def nobody_serves(self) -> str:
        return "" if self.leaders() else "I8: a quorum and no etcd, and nobody serves (R12, R16)"

    def unsettled(self) -> str:
        leaders = self.leaders()
        if len(leaders) != 1:
            return f"I8: {len(leaders)} active leaders after healing"
        leader, etcd = leaders[0], self.etcd
        named = (etcd.config.leader, term_of(etcd.config.epoch), etcd.leader_owner)
        mine = (leader.name, term_of(leader.replica.sealed_epoch), leader.name + leader.me.incarnation)
        return "" if named == mine else f"I8: etcd names {named}, the leader is {mine}"

    def unfinished(self) -> str:
        """Clients have all their answers, replicas hold the same."""
        busy = [c.id for c in self.clients if not c.idle]
        if busy:
            return f"I8: clients {busy} still wait"
        last = max(n.replica.commit_index for n in self.nodes.values())
        behind = [n.name for n in self.nodes.values() if n.applied != last]
        return f"I8: {behind} did not catch up with {last}" if behind else ""


def plan_of(seed: int) -> str:
    """The name of its plan."""
    return list(PLANS)[seed % len(PLANS)]


def world_of(seed: int, steps: int = 0, checked: bool | None = None) -> World:
    """The world of a seed. ``checked``: whether each step of the core is; by default in one of three, of each plan."""
    name = plan_of(seed)
    world = World(seed, PLANS[name], nodes=5 if seed % 11 == 0 else 3, steps=steps, name=name)
    world.checked = seed % 3 == 0 if checked is None else checked
    return world
