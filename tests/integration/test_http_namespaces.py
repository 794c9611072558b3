"""Namespaces over HTTP and by cellctl, on a real cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.integration.harness import Cluster, cellctl, until
from tests.integration.http_api import Api, api_of, router_beside, watching


@pytest.fixture
async def api(shared_cell: Cluster) -> AsyncIterator[Api]:
    async with api_of(shared_cell.router) as found:
        yield found


async def test_a_policy_changes_live(api: Api) -> None:
    made = await api("PUT", "/v1/namespaces/live", json={"max_records": 100})
    assert (made.status, made.body["name"], made.body["ready"]) == (201, "live", True)
    assert made.body["policy"] == {
        "routing": "parent",
        "default_ttl_ms": 0,
        "max_records": 100,
        "max_bytes": 0,
        "require_condition": False,
    }
    got = await api("GET", "/v1/namespaces/live")
    assert (got.body, got.headers["ETag"]) == (made.body, made.headers["ETag"])
    listed = (await api("GET", "/v1/namespaces")).body
    assert made.body in listed["namespaces"]
    assert listed["from_copy"] is False
    for headers in ({"If-Match": '"1"'}, {"If-None-Match": "*"}):
        refused = await api("PUT", "/v1/namespaces/live", json={}, headers=headers)
        assert (refused.status, refused.body["version"]) == (412, made.version)
    wanted = {"require_condition": True, "default_ttl_ms": 60_000}
    changed = await api("PUT", "/v1/namespaces/live", json=wanted, headers={"If-Match": made.headers["ETag"]})
    assert (changed.status, changed.body["policy"]["max_records"]) == (200, 0)

    async def takes_effect() -> bool:
        return (await api("PUT", "/v1/kv/live/p/k", b"v")).status == 428

    await until("the leader of this folder knows", takes_effect)
    refused = await api("POST", "/v1/add/live/p/n")
    assert (refused.status, refused.body["code"]) == (428, "condition_required")
    assert (await api("PUT", "/v1/kv/live/p/c", b"v", headers={"If-None-Match": "*"})).status == 201
    assert (await api("GET", "/v1/kv/live/p/c")).headers["Metastore-Ttl-Ms"] == "60000"
    assert (await api("PUT", "/v1/namespaces/live", json={"routing": "key"})).body["code"] == "routing_fixed"
    assert (await api("DELETE", "/v1/namespaces/live", headers={"If-Match": '"1"'})).status == 412
    assert (await api("DELETE", "/v1/namespaces/live")).status == 204
    assert (
        (await api("GET", "/v1/namespaces/live")).status
        == 404
        == (await api("DELETE", "/v1/namespaces/live")).status
    )

    async def gone() -> bool:
        return (await api("PUT", "/v1/kv/live/p/k", b"v")).status in (200, 201)  # it may be there already

    await until("the default policy holds", gone)


async def test_a_quota(api: Api) -> None:
    await api("PUT", "/v1/namespaces/small", json={"max_records": 3})

    numbers = iter(range(10_000))

    async def full() -> bool:
        return (await api("PUT", f"/v1/kv/small/{next(numbers)}", b"x")).status == 507

    await until("the namespace is full", full)
    refused = await api("PUT", "/v1/kv/small/one-more", b"x")
    assert (refused.status, refused.body["code"]) == (507, "quota_exceeded")
    assert refused.body["outcome"] == "none"
    assert (await api("PUT", "/v1/kv/small/0", b"y")).status == 200, "what is there may still change"
    assert (await api("DELETE", "/v1/kv/small/0")).status in (200, 404)


async def test_another_route(shared_cell: Cluster, api: Api) -> None:
    """Made while others write to the namespace: what they write is found afterwards, all of it."""
    made = await api("PUT", "/v1/namespaces/wide", json={"routing": "key"})
    assert (made.status, made.body["ready"], made.body["policy"]["routing"]) == (201, True, "key")
    for number in range(20):
        assert (await api("PUT", f"/v1/kv/wide/d/{number}", b"x")).status == 201
    async with shared_cell.client() as client:  # a client that has never heard of it
        assert (await client.namespace("wide").get("d/7")) is not None
        table = client.dispatcher.table
        assert table.policy("wide").routing == "key"
    page = (await api("GET", "/v1/kv/wide?prefix=d/")).body
    assert {i["key"] for i in page["items"]} == {f"d/{n}" for n in range(20)}
    then = [{"op": "put", "key": f"d/{n}", "value": "1"} for n in range(20)]
    refused = await api("POST", "/v1/txn/wide", json={"then": then})
    assert refused.body["code"] == "cross_partition"
    assert "routes by key" in refused.body["detail"]
    refused = await api("DELETE", "/v1/namespaces/wide")
    assert (refused.status, refused.body["code"]) == (409, "namespace_not_empty")
    for number in range(20):
        assert (await api("DELETE", f"/v1/kv/wide/d/{number}")).status == 200
    assert (await api("DELETE", "/v1/namespaces/wide")).status == 204
    assert (await api("PUT", "/v1/kv/wide/d/1", b"by parent again")).status == 201


async def test_a_route_is_refused_where_records_are(api: Api) -> None:
    await api("PUT", "/v1/kv/taken/d/1", b"x")
    refused = await api("PUT", "/v1/namespaces/taken", json={"routing": "segments:2"})
    assert (refused.status, refused.body["code"], refused.body["record_key"]) == (
        409,
        "namespace_not_empty",
        "d/1",
    )
    assert (await api("GET", "/v1/namespaces/taken")).status == 404
    assert (await api("GET", "/v1/kv/taken/d/1")).status == 200


async def test_a_route_made_under_writes_loses_none(shared_cell: Cluster, api: Api) -> None:
    """Writers through two routers race with the making; whatever they were told is written is there."""
    acked: list[str] = []
    done = asyncio.Event()

    async def write(who: int, through: Api) -> None:
        number = 0
        while not done.is_set():
            number += 1
            key = f"d{who}/{number}"
            reply = await through("PUT", f"/v1/kv/race/{key}", b"x")
            if reply.status == 201:
                acked.append(key)

    async with router_beside(shared_cell) as (_, other):
        writers = [asyncio.create_task(write(n, (api, other)[n % 2])) for n in range(6)]
        await until("they write", lambda: len(acked) > 20)
        refused = await api("PUT", "/v1/namespaces/race", json={"routing": "key"})
        assert refused.status == 409, "there are records already"
        done.set()
        await asyncio.gather(*writers)
        for key in acked:
            await api("DELETE", f"/v1/kv/race/{key}")
        acked.clear()
        done.clear()
        making = asyncio.create_task(api("PUT", "/v1/namespaces/race", json={"routing": "key"}))
        writers = [asyncio.create_task(write(n, (api, other)[n % 2])) for n in range(6)]
        reply = await making
        assert reply.status in (201, 409)
        before = len(acked)
        await until("they go on writing", lambda: len(acked) > before + 20)
        done.set()
        await asyncio.gather(*writers)
        items = []
        cursor = ""
        while cursor is not None:
            page = (await other("GET", f"/v1/kv/race?keys_only=true&cursor={cursor}")).body
            items += [i["key"] for i in page["items"]]
            cursor = page["cursor"]
        assert set(acked) <= set(items)
        for key in acked:
            assert (await other("GET", f"/v1/kv/race/{key}")).status == 200, "each is where a reader looks"


@pytest.mark.nightly
async def test_a_node_that_is_away_is_named(cell: Cluster) -> None:
    async with api_of(cell.router) as api:
        cell.verb("kill", "c1n2")
        refused = await api("PUT", "/v1/namespaces/far?timeout_ms=6000", json={"routing": "key"})
        assert (refused.status, refused.body["nodes"], refused.body["outcome"]) == (503, ["c1n2"], "none")
        assert "c1n2 does not answer" in refused.body["detail"]
        assert (await api("GET", "/v1/namespaces/far")).status == 404
        assert (await api("PUT", "/v1/kv/far/k", b"x")).status == 201, "and it is open as before"
        await api("DELETE", "/v1/kv/far/k")
        cell.verb("restart", "c1n2")

        async def made() -> bool:
            return (await api("PUT", "/v1/namespaces/far", json={"routing": "key"})).status == 201

        await until("it can be made", made)
        cell.verb("kill", "etcd")
        refused = await api("PUT", "/v1/namespaces/near", json={})
        assert (refused.status, refused.body["outcome"]) == (503, "none")
        listed = (await api("GET", "/v1/namespaces")).body
        assert listed["from_copy"] is True
        assert [n["name"] for n in listed["namespaces"]] == ["far"]
        assert (await api("GET", "/v1/namespaces/far")).body["revision"] is None
        assert (await api("PUT", "/v1/kv/far/k", b"x")).status == 201, "records do not need etcd"


@pytest.mark.nightly
async def test_a_policy_removed_while_a_process_was_down_is_forgotten(cell: Cluster) -> None:
    async with api_of(cell.router) as api:
        await api("PUT", "/v1/namespaces/brief", json={"require_condition": True})

        async def refused() -> bool:
            return (await api("PUT", "/v1/kv/brief/k", b"x")).status == 428

        await until("every leader knows", refused)
        await until("it is kept", lambda: all(cell.status(n)["topology_kept"] for n in cell.names()))
        cell.verb("kill", *cell.names(), "router")
        assert cellctl("namespace", "list", "--data", str(cell.data), check=False).returncode == 2
        # removed by hand: no node is there to be asked, and none is needed for a default route
        from cellctl.connect import Where, etcd_endpoints
        from metastore.coordination.etcd import EtcdCoordinator
        from metastore.coordination.interface import Delete
        from metastore.layout import Layout

        coordinator = EtcdCoordinator(etcd_endpoints(Where(None, cell.data, None)))
        await coordinator.txn([], [Delete(Layout("dev").namespace("brief"))])
        await coordinator.close()
        cell.verb("restart", *cell.names(), "router")

        async def open_again() -> bool:
            try:
                return (await api("PUT", "/v1/kv/brief/k", b"x")).status in (200, 201)
            except OSError:
                return False

        await until("nobody remembers it", open_again)
        assert (await api("GET", "/v1/topology")).body["namespaces"] == []


async def test_a_watch_begun_before_its_namespace_was_made_goes_on(api: Api) -> None:
    async with watching(api, "/v1/watch/early") as source:
        await api("PUT", "/v1/namespaces/early", json={"routing": "key"})
        await api("PUT", "/v1/kv/early/d/1", b"x")
        assert [e.data["key"] for e in await source.take(1)] == ["d/1"]


async def test_cellctl(shared_cell: Cluster, api: Api) -> None:
    at = ("--data", str(shared_cell.data))
    made = cellctl("namespace", "create", "cli", "--routing", "segments:1", "--default-ttl", "2h", *at)
    assert "namespace cli made" in made.stdout
    again = cellctl("namespace", "create", "cli", *at, check=False)
    assert again.returncode == 2
    assert "cellctl namespace set cli" in again.stderr
    assert cellctl("namespace", "set", "cli", "--max-records", "50", *at).returncode == 0
    assert cellctl("namespace", "set", "cli", "--max-records", "50", *at, check=False).returncode == 1
    assert cellctl("namespace", "set", "cli", "--default-ttl", "soon", *at, check=False).returncode == 2
    await api("PUT", "/v1/kv/cli/a/b/1", b"xyz")
    await api("PUT", "/v1/kv/cli-plain/a", b"x")

    async def counted() -> bool:
        rows = json.loads(cellctl("namespace", "list", "-o", "json", *at).stdout)["namespaces"]
        by_name = {row["name"]: row for row in rows}
        row, plain = by_name.get("cli"), by_name.get("cli-plain")
        if not row or not plain or not row["records"]:
            return False
        assert (row["routing"], row["default_ttl_ms"], row["max_records"]) == ("segments:1", 7_200_000, 50)
        assert (row["records"], row["own_policy"], plain["own_policy"], plain["records"]) == (
            1,
            True,
            False,
            1,
        )
        assert row["bytes"] > 3
        return True

    await until("it is listed with what it holds", counted)
    assert "segments:1" in cellctl("namespace", "show", "cli", *at).stdout
    refused = cellctl("namespace", "delete", "cli", "--yes", *at, check=False)
    assert (refused.returncode, "'a/b/1'" in refused.stderr) == (2, True)
    await api("DELETE", "/v1/kv/cli/a/b/1")
    assert cellctl("namespace", "delete", "cli", "--yes", *at).returncode == 0
    assert cellctl("namespace", "delete", "cli", "--yes", *at, check=False).returncode == 1
    unknown = cellctl("namespace", "create", "x", "--router", shared_cell.router, check=False)
    assert (unknown.returncode, "--etcd" in unknown.stderr) == (2, True)
