"""The HTTP server: aiohttp's protocol without its application, routing and error pages.

What it adds: a bound on open connections, refused before a byte is read; problem documents also for
what is not HTTP at all; a name of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from metastore.errors import MetastoreError, Overloaded
from router.bulkheads import RETRY_S
from router.errors import MalformedHttp
from router.problems import PROBLEM_TYPE, internal, problem, problem_body

log = logging.getLogger("router")

KEEPALIVE_S = 75.0
LINGERING_S = 2.0
#: a resume token, or a key and a cursor with every byte percent-encoded, fits in one line
MAX_LINE_BYTES = 16_384
MAX_FIELD_BYTES = 16_384
MAX_HEADERS = 64

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpProtocol(RequestHandler):
    """One connection."""

    __slots__ = ()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What clients send wrongly is told to them; here it is one line for who wants it."""
        log.debug("connection ends: %s", kw.get("exc_info") or args)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What could not be parsed, or failed outside of the gateway."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        error: MetastoreError
        if status == 400:
            said = " ".join((message or "").split())
            error = MalformedHttp(f"this is not well-formed HTTP: {said:.200}")
        else:
            log.error("outside of the gateway", exc_info=exc)
            error = internal()
        response = problem(error)
        response.headers["Server"] = "metastore"
        response.force_close()
        return response


class Door:
    """The answer to a request beyond the bound on those under way: made beforehand, since whoever is
    refused must cost little, or refusing is all that there is time for."""

    def __init__(self, limit: int) -> None:
        self._answers = []
        for seconds in range(1, int(RETRY_S[1]) + 1):
            error = Overloaded(
                f"{limit} requests are under way, the limit (max_inflight)", retry_after_s=seconds
            )
            body = orjson.dumps(problem_body(error), option=orjson.OPT_APPEND_NEWLINE)
            headers = CIMultiDict(
                {
                    "Content-Type": PROBLEM_TYPE,
                    "Retry-After": str(seconds),
                    "Cache-Control": "no-store",
                    "Server": "metastore",
                }
            )
            self._answers.append((body, headers))

    def refusal(self) -> web.Response:
        """503, to come again after a while that is not everybody's."""
        body, headers = random.choice(self._answers)
        return web.Response(status=503, body=body, headers=headers)


class Refusal(asyncio.Protocol):
    """A connection beyond the bound: 503 and the end, whatever it may have wanted to say."""

    def __init__(self, limit: int) -> None:
        error = Overloaded(f"{limit} connections are open, the limit (max_connections)", retry_after_s=1)
        body = orjson.dumps(problem_body(error))
        self.answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nServer: metastore\r\nConnection: close\r\nRetry-After: 1\r\n"
            b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (PROBLEM_TYPE.encode(), len(body), body)
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)
        wire.write(self.answer)
        wire.close()


class HttpServer(web.Server):
    """Makes a protocol for each connection that comes."""

    def __init__(self, handler: Handler, max_connections: int, on_refused: Callable[[], None]) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.max_connections = max_connections
        self.on_refused = on_refused
        self.loop = asyncio.get_running_loop()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def __call__(self) -> Any:
        if len(self._connections) >= self.max_connections:
            self.on_refused()
            return Refusal(self.max_connections)
        return HttpProtocol(
            self,
            loop=self.loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGERING_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
        )
