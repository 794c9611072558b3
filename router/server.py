"""The router's HTTP server: aiohttp's protocol without its application, routing and error pages.

Bounds of connections, and of the time that a client has for each part of what it says, are those of
``metastore.web``; here are the router's own name and words for what is not HTTP at all.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from metastore.config import RouterConfig
from metastore.web import Connection, WebServer
from router.errors import MalformedHttp
from router.problems import problem

log = logging.getLogger("router")

STOP_PATIENCE_S = 1.0
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpConnection(Connection):
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
        if status != 400:
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        # of what the parser says only the first line: the rest shows what was sent
        said = (message or "").strip().splitlines() or [""]
        response = problem(MalformedHttp(f"this is not well-formed HTTP: {said[0]:.200}"))
        response.headers["Server"] = "metastore"
        response.force_close()
        return response


class HttpServer(WebServer):
    """Every request goes to ``handler``."""

    connection_class = HttpConnection

    def __init__(self, handler: Handler, config: RouterConfig) -> None:
        manager = web.Server(handler, handler_cancellation=True)
        super().__init__(
            web.ServerRunner(manager, handle_signals=False, shutdown_timeout=STOP_PATIENCE_S),
            max_connections=config.max_connections,
            patience_s=config.client_patience_s,
            answer_bytes=config.max_held_mib << 20,
        )
