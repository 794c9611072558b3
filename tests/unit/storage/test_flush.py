"""What goes into one flush (``transactions.flush_of``): all of a generation, and nothing of the next (R6, R18)."""

from __future__ import annotations

from collections.abc import Iterable

from metastore.core.logindex import LogIndex
from metastore.storage.engine import Slice
from metastore.storage.memory_engine import MemoryEngine
from metastore.storage.overlay import Overlay
from metastore.storage.slots import PartitionInfo
from metastore.storage.state import (
    MAP_TABLE,
    META_TABLE,
    NODE_ROW,
    TABLES,
    Meta,
    State,
    meta_key,
    metadata_write,
)
from metastore.storage.transactions import Transactions, flush_of

AT = b"\x80" + bytes(7)
KEY = bytes(8) + b"n\0k"


def partitions() -> dict[int, PartitionInfo]:
    """Partition 1 has parted with partition 2, whose records are in its slot; partition 3 is as it was."""
    metas = {
        1: Meta(4, applied=7, applied_epoch=1, end=AT),
        2: Meta(5, applied=7, applied_epoch=1, shared=4, start=AT),
        3: Meta(6, applied=2),
    }
    return {p: PartitionInfo(meta, LogIndex()) for p, meta in metas.items()}


def test_parent_child_and_the_entry_that_parted_them_are_one() -> None:
    known, generation = partitions(), Overlay()
    generation.apply(1, [(KEY, b"record")], {b"splits"})
    generation.apply(3, [], {b"nobody tells"})
    children = {2: [(b"usage", b"of the child")]}
    sources = {1: lambda key: b"as it is now: " + key}
    topology = ({b"nodes/1": b"row", b"nodes/2": None}, 9)
    flush = flush_of(known, generation, children, {1, 2}, sources, topology, seq=40)
    assert set(flush.rows) == {
        metadata_write(4, b"splits", b"as it is now: splits"),
        metadata_write(5, b"usage", b"of the child"),
        (META_TABLE, meta_key(1), known[1].meta.pack()),
        (META_TABLE, meta_key(2), known[2].meta.pack()),
        (MAP_TABLE, b"nodes/1", b"row"),
        (MAP_TABLE, b"nodes/2", None),
    }
    assert flush.slots == {1: 4}, "3 has no records in this generation"
    assert sorted(flush.applied) == [(1, 4, 7), (2, 5, 7)]
    assert (flush.seq, flush.kept, flush.changed) == (40, 9, {})


def test_what_is_applied_after_it_is_in_none_of_its_rows() -> None:
    known = partitions()
    flush = flush_of(known, Overlay(), {}, {1}, {}, ({}, 0), seq=1)
    known[1].meta.applied = 8
    (table, key, row) = flush.rows[0]
    assert row is not None
    assert (table, key, Meta.unpack(row).applied) == (META_TABLE, meta_key(1), 7)
    assert flush.applied == [(1, 4, 7)]


class Counted(MemoryEngine):
    """Notes the tables of each transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[set[str]] = []

    def write(self, slices: Iterable[Slice]) -> None:
        kept = list(slices)
        self.written.append({part.table for part in kept})
        super().write(kept)


def test_it_is_one_transaction_of_the_engine() -> None:
    engine = Counted()
    state = State(engine, create=True)
    transactions = Transactions(state, "s" * 32)
    generation = Overlay()
    generation.apply(1, [(KEY, b"record")], set())
    flush = flush_of(
        partitions(), generation, {2: [(b"usage", b"row")]}, {1, 2}, {}, ({b"a": b"b"}, 1), seq=3
    )
    transactions.flush(flush, transactions.node_row({"fact": 1}, flush.seq, 2, flush.kept))
    assert engine.written == [{*TABLES, MAP_TABLE}]
    state.renew(flush.changed)
    assert state.get(4, KEY) == b"record"
    assert state.metadata_rows(5) == [(b"usage", b"row")]
    with engine.snapshot() as snapshot:
        assert snapshot.table(META_TABLE).get(NODE_ROW) is not None
