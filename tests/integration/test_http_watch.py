"""Watches over HTTP: every change once, in order, across reconnects, leaders and routers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from metastore.keys import storage_key_of
from tests.integration.harness import Cluster, until
from tests.integration.http_api import Api, api_of, router_beside, watching


@pytest.fixture
async def api(shared_cell: Cluster) -> AsyncIterator[Api]:
    async with api_of(shared_cell.router) as found:
        yield found


async def test_changes_of_one_directory(api: Api) -> None:
    async with watching(api, "/v1/watch/dir?prefix=d/") as source:
        assert source.retry_ms >= 500
        put = await api("PUT", "/v1/kv/dir/d/a?ttl_s=600", b"one", headers={"Content-Type": "text/plain"})
        await api("PUT", "/v1/kv/dir/other/a", b"not this")
        await api("PUT", "/v1/kv/dir/d/b", b"\xff")
        await api("POST", "/v1/add/dir/d/n?delta=2")
        gone = await api("DELETE", "/v1/kv/dir/d/a")
        await api("PUT", "/v1/kv/dir/d/short?ttl_ms=50", b"x")
        events = await source.take(6)
        assert [(e.name, e.data["kind"], e.data["key"]) for e in events] == [
            ("message", "put", "d/a"),
            ("message", "put", "d/b"),
            ("message", "put", "d/n"),
            ("message", "delete", "d/a"),
            ("message", "put", "d/short"),
            ("message", "expire", "d/short"),
        ]
        first = events[0].data
        assert (first["value"], first["version"], first["ttl_ms"]) == ("one", put.version, 600000)
        assert (first["content_type"], events[1].data["value_base64"]) == ("text/plain", "/w==")
        assert events[3].data == {"kind": "delete", "key": "d/a", "version": gone.body["version"]}
        versions = [e.data["version"] for e in events]
        assert versions == sorted(set(versions))
        assert all(e.token for e in events), "each event of one directory can be resumed from"
    async with watching(api, "/v1/watch/dir?prefix=d/&keys_only=true", events[1].token) as source:
        events = await source.take(4)
        assert [e.data["kind"] for e in events] == ["put", "delete", "put", "expire"]
        assert set(events[0].data) == {"kind", "key", "version"}


async def test_a_whole_namespace_across_reconnects(api: Api) -> None:
    """200 changes over all partitions while the reader keeps coming back with the last id: each once."""
    keys = [f"k{n}" for n in range(200)]

    async def write() -> None:
        for key in keys:
            await api("PUT", f"/v1/kv/whole/{key}", key.encode())

    seen: list[str] = []
    last: str | None = None
    async with watching(api, "/v1/watch/whole") as source:
        writing = asyncio.create_task(write())
        seen += [e.data["key"] for e in await source.take(30)]
        last = source.last_id
    while len(seen) < len(keys):
        async with watching(api, "/v1/watch/whole?after=AQNBQUFBQUFBQQ", last) as source:  # the header counts
            seen += [e.data["key"] for e in await source.take(min(40, len(keys) - len(seen)))]
            last = source.last_id
    await writing
    assert sorted(seen) == sorted(keys)


async def test_from_a_listing_and_from_any_replica(api: Api) -> None:
    await api("PUT", "/v1/kv/snap/d/a", b"1")
    page = (await api("GET", "/v1/kv/snap?prefix=d/")).body
    await api("PUT", "/v1/kv/snap/d/b", b"2")
    async with watching(api, f"/v1/watch/snap?prefix=d/&any_replica=true&after={page['resume']}") as source:
        await api("PUT", "/v1/kv/snap/d/c", b"3")
        assert [e.data["key"] for e in await source.take(2)] == ["d/b", "d/c"]


async def test_heartbeats_move_the_position_on(api: Api) -> None:
    """While what is watched is quiet, others write: the position must not stay behind."""
    async with watching(api, "/v1/watch/quiet?heartbeat_s=1") as source:
        before = source.last_id
        await asyncio.gather(*(api("PUT", f"/v1/kv/busy/k{n}", b"x") for n in range(50)))
        reading = asyncio.create_task(source.next())
        await until("the id moved on without an event", lambda: source.last_id != before)
        assert source.comments >= 1
        assert not reading.done()
        reading.cancel()


async def test_what_cannot_be_watched_is_told_before_the_stream(api: Api) -> None:
    for path, status in (
        ("/v1/watch/app?after=nonsense", 400),
        ("/v1/watch/app?after=!!", 400),
        ("/v1/watch/UPPER", 400),
        ("/v1/watch/app?heartbeat_s=0", 400),
        ("/v1/watch/app?prefix=%FF", 400),
        ("/v1/watch/app/key", 404),
    ):
        assert (await api("GET", path)).status == status, path
    page = (await api("GET", "/v1/kv/app?prefix=other/")).body
    reply = await api("GET", f"/v1/watch/app?prefix=d/&after={page['resume']}")
    assert reply.status == 400
    assert "another prefix" in reply.body["detail"]


@pytest.mark.nightly
async def test_streams_go_on_when_a_leader_dies(cell: Cluster) -> None:
    """kill -9 of a leader under a stream that stays open: no change is missed or told twice."""
    path = "/v1/watch/dies?heartbeat_s=1"
    async with (
        api_of(cell.router) as api,
        cell.client() as client,
        watching(api, f"{path}&prefix=d/") as one,
        watching(api, path) as all_,
    ):
        written: list[int] = []

        async def write(count: int) -> None:
            for _ in range(count):
                reply = await api("POST", "/v1/add/dies/d/n", headers={"Idempotency-Key": f"n{len(written)}"})
                while reply.status in (503, 504):
                    await asyncio.sleep(0.1)
                    reply = await api(
                        "POST", "/v1/add/dies/d/n", headers={"Idempotency-Key": f"n{len(written)}"}
                    )
                assert reply.status == 200
                written.append(reply.body["version"])

        await write(20)
        partition = client.dispatcher.table.route(storage_key_of("dies", "d/n")).id
        leader = cell.leaders()[partition][0]
        os.kill(cell.node(leader)["pid"], 9)
        await write(20)
        for source in (one, all_):
            events = await source.take(40)
            assert [int(e.data["value"]) for e in events] == list(range(1, 41))
            assert [e.data["version"] for e in events] == written
        await asyncio.to_thread(cell.verb, "restart", leader)


async def test_compacted(api: Api) -> None:
    """What is no longer kept is 410 before the stream begins."""
    page = (await api("GET", "/v1/kv/old?prefix=d/")).body
    path = f"/v1/watch/old?prefix=d/&after={page['resume']}"
    ops = [{"op": "put", "key": "d/a", "value": "x" * (1 << 20)}] * 7

    async def too_old() -> bool:
        assert (await api("POST", "/v1/batch/old", json={"ops": ops})).status == 200
        async with api.http.get(api.url(path)) as r:
            return r.status == 410

    await until("the log of that time is gone", too_old)
    reply = await api("GET", path)
    assert (reply.status, reply.body["code"]) == (410, "compacted")


async def test_bounds_and_the_end(shared_cell: Cluster) -> None:
    """A router has room for so many watches; when it stops, its streams end and go on elsewhere."""
    settings = {"max_watches": 3, "max_watches_per_cell": 2}
    async with api_of(shared_cell.router) as elsewhere:
        async with router_beside(shared_cell, **settings) as (router, api):
            async with watching(api, "/v1/watch/bound?prefix=d/") as first:
                async with watching(api, "/v1/watch/bound"):
                    refused = await api("GET", "/v1/watch/bound")
                    assert (refused.status, refused.body["code"]) == (503, "overloaded")
                    assert "max_watches_per_cell" in refused.body["detail"]
                await until("the place is free again", lambda: router.bulkheads.watches == 1)
                await api("PUT", "/v1/kv/bound/d/a", b"1")
                await first.take(1)
                stopping = asyncio.create_task(router.stop())
                assert await first.next() is None, "the stream ends, and not in the middle of an event"
                await stopping
            await elsewhere("PUT", "/v1/kv/bound/d/b", b"2")
        async with watching(elsewhere, "/v1/watch/bound?prefix=d/", first.last_id) as second:
            assert [e.data["key"] for e in await second.take(1)] == ["d/b"]


async def test_a_client_that_does_not_read_is_cut_off(shared_cell: Cluster) -> None:
    """It holds no more than a bounded buffer meanwhile, and others are not held up."""
    async with router_beside(shared_cell, write_timeout_s=1.0) as (router, api):
        host, port = "127.0.0.1", router.port
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        writer.write(b"GET /v1/watch/slow?prefix=d/ HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"started")
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        async with watching(api, "/v1/watch/slow?prefix=d/") as other:
            reading = asyncio.create_task(other.take(30))
            for _ in range(30):
                await api("PUT", "/v1/kv/slow/d/k", bytes(1 << 20))
            await reading
            assert router.bulkheads.bytes < 8 << 20
            await until("the slow one is gone", lambda: router.bulkheads.watches == 1)
        writer.close()
