"""The topology that a node keeps: what has changed is written, and what is read back is the last good map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from metastore.layout import ConfigRecord, NodeRecord, first_epoch
from metastore.namespaces import Policy
from metastore.node.stored_topology import FACT_TOPOLOGY, StoredTopology, key_of, table_of
from metastore.storage.options import StorageOptions
from metastore.storage.records import Fact
from metastore.storage.store import Store
from metastore.topology import TopologyTable
from tests.unit.storage.test_store import QuickDisk

OPTIONS = StorageOptions(segment_bytes=1 << 20, log_retention_bytes=2 << 20, reserve_bytes=0)
NODES = [NodeRecord(n, "c1", f"s{n}", f"{n}:1", f"{n}:2") for n in ("n1", "n2", "n3")]
MEMBERS = tuple((n.node, n.store_id) for n in NODES)


def opened(folder: Path) -> Store:
    return Store.open(folder, cluster="c", node="n", options=OPTIONS, disk=QuickDisk())


def config(p: int, count: int, term: int = 1) -> ConfigRecord:
    width = (1 << 64) // count
    return ConfigRecord(p, p * width, (p + 1) * width, first_epoch(term), "n1", MEMBERS)


def fill(table: TopologyTable, partitions: int, namespaces: int, revision: int = 10) -> None:
    """As a watch's first delivery."""
    records: list[tuple[tuple[str, ...], Any]] = [(("nodes", n.node), n) for n in NODES]
    records += [(("config", "c1", f"{p:05d}"), config(p, partitions)) for p in range(partitions)]
    records += [(("namespaces", f"ns{n}"), Policy("key", n)) for n in range(namespaces)]
    table.apply(records, revision)
    table.begin([parts for parts, _ in records], revision)


def change(table: TopologyTable, n: int, partitions: int) -> None:
    match n % 5:
        case 0:
            table.apply([(("namespaces", "ns1"), Policy("key", 1000 + n))], 20 + n)
        case 1:
            table.apply([(("config", "c1", "00001"), config(1, partitions, 2 + n))], 20 + n)
        case 2:
            table.apply([(("nodes", "n2"), replace(NODES[1], rpc=f"n2:{n}"))], 20 + n)
        case 3:
            table.apply([(("namespaces", "ns2"), None)], 20 + n)
        case _:
            table.know_leader(2, "n3", first_epoch(50 + n))


def test_a_change_of_one_record_writes_one_row_however_many_there_are(tmp_path: Path) -> None:
    written = []
    for partitions, namespaces in ((16, 10), (8192, 10_000)):
        store = opened(tmp_path / f"{partitions}")
        stored_topology = StoredTopology(store, "c")
        fill(stored_topology.table, partitions, namespaces)
        stored_topology.keep()
        sizes = []
        for n in range(5):
            before = stored_topology.bytes_written
            change(stored_topology.table, n, partitions)
            stored_topology.keep()
            sizes.append(stored_topology.bytes_written - before)
        written.append(sizes)
        store.abandon()
    assert written[0] == pytest.approx(written[1], abs=12)  # names and numbers have their lengths
    assert max(written[1]) < 500


def test_what_was_kept_comes_back_after_each_change(tmp_path: Path) -> None:
    store = opened(tmp_path)
    stored_topology = StoredTopology(store, "c")
    fill(stored_topology.table, 4, 5)
    for n in range(12):
        stored_topology.keep()
        if n % 4 == 3:
            store.run_flush()
        store.sync_now()
        wanted = stored_topology.table.to_wire()
        store.abandon()
        store = opened(tmp_path)
        stored_topology = StoredTopology(store, "c")
        assert stored_topology.table.to_wire() == wanted
        assert stored_topology.kept == stored_topology.table.revision
        assert stored_topology.table.complete
        change(stored_topology.table, n, 4)
    store.abandon()


def test_what_a_build_from_before_kept_is_read_until_there_are_rows(tmp_path: Path) -> None:
    told = TopologyTable("c")
    fill(told, 4, 5)
    store = opened(tmp_path)
    store.append(Fact(FACT_TOPOLOGY, told.to_wire()))
    store.sync_now()
    stored_topology = StoredTopology(store, "c")
    assert stored_topology.table.to_wire() == told.to_wire()
    stored_topology.table.apply([(("namespaces", "ns1"), None)], 11)
    stored_topology.keep()
    assert store.facts[FACT_TOPOLOGY] is None, "it is not carried along"
    store.sync_now()
    store.abandon()
    store = opened(tmp_path)
    assert StoredTopology(store, "c").table.to_wire() == stored_topology.table.to_wire()
    later = TopologyTable.from_wire(stored_topology.table.to_wire())
    later.apply([(("nodes", "n4"), replace(NODES[0], node="n4"))], 50)
    store.append(Fact(FACT_TOPOLOGY, later.to_wire()))  # one ran here meanwhile
    store.sync_now()
    store.abandon()
    store = opened(tmp_path)
    again = StoredTopology(store, "c")
    assert again.table.to_wire() == later.to_wire()
    again.keep()
    store.sync_now()
    store.abandon()
    store = opened(tmp_path)
    assert StoredTopology(store, "c").table.to_wire() == later.to_wire()
    store.abandon()


def test_a_row_that_makes_no_sense_is_left_out_and_written_anew(tmp_path: Path) -> None:
    store = opened(tmp_path)
    stored_topology = StoredTopology(store, "c")
    fill(stored_topology.table, 4, 5)
    stored_topology.keep()
    store.keep_rows(
        {b"nodes/n1": b"\xc1", b"namespaces/ns1": msgpack.packb(["ns1", 7]), b"more/x": b"1"}, False
    )
    store.sync_now()
    store.abandon()
    store = opened(tmp_path)
    again = StoredTopology(store, "c")
    assert sorted(again.table.left_out) == ["namespaces/ns1", "nodes/"]
    assert again.table.complete
    again.keep()
    store.sync_now()
    store.abandon()
    store = opened(tmp_path)
    last = StoredTopology(store, "c")
    assert not last.table.left_out
    assert set(last.table.nodes) == {"n2", "n3"}
    store.abandon()


def test_rows_are_what_the_table_tells() -> None:
    table = TopologyTable("c")
    fill(table, 4, 5)
    rows = {key_of(row): msgpack.packb(table.row(row)) for row in table.rows()}
    assert table_of({b"head": msgpack.packb(table.head()), **rows}).to_wire() == table.to_wire()
