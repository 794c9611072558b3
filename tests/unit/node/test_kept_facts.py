"""What a node has kept and cannot read: it is dropped with a warning, and the node starts (R14 is not for that)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgpack
import pytest

from metastore import fields
from metastore.config import MAX_GRANT_MS, NodeConfig
from metastore.core.configs import pack_config
from metastore.core.settings import MS
from metastore.layout import ConfigRecord, first_epoch
from metastore.node.control.agent import FACT_CLUSTER_ID, FACT_REVISION
from metastore.node.identity import FACT_GENERATIONS, FACT_REFUSED, FACT_REGISTERED
from metastore.node.node import FACT_LARGEST_GRANT, Node
from metastore.node.stored_topology import FACT_TOPOLOGY
from metastore.storage.facts import read_fact
from metastore.storage.journal import FACT_RUNS
from metastore.storage.options import StorageOptions
from metastore.storage.records import ConfigEntry, SealEntry
from metastore.storage.store import Store

WRONG: list[Any] = [-1, 0.5, "x", [[]], [1, 2, 3], {"a": 1}]
SMALL = StorageOptions(segment_bytes=1 << 20, log_retention_bytes=2 << 20, reserve_bytes=0)
#: facts that something is made of at a start
FACTS = (
    FACT_TOPOLOGY, FACT_LARGEST_GRANT, FACT_GENERATIONS, FACT_REFUSED, FACT_REGISTERED, FACT_CLUSTER_ID, FACT_REVISION,
    FACT_RUNS,
)  # fmt: skip


def start(store: Store, folder: Path) -> Node:
    config = NodeConfig(cell="c1", node="f", data_dir=str(folder), rpc="127.0.0.1:9", http="127.0.0.1:9")
    node = Node(config, store, "1")
    node.start()
    return node


@pytest.mark.parametrize("fact", FACTS)
async def test_a_fact_that_does_not_parse_is_dropped(tmp_path: Path, fact: str) -> None:
    for wrong in WRONG:
        before = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
        before.keep_fact(fact, wrong)
        await before.close()
        store = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
        assert fact in store.facts
        store.raise_generation("1")
        node = start(store, tmp_path)
        assert node.failure is None, wrong
        assert not node.topology.partitions
        await node.stop(hand_over=False)


@pytest.mark.parametrize("wrong", [7, [], [1], {"a": 1}, "x"])
async def test_a_refusal_that_does_not_parse_is_one(tmp_path: Path, wrong: Any) -> None:
    """R13: an old copy must not take part because its refusal cannot be read."""
    store = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
    store.keep_fact(FACT_REFUSED, wrong)
    node = start(store, tmp_path)
    assert node.identity.refused
    assert "set its folder aside" in node.identity.do
    await node.stop(hand_over=False)


@pytest.mark.parametrize("wrong", [None, -1, "x", []])
async def test_a_grant_that_does_not_parse_counts_as_the_largest(tmp_path: Path, wrong: Any) -> None:
    """R8: nothing is sealed before it may have passed."""
    store = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
    store.keep_fact(FACT_LARGEST_GRANT, wrong)
    node = start(store, tmp_path)
    assert node._largest_grant_ns == MAX_GRANT_MS * MS
    await node.stop(hand_over=False)


async def test_a_record_that_a_replica_kept_and_cannot_read_is_told_anew(tmp_path: Path) -> None:
    """Such as of an earlier version, which had believed it: what was sealed is sealed."""
    store = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
    record = ConfigRecord(0, 0, 1 << 64, first_epoch(1), "l", (("f", store.store_id), ("l", "sl")))
    node = start(store, tmp_path)
    node.open_partition(record)
    store.append(SealEntry(0, first_epoch(1), msgpack.packb(["l", "sl", "i"]), pack_config(record)))
    store.append(ConfigEntry(0, msgpack.packb({**record.to_plain(), "epoch": "x"})))
    store.start_sync()
    await node.stop(hand_over=False)
    store = Store.open(tmp_path, cluster="metastore", node="f", options=SMALL)
    node = start(store, tmp_path)
    assert 0 not in node.partitions
    host = node.open_partition(record)
    assert host.replica.config == record
    assert host.replica.sealed_epoch == first_epoch(1)
    await node.stop(hand_over=False)


def test_what_is_absent_and_what_is_unreadable_are_two_things(caplog: pytest.LogCaptureFixture) -> None:
    assert read_fact({}, "n", fields.whole(), 1, 2) == 1
    assert read_fact({"n": 5}, "n", fields.whole(), 1, 2) == 5
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert read_fact({"n": "x"}, "n", fields.whole(), 1, 2) == 2
    assert "is dropped" in caplog.text
