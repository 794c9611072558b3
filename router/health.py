"""Handlers of the service itself: health, figures, topology, the document of the API."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from metastore.errors import MetastoreError, Unavailable
from metastore.operations import GET, LINEARIZABLE
from router.api.openapi import document
from router.api.operations import OPERATIONS
from router.api.page import CONTENT_SECURITY_POLICY, page
from router.bulkheads import CellDispatcher
from router.calls import Call
from router.metrics import Metrics
from router.problems import problem_body
from router.records import json_response

PROBE_KEY = b"metastore\0probe"
PROBE_S = 1.0


class Health:
    """See the module. ``draining``: the router is stopping, and says so to load balancers."""

    def __init__(self, dispatcher: CellDispatcher, metrics: Metrics) -> None:
        self.dispatcher = dispatcher
        self._metrics = metrics
        self.draining = False
        self._document = orjson.dumps(document(OPERATIONS))
        self._page = page(OPERATIONS).encode()

    async def topology(self, call: Call) -> web.Response:
        return json_response(self.dispatcher.table.to_wire())

    async def livez(self, call: Call) -> web.Response:
        return json_response({"status": "ok"})

    async def readyz(self, call: Call) -> web.Response:
        table = self.dispatcher.table
        body: dict[str, Any] = {
            "ready": table.complete and not self.draining,
            "partitions": len(table.partitions),
        }
        if table.complete and call["leaders"]:
            results = await asyncio.gather(*(self._probe(p.lo) for p in table.in_order()))
            body["partitions_led"] = sum(results)
        if body["ready"]:
            return json_response(body)
        text = "the router is stopping" if self.draining else "the topology is not known yet"
        response = json_response({**problem_body(Unavailable(text)), **body}, 503)
        response.headers["Retry-After"] = "1"
        response.content_type = "application/problem+json"
        return response

    async def _probe(self, lo: int) -> bool:
        storage_key = lo.to_bytes(8, "big") + PROBE_KEY
        until = asyncio.get_running_loop().time() + PROBE_S
        try:
            await self.dispatcher.read([0, GET, 0, storage_key, LINEARIZABLE, None], storage_key, until)
        except MetastoreError:
            return False
        return True

    async def metrics(self, call: Call) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": self._metrics.content_type})

    async def openapi(self, call: Call) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def docs(self, call: Call) -> web.Response:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)
