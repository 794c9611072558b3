"""The HTTP gateway on a real cluster."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.integration.harness import Cluster, until

JSON = {"Content-Type": "application/json"}


def raw(cluster: Cluster, path: str) -> URL:
    return URL(cluster.router + path, encoded=True)


async def check_records(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    url = raw(cluster, "/v1/kv/app/a/b")
    async with http.put(url, data=b"one", headers={"Content-Type": "text/plain"}) as r:
        assert r.status == 201
        assert (await r.json())["created"] is True
        first = r.headers["ETag"]
    async with http.get(url) as r:
        assert (r.status, await r.read(), r.headers["ETag"]) == (200, b"one", first)
        assert r.headers["Content-Type"].startswith("text/plain")
    async with http.head(url) as r:
        assert (r.status, r.headers["Content-Length"], await r.read()) == (200, "3", b"")
    async with http.get(url, headers={"If-None-Match": first}) as r:
        assert r.status == 304
    async with http.put(url, data=b"two", headers={"If-Match": first}) as r:
        assert r.status == 200
        second = r.headers["ETag"]
    for headers in ({"If-Match": first}, {"If-None-Match": "*"}):
        async with http.put(url, data=b"no", headers=headers) as r:
            body = await r.json()
            assert r.status == 412
            assert r.content_type == "application/problem+json"
            assert f'"{body["version"]}"' == second == r.headers["ETag"]
            assert (body["code"], body["retryable"], body["outcome"]) == ("condition_failed", False, "none")
    async with http.put(raw(cluster, "/v1/kv/app/none"), data=b"x", headers={"If-Match": "*"}) as r:
        assert r.status == 412
        assert (await r.json())["version"] == 0
    async with http.delete(url, headers={"If-Match": first}) as r:
        assert r.status == 412
    async with http.delete(url) as r:
        assert r.status == 200
    for verb in (http.get, http.delete):
        async with verb(url) as r:
            assert r.status == 404
            assert (await r.json())["code"] == "not_found"


async def check_keys_survive(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    """Any key goes through the path and comes back as it was."""
    for number, (path, key) in enumerate(
        [
            ("a//b", "a//b"),
            ("x/../y", "x/../y"),
            ("./z", "./z"),
            ("dir/", "dir/"),
            ("per%25cent%2Fslash", "per%cent/slash"),
            ("sp%20ace%3Fq", "sp ace?q"),
            ("%C3%A4", "ä"),
            ("%7Btag%7D/k", "{tag}/k"),
            ("nul%00key", "nul\0key"),
        ]
    ):
        async with http.put(raw(cluster, f"/v1/kv/keys/{path}"), data=b"%d" % number) as r:
            assert r.status == 201, await r.text()
            assert (await r.json())["key"] == key
        async with http.get(raw(cluster, f"/v1/kv/keys/{path}")) as r:
            assert await r.read() == b"%d" % number
    async with http.get(raw(cluster, "/v1/kv/keys")) as r:
        keys = [i["key"] for i in (await r.json())["items"]]
        assert len(keys) == 9
        assert "x/../y" in keys


async def check_listing(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    await asyncio.gather(
        *(_put(http, raw(cluster, f"/v1/kv/list/d/{i:03d}"), b"%d" % i) for i in range(25)),
        *(_put(http, raw(cluster, f"/v1/kv/list/d/sub/{i}"), b"") for i in range(3)),
        _put(http, raw(cluster, "/v1/kv/list/other"), b"\xff\xfe"),
    )
    found: list[str] = []
    cursor = ""
    while True:
        async with http.get(raw(cluster, f"/v1/kv/list?prefix=d/&limit=10&cursor={cursor}")) as r:
            page = await r.json()
        found += [i["key"] for i in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == [f"d/{i:03d}" for i in range(25)], "a directory's own entries, in order, no deeper ones"
    async with http.get(raw(cluster, "/v1/kv/list?prefix=d/02&keys_only=true")) as r:
        assert [i["key"] for i in (await r.json())["items"]] == [f"d/{i:03d}" for i in range(20, 25)]
    everything: set[str] = set()
    cursor = ""
    while cursor is not None:
        async with http.get(raw(cluster, f"/v1/kv/list?limit=7&cursor={cursor}")) as r:
            page = await r.json()
        assert len(page["items"]) <= 7
        assert not everything & {i["key"] for i in page["items"]}, "a key came twice"
        everything |= {i["key"] for i in page["items"]}
        cursor = page["cursor"]
    assert len(everything) == 29
    async with http.get(raw(cluster, "/v1/kv/list?prefix=other")) as r:
        item = (await r.json())["items"][0]
        assert base64.b64decode(item["value_base64"]) == b"\xff\xfe"


async def _put(http: aiohttp.ClientSession, url: URL, value: bytes) -> None:
    async with http.put(url, data=value) as r:
        assert r.status in (200, 201), await r.text()


async def check_batch_and_idempotency(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    ops: list[dict[str, Any]] = [{"op": "put", "key": f"b{i}", "value": str(i)} for i in range(50)]
    ops += [
        {"op": "put", "key": "b1", "value_base64": "!!"},
        {"op": "fly", "key": "b1"},
        {"op": "get", "key": "nope"},
    ]
    async with http.post(raw(cluster, "/v1/batch/batch"), json={"ops": ops}) as r:
        results = (await r.json())["results"]
    assert [x["status"] for x in results] == [201] * 50 + [400, 400, 404]
    gets = [{"op": "get", "key": "b7"}, {"op": "put", "key": "b7", "value": "no", "if_version": 10**9}]
    async with http.post(raw(cluster, "/v1/batch/batch"), json={"ops": gets}) as r:
        got, failed = (await r.json())["results"]
    assert got["value"] == "7"
    assert (failed["status"], failed["version"]) == (412, got["version"])
    url = raw(cluster, "/v1/kv/idem/once")
    versions = set()
    for _ in range(3):  # the same request again gets the first outcome (R7)
        headers = {"Idempotency-Key": "order-1", "If-None-Match": "*"}
        async with http.put(url, data=b"x", headers=headers) as r:
            assert r.status == 201
            versions.add(r.headers["ETag"])
    assert len(versions) == 1


async def check_bad_input(cluster: Cluster, http: aiohttp.ClientSession) -> None:
    cases: list[tuple[str, str, dict[str, Any], int]] = [
        ("PUT", "/v1/kv/UPPER/k", {"data": b"x"}, 400),
        ("PUT", "/v1/kv/app/", {"data": b"x"}, 400),
        ("PUT", "/v1/kv/app/%FF", {"data": b"x"}, 400),
        ("PUT", "/v1/kv/app/" + "k" * 2049, {"data": b"x"}, 413),
        ("PUT", "/v1/kv/app/big", {"data": b"x" * ((1 << 20) + 1)}, 413),
        ("PUT", "/v1/kv/app/k", {"data": b"x", "headers": {"If-Match": "abc"}}, 400),
        ("PUT", "/v1/kv/app/k?colour=red", {"data": b"x"}, 400),
        ("GET", "/v1/kv/app/k?consistency=eventual", {}, 400),
        ("GET", "/v1/kv/app?limit=0", {}, 400),
        ("GET", "/v1/kv/app?limit=ten", {}, 400),
        ("GET", "/v1/kv/app?cursor=%21%21", {}, 400),
        ("POST", "/v1/batch/app", {"data": b"{", "headers": JSON}, 400),
        ("POST", "/v1/batch/app", {"data": b"{}"}, 415),
        ("POST", "/v1/batch/app", {"json": {"ops": [{}] * 5000}}, 413),
        ("PATCH", "/v1/kv/app/k", {"data": b"x"}, 405),
        ("GET", "/v2/none", {}, 404),
    ]
    for method, path, options, status in cases:
        async with http.request(method, raw(cluster, path), **options) as r:
            assert r.status == status, (method, path, r.status, await r.text())
            assert r.content_type == "application/problem+json"
    await _put(http, raw(cluster, "/v1/kv/app/max"), b"x" * (1 << 20))
    async with http.get(raw(cluster, "/v1/kv/app/max")) as r:
        assert len(await r.read()) == 1 << 20


async def test_the_gateway(cell: Cluster) -> None:
    async with aiohttp.ClientSession() as http:
        await check_records(cell, http)
        await check_keys_survive(cell, http)
        await check_listing(cell, http)
        await check_batch_and_idempotency(cell, http)
        await check_bad_input(cell, http)


@pytest.mark.nightly
async def test_a_router_starts_without_etcd(cell: Cluster, tmp_path: Path) -> None:
    """From its snapshot, or from any node, with etcd dead."""
    async with aiohttp.ClientSession() as http:
        await _put(http, raw(cell, "/v1/kv/app/k"), b"v")
        cell.verb("kill", "etcd", "router")
        for snapshot in (True, False):
            if not snapshot:
                cell.verb("kill", "router")
                (cell.data / "router-topology.json").unlink(missing_ok=True)
            cell.verb("restart", "router")

            async def served() -> bool:
                try:
                    async with http.get(raw(cell, "/v1/kv/app/k")) as r:
                        return r.status == 200 and await r.read() == b"v"
                except aiohttp.ClientError:
                    return False

            await until("the router serves", served)
            await _put(http, raw(cell, "/v1/kv/app/k2"), b"w")


@pytest.mark.parametrize(
    "hostile",
    [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x05\x01\x03\xc1\xc1\xc1", b"\0\xff\xff\xff\x01\x01"],
)
async def test_nonsense_on_the_rpc_port_is_disconnected(cell: Cluster, hostile: bytes) -> None:
    host, _, port = cell.node("c1n1")["rpc"].rpartition(":")
    async with cell.client() as client:
        ns = client.namespace("calm")
        await ns.put("k", b"1")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(hostile)
        await writer.drain()
        try:
            await asyncio.wait_for(reader.read(-1), 20)
        except ConnectionResetError:
            pass
        writer.close()
        assert (await ns.put("k", b"2")).version
        assert cell.status("c1n1")["failed"] is None
