"""A machine of the simulated world, and the node that runs on it, life after life."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastore.config import NodeConfig
from metastore.errors import CorruptLog, StorageError
from metastore.node.clients import ClientConnection
from metastore.node.control.agent import known_etcd
from metastore.node.node import Node
from metastore.node.startup import take_part
from metastore.storage.folder import Folder
from metastore.storage.options import StorageOptions
from metastore.storage.state import State
from metastore.storage.store import Store
from tests.simulation.process.etcd import SimCoordinator
from tests.simulation.process.loop import MS, SimLoop
from tests.simulation.violation import Violation
from tests.unit.storage.engines import FaultyEngine
from tests.unit.storage.simdisk import Cut, SimDisk

if TYPE_CHECKING:
    from tests.simulation.process.world import World

FOLDER = Path("/sim")
#: small, so that segments, flushes, compaction and snapshots are everyday events
STORAGE = StorageOptions(
    segment_bytes=16 << 10,
    log_retention_bytes=48 << 10,
    cache_bytes=2 << 10,
    flush_changes=40,
    flush_age_s=0.3,
)
SCRUB_BYTES_S = 256 << 10
SETTINGS: dict[str, Any] = {
    "heartbeat_ms": 60,
    "grant_ms": 300,
    "suspect_after_ms": 400,
    "settle_ms": 30,
    "lease_ttl_s": 1.0,
    "clock_rate_error_ppm": 1000,
}


class Process:
    """Disk and engine outlive the process that runs on them."""

    def __init__(self, world: World, name: str, cell: str) -> None:
        self.world = world
        self.name = name
        self.disk = SimDisk(world.events.random)
        self.disk.on_cut = self.cut
        self.engine = FaultyEngine()
        self.max_sync_ns = world.plan.max_sync_ms * MS
        #: something was done to its disk that may end it
        self.hurt = False
        self.lives = 0
        #: as store.json says
        self.created = False
        #: how many stores this machine has had
        self.stores = 1
        #: a second process runs on a copy of its disk
        self.cloned = False
        self.up = False
        self.node: Node
        self.loop: SimLoop
        self.config = NodeConfig(
            cluster="sim",
            cell=cell,
            node=name,
            data_dir="/sim",
            rpc=f"{name}:1",
            http=f"{name}:2",
            **(SETTINGS | world.plan.settings),
        )
        drift = world.plan.drift_ppm
        self.rate = 1 + world.events.random.uniform(-drift, drift) / 1e6
        self.offset_ns = world.events.random.randrange(10**15)

    @property
    def store_id(self) -> str:
        return f"{self.config.node}-store{self.stores}".ljust(32, "-")

    @property
    def refused(self) -> bool:
        """Whether it has found that its store is an old copy, a clone or was replaced (R13)."""
        return self.up and hasattr(self, "node") and self.node.identity.refused

    @property
    def runs(self) -> bool:
        """Whether it could do something now."""
        return self.up and not self.loop.paused and hasattr(self, "node")

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        world = self.world
        self.lives += 1
        self.up = True
        if self.name in world.network.dark:
            world.network.dark.discard(self.name)
            world.network.release(10 * MS)
        self.loop = SimLoop(
            world.events, self.name, world.network, self.rate, self.offset_ns, world.plan.load
        )
        try:
            self.loop.enter(lambda: self.loop.create_task(self._main()).add_done_callback(self._ended))
        except Cut:
            pass

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Cut):
            return
        reason = error or self.node.failure
        self.world.tell(f"{self.name} stops: {reason}")
        # R14: a damaged disk ends a node, and nothing else does
        if isinstance(reason, CorruptLog):
            self.world.events.failure = Violation(f"R14: {self.name} has lost what was durable: {reason}")
        elif not self.hurt or not isinstance(reason, OSError | StorageError):
            self.world.events.failure = reason
        self.die(silently=False)
        self.world.events.at(self.world.events.random.randrange(600 * MS), self.restart)

    async def _main(self) -> None:
        """As metastore.node.main."""
        world = self.world
        # where something rots it is looked for, all the time; elsewhere that would cost more than all the rest
        options = dataclasses.replace(
            STORAGE, scrub_bytes_s=SCRUB_BYTES_S if "rot" in world.plan.faults else 0
        )
        folder = Folder(FOLDER, {"store_id": self.store_id}, not self.created)
        store = Store(folder, self.disk, State(self.engine, not self.created), options)
        self.created = True
        store.log.writer = self._write
        node = self.node = Node(self.config, store, f"{self.name}/{self.lives}")
        world.watcher.watch(self, node)
        coordinator = SimCoordinator(
            world.network,
            world.etcd,
            self.name,
            known_etcd(store.facts),
        )
        await self.loop.create_server(lambda: ClientConnection(node), self.name, 1)
        await take_part(node, coordinator)
        await node.halt.failed.wait()

    def _write(self, pieces: Any) -> None:
        """The log's writer thread."""
        log = self.node.store.log

        def work() -> None:
            try:
                log.write_pieces(pieces)
            except OSError as e:
                log.group_written(e)
            else:
                log.group_written(None)

        delay = 1 + int(self.world.events.random.random() * self.max_sync_ns)
        self.loop.call_later(delay / 1e9, work)

    def cut(self) -> None:
        """The disk says that the process ends in the middle of this very operation."""
        self.loop.kill()
        self.world.events.at(0, lambda: self.crash("dies in a disk operation"))

    def die(self, *, silently: bool) -> None:
        self.up = False
        self.loop.kill()
        self.world.network.process_died(self.name, silently=silently)

    def crash(self, how: str, *, power: bool = False, longest_ms: int = 1200) -> None:
        """A kill, or with ``power`` the whole machine."""
        world = self.world
        if not self.up or world.losses.spares(self):
            return
        world.tell(f"{self.name} {how}")
        self.die(silently=power)
        if power:
            self.disk.power_loss()
            world.network.dark.add(self.name)
        else:
            self.disk.kill()
        pause_ms = world.events.random.choice((min(80, longest_ms), longest_ms))
        world.events.at(world.events.random.randrange(pause_ms * MS), self.restart)

    def die_for(self, what: Callable[[], None], how: str) -> None:
        """The process ends if it runs, ``what`` is done to the machine, and it starts again soon."""
        self.world.tell(f"{self.name}{how}")
        if self.up:
            self.die(silently=False)
        self.disk.kill()
        what()
        self.hurt = False
        self.world.events.at(self.world.events.random.randrange(80 * MS), self.restart)

    def new_disk(self, disk: SimDisk, engine: FaultyEngine) -> None:
        self.disk, self.engine, self.created = disk, engine, False
        self.disk.on_cut = self.cut

    def twin(self, name: str) -> Process:
        """A second machine that would run as the same node."""
        other = Process(self.world, name, self.config.cell)
        other.config = dataclasses.replace(self.config, rpc=f"{name}:1", http=f"{name}:2")
        other.stores, other.created = self.stores, True
        return other

    def restart(self) -> None:
        if not self.up and self.lives >= 0:
            self.world.tell(f"{self.name} starts")
            self.disk.kill()  # what was left to happen in the middle of an operation will not
            random = self.world.events.random
            if not self.world.healed and "tear" in self.world.plan.faults and random.random() < 0.1:
                self.disk.cut_after = random.randrange(12)  # it dies again while it recovers
            self.start()
