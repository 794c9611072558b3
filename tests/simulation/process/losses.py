"""Nodes that return with an old copy of their disk, with nothing, or twice (R13): faults of the simulated world.

One machine at a time, since each costs a replica; the next comes when the new store is filled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metastore.storage.memory_engine import MemoryTable
from tests.simulation.process.loop import MS
from tests.simulation.violation import Violation
from tests.unit.storage.engines import FaultyEngine
from tests.unit.storage.simdisk import SimDisk

if TYPE_CHECKING:
    from tests.simulation.process.process import Process
    from tests.simulation.process.world import World

LOOK_NS = 25 * MS
CLONE_MS = 900


def copy_of(process: Process) -> tuple[dict[Any, Any], dict[str, MemoryTable]]:
    """What is on a machine's disk at this moment."""
    return copy.deepcopy(process.disk.files), process.engine.copied()


class Losses:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.events.random
        self.victim: Process | None = None
        #: how often each came to its end
        self.seen: dict[str, int] = {}

    def spares(self, process: Process) -> bool:
        """Whether other faults are to leave it alone: who has a clone beside it must be seen to live."""
        return self.victim is process and process.cloned

    # --- what befalls -------------------------------------------------------------------------

    def restore_old_copy(self) -> None:
        """A machine's disk is put back as it was; meanwhile its node was started again, and has acknowledged what
        another replica lacks, perhaps."""
        victim = self._choose()
        if victim is None:
            return
        world, old = self.world, copy_of(victim)
        generation = victim.node.identity.lineage.generation
        world.tell(f"{victim.name}'s disk is copied, at generation {generation}")
        victim.crash("is killed", longest_ms=80)
        others = [
            p for p in world.processes.values() if p is not victim and p.config.cell == victim.config.cell
        ]
        lagging = self.random.choice(others)

        def known() -> bool:
            return all(self._knows(other, victim, generation) for other in others)

        def go_on() -> None:
            lagging.crash("is killed")
            world.events.at(self.random.randrange(200, 500) * MS, put_back)

        def put_back() -> None:
            victim.die_for(lambda: self._replace(victim, *old), "'s disk is put back as it was")
            for other in others:
                if other is not lagging and self.random.random() < 0.7:
                    other.crash("is killed")
            self._await(lambda: victim.refused, lambda: self._discard(victim, "an old copy"))

        self._await(known, go_on)

    def wipe(self) -> None:
        """A machine comes back with an empty disk."""
        victim = self._choose()
        if victim is not None:
            victim.die_for(lambda: self._new_store(victim), " comes back empty")
            self._await(lambda: self.is_filled(victim), lambda: self._over("wiped"))

    def clone(self) -> None:
        """A second process on a copy of a living node's disk, elsewhere; for a while."""
        victim = self._choose()
        if victim is None:
            return
        if not self.world.etcd.up:
            self.victim = None
            return
        world = self.world
        victim.cloned = True
        twin = victim.twin(f"{victim.name}x{len(self.seen)}{world.events.now}")
        self._replace(twin, *copy_of(victim))
        world.tell(f"{twin.name} starts on a copy of {victim.name}'s disk")
        twin.start()

        def over() -> None:
            if (
                twin.up
                and hasattr(twin, "node")
                and twin.node.partitions
                and twin.node.identity.state == "confirmed"
            ):
                raise Violation(
                    f"R13: {twin.name} takes part beside {victim.name}, of whose disk it is a copy"
                )
            if twin.refused:
                self.seen["clone refused"] = self.seen.get("clone refused", 0) + 1
            twin.lives = -1
            if twin.up:
                twin.die(silently=False)
            victim.cloned = False
            self._over("cloned")

        world.events.at(CLONE_MS * MS, over)

    # --- how ----------------------------------------------------------------------------------

    def _choose(self) -> Process | None:
        """Somebody that runs, if nobody is in trouble yet."""
        found = [p for p in self.world.processes.values() if p.runs and p.node.identity.state == "confirmed"]
        if self.victim is not None or not found:
            return None
        self.victim = self.random.choice(found)
        return self.victim

    def _await(self, what: Callable[[], bool], then: Callable[[], None]) -> None:
        """Also when all is healed: what began has to end."""

        def look() -> None:
            if what():
                then()
            else:
                self.world.events.at(LOOK_NS, look)

        look()

    @staticmethod
    def _knows(other: Process, victim: Process, generation: int) -> bool:
        """Whether ``other`` remembers, durably, that ``victim`` was started again."""
        if not other.runs or not victim.runs:
            return False
        told = other.node.identity.known(victim.config.node, None)
        log = other.node.store.log
        return any(known.generation > generation for known in told) and log.durable_seq == log.last_seq

    def _replace(self, process: Process, files: dict[Any, Any], tables: dict[str, MemoryTable]) -> None:
        self.world.watcher.has_another_disk(process)
        process.disk.files = files
        process.engine.tables = tables

    def _new_store(self, process: Process) -> None:
        self.world.watcher.has_another_disk(process)
        process.stores += 1
        process.new_disk(SimDisk(self.random), FaultyEngine())

    def _discard(self, victim: Process, what: str) -> None:
        """What the operator does."""

        def go_on() -> None:
            victim.die_for(lambda: self._new_store(victim), "'s store is discarded")
            self._await(lambda: self.is_filled(victim), lambda: self._over(what))

        self.world.events.at(self.random.randrange(400 * MS), go_on)

    def _over(self, what: str) -> None:
        self.world.tell(f"{self.victim.name if self.victim else '?'}: that was {what}")
        self.seen[what] = self.seen.get(what, 0) + 1
        self.victim = None

    def is_filled(self, process: Process) -> bool:
        """Whether every partition that names the node names the store that it has, and it holds them."""
        if not process.runs:
            return False
        mine = (process.config.node, process.store_id)
        for p in self.world.partitions():
            config = self.world.config(p)
            names = dict(config.members())
            if config.joint is not None or len(config.replicas) < min(3, self.world.plan.nodes):
                return False
            if mine[0] in names and (mine not in config.members() or p not in process.node.partitions):
                return False
        return True
