"""What a client has from before a partition went on in another history is refused, whatever it is (R19)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metastore.client import Compare, Fence, Get, Put
from metastore.client.namespace import AsyncNamespace
from metastore.clock import now_ns
from metastore.core.events import ConfigSeen
from metastore.errors import HistoryChanged, LockLost, MetastoreError
from metastore.history import FencingToken, Version, first_version, generation_of
from metastore.layout import ConfigRecord, first_epoch
from tests.unit.node.single import Single

G1 = first_version(1)


async def next_generation(s: Single, generation: int) -> None:
    """What ``cellctl failover --force`` and ``snapshot restore`` write into the partition's record."""
    term = 1 + (s.host.replica.sealed_epoch >> 16)
    epoch = first_epoch(term)
    record = ConfigRecord(0, 0, 1 << 64, epoch, "f", (("f", s.store.store_id),), generation=generation)
    s.node.topology.apply_kv(("config", "c1", "00000"), record.to_json(), term)
    s.node.core.handle(now_ns(), ConfigSeen(0, record, term))
    s.node.ticks.run_effects()
    while s.host.role != "active" or s.host.replica.sealed_epoch != epoch:
        await asyncio.sleep(0.005)


async def refusals(
    ns: AsyncNamespace, version: int, resume: str, folder: str = "d"
) -> dict[str, MetastoreError | None]:
    """The error of every use of something from before; None = it was accepted."""
    token = Fence("job", FencingToken(version))

    async def watch() -> None:
        async with ns.watch(f"{folder}/", after=resume) as changes:
            await changes.next(0.2)

    uses = {
        "put": ns.put(f"{folder}/k", b"", version=Version(version)),
        "delete": ns.delete(f"{folder}/k", version=Version(version)),
        "add": ns.add(f"{folder}/n", version=Version(version)),
        "touch": ns.touch(f"{folder}/k", version=Version(version)),
        "txn": ns.txn([Compare(f"{folder}/k", "version", "==", version)], [Put(f"{folder}/k", b"")]),
        "txn of created": ns.txn([Compare(f"{folder}/k", "created", "<", version)], [], [Get(f"{folder}/k")]),
        "fence": ns.put(f"{folder}/k", b"", fence=token),
        "fence of delete": ns.delete(f"{folder}/k", fence=token),
        "fence of add": ns.add(f"{folder}/n", fence=token),
        "fence of txn": ns.txn([], [Put(f"{folder}/k", b"")], fence=token),
        "at_least": ns.get(f"{folder}/k", at_least=version, consistency="at_least"),
        "resume": watch(),
    }
    found: dict[str, MetastoreError | None] = {}
    for name, use in uses.items():
        try:
            await use
            found[name] = None
        except MetastoreError as e:
            found[name] = e
    return found


async def test_every_kind_of_token(tmp_path: Path) -> None:
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        await ns.put("d/k", b"old")
        await ns.put("d/n", b"0")
        version = (await ns.put("d/k", b"older")).version
        resume = (await ns.list("d/")).resume
        assert resume is not None
        async with ns.watch("d/") as open_watch:
            await next_generation(s, 1)
            for name, error in (await refusals(ns, version, resume)).items():
                assert type(error) is HistoryChanged, (name, error)
                assert error.detail["generation"] == 1, name
                assert not error.retryable
            with pytest.raises(HistoryChanged):
                async for _ in open_watch:
                    pass
        record = await ns.get("d/k")
        assert record is not None
        assert (record.version, record.created, record.value) == (G1, G1, b"older")
        page = await ns.list("d/")
        assert [(k, r.version) for k, r in page.items] == [("d/k", G1), ("d/n", G1)]
        assert [r.version for _, r in (await ns.list("d/", keys_only=True)).items] == [G1, G1]
        # all that is read now is good now
        async with ns.watch("d/", after=page.resume) as changes:
            put = await ns.put("d/k", b"new", version=record.version)
            assert put.version == G1 + 1
            event = await changes.next(10)
            assert event is not None
            assert (event.version, event.record and event.record.created) == (G1 + 1, G1)
        assert await ns.get("d/k", at_least=put.version, consistency="at_least") is not None
        # and so it is in the next one, and after a restart of the node's process
        await next_generation(s, 2)
        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", version=put.version)
    async with Single(tmp_path, term=4) as s, s.client() as client:
        assert generation_of(s.host.machine.last_version) == 2
        ns = client.namespace("n")
        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", version=put.version)
        record = await ns.get("d/k")
        assert record is not None
        assert record.version == first_version(2)


async def test_locks_are_lost_and_taken_anew(tmp_path: Path) -> None:
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        lock = ns.lock("d/lock", ttl_s=1.5)
        await lock.acquire()
        old = lock.fence
        waiting = asyncio.create_task(ns.lock("d/lock", ttl_s=30).acquire(60))
        election = ns.election("d/leader", ttl_s=30)
        await election.campaign(b"me")
        seen: list[bytes | None] = []

        async def observe() -> None:
            async for found in election.observe():
                seen.extend([None if found is None else found.value])

        observing = asyncio.create_task(observe())
        while not seen:
            await asyncio.sleep(0.01)
        await next_generation(s, 1)
        await asyncio.wait_for(lock.lost.wait(), 30)
        with pytest.raises(LockLost, match="earlier history"):
            lock.check()
        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", fence=old)
        await waiting  # the record of the lost lock has expired
        with pytest.raises(LockLost):
            await election.resign()
        await ns.delete("d/leader")
        again = await ns.election("d/leader", ttl_s=30).campaign(b"other")
        assert again.token > G1
        await ns.put("d/k", b"", fence=again.fence)
        while seen[-1] != b"other":
            await asyncio.sleep(0.01)
        observing.cancel()


async def test_a_watch_of_nothing_yet_is_of_its_history_too(tmp_path: Path) -> None:
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        resume = (await ns.list("d/")).resume
        await next_generation(s, 1)
        with pytest.raises(HistoryChanged):
            async with ns.watch("d/", after=resume):
                pass


async def test_writes_of_a_client_that_was_there_before_go_on(tmp_path: Path) -> None:
    """Their stamps are of before: they are stamped anew, and nobody is asked."""
    async with Single(tmp_path) as s, s.client() as client, s.client() as other:
        ns = client.namespace("n")
        assert (await ns.add("d/n")).value == 1
        await next_generation(s, 1)
        assert (await ns.add("d/n")).value == 2
        assert (await other.namespace("n").add("d/n")).value == 3
