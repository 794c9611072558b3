"""The HTTP server of node and router: aiohttp's, with bounds for what a stranger can make it hold.

- ``max_connections``: when they are all taken, the one that has been idle longest ends;
- a request's head: ``patience_s`` from the connection's start, later the time an idle connection has;
- an answer: ``patience_s`` and a second for every 64 KiB; if all answers that wait to be taken pass
  ``answer_bytes``, the longest-standing connection with a large one ends;
- every error, also those that come before any handler, is a problem document.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

from aiohttp import HttpVersion10, StreamReader, web

from metastore import net
from metastore.problems import MEDIA_TYPE, http_problem

log = logging.getLogger("metastore.web")

IDLE_S: Final = 75.0
SWEEP_S: Final = 0.5
SLOWEST_BYTES_PER_S: Final = 64 << 10
SMALL_ANSWER_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 16 << 10
MAX_FIELD_BYTES: Final = 16 << 10
MAX_HEADERS: Final = 64


class Connection(web.RequestHandler):
    """One connection. ``since``: when it began to owe us a request or to take an answer."""

    __slots__ = ("_half_closed", "_server", "_wire", "body", "closing_since", "sent", "since", "taking")

    def __init__(self, server: WebServer, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._server = server
        self._wire: asyncio.Transport | None = None
        self.since: float | None = None
        self.closing_since: float | None = None
        #: of the request under way
        self.body: StreamReader | None = None
        #: bytes of the answer that is being taken
        self.taking = 0
        #: the answer that its handler has sent itself, to the end
        self.sent: web.StreamResponse | None = None
        self._half_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self.since = self._loop.time()
        self._server.arrived(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.left(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The other side has said all it will: that may be a request, which is answered first."""
        body = self._messages[-1][1] if self._messages else self.body
        if body is None:
            return False
        if not body.is_eof():
            body.set_exception(web.RequestPayloadError("the connection was closed before its end"))
            body.feed_eof()
        self._half_closed = True
        return True

    def is_closing(self) -> bool:
        return self._wire is None or self._wire.is_closing()

    def says_no_more(self) -> bool:
        """The other side has closed its half at least: who reads a stream without end has left it."""
        return self._half_closed or self.is_closing()

    def cut(self) -> None:
        """End it now, whatever waits to be sent."""
        if self._wire is not None:
            self._wire.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if request.version < HttpVersion10:
            self.cut()  # HTTP/0.9 knows no status to tell it by
            return resp, True
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = plain_problem(request, resp)
        if self._half_closed and not self._messages:
            resp.force_close()
        if resp is self.sent:  # gone already: what is left is the bookkeeping
            self.sent = None
            return await super().finish_response(request, resp, start_time)
        body = resp.body if isinstance(resp, web.Response) and not resp.prepared else None
        size = len(body) if isinstance(body, bytes | bytearray) else 0
        self._server.takes(self, size)
        try:
            async with asyncio.timeout(self._server.patience_s + size / SLOWEST_BYTES_PER_S):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.cut()
            return resp, True
        finally:
            self._server.taken(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp found wrong itself: a head that is none, a failed handler."""
        if isinstance(exc, ConnectionError):
            raise exc  # nobody is there to be told
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has been begun")
        if status >= 500:
            log.error("%s %s", request.method, request.path, exc_info=exc)
            detail = "the server failed; its log has the cause"
        else:
            # of what the parser says only the first line: the rest shows what was sent
            detail = (message or "the request is not HTTP").strip().splitlines()[0][:200]
        resp = web.Response(body=http_problem(status, detail), status=status, content_type=MEDIA_TYPE)
        resp.force_close()
        return resp


def plain_problem(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """aiohttp's own errors: no such path, no such method, a strange Expect header."""
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    detail = {
        404: "nothing is served under this path",
        405: f"{request.method[:40]} is not served here; use {headers.get('Allow', 'another method')}",
        417: "the only expectation that can be met is 100-continue",
    }.get(error.status, error.reason)
    body = b"" if request.method == "HEAD" else http_problem(error.status, detail)
    found = web.Response(body=body, status=error.status, headers=headers, content_type=MEDIA_TYPE)
    if error.keep_alive is False:
        found.force_close()
    return found


class WebServer:
    """See the module. ``runner``: of an application, or of a handler alone (``web.ServerRunner``)."""

    connection_class: type[Connection] = Connection

    def __init__(
        self, runner: web.BaseRunner, *, max_connections: int, patience_s: float, answer_bytes: int
    ) -> None:
        self.max_connections = max_connections
        self.patience_s = patience_s
        self.answer_bytes = answer_bytes
        self.evicted = 0
        self._runner = runner
        self._listening: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._open: dict[Connection, None] = {}
        #: without a request under way, the longest idle first
        self._idle: dict[Connection, None] = {}
        #: whose answers are being taken, the longest first
        self._taking: dict[Connection, None] = {}
        self._taking_bytes = 0

    async def start(self, address: str, backlog: int = 1024) -> None:
        """Serve on ``host:port``. Raises OSError."""
        await self._runner.setup()
        manager = self._runner.server
        assert manager is not None
        loop = asyncio.get_running_loop()
        make_request = manager.request_factory

        def request(
            message: Any, body: StreamReader, connection: web.RequestHandler, writer: Any, task: Any
        ) -> web.BaseRequest:
            assert isinstance(connection, Connection)
            self.began(connection, body)
            return make_request(message, body, connection, writer, task)

        manager.request_factory = request

        def connection() -> Connection:
            return self.connection_class(
                self,
                manager,
                loop=loop,
                access_log=None,
                keepalive_timeout=IDLE_S,
                lingering_time=min(10.0, self.patience_s),
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_FIELD_BYTES,
                max_headers=MAX_HEADERS,
            )

        self._listening = await net.listen(connection, address, backlog)
        self._sweeper = loop.create_task(self._sweep_forever())

    def stop_listening(self) -> None:
        """No new connections; what is under way goes on."""
        if self._listening is not None:
            self._listening.close()

    @property
    def port(self) -> int:
        assert self._listening is not None
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._runner.cleanup()
        for connection in list(self._open):
            connection.cut()

    def __len__(self) -> int:
        return len(self._open)

    # --- connections ------------------------------------------------------------------------

    def arrived(self, connection: Connection) -> None:
        if len(self._open) >= self.max_connections:
            # with none idle the one whose answer is being taken longest; with none such, the oldest
            for some in (self._idle, self._taking, self._open):
                if some:
                    self._evict(next(iter(some)))
                    break
        self._open[connection] = self._idle[connection] = None

    def left(self, connection: Connection) -> None:
        self.taken(connection)
        self._open.pop(connection, None)
        self._idle.pop(connection, None)

    def _evict(self, connection: Connection) -> None:
        self.evicted += 1
        connection.cut()
        self.left(connection)

    def began(self, connection: Connection, body: StreamReader) -> None:
        """A request is under way: its handler minds the time."""
        connection.since, connection.body = None, body
        self._idle.pop(connection, None)

    def takes(self, connection: Connection, size: int) -> None:
        """An answer of ``size`` bytes is about to be sent."""
        connection.taking = size
        self._taking_bytes += size
        self._taking[connection] = None
        if size <= SMALL_ANSWER_BYTES:
            return  # it takes nobody's room
        for other in list(self._taking):
            if self._taking_bytes <= self.answer_bytes or other is connection:
                break
            if other.taking > SMALL_ANSWER_BYTES:
                self._evict(other)

    def taken(self, connection: Connection) -> None:
        connection.body = None
        if connection in self._taking:
            del self._taking[connection]
            self._taking_bytes -= connection.taking
            if connection in self._open:
                self._idle[connection] = None

    async def _sweep_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in list(self._open):
                if connection.is_closing():
                    connection.closing_since = connection.closing_since or now
                    if now - connection.closing_since > self.patience_s:
                        self._evict(connection)  # it waits for somebody who does not read
                elif connection.since is not None and now - connection.since > self.patience_s:
                    self._evict(connection)
