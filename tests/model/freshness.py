"""How old a stale read may be (R8): which signs of life say that a copy is fresh, as a state machine.

Node 0 leads; node 1 hears it alone from some moment on; nodes 2 and 3 (which stand for a majority) then seal, elect
node 2 and go on. Read grants that 0 holds last ``GRANT`` ticks after it last heard a majority, and it takes itself for
healthy for twice as long. A beat remembers, for the check only, what had been acknowledged anywhere when it was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.checker import Violation

GRANT = 1
FOLLOWER, ACTIVATING, ACTIVE = range(3)


@dataclass(frozen=True)
class Bounds:
    """What a run explores."""

    writes: int = 2
    ticks: int = 3
    beats: int = 2
    broken: str = ""


class Node(NamedTuple):
    """``log``, ``applied``: how many writes."""

    log: int
    applied: int
    role: int


class World(NamedTuple):
    """``heard``: when 0 last heard a majority; ``parted``: 2 and 3 have sealed a later epoch; ``beats`` on their way:
    (sender, commit, fresh, what had been acknowledged)."""

    now: int
    heard: int
    parted: bool
    nodes: tuple[Node, ...]
    beats: frozenset[tuple[int, int, bool, int]]
    acked: int
    writes: int
    sent: int


def initial(bounds: Bounds) -> World:
    node = Node(0, 0, FOLLOWER)
    nodes = (node._replace(role=ACTIVE), node, node, node)
    return World(0, 0, False, nodes, frozenset(), 0, bounds.writes, bounds.beats)


class Freshness:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        nodes = world.nodes
        if world.now < self.b.ticks:
            yield "a tick", world._replace(now=world.now + 1)
        if not world.parted:
            if world.heard < world.now:
                yield "0 hears a majority", world._replace(heard=world.now)
            after = self.set(world, 2, nodes[2]._replace(role=ACTIVATING))
            yield "2 and 3 seal, and 2 adopts what they have", after._replace(parted=True)
        for leader, other in ((0, 2), (2, 3)):
            yield from self.write(world, leader, other)
        two = nodes[2]
        if two.role == ACTIVATING and world.now >= world.heard + GRANT:  # R4
            active = self.set(world, 2, two._replace(role=ACTIVE, applied=two.log))
            yield "2 is active", active
        for leader in (0, 2):
            if nodes[leader].role and world.sent:
                fresh = self.says_fresh(world, leader)
                beat = (leader, nodes[leader].applied, fresh, world.acked)
                sent = world._replace(beats=world.beats | {beat}, sent=world.sent - 1)
                yield f"{leader} sends a beat, {'fresh' if fresh else 'not fresh'}", sent
        for leader, follower in ((0, 1), (0, 2), (0, 3), (2, 3)):
            if (leader == 0 and world.parted and follower != 1) or (leader == 2 and not world.parted):
                continue
            source, node = nodes[leader], nodes[follower]
            if source.role and node.applied < source.applied:
                upto = source.applied
                newer = node._replace(applied=upto, log=max(node.log, upto))
                yield f"{follower} applies {upto} of {leader}", self.set(world, follower, newer)
            for beat in world.beats:
                if beat[0] == leader:
                    self.receive(world, follower, beat)
        self.own_age(world)

    @staticmethod
    def set(world: World, n: int, node: Node, **more: Any) -> World:
        return world._replace(nodes=(*world.nodes[:n], node, *world.nodes[n + 1 :]), **more)

    def write(self, world: World, leader: int, other: int) -> Iterator[tuple[str, World]]:
        """Acknowledged when the leader and a majority (``other`` stands for it) have it."""
        source = world.nodes[leader]
        if source.role != ACTIVE or not world.writes or (leader == 0 and world.parted):
            return
        size = source.log + 1
        after = self.set(world, leader, source._replace(log=size, applied=size))
        after = self.set(after, other, after.nodes[other]._replace(log=size))
        if leader == 0:  # 2 and 3 are the majority that took it
            after = self.set(after, 3, after.nodes[3]._replace(log=size))
        yield f"{leader} has a write acknowledged", after._replace(acked=size, writes=world.writes - 1)

    def says_fresh(self, world: World, leader: int) -> bool:
        node = world.nodes[leader]
        if self.broken("R8 a leader that is not active yet says fresh") and leader == 2 and node.role:
            return True
        if self.broken("R8 healthy is taken for fresh") and leader == 0:
            return world.now < world.heard + 2 * GRANT + 1
        if leader == 0 and not self.broken("R8 an active leader says fresh without its grants"):
            return node.role == ACTIVE and world.now < world.heard + GRANT
        return node.role == ACTIVE

    def receive(self, world: World, follower: int, beat: tuple[int, int, bool, int]) -> None:
        """A beat leaves nothing but a claim: as of its sending, this copy has all that was acknowledged."""
        _, commit, fresh, acked = beat
        node = world.nodes[follower]
        if self.broken("R8 the commit index is not compared"):
            commit = 0
        if self.broken("R8 the age counts from receipt"):
            acked = world.acked
        if (fresh or self.broken("R8 any beat is taken for fresh")) and commit <= node.applied < acked:
            raise Violation(
                f"R8: {follower} takes itself for fresh and lacks what was acknowledged before the beat"
            )

    def own_age(self, world: World) -> None:
        """A leader's own age is zero only while it is active and holds its grants."""
        for leader in (0, 2):
            node = world.nodes[leader]
            zero = self.says_fresh(world, leader)
            if self.broken("R8 a leader's age is zero from its no-op on") and node.role:
                zero = True
            if zero and node.applied < world.acked:
                raise Violation(f"R8: {leader} answers as of now and lacks what was acknowledged")
