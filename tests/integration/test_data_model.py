"""Transactions, TTLs, fences and namespaces' policies on a real cell, also across failovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from metastore.client import Add, AsyncNamespace, Compare, Delete, Fence, Get, Put, PutResult, Record
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Delete as EtcdDelete
from metastore.coordination.interface import Put as EtcdPut
from metastore.errors import (
    ConditionFailed,
    ConditionRequired,
    CrossPartition,
    Fenced,
    MetastoreError,
    NotANumber,
    QuotaExceeded,
)
from metastore.history import Version, token_of
from metastore.keys import storage_key_of
from metastore.layout import Layout
from metastore.namespaces import Policy
from tests.chaos.runner import same_everywhere
from tests.integration.harness import Cluster, refusal, until


async def test_transactions(shared_cell: Cluster) -> None:
    async with shared_cell.client() as client:
        files = client.namespace("files")
        old = await files.put("d/old", b"content")
        moved = await files.txn(
            [Compare("d/old", "version", "==", old.version), Compare.absent("d/new")],
            [Put("d/new", b"content"), Delete("d/old"), Add("d/moves"), Get("d/new")],
            [Get("d/old")],
        )
        assert moved.succeeded
        assert isinstance(moved.results[0], PutResult)
        assert [k for k, _ in (await files.list("d/")).items] == ["d/moves", "d/new"]
        again = await files.txn([Compare.exists("d/old")], [Delete("d/new")], [Get("d/old"), Get("d/new")])
        assert not again.succeeded
        assert again.results[0] is None
        with pytest.raises(NotANumber):
            await files.txn([], [Put("d/x", b""), Add("d/new")])
        assert await files.get("d/x") is None, "all or nothing"
        with pytest.raises(CrossPartition, match="are in two") as e:
            await files.txn([], [Put(f"{i}/x", b"") for i in range(20)])
        assert len(e.value.detail["keys"]) == 2


async def test_transfers_across_failovers_keep_the_sum(cell: Cluster) -> None:
    """Money moves between accounts in transactions, leaders die: none is made and none is lost."""
    async with cell.client() as client:
        bank = client.namespace("bank")
        names = [f"{{bank}}/{i}" for i in range(6)]
        for name in names:
            await bank.add(name, 100)
        stop, moved, unknown = False, 0, 0

        async def teller(number: int) -> None:
            nonlocal moved, unknown
            step = 0
            while not stop:
                step += 1
                a, b = names[(number + step) % 6], names[(number + 3 * step + 1) % 6]
                if a != b:
                    try:
                        await bank.txn([Compare(a, "value", "!=", b"0")], [Add(a, -1), Add(b, 1)])
                        moved += 1
                    except MetastoreError as e:
                        unknown += e.outcome == "unknown"
                await asyncio.sleep(0.002)

        async def auditor() -> None:
            while not stop:
                try:
                    seen = await bank.txn([], [Get(n) for n in names])
                except MetastoreError:
                    continue
                found = [r for r in seen.results if isinstance(r, Record)]
                assert sum(int(r.value) for r in found) == 600

        tasks = [asyncio.create_task(teller(n)) for n in range(8)] + [asyncio.create_task(auditor())]
        partition = client.dispatcher.table.route(storage_key_of("bank", names[0])).id
        for _ in range(3):
            await asyncio.sleep(1)
            leader = cell.leaders()[partition][0]
            await asyncio.to_thread(cell.verb, "kill", leader)
            before = moved
            await until("transfers go on", lambda before=before: moved > before + 50)
            await asyncio.to_thread(cell.verb, "restart", leader)
        stop = True
        await asyncio.gather(*tasks)
        assert moved > 200


@pytest.mark.nightly
async def test_records_expire_and_touched_ones_do_not(cell: Cluster) -> None:
    """Also across a failover, after which TTLs start anew; what expires is gone on every replica."""
    async with cell.client() as client:
        ns = client.namespace("sessions")
        await asyncio.gather(*(ns.put(f"s{i}", b"x", ttl_s=0.5) for i in range(40)))
        forever = await ns.put("forever", b"x", ttl_s=0)
        await until("all expire", lambda: gone(ns, [f"s{i}" for i in range(40)]))
        held = await ns.put("held", b"x", ttl_s=8)
        loop = asyncio.get_running_loop()
        end = loop.time() + 3600

        async def touch() -> None:
            while loop.time() < end:
                touched = await ns.touch("held", version=held.version)
                assert touched is not None
                assert touched.version == held.version, "a touch changes no version"
                await asyncio.sleep(0.2)

        touching = asyncio.create_task(touch())
        partition = client.dispatcher.table.route(storage_key_of("sessions", "held")).id
        await asyncio.to_thread(cell.verb, "kill", cell.leaders()[partition][0])
        end = loop.time() + 12  # longer than it would live untouched
        await touching
        await until("what is not touched expires", lambda: gone(ns, ["held"]))
        assert await ns.touch("held") is None
        with pytest.raises(ConditionFailed):
            await ns.touch("forever", version=Version(held.version + 999))
        record = await ns.get("forever")
        assert record is not None
        assert record.version == forever.version
        for name in cell.names():
            if cell.processes()[name] != "running":
                await asyncio.to_thread(cell.verb, "restart", name)
        await until("all replicas hold the same", lambda: same_everywhere(cell))


async def gone(ns: AsyncNamespace[bytes], keys: list[str]) -> bool:
    found = await asyncio.gather(*(ns.get(k) for k in keys))
    return not any(found)


async def test_a_replaced_holder_is_fenced_off(cell: Cluster) -> None:
    """Also after the leader that saw the higher token is dead."""
    async with cell.client() as client:
        locks, data = client.namespace("locks"), client.namespace("data")
        first = await locks.put("job", b"one", absent=True, ttl_s=0.4)
        await data.put("r/report", b"1", fence=Fence("job", token_of(first.version)))
        await until("the lock expires", lambda: gone(locks, ["job"]))
        second = await locks.put("job", b"two", absent=True, ttl_s=30)
        assert second.version > first.version
        await data.put("r/report", b"2", fence=Fence("job", token_of(second.version)))
        partition = client.dispatcher.table.route(storage_key_of("data", "r/report")).id
        await asyncio.to_thread(cell.verb, "kill", cell.leaders()[partition][0])
        for write in (
            data.put("r/report", b"late", fence=Fence("job", token_of(first.version))),
            data.delete("r/report", fence=Fence("job", token_of(first.version))),
            data.add("r/n", fence=Fence("job", token_of(first.version))),
        ):
            with pytest.raises(Fenced) as e:
                await write
            assert e.value.detail["token"] == second.version
        record = await data.get("r/report")
        assert record is not None
        assert record.value == b"2"


@asynccontextmanager
async def policies(cell: Cluster) -> AsyncIterator[Callable[..., Any]]:
    """A function that sets a namespace's policy, or removes it."""
    etcd = EtcdCoordinator([e["url"].removeprefix("http://") for e in cell.json()["etcd"]])
    layout = Layout("dev")

    async def set_policy(name: str, policy: Policy | None) -> None:
        key = layout.namespace(name)
        op = EtcdDelete(key) if policy is None else EtcdPut(key, policy.to_json())
        revision = (await etcd.txn([], [op])).revision

        def known() -> bool:
            return all(cell.status(n)["topology_revision"] >= revision for n in cell.names())

        await until("every node knows", known)

    yield set_policy
    await etcd.close()


async def test_policies_are_kept_and_change_live(shared_cell: Cluster) -> None:
    async with policies(shared_cell) as set_policy, shared_cell.client() as client:
        ns = client.namespace("flags")
        await set_policy("flags", Policy(require_condition=True))
        with pytest.raises(ConditionRequired):
            await ns.put("a", b"1")
        with pytest.raises(ConditionRequired):
            await ns.txn([], [Put("a", b"1")])
        made = await ns.put("a", b"1", absent=True)
        await ns.txn([Compare("a", "version", "==", made.version)], [Put("a", b"2")])
        await set_policy("flags", Policy(default_ttl_ms=300))
        await ns.put("b", b"1")
        await ns.put("c", b"1", ttl_s=0)
        await until("the default TTL is over", lambda: gone(ns, ["b"]))
        assert await ns.get("c") is not None
        await set_policy("flags", Policy(ready=False))
        await refusal(lambda s: ns.put("d", b"1", deadline_s=s), MetastoreError, "being created")
        await set_policy("flags", None)
        await ns.put("d", b"1")


async def test_quotas_bound_what_a_namespace_holds(shared_cell: Cluster) -> None:
    """Over all partitions, within seconds; what does not grow is taken; deletes make room."""
    async with policies(shared_cell) as set_policy, shared_cell.client() as client:
        ns = client.namespace("tenant")
        await set_policy("tenant", Policy(max_records=100))
        await until("the quota is reached", lambda: refused(ns))
        held = [k async for k, _ in ns.scan(keys_only=True)]
        assert len(held) >= 100
        await ns.put(held[0], b"other value")
        await ns.delete(held[0])
        for key in held[1:60]:
            await ns.delete(key)
        await until("there is room", lambda: taken(ns))
        await set_policy("tenant", Policy(max_bytes=10))
        await until("the bytes are over", lambda: refused(ns))
        await ns.put(held[-1], b"")
        with pytest.raises(QuotaExceeded):
            await ns.put(held[-1], b"x" * 1000)
        await set_policy("tenant", Policy())
        await until("no bound any more", lambda: taken(ns))


_number = 0


async def refused(ns: AsyncNamespace[bytes]) -> bool:
    return not await taken(ns)


async def taken(ns: AsyncNamespace[bytes]) -> bool:
    global _number
    _number += 1
    try:
        await ns.put(f"d{_number}/x", b"1")
    except QuotaExceeded:
        return False
    return True


@pytest.mark.parametrize(
    ("routing", "together", "apart"),
    [("key", [], ["d/1", "d/2", "d/3", "d/4", "d/5", "d/6"]),
     ("segments:1", ["t/a/1", "t/b/2", "t/c/3", "t/d/4"], ["u/a/1", "v/a/1", "w/a/1", "x/a/1"])],
)  # fmt: skip
async def test_routing_rules(
    shared_cell: Cluster, routing: str, together: list[str], apart: list[str]
) -> None:
    """Clients that knew the namespace under its default rule find out by themselves."""
    async with (
        policies(shared_cell) as set_policy,
        shared_cell.client() as old,
        shared_cell.client() as watcher,
    ):
        name = "routed-" + routing[:3]
        assert old.dispatcher.table.rule(name) == 0
        await set_policy(name, Policy(routing=routing))
        ns = old.namespace(name)
        await ns.put(apart[0], b"1")
        assert old.dispatcher.table.rule(name) != 0
        record = await watcher.namespace(name).get(apart[0])
        assert record is not None
        assert record.value == b"1"
        points = {storage_key_of(name, k, old.dispatcher.table.rule(name))[:8] for k in apart}
        assert len(points) == len(apart)
        for key in together:
            await ns.put(key, b"")
        if together:
            await ns.txn([], [Get(k) for k in together])
            listed = await ns.list("t/")
            assert [k for k, _ in listed.items] == together
            assert listed.resume is not None
        assert sorted([k async for k, _ in ns.scan()]) == sorted([apart[0], *together])


@pytest.mark.nightly
async def test_stale_reads_tell_their_age(cell: Cluster) -> None:
    """With etcd gone and two of three nodes dead, who is left still answers, and says how old it is."""
    async with cell.client() as client:
        ns = client.namespace("flags")
        put = await ns.put("on", b"1")
        record, age = await ns.get_with_age("on", consistency="linearizable")
        assert record is not None
        assert age == 0
        assert (await ns.get("on", at_least=put.version)) is not None
        for name in ("etcd", "c1n1", "c1n2"):
            await asyncio.to_thread(cell.verb, "kill", name)
        record, age = await until("the last one answers", lambda: ns.get_with_age("on", deadline_s=2))
        assert record is not None
        assert record.value == b"1"

        async def older() -> bool:
            return ((await ns.get_with_age("on"))[1] or 0) > 1500

        await until("its age grows", older)
        with pytest.raises(MetastoreError) as e:
            await ns.get("on", consistency="stale", max_staleness_ms=500)
        assert "ms old, over 500 ms" in e.value.message or e.value.code in (
            "unavailable",
            "deadline_exceeded",
        )
        with pytest.raises(MetastoreError):
            await ns.get("on", deadline_s=1)


def test_policies_are_plain_data() -> None:
    assert orjson.loads(Policy(routing="segments:2").to_json())["routing"] == "segments:2"
