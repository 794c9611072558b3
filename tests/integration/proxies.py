"""What may lie between a client and the nodes: proxies that can be cut, and addresses that swallow all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import Any

from metastore.topology import TopologyTable

PASS, SWALLOW_ANSWERS, SWALLOW_ALL, REFUSE = "pass", "swallow answers", "swallow all", "refuse"


class Proxy:
    """A TCP proxy to one node. ``mode`` holds for what is open and for what is opened. A connection that
    has lost bytes never passes any again: TCP leaves nothing out."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.mode = PASS
        self.address = ""
        self.swallowed = 0
        self._server: asyncio.Server | None = None
        self._port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    async def set(self, mode: str) -> None:
        """REFUSE also resets what is open."""
        self.mode = mode
        if mode == REFUSE and self._server is not None:
            self._server.close()
            self._server = None
            for writer in list(self._open):
                writer.transport.abort()
        elif mode != REFUSE and self._server is None:
            await self.listen()

    async def close(self) -> None:
        await self.set(REFUSE)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            node_reader, node_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, node_writer}
        for source, sink, answers in ((reader, node_writer, False), (node_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        lossy = False
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                lossy |= self.mode == SWALLOW_ALL or (answers and self.mode == SWALLOW_ANSWERS)
                if lossy:
                    self.swallowed += len(data)
                    continue
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._open.discard(sink)


class Between:
    """A proxy before each node, and a table that knows nodes by their proxies' addresses only."""

    def __init__(self, nodes: list[str]) -> None:
        self.proxies = [Proxy(node) for node in nodes]

    async def __aenter__(self) -> Between:
        for proxy in self.proxies:
            await proxy.listen()
        return self

    async def __aexit__(self, *_: Any) -> None:
        for proxy in self.proxies:
            await proxy.close()

    async def set(self, mode: str) -> None:
        for proxy in self.proxies:
            await proxy.set(mode)

    @property
    def addresses(self) -> list[str]:
        return [p.address for p in self.proxies]

    def table(self) -> TopologyTable:
        return MappedTable({p.target: p.address for p in self.proxies})


class MappedTable(TopologyTable):
    """A table that learns other addresses for those it is told."""

    def __init__(self, mapping: dict[str, str]) -> None:
        super().__init__()
        self._mapping = mapping

    def merge(self, other: TopologyTable) -> None:
        for name, record in other.nodes.items():
            other.nodes[name] = replace(record, rpc=self._mapping.get(record.rpc, record.rpc))
        super().merge(other)


class BlackHole:
    """An address where connecting neither succeeds nor fails: the queue of a listener that never accepts
    is full."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def close(self) -> None:
        for filler in self._fillers:
            filler.close()
        self._listener.close()
