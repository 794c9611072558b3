"""The router's HTTP server: aiohttp's protocol without its application, routing and error pages.

Bounds of connections, and of the time that a client has for each part of what it says, are those of
``metastore.web``; here are the router's own name and words for what is not HTTP at all.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web
from multidict import CIMultiDict

from metastore.config import RouterConfig
from metastore.errors import MetastoreError, Overloaded
from metastore.routing.request_ids import SingleRequest
from metastore.web import Connection, WebServer
from router.bulkheads import RETRY_S, TAKEN_PART
from router.errors import MalformedHttp
from router.problems import PROBLEM_TYPE, problem, problem_body

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


class LoadShedder:
    """The answer to a request beyond the bound on those under way: made beforehand, since a refusal
    must cost little, or the router has time for nothing else."""

    def __init__(self, limit: int) -> None:
        #: of requests that are sent for the first time, and of those that may have been sent before
        self._answers: dict[bool, list[tuple[bytes, CIMultiDict[str]]]] = {False: [], True: []}
        for keyed, seconds in itertools.product((False, True), range(1, int(RETRY_S[1]) + 1)):
            error: MetastoreError = Overloaded(
                f"{limit} requests are under way, the limit (max_inflight)", retry_after_s=seconds
            )
            error = SingleRequest(b"").about(error) if keyed else error
            body = orjson.dumps(problem_body(error), option=orjson.OPT_APPEND_NEWLINE)
            headers = CIMultiDict(
                {
                    "Content-Type": PROBLEM_TYPE,
                    "Retry-After": str(seconds),
                    "Cache-Control": "no-store",
                    "Server": "metastore",
                }
            )
            self._answers[keyed].append((body, headers))

    def refusal(self, keyed: bool) -> web.Response:
        """503, to come again after a while that is not everybody's."""
        body, headers = random.choice(self._answers[keyed])
        return web.Response(status=503, body=body, headers=headers)


class HttpServer(WebServer):
    """Every request goes to ``handler``."""

    connection_class = HttpConnection

    def __init__(self, handler: Handler, config: RouterConfig) -> None:
        manager = web.Server(handler, handler_cancellation=True)
        super().__init__(
            web.ServerRunner(manager, handle_signals=False, shutdown_timeout=STOP_PATIENCE_S),
            max_connections=config.max_connections,
            patience_s=config.client_patience_s,
            answer_bytes=int((config.max_held_mib << 20) * TAKEN_PART),
        )
