"""The client when things die: no call outlives its deadline, and the way round through the router.

Deadlines are held against a watchdog that is far behind them: it tells a hang, not a delay.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from metastore import Add, AsyncClient, Client, Get, Put
from metastore.client import AsyncNamespace
from metastore.errors import (
    ClientClosed,
    DidNotHappen,
    MaybeHappened,
    MetastoreError,
    Overloaded,
    Unavailable,
)
from metastore.routing.failures import AttemptTimeout, ConnectionLost
from metastore.routing.gate import MAX_UNDER_WAY
from tests.integration.fake_router import FakeRouter
from tests.integration.harness import Cluster, keys_by_partition, until
from tests.integration.proxies import (
    PASS,
    REFUSE,
    SWALLOW_ALL,
    SWALLOW_ANSWERS,
    Between,
    BlackHole,
)
from tests.integration.witness import Witness
from tests.processes import PATIENCE_S, pause

WATCHDOG_S = PATIENCE_S


async def end_of(call: Awaitable[Any]) -> Any:
    """The result, or the error, which must be one that users are told of."""
    [end] = await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), WATCHDOG_S)
    if isinstance(end, BaseException):
        assert isinstance(end, DidNotHappen | MaybeHappened), repr(end)
        assert not isinstance(end, ConnectionLost | AttemptTimeout), repr(end)
    return end


def every_call(ns: AsyncNamespace, deadline_s: float) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "get": lambda: ns.get("a/k", deadline_s=deadline_s),
        "stale": lambda: ns.get("a/k", consistency="stale", deadline_s=deadline_s),
        "put": lambda: ns.put("a/k", b"x", deadline_s=deadline_s),
        "delete": lambda: ns.delete("a/k", deadline_s=deadline_s),
        "add": lambda: ns.add("a/n", deadline_s=deadline_s),
        "touch": lambda: ns.touch("a/k", deadline_s=deadline_s),
        "txn": lambda: ns.txn([], [Put("a/k", b"x")], deadline_s=deadline_s),
        "batch": lambda: ns.batch([Get("a/k"), Add("a/n")], deadline_s=deadline_s),
        "list": lambda: ns.list("a/", deadline_s=deadline_s),
        "list all": lambda: ns.list("", deadline_s=deadline_s),
        "lock": lambda: lock(ns, deadline_s),
        "watch": lambda: watch(ns, deadline_s),
    }


async def lock(ns: AsyncNamespace, deadline_s: float) -> None:
    lock = ns.lock("a/l", ttl_s=1)
    await lock.acquire(deadline_s)
    await lock.release()


async def watch(ns: AsyncNamespace, deadline_s: float) -> None:
    watcher = ns.watch("a/")
    try:
        await watcher.started(deadline_s)
    finally:
        await watcher.close()


READS = {"get", "stale", "touch", "list", "list all", "watch"}


async def all_calls(ns: AsyncNamespace, deadline_s: float = 1.0) -> dict[str, Any]:
    calls = every_call(ns, deadline_s)
    ends = await asyncio.gather(*(end_of(call()) for call in calls.values()))
    found = dict(zip(calls, ends, strict=True))
    for name in READS:
        assert not isinstance(found[name], MaybeHappened), f"{name} changes nothing: {found[name]!r}"
    return found


async def test_every_call_ends_by_its_deadline(cell: Cluster) -> None:
    """All nodes stopped, and killed; then it goes on with the same client. In both twins."""
    async with cell.client() as client:
        ns = client.namespace("faults")
        await ns.put("a/k", b"1")
        threads = Client([n["rpc"] for n in cell.json()["nodes"]])
        blocking = threads.namespace("faults")
        sure = (await ns.add("a/n")).value
        pids = [cell.node(n)["pid"] for n in cell.names()]
        pause(*pids)
        found = await all_calls(ns, 3.0)
        assert all(isinstance(e, MetastoreError | list) for e in found.values()), found
        for name in ("put", "add", "txn"):
            assert isinstance(found[name], MaybeHappened), f"{name} is in the sockets: {found[name]!r}"
        with pytest.raises(MetastoreError):
            await asyncio.wait_for(asyncio.to_thread(blocking.put, "a/k", b"2", deadline_s=0.5), WATCHDOG_S)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await until("their deaths are noticed", lambda: not any(cell.node(n)["pid"] for n in cell.names()))
        found = await all_calls(ns)
        for name, end in found.items():
            assert isinstance(end, DidNotHappen | list), (
                f"{name}: nobody listens, and nothing was sent: {end!r}"
            )
        cell.verb("restart", *cell.names())
        tries = 0

        async def works() -> bool:
            nonlocal tries
            tries += 1
            return await _works(ns)

        await until("it serves again", works)
        total = await ns.add("a/n", 0)
        # all calls together add two, once in the sockets and in every try, whatever became of the others
        assert sure <= total.value <= sure + 2 + 2 * tries, "an addition was carried out twice"
        await asyncio.wait_for(asyncio.to_thread(blocking.put, "a/k", b"3"), WATCHDOG_S)
        threads.close()
        # two of three gone for good: no quorum, many operations, few attempts
        for name in cell.names()[:2]:
            cell.verb("kill", name)
        before = client.stats()
        keys = [k for ks in keys_by_partition(client, 40, "faults").values() for k in ks]
        ends = await asyncio.gather(*(end_of(ns.get(k, deadline_s=2.0)) for k in keys))
        # the leader that is left reads on while its grants last (R8)
        assert all(isinstance(e, DidNotHappen) or e is None for e in ends), ends
        after = client.stats()
        # a busy machine comes to so few attempts that the budget never ends
        few = after.retries - before.retries <= 2 * len(keys)
        assert few or after.budget_empty > before.budget_empty, (
            f"the retry budget had no end: {before} {after}"
        )


async def _works(ns: AsyncNamespace) -> bool:
    found = await all_calls(ns, 15.0)
    return not any(isinstance(e, MetastoreError) for e in found.values())


async def test_addresses_that_swallow_everything() -> None:
    hole = BlackHole()
    client = AsyncClient([hole.address] * 3, router=f"http://{hole.address}")
    found = await all_calls(client.namespace("n"), 0.5)
    assert all(isinstance(e, DidNotHappen) for name, e in found.items() if name != "batch")
    with pytest.raises(Unavailable, match="topology is not known"):
        await asyncio.wait_for(_start(AsyncClient([hole.address], deadline_s=0.5)), WATCHDOG_S)
    await asyncio.wait_for(client.close(), WATCHDOG_S)
    threads = Client(hole.address, deadline_s=0.3)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asyncio.to_thread(threads.start), WATCHDOG_S)
    # closed while a call is under way in a thread: it ends
    waiting = asyncio.create_task(asyncio.to_thread(threads.namespace("n").get, "k", deadline_s=600))
    await until("it is under way", lambda: threads._portal._running)
    await asyncio.to_thread(threads.close)
    with pytest.raises(MetastoreError):
        await asyncio.wait_for(waiting, WATCHDOG_S)
    hole.close()


async def _start(client: AsyncClient) -> None:
    async with client:
        pass


async def test_closing_ends_what_is_under_way(shared: Cluster) -> None:
    async with Between([n["rpc"] for n in shared.json()["nodes"]]) as between:
        client = AsyncClient(between.addresses)
        client.dispatcher.table = client.dispatcher.directory.table = between.table()
        await client.start()
        ns = client.namespace("closing")
        await ns.put("a/k", b"1")
        await between.set(SWALLOW_ALL)
        calls = [asyncio.create_task(end_of(call())) for call in every_call(ns, 600).values()]
        many = [asyncio.create_task(end_of(ns.put(f"k{n}", b"x"))) for n in range(2 * MAX_UNDER_WAY)]
        await until("they are on their way", lambda: between.proxies[0].swallowed)
        assert client.stats().waiting >= MAX_UNDER_WAY, "beyond the bound they wait here"
        await client.close()
        ends = await asyncio.gather(*calls, *many)
        assert all(isinstance(e, ClientClosed | MaybeHappened | DidNotHappen | list) for e in ends)


# --- through the router -------------------------------------------------------------------------


@pytest.mark.nightly
async def test_only_a_router(shared: Cluster) -> None:
    """The nodes cannot be reached: all goes through the router, in batches, watches and locks too."""
    nodes = [n["rpc"] for n in shared.json()["nodes"]]
    async with FakeRouter(nodes) as router, Between(nodes) as between:
        async with AsyncClient(router=router.url, direct=False) as client:
            await check_all_works(client, "no-direct")
            posts = router.posts
            ns = client.namespace("no-direct")
            await asyncio.gather(*(ns.put(f"k{n}", b"x") for n in range(100)))
            assert router.posts == posts + 1, "one turn, one request"
        await between.set(REFUSE)
        async with AsyncClient(router=router.url) as client:
            client.dispatcher.table = client.dispatcher.directory.table = between.table()
            await check_all_works(client, "refused")
            assert client.stats().unreachable > 0
        await between.set(SWALLOW_ALL)
        async with AsyncClient(router=router.url) as client:
            client.dispatcher.table = client.dispatcher.directory.table = between.table()
            await check_all_works(client, "swallowed")
            posts = router.posts
            await asyncio.gather(*(client.namespace("swallowed").get(f"k{n}") for n in range(100)))
            assert router.posts < posts + 10, "nobody waits for the nodes first"
            # and back, when they can be reached again
            await between.set(PASS)
            await until("the nodes are found again", lambda: client.stats().unreachable == 0)
            posts = router.posts
            await client.namespace("swallowed").put("k", b"direct")
            assert router.posts == posts


async def check_all_works(client: AsyncClient, namespace: str) -> None:
    ns = client.namespace(namespace)
    async with ns.watch("a/") as watcher:
        assert (await ns.add("a/n", 2)).value == 2
        assert (await ns.add("a/n", 3)).value == 5
        put = await ns.put("a/k", b"\xff\x00", ttl_s=600, content_type="x/y")
        found = await ns.get("a/k")
        events = [await asyncio.wait_for(anext(watcher), WATCHDOG_S) for _ in range(3)]
        assert [e.key for e in events] == ["a/n", "a/n", "a/k"]
        assert events[2].record == found
        assert events[2].version == put.version
    assert [k for k, _ in (await ns.list("a/")).items] == ["a/k", "a/n"]
    async with ns.lock("a/lock") as lock:
        waiting = asyncio.create_task(ns.lock("a/lock").acquire(WATCHDOG_S))
        await asyncio.sleep(0)
        lock.check()
    await asyncio.wait_for(waiting, WATCHDOG_S)
    results = await ns.batch([Get("a/k"), Add("a/n")])
    assert results[0] == found


async def test_a_change_of_path_applies_nothing_twice(shared: Cluster) -> None:
    """Carried out on one path, the answer lost, sent again on the other with the same request id."""
    nodes = [n["rpc"] for n in shared.json()["nodes"]]
    async with FakeRouter(nodes) as router, Between(nodes) as between:
        client = AsyncClient(between.addresses, router=router.url)
        async with client:
            client.dispatcher.table = client.dispatcher.directory.table = between.table()
            await client.start()
            ns = client.namespace("paths")
            assert (await ns.add("n")).value == 1
            assert router.posts == 0
            await between.set(SWALLOW_ANSWERS)
            assert (await ns.add("n", deadline_s=WATCHDOG_S)).value == 2
            assert router.posts > 0
            assert sum(p.swallowed for p in between.proxies) > 0
            await between.set(REFUSE)
            router.lose_answers = 1
            assert (await ns.add("n", deadline_s=WATCHDOG_S)).value == 3
            # and from the router back to the nodes
            router.lose_answers = 1
            lost = asyncio.create_task(ns.add("n", deadline_s=WATCHDOG_S))
            await until("the router has carried it out", lambda: router.lose_answers == 0)
            await router.stop()
            await between.set(PASS)
            assert (await lost).value == 4
            found = await ns.get("n")
            assert found is not None
            assert found.value == b"4"


async def test_the_router_dies_or_is_full(shared: Cluster) -> None:
    nodes = [n["rpc"] for n in shared.json()["nodes"]]
    async with FakeRouter(nodes) as router:
        async with AsyncClient(router=router.url, direct=False) as client:
            ns = client.namespace("router")
            await ns.put("a/k", b"1")
            router.thawed.clear()
            found = await all_calls(ns, 0.5)
            assert isinstance(found["put"], MaybeHappened), "it may be on its way"
            router.thawed.set()
            await until("it serves again", lambda: _works(ns))
            router.refuse_with = Overloaded("too many", retry_after_s=5)

            async def is_told() -> bool:  # not where the last attempt is on its way when the deadline passes
                return isinstance(await end_of(ns.put("a/k", b"2", deadline_s=0.5)), DidNotHappen)

            await until("that it is full is told as such", is_told)
            router.refuse_with = None
            await router.stop()
            found = await all_calls(ns, 0.5)
            assert all(isinstance(e, DidNotHappen) for n, e in found.items() if n != "batch"), found
            await router.listen()
            await until("it serves again", lambda: _works(ns))
        # with the nodes there, its death is not noticed
        async with AsyncClient(nodes, router=router.url) as client:
            await router.stop()
            assert await client.namespace("router").get("a/k")


@pytest.mark.nightly
async def test_a_watch_changes_its_path_and_loses_nothing(cell: Cluster) -> None:
    """Direct, through the router, and direct again, with a judge that knows what must come."""
    nodes = [n["rpc"] for n in cell.json()["nodes"]]
    async with FakeRouter(nodes) as router, Between(nodes) as between, cell.client() as writing:
        client = AsyncClient(between.addresses, router=router.url)
        async with client:
            client.dispatcher.table = client.dispatcher.directory.table = between.table()
            await client.start()
            witness = Witness(writing, "paths.seen", 3)
            await witness.watch("plain", client)
            await witness.watch("reopened", client, reopen=200)
            await witness.watch("slow", client, slow=True, buffer=3)
            witness.write(4)
            await witness.everybody_has_seen("the beginning")
            for mode in (REFUSE, SWALLOW_ALL):
                watches = router.watches
                await between.set(mode)
                await witness.everybody_has_seen(mode)
                assert router.watches > watches
                await between.set(PASS)
                await until("the nodes are found again", lambda: client.stats().unreachable == 0)
                await witness.everybody_has_seen("the nodes are back")
            await witness.end()
