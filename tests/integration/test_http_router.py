"""A router under stress: bounds, dead cells, many routers, the end; and operations in binary form."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

from metastore.errors import BY_STATUS, ConditionFailed, InvalidRequest
from metastore.keys import storage_key_of
from metastore.operations import ADD, DELETE, GET, LINEARIZABLE, LIST, NOT_FOUND, OK, PUT, TXN
from metastore.records import unpack_record
from tests.integration.harness import Cluster, until
from tests.integration.http_api import Api, Reply, api_of, router_beside

MSGPACK = {"Content-Type": "application/x-msgpack"}
CLIENT = b"c" * 16


@pytest.fixture
async def api(shared_cell: Cluster) -> AsyncIterator[Api]:
    async with api_of(shared_cell.router) as found:
        yield found


async def rpc(api: Api, ops: Any, client: Any = CLIENT, timeout_ms: Any = 5000) -> Reply:
    body = msgpack.packb([client, timeout_ms, ops])
    return await api("POST", "/v1/rpc", body, headers=MSGPACK)


async def results(api: Api, *ops: list[Any], **more: Any) -> dict[int, list[Any]]:
    """By id."""
    reply = await rpc(api, list(ops), **more)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/x-msgpack"), reply.raw
    return {r[0]: r[1:] for r in msgpack.unpackb(reply.raw)}


# --- operations in binary form ---------------------------------------------------------------


async def test_rpc(api: Api) -> None:
    """Every kind of operation, of many partitions in one body, each with its own outcome."""
    keys = [storage_key_of("rpc", f"k{n}") for n in range(40)]
    puts = [[n, PUT, 999, key, n + 1, 1, 0, None, b"%d" % n, "", 0] for n, key in enumerate(keys)]
    first = await results(api, *puts)
    assert all(r[0] == OK for r in first.values()), "the partition that the client names does not count"
    assert await results(api, *puts) == first, "the same request ids get the first outcomes"
    a, b = storage_key_of("rpc", "d/a"), storage_key_of("rpc", "d/b")
    found = await results(
        api,
        [7, GET, 0, keys[3], LINEARIZABLE, None],
        [8, GET, 0, storage_key_of("rpc", "none"), LINEARIZABLE, None],
        [9, PUT, 0, keys[4], 100, 1, 0, 5_000_000, b"no", "", None],
        [10, ADD, 0, storage_key_of("rpc", "n"), 101, 1, 0, None, 5],
        [11, DELETE, 0, keys[5], 102, 1, 0, None],
        [12, TXN, 0, a, 103, 1, 0, [], [[PUT, a, b"1", "", None], [PUT, b, b"2", "", None]], []],
        [13, GET, 0, b"short", LINEARIZABLE, None],
        [14, LIST, 0, b"", b"\xff" * 9, 10, 0, LINEARIZABLE, None],
        [15, LIST, 0, a[:8], a[:8] + b"\xff", 10, 0, LINEARIZABLE, None],
    )
    assert unpack_record(found[7][1]).value == b"3"
    assert found[8][0] == NOT_FOUND
    assert BY_STATUS[found[9][0]] is ConditionFailed
    assert unpack_record(found[9][2]["record"]).value == b"4"
    assert (found[10][0], found[10][3]) == (OK, 5)
    assert (found[11][0], found[12][0], found[12][1]) == (OK, OK, True)
    assert BY_STATUS[found[13][0]] is InvalidRequest is BY_STATUS[found[14][0]]
    assert [
        row[0] for row in (await results(api, [1, LIST, 0, a[:8], a[:8] + b"\xff" * 9, 9, 0, 0, None]))[1][1]
    ] == [a, b]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xc1", 400),
        (b"", 400),
        (msgpack.packb({}), 400),
        (msgpack.packb([b"short", 5000, []]), 400),
        (msgpack.packb([CLIENT, 0, []]), 400),
        (msgpack.packb([CLIENT, 5000, [[1, 99, 0, b"x"]]]), 400),
        (msgpack.packb([CLIENT, 5000, [[1, GET, 0]]]), 400),
        (msgpack.packb([CLIENT, 5000, [[1, GET, 0, b"", 0, None]] * 5000]), 413),
        (b"\xdd\xff\xff\xff\xff", 400),
        (b"\x91" * 100_000, 400),
        (bytes(9 << 20), 413),
    ],
)
async def test_rpc_refuses_what_it_does_not_understand(api: Api, body: bytes, status: int) -> None:
    assert (await api("POST", "/v1/rpc", body, headers=MSGPACK)).status == status
    assert (await api("POST", "/v1/rpc", body)).status in (413, 415)


async def test_rpc_does_not_answer_more_than_it_may(api: Api) -> None:
    """Reads that do not fit are told to come again; a transaction that is done keeps its outcome."""
    key = storage_key_of("rpc", "big")
    await results(api, [1, PUT, 0, key, 1, 1, 0, None, bytes(1 << 20), "", 0], client=b"b" * 16)
    found = await results(api, *([n, GET, 0, key, LINEARIZABLE, None] for n in range(20)))
    statuses = [r[0] for r in found.values()]
    assert statuses.count(OK) == 15
    assert {BY_STATUS[s].code for s in statuses if s != OK} == {"overloaded"}


# --- bounds ----------------------------------------------------------------------------------


@pytest.mark.nightly
async def test_a_dead_cell_uses_up_its_own_share_only(two_cells: Cluster) -> None:
    """Nodes of one cell stand still, which is worse than dead: operations of every form pile up there,
    are refused beyond the cell's share, and the other cell does not notice."""
    limits = {"max_inflight_per_cell": 20, "max_cell_mib": 4, "deadline_s": 10.0}
    async with two_cells.client() as client:
        table = client.dispatcher.table
        await client.dispatcher.ready(asyncio.get_running_loop().time() + 10)
        cell_of = {f"d{n}/k": table.route(storage_key_of("bulk", f"d{n}/k")).cell for n in range(64)}
    well = [key for key, cell in cell_of.items() if cell == "c1"]
    ill = [key for key, cell in cell_of.items() if cell == "c2"]
    async with router_beside(two_cells, **limits) as (router, api):
        for key in well[:3] + ill[:3]:
            assert (await api("PUT", f"/v1/kv/bulk/{key}", b"v")).status == 201
        two_cells.verb("pause", *two_cells.names("c2"))
        try:
            gets = {"ops": [{"op": "get", "key": key} for key in ill] * 20}
            storage_keys = [storage_key_of("bulk", key) for key in ill]
            gets_in_binary = [[n, GET, 0, key, LINEARIZABLE, None] for n, key in enumerate(storage_keys * 10)]
            then = [{"op": "put", "key": ill[0], "value": "1"}]
            stuck = [
                *(api("PUT", f"/v1/kv/bulk/{ill[n % 9]}", bytes(1 << 19)) for n in range(30)),
                *(api("GET", f"/v1/kv/bulk?prefix={ill[0]}") for _ in range(30)),
                *(api("POST", "/v1/txn/bulk", json={"then": then}) for _ in range(30)),
                *(api("POST", "/v1/batch/bulk", json=gets) for _ in range(3)),
                *(rpc(api, gets_in_binary) for _ in range(3)),
            ]
            tasks = [asyncio.create_task(s) for s in stuck]
            await until(
                "the quota of the dead cell is used up",
                lambda: router.bulkheads.refused.get("max_inflight_per_cell"),
            )
            for number in range(30):
                reply = await api("PUT", f"/v1/kv/bulk/{well[number % len(well)]}", b"x" * 1000)
                assert reply.status in (200, 201)
                assert router.bulkheads.quota("c2").ops <= 20
                assert router.bulkheads.quota("c2").bytes <= 4 << 20
            replies = await asyncio.gather(*tasks)
            assert {r.status for r in replies[:90]} <= {503, 504}
            for reply in replies[90:93]:
                assert {r["status"] for r in reply.body["results"]} <= {503, 504}
            for reply in replies[93:]:
                codes = {BY_STATUS[r[1]].code for r in msgpack.unpackb(reply.raw)}
                assert codes <= {"overloaded", "unavailable", "deadline_exceeded"}
        finally:
            two_cells.verb("resume", *two_cells.names("c2"))

        async def back() -> bool:
            return (await api("GET", f"/v1/kv/bulk/{ill[0]}")).status == 200

        await until("the cell serves again", back)
        quota = router.bulkheads.quota("c2")
        assert (quota.ops, quota.bytes, router.bulkheads.bytes) == (0, 0, 0), "everything was given back"


async def test_bodies_in_memory_are_bounded(shared_cell: Cluster) -> None:
    """Forty slow senders of a megabyte share sixteen: the others are told to come again."""
    async with router_beside(shared_cell, max_held_mib=16, max_cell_mib=16) as (router, api):
        go = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield bytes(1 << 20)
            await go.wait()
            yield b""

        async def send(number: int) -> int:
            async with api.http.put(api.url(f"/v1/kv/held/k{number}"), data=slowly()) as r:
                return r.status

        tasks = [asyncio.create_task(send(n)) for n in range(40)]
        await until("the bound is met", lambda: router.bulkheads.refused.get("max_held_mib", 0) >= 20)
        assert router.bulkheads.bytes <= 16 << 20
        go.set()
        statuses = await asyncio.gather(*tasks)
        assert {statuses.count(s) for s in (201, 503)} != {0}
        assert set(statuses) == {201, 503}
        assert router.bulkheads.bytes == 0
        assert (await api("PUT", "/v1/kv/held/k", bytes(1 << 20))).status == 201


async def test_answers_that_nobody_reads_are_bounded(shared_cell: Cluster) -> None:
    """A client that asks and does not read holds its own answer only so long."""
    async with router_beside(shared_cell, write_timeout_s=1.0) as (router, api):
        await api("PUT", "/v1/kv/unread/k", bytes(1 << 20))
        wires = []
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=1024)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /v1/kv/unread/k HTTP/1.1\r\nHost: x\r\n\r\n" * 16)
            wires.append(writer)
        await until("they hold something", lambda: router.bulkheads.bytes >= 1 << 20)
        await until("they are cut off", lambda: router.bulkheads.bytes == 0)
        for writer in wires:
            writer.close()


async def test_connections_are_bounded(shared_cell: Cluster) -> None:
    """Beyond the bound the one that has been idle longest ends for the new one."""
    async with router_beside(shared_cell, max_connections=5) as (router, api):
        server = router.gateway.server
        wires = []
        for count in range(1, 6):
            wires.append(await asyncio.open_connection("127.0.0.1", router.port))
            await until("it is open", lambda count=count: len(server) == count)
        assert (await api("GET", "/livez")).status == 200
        assert await wires[0][0].read() == b""
        assert len(server) == 5
        for _, other in wires:
            other.close()
        await until("they are closed", lambda: len(server) == 1)
        assert (await api("GET", "/livez")).status == 200
        text = (await api("GET", "/metrics")).raw.decode()
        assert 'metastore_router_requests_total{operation="livez",status="200"} 2.0' in text
        assert "metastore_router_seconds_bucket" in text


async def test_requests_under_way_are_bounded(shared_cell: Cluster) -> None:
    """Beyond the bound the answer is 503 at once; health is still told."""
    async with router_beside(shared_cell, max_inflight=4, max_inflight_per_cell=4) as (router, api):
        go = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"x"
            await go.wait()

        async def send() -> int:
            async with api.http.put(api.url("/v1/kv/under/k"), data=slowly()) as r:
                return r.status

        tasks = [asyncio.create_task(send()) for _ in range(4)]
        await until("four are under way", lambda: router.bulkheads.requests == 4)
        refused = await api("GET", "/v1/kv/under/k")
        assert (refused.status, refused.body["code"], refused.body["outcome"]) == (503, "overloaded", "none")
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await api("GET", path)).status == 200
        go.set()
        assert set(await asyncio.gather(*tasks)) <= {200, 201}


# --- the end, and others beside ---------------------------------------------------------------


async def test_what_is_under_way_is_finished_before_the_end(shared_cell: Cluster) -> None:
    async with api_of(shared_cell.router) as elsewhere:
        async with router_beside(shared_cell) as (router, api):
            go = asyncio.Event()

            async def slowly() -> AsyncIterator[bytes]:
                yield b"half "
                await go.wait()
                yield b"and half"

            async def send() -> tuple[int, str]:
                async with api.http.put(api.url("/v1/kv/end/k"), data=slowly()) as r:
                    return r.status, r.headers["Connection"]

            task = asyncio.create_task(send())
            await until("it is under way", lambda: router.bulkheads.requests == 1)
            router.gateway.drain()
            ready = await api("GET", "/readyz")
            assert (ready.status, ready.body["ready"]) == (503, False)
            assert (await api("GET", "/v1/kv/end/none")).status == 404, "everything is still served"
            stopping = asyncio.create_task(router.stop())
            await asyncio.sleep(0)
            go.set()
            assert await task == (201, "close")
            await stopping
        assert (await elsewhere("GET", "/v1/kv/end/k")).raw == b"half and half"


async def test_many_routers_side_by_side(cell: Cluster, tmp_path: Any) -> None:
    """Three routers that share a snapshot file see the same records and survive the same leader."""
    path = str(tmp_path / "topology.json")
    async with (
        router_beside(cell, snapshot_path=path) as (one, first),
        router_beside(cell, snapshot_path=path) as (_, second),
        api_of(cell.router) as third,
    ):
        apis = [first, second, third]
        for number in range(12):
            reply = await apis[number % 3]("PUT", f"/v1/kv/many/k{number}", b"%d" % number)
            assert reply.status == 201
            for api in apis:
                assert (await api("GET", f"/v1/kv/many/k{number}")).version == reply.version
        leader = cell.leaders()[0][0]
        os.kill(cell.node(leader)["pid"], 9)
        for number in range(12):
            for api in apis:

                async def served(api: Api = api, number: int = number) -> bool:
                    return (await api("GET", f"/v1/kv/many/k{number}")).status == 200

                await until("each router finds the new leader", served)
        assert one.dispatcher.table.complete
        await until("the snapshot is written", lambda: os.path.exists(path))
        cell.verb("kill", "etcd")
        async with router_beside(cell, snapshot_path=path) as (late, fourth):
            assert late.dispatcher.table.complete, "at once, from the file"
            assert (await fourth("GET", "/v1/kv/many/k1")).raw == b"1"
