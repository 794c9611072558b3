"""A small router: HTTP on one side, the dispatcher on the other. What the client asks of a real one."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgpack
import orjson
from aiohttp import web

from metastore.client.namespace import AsyncNamespace
from metastore.errors import MetastoreError
from metastore.problems import problem, problem_body
from metastore.routing.dispatcher import Dispatcher


class FakeRouter:
    """``posts``, ``watches``: how many it has answered. ``lose_answers``: carry out, then say nothing.
    ``frozen``: take requests, and do nothing until it is thawed."""

    def __init__(self, nodes: list[str]) -> None:
        self.dispatcher = Dispatcher(nodes, name="fake router", election_patience_s=3.0)
        self.posts = 0
        self.watches = 0
        self.ops: list[list[Any]] = []
        self.lose_answers = 0
        self.refuse_with: MetastoreError | None = None
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> FakeRouter:
        await self.dispatcher.start(20)
        await self.listen()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.stop()
        await self.dispatcher.close()

    async def listen(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/rpc", self.rpc)
        app.router.add_get("/v1/topology", self.topology)
        app.router.add_get("/livez", self.livez)
        app.router.add_get("/v1/watch/{namespace}", self.watch)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """The port is closed, and what was under way is cut off."""
        self.thawed.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- handlers ---------------------------------------------------------------------------

    async def rpc(self, request: web.Request) -> web.Response:
        await self.thawed.wait()
        self.posts += 1
        if self.refuse_with is not None:
            return problem(self.refuse_with)
        client_id, timeout_ms, ops = msgpack.unpackb(await request.read(), strict_map_key=False)
        self.ops += ops
        until = asyncio.get_running_loop().time() + timeout_ms / 1000
        results = await asyncio.gather(*(self._relay(client_id, op, until) for op in ops))
        if self.lose_answers > 0:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(body=msgpack.packb(results), content_type="application/msgpack")

    async def _relay(self, client_id: bytes, op: list[Any], until: float) -> list[Any]:
        try:
            return [op[0], *(await self.dispatcher.relay(client_id, list(op), until))[1:]]
        except MetastoreError as e:
            return [op[0], e.status, e.message, e.detail]

    async def topology(self, request: web.Request) -> web.Response:
        await self.thawed.wait()
        return web.json_response(self.dispatcher.table.to_wire())

    async def livez(self, request: web.Request) -> web.Response:
        await self.thawed.wait()
        return web.json_response({"status": "ok"})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        await self.thawed.wait()
        self.watches += 1
        query = request.query
        ns = AsyncNamespace(self.dispatcher, request.match_info["namespace"], 10)
        keys_only = query.get("keys_only") == "true"
        watcher = ns.watch(query.get("prefix", ""), after=query.get("after"), keys_only=keys_only)
        try:
            await watcher.started(5)
        except MetastoreError as e:
            await watcher.close()
            return problem(e)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"id: {watcher.resume}\n\n".encode())
        try:
            while True:
                event = await watcher.next(0.2)
                await self.thawed.wait()
                if event is None:
                    await response.write(b": nothing new\n\n")
                    continue
                data: dict[str, Any] = {"kind": event.kind, "key": event.key, "version": event.version}
                if event.record is not None:
                    data |= {n: getattr(event.record, n) for n in ("created", "content_type", "ttl_ms")}
                    try:
                        data["value"] = event.record.value.decode()
                    except UnicodeDecodeError:
                        data["value_base64"] = base64.b64encode(event.record.value).decode()
                await response.write(f"id: {watcher.resume}\ndata: ".encode() + orjson.dumps(data) + b"\n\n")
        except MetastoreError as e:
            await response.write(b"data: " + orjson.dumps(problem_body(e)) + b"\n\n")
        except ConnectionError:
            pass
        finally:
            await watcher.close()
        return response
