"""Slots of the state: whose rows are where, and which may go when (R17, R18)."""

from __future__ import annotations

import pytest

from metastore.core.logindex import LogIndex
from metastore.keys import END_OF_RING
from metastore.storage.partition_log import PartitionLog
from metastore.storage.slots import NO_SLOT, PartitionInfo, Slots
from metastore.storage.state import (
    DATA_TABLE,
    MAP_TABLE,
    META_TABLE,
    METADATA_TABLE,
    GarbageRange,
    Meta,
    meta_key,
    physical,
)

LOW, AT, HIGH = b"\x10" + bytes(7), b"\x80" + bytes(7), b"\xf0" + bytes(7)


def split_in_two() -> Slots:
    """Partition 2 was split off partition 1: its records lie where they always were, its aux rows in slot 4. Partition 3
    has slot 7."""
    metas = {
        1: Meta(3, applied=9, end=AT),
        2: Meta(4, applied=9, shared=3, start=AT, end=END_OF_RING),
        3: Meta(7, applied=9),
    }
    return Slots({p: PartitionInfo(meta, LogIndex()) for p, meta in metas.items()})


def test_slots_with_rows_are_never_given_out_and_those_of_nobody_are_garbage() -> None:
    slots = split_in_two()
    slots.partitions[3].meta.dropped = True
    logs = {p: PartitionLog() for p in slots.partitions}
    slots.recovered({p: info.meta for p, info in slots.partitions.items()}, logs, {3, 4, 5, 7}, free_slot=8)
    assert slots.garbage == [GarbageRange(0, 5, 5), GarbageRange(0, 7, 7)]
    assert [slots.take(), slots.take()] == [8, 9]
    assert Slots({}).take() != NO_SLOT


def test_what_goes_with_a_partition_leaves_what_is_another_s() -> None:
    slots = split_in_two()
    assert slots.rows_of(3, 11) == GarbageRange(11, 7, 7)
    assert slots.rows_of(1, 11) == GarbageRange(11, 3, 3, b"", AT)
    assert slots.rows_of(2, 11) == GarbageRange(11, 4, 3, AT, END_OF_RING)
    slots.partitions[2].meta.dropped = True
    assert slots.rows_of(1, 12) == GarbageRange(12, 3, 3), "with the last of them the whole slot"


@pytest.mark.parametrize("dropped", [False, True])
def test_rows_above_a_point_go_once_the_state_has_the_entry_that_parted_with_them(dropped: bool) -> None:
    slots = split_in_two()
    above = GarbageRange(20, NO_SLOT, 3, AT, END_OF_RING)
    slots.parted.append((1, 9, above))
    slots.partitions[1].saved = 8
    slots.discard_parted()
    assert (slots.garbage, slots.parted) == ([], [(1, 9, above)])
    slots.partitions[1].meta.dropped = dropped
    slots.partitions[1].saved = 8 if dropped else 9
    slots.discard_parted()
    assert (slots.garbage, slots.parted) == ([above], [])


@pytest.mark.parametrize(
    ("table", "key", "owners"),
    [
        (DATA_TABLE, physical(3, LOW + b"n\0k"), [1]),
        (DATA_TABLE, physical(3, AT), [2]),
        (DATA_TABLE, physical(3, HIGH + b"x" * 900), [2]),
        (DATA_TABLE, physical(4, HIGH), []),
        (DATA_TABLE, physical(7, HIGH), [3]),
        (METADATA_TABLE, physical(4, b"m"), [2]),
        (METADATA_TABLE, physical(3, b"m"), [1]),
        (METADATA_TABLE, physical(9, b"m"), []),
        (META_TABLE, meta_key(3), []),
        (MAP_TABLE, physical(7, b""), []),
    ],
)
def test_whose_a_row_is(table: str, key: bytes, owners: list[int]) -> None:
    slots = split_in_two()
    assert slots.owners(table, key) == owners
    for info in slots.partitions.values():
        info.meta.dropped = True
    assert slots.owners(table, key) == []
