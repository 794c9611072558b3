"""What a store's generation keeps out (R13): old copies put back, clones, as a state machine.

Three members, each a store under a name; a folder may be copied, and the copy run instead of the original or
beside it. A boot adds itself to the runs that the folder has seen, durable, and notes how far the log had come when the
run before ended; then it asks to be let in: by etcd, by compare-and-swap of the newest run, and by the peers, who remember
what they have met; only of a run that was etcd's does etcd know better. Only a folder that has seen the newest run known descends from what was acknowledged then, and
only one in which that run came as far as it told. A folder remembers its last runs, and, whatever their age, those that may be
etcd's. A leader and one other member are a quorum; the longest log of a quorum is adopted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.checker import Violation

#: what nothing keeps out, so that it is left out of the bounds: nothing tells such a copy from a restart
SAME_RUN = "R13 a copy taken since the last mark is put back"
ALL = 9


@dataclass(frozen=True)
class Bounds:
    """What a run explores."""

    writes: int = 2
    copies: int = 1
    boots: int = 2
    elections: int = 1
    outages: int = 0
    wipes: int = 0
    marks: int = 0
    #: how many runs a folder remembers, besides those that may be etcd's
    window: int = ALL
    broken: str = ""


class Folder(NamedTuple):
    """``store``: whose identity it holds; ``generation``: how many runs it has seen; ``seen``: those that it remembers, each
    with how long the log was when it ended, the newest last; ``pins``: runs that asked etcd since the last that it confirmed,
    and that; ``log``: how many writes; ``let_in``: a process runs on it and takes part."""

    store: int
    generation: int
    seen: tuple[tuple[int, int], ...]
    pins: tuple[int, ...]
    log: int
    let_in: bool


class World(NamedTuple):
    """``known``, ``met``: the newest run of each store in etcd, and met by peers, as (generation, run); ``vouched``: whether they
    know that it was etcd's; ``marks``: the run of each store that told etcd how long its log is, and that; ``leader``: a folder,
    -1 none; ``acked``: how many writes were acknowledged; ``next_run``; ``left``: budgets."""

    folders: tuple[Folder, ...]
    etcd: bool
    known: tuple[tuple[int, int], ...]
    met: tuple[tuple[int, int], ...]
    vouched: tuple[bool, ...]
    marks: tuple[tuple[int, int], ...]
    leader: int
    acked: int
    next_run: int
    left: tuple[int, ...]


WRITES, COPIES, BOOTS, ELECTIONS, OUTAGES, WIPES, MARKS = range(7)


def initial(bounds: Bounds) -> World:
    """All three run in their first generation, and the first leads."""
    runs = tuple((1, s) for s in range(3))
    folders = tuple(Folder(s, 1, ((s, 0),), (s,), 0, True) for s in range(3))
    b = bounds
    left = (b.writes, b.copies, b.boots, b.elections, b.outages, b.wipes, b.marks)
    return World(folders, True, runs, runs, (True,) * 3, ((-1, 0),) * 3, 0, 0, 3, left)


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
                if world.etcd and world.known[folder.store][1] != folder.seen[-1][0]:
                    yield f"{_name(world, f)} asks etcd at last", self.register(world, f)
                if world.etcd and world.left[MARKS]:
                    marks = _put(world.marks, folder.store, (folder.seen[-1][0], folder.log))
                    yield f"{_name(world, f)} tells its mark", self.spend(world, MARKS)._replace(marks=marks)
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
        return Folder(store, 0, (), (), 0, False)

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
        run = world.next_run
        fresh = self.begun(folder, run)
        world = self.spend(world, BOOTS)._replace(next_run=run + 1)
        if lives and not self.broken("R13 nobody asks whether another process of it lives"):
            yield f"{name} boots beside a living one, refused", self.set(world, f, fresh)
            return
        told = [world.known[store]] if world.etcd else []
        overruled = world.vouched[store] or self.broken("R13 etcd's word is put above what peers met")
        if not (world.etcd and overruled) and not self.broken("R13 peers do not remember"):
            told.append(world.met[store])
        lacks = world.etcd and self.lacks(fresh, world.marks[store])
        if lacks or not all(self.descends(folder, seen) for seen in told):
            if f < 3 and not self.b.copies and not self.is_forgotten(folder, world.met[store]):
                raise Violation(f"S2: {name} was only restarted, and is refused")
            yield f"{name} boots, refused", self.set(world, f, fresh)
            return
        if self.broken("R13 a run is told before it is durable"):
            fresh = fresh._replace(seen=folder.seen)
        now = (fresh.generation, run)
        asked = fresh._replace(pins=(*fresh.pins, run))
        if self.broken("R13 only what is known to be confirmed is kept"):
            asked = fresh
        met = _put(world.met, store, now)
        vouched = _put(world.vouched, store, world.etcd)
        if not world.etcd:
            yield f"{name} boots", self.set(world, f, fresh._replace(let_in=True), met=met, vouched=vouched)
            return
        known = _put(world.known, store, now)
        yield f"{name} boots, and dies before etcd's answer", self.set(world, f, asked, known=known)
        confirmed = fresh._replace(pins=(run,), let_in=True)
        yield f"{name} boots", self.set(world, f, confirmed, known=known, met=met, vouched=vouched)

    def register(self, world: World, f: int) -> World:
        """A process that began while etcd was away asks it now."""
        folder = world.folders[f]
        store, now = folder.store, (folder.generation, folder.seen[-1][0])
        if self.lacks(folder, world.marks[store]) or not self.descends(folder, world.known[store]):
            return self.stop(world, f)
        known = _put(world.known, store, now)
        vouched = _put(world.vouched, store, True) if world.met[store] == now else world.vouched
        return self.set(world, f, folder._replace(pins=(now[1],)), known=known, vouched=vouched)

    def is_forgotten(self, folder: Folder, met: tuple[int, int]) -> bool:
        """Whether a run that peers met is too long ago to be told from none: who has no etcd then waits for it, and
        where etcd never had that run there is no way but to set the store aside."""
        return met[1] not in dict(folder.seen) and met[0] <= folder.generation - self.b.window

    def begun(self, folder: Folder, run: int) -> Folder:
        """With one run more, and the log's length noted for the one before."""
        ended = tuple((r, folder.log if (r, end) == folder.seen[-1] else end) for r, end in folder.seen)
        seen = (*ended, (run, 0))
        pins = () if self.broken("R13 the run that etcd confirmed is forgotten like others") else folder.pins
        kept = tuple(x for at, x in enumerate(seen) if at >= len(seen) - self.b.window or x[0] in pins)
        return folder._replace(generation=folder.generation + 1, seen=kept)

    def descends(self, folder: Folder, newest: tuple[int, int]) -> bool:
        """Whether the folder has seen the newest run known."""
        generation, run = newest
        if self.broken("R13 generations are not compared"):
            return True
        if self.broken("R13 generations are compared as numbers"):
            return folder.generation >= generation
        if self.broken("R13 an empty folder takes the name's old place") and not folder.seen:
            return True
        if self.broken("R13 what is beyond the runs remembered passes"):
            return run in dict(folder.seen) or generation <= folder.generation - self.b.window
        return run in dict(folder.seen)

    def lacks(self, fresh: Folder, mark: tuple[int, int]) -> bool:
        """Whether a run of this folder's had told more than was found when it had ended."""
        if self.broken("R13 marks are not compared"):
            return False
        return dict(fresh.seen).get(mark[0], ALL) < mark[1]

    @staticmethod
    def is_same_run(world: World, f: int) -> bool:
        """Whether it is a copy taken since the store's last boot that no mark tells from a restart."""
        folder = world.folders[f]
        run, size = world.marks[folder.store]
        if world.etcd and folder.seen and folder.seen[-1][0] == run and folder.log < size:
            return False
        return any(
            x.store == folder.store and x.log > folder.log and world.met[x.store][1] in dict(folder.seen)
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


def _put(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _name(world: World, f: int) -> str:
    return f"store {world.folders[f].store}" + (" (copy)" if f > 2 else "")
