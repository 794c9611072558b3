"""Watches on real nodes: every change once, in order for each key, whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import pytest

from metastore import Put
from metastore.client import Event
from metastore.client.watch.resume_tokens import decode_resume, encode_resume
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Put as EtcdPut
from metastore.errors import ClientClosed, Compacted, InvalidRequest, MetastoreError, WrongRouting
from metastore.history import ResumePoint
from metastore.keys import END_OF_RING, storage_key_of
from metastore.layout import Layout
from metastore.namespaces import Policy
from metastore.routing.connection import NodeConnection
from metastore.wire import frames
from tests.integration.harness import Cluster, until
from tests.integration.witness import Witness, partition_of
from tests.processes import PATIENCE_S, pause, resume

NS = "seen"


@pytest.mark.nightly
async def test_every_change_once_and_in_order_whatever_dies(cell: Cluster) -> None:
    """kill -9 of leaders, SIGSTOP for longer than the watches' patience, all nodes killed at once."""
    seed = 20240611
    async with cell.client() as writing, cell.client() as watching:
        witness = Witness(writing, NS, seed)
        await witness.watch("plain", watching)
        await witness.watch("reopened", watching, reopen=40)
        await witness.watch("slow, small buffer", watching, slow=True, buffer=3)
        await witness.watch("any replica", watching, any_replica=True)
        witness.write(8)
        await witness.everybody_has_seen("nothing happened yet")
        for victim in ("c1n1", "c1n2"):
            os.kill(cell.node(victim)["pid"], signal.SIGKILL)
            await until("its death is noticed", lambda v=victim: cell.node(v)["pid"] is None)
            await witness.everybody_has_seen(f"kill -9 of {victim}")
            cell.verb("restart", victim)
            await until("the restarted node follows", lambda v=victim: len(cell.status(v)["peers"]) == 2)
        paused = cell.leaders()[0][0]
        pause(cell.node(paused)["pid"])
        await witness.everybody_has_seen(f"SIGSTOP of {paused}")
        resume(cell.node(paused)["pid"])
        await witness.everybody_has_seen(f"SIGCONT of {paused}")
        cell.verb("kill", *cell.names())
        cell.verb("restart", *cell.names())
        await witness.everybody_has_seen("all nodes were killed")
        await until("enough has been seen", lambda: min(len(w.seen) for w in witness.watches) > 500)
        await until("one was opened again and again", lambda: witness.watches[1].reopened > 20)
        await witness.end()


async def drain(watcher: Any, count: int) -> list[Event]:
    return [await asyncio.wait_for(anext(watcher), PATIENCE_S) for _ in range(count)]


CHILD = """
import asyncio, json, sys
from metastore import AsyncClient

async def main(nodes, resume, count):
    async with AsyncClient(nodes) as client, client.namespace("seen").watch("dir/", after=resume) as watcher:
        for _ in range(count):
            event = await anext(watcher)
            print(json.dumps([event.kind, event.key, event.version]))

asyncio.run(main(sys.argv[1].split(","), sys.argv[2], int(sys.argv[3])))
"""


async def test_resume_in_another_process(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace(NS)
        async with ns.watch("dir/") as watcher:
            for n in range(50):
                await ns.put(f"dir/{n % 7}", b"%d" % n)
            await ns.delete("dir/3")
            first = await drain(watcher, 20)
            resume = watcher.resume
            rest = await drain(watcher, 31)
        assert [e.version for e in first + rest] == list(range(first[0].version, first[0].version + 51))
        nodes = ",".join(n["rpc"] for n in shared.json()["nodes"])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, nodes, str(resume), "31", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
        told = [json.loads(line) for line in out.splitlines()]
        assert told == [[e.kind, e.key, e.version] for e in rest]
        # a page's token: everything since the page was read
        page = await ns.list("dir/")
        put = await ns.put("dir/new", b"1")
        async with ns.watch("dir/", after=page.resume) as watcher:
            assert [e.version for e in await drain(watcher, 1)] == [put.version]
        with pytest.raises(InvalidRequest, match="another prefix"):
            async with ns.watch("other/", after=page.resume):
                pass
        with pytest.raises(InvalidRequest, match="not of a whole namespace"):
            async with ns.watch("", after=page.resume):
                pass
        with pytest.raises(InvalidRequest, match="nothing can be resumed"):
            async with ns.watch(
                "dir/", after=encode_resume([(decode_resume(str(resume))[0][0], ResumePoint(1 << 40))])
            ):
                pass


async def test_resume_is_right_after_every_single_event(shared: Cluster) -> None:
    """Also in the middle of a transaction, whose changes come together."""
    async with shared.client() as client:
        ns = client.namespace(NS)
        async with ns.watch("steps/") as watcher:
            begin = watcher.resume
            for _ in range(3):
                await ns.txn([], [Put(f"steps/{n}", b"x") for n in range(5)])
            versions, tokens = [], [begin]
            for _ in range(15):
                versions += [e.version for e in await drain(watcher, 1)]
                tokens.append(watcher.resume)
        for number, token in enumerate(tokens):
            async with ns.watch("steps/", after=token) as watcher:
                rest = [e.version for e in await drain(watcher, 15 - number)]
            assert rest == versions[number:], number


async def test_a_whole_namespace_in_many_partitions_and_a_split_one(shared: Cluster) -> None:
    """One subscription for each partition; a token that knows of fewer, larger partitions is cut up."""
    async with shared.client() as client:
        ns = client.namespace("wide")
        async with ns.watch() as watcher:
            assert len(decode_resume(str(watcher.resume))) == 8
            keys = [f"key{n}" for n in range(64)]
            await asyncio.gather(*(ns.put(k, b"x") for k in keys))
            events = await drain(watcher, 64)
            assert sorted(e.key for e in events) == sorted(keys)
            assert {partition_of(client, "wide", k) for k in keys} == set(range(8))
        async with ns.watch(after=encode_resume([(bytes(8), ResumePoint(0))])) as watcher:
            again = await drain(watcher, 64)
            assert {(e.key, e.version) for e in again} == {(e.key, e.version) for e in events}
            assert len(decode_resume(str(watcher.resume))) == 8
        # a client that takes two partitions for one is told, and looks again
        table = client.dispatcher.table
        low, high = table.in_order()[:2]
        table.partitions[low.id] = replace(low, hi=high.hi)
        del table.partitions[high.id]
        table._map = None
        async with ns.watch() as watcher:
            await asyncio.gather(*(ns.put(k, b"y") for k in keys))
            assert sorted(e.key for e in await drain(watcher, 64)) == sorted(keys)


async def test_close_ends_who_waits(shared: Cluster) -> None:
    async with shared.client() as client:
        ns = client.namespace(NS)
        watcher = ns.watch("quiet/")
        waiting = asyncio.create_task(anext(watcher))
        await watcher.started()
        await watcher.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, PATIENCE_S)
        with pytest.raises(ClientClosed):
            await watcher.next(1)
        assert watcher.resume is not None
        unstarted = ns.watch("quiet/")
        starting = asyncio.create_task(unstarted.started())
        await asyncio.sleep(0)
        await unstarted.close()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(starting, PATIENCE_S)
        async with ns.watch("quiet/") as watcher:
            assert await watcher.next(0.01) is None
        left_open = ns.watch("quiet/")
        await left_open.started()
    with pytest.raises(ClientClosed):
        await asyncio.wait_for(left_open.next(), PATIENCE_S)


async def test_too_old_is_told(small_log: Cluster) -> None:
    """Compacted: to who resumes too late, and to who reads too slowly."""
    async with small_log.client() as client:
        ns = client.namespace(NS)
        first = await ns.put("big/0", b"x")
        page = await ns.list("big/")
        slow = ns.watch("big/", buffer=1)
        await slow.started()
        for n in range(1, 140):
            await ns.put(f"big/{n % 4}", bytes(1 << 20))
        with pytest.raises(Compacted) as e:
            async with ns.watch("big/", after=page.resume):
                pass
        assert e.value.detail["oldest"] > first.version
        with pytest.raises(Compacted):
            await drain(slow, 140)
        # and what to do then works
        page = await ns.list("big/")
        late = await ns.put("big/0", b"late")
        async with ns.watch("big/", after=page.resume) as watcher:
            assert [e.version for e in await drain(watcher, 1)] == [late.version]


async def test_a_reader_that_lets_its_socket_fill_is_served_on(shared: Cluster) -> None:
    """More than the sockets hold is behind: the node stops, and must go on when there is room again."""
    async with shared.client() as client:
        ns = client.namespace("backlog")
        key = "dir/large"
        for _ in range(40):
            await ns.put(key, bytes(1 << 20))
        placement = client.dispatcher.table.route(storage_key_of("backlog", key))
        host, _, port = str(client.dispatcher.table.address(placement.leader)).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
        end = END_OF_RING if placement.hi >> 64 else placement.hi.to_bytes(8, "big")
        low = placement.lo.to_bytes(8, "big")
        writer.write(frames.pack(frames.HELLO, ["dev", "slow"]))
        writer.write(frames.pack(frames.WATCH, [1, placement.id, low, end, 0, 0, b"backlog\0"]))
        await ns.get(key)  # time for the node to fill what there is to fill
        decoder = frames.FrameDecoder()
        versions: list[int] = []
        while len(versions) < 40:
            data = await asyncio.wait_for(reader.read(1 << 16), PATIENCE_S)
            assert data, "the node closed the connection"
            for kind, body in decoder.feed(data):
                if kind == frames.EVENTS:
                    versions += [event[2] for event in body[2]]
        assert versions == sorted(set(versions))
        writer.close()


async def test_a_leader_that_slept_does_not_call_a_newer_position_wrong(cell: Cluster) -> None:
    """It wakes, still takes itself for the leader, and is asked about what its successor told."""
    async with cell.client() as client:
        ns = client.namespace(NS)
        old = await ns.put("dir/k", b"1")
        placement = client.dispatcher.table.route(storage_key_of(NS, "dir/k"))
        node = cell.node(str(placement.leader))
        host, _, port = node["rpc"].rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: NodeConnection("dev", "queued"), host, int(port))
        await until("the connection is greeted", lambda: connection.hello)
        pause(node["pid"])
        # into its socket before the word of its successor, with a position that only that one will reach
        ended: asyncio.Future[MetastoreError] = loop.create_future()
        start = storage_key_of(NS, "dir/k")
        body = [placement.id, start, start + b"\0", old.version + 10, 0, b""]
        connection.watch(body, lambda version, events: None, ended.set_result)
        newer = old
        while newer.version < old.version + 50:
            newer = await ns.put("dir/k", b"2")
        resume(node["pid"])
        error = await asyncio.wait_for(ended, PATIENCE_S)
        assert error.retryable, error
        connection.close()


async def test_a_namespace_that_gets_a_rule_of_its_own(shared: Cluster) -> None:
    """Who watches by the old rule is told; who begins with an old table begins by the new one."""
    async with shared.client() as client:
        ns = client.namespace("ruled")
        async with ns.watch("dir/") as before:
            etcd = EtcdCoordinator([shared.json()["etcd"][0]["url"].removeprefix("http://")])
            policy = Policy(routing="key")
            await etcd.txn([], [EtcdPut(Layout("dev").namespace("ruled"), policy.to_json())])
            await etcd.close()
            with pytest.raises(WrongRouting):
                await asyncio.wait_for(anext(before), PATIENCE_S)
        client.dispatcher.table._set_policy("ruled", None)
        async with ns.watch("dir/") as watcher:
            results = [await ns.put(f"dir/{n}", b"x") for n in range(20)]
            events = await drain(watcher, 20)
            assert sorted(e.version for e in events) == sorted(r.version for r in results)
            assert len(decode_resume(str(watcher.resume))) == 8
