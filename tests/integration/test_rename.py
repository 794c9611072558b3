"""A record is given another key: by Python, by HTTP, by ``cellctl``; readers see one of the two keys, never both or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from metastore.client import Get
from metastore.errors import ConditionFailed, CrossPartition, InvalidRequest
from tests.integration.harness import Cluster, cellctl
from tests.integration.http_api import Api, api_of
from tests.integration.witness import partition_of


@pytest.fixture
async def api(shared_cell: Cluster) -> AsyncIterator[Api]:
    async with api_of(shared_cell.router) as found:
        yield found


async def test_by_python(shared_cell: Cluster) -> None:
    async with shared_cell.client() as client:
        ns = client.namespace("drafts")
        first = await ns.put("d/a", b"text", content_type="text/plain", ttl_s=3600)
        version = await ns.rename("d/a", "d/b", version=first.version)
        found = await ns.get("d/b")
        assert found is not None
        assert (found.version, found.created, found.value) == (version, first.version, b"text")
        assert (found.content_type, found.ttl_ms) == ("text/plain", 3_600_000)
        assert await ns.get("d/a") is None
        with pytest.raises(ConditionFailed):
            await ns.rename("d/a", "d/c")
        await ns.put("d/c", b"other")
        with pytest.raises(ConditionFailed, match="under the new key"):
            await ns.rename("d/b", "d/c")
        await ns.rename("d/b", "d/c", replace=True)
        assert [key for key, _ in (await ns.list("d/")).items] == ["d/c"]
        here = partition_of(client, "drafts", "d/c")
        far = next(
            key for key in (f"e{n}/c" for n in range(100)) if partition_of(client, "drafts", key) != here
        )
        with pytest.raises(CrossPartition):
            await ns.rename("d/c", far)
        with pytest.raises(InvalidRequest, match="to itself"):
            await ns.rename("d/c", "d/c", replace=True)


async def test_no_reader_sees_both_keys_or_none(shared_cell: Cluster) -> None:
    async with shared_cell.client() as client, shared_cell.client() as other:
        ns, seen = client.namespace("swing"), other.namespace("swing")
        await ns.put("d/left", b"ball")

        async def swing() -> None:
            for _ in range(50):
                await ns.rename("d/left", "d/right")
                await ns.rename("d/right", "d/left")

        swinging = asyncio.create_task(swing())
        while not swinging.done():
            both = (await seen.txn([], [Get("d/left"), Get("d/right")])).results
            assert both.count(None) == 1
        await swinging


async def test_by_http(api: Api) -> None:
    await api("PUT", "/v1/kv/drafts-http/d/a", b"text")
    moved = await api("POST", "/v1/rename/drafts-http/d/a?to=d/b", headers={"Idempotency-Key": "once"})
    assert (moved.status, moved.body["key"]) == (200, "d/b")
    again = await api("POST", "/v1/rename/drafts-http/d/a?to=d/b", headers={"Idempotency-Key": "once"})
    assert (again.status, again.body) == (200, moved.body), "a retry gets the first outcome"
    read = await api("GET", "/v1/kv/drafts-http/d/b")
    assert (read.raw, read.headers["ETag"]) == (b"text", moved.headers["ETag"])
    assert (await api("POST", "/v1/rename/drafts-http/d/a?to=d/c")).status == 404
    await api("PUT", "/v1/kv/drafts-http/d/c", b"other")
    assert (await api("POST", "/v1/rename/drafts-http/d/b?to=d/c")).status == 412
    stale = await api("POST", "/v1/rename/drafts-http/d/b?to=d/c&replace=true", headers={"If-Match": '"1"'})
    assert stale.status == 412
    done = await api(
        "POST", "/v1/rename/drafts-http/d/b?to=d/c&replace=true", headers={"If-Match": read.headers["ETag"]}
    )
    assert done.status == 200
    assert (await api("GET", "/v1/kv/drafts-http/d/c")).raw == b"text"
    assert (await api("POST", "/v1/rename/drafts-http/d/c")).status == 400, "the new key is required"


async def test_by_hand(shared_cell: Cluster) -> None:
    async with shared_cell.client() as client:
        await client.namespace("by-hand").put("d/a", b"text")
        where = ("--data", str(shared_cell.data), "-n", "by-hand")
        done = await asyncio.to_thread(cellctl, "kv", "rename", *where, "d/a", "d/b")
        assert done.returncode == 0, done.stderr
        refused = await asyncio.to_thread(cellctl, "kv", "rename", *where, "d/a", "d/c", check=False)
        assert refused.returncode != 0
        assert "no such record" in refused.stderr
        assert await client.namespace("by-hand").get("d/b") is not None
