"""What clients have from before a forced failover, or a restore, is refused: in Python and over HTTP (R19)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from cellctl.connect import Where
from cellctl.generations import begin_generation
from cellctl.http_client import fetch_json
from cellctl.rebalance import operate
from metastore.client import AsyncClient, AsyncNamespace
from metastore.errors import HistoryChanged, LockLost
from metastore.history import first_version, generation_of
from metastore.keys import storage_key_of
from tests.integration.harness import Cluster, cellctl, keys_by_partition, until
from tests.integration.http_api import Api
from tests.integration.test_operator import tool
from tests.processes import PATIENCE_S, pause, resume
from tests.unit.node.test_histories import refusals

P = 3
NS = "kept"


@dataclass
class Before:
    """What clients got of a folder."""

    folder: str
    version: int
    resume: str


def folder_in(client: AsyncClient, partition: int) -> str:
    """A folder of the namespace that lives in ``partition``."""
    table = client.dispatcher.table
    return next(
        f"d{n}" for n in itertools.count() if table.route(storage_key_of(NS, f"d{n}/k")).id == partition
    )


async def gather_tokens(ns: AsyncNamespace, folder: str) -> Before:
    await ns.put(f"{folder}/k", b"old")
    await ns.add(f"{folder}/n", 5)
    version = (await ns.put(f"{folder}/k", b"older")).version
    resume = (await ns.list(f"{folder}/")).resume
    assert resume is not None
    return Before(folder, version, resume)


async def assert_refused(ns: AsyncNamespace, api: Api, before: Before, generation: int) -> None:
    """Every kind of token, through the Python client and over HTTP."""
    errors = await refusals(ns, before.version, before.resume, before.folder)
    for name, error in errors.items():
        assert type(error) is HistoryChanged, (name, error)
        assert error.detail["generation"] == generation
    key, tag = f"/{NS}/{before.folder}/k", {"If-Match": f'"{before.version}"'}
    fence = f"fence=job:{before.version}"
    compare = {"key": f"{before.folder}/k", "what": "version", "operand": before.version}
    ops = [{"op": "put", "key": f"{before.folder}/k", "value": "", "if_version": before.version}]
    for reply in (
        await api("GET", f"/v1/kv{key}", headers=tag),
        await api("PUT", f"/v1/kv{key}", b"", headers=tag),
        await api("DELETE", f"/v1/kv{key}", headers=tag),
        await api("POST", f"/v1/add/{NS}/{before.folder}/n", headers=tag),
        await api("POST", f"/v1/touch{key}", headers=tag),
        await api("PUT", f"/v1/kv{key}?{fence}", b""),
        await api("DELETE", f"/v1/kv{key}?{fence}"),
        await api("POST", f"/v1/txn/{NS}", json={"compare": [compare]}),
        await api("GET", f"/v1/kv{key}?at_least={before.version}"),
        await api("GET", f"/v1/watch/{NS}?prefix={before.folder}/&after={before.resume}"),
    ):
        assert (reply.status, reply.body["code"]) == (409, "history_changed"), reply.raw
        assert reply.body["generation"] == generation
    results = (await api("POST", f"/v1/batch/{NS}", json={"ops": ops})).body["results"]
    assert results[0]["code"] == "history_changed"
    # a cache is told that it is old
    cached = await api("GET", f"/v1/kv{key}", headers={"If-None-Match": f'"{before.version}"'})
    assert cached.status == 200


async def assert_goes_on(ns: AsyncNamespace, api: Api, folder: str, generation: int) -> None:
    """What is read now is good now."""
    page = await ns.list(f"{folder}/")
    record = await ns.get(f"{folder}/k")
    assert record is not None
    assert record.value == b"older"
    assert generation_of(record.version) == generation
    async with ns.watch(f"{folder}/", after=page.resume) as changes:
        put = await ns.put(f"{folder}/k", b"new", version=record.version)
        event = await changes.next(20)
        assert event is not None
        assert event.version == put.version
    got = await api("GET", f"/v1/kv/{NS}/{folder}/k?at_least={put.version}")
    assert got.version == put.version
    again = await api("PUT", f"/v1/kv/{NS}/{folder}/k", b"newer", headers={"If-Match": got.headers["ETag"]})
    assert again.status == 200
    token = (await ns.put(f"{folder}/lock", b"", absent=True, raise_fence="job", ttl_s=30)).version
    done = await api("PUT", f"/v1/kv/{NS}/{folder}/state?fence=job:{token}", b"1")
    assert done.status == 201


async def test_a_forced_failover(cell: Cluster) -> None:
    async with cell.client() as client, aiohttp.ClientSession() as http:
        ns, api = client.namespace(NS), Api(cell.json()["router"]["url"], http)
        folder = folder_in(client, P)
        lock = ns.lock(f"{folder}/held", ttl_s=30)
        await lock.acquire()
        before = await gather_tokens(ns, folder)
        cell.verb("kill", "c1n1", "c1n2")
        await until(
            "the last one serves nothing",
            lambda: all(p["health"] != "ok" for p in cell.status("c1n3")["partitions"]),
        )
        said = await asyncio.to_thread(tool, cell, "failover", "--force", str(P), "--yes")
        assert "history_changed" in said
        assert "new-generation" in said
        await assert_refused(ns, api, before, 1)
        await assert_goes_on(ns, api, folder, 1)
        await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
        with pytest.raises(LockLost):
            await lock.release()
        # those who come back, and the others' next leaders, are of the new history
        cell.verb("restart", "c1n1")
        cell.verb("restart", "c1n2")
        await until("all are led", lambda: len(cell.leaders()) == 8)
        await until(
            "all are seen",
            lambda: [n["state"] for n in tool(cell, "node", "list", "-o", "json")] == ["up"] * 3,
        )
        await asyncio.to_thread(tool, cell, "partition", "move", str(P), "--to", "c1n1,c1n2,c1n3", "--yes")
        leader, _ = cell.leaders()[P]
        to = next(n for n in cell.names() if n != leader)
        await asyncio.to_thread(tool, cell, "switchover", str(P), "--to", to)
        await assert_refused(ns, api, before, 1)
        other = keys_by_partition(client, 1, NS)[0][0]
        assert (await ns.put(other, b"")).version < first_version(1), "the others go on as they were"
        # what fences writes across partitions is brought to the same generation by hand
        await asyncio.to_thread(tool, cell, "partition", "new-generation", "--yes")
        assert (await ns.put(other, b"")).version > first_version(1)
        rows = tool(cell, "verify", "-o", "json")
        assert [row["state"] for row in rows] == ["same"] * 8


async def test_a_restore(cell: Cluster, tmp_path: Path) -> None:
    """Into the cluster itself, which has gone on, and into another one."""
    file = tmp_path / "all.snapshot"
    async with cell.client() as client, aiohttp.ClientSession() as http:
        ns, api = client.namespace(NS), Api(cell.json()["router"]["url"], http)
        folder = folder_in(client, P)
        before = await gather_tokens(ns, folder)
        await asyncio.to_thread(tool, cell, "snapshot", "save", str(file))
        shown = cellctl("snapshot", "show", str(file), "-o", "json").stdout
        assert json.loads(shown)["generation"] == 0
        kept = await ns.get(f"{folder}/k")
        assert kept is not None
        await asyncio.to_thread(tool, cell, "snapshot", "restore", "--merge", "--same-history", str(file))
        now = await ns.get(f"{folder}/k")
        assert now is not None
        assert kept.version < now.version < first_version(1)
        said = await asyncio.to_thread(
            tool, cell, "snapshot", "restore", "--merge", "--generation", "600", str(file), code=2
        )
        assert "600 is not within" in said
        await asyncio.to_thread(tool, cell, "snapshot", "restore", "--merge", str(file))
        await assert_refused(ns, api, before, 1)
        await assert_goes_on(ns, api, folder, 1)
        await asyncio.to_thread(tool, cell, "snapshot", "save", str(file))
    other = Cluster.up(tmp_path / "other", cells=1, nodes=1, partitions=2)
    try:
        said = await asyncio.to_thread(
            tool, other, "snapshot", "restore", "--merge", "--generation", "1", str(file), code=2
        )
        assert "generations up to 1" in said
        await asyncio.to_thread(tool, other, "snapshot", "restore", "--merge", str(file))
        async with other.client() as client, aiohttp.ClientSession() as http:
            ns, api = client.namespace(NS), Api(other.json()["router"]["url"], http)
            await ns.put(f"{folder}/k", b"older")
            await assert_refused(ns, api, before, 2)
            record = await ns.get(f"{folder}/k")
            assert record is not None
            assert generation_of(record.version) == 2
    finally:
        other.down()


@pytest.mark.nightly
async def test_what_is_split_off_meanwhile_is_in_the_new_generation_too(cell: Cluster) -> None:
    """Partitions are split while all, or one of them, begin a generation: none is left behind, nor what it parted with."""
    where = Where(None, cell.data, None, 120.0)
    before = await asyncio.to_thread(operate, where, lambda o: o.records())
    await asyncio.to_thread(tool, cell, "partition", "split", "0", "--yes")
    done = await asyncio.to_thread(begin_generation, where, before.configs, 1, "test", before)
    assert done == set(range(9)), "what was split off after it was asked for"
    splits = (
        asyncio.to_thread(tool, cell, "partition", "split", str(p), "--yes", "--no-wait") for p in (1, P)
    )
    begun = asyncio.to_thread(tool, cell, "partition", "new-generation", "--yes")
    one = asyncio.to_thread(tool, cell, "partition", "new-generation", str(P), "--yes")
    said = await asyncio.gather(*splits, begun, one)
    assert all("in generation" in text for text in said[-2:])
    await until("all are split", lambda: len(cell.leaders()) == 11)
    for name in cell.names():
        versions = {p["id"]: p["version"] for p in cell.status(name)["partitions"] if p["role"] == "active"}
        assert not [p for p, version in versions.items() if generation_of(version) < 2], versions


async def split_without(cell: Cluster, name: str) -> tuple[int, int]:
    """Split a partition while that node stands still, and before the others miss it, which a split waits for: one that
    comes too late happens as soon as the node goes on, and another partition's turn comes. (partition, child)."""
    where = Where(None, cell.data, None, 60.0)
    for p, child in zip((p for p in range(8) if cell.leaders()[p][0] != name), itertools.count(8)):
        pause(cell.node(name)["pid"])
        await asyncio.to_thread(operate, where, lambda o, p=p: o.request_split(p, None, "test"))
        others = [cell.node(n)["http"] for n in cell.names() if n != name]

        async def is_led(child: int = child, others: list[str] = others) -> bool:
            views = [await asyncio.to_thread(fetch_json, f"{http}/v1/status", 30.0) for http in others]
            return any(q["id"] == child and q["role"] == "active" for v in views for q in v["partitions"])

        with contextlib.suppress(AssertionError):
            await until("it is split", is_led, 10)
            return p, child
        resume(cell.node(name)["pid"])
        await until("it is split, too late", is_led)
    raise AssertionError("no partition was split in time")


@pytest.mark.nightly
async def test_a_forced_failover_undoes_no_split(steady_cell: Cluster) -> None:
    """R18: a log that ends before the entry that split goes on alone for neither half; one that has it does for both."""
    cell = steady_cell
    async with cell.client() as client:
        ns = client.namespace(NS)
        keys = keys_by_partition(client, 40, NS)
        for found in keys.values():
            for key in found:
                await ns.put(key, b"kept")
        split, child = await split_without(cell, "c1n3")
        os.kill(cell.node("c1n3")["pid"], signal.SIGKILL)
        await until("its death is noticed", lambda: cell.node("c1n3")["pid"] is None)
        cell.verb("kill", "c1n1", "c1n2")
        cell.verb("restart", "c1n3")
        await until("it is there", lambda: cell.status("c1n3")["partitions"])
        said = await asyncio.to_thread(tool, cell, "failover", "--force", str(split), "--yes", code=2)
        assert "a split is not undone" in said
        assert "c1n1, c1n2" in said
        said = await asyncio.to_thread(tool, cell, "failover", "--force", str(child), "--yes", code=2)
        assert "nothing of what it began with" in said or "none of" in said, said
        # who has the entry is there again: then the last one has it too, and goes on for both halves
        cell.verb("restart", "c1n1")
        cell.verb("restart", "c1n2")
        await until("all are led", lambda: len(cell.leaders()) == child + 1)
        await until(
            "the last one has the child",
            lambda: any(p["id"] == child and p["applied_index"] for p in cell.status("c1n3")["partitions"]),
        )
        cell.verb("kill", "c1n1", "c1n2")
        await until(
            "the last one serves nothing",
            lambda: all(p["health"] != "ok" for p in cell.status("c1n3")["partitions"]),
        )
        for p in (split, child):
            await asyncio.to_thread(tool, cell, "failover", "--force", str(p), "--yes")
        for key in keys[split]:
            record = await ns.get(key)
            assert record is not None
            assert record.value == b"kept"
