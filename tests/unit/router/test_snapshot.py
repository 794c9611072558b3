"""The router's file of the topology: whole, or not used at all."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import orjson
import pytest

from metastore.topology import TopologyTable
from router.snapshot import Snapshot, load_snapshot, save_snapshot
from tests.unit.test_topology import table


def test_it_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "topology.json")
    save_snapshot(path, orjson.dumps(table().to_wire()))
    read = TopologyTable()
    load_snapshot(path, read)
    assert read.to_wire() == table().to_wire()


@pytest.mark.parametrize("keep", range(0, 400, 7))
def test_one_that_is_not_whole_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keep: int
) -> None:
    """Cut off, or a bit in it gone: a warning, and nothing of it is taken (an epoch that rots to a high one would
    hide the true leader for good)."""
    path = tmp_path / "topology.json"
    save_snapshot(str(path), orjson.dumps(table().to_wire()))
    raw = path.read_bytes()
    garbled = bytearray(raw)
    garbled[keep % len(raw)] ^= 1
    for content in (raw[: keep % len(raw)], bytes(garbled)):
        path.write_bytes(content)
        caplog.clear()
        read = TopologyTable()
        with caplog.at_level(logging.WARNING):
            load_snapshot(str(path), read)
        assert read.to_wire() == TopologyTable().to_wire()
        assert "is ignored" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"null", b"[]", b"{", orjson.dumps(table().to_wire())])
def test_what_is_no_snapshot(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "topology.json"
    path.write_bytes(content)
    read = TopologyTable()
    load_snapshot(str(path), read)
    assert not read.partitions


def test_rows_of_it_that_make_no_sense_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as another version wrote: the rest is worth having."""
    wire = table().to_wire()
    wire["nodes"] = [{"node": "n1", "rpc": 5}]
    wire["later"] = 7
    path = str(tmp_path / "topology.json")
    save_snapshot(path, orjson.dumps(wire))
    read = TopologyTable()
    with caplog.at_level(logging.WARNING):
        load_snapshot(path, read)
    assert read.complete
    assert not read.nodes
    assert "nodes/n1" in caplog.text


def many(count: int) -> TopologyTable:
    found = table()
    for i in range(count):
        found.apply_kv(("namespaces", f"ns{i}"), b'{"max_records":5}', 100 + i)
    return found


async def test_a_change_makes_its_own_rows_anew_and_no_others(tmp_path: Path) -> None:
    known = many(2000)
    snapshot = Snapshot(str(tmp_path / "t"), known)

    def read() -> TopologyTable:
        return TopologyTable.from_wire(orjson.loads(snapshot.wire()))

    await snapshot.prepare()
    assert read().to_wire() == TopologyTable.from_wire(known.to_wire()).to_wire()
    made = snapshot.made
    known.apply_kv(("namespaces", "ns7"), b'{"max_records":6}', 5000)
    known.apply_kv(("namespaces", "ns8"), None, 5001)
    placed = known.in_order()[0]
    assert known.apply_hint(placed.id, placed.replicas[-1], placed.epoch + 1)
    assert read().to_wire() == TopologyTable.from_wire(known.to_wire()).to_wire()
    assert snapshot.made == made + 3
    known.doubt()
    assert read().revision == 0


async def test_what_changes_while_rows_are_made_is_in_it(tmp_path: Path) -> None:
    known = many(2000)
    snapshot = Snapshot(str(tmp_path / "t"), known)
    making = asyncio.create_task(snapshot.prepare())
    for i in range(20):
        await asyncio.sleep(0)
        known.apply_kv(("namespaces", f"ns{i}"), b'{"max_records":%d}' % (100 + i), 5000 + i)
    await making
    found = TopologyTable.from_wire(orjson.loads(snapshot.wire()))
    assert found.to_wire() == TopologyTable.from_wire(known.to_wire()).to_wire()
