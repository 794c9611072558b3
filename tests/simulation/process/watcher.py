"""Invariants of the simulated nodes, checked whenever a role changes or an entry is applied."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from metastore.core import effects as fx
from metastore.core.replica import ACTIVATING, ACTIVE, ADOPTING
from metastore.node.node import Node
from tests.simulation.process.recording import Recorder
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.process.process import Process
    from tests.simulation.process.world import World


class Watcher:
    """``owners``: who owned an epoch of a partition; ``applied``: what an entry of it was."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners: dict[tuple[int, int], str] = {}
        self.applied: dict[int, dict[int, tuple[int, Any]]] = defaultdict(dict)
        self.snapshots = 0
        #: I7: (node, partition) -> the highest epoch whose seal was durable there, whatever came of its data
        self.sealed: dict[tuple[str, int], int] = {}

    def watch(self, process: Process, node: Node) -> None:
        """Look at one life of a process."""
        world = self.world
        if world.judge is not None:
            Recorder(world.judge, process, node)
        role_changed, install, apply = node._role_changed, node.snapshots._install, node.store.apply

        def changed(effect: fx.RoleChanged) -> None:
            p, role, epoch = effect.p, effect.role, effect.epoch
            world.tell(f"{process.name} p{p} {role} {epoch:x} {effect.reason}", p)
            # a quorum has sealed: from here on the epoch has an owner (R1, R16)
            if role in (ADOPTING, ACTIVATING):
                me = f"{process.name}/{process.lives}"
                if self.owners.setdefault((p, epoch), me) != me:
                    raise Violation(f"I1: epoch {epoch:x} has two owners", p)
            role_changed(effect)
            if role == ACTIVE:
                self.has_all(process, p, epoch)
                self.reads_alone(process, p, epoch)

        async def installing(p: int, *args: Any) -> None:
            self.snapshots += 1
            world.tell(f"{process.name} p{p} installs a snapshot at {args[1]}", p)
            await install(p, *args)

        def applied(p: int, index: int, epoch: int, changes: Any, *more: Any) -> None:
            entry = (epoch, changes)
            if self.applied[p].setdefault(index, entry) != entry:
                raise Violation(
                    f"I3: {process.name} applies another entry {index} than was applied before", p
                )
            apply(p, index, epoch, changes, *more)

        durable, seals = node.ticks.on_durable, deque[tuple[int, int, int]]()
        seal = node.ticks.runners[fx.PersistSeal]

        def sealed(effect: fx.PersistSeal) -> None:
            seal(effect)
            seals.append((node.store.last_seq, effect.p, effect.epoch))

        def synced(seq: int) -> None:
            while seals and seals[0][0] <= seq:
                _, p, epoch = seals.popleft()
                self.sealed[process.name, p] = max(epoch, self.sealed.get((process.name, p), 0))
            self.keeps_promises(process, node)
            durable(seq)

        node.ticks.on_durable = synced  # type: ignore[method-assign]
        node.ticks.runners[fx.PersistSeal] = sealed
        self.keeps_promises(process, node)
        node._role_changed = changed  # type: ignore[method-assign]
        node.snapshots._install = installing  # type: ignore[method-assign, assignment]
        node.store.apply = applied  # type: ignore[assignment]

    def keeps_promises(self, process: Process, node: Node) -> None:
        """I7: what a store has sealed it knows for ever, also of partitions that it has dropped (R10)."""
        for (name, p), epoch in self.sealed.items():
            if name == process.name:
                info = node.store.partitions.get(p)
                if info is None or info.sealed_epoch < epoch:
                    known = "nothing" if info is None else f"{info.sealed_epoch:x}"
                    raise Violation(f"I7: {name} had sealed {epoch:x}, and knows of {known}", p)

    def has_another_disk(self, process: Process) -> None:
        """What its disk was told to keep is on another one: whoever asks it to keep that is wrong (R13)."""
        self.sealed = {key: epoch for key, epoch in self.sealed.items() if key[0] != process.name}

    def has_all(self, process: Process, p: int, epoch: int) -> None:
        """I3: a new leader's log holds whatever was committed before its epoch."""
        log = process.node.partitions[p].replica.log
        for index, (committed_epoch, _) in self.applied[p].items():
            if index <= log.base_index or committed_epoch >= epoch:
                continue  # a leader that woke up late need not know what came after it
            if index > log.last_index or log.epoch_at(index) != committed_epoch:
                raise Violation(
                    f"I3: {process.name} is active in {epoch:x} without committed entry {index}", p
                )

    def reads_alone(self, process: Process, p: int, epoch: int) -> None:
        """I6: no earlier leader may still read once a later one is active."""
        for other in self.world.processes.values():
            if other is process or not other.up or not hasattr(other, "node"):
                continue
            host = other.node.partitions.get(p)
            if host is None or host.replica.sealed_epoch >= epoch:
                continue
            if host.replica.can_read(other.loop.now_ns()):
                raise Violation(
                    f"I6: {process.name} is active in {epoch:x}, and {other.name} still reads in "
                    f"{host.replica.sealed_epoch:x}",
                    p,
                )
