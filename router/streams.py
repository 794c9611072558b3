"""``GET /v1/watch``: changes as server-sent events.

Each stream is one Watcher of the client library, so it goes on across leaders, cells and routers, and
holds no more than its buffer: behind a client that does not read, the nodes are told to wait, and a
client that reads nothing for ``write_timeout_s`` is cut off. It may come back with the last id it
has seen.

The id of an event is the position behind it. Positions of whole namespaces grow with the number of
partitions; where one is long it comes once for everything that is written at a time, in a block
without data, which moves an EventSource's position and raises no event.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import orjson
from aiohttp import web

from metastore.client.namespace import AsyncNamespace
from metastore.client.results import Event
from metastore.client.watch.watcher import AsyncWatcher
from metastore.config import RouterConfig
from metastore.errors import MetastoreError, ShuttingDown, WrongRouting
from metastore.keys import encode_key, prefix_routing_key, storage_key_of
from metastore.web import Connection
from router.api.parameters import MAX_TOKEN_CHARS
from router.bulkheads import CellDispatcher, Reservation
from router.calls import Call
from router.problems import item_json, problem_body

BUFFER_EVENTS = 2000
BUFFER_BYTES = 512 << 10
CHUNK_BYTES = 256 << 10
#: a longer id does not come with every event
SHORT_ID_CHARS = 512
#: when an EventSource comes back: apart from the others
RETRY_MS = (500, 3000)


def event_json(event: Event) -> bytes:
    body: dict[str, object] = {"kind": event.kind, "key": event.key, "version": event.version}
    if event.record is not None:
        body |= item_json(event.key, event.record)
    return orjson.dumps(body)


def block(data: bytes, name: str = "", token: str | None = None) -> bytes:
    """One server-sent event. JSON has no line ends, so its data is one line."""
    parts = [b"event: %b\n" % name.encode()] if name else []
    if token:
        parts.append(b"id: %b\n" % token.encode())
    return b"".join((*parts, b"data: ", data, b"\n\n"))


def _over(ending: asyncio.Future[None]) -> None:
    if not ending.done():
        ending.set_result(None)


class Streams:
    """See the module."""

    def __init__(self, config: RouterConfig, dispatcher: CellDispatcher) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.stopping = False
        #: of every open stream what ends it, done when it has ended
        self._open: dict[asyncio.Future[None], web.BaseRequest] = {}

    def stop(self) -> None:
        """End every stream; their readers go on elsewhere."""
        self.stopping = True
        for ending in self._open:
            _over(ending)

    def sweep(self) -> None:
        """End the streams whose clients are gone: in a quiet watch no write would tell."""
        for ending, request in self._open.items():
            if cast(Connection, request.protocol).says_no_more():
                _over(ending)

    def _cells(self, name: str, prefix: str) -> set[str]:
        """The cells that a watch of ``prefix`` follows."""
        table = self.dispatcher.table
        raw = encode_key(prefix) if prefix else b""
        if prefix_routing_key(raw, table.rule(name)) is not None:
            # any key that begins so lives where they all do
            return {self.dispatcher.cell_of(storage_key_of(name, prefix, table.rule(name)))}
        return {placement.cell for placement in table.partitions.values()}

    async def watch(self, call: Call) -> web.StreamResponse:
        ns = AsyncNamespace(self.dispatcher, call["namespace"], max(0.0, call.left_s))
        await self.dispatcher.ready(call.until)
        with self.dispatcher.bulkheads.watch(self._cells(ns.name, call["prefix"])):
            watcher = await self._begun(call, ns)
            try:
                return await self._stream(call, watcher)
            finally:
                await watcher.close()

    async def _begun(self, call: Call, ns: AsyncNamespace) -> AsyncWatcher[bytes]:
        """A watch that has begun everywhere. Raises Compacted, Unavailable, InvalidRequest."""
        while True:
            watcher = ns.watch(
                call["prefix"],
                after=call["last_event_id"] or call["after"],
                keys_only=call["keys_only"],
                any_replica=call["any_replica"],
                buffer=BUFFER_EVENTS,
                buffer_bytes=BUFFER_BYTES,
            )
            try:
                if self.stopping:
                    raise ShuttingDown("the router is stopping")
                await watcher.started(max(0.05, call.left_s))
                return watcher
            except WrongRouting:
                # the namespace was made meanwhile: the table is fresh now, and nothing was there before
                await watcher.close()
                if call.left_s <= 0:
                    raise
            except BaseException:
                await watcher.close()
                raise

    async def _stream(self, call: Call, watcher: AsyncWatcher[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "Server": "metastore",
            }
        )
        request = call.request
        response.force_close()  # a stream has no end that a next request could wait for
        await response.prepare(request)
        token = watcher.resume
        short = token is not None and len(token) <= SHORT_ID_CHARS
        started = block(orjson.dumps({"resume": token}), "started", self._usable(token))
        await self._write(call, response, b"retry: %d\n" % random.randint(*RETRY_MS) + started)
        following = asyncio.ensure_future(anext(watcher))
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[ending] = request
        try:
            while not (self.stopping or ending.done()):
                waits: set[asyncio.Future[Any]] = {following, ending}
                await asyncio.wait(waits, timeout=call["heartbeat_s"], return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    break
                if not following.done():
                    await self._write(call, response, b": heartbeat\n" + (self._checkpoint(watcher) or b"\n"))
                    continue
                try:
                    chunks, size, event = [], 0, following.result()
                    while True:
                        chunks.append(block(event_json(event), token=watcher.resume if short else None))
                        size += len(chunks[-1])
                        if not watcher.waiting or size > CHUNK_BYTES:
                            break
                        event = await anext(watcher)
                except MetastoreError as e:
                    await self._write(call, response, block(orjson.dumps(problem_body(e)), "error"))
                    break
                if not short:
                    chunks.append(self._checkpoint(watcher))
                await self._write(call, response, b"".join(chunks))
                following = asyncio.ensure_future(anext(watcher))
            await response.write_eof()
        finally:
            del self._open[ending]
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        return response

    @staticmethod
    def _usable(token: str | None) -> str | None:
        """An id that fits into the header with which an EventSource gives it back."""
        return token if token is not None and len(token) <= MAX_TOKEN_CHARS else None

    def _checkpoint(self, watcher: AsyncWatcher[bytes]) -> bytes:
        """The position alone: it moves on while nothing that is watched changes, so that it is not
        compacted meanwhile."""
        token = self._usable(watcher.resume)
        return b"" if token is None else b"id: %b\n\n" % token.encode()

    async def _write(self, call: Call, response: web.StreamResponse, data: bytes) -> None:
        """Raises ConnectionResetError for a client that does not read."""
        with Reservation(self.dispatcher.bulkheads) as reservation:
            reservation.force(len(data))
            try:
                async with asyncio.timeout(self.config.write_timeout_s):
                    await response.write(data)
            except TimeoutError:
                if call.request.transport is not None:
                    call.request.transport.abort()
                raise ConnectionResetError("the client does not read its stream") from None
