"""A plain HTTP client for tests: nothing is hidden, every error answer is held to the problem form."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import jsonschema_rs
from multidict import CIMultiDictProxy
from yarl import URL

from cellctl.dev_files import pick_ports
from metastore.config import RouterConfig
from metastore.errors import MetastoreError
from router.api.openapi import document
from router.api.operations import OPERATIONS
from router.calls import Routes
from router.main import Router
from tests.integration.harness import CALL_S, Cluster
from tests.processes import PATIENCE_S


@dataclass
class Reply:
    """An answer, read whole."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def version(self) -> int:
        return int(self.headers["ETag"].strip('"'))


ROUTES = Routes(OPERATIONS)
DOCUMENT = json.loads(json.dumps(document(OPERATIONS)))


@functools.cache
def _validator(schema: str) -> Any:
    """Of a response's schema, whose references go into the OpenAPI document."""
    return jsonschema_rs.Draft202012Validator(json.loads(schema) | {"components": DOCUMENT["components"]})


def check_documented(method: str, path: str, reply: Reply) -> None:
    """The answer has a status, a type and a form that the document has for the operation."""
    try:
        op = ROUTES.find(method, path)[0]
    except MetastoreError:
        return
    responses = DOCUMENT["paths"][op.path][method.lower()]["responses"]
    assert str(reply.status) in responses, f"{op.id} does not document {reply.status}"
    media = reply.headers.get("Content-Type", "").partition(";")[0]
    content = responses[str(reply.status)].get("content", {})
    if content and "*/*" not in content:
        assert media in content, (op.id, media)
    schema = content.get(media, {}).get("schema")
    if schema is not None and reply.raw:
        _validator(json.dumps(schema)).validate(reply.body)


class Api:
    """Requests to one router. Every answer is held to the document, every error is a problem
    document, every 503 has Retry-After."""

    def __init__(self, base: str, http: aiohttp.ClientSession) -> None:
        self.base = base
        self.http = http

    def url(self, path: str) -> URL:
        return URL(self.base + path, encoded=True)

    async def __call__(self, method: str, path: str, data: Any = None, **options: Any) -> Reply:
        if data is not None:
            options["data"] = data
        async with self.http.request(method, self.url(path), **options) as r:
            reply = Reply(r.status, r.headers, await r.read())
        if reply.status >= 400:
            self.check(method, reply)
        check_documented(method, path, reply)
        return reply

    @staticmethod
    def check(method: str, reply: Reply) -> None:
        assert reply.headers["Content-Type"] == "application/problem+json", reply
        if reply.status == 503:
            assert int(reply.headers["Retry-After"]) >= 1
        if method != "HEAD":
            body = reply.body
            assert body["status"] == reply.status
            assert all(body[name] for name in ("type", "code", "title", "detail")), body
            assert type(body["retryable"]) is bool
            assert body["outcome"] in ("none", "unknown")


@contextlib.asynccontextmanager
async def api_of(base: str) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Api(base, http)


@contextlib.asynccontextmanager
async def router_beside(cluster: Cluster, **settings: Any) -> AsyncIterator[tuple[Router, Api]]:
    """One more router of the cluster, in this process, with settings of its own."""
    info = cluster.json()
    port = pick_ports("127.0.0.1", ["router"], set())["router"]
    config = RouterConfig(
        cluster="dev",
        http=f"127.0.0.1:{port}",
        etcd=[info["etcd"][0]["url"].removeprefix("http://")],
        nodes=[n["rpc"] for n in info["nodes"]],
        **{"deadline_s": CALL_S, **settings},
    )
    router = Router(config)
    await router.start()
    try:
        async with api_of(f"http://127.0.0.1:{port}") as api:
            yield router, api
    finally:
        await router.stop()


@dataclass
class Sse:
    """One server-sent event as it came."""

    name: str
    token: str | None
    data: Any


class EventSource:
    """Reads a stream as a browser does: it keeps the last id, also of blocks without data."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id: str | None = None
        self.comments = 0
        self.retry_ms = 0

    async def next(self) -> Sse | None:
        """The next event; None at the end of the stream."""
        name = "message"
        data: list[str] = []
        token: str | None = None
        while True:
            line = (await self.response.content.readline()).decode()
            if not line:
                return None
            line = line.rstrip("\n")
            if not line:
                if data:
                    return Sse(name, token, json.loads("\n".join(data)))
                name, token = "message", None
                continue
            field, _, value = line.partition(": ")
            if line.startswith(":"):
                self.comments += 1
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                self.last_id = token = value
            elif field == "retry":
                self.retry_ms = int(value)

    async def take(self, count: int) -> list[Sse]:
        """The next ``count`` events. Raises AssertionError when the stream ends before."""
        found: list[Sse] = []
        while len(found) < count:
            event = await self.next()
            assert event is not None, f"the stream ended after {len(found)} of {count}"
            found.append(event)
        return found


@contextlib.asynccontextmanager
async def watching(api: Api, path: str, last_id: str | None = None) -> AsyncIterator[EventSource]:
    """An open watch, behind its ``started``."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE_S)
    async with api.http.get(api.url(path), headers=headers, timeout=timeout, read_bufsize=1 << 22) as r:
        assert r.status == 200, await r.text()
        assert r.headers["Content-Type"] == "text/event-stream"
        source = EventSource(r)
        [started] = await source.take(1)
        assert started.name == "started"
        assert started.data["resume"] == started.token is not None
        yield source
