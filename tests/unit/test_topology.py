"""The topology table: higher epochs win, from wherever they come, and never go down (I7)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.errors import InvalidRequest, Unavailable
from metastore.keys import PartitionMap, storage_key
from metastore.layout import ConfigRecord, LeaderRecord, NodeRecord, to_json
from metastore.topology import Placement, TopologyTable, placement_to_plain

MEMBERS = (("n1", "s1"), ("n2", "s2"), ("n3", "s3"))


def config(p: int, count: int, epoch: int, leader: str | None) -> ConfigRecord:
    width = (1 << 64) // count
    return ConfigRecord(p, p * width, (p + 1) * width, epoch, leader, MEMBERS)


def table(count: int = 2) -> TopologyTable:
    made = TopologyTable("c")
    for p in range(count):
        made.apply_kv(("config", "c1", str(p)), config(p, count, 1 << 16, "n1").to_json(), 5 + p)
    return made


def test_incomplete_until_every_point_is_covered() -> None:
    made = TopologyTable("c")
    made.apply_kv(("config", "c1", "0"), config(0, 2, 0, None).to_json(), 5)
    assert not made.complete
    with pytest.raises(Unavailable):
        made.route(storage_key("n", "k"))
    made.apply_kv(("config", "c1", "1"), config(1, 2, 0, None).to_json(), 6)
    assert made.complete
    key = storage_key("n", "k")
    assert made.route(key).id == PartitionMap.even(2).of(key)


def test_hints_win_by_epoch_only() -> None:
    made = table()
    assert not made.apply_hint(0, "n2", 1 << 16), "the same epoch is no news"
    assert made.apply_hint(0, "n2", 1 << 16 | 1)
    made.apply_kv(("leader", "c1", "0"), LeaderRecord("n1", "i", 1 << 16).to_json(), 99)
    made.apply_kv(("config", "c1", "0"), config(0, 2, 1 << 16, "n1").to_json(), 100)
    assert (made.partitions[0].leader, made.partitions[0].epoch) == ("n2", 1 << 16 | 1)
    made.apply_kv(("config", "c1", "0"), config(0, 2, 2 << 16, "n3").to_json(), 101)
    assert made.partitions[0].leader == "n3"
    assert not made.apply_hint(7, "n1", 1 << 40), "of a partition nobody knows"
    assert made.revision == 101


def test_wire_form_comes_back() -> None:
    made = table()
    made.apply_kv(("nodes", "n1"), to_json(NodeRecord("n1", "c1", "s1", "h:1", "h:2", "z")), 9)
    again = TopologyTable.from_wire(made.to_wire())
    assert again.to_wire() == made.to_wire()
    assert again.address("n1") == "h:1"
    assert again.address("n9") is None
    assert again.cell_of(1) == "c1"


@pytest.mark.parametrize(
    "raw", [None, [], {}, {"cluster": "c", "revision": 0, "nodes": [{}], "partitions": []}]
)
def test_what_is_no_table(raw: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a topology table"):
        TopologyTable.from_wire(raw)


STEP = st.tuples(
    st.sampled_from(["hint", "config", "leader", "merge"]),
    st.integers(0, 1),
    st.integers(1, 6),
    st.sampled_from(["n1", "n2", "n3"]),
)


@given(st.lists(STEP, max_size=20))
def test_epochs_never_go_down(steps: list[tuple[str, int, int, str]]) -> None:
    made, revision = table(), 10
    for kind, p, epoch, leader in steps:
        before = {i: placement.epoch for i, placement in made.partitions.items()}
        revision += 1
        if kind == "hint":
            made.apply_hint(p, leader, epoch << 16)
        elif kind == "config":
            made.apply_kv(("config", "c1", str(p)), config(p, 2, epoch << 16, leader).to_json(), revision)
        elif kind == "leader":
            made.apply_kv(
                ("leader", "c1", str(p)), LeaderRecord(leader, "i", epoch << 16).to_json(), revision
            )
        else:
            other = table()
            other.apply_hint(p, leader, epoch << 16)
            other.revision = revision if epoch % 2 else 0
            made.merge(other)
        assert all(made.partitions[i].epoch >= e for i, e in before.items())
        assert made.complete


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for key, part in items for leaf in leaves(part, (*path, key)))]
    return [path]


@pytest.mark.parametrize("instead", [None, "x", -1, 7.5, [], {}, [[]], "ffffffffffffffffffff"])
def test_what_is_no_table_is_told(instead: Any) -> None:
    """Any part of a table becomes something else: it is refused, or can be asked and merged like another."""
    good = table()
    good.apply_kv(("nodes", "n1"), to_json(NodeRecord("n1", "c1", "s1", "h:1", "h:2", "z")), 9)
    good.apply_kv(("namespaces", "ns"), b'{"routing":"key"}', 10)
    for path in leaves(good.to_wire())[1:]:
        wire = good.to_wire()
        at: Any = wire
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = instead
        try:
            read = TopologyTable.from_wire(wire)
        except InvalidRequest:
            continue
        read.complete  # noqa: B018
        read.apply_hint(0, "n2", 5)
        again = table()
        again.merge(read)
        again.complete  # noqa: B018
        TopologyTable.from_wire(again.to_wire())


def family_of_three() -> list[Placement]:
    """Partition 0, split in the middle (1), and its lower half again (2)."""
    quarter = 1 << 62
    return [
        Placement(0, 0, quarter, "c1", ("a",), "a", 3 << 16),
        Placement(2, quarter, 2 * quarter, "c1", ("a",), "a", 3 << 16, (0, 90)),
        Placement(1, 2 * quarter, 4 * quarter, "c1", ("a",), "a", 2 << 16, (0, 50)),
    ]


def before_all_splits() -> TopologyTable:
    table = TopologyTable()
    table._put(Placement(0, 0, 1 << 64, "c1", ("a",), "a", 1 << 16))
    return table


def test_a_family_is_learned_whole() -> None:
    """R18: without etcd a client hears of splits from who made them, and every key has a partition all the time."""
    for order in itertools.permutations(family_of_three()):
        table = before_all_splits()
        assert table.learn_plain([placement_to_plain(p) for p in order])
        assert [p.id for p in table.in_order()] == [0, 2, 1]
        assert not table.learn_plain([placement_to_plain(p) for p in order]), "that is no news"
    assert not before_all_splits().learn_plain("nonsense")
    assert not before_all_splits().learn_plain([{"id": 1}])


def test_an_older_word_does_not_widen_what_was_split() -> None:
    """etcd's record, and other tables, may be older than what a replica said."""
    table, older = before_all_splits(), before_all_splits()
    for placement in family_of_three():
        table.learn(placement)
    older.revision = 10**6
    table.merge(older)
    record = ConfigRecord(0, 0, 1 << 64, 9 << 16, "a", (("a", "s"),))
    table.apply_kv(("config", "c1", "00000"), record.to_json(), 10**6 + 1)
    assert table.complete
    assert [(p.id, p.hi) for p in table.in_order()] == [(0, 1 << 62), (2, 1 << 63), (1, 1 << 64)]
    assert TopologyTable.from_wire(table.to_wire()).complete


def test_members_whose_stores_are_gone_are_missing() -> None:
    """R13: health counts stores, not names; also in a table that went over the wire."""
    made = TopologyTable("c")
    members = (("n1", "s1"), ("n2", "s2"), ("n3", "s3"))
    made.apply_kv(("config", "c1", "00000"), ConfigRecord(0, 0, 1 << 64, 1, None, members).to_json(), 1)
    for node, store in (("n1", "s1"), ("n2", "new")):
        made.apply_kv(("nodes", node), to_json(NodeRecord(node, "c1", store, "h:1", "h:2", "", 3, "i")), 2)
    for table in (made, TopologyTable.from_wire(made.to_wire())):
        assert table.missing(table.partitions[0]) == ("n2",)
    old = made.to_wire()
    for p in old["partitions"]:
        del p["stores"]
    for n in old["nodes"]:
        del n["generation"], n["incarnation"]
        n["a later version"] = "says more"
    table = TopologyTable.from_wire(old)
    assert table.missing(table.partitions[0]) == ()
    assert table.nodes["n1"].generation == 0
