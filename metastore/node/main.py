"""``metastore-node``: one storage node as a process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import signal
import sys
from typing import Any

import uvloop

from metastore import net
from metastore.config import NodeConfig, load_config
from metastore.coordination.etcd import EtcdCoordinator
from metastore.errors import ConfigError, MetastoreError
from metastore.logs import setup_logging
from metastore.node.admission import MAX_BEFORE_HELLO
from metastore.node.clients import ClientConnection
from metastore.node.control.agent import known_etcd
from metastore.node.http import MAX_CONNECTIONS as HTTP_CONNECTIONS
from metastore.node.http import serve_http
from metastore.node.node import Node
from metastore.node.recorder import Recorder
from metastore.node.startup import take_part
from metastore.process import open_files_limit
from metastore.storage.discarding import discard
from metastore.storage.options import StorageOptions
from metastore.storage.space import SLACK_BYTES
from metastore.storage.store import Store
from metastore.web import WebServer

log = logging.getLogger("metastore.main")

#: the flag that sets the folder aside instead of starting the node (R13)
DISCARD = "--discard-store"
#: log segments, state, etcd, peers
OTHER_FILES = 256


def open_store(config: NodeConfig) -> Store:
    """The node's data folder, recovered. Raises StorageError, ConfigError."""
    options = StorageOptions(
        segment_bytes=config.segment_mib << 20,
        log_retention_bytes=config.log_retention_mib << 20,
        overlay_limit_bytes=config.overlay_mib << 20,
        map_size_bytes=config.map_size_gib << 30,
        read_cache_bytes=config.read_cache_mib << 20,
        scrub_bytes_s=config.scrub_mib_s << 20,
        low_bytes=config.disk_low_mib << 20,
        # one that holds no segment of the log would help nobody
        reserve_bytes=max(config.disk_reserve_mib << 20, (config.segment_mib << 20) + SLACK_BYTES)
        if config.disk_reserve_mib
        else 0,
    )
    return Store.open(config.data_dir, cluster=config.cluster, node=config.node, options=options)


def within_open_files(config: NodeConfig) -> NodeConfig:
    """As many connections as files may be open, less what the store needs: a node that cannot open
    its next log segment, because strangers hold all descriptors, would have to stop (R14)."""
    allowed = open_files_limit() - MAX_BEFORE_HELLO - HTTP_CONNECTIONS - OTHER_FILES
    if config.max_connections <= allowed:
        return config
    allowed = max(16, allowed)
    log.warning(
        "max_connections = %d needs more open files than the system allows (ulimit -n); using %d",
        config.max_connections,
        allowed,
    )
    return dataclasses.replace(config, max_connections=allowed)


async def listen(node: Node) -> tuple[asyncio.Server, WebServer]:
    """The node's addresses are its own from here on, and nobody is let in yet (R13). Two processes can both bind one
    address, as long as neither listens. Raises OSError, with the store closed as it was found: no other process ran on it."""
    config = node.config
    try:
        server = await net.listen(lambda: ClientConnection(node), config.rpc_listen or config.rpc)
    except OSError:
        node.store.abandon()
        raise
    try:
        return server, await serve_http(node)
    except OSError:
        server.close()
        node.store.abandon()
        raise


async def serve(config: NodeConfig) -> int:
    """Run until a signal (0) or a failure (1)."""
    config = within_open_files(config)
    store = open_store(config)
    node = Node(config, store, secrets.token_hex(8))
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def signalled(number: int) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    recorder = Recorder(node)
    node.halt.on_failed = recorder.write_soon
    loop.add_signal_handler(signal.SIGUSR1, recorder.write_soon, "asked by SIGUSR1")
    server, http = await listen(node)
    coordinator = EtcdCoordinator(config.etcd, known_etcd(store.facts))

    async def begin() -> None:
        if await take_part(node, coordinator):
            log.info("node %s of cell %s serves on %s", config.node, config.cell, config.rpc)
            node.collector.tune()
        else:
            server.close()

    beginning = loop.create_task(begin())
    beginning.add_done_callback(node.halt.ended)
    failed = asyncio.ensure_future(node.halt.failed.wait())
    waiting: list[asyncio.Future[Any]] = [stop, failed]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    server.close()
    await node.stop(hand_over=stop.done() and stop.result() == signal.SIGTERM)
    await http.stop()
    await asyncio.to_thread(recorder.wait)
    return 1 if node.failure is not None else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    discards = DISCARD in arguments
    try:
        config = load_config(NodeConfig, [a for a in arguments if a != DISCARD], "METASTORE_NODE", "node")
        setup_logging(config.log_level, config.log_format, node=config.node)
        if discards:
            aside = discard(config.data_dir, cluster=config.cluster, node=config.node)
            print(
                f"the store was set aside, whole, in {aside} (discarded); nothing was deleted",
                file=sys.stderr,
            )
            print(
                f"next: start node {config.node}; it begins empty, and is filled by itself", file=sys.stderr
            )
            return 0
        return uvloop.run(serve(config))
    except (ConfigError, MetastoreError) as e:
        print(f"metastore-node: {e.message}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"metastore-node: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
