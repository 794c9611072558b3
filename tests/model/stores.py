"""What a store's generation keeps out (R13): old copies put back, clones, as a state machine.

Three members, each a store under a name; a folder may be copied, and the copy run instead of the original or
beside it. A boot adds itself to the runs that the folder has seen, durable, then asks to be let in: by etcd, by
compare-and-swap of the newest run, and by the peers, who remember what they have met. Only a folder that has seen
the newest run known descends from what was acknowledged then. A leader and one other member are a quorum; the longest log
of a quorum is adopted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.checker import Violation

#: what no generation keeps out, so that it is left out of the bounds: nothing tells such a copy from a restart
SAME_RUN = "R13 a copy taken since the last boot is put back"


@dataclass(frozen=True)
class Bounds:
    """What a run explores."""

    writes: int = 2
    copies: int = 1
    boots: int = 2
    elections: int = 1
    outages: int = 0
    wipes: int = 0
    broken: str = ""


class Folder(NamedTuple):
    """``store``: whose identity it holds; ``seen``: the runs that it has seen, its generation is their number; ``log``:
    how many writes; ``let_in``: a process runs on it and takes part."""

    store: int
    seen: tuple[int, ...]
    log: int
    let_in: bool


class World(NamedTuple):
    """``known``, ``met``: the newest run of each store in etcd, and met by peers, as what it had seen; ``leader``: a folder,
    -1 none; ``acked``: how many writes were acknowledged; ``next_run``; ``left``: budgets."""

    folders: tuple[Folder, ...]
    etcd: bool
    known: tuple[tuple[int, ...], ...]
    met: tuple[tuple[int, ...], ...]
    leader: int
    acked: int
    next_run: int
    left: tuple[int, ...]


WRITES, COPIES, BOOTS, ELECTIONS, OUTAGES, WIPES = range(6)


def initial(bounds: Bounds) -> World:
    """All three run in their first generation, and the first leads."""
    runs = ((0,), (1,), (2,))
    folders = tuple(Folder(s, runs[s], 0, True) for s in range(3))
    left = (bounds.writes, bounds.copies, bounds.boots, bounds.elections, bounds.outages, bounds.wipes)
    return World(folders, True, runs, runs, 0, 0, 3, left)


class Stores:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for f, folder in enumerate(world.folders):
            if folder.let_in:
                yield f"{_name(world, f)} stops", self.stop(world, f)
            elif world.left[BOOTS]:
                yield from self.boot(world, f)
            if world.left[COPIES]:
                copy = folder._replace(let_in=False)
                spent = self.spend(world, COPIES)
                yield f"{_name(world, f)} is copied", spent._replace(folders=(*world.folders, copy))
            if world.left[WIPES] and not folder.let_in:
                yield f"{_name(world, f)} is wiped", self.set(self.spend(world, WIPES), f, self.wiped(folder))
        yield from self.work(world)
        if world.etcd and world.left[OUTAGES]:
            yield "etcd goes away", self.spend(world, OUTAGES)._replace(etcd=False)
        if not world.etcd:
            yield "etcd is back", world._replace(etcd=True)

    @staticmethod
    def spend(world: World, what: int) -> World:
        left = world.left
        return world._replace(left=(*left[:what], left[what] - 1, *left[what + 1 :]))

    @staticmethod
    def set(world: World, f: int, folder: Folder, **more: Any) -> World:
        folders = (*world.folders[:f], folder, *world.folders[f + 1 :])
        return world._replace(folders=folders, **more)

    def wiped(self, folder: Folder) -> Folder:
        """An empty folder makes a store of its own; it never takes the identity of the one that was there."""
        store = folder.store if self.broken("R13 an empty folder takes the name's old place") else 3
        return Folder(store, (), 0, False)

    @staticmethod
    def stop(world: World, f: int) -> World:
        after = Stores.set(world, f, world.folders[f]._replace(let_in=False))
        return after._replace(leader=-1) if world.leader == f else after

    def boot(self, world: World, f: int) -> Iterator[tuple[str, World]]:
        folder, name = world.folders[f], _name(world, f)
        store = folder.store
        if store > 2:
            return  # a new store is a member only once it is named one (R10)
        if self.is_same_run(world, f) and not self.broken(SAME_RUN):
            return
        lives = any(x.let_in and x.store == store for x in world.folders)
        fresh = folder._replace(seen=(*folder.seen, world.next_run))
        world = self.spend(world, BOOTS)._replace(next_run=world.next_run + 1)
        if lives and not self.broken("R13 nobody asks whether another process of it lives"):
            yield f"{name} boots beside a living one, refused", self.set(world, f, fresh)
            return
        told = [world.known[store]] if world.etcd else []
        if not self.broken("R13 peers do not remember"):
            told.append(world.met[store])
        if not all(self.descends(folder, runs) for runs in told):
            if (
                f < 3
                and not any(x.store == store and x.let_in for x in world.folders[3:])
                and not self.b.copies
            ):
                raise Violation(f"S2: {name} was only restarted, and is refused")
            yield f"{name} boots, refused", self.set(world, f, fresh)
            return
        seen = fresh.seen
        if self.broken("R13 a run is told before it is durable"):
            fresh = fresh._replace(seen=folder.seen)
        raised = tuple(seen if s == store else k for s, k in enumerate(world.known))
        met = tuple(seen if s == store else k for s, k in enumerate(world.met))
        known = raised if world.etcd else world.known
        yield f"{name} boots", self.set(world, f, fresh._replace(let_in=True), known=known, met=met)

    def descends(self, folder: Folder, newest: tuple[int, ...]) -> bool:
        """Whether the folder has seen the newest run known."""
        if self.broken("R13 generations are not compared"):
            return True
        if self.broken("R13 generations are compared as numbers"):
            return len(folder.seen) >= len(newest)
        if self.broken("R13 an empty folder takes the name's old place") and not folder.seen:
            return True
        return newest[-1] in folder.seen

    @staticmethod
    def is_same_run(world: World, f: int) -> bool:
        """Whether it is a copy taken since the store's last boot: nothing tells that from a restart."""
        folder = world.folders[f]
        return any(
            x.store == folder.store and x.log > folder.log and world.met[x.store][-1] in folder.seen
            for x in world.folders
        )

    def work(self, world: World) -> Iterator[tuple[str, World]]:
        members = [f for f, x in enumerate(world.folders) if x.let_in]
        leader = world.leader
        for f in members:
            other = leader >= 0 and world.folders[f].store != world.folders[leader].store
            if other and world.left[WRITES]:
                size = world.folders[leader].log + 1
                after = self.set(world, leader, world.folders[leader]._replace(log=size))
                after = self.set(after, f, after.folders[f]._replace(log=size), acked=size)
                yield (
                    f"{_name(world, leader)} and {_name(world, f)} have a write",
                    self.spend(after, WRITES),
                )
            if world.left[ELECTIONS] and f != leader:
                for q in members:
                    if world.folders[q].store != world.folders[f].store:
                        yield from self.elect(world, f, q)

    def elect(self, world: World, f: int, q: int) -> Iterator[tuple[str, World]]:
        size = max(world.folders[f].log, world.folders[q].log)
        if size < world.acked:
            raise Violation(
                f"I5: {_name(world, f)} and {_name(world, q)} lead with {size} of {world.acked} writes"
            )
        after = self.set(self.spend(world, ELECTIONS), f, world.folders[f]._replace(log=size), leader=f)
        yield f"{_name(world, f)} leads, with {_name(world, q)}", after


def _name(world: World, f: int) -> str:
    return f"store {world.folders[f].store}" + (" (copy)" if f > 2 else "")
