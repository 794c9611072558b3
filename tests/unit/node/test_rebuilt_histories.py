"""etcd is set back to before a new generation began, and rebuilt from the store (R13, R19): what a client has is judged by the
history that its partition is in, and not by what etcd knew of it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from cellctl.control import carry_out, read_etcd
from cellctl.operate import Operator
from cellctl.rebuild import compute
from cellctl.reports import report_from_plain
from metastore.client import AsyncClient, Fence
from metastore.config import NodeConfig
from metastore.coordination.interface import Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import HistoryChanged
from metastore.history import generation_of, token_of
from metastore.layout import ConfigRecord, Layout, first_epoch
from metastore.node.clients import ClientConnection
from metastore.node.control_report import control_view
from metastore.node.node import Node
from metastore.node.startup import take_part
from metastore.storage.store import Store

LAYOUT = Layout("metastore")
KEY = LAYOUT.config("c1", 0)


class Alone:
    """A cluster of one node, and its etcd in memory."""

    def __init__(self, etcd: MemoryEtcd, node: Node, rpc: str) -> None:
        self.etcd, self.node, self.rpc = etcd, node, rpc

    def coordinator(self) -> MemoryCoordinator:
        return MemoryCoordinator(self.etcd, asyncio.get_running_loop().time)

    def config(self) -> ConfigRecord:
        return ConfigRecord.from_json(self.etcd.kvs[KEY].value)

    async def until_led(self, term: int) -> None:
        async with asyncio.timeout(60):
            while 0 not in self.node.partitions or (
                self.node.partitions[0].role != "active"
                or self.node.partitions[0].replica.sealed_epoch < first_epoch(term)
            ):
                await asyncio.sleep(0.005)

    async def begin_generation(self, generation: int) -> None:
        operator = Operator(self.coordinator(), "metastore")
        await operator.begin_generation([0], generation, "test")
        await self.until_led(self.config().epoch >> 16)

    async def rebuild(self) -> None:
        plain = orjson.loads(orjson.dumps(control_view(self.node)))
        etcd = self.coordinator()
        result = compute(LAYOUT, await read_etcd(etcd, LAYOUT), [report_from_plain(plain, "metastore")])
        assert result.needed
        await carry_out(etcd, result)
        async with asyncio.timeout(60):
            while self.node.control.coordinator.untrusted:
                await asyncio.sleep(0.005)
        await self.until_led(self.config().epoch >> 16)


@pytest.fixture
async def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Alone]:
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 20.0)
    monkeypatch.setattr("metastore.coordination.lineage.LOOK_S", 0.02)
    loop, etcd = asyncio.get_running_loop(), MemoryEtcd()
    store = Store.open(tmp_path, cluster="metastore", node="f")
    node: Node
    server = await loop.create_server(lambda: ClientConnection(node), "127.0.0.1", 0)
    rpc = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = NodeConfig(
        cell="c1", node="f", data_dir=str(tmp_path), rpc=rpc, http="127.0.0.1:1", lease_ttl_s=600
    )
    node = Node(config, store, "1")
    record = ConfigRecord(0, 0, 1 << 64, first_epoch(1), None, (("f", store.store_id),))
    etcd.txn([], [Put(KEY, record.to_json())], [])
    await take_part(node, MemoryCoordinator(etcd, loop.time))
    made = Alone(etcd, node, rpc)
    await made.until_led(2)
    yield made
    server.close()
    await node.stop(hand_over=False)


async def test_tokens_of_before_and_after_are_told_apart(alone: Alone) -> None:
    async with AsyncClient([alone.rpc], deadline_s=20) as client:
        ns = client.namespace("n")
        old = (await ns.put("d/k", b"a")).version
        old_resume = (await ns.list("d/")).resume
        before = copy.deepcopy((alone.etcd.kvs, alone.etcd.revision))
        await alone.begin_generation(1)
        mine = (await ns.put("d/k", b"b")).version
        page = await ns.list("d/")
        lock = ns.lock("d/lock", ttl_s=600)
        await lock.acquire()

        # an hour ago: etcd knows nothing of the generation
        alone.etcd.kvs, alone.etcd.revision = before
        alone.etcd.history.clear()
        assert alone.config().generation == 0
        async with asyncio.timeout(60):
            while not alone.node.control.coordinator.untrusted:
                await asyncio.sleep(0.005)
        await alone.rebuild()
        assert alone.config().generation == 1

        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", version=old)
        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", fence=Fence("d/lock", token_of(old)))
        with pytest.raises(HistoryChanged):
            async with ns.watch("d/", after=old_resume) as changes:
                await changes.next(10)
        # nothing was lost with etcd: what is of this generation holds
        put = await ns.put("d/k", b"c", version=mine, fence=lock.fence)
        assert generation_of(put.version) == 1
        async with ns.watch("d/k", after=page.resume) as changes:
            event = await changes.next(10)
            assert event is not None
            assert event.version == put.version
        lock.check()

        # and the next generation is one that there was not
        await alone.begin_generation(2)
        with pytest.raises(HistoryChanged):
            await ns.put("d/k", b"", version=put.version)


async def test_the_mark_is_a_bound_below(alone: Alone) -> None:
    """Whatever generation a record has that somebody writes by hand: versions do not go down."""
    async with AsyncClient([alone.rpc], deadline_s=20) as client:
        ns = client.namespace("n")
        await alone.begin_generation(3)
        put = await ns.put("d/k", b"b")
        config = alone.config()
        lower = ConfigRecord(0, 0, 1 << 64, config.epoch + (1 << 16), None, config.replicas, generation=1)
        alone.etcd.txn([], [Put(KEY, lower.to_json())], [])
        await alone.until_led((lower.epoch >> 16) + 1)
        assert generation_of((await ns.put("d/k", b"c", version=put.version)).version) == 3
