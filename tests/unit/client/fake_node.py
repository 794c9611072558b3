"""A server that speaks frames and answers whatever a test wants: one node, which leads the only partition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final

from metastore.errors import ConditionFailed
from metastore.layout import NodeRecord
from metastore.operations import ADD, DELETE, GET, KEYS_ONLY, LIST, PUT, TOUCH, TXN
from metastore.records import pack_record
from metastore.topology import Placement, TopologyTable
from metastore.wire import frames

RECORD: Final = pack_record(7, 7, b"value")
EPOCH: Final = 5 << 16

Answer = Callable[[str, list[Any]], Any]
"""``(name of the client, operation)`` -> its result, or None: no answer, or bytes: a frame as it is."""


def good(op: list[Any]) -> list[Any]:
    """What a node answers."""
    kind = op[1]
    if kind == LIST:
        row = RECORD if not op[6] & KEYS_ONLY else 7
        key = op[9] if len(op) > 9 else op[3][8:]
        return [op[0], 0, [[op[3][:8] + key + b"k", row]], None, 0, 9]
    tails: dict[int, list[Any]] = {
        GET: [RECORD, 0],
        PUT: [8, 12, True],
        DELETE: [8, 12],
        ADD: [8, 12, 3],
        TOUCH: [7, 0, 5000],
        TXN: [True, 12, [[0, RECORD], [0, 8, False], [0, 9], [0, 10, 4]][: len(op[8])]]
        if kind == TXN
        else [],
    }
    return [op[0], 0, *tails[kind]]


def failed(op: list[Any]) -> list[Any]:
    return [op[0], ConditionFailed.status, "no", {"version": 3, "index": 9, "record": RECORD}]


class FakeNode:
    """Async context manager. ``watch(name, body)``: what is sent when a watch begins, frames."""

    def __init__(
        self,
        answer: Answer = lambda name, op: good(op),
        watch: Callable[[str, list[Any]], list[bytes]] = lambda name, body: [],
        topology: Callable[[str, dict[str, Any]], Any] = lambda name, wire: [wire],
    ) -> None:
        self.answer, self.watch, self.topology = answer, watch, topology
        self.address = ""
        self.table = TopologyTable("c")
        #: the versions of the protocol, as its hello has them; none = a build that says nothing of them
        self.spoken: list[list[Any]] = []
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> FakeNode:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.table.revision = 5
        self.table.nodes = {"n1": NodeRecord("n1", "c1", "s1", self.address, "127.0.0.1:1")}
        self.table.partitions = {0: Placement(0, 0, 1 << 64, "c1", ("n1",), "n1", EPOCH, None, ("s1",))}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        decoder, name = frames.FrameDecoder(), ""
        try:
            while data := await reader.read(1 << 16):
                for kind, body in decoder.feed(data):
                    if kind == frames.HELLO:
                        name = body[1]
                    for frame in self._answers(name, kind, body):
                        writer.write(frame)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _answers(self, name: str, kind: int, body: Any) -> Iterator[bytes]:
        if kind == frames.HELLO:
            yield frames.pack(frames.HELLO_OK, ["c", "n1", "c1", "s1", "i1", *self.spoken])
        elif kind == frames.TOPOLOGY_REQUEST:
            yield frames.pack(frames.TOPOLOGY, self.topology(name, self.table.to_wire()))
        elif kind == frames.PING:
            yield frames.pack(frames.PING, None)
        elif kind == frames.WATCH:
            yield from self.watch(name, body)
        elif kind == frames.REQUEST:
            for op in body[2]:
                found = self.answer(name, op)
                if isinstance(found, bytes):
                    yield found
                elif found is not None:
                    yield frames.pack(frames.RESPONSE, [found])
