"""Where a watch goes on when its partition is split (R18): positions of parent and child, as a state machine.

A watch of the whole range follows the parent; at the split entry its upper strand goes on at the child. Parent
and child count versions on from the split entry's, each for itself. Two replicas feed it, each as far as it has
applied; connections end at any moment and the client asks again with the last version that it was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.checker import Violation

#: entries of the parent: a change above the point, below it, the split
ABOVE, BELOW, SPLIT = "abs"


@dataclass(frozen=True)
class Bounds:
    """What a run explores: entries before and after the split, and connections that end."""

    before: int = 2
    after: int = 2
    child: int = 2
    ends: int = 2
    broken: str = ""


class World(NamedTuple):
    """``parent``: its entries, version = place; ``child``: how many changes since the split; ``applied``: by the two
    replicas of the parent; ``server``: which feeds, -1 none, and ``fed`` up to which version; ``told``: the last
    version that the client has of the parent, ``strand``: of the child, -1 = it does not know of it; ``seen``: changes above,
    as the client got them."""

    parent: str
    child: int
    applied: tuple[int, int]
    server: int
    fed: int
    told: int
    strand: int
    child_server: bool
    child_fed: int
    seen: tuple[int, ...]
    ends: int


def initial(bounds: Bounds) -> World:
    return World("", 0, (0, 0), -1, 0, 0, -1, False, 0, (), bounds.ends)


class Watching:
    """The steps of a world within ``bounds``. A change above has its own number: the place among all that ever
    happened above, in the parent and then in the child."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self.change(world)
        for r in (0, 1):
            if world.applied[r] < len(world.parent):
                applied = list(world.applied)
                applied[r] += 1
                yield f"replica {r} applies {applied[r]}", world._replace(applied=(applied[0], applied[1]))
        yield from self.follow(world)
        yield from self.follow_child(world)
        if world.ends and (world.server >= 0 or world.child_server):
            ended = world._replace(server=-1, child_server=False, ends=world.ends - 1)
            yield "the connections end", ended

    def change(self, world: World) -> Iterator[tuple[str, World]]:
        at = world.parent.find(SPLIT)
        if at < 0:
            if len(world.parent) < self.b.before:
                yield "a change above", world._replace(parent=world.parent + ABOVE)
                yield "a change below", world._replace(parent=world.parent + BELOW)
            yield "the split", world._replace(parent=world.parent + SPLIT)
            return
        if len(world.parent) - at - 1 < self.b.after:
            yield "a change below, after the split", world._replace(parent=world.parent + BELOW)
        if world.child < self.b.child:
            yield "a change of the child", world._replace(child=world.child + 1)

    def follow(self, world: World) -> Iterator[tuple[str, World]]:
        """The parent's strand."""
        if world.server < 0:
            for r in (0, 1):
                start = world.told + (1 if self.broken("a watch resumes one entry late") else 0)
                if start > world.applied[r]:
                    continue  # this replica is behind: it answers when it has come so far
                for begin in {
                    start,
                    max(0, start - 1),
                }:  # it may go back a little: the client passes that over
                    asked = world._replace(server=r, fed=begin)
                    yield (
                        f"the client asks replica {r} for what follows {world.told}, fed from {begin}",
                        asked,
                    )
            return
        if world.fed >= world.applied[world.server]:
            return
        version = world.fed + 1
        entry = world.parent[version - 1]
        after = world._replace(fed=version)
        if version <= world.told and not self.broken("the client passes nothing over"):
            yield f"version {version} is passed over", after
            return
        after = after._replace(told=max(version, world.told))
        if entry == ABOVE:
            yield f"version {version} is told: above", self.see(after, world.parent[:version].count(ABOVE))
        elif entry == SPLIT and world.strand < 0:
            position = version
            if self.broken("a watch goes on at the parent's latest version"):
                position = world.applied[world.server]
            if self.broken("a watch goes on at a beginning of the child's own"):
                position = 0
            yield f"the split is told, the child goes on after {position}", after._replace(strand=position)
        else:
            yield f"version {version} is told: nothing above", after

    def follow_child(self, world: World) -> Iterator[tuple[str, World]]:
        if world.strand < 0:
            return
        at = world.parent.find(SPLIT) + 1
        if not world.child_server:
            if world.strand > at + world.child:
                raise Violation(
                    f"W: the watch ends: nothing can be resumed after {world.strand} in the child"
                )
            yield (
                f"the client asks the child for what follows {world.strand}",
                world._replace(child_server=True, child_fed=world.strand),
            )
            return
        version = world.child_fed + 1
        if version <= at + world.child:
            number = world.parent[:at].count(ABOVE) + version - at
            if version <= at:
                raise Violation("W: the child is asked for what was before it")
            after = world._replace(child_fed=version, strand=version)
            yield f"the child's version {version} is told", self.see(after, number)

    @staticmethod
    def see(world: World, number: int) -> World:
        """Each change once, in order, none left out."""
        expected = world.seen[-1] + 1 if world.seen else 1
        if number != expected:
            raise Violation(f"W: change {number} above is told where {expected} is due")
        return world._replace(seen=(number,))
