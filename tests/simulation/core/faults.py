"""What may befall the simulated world; plans say how often."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from metastore.core.events import TransferWanted
from metastore.core.replica import ACTIVATING, ACTIVE
from metastore.core.settings import MS
from tests.simulation.core.etcd import P

if TYPE_CHECKING:
    from tests.simulation.core.node import Node
    from tests.simulation.core.world import World


def links_between(a: str, others: list[str]) -> list[tuple[str, str]]:
    return sorted({(a, b) for b in others} | {(b, a) for b in others})


def start(node: Node) -> None:
    """Start it, unless somebody else has."""
    if not node.up:
        node.start()


class Faults:
    """Each method does one thing to somebody, drawn from the seed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self._alone: Node | None = None

    def start(self) -> None:
        plan = self.world.plan
        for every, what in (
            (plan.crash_every_ns, self.crash),
            (plan.pause_every_ns, self.pause),
            (plan.cut_every_ns, self.cut),
            (plan.reset_every_ns, self.reset),
            (plan.depose_every_ns, self.depose),
            (plan.etcd_every_ns, self.etcd),
            (plan.transfer_every_ns, self.transfer),
            (plan.compact_every_ns, self.compact),
        ):
            if every:
                self.again(every, what)

    def again(self, every: int, what: Callable[[], None]) -> None:
        def fire() -> None:
            if not self.world.healed:
                what()
                self.again(every, what)

        self.world.at(int(self.random.expovariate(1 / every)) + 1, fire)

    def crash(self) -> None:
        victims, dice = [self.world.pick()], self.random.random()
        if dice < 0.3:  # all, or all but one
            victims = [n for n in self.world.nodes.values() if dice < 0.15 or n is not victims[0]]
        self.crash_all(victims, self.random.choice((60, 600)) * MS)

    def crash_all(self, victims: list[Node], most: int) -> None:
        for node in victims:
            if node.up:
                self.world.tell(f"{node.name} crashes")
                node.crash()
                self.world.at(self.random.randrange(most), partial(start, node))

    def pause(self) -> None:
        node = self.world.pick()
        if node.up and self.world.now >= node.paused_until:
            self.world.tell(f"{node.name} pauses")
            node.paused_until = self.world.now + self.random.randrange(1500 * MS)
            self.world.at(node.paused_until - self.world.now, node.wake)

    def cut(self) -> None:
        a, b = self.random.sample(sorted(self.world.nodes), 2)
        links = {(a, b)} if self.random.random() < 0.5 else {(a, b), (b, a)}
        if self.random.random() < 0.3:  # a whole node, one way or both
            links = {(a, x) for x in self.world.nodes if x != a}
            if self.random.random() < 0.5:
                links |= {(x, a) for x in self.world.nodes if x != a}
        self.world.cuts |= links
        self.world.tell(f"cut {sorted(links)}")
        self.world.at(self.random.randrange(900 * MS), lambda: self.world.cuts.difference_update(links))

    def reset(self) -> None:
        """Connections break while both ends live: each counts the other as lost at once (R9)."""
        a = self.world.pick().name
        others = [x for x in sorted(self.world.nodes) if x != a]
        if self.random.random() < 0.5:
            others = [self.random.choice(others)]
        self.part(a, others)

    def depose(self) -> None:
        """The leader alone on one side, and its followers forget what they can."""
        leaders = [n.name for n in self.world.nodes.values() if n.up and n.replica.role == ACTIVE]
        if leaders:
            others = [x for x in sorted(self.world.nodes) if x != leaders[-1]]
            self.part(leaders[-1], others)
            if self.random.random() < 0.6:
                self.crash_all([self.world.nodes[x] for x in others], 20 * MS)

    def dethrone(self, node: Node) -> None:
        """A new leader is cut off before it gets far, and the one before it comes back: what each
        has appended alone meets again later (the order of events of Raft's figure 8)."""
        world, generation, most = self.world, node.generation, self.world.plan.dethrone_ns
        if world.healed or not most or (node.role == ACTIVATING and self.random.random() < 0.3):
            return
        if node.role == ACTIVATING and self.random.random() < 0.5:
            most //= 10

        def strike() -> None:
            if world.healed or not node.up or node.generation != generation or self._alone is node:
                return
            if self._alone is not None:
                self.rejoin(self._alone.name, [x for x in sorted(world.nodes) if x != self._alone.name])
            self._alone = node
            self.separate(node.name, [x for x in sorted(world.nodes) if x != node.name])

        world.at(self.random.randrange(most), strike)

    def part(self, a: str, others: list[str]) -> None:
        """Cut off ``a`` for a while; streams break."""
        self.separate(a, others)
        self.world.at(20 * MS + self.random.randrange(700 * MS), lambda: self.rejoin(a, others))

    def separate(self, a: str, others: list[str]) -> None:
        world = self.world
        world.tell(f"resets {a} with {others}")
        for here, there in links_between(a, others):
            world.resets[here, there] = world.resets.get((here, there), 0) + 1
            world.cuts.add((here, there))
            world.after(self.random.randrange(20 * MS), world.nodes[here], self.breaks(here, there))

    def rejoin(self, a: str, others: list[str]) -> None:
        world = self.world
        for here, there in links_between(a, others):
            world.cuts.discard((here, there))
            node = world.nodes[here]
            world.after(self.random.randrange(20 * MS), node, partial(node.connected, there))

    def breaks(self, here: str, there: str) -> Callable[[], None]:
        node = self.world.nodes[here]

        def fire() -> None:
            node.lose(there)

        return fire

    def etcd(self) -> None:
        self.world.etcd.up = False
        self.world.tell("etcd is away")

        def back() -> None:
            self.world.etcd.up = self.world.etcd.up or not self.world.healed

        self.world.at(self.random.randrange(2000 * MS), back)

    def transfer(self) -> None:
        for node in self.world.nodes.values():
            if node.up and node.replica.role == ACTIVE and self.world.now >= node.paused_until:
                other = self.world.pick().name
                node.do(TransferWanted(P, other))
                node.run()

    def compact(self) -> None:
        node = self.world.pick()
        if node.up:
            node.compact()
