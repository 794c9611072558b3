"""Locks and elections on real nodes: one holder at a time, who is told when it is not one any more."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest

from metastore import JSON, AsyncClient, Client
from metastore.client import AsyncNamespace
from metastore.errors import (
    DeadlineExceeded,
    Fenced,
    InvalidRequest,
    LockLost,
    OutcomeUnknown,
)
from metastore.history import token_of
from metastore.keys import storage_key_of
from tests.integration.harness import Cluster, refusal, until
from tests.processes import PATIENCE_S, pause, resume

NS = "locks"


async def value_of(ns: AsyncNamespace, key: str) -> bytes | None:
    record = await ns.get(key)
    return record.value if record is not None else None


async def test_one_holder_at_a_time_and_tokens_grow(shared: Cluster) -> None:
    """Many takers in several clients, in a critical section that would notice two."""
    async with shared.client() as one, shared.client() as two:
        inside: list[int] = []
        tokens: list[int] = []

        async def take(client: AsyncClient, number: int) -> None:
            for _ in range(4):
                async with client.namespace(NS).lock("l/x", ttl_s=60) as lock:
                    inside.append(number)
                    assert inside == [number]
                    tokens.append(lock.token)
                    assert lock.held
                    assert 0 < lock.remaining_s <= 60
                    lock.check()
                    await asyncio.sleep(0)
                    inside.remove(number)
                assert not lock.held
                assert lock.remaining_s == 0

        await asyncio.gather(*(take((one, two)[n % 2], n) for n in range(6)))
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 24
        assert await one.namespace(NS).get("l/x") is None


async def test_waiting_trying_and_misuse(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace(NS)
        lock, other = ns.lock("l/y", owner="me"), ns.lock("l/y")
        with pytest.raises(LockLost, match="not held"):
            lock.check()
        with pytest.raises(LockLost):
            _ = lock.fence
        assert await other.holder() is None
        await lock.acquire()
        assert await other.holder() == "me"
        assert not await other.try_acquire()
        await refusal(other.acquire, DeadlineExceeded, "held by another")
        with pytest.raises(InvalidRequest, match="already"):
            await lock.acquire()
        waiting = asyncio.create_task(other.acquire(PATIENCE_S))
        await asyncio.sleep(0)
        await lock.release()
        await waiting
        with pytest.raises(LockLost, match="not held"):
            await lock.release()
        await other.release()
        wrong_ttls: tuple[Any, ...] = (0.1, 1e9, "10")
        for wrong in wrong_ttls:
            with pytest.raises(InvalidRequest, match="ttl_s"):
                ns.lock("l/y", ttl_s=wrong)
        # a key that no directory holds is locked as well, and no other key frees it
        root = ns.lock("root")
        async with root:
            waiting = asyncio.create_task(ns.lock("root").acquire(PATIENCE_S))
            await ns.put("root2", b"x")
            await ns.delete("root2")
            assert not waiting.done()
        await waiting


async def test_it_lives_on_while_it_is_held_and_falls_when_its_holder_is_gone(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace(NS)
        holder = await shared_client(shared)
        lock = holder.namespace(NS).lock("l/z", ttl_s=4.0)
        await lock.acquire()
        # what a lock without touches would not survive
        expiring = await ns.put("l/bystander", b"", ttl_s=6)
        async with ns.watch("l/bystander", after=(await ns.list("l/bystander")).resume) as watcher:
            event = await asyncio.wait_for(anext(watcher), PATIENCE_S)
            assert (event.kind, event.version > expiring.version) == ("expire", True)
        lock.check()
        await holder.close()
        await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
        with pytest.raises(LockLost, match="client was closed"):
            lock.check()
        async with ns.lock("l/z", ttl_s=1.0) as next_one:  # by its TTL
            assert next_one.token > lock.token


async def shared_client(cluster: Cluster) -> AsyncClient:
    client = cluster.client()
    await client.start()
    return client


async def test_a_stolen_lock_is_told_at_once(shared: Cluster) -> None:
    """Somebody deletes the record, or another took it: the next touch says so, long before the TTL."""
    async with shared.client() as client:
        ns = client.namespace(NS)
        called: list[str] = []
        lock = ns.lock("l/stolen", ttl_s=9)
        lock.on_lost(lambda: called.append("lost"))

        async def stolen(value: bytes, *, fail: bool) -> None:
            async with lock:
                await ns.delete("l/stolen")
                if value:
                    await ns.put("l/stolen", value)
                await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
                if fail:
                    raise ZeroDivisionError

        with pytest.raises(LockLost, match="does not exist"):
            await stolen(b"", fail=False)
        assert called == ["lost"]
        assert not lock.held
        with pytest.raises(ZeroDivisionError):  # what the body raises comes first
            await stolen(b"thief", fail=True)
        assert await value_of(ns, "l/stolen") == b"thief", "the thief's stays"
        await ns.delete("l/stolen")


async def test_an_unknown_outcome_is_resolved_by_reading(
    shared: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that took the lock says OutcomeUnknown, having taken effect, or not."""
    async with shared.client() as client:
        ns = client.namespace(NS)
        lock = ns.lock("l/doubt", ttl_s=60)
        inner = lock._namespace
        put = type(inner).put
        doubts = {"after": 1, "before": 1}

        async def doubtful(self: Any, *args: Any, **kwargs: Any) -> Any:
            if doubts["after"]:
                doubts["after"] = 0
                await put(self, *args, **kwargs)
                raise OutcomeUnknown("the answer was lost")
            if doubts["before"]:
                doubts["before"] = 0
                raise OutcomeUnknown("the request was lost")
            return await put(self, *args, **kwargs)

        monkeypatch.setattr(type(inner), "put", doubtful)
        await lock.acquire(PATIENCE_S)
        lock.check()
        record = await ns.get("l/doubt")
        assert record is not None
        assert token_of(record.version) == lock.token
        await lock.release()
        await lock.acquire(PATIENCE_S)  # lost before it was carried out: tried again
        await lock.release()
        assert doubts == {"after": 0, "before": 0}


async def test_a_cancelled_taker_leaves_nothing_behind(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace(NS)
        for turns in range(12):
            lock = ns.lock("l/cancelled", ttl_s=600)
            task = asyncio.create_task(lock.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if lock.held:
                await lock.release()
        async with asyncio.timeout(PATIENCE_S):
            async with ns.lock("l/cancelled", ttl_s=1):
                pass


PAUSED = """
import sys
from metastore import Client
from metastore.errors import Fenced, LockLost

with Client(sys.argv[1].split(",")) as client:
    ns = client.namespace("locks")
    lock = ns.lock("l/paused", ttl_s=3.0)
    lock.acquire()
    lock.check()
    print("held", lock.token, flush=True)
    sys.stdin.readline()          # stopped here, and woken up
    try:
        lock.check()
        print("check: held", flush=True)
    except LockLost:
        print("check: lost", lock.remaining_s, lock.held, flush=True)
    try:
        ns.put("l/guarded", b"old", fence=lock.fence)
        print("write: accepted", flush=True)
    except Fenced:
        print("write: fenced", flush=True)
    lock.lost.wait(30)
    try:
        lock.release()
        print("release: fine", flush=True)
    except LockLost:
        print("release: lost", flush=True)
"""


async def test_a_holder_that_was_paused_notices_and_does_no_harm(shared: Cluster) -> None:
    """SIGSTOP for longer than the lease: its own clock says so at once, and its token is refused."""
    nodes = ",".join(n["rpc"] for n in shared.json()["nodes"])
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PAUSED, nodes, stdin=pipe, stdout=pipe)
    assert child.stdout is not None
    assert child.stdin is not None
    token = int((await asyncio.wait_for(child.stdout.readline(), PATIENCE_S)).split()[1])
    pause(child.pid)
    async with shared.client() as client:
        ns = client.namespace(NS)
        async with ns.lock("l/paused", ttl_s=60) as lock:
            assert lock.token > token
            # nothing is written under the lock: taking it is enough (R20)
            child.stdin.write(b"\n")
            await child.stdin.drain()
            resume(child.pid)
            out, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
            assert out.decode().splitlines() == ["check: lost 0.0 False", "write: fenced", "release: lost"]
            lock.check()
            assert await ns.get("l/guarded") is None
            await ns.put("l/guarded", b"new", fence=lock.fence)


@pytest.mark.nightly
async def test_at_risk_comes_before_lost_when_the_store_is_away(steady_cell: Cluster) -> None:
    """All nodes stop: the holder is warned, then told, by its own clock; when they wake it can go on."""
    cell = steady_cell
    async with cell.client() as client:
        ns = client.namespace(NS)
        order: list[str] = []
        left_s: list[float] = []
        lock = ns.lock("l/risk", ttl_s=9.0)
        await lock.acquire()
        # whose acquiring took half of the lease is at risk until it is renewed
        await until("it is not at risk", lambda: not lock.at_risk.is_set())
        lock.on_at_risk(lambda: order.append("at risk"))
        lock.on_at_risk(lambda: left_s.append(lock.remaining_s))
        lock.on_lost(lambda: order.append("lost"))
        pids = [cell.node(n)["pid"] for n in cell.names()]
        pause(*pids)
        try:
            await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
            assert order == ["at risk", "lost"]
            assert 0 < left_s[0] <= 4.5, "still held, and for longer than nothing"
            assert lock.at_risk.is_set()
            assert lock.remaining_s == 0
            with pytest.raises(LockLost, match="ran out"):
                lock.check()
        finally:
            resume(*pids)
        with pytest.raises(LockLost):
            await lock.release()
        await lock.acquire(PATIENCE_S)
        assert not lock.lost.is_set()
        await until("it is not at risk any more", lambda: not lock.at_risk.is_set())


async def test_a_leader_that_dies_is_no_reason_to_lose_a_lock(steady_cell: Cluster) -> None:
    cell = steady_cell
    async with cell.client() as client:
        patient = client.namespace(NS).lock("l/patient", ttl_s=24)
        await patient.acquire(PATIENCE_S)
        token = patient.token
        partition = client.dispatcher.table.route(storage_key_of(NS, "l/patient")).id
        cell.verb("kill", cell.leaders()[partition][0])
        left = patient.remaining_s
        await until("it is renewed by another leader", lambda: patient.remaining_s > left or None)
        patient.check()
        assert patient.token == token
        await patient.release()


async def test_elections(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace("elections", JSON)
        election = ns.election("e/leader", ttl_s=60)
        seen: list[Any] = []

        async def observe() -> None:
            async for record in ns.election("e/leader").observe():
                seen.extend([record.value if record is not None else None])

        observing = asyncio.create_task(observe())
        await until("the observer has looked", lambda: seen)
        assert await election.leader() is None
        first = await election.campaign({"host": "a"})
        found = await ns.election("e/leader").leader()
        assert found is not None
        assert (found.value, token_of(found.version)) == ({"host": "a"}, first.token)
        rival = ns.election("e/leader", ttl_s=60)
        waiting = asyncio.create_task(rival.campaign({"host": "b"}))
        with pytest.raises(DeadlineExceeded):
            await ns.election("e/leader").campaign({"host": "c"}, timeout_s=0.2)
        with pytest.raises(InvalidRequest, match="led by this object"):
            await election.campaign({"host": "a"})
        await election.resign()
        async with await waiting as second:
            assert second.token > first.token
            with pytest.raises(Fenced):  # though the second one has written nothing yet (R20)
                await ns.put("e/work", 1, fence=first.fence)
            await ns.put("e/work", 2, fence=second.fence)
        await until("the observer has seen all", lambda: len(seen) >= 5)
        assert seen == [None, {"host": "a"}, None, {"host": "b"}, None]
        observing.cancel()


def test_for_threads(shared: Cluster) -> None:
    """The twins: events are threading's, callbacks run elsewhere, and threads exclude each other."""
    nodes = [n["rpc"] for n in shared.json()["nodes"]]
    with Client(nodes) as client:
        ns = client.namespace("threads", JSON)
        total, inside = 0, 0

        def work() -> None:
            nonlocal total, inside
            for _ in range(5):
                with ns.lock("l/t", ttl_s=60) as lock:
                    inside += 1
                    assert inside == 1
                    lock.check()
                    total += 1
                    inside -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert total == 20
        wrong: list[BaseException] = []

        def misbehave() -> None:
            try:
                ns.get("k")
            except RuntimeError as e:
                wrong.append(e)

        lock = ns.lock("l/u", ttl_s=9)
        lock.on_lost(misbehave)
        assert lock.try_acquire()
        assert lock.held
        ns.delete("l/u")
        assert lock.lost.wait(PATIENCE_S)
        with pytest.raises(LockLost):
            lock.check()
        with pytest.raises(LockLost):
            lock.release()
        assert "wait for itself" in str(wrong[0])
        election = ns.election("l/e", ttl_s=60)
        with election.campaign("me") as leadership:
            observed = election.observe()
            first = next(observed)
            assert first is not None
            assert (first.value, token_of(first.version)) == ("me", leadership.token)
        assert next(observed) is None
        assert isinstance(observed, Generator)
        observed.close()
