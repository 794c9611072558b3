"""A router before a node that answers anything: problem documents that say so, never a failure of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from metastore.client import AsyncClient
from metastore.config import RouterConfig
from metastore.operations import GET, PUT
from metastore.records import pack_record
from metastore.wire import frames
from router.main import Router
from tests.unit.client.fake_node import FakeNode, failed, good
from tests.unit.client.nonsense import mutations

REQUESTS: dict[str, tuple[str, str, Any]] = {
    "get": ("GET", "/v1/kv/n/m{}", None),
    "list": ("GET", "/v1/kv/n?prefix=m{}/", None),
    "put": ("PUT", "/v1/kv/n/m{}", b"v"),
    "put if": ("PUT", "/v1/kv/n/m{}", b"v"),
    "delete": ("DELETE", "/v1/kv/n/m{}", None),
    "add": ("POST", "/v1/add/n/m{}?delta=2", None),
    "txn": (
        "POST",
        "/v1/txn/n",
        '{"then": [{"op": "get", "key": "m{}"}, {"op": "put", "key": "m{}", "value": "v"}]}',
    ),
    "batch": ("POST", "/v1/batch/n", '{"ops": [{"op": "get", "key": "m{}"}]}'),
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.asynccontextmanager
async def router(node: FakeNode, deadline_s: float) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    config = RouterConfig(
        cluster="c",
        http=f"127.0.0.1:{free_port()}",
        etcd=["127.0.0.1:1"],
        nodes=[node.address],
        deadline_s=deadline_s,
        drain_s=0,
    )
    made = Router(config)
    await made.start()
    try:
        await made.dispatcher.ready(asyncio.get_running_loop().time() + 60)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{made.port}") as session:
            yield f"http://127.0.0.1:{made.port}", session
    finally:
        await made.stop()


def number_in(op: list[Any]) -> int:
    found = re.search(rb"m(\d+)", op[9] if len(op) == 10 and isinstance(op[9], bytes) else op[3])
    assert found is not None
    return int(found[1])


def sampled(name: str) -> list[Any]:
    """What a node answers to an operation of that request, mutated, without the id."""
    kinds = {"get": GET, "batch": GET, "put": PUT, "put if": PUT, "delete": 3, "add": 4, "list": 5, "txn": 6}
    key = b"\0" * 8 + b"n\0m1/"
    op = [0, kinds[name], 0, key, 0, 0, 0, [], [[GET, key], [PUT, key, b"v", "", None]], []]
    if name == "list":
        op = [0, 5, 0, key, key + b"\xff", 1000, 0, 0, None]
    return [m for _, m in mutations((failed if name == "put if" else good)(op)[1:])]


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_mutation_of_an_answer(name: str) -> None:
    mutated = sampled(name)
    assert len(mutated) > 50
    method, path, body = REQUESTS[name]
    statuses: dict[int, int] = {}

    def answer(_: str, op: list[Any]) -> Any:
        found = mutated[number_in(op)]
        return [op[0], *found] if isinstance(found, list) else found

    async with FakeNode(answer) as node, router(node, 0.3) as (_, session):
        gate = asyncio.Semaphore(50)

        async def case(number: int) -> None:
            text = body.replace("{}", f"{number}") if isinstance(body, str) else body
            kind = {"Content-Type": "application/json"} if isinstance(body, str) else {}
            async with (
                gate,
                session.request(method, path.format(number), data=text, headers=kind) as response,
            ):
                raw = await response.read()
                told = orjson.loads(raw) if "json" in response.content_type else {}
                status = (
                    told["results"][0]["status"] if name == "batch" and "results" in told else response.status
                )
                statuses[status] = statuses.get(status, 0) + 1
                assert status < 500 or status in (502, 503, 504, 507), (mutated[number], raw)
                assert status < 400 or {"code", "outcome"} <= set(told.get("results", [told])[0]), raw

        await asyncio.gather(*(case(number) for number in range(len(mutated))))
    assert sum(n for status, n in statuses.items() if status in (503, 504)) > 0.4 * len(mutated), statuses


HOLLOW = {
    "/v1/rpc": (
        b"\xdd\x00\x00\x01\x90" + (b"\xdc\x3f\xfd" + b"\x90" * 0x3FFD) * 400,
        "application/msgpack",
        400,
    ),
    "/v1/batch/n": (b'{"ops":[' + b"[]," * 2_700_000 + b"1]}", "application/json", 413),
    "/v1/txn/n": (b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}", "application/json", 413),
}


@pytest.mark.parametrize("path", HOLLOW)
async def test_a_body_that_would_become_many_objects_is_refused_before_it_does(path: str) -> None:
    raw, kind, status = HOLLOW[path]
    async with FakeNode() as node, router(node, 60) as (_, session):
        tracemalloc.start()
        try:
            async with session.post(path, data=raw, headers={"Content-Type": kind}) as response:
                told = orjson.loads(await response.read())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert (response.status, told["outcome"]) == (status, "none"), told
    assert peak < 80 << 20, "the body, some copies of it, and no objects"


async def test_a_watch_through_a_router_begins() -> None:
    """Its first message, ``started``, is no event and no error; and it goes on behind what was told."""
    asked: list[int | None] = []

    def watch(_: str, body: list[Any]) -> list[bytes]:
        asked.append(body[4])
        first = 5 if body[4] is None else body[4] + 1
        record = pack_record(first, first, b"value")
        told = [frames.pack(frames.EVENTS, [body[0], first, [[PUT, body[2] + b"k", first, record]]])]
        if body[4] is None:
            told.insert(0, frames.pack(frames.EVENTS, [body[0], 4, []]))
            told.append(frames.pack(frames.EVENTS, [body[0], 6, [[PUT, body[2] + b"k", 6, b"no record"]]]))
        return told

    async with (
        FakeNode(watch=watch) as node,
        router(node, 5) as (url, _),
        AsyncClient(router=url, direct=False, deadline_s=60) as client,
        client.namespace("n").watch("d/") as watcher,
    ):
        found = [await asyncio.wait_for(anext(watcher), 60) for _ in range(2)]
        assert [(event.key, event.version) for event in found] == [("d/k", 5), ("d/k", 6)]
        assert asked == [None, 5], "what was malformed is asked for again"
