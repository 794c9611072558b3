"""Rows kept beside the facts: a change counts whole or not at all, and a build that does not know them spoils nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from metastore.errors import CorruptState
from metastore.storage.kept import FACT_ROWS, KeptRows, parts_of
from metastore.storage.records import Fact
from metastore.storage.state import MAP_TABLE, META_TABLE, NODE_ROW
from metastore.storage.store import Store
from tests.unit.storage.engines import rows_in
from tests.unit.storage.test_store import SMALL, open_store

ROWS: dict[bytes, bytes | None] = {b"nodes/%d" % n: b"%d" % n * 100 for n in range(50)}
OPTIONS = replace(SMALL, segment_bytes=8 << 10)


def flushed(store: Store) -> None:
    store.slots.changed.add(0) if 0 in store.partitions else store.add_partition(0)
    store.run_flush()


def test_many_rows_are_several_records_and_one_change() -> None:
    parts = list(parts_of(ROWS, True, 1000))
    assert len(parts) > 3
    for cut in range(len(parts)):
        kept = KeptRows()
        kept.take([False, 0, False, {b"head": b"before"}])
        for part in parts[:cut]:
            kept.take(part)
        assert len(kept) == 1, "a change that is cut off is none"
        kept.take([False, 0, False, {b"head": b"after"}])
        assert kept.found() == {b"head": b"after"}, "and the next one is only its own"
    kept = KeptRows()
    kept.take([False, 0, False, {b"head": b"before"}])
    for part in parts:
        kept.take(part)
    assert kept.found() == ROWS


def test_rows_come_back_from_the_log_and_from_the_state(tmp_path: Path) -> None:
    store = open_store(tmp_path, OPTIONS)
    store.keep_rows(ROWS, complete=True)
    store.keep_rows({b"nodes/1": b"new", b"nodes/2": None}, complete=False)
    wanted = {**ROWS, b"nodes/1": b"new"}
    del wanted[b"nodes/2"]
    store.sync_now()
    store.abandon()
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == wanted
    flushed(store)
    assert len(rows_in(store.state, MAP_TABLE)) == len(wanted)
    store.keep_rows({b"nodes/3": None}, complete=False)
    del wanted[b"nodes/3"]
    flushed(store)
    store.abandon()
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == wanted
    assert FACT_ROWS not in store.facts
    store.keep_rows({b"head": b"all anew"}, complete=True)
    flushed(store)
    assert store.state.map_rows() == {b"head": b"all anew"}
    store.abandon()


def test_a_change_costs_its_own_size(tmp_path: Path) -> None:
    """In the log, in the state and in the node's row, however much is kept."""
    sizes = []
    for count in (1, 50):
        store = open_store(tmp_path / f"{count}", OPTIONS)
        store.keep_rows(dict(list(ROWS.items())[:count]), complete=True)
        flushed(store)
        before = store.log.bytes_written
        store.keep_rows({b"nodes/0": b"new"}, complete=False)
        store.sync_now()
        store.add_partition(1)
        store.checkpoints.freeze()
        flush = store.checkpoints.waiting
        assert flush is not None
        rows = [(key, value) for _, key, value in flush.rows]
        rows.append((NODE_ROW, store.transactions.node_row(store.facts, 0, 0, flush.kept)))
        sizes.append((store.log.bytes_written - before, sum(len(k) + len(v or b"") for k, v in rows)))
        store.abandon()
    assert sizes[0] == sizes[1]


def test_a_row_that_is_lost_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path, OPTIONS)
    store.keep_rows(ROWS, complete=True)
    flushed(store)
    store.state.write([(MAP_TABLE, b"nodes/7", None)])
    store.abandon()
    with pytest.raises(CorruptState, match="49 rows of the topology, and there were 50"):
        open_store(tmp_path, OPTIONS)


def as_a_build_from_before(path: Path) -> None:
    """It takes changes for a fact that it does not know, and leaves the number of rows out of the node's row."""
    store = open_store(path, OPTIONS)
    row = msgpack.unpackb(
        store.transactions.node_row(store.facts, store.log.durable_seq, store.log.durable_block, 0)
    )
    del row["rows"]
    row["facts"][FACT_ROWS] = [False, 0, False, {b"nodes/4": b"the last change that it saw"}]
    store.state.write([(META_TABLE, NODE_ROW, msgpack.packb(row))])
    store.abandon()


def test_what_a_build_from_before_had_a_hand_in_is_dropped(tmp_path: Path) -> None:
    store = open_store(tmp_path, replace(OPTIONS, log_retention_bytes=0))
    store.keep_rows(ROWS, complete=True)
    flushed(store)
    for n in range(200):  # until what began it is in the log no more
        store.keep_rows({b"nodes/1": b"%d" % n * 100}, complete=False)
        flushed(store)
    assert store.log.files.segments[0].number > 1
    store.abandon()
    as_a_build_from_before(tmp_path)
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == {}
    assert FACT_ROWS not in store.facts
    store.keep_rows({b"head": b"h"}, complete=True)
    flushed(store)
    assert store.state.map_rows() == {b"head": b"h"}
    store.abandon()
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == {b"head": b"h"}
    store.abandon()


def test_the_first_change_after_a_build_from_before_needs_no_flush(tmp_path: Path) -> None:
    store = open_store(tmp_path, OPTIONS)
    store.abandon()
    as_a_build_from_before(tmp_path)
    store = open_store(tmp_path, OPTIONS)
    store.keep_rows(ROWS, complete=True)
    store.keep_rows({b"nodes/1": None}, complete=False)
    store.sync_now()
    store.abandon()
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == {key: row for key, row in ROWS.items() if key != b"nodes/1"}
    store.abandon()


@pytest.mark.parametrize(
    "wrong", [-1, None, "x", [], [1, 2, 3], [True, 0, False, {"text": b""}], [True, 0, False, {b"": b""}]]
)
def test_a_change_that_makes_no_sense_is_dropped(tmp_path: Path, wrong: Any) -> None:
    store = open_store(tmp_path, OPTIONS)
    store.keep_rows({b"head": b"h"}, complete=True)
    store.append(Fact(FACT_ROWS, wrong))
    store.sync_now()
    store.abandon()
    store = open_store(tmp_path, OPTIONS)
    assert store.kept.found() == {b"head": b"h"}
    store.abandon()


async def test_facts_alone_let_the_log_go(tmp_path: Path) -> None:
    """A node that holds nothing, or nothing that changes, keeps no more log than it is told to."""
    store = open_store(tmp_path, replace(OPTIONS, log_retention_bytes=16 << 10))
    for n in range(2000):
        store.keep_rows({b"nodes/1": b"%d" % n * 20}, complete=False)
        store.sync_now()
        if store.checkpoints.is_due:
            store.run_flush()
    assert store.log.files.total_bytes() <= 32 << 10
    store.abandon()
