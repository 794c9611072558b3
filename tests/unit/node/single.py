"""One node that is a whole cluster: a real store, a real port, a real client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from metastore.client import AsyncClient
from metastore.clock import now_ns
from metastore.config import NodeConfig
from metastore.core.events import ConfigSeen
from metastore.layout import ConfigRecord, NodeRecord, first_epoch, to_json
from metastore.node.clients import ClientConnection
from metastore.node.node import Node
from metastore.storage.disk import Disk
from metastore.storage.options import StorageOptions
from metastore.storage.store import Store

EPOCH = first_epoch(1)


class Single:
    """See the module; an async context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        term: int = 1,
        options: StorageOptions | None = None,
        disk: Disk | None = None,
        **settings: Any,
    ) -> None:
        self.options, self.disk = options, disk
        self.folder = folder
        self.term = term
        self.settings = settings

    async def __aenter__(self) -> Single:
        loop = asyncio.get_running_loop()
        self.store = Store.open(
            self.folder, cluster="metastore", node="f", options=self.options, disk=self.disk
        )
        config = NodeConfig(
            cell="c1",
            node="f",
            data_dir=str(self.folder),
            rpc="127.0.0.1:9",
            http="127.0.0.1:9",
            **self.settings,
        )
        self.node = Node(config, self.store, "1")
        self.server = await loop.create_server(lambda: ClientConnection(self.node), "127.0.0.1", 0)
        self.rpc = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.node.start()
        record = ConfigRecord(0, 0, 1 << 64, first_epoch(self.term), "f", (("f", self.store.store_id),))
        me = NodeRecord("f", "c1", self.store.store_id, self.rpc, "127.0.0.1:9")
        self.node.topology.apply_kv(("config", "c1", "00000"), record.to_json(), 1)
        self.node.topology.apply_kv(("nodes", "f"), to_json(me), 1)
        self.host = self.node.open_partition(record)
        self.node.core.handle(now_ns(), ConfigSeen(0, record, 1))
        self.node.ticks.run_effects()
        while self.host.role != "active":
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.node.stop(hand_over=False)

    def client(self) -> AsyncClient:
        return AsyncClient([self.rpc], deadline_s=20)

    def block_syncs(self) -> asyncio.Event:
        """From here on no sync of the log ends until the event is set."""
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        log = self.store.log
        writer = log.writer
        assert writer is not None

        async def later(pieces: Any) -> None:
            await go.wait()
            writer(pieces)

        def write(pieces: Any) -> None:
            loop.create_task(later(pieces))

        log.writer = write
        return go
