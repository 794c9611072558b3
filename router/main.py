"""``metastore-router``: the HTTP gateway as a process.

Its topology comes from hints, the etcd watch and a snapshot on disk, in that order of trust;
it starts and serves with etcd down.

A router that restarts remembers nothing of which etcd it followed (R13), and need not: nodes do, and it believes etcd only once
they have been asked (``router.trust``). A snapshot is a guess that serves until a node tells better. A namespace's policy is not
written into an etcd that a node distrusts (``metastore.admin.namespaces``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys

import uvloop

from metastore.admin.namespaces import NamespaceAdmin
from metastore.config import RouterConfig, load_config
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Change
from metastore.coordination.lineage import Follower
from metastore.errors import ConfigError, MetastoreError
from metastore.layout import Layout
from metastore.logs import setup_logging
from metastore.process import open_files_limit
from router.bulkheads import Bulkheads, CellDispatcher
from router.gateway import Gateway
from router.snapshot import Snapshot, load_snapshot, save_snapshot
from router.trust import Trust

log = logging.getLogger("router")

ELECTION_PATIENCE_S = 3.0
#: connections that wait to be accepted; the kernel's own bound (somaxconn) holds beside it
BACKLOG = 4096
#: open files beside client connections: nodes, etcd, logs, the snapshot
SPARE_FILES = 512
GC_THRESHOLD = (50_000, 20, 50)


class Router:
    """One router: start it, stop it. Several may run in one process (tests do)."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.layout = Layout(config.cluster)
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, whether the topology is known yet or not. Raises OSError."""
        config, loop = self.config, asyncio.get_running_loop()
        self.bulkheads = Bulkheads(config)
        self.dispatcher = CellDispatcher(config, self.bulkheads, ELECTION_PATIENCE_S)
        table = self.dispatcher.table
        if config.snapshot_path:
            load_snapshot(config.snapshot_path, table)
            table.doubt()
        self.coordinator = EtcdCoordinator(config.etcd)
        self.trust = Trust(self.layout, self.dispatcher, self.coordinator)
        self._follower = Follower(self.coordinator, self.layout.lineage)
        self._following = loop.create_task(self._follower.run())
        self._watch = self.trust.watch = self.coordinator.watch(self.layout.root, self._on_change)
        self._trusting = loop.create_task(self.trust.run())
        await self.dispatcher.start(0, required=False)
        admin = NamespaceAdmin(self.coordinator, self.layout, self.dispatcher, config.max_namespaces)
        self.gateway = Gateway(config, self.dispatcher, admin)
        await self.gateway.server.start(config.http, BACKLOG)
        if config.snapshot_path:
            self._snapshot = Snapshot(config.snapshot_path, table)
            self._keeper = loop.create_task(self._snapshot.keep())

    def _on_change(self, revision: int, changes: list[Change]) -> None:
        self.trust.take(revision, changes)
        if any(change.key == self.layout.lineage for change in changes):
            self._follower.notice()

    @property
    def port(self) -> int:
        return self.gateway.server.port

    async def drain(self) -> None:
        """Go on serving for ``drain_s`` while ``/readyz`` says that this router stops."""
        self.gateway.drain()
        await asyncio.sleep(self.config.drain_s)

    async def stop(self) -> None:
        """Finish what is under way, and end."""
        self.gateway.server.stop_listening()
        await self.gateway.close()
        table = self.dispatcher.table
        for task in (self._keeper, self._following, self._trusting):
            if task is not None:
                task.cancel()
        if self._keeper is not None and table.complete:
            with contextlib.suppress(OSError):
                save_snapshot(self.config.snapshot_path, self._snapshot.wire())
        self._watch.close()
        await self.dispatcher.close()
        await self.coordinator.close()


async def serve(config: RouterConfig) -> int:
    """Run until a signal; a second one does not wait for what is under way."""
    loop = asyncio.get_running_loop()
    stop, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if stop.is_set() else stop).set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, on_signal)
    wanted, limit = config.max_connections + SPARE_FILES, open_files_limit()
    if limit < wanted:
        log.warning(
            "max_connections needs %d open files, and the system allows %d (ulimit -n)", wanted, limit
        )
    router = Router(config)
    await router.start()
    log.info("router of cluster %s serves on %s", config.cluster, config.http)
    # thousands of connections are many long-lived objects: looking through all of them again and
    # again costs a third of what an answer does
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    await stop.wait()

    async def end() -> None:
        await router.drain()
        await router.stop()

    ending, hurried = loop.create_task(end()), loop.create_task(at_once.wait())
    await asyncio.wait({ending, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not ending.done():
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        config = load_config(
            RouterConfig, sys.argv[1:] if argv is None else argv, "METASTORE_ROUTER", "router"
        )
        setup_logging(config.log_level, config.log_format)
        return uvloop.run(serve(config))
    except (ConfigError, MetastoreError) as e:
        print(f"metastore-router: {e.message}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"metastore-router: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
