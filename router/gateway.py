"""The HTTP gateway: from a request to its handler and from there to an answer. Stateless.

Which requests there are, and what each may carry, is the table in ``router.api``; what is not in it
is refused. Around every handler: the bounds of ``router.bulkheads``, errors as problem documents, a
limit on how long a client may take to read its answer, and figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import cast

from aiohttp import HttpVersion10, web

from metastore.admin.namespaces import NamespaceAdmin
from metastore.config import RouterConfig
from metastore.errors import MetastoreError
from metastore.web import Connection
from router.api.operation import Operation
from router.api.operations import OPERATIONS
from router.batch_and_txn import BatchAndTxn
from router.bulkheads import Bulkheads, CellDispatcher, Reservation
from router.calls import Call, Handler, Routes
from router.errors import MethodNotAllowed
from router.health import Health
from router.idempotency import refused, was_sent_before
from router.metrics import Metrics
from router.namespaces import Namespaces
from router.problems import internal, problem
from router.records import Records
from router.rpc import Rpc
from router.server import HttpServer, LoadShedder
from router.streams import Streams

log = logging.getLogger("router")

#: a namespace with a routing rule of its own waits for every node
NAMESPACE_DEADLINE_S = 15.0
#: what is refused at the door when the router is full; health and figures are not
BOUNDED = "/v1/"
SLOW_OPERATIONS = frozenset({"putNamespace", "deleteNamespace"})


class Gateway:
    """All handlers, over one dispatcher. Made on a running loop."""

    def __init__(
        self, config: RouterConfig, dispatcher: CellDispatcher, admin: NamespaceAdmin | None = None
    ) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.bulkheads: Bulkheads = dispatcher.bulkheads
        self.server = HttpServer(self.answer, config)
        self.metrics = Metrics(self.bulkheads, dispatcher, lambda: len(self.server))
        self.routes = Routes(OPERATIONS)
        self.load_shedder = LoadShedder(config.max_inflight)
        self.streams = Streams(config, dispatcher)
        self.health = Health(dispatcher, self.metrics)
        self.namespaces = Namespaces(dispatcher, admin)
        self.closing = False
        #: answers on their way to the socket -> when that has taken too long
        self._sending: dict[int, tuple[web.BaseRequest, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._cutter = self._loop.create_task(self._cut_off())
        records, batch_and_txn = Records(dispatcher), BatchAndTxn(dispatcher)
        self.handlers: dict[str, Handler] = {
            **records.handlers(),
            "batch": batch_and_txn.batch,
            "txn": batch_and_txn.txn,
            "watch": self.streams.watch,
            "listNamespaces": self.namespaces.list,
            "getNamespace": self.namespaces.get,
            "putNamespace": self.namespaces.put,
            "deleteNamespace": self.namespaces.delete,
            "rpc": Rpc(dispatcher).rpc,
            "getTopology": self.health.topology,
            "livez": self.health.livez,
            "readyz": self.health.readyz,
            "metrics": self.health.metrics,
            "openapi": self.health.openapi,
            "docs": self.health.docs,
        }
        assert self.handlers.keys() == self.routes.operations.keys()

    # --- one request ------------------------------------------------------------------------

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """A request, to the end of its answer."""
        began = time.perf_counter()
        name, response = "none", None
        try:
            if self.bulkheads.full and request.raw_path.startswith(BOUNDED):
                response = await self._send(request, self.load_shedder.refusal(was_sent_before(request)))
                return response
            try:
                op, parts, query = self.routes.find(request.method, request.raw_path)
                name = op.id
            except MethodNotAllowed as e:
                response = await self._send(request, self._options(request, e) or problem(e))
                return response
            except MetastoreError as e:
                response = await self._send(request, problem(e))
                return response
            response = await self._guarded(request, op, parts, query)
            return response
        finally:
            status = response.status if response is not None else 499  # the client went away
            self.metrics.done(name, status, time.perf_counter() - began)

    @staticmethod
    def _options(request: web.BaseRequest, error: MethodNotAllowed) -> web.Response | None:
        if request.method != "OPTIONS":
            return None
        return web.Response(status=204, headers={"Allow": ", ".join([*error.detail["allow"], "OPTIONS"])})

    async def _guarded(
        self, request: web.BaseRequest, op: Operation, parts: list[str], query: str
    ) -> web.StreamResponse:
        try:
            admission = self.bulkheads.request() if op.admitted else Reservation(self.bulkheads)
            with admission as reservation:
                response = await self._handled(request, op, parts, query, reservation)
                return await self._send(request, response)
        except MetastoreError as e:  # not admitted
            return await self._send(request, problem(refused(e, request)))

    async def _handled(
        self, request: web.BaseRequest, op: Operation, parts: list[str], query: str, reservation: Reservation
    ) -> web.StreamResponse:
        config = self.config
        deadline_s = NAMESPACE_DEADLINE_S if op.id in SLOW_OPERATIONS else config.deadline_s
        key: str | None = None
        try:
            call = Call(request, op, parts, query, reservation, deadline_s, config.write_timeout_s)
            key = call.values.get("key")
            return await self.handlers[op.id](call)
        except MetastoreError as e:
            return problem(refused(e, request), key)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return problem(internal(), key)

    async def _send(self, request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
        """Write the answer whole, and return once the socket has taken it. Raises ConnectionResetError
        for a client that does not read."""
        if response.prepared:
            return response
        if request.version < HttpVersion10:  # HTTP/0.9 knows no status to tell it by
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("HTTP/0.9")
        response.headers["Server"] = "metastore"
        if self.closing:
            response.force_close()
        self._sending[id(request)] = request, self._loop.time() + self.config.write_timeout_s
        connection = cast(Connection, request.protocol)
        body = response.body if isinstance(response, web.Response) else None
        self.server.takes(connection, len(body) if isinstance(body, bytes | bytearray) else 0)
        try:
            await response.prepare(request)
            await response.write_eof()
            connection.sent = response
        finally:
            self.server.taken(connection)
            self._sending.pop(id(request), None)
        return response

    async def _cut_off(self) -> None:
        """End the connections of clients that do not read their answers, and the streams of those that
        are gone. One timer for all of them: nearly every answer is gone at once."""
        while True:
            await asyncio.sleep(min(1.0, self.config.write_timeout_s / 2))
            now = self._loop.time()
            for request in [r for r, until in self._sending.values() if until < now]:
                if request.transport is not None:
                    request.transport.abort()
            self.streams.sweep()

    # --- the end ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Tell load balancers to go elsewhere; everything is still served."""
        self.health.draining = True

    async def close(self) -> None:
        """No new connection comes any more: end the streams, finish what is under way, close."""
        self.drain()
        self.closing = True
        self.streams.stop()
        deadline = self._loop.time() + self.config.deadline_s + 1.0
        while (self.bulkheads.requests or self.bulkheads.watches) and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self.namespaces.close(2.0)
                await self.server.stop()
        self._cutter.cancel()
