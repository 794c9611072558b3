"""``metastore-router``: the HTTP gateway as a process.

Its topology comes from hints, the etcd watch and a snapshot on disk, in that order of trust;
it starts and serves with etcd down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import orjson
import uvloop

from metastore.client.dispatch import Dispatcher
from metastore.config import RouterConfig, load_config
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Change
from metastore.errors import ConfigError, InvalidRequest, MetastoreError
from metastore.layout import Layout
from metastore.logs import setup_logging
from metastore.process import open_files_limit
from metastore.topology import TopologyTable
from metastore.web import WebServer
from router.gateway import Gateway

log = logging.getLogger("router")

SNAPSHOT_INTERVAL_S = 5.0
FIRST_SNAPSHOT_S = 0.1
ELECTION_PATIENCE_S = 3.0
#: nodes, etcd, the snapshot
OTHER_FILES = 128


def load_snapshot(path: str, table: TopologyTable) -> None:
    """Merge the snapshot, if there is a good one."""
    try:
        table.merge(TopologyTable.from_wire(orjson.loads(Path(path).read_bytes())))
    except FileNotFoundError:
        pass
    except (OSError, orjson.JSONDecodeError, InvalidRequest) as e:
        log.warning("the topology snapshot %s cannot be used and is ignored: %s", path, e)


def save_snapshot(path: str, wire: bytes) -> None:
    temporary = path + ".new"
    with open(temporary, "wb") as f:
        f.write(wire)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


async def keep_snapshot(path: str, table: TopologyTable) -> None:
    """Write the snapshot as soon as there is a whole table, then when it changed, every few
    seconds at most."""
    saved = None
    while True:
        await asyncio.sleep(SNAPSHOT_INTERVAL_S if saved else FIRST_SNAPSHOT_S)
        now = orjson.dumps(table.to_wire()["partitions"])
        if table.complete and now != saved:
            try:
                await asyncio.to_thread(save_snapshot, path, orjson.dumps(table.to_wire()))
                saved = now
            except OSError as e:
                log.warning("the topology snapshot cannot be written: %s", e)


def follow_etcd(layout: Layout, table: TopologyTable, revision: int, changes: list[Change]) -> None:
    """Feed the table from the watch."""
    for change in changes:
        try:
            table.apply_kv(layout.parse(change.key), change.new.value if change.new else None, revision)
        except (InvalidRequest, KeyError, ValueError, TypeError) as e:
            log.error("control-plane record %s is not understood and is ignored: %s", change.key, e)


async def serve(config: RouterConfig) -> int:
    """Run until a signal."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    dispatcher = Dispatcher(
        list(config.nodes), config.cluster, name="router", election_patience_s=ELECTION_PATIENCE_S
    )
    table, layout = dispatcher.table, Layout(config.cluster)
    if config.snapshot_path:
        load_snapshot(config.snapshot_path, table)
    coordinator = EtcdCoordinator(config.etcd)
    watch = coordinator.watch(
        layout.root, lambda revision, changes: follow_etcd(layout, table, revision, changes)
    )
    await dispatcher.start(0, required=False)
    server = WebServer(
        Gateway(config, dispatcher).app(),
        max_connections=min(config.max_connections, max(16, open_files_limit() - OTHER_FILES)),
        patience_s=config.client_patience_s,
        answer_bytes=config.request_memory_mib << 20,
    )
    await server.start(config.http)
    log.info("router of cluster %s serves on %s", config.cluster, config.http)
    keeper = loop.create_task(keep_snapshot(config.snapshot_path, table)) if config.snapshot_path else None
    await stop.wait()
    if keeper is not None:
        keeper.cancel()
        if table.complete:
            with contextlib.suppress(OSError):
                save_snapshot(config.snapshot_path, orjson.dumps(table.to_wire()))
    await server.stop()
    watch.close()
    await dispatcher.close()
    await coordinator.close()
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
