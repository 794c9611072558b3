# ruff: noqa: F811
"""The cluster's feature level, with levels that no build has yet: kept, followed, and never passed by."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cellctl.operate import Operator
from metastore.coordination.interface import KV, Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.core.messages import Lineage, PreVote, Process, Run
from metastore.errors import InvalidRequest
from metastore.layout import ConfigRecord, FeaturesRecord, NodeRecord, to_json
from metastore.node import features
from metastore.node.features import FACT_LEVEL, Features
from metastore.storage.records import Fact
from metastore.wire import frames
from metastore.wire.peer_messages import Hello, encode, hello
from metastore.wire.versions import Levels, peer_versions
from tests.unit.coordination.busy import Busy
from tests.unit.node.test_registration import LAYOUT, Start, end, etcd, record, start, states  # noqa: F401


async def put(etcd: MemoryEtcd, key: str, value: bytes) -> None:
    await MemoryCoordinator(etcd, asyncio.get_running_loop().time).txn([], [Put(key, value)])


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_level_is_followed_kept_and_told(
    start: Start,
    etcd: MemoryEtcd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "LEVEL", 3)
    node = await start(tmp_path, "run1")
    assert (record(etcd).level, node.features.level) == (3, 1)
    assert [node.features.has(n) for n in (1, 2)] == [True, False]
    await put(etcd, LAYOUT.features, FeaturesRecord(2).to_json())
    await until(lambda: node.features.has(2))
    await put(etcd, LAYOUT.features, b"[]")  # one that makes no sense changes nothing
    await put(etcd, LAYOUT.features, FeaturesRecord(1).to_json())  # nor does one that is lower
    await put(etcd, LAYOUT.paused, b"{}")
    await until(lambda: node.core.ctx.moves_paused)  # it has heard of all that
    assert node.features.status() == {"level": 2, "supported": 3}
    await end(node, etcd)
    etcd.up = False
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 0.1)
    again = await start(tmp_path, "run2")
    assert states(again) == ["provisional"]
    assert again.features.has(2)
    etcd.up = True


async def test_an_older_build_takes_no_part(
    start: Start,
    etcd: MemoryEtcd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what it kept, by etcd's word when it starts, and while it runs; and that is not for good."""
    monkeypatch.setattr(features, "LEVEL", 2)
    await put(etcd, LAYOUT.features, FeaturesRecord(2).to_json())
    await end(await start(tmp_path / "a", "run1"), etcd)
    runs = record(etcd).generation

    monkeypatch.setattr(features, "LEVEL", 1)
    etcd.up = False  # by what it kept
    old = await start(tmp_path / "a", "run2")
    assert states(old) == ["refused"]
    assert "supports up to 1" in old.identity.why
    assert "supports level 2" in old.identity.do
    assert not old.core_started
    assert old.store.lineage.generation == runs  # it has not run
    await end(old, etcd)

    etcd.up = True  # by etcd's word
    etcd.kvs.pop(LAYOUT.node("n"))
    fresh = await start(tmp_path / "b", "run3")
    assert states(fresh) == ["refused"]
    assert LAYOUT.node("n") not in etcd.kvs
    await end(fresh, etcd)

    etcd.kvs.pop(LAYOUT.features)  # while it runs
    running = await start(tmp_path / "c", "run4")
    assert states(running) == ["confirmed"]
    await put(etcd, LAYOUT.features, FeaturesRecord(2).to_json())
    await until(lambda: states(running) == ["refused"])
    await end(running, etcd)

    monkeypatch.setattr(features, "LEVEL", 2)  # the way out
    etcd.kvs.pop(LAYOUT.node("n"), None)
    mended = await start(tmp_path / "c", "run5")
    assert states(mended) == ["confirmed"]


async def test_a_level_that_makes_no_sense_is_above_ours(start: Start, tmp_path: Path) -> None:
    node = await start(tmp_path, "run1")
    node.store.append(Fact(FACT_LEVEL, {"of": "later"}))
    assert Features(node.store, 5).verdict() is not None


async def test_a_level_is_raised_when_every_node_supports_it() -> None:
    etcd = MemoryEtcd()
    operator = Operator(MemoryCoordinator(etcd, asyncio.get_running_loop().time), "metastore")
    config = ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", (("a", "sa"),))
    await put(etcd, LAYOUT.config("c", 0), config.to_json())
    for name, level in (("a", 3), ("b", 2), ("c", 1)):
        await put(
            etcd, LAYOUT.node(name), to_json(NodeRecord(name, "c", f"s{name}", "h:1", "h:2", level=level))
        )
    records = await operator.records()
    assert (records.level, records.supported()) == (1, 1)
    with pytest.raises(InvalidRequest, match=r"feature level 3: b \(up to 2\), c \(up to 1\)"):
        await operator.raise_level(3)
    with pytest.raises(InvalidRequest, match="at feature level 1 already"):
        await operator.raise_level(1)
    etcd.kvs.pop(LAYOUT.node("c"))
    await put(etcd, LAYOUT.node("x"), b"{}")
    with pytest.raises(InvalidRequest, match="nodes/x in etcd is not valid"):
        await operator.raise_level(2)
    etcd.kvs.pop(LAYOUT.node("x"))
    await operator.raise_level(2)
    assert (await operator.records()).level == 2
    with pytest.raises(InvalidRequest, match="not lowered"):
        await operator.raise_level(2)


async def test_a_level_does_not_fall_where_two_raise_it() -> None:
    etcd = MemoryEtcd()

    class Raced(MemoryCoordinator):
        """Somebody else raises it when this one has looked at the records."""

        async def range(self, prefix: str) -> tuple[int, list[KV]]:
            found = await super().range(prefix)
            etcd.txn([], [Put(LAYOUT.features, FeaturesRecord(3).to_json())], [])
            return found

    config = ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", (("a", "sa"),))
    await put(etcd, LAYOUT.config("c", 0), config.to_json())
    await put(etcd, LAYOUT.node("a"), to_json(NodeRecord("a", "c", "sa", "h:1", "h:2", level=3)))
    operator = Operator(Raced(etcd, asyncio.get_running_loop().time), "metastore")
    with pytest.raises(InvalidRequest, match="level 3 already"):
        await operator.raise_level(2)
    assert etcd.kvs[LAYOUT.features].value == FeaturesRecord(3).to_json()


async def test_a_node_that_is_registered_while_the_level_is_raised_is_seen() -> None:
    """It has read the level of before, and compared it: one of the two comes first."""
    etcd = MemoryEtcd()
    busy = Busy(etcd)
    operator = Operator(busy, "metastore")
    config = ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", (("a", "sa"),))
    await put(etcd, LAYOUT.config("c", 0), config.to_json())

    def registered(name: str, level: int) -> Put:
        return Put(LAYOUT.node(name), to_json(NodeRecord(name, "c", f"s{name}", "h:1", "h:2", level=level)))

    await busy.txn([], [registered("a", 3)])
    busy.happens = [registered("old", 1)]
    with pytest.raises(InvalidRequest, match=r"do not support feature level 2: old \(up to 1\)"):
        await operator.raise_level(2)
    assert (await operator.records()).level == 1
    await busy.txn([], [registered("old", 3)])  # it is upgraded
    busy.happens = [registered("new", 3)]
    await operator.raise_level(2)
    assert (await operator.records()).level == 2
    busy.happens = [Put(LAYOUT.features, FeaturesRecord(3).to_json())]
    with pytest.raises(InvalidRequest, match="level 3 already"):
        await operator.raise_level(3)
    assert (await operator.records()).level == 3


async def test_what_peers_tell_of_the_level_is_kept_before_what_they_send(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a build that cannot read it finds out first, whatever else it has."""
    monkeypatch.setattr(features, "LEVEL", 2)
    node = await start(tmp_path, "run1")
    await put(etcd, LAYOUT.node("a"), to_json(NodeRecord("a", "c", "sa", "127.0.0.1:1", "h:2", level=2)))
    await until(lambda: "a" in node.topology.nodes)
    levels: list[int] = []
    monkeypatch.setattr(
        node.links, "on_messages", lambda peer, batch: levels.append(node.store.facts[FACT_LEVEL])
    )
    peer = Hello(Process("a", "sa", "1"), Lineage((Run(1, "1"),)), peer_versions(), Levels(1, 2))
    host, _, port = node.config.rpc.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(frames.pack(frames.PEER_HELLO, hello("metastore", peer, "n", node.store.store_id)))
    writer.write(frames.pack(frames.LEVEL, 2) + frames.pack(frames.PEER, [encode(PreVote(0, 1, 2))]))
    await until(lambda: levels)
    assert levels == [2]
    assert node.features.has(2)
    writer.close()


async def test_a_build_from_before_levels_supports_the_first() -> None:
    plain = {"node": "n", "cell": "c", "store_id": "s", "rpc": "h:1", "http": "h:2"}
    assert NodeRecord.from_plain(plain).level == 1
