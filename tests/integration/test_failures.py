"""What fails, and what then: real processes, real kill -9 and SIGSTOP, promises kept.

Each test ends by checking that every acknowledged write is there and nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import aiohttp
import pytest

from metastore.client import AsyncClient
from metastore.errors import DeadlineExceeded, MetastoreError, OutcomeUnknown, Unavailable
from metastore.keys import storage_key_of
from metastore.operations import GET, LINEARIZABLE, PUT
from metastore.routing.connection import NodeConnection
from tests.integration.harness import Cluster, Load, keys_by_partition, until
from tests.processes import PATIENCE_S, pause, resume

#: of the nodes' leases, as ``dev`` has it, and as steady cells do
LEASE_TTL_S = 6.0


def all_keys(client: AsyncClient, per_partition: int = 2) -> tuple[dict[int, list[str]], list[str]]:
    by_partition = keys_by_partition(client, per_partition)
    return by_partition, [k for keys in by_partition.values() for k in keys]


async def test_a_killed_leader_loses_nothing(cell: Cluster) -> None:
    """1. kill -9 of leaders under load: nothing lost or doubled, epochs grow, writes resume."""
    async with cell.client() as client:
        by_partition, keys = all_keys(client)
        load = Load(client, keys)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        for victim in ("c1n1", "c1n2"):
            before = cell.leaders()
            led = [p for p, (node, _) in before.items() if node == victim]
            if not led:
                continue
            os.kill(cell.node(victim)["pid"], signal.SIGKILL)
            killed = time.monotonic()
            wanted = {k for p in led for k in by_partition[p]}
            await until(
                "every partition of the dead leader takes writes again",
                lambda killed=killed, wanted=wanted: (
                    {
                        a.key
                        for a in load.history
                        if a.kind == "put" and a.outcome == "ok" and a.began > killed
                    }
                    >= wanted
                ),
            )
            after = await until("all partitions are led", lambda before=before: _all_led(cell, before))
            for p in led:
                assert after[p][0] != victim
                assert after[p][1] > before[p][1], "the epoch did not grow"
            cell.verb("restart", victim)
            await until("the restarted node follows", lambda victim=victim: cell.status(victim)["peers"])
            await asyncio.sleep(1)
        load.stop = True
        await running
        await load.check_all()
        assert not [a for a in load.failures() if a.kind == "get" and a.outcome == "unknown"]


async def test_a_paused_leader_does_no_harm(cell: Cluster) -> None:
    """2. SIGSTOP of a leader for three lease times with requests queued on its open sockets: no
    stale linearizable read and no write accepted by the old epoch (R1, R8)."""
    async with cell.client() as client:
        by_partition, keys = all_keys(client)
        load = Load(client, keys)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        before = cell.leaders()
        victim = before[0][0]
        led = [p for p, (node, _) in before.items() if node == victim]
        old = cell.node(victim)
        host, _, port = old["rpc"].rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: NodeConnection("dev", "queued"), host, int(port))
        await until("the connection is greeted", lambda: connection.hello)
        pause(old["pid"])
        # into the sockets of the sleeping leader, while others take over and change these very keys
        queued = []
        for p in led:
            for key in by_partition[p]:
                storage_key = storage_key_of("load", key)
                far = loop.time() + 120
                read = connection.submit(b"q" * 16, [0, GET, p, storage_key, LINEARIZABLE, None], far)
                op = [0, PUT, p, storage_key, 0, 0, 0, None, b"-1", "", 0]
                queued.append((key, read, connection.submit(b"q" * 16, op, far)))
        await asyncio.sleep(3 * LEASE_TTL_S)
        await until("others lead", lambda: set(led) <= set(_leaders_but(cell, victim)))
        floors = {key: load.acked.get(key, 0) for key, _, _ in queued}
        resume(old["pid"])
        for key, read, write in queued:
            result = await asyncio.wait_for(read, PATIENCE_S)
            if result[1] == 0:  # served after all: then with everything acknowledged before it woke
                value = int(result[2][22:])
                assert value >= floors[key], f"{key}: stale read {value} < {floors[key]}"
            result = await asyncio.wait_for(write, PATIENCE_S)
            assert result[1] != 0, f"{key}: the old epoch accepted a write"
        connection.close()
        load.stop = True
        await running
        await load.check_all()


def _leaders_but(cell: Cluster, victim: str) -> dict[int, tuple[str, int]]:
    found: dict[int, tuple[str, int]] = {}
    for name in cell.names():
        if name != victim:
            for p in cell.status(name)["partitions"]:
                if p["role"] == "active":
                    found[p["id"]] = (name, p["epoch"])
    return found


@pytest.mark.nightly
async def test_etcd_away(cell_without_claims: Cluster) -> None:
    """3. etcd paused, then killed, for a minute under load: no failed read, no failed write. Then a
    node dies too (R12)."""
    cell = cell_without_claims
    async with cell.client() as client:
        by_partition, keys = all_keys(client)
        load = Load(client, keys)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        cell.verb("pause", "etcd")
        before = await settled(cell)
        await asyncio.sleep(4 * LEASE_TTL_S)
        await until("all lead as before, without etcd", lambda: cell.leaders() == before)
        cell.verb("resume", "etcd")
        await until("leases and leader keys are back", lambda: _keys_are_back(cell, before))
        cell.verb("kill", "etcd")
        before = await settled(cell)
        await asyncio.sleep(40)
        assert not load.failures(), load.failures()[:5]
        await until("all lead as before, without etcd", lambda: cell.leaders() == before)

        victim = before[0][0]
        led = [p for p, (node, _) in before.items() if node == victim]
        followed = [p for p in before if p not in led]
        cell.verb("kill", victim)
        load.stop = True
        await running
        ns = client.namespace("load")
        for p in followed:
            # its tag has it live beside the key
            await ns.put(f"{{{by_partition[p][0]}}}x", b"goes on")
        for p in led:
            key = by_partition[p][0]
            record = await ns.get(key, consistency="stale")
            assert record is not None
            assert load.acked[key] <= int(record.value) <= load.attempted[key]
            with pytest.raises((Unavailable, DeadlineExceeded), match=r"etcd|leader") as refused:
                await ns.put(key, b"0", deadline_s=20)
            assert refused.value.outcome == "none"
        cell.verb("restart", victim)
        after = await until("its partitions go on, still without etcd", lambda: _all_led(cell, before))
        for p in led:
            assert after[p][0] == victim
            assert after[p][1] == before[p][1] + 1, "not the next restart of the same term (R12)"
        load = _next_load(load)
        await load.run(2)
        assert not load.failures(), load.failures()[:5]
        cell.verb("restart", "etcd")
        await until("leases and leader keys are back", lambda: _keys_are_back(cell, before))
        assert {p: n for p, (n, _) in cell.leaders().items()} == {p: n for p, (n, _) in before.items()}
        await load.run(1)
        await load.check_all()


async def settled(cell: Cluster) -> dict[int, tuple[str, int]]:
    """Who leads, with etcd away: what had been decided before is carried out by then."""
    found: dict[int, tuple[str, int]] = {}

    async def twice() -> bool:
        nonlocal found
        before, found = found, cell.leaders()
        await asyncio.sleep(1)
        return len(found) == 8 and found == before

    await until("leaders stay", twice)
    return found


@pytest.mark.nightly
async def test_a_dead_leader_does_not_wait_for_a_dead_etcd(steady_cell: Cluster) -> None:
    """R16: etcd is killed, then a leader for good: its partitions are led again, without etcd, and
    nothing is lost or doubled, then or when etcd and the dead node return."""
    cell = steady_cell
    async with cell.client() as client:
        by_partition, keys = all_keys(client)
        load = Load(client, keys)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        cell.verb("kill", "etcd")
        before = await settled(cell)
        victim = before[0][0]
        cell.verb("kill", victim)
        killed = time.monotonic()
        claimed = await until("all partitions are led, without etcd", lambda: _all_led(cell, before))
        for p, (node, epoch) in claimed.items():
            assert node != victim
            term, restart = epoch >> 16, epoch & 0xFFFF
            assert term == before[p][1] >> 16, "a new term without etcd"
            assert restart > before[p][1] & 0xFFFF if before[p][0] == victim else restart == 0
        led = [k for p, (node, _) in before.items() if node == victim for k in by_partition[p]]
        await until("writes are back", lambda: set(load.resumed_after(killed + 0.02, led)) == set(led))
        back = load.resumed_after(killed + 0.02, led)
        print(f"writes are back {max(back.values()):.2f} s after the kill")
        cell.verb("restart", victim)
        await asyncio.sleep(2)
        cell.verb("restart", "etcd")
        await until("leader keys name who leads", lambda: _keys_are_back(cell, before))
        after = cell.leaders()
        assert {p: n for p, (n, _) in after.items()} == {p: n for p, (n, _) in claimed.items()}
        await asyncio.sleep(1)
        load.stop = True
        await running
        assert not load.failures(), load.failures()[:5]
        await load.check_all()


def _next_load(load: Load) -> Load:
    """The same keys and promises, running again: it begins by reading where it is."""
    fresh = Load(load.client, [f"{k}-again" for k in load.keys])
    return fresh


def _all_led(cell: Cluster, before: dict[int, tuple[str, int]]) -> dict[int, tuple[str, int]] | None:
    leaders = cell.leaders()
    return leaders if len(leaders) == len(before) else None


async def _keys_are_back(cell: Cluster, before: dict[int, tuple[str, int]]) -> bool:
    from metastore.coordination.etcd import EtcdCoordinator
    from metastore.errors import CoordinationError
    from metastore.layout import Layout, LeaderRecord

    endpoint = cell.json()["etcd"][0]["url"].removeprefix("http://")
    coordinator = EtcdCoordinator([endpoint])
    try:
        _, kvs = await coordinator.range(Layout("dev").root + "leader/")
    except CoordinationError:
        return False
    finally:
        await coordinator.close()
    leaders = cell.leaders()
    records = {int(kv.key.rpartition("/")[2]): LeaderRecord.from_json(kv.value) for kv in kvs}
    found = {p: (record.node, record.epoch) for p, record in records.items()}
    return all(p in found and p in leaders and found[p] == tuple(leaders[p]) for p in before)


async def test_two_replicas_of_three_gone(cell: Cluster) -> None:
    """What needs a quorum is refused long before its deadline, naming the replicas that are missing; stale reads
    go on; when they are back all goes on, and nothing is lost."""
    async with cell.client(deadline_s=120) as client, aiohttp.ClientSession(cell.router) as http:
        by_partition, keys = all_keys(client)
        load = Load(client, keys, deadline_s=2.0)
        await load.run(1)
        gone = sorted(cell.names())[1:]
        # what is acknowledged is committed, and its leader knows that: the one that stays is to know it too
        await until("all have applied all", lambda: _all_applied(cell))
        cell.verb("kill", *gone)
        ns = client.namespace("load")
        for p in by_partition:
            key = by_partition[p][0]
            with pytest.raises((Unavailable, OutcomeUnknown)) as refused:
                await ns.put(f"{{{key}}}x", b"0")
            assert refused.value.detail["missing"] == gone
            with pytest.raises(Unavailable) as unread:
                await ns.get(key)
            assert unread.value.detail["missing"] == gone
            async with http.put(f"/v1/kv/load/%7B{key}%7Dx", data=b"1") as response:
                body = await response.json()
                assert (response.status, body["code"], body["outcome"]) == (503, "unavailable", "none"), body
                assert body["missing"] == gone
            record = await ns.get(key, consistency="stale")
            assert record is not None
            assert load.acked[key] <= int(record.value) <= load.attempted[key]
        cell.verb("restart", *gone)
        await until("all partitions are led again", lambda: len(cell.leaders()) == 8)
        await load.check_all()


@pytest.mark.nightly
async def test_a_slow_follower_is_not_seen(steady_cell: Cluster) -> None:
    """4. A paused follower costs no failed operation; bench/ has the latencies beside each other."""
    cell = steady_cell
    async with cell.client() as client:
        leaders = cell.leaders()
        counts = {n: sum(1 for node, _ in leaders.values() if node == n) for n in cell.names()}
        victim = min(counts, key=lambda n: counts[n])
        mine = [p for p, (node, _) in leaders.items() if node != victim]
        by_partition = keys_by_partition(client, 2)
        load = Load(client, [k for p in mine for k in by_partition[p]])
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        pause(cell.node(victim)["pid"])
        await asyncio.sleep(5)
        paused_failures = load.failures()
        resume(cell.node(victim)["pid"])
        await asyncio.sleep(1)
        load.stop = True
        await running
        assert not paused_failures, paused_failures[:5]
        await load.check_all()


@pytest.mark.nightly
async def test_a_dead_cell_hurts_only_its_keys(two_cells: Cluster) -> None:
    """5. One cell killed whole: 503 with Retry-After for its keys, nothing for the others."""
    cluster = two_cells
    async with cluster.client() as client, aiohttp.ClientSession(cluster.router) as http:
        by_partition = keys_by_partition(client, 2)
        cells = {p: client.dispatcher.table.partitions[p].cell for p in by_partition}
        alive = [k for p, keys in by_partition.items() for k in keys if cells[p] == "c2"]
        dead = [k for p, keys in by_partition.items() for k in keys if cells[p] == "c1"]
        for key in dead + alive:
            async with http.put(f"/v1/kv/http/{key}", data=b"x") as response:
                assert response.status == 201
        load = Load(client, alive)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(0.5)
        cluster.verb("kill", *cluster.names("c1"))
        for key in dead[:6]:
            lkey_cell = client.dispatcher.table.route(storage_key_of("http", key)).cell
            async with http.put(f"/v1/kv/http/{key}", data=b"y") as response:
                if lkey_cell == "c1":
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) >= 1
                    body = await response.json()
                    assert body["outcome"] == "none"
                    assert body["retryable"] is True
                else:
                    assert response.status == 200
        await asyncio.sleep(2)
        load.stop = True
        await running
        assert not load.failures(), load.failures()[:5]
        await load.check_all()


async def test_everything_killed_at_once(cell: Cluster) -> None:
    """6. All processes killed at once and restarted: every acknowledged write is there."""
    async with cell.client() as client:
        _, keys = all_keys(client)
        load = Load(client, keys, deadline_s=2.0)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(2)
        await until("there is something to lose", lambda: sum(load.acked.values()) > 100)
        found = cell.json()
        pids = [found["router"]["pid"], found["etcd"][0]["pid"], *(n["pid"] for n in found["nodes"])]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        load.stop = True
        await running
        await until("the supervisor has noticed", lambda: not any(n["pid"] for n in cell.json()["nodes"]))
        cell.verb("restart", "etcd", *cell.names(), "router")
        await until("all partitions are led", lambda: len(cell.leaders()) == 8)
        await load.check_all()
        versions: dict[int, set[int]] = {}
        for a in load.history:
            if a.version:
                p = client.dispatcher.table.route(storage_key_of("load", a.key)).id
                assert a.version not in versions.setdefault(p, set()), "one version for two writes"
                versions[p].add(a.version)


@pytest.mark.nightly
async def test_a_rolling_restart_by_signal_hands_over(cell: Cluster) -> None:
    """SIGTERM hands leaders over first (R11): no operation fails."""
    async with cell.client() as client:
        _, keys = all_keys(client)
        load = Load(client, keys)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        for name in cell.names():
            await asyncio.to_thread(cell.verb, "restart", "--graceful", name)
            await until("the restarted node is back", lambda: len(cell.leaders()) == 8)
            await until("it follows again", lambda name=name: _follows(cell, name))
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]


def _follows(cell: Cluster, name: str) -> bool:
    try:
        return len(cell.status(name)["peers"]) == 2
    except OSError:
        return False


@pytest.mark.nightly
async def test_a_follower_far_behind_gets_a_snapshot(tmp_path: object, request: object) -> None:
    """R17: a follower that missed more than the log keeps is brought up while writes go on."""
    from pathlib import Path

    data = Path(str(tmp_path)) / "data"
    cluster = Cluster.up(
        data, nodes=3, partitions=2, settings=("segment-mib=18", "log-retention-mib=36", "overlay-mib=16")
    )
    try:
        async with cluster.client() as client:
            ns = client.namespace("big")
            leaders = cluster.leaders()
            victim = next(n for n in cluster.names() if n not in {x for x, _ in leaders.values()})
            cluster.verb("kill", victim)
            blob = os.urandom(200_000)

            async def fill(worker: int) -> None:
                for i in range(60):
                    await ns.put(f"d{worker}/{i}", blob + b"%d.%d" % (worker, i))

            await asyncio.gather(*(fill(w) for w in range(12)))
            running = Load(client, keys_by_partition(client, 1)[0])
            task = asyncio.create_task(running.run())
            cluster.verb("restart", victim)
            leaders = cluster.leaders()
            await until("the follower has caught up", lambda: _caught_up(cluster, victim))
            text = (data / "logs" / f"{victim}.log").read_text()
            assert "installed a snapshot" in text
            running.stop = True
            await task
            await running.check_all()
            # it holds everything: let it lead alone with one other
            others = [n for n in cluster.names() if n != victim]
            cluster.verb("kill", others[0])
            await until("led again", lambda: len(cluster.leaders()) == 2)
            for worker in range(12):
                for i in range(0, 60, 7):
                    record = await ns.get(f"d{worker}/{i}")
                    assert record is not None
                    assert record.value == blob + b"%d.%d" % (worker, i)
    finally:
        try:
            cluster.down()
        except (MetastoreError, AssertionError):
            pass


def _all_applied(cluster: Cluster) -> bool:
    """Whether every replica has applied what any of them knows to be committed. Nothing is written meanwhile."""
    rows = [p for name in cluster.names() for p in cluster.status(name)["partitions"]]
    committed: dict[int, int] = {}
    for p in rows:
        committed[p["id"]] = max(committed.get(p["id"], 0), p["commit_index"])
    return all(p["applied_index"] >= committed[p["id"]] for p in rows)


def _caught_up(cluster: Cluster, node: str) -> bool:
    leaders = cluster.leaders()
    try:
        mine = {p["id"]: p["applied_index"] for p in cluster.status(node)["partitions"]}
        for p, (leader, _) in leaders.items():
            theirs = next(x for x in cluster.status(leader)["partitions"] if x["id"] == p)
            if mine[p] + 50 < theirs["commit_index"]:
                return False
    except (OSError, KeyError):
        return False
    return len(leaders) == 2
