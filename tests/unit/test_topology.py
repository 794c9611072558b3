"""The topology table: higher epochs win, from wherever they come, and never go down (I7)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.errors import InvalidRequest, Unavailable
from metastore.fields import BadRecord
from metastore.keys import PartitionMap, storage_key_of
from metastore.layout import ConfigRecord, LeaderRecord, NodeRecord, to_json
from metastore.namespaces import Policy
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
        made.route(storage_key_of("n", "k"))
    made.apply_kv(("config", "c1", "1"), config(1, 2, 0, None).to_json(), 6)
    assert made.complete
    key = storage_key_of("n", "k")
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
    "raw", [None, [], {}, {"cluster": "c", "revision": 0, "nodes": {}, "partitions": []}]
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
    record = ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", (("a", "s"),))
    table.apply([(("config", "c1", "00000"), record)], 0)
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


# --- what was removed goes, everywhere ------------------------------------------------------------------------


def key_of(p: int, cell: str = "c1") -> tuple[str, ...]:
    return ("config", cell, f"{p:05d}")


def node_of(name: str) -> tuple[tuple[str, ...], NodeRecord]:
    return ("nodes", name), NodeRecord(name, "c1", f"s-{name}", "h:1", "h:2")


def known(revision: int = 10, extra: tuple[str, ...] = ()) -> TopologyTable:
    """Two partitions of n1 to n3, those nodes and ``extra``, and namespace ``ns``."""
    made = TopologyTable("c")
    records: list[tuple[tuple[str, ...], Any]] = [(key_of(p), config(p, 2, 1 << 16, "n1")) for p in range(2)]
    records += [node_of(name) for name in ("n1", "n2", "n3", *extra)]
    made.apply([*records, (("namespaces", "ns"), Policy(routing="key"))], revision)
    return made


def parts_of(table: TopologyTable) -> tuple[set[str], set[int], set[str]]:
    return set(table.nodes), set(table.partitions), set(table.namespaces)


def test_what_is_removed_goes() -> None:
    made = known(extra=("n4",))
    made.apply([(("nodes", "n4"), None), (("namespaces", "ns"), None)], 11)
    assert parts_of(made) == ({"n1", "n2", "n3"}, {0, 1}, set())
    assert made.rule("ns") == 0


@pytest.mark.parametrize("passed_on", [True, False], ids=["over the wire", "as it is"])
def test_what_a_later_table_lacks_was_removed(passed_on: bool) -> None:
    """Also when it went through a third table, a fact or a file."""
    old, new = known(10, ("n4",)), known(11)
    new.apply([(("namespaces", "ns"), None)], 12)
    if passed_on:
        old, new = (TopologyTable.from_wire(t.to_wire()) for t in (old, new))
    ours = TopologyTable("c")
    ours.merge(old)
    assert parts_of(ours) == ({"n1", "n2", "n3", "n4"}, {0, 1}, {"ns"})
    ours.merge(new)
    assert parts_of(ours) == ({"n1", "n2", "n3"}, {0, 1}, set())
    ours.merge(old)
    assert parts_of(ours) == ({"n1", "n2", "n3"}, {0, 1}, set()), "an older word brings nothing back"
    assert ours.revision == 12


def test_tables_of_one_revision_complete_each_other() -> None:
    """Such as those of nodes that have not heard of etcd yet."""
    ours, theirs = known(0), known(0, ("n4",))
    ours.merge(theirs)
    assert "n4" in ours.nodes
    theirs.merge(known(0))
    assert "n4" in theirs.nodes


def test_an_older_table_tells_of_newer_leaders_all_the_same() -> None:
    ours, old = known(10), known(9)
    old.apply_hint(1, "n3", 7 << 16)
    ours.merge(old)
    assert (ours.partitions[1].leader, ours.partitions[1].epoch) == ("n3", 7 << 16)


def test_a_node_that_partitions_name_is_kept_until_they_do_not() -> None:
    """Its record was removed by mistake, or before the partition's was changed."""
    made = known()
    made.apply([(("nodes", "n3"), None)], 11)
    assert made.address("n3") == "h:1"
    later = TopologyTable("c")
    later.merge(made)
    assert later.address("n3") == "h:1"
    moved = [(key_of(p), replace(config(p, 2, 2 << 16, "n1"), replicas=MEMBERS[:2])) for p in range(2)]
    made.apply(moved[:1], 12)
    assert made.address("n3") == "h:1"
    made.apply(moved[1:], 13)
    assert made.address("n3") is None
    later.merge(made)
    assert later.address("n3") is None


def test_a_node_that_comes_back_is_no_more_to_go() -> None:
    made = known()
    made.apply([(("nodes", "n3"), None), node_of("n3")], 11)
    made.apply(
        [(key_of(p), replace(config(p, 2, 2 << 16, "n1"), replicas=MEMBERS[:2])) for p in range(2)], 12
    )
    assert made.address("n3") == "h:1"


def test_what_was_removed_while_nobody_looked_goes() -> None:
    """A fact or file of before, and the first that the watch tells."""
    made = TopologyTable.from_wire(known(10, ("n4",)).to_wire())
    made.begin([key_of(0), key_of(1), *(("nodes", n) for n in ("n1", "n2", "n3"))], 50)
    assert parts_of(made) == ({"n1", "n2", "n3"}, {0, 1}, set())
    assert made.revision == 50


def test_a_partition_moves_to_another_cell_in_whatever_order_it_is_told() -> None:
    for order in ([0, 1], [1, 0]):
        made = known()
        made.apply_hint(0, "n2", 5 << 16)
        told: list[tuple[tuple[str, ...], Any]] = [
            (key_of(0, "c2"), config(0, 2, 6 << 16, "n3")),
            (key_of(0, "c1"), None),
        ]
        made.apply([told[i] for i in order], 11)
        assert made.complete
        assert made.cell_of(0) == "c2"
        assert made.partitions[0].leader == "n3"


# --- ranges that do not fit ------------------------------------------------------------------------------------

#: partition 77: over all of the ring, half of a partition, one whole partition, over a border, empty space none
MISFITS = [
    (0, 1 << 64),
    (0, 1 << 62),
    (1 << 62, 1 << 63),
    (1 << 62, 3 << 62),
    (0, 1 << 63),
    (5, 7),
    (1 << 63, 1 << 64),
]


@pytest.mark.parametrize(("lo", "hi"), MISFITS)
@pytest.mark.parametrize("parent", [None, (0, 1 << 16, 9)])
def test_a_range_that_overlaps_is_put_aside(lo: int, hi: int, parent: Any) -> None:
    bad = ConfigRecord(77, lo, hi, 9 << 16, "n1", MEMBERS, parent=parent)
    good = known()
    good.apply([(key_of(77), bad)], 11)
    fresh = TopologyTable("c")
    fresh.apply([(key_of(77), bad), *((key_of(p), config(p, 2, 1 << 16, "n1")) for p in range(2))], 11)
    client = TopologyTable("c")
    client.merge(TopologyTable.from_wire(good.to_wire()))
    for table in (good, fresh, client):
        assert [p.id for p in table.in_order()] == [0, 1]
    for table in (good, fresh):
        assert set(table.aside) == {77}
        table.apply([(key_of(1), config(1, 2, 3 << 16, "n2"))], 12)
        assert table.partitions[1].leader == "n2", "the others are followed"
        table.apply([(key_of(77), None)], 13)
        assert table.complete
        assert not table.aside
        assert [p.id for p in table.in_order()] == [0, 1]


def test_a_partition_whose_record_goes_or_shrinks_is_known_as_it_was() -> None:
    """The last good map: every key has a partition still, in tables that follow it too."""
    for gap in (None, replace(config(1, 2, 2 << 16, "n3"), lo=3 << 62)):
        made = known()
        made.apply([(key_of(1), gap)], 11)
        client = TopologyTable("c")
        client.merge(known())
        client.merge(TopologyTable.from_wire(made.to_wire()))
        for table in (made, client):
            assert [(p.id, p.lo, p.hi) for p in table.in_order()] == [(0, 0, 1 << 63), (1, 1 << 63, 1 << 64)]
        made.apply([(key_of(1), config(1, 2, 4 << 16, "n2"))], 12)
        assert made.partitions[1].leader == "n2"
        assert not made.aside


def test_a_split_goes_on_beside_a_range_that_overlaps() -> None:
    made = known()
    made.apply([(key_of(77), ConfigRecord(77, 5, 9, 1 << 16, None, MEMBERS))], 11)
    half = replace(config(0, 2, 2 << 16, "n1"), hi=1 << 62)
    child = ConfigRecord(2, 1 << 62, 1 << 63, 1 << 16, "n1", MEMBERS, parent=(0, 1 << 16, 9))
    made.apply([(key_of(0), half), (key_of(2), child)], 12)
    assert [p.id for p in made.in_order()] == [0, 2, 1]
    assert set(made.aside) == {77}


def test_a_partition_is_moved_from_a_cell_that_etcd_could_not_be_read_of() -> None:
    """What a table could not read it may lack: that is no removal."""
    old, new = known(10, ("n4",)), known(10)
    new.unreadable = {"nodes/n4", "namespaces/ns", "config/c1/00001"}
    new.revision = 20
    new._set_policy("ns", None)
    ours = TopologyTable("c")
    ours.merge(old)
    ours.merge(TopologyTable.from_wire(new.to_wire()))
    assert parts_of(ours) == ({"n1", "n2", "n3", "n4"}, {0, 1}, {"ns"})
    assert ours.unreadable == new.unreadable


def test_rows_that_make_no_sense_are_left_out_and_told() -> None:
    wire = known(10, ("n4",)).to_wire()
    wire["nodes"][3]["rpc"] = 5
    wire["namespaces"][0][1]["routing"] = 7
    wire["partitions"][1]["lo"] = "x"
    read = TopologyTable.from_wire(wire)
    assert set(read.left_out) == {"nodes/n4", "namespaces/ns", "config/?/00001"}
    ours = known(9, ("n4",))
    ours.merge(read)
    assert parts_of(ours) == ({"n1", "n2", "n3", "n4"}, {0, 1}, {"ns"})


WORDS = st.lists(
    st.tuples(
        st.sampled_from(["put", "bad", "delete", "misfit", "split", "tell", "wire"]),
        st.integers(0, 5),
    ),
    max_size=25,
)


@given(WORDS)
def test_no_history_of_records_takes_the_map_away(words: list[tuple[str, int]]) -> None:
    """Whatever happens to records: once every key had a partition, it has one, here and at who learns from here; and
    when the records are well again all is as if nothing had been."""
    made, client, revision = known(), known(), 20
    for what, n in words:
        revision += 1
        p = n % 2
        match what:
            case "put":
                made.apply([(key_of(p), config(p, 2, 1 << 16, "n1"))], revision)
            case "bad":
                with pytest.raises(BadRecord):
                    made.apply_kv(key_of(p), b"{", revision)
            case "delete":
                made.apply([(key_of([0, 1, 77, 78, 2, 3][n]), None)], revision)
            case "misfit":
                lo = n << 61
                made.apply(
                    [(key_of(77 + p), ConfigRecord(77 + p, lo, lo + (1 << 62), 1 << 16, None, MEMBERS))],
                    revision,
                )
            case "split":
                child = ConfigRecord(2 + p, (p << 63) + (1 << 62), (p + 1) << 63, 1 << 16, "n1", MEMBERS)
                narrow = replace(config(p, 2, 1 << 16, "n1"), hi=child.lo)
                made.apply([(key_of(p), narrow), (key_of(2 + p), child)], revision)
            case "tell":
                client.merge(TopologyTable.from_wire(made.to_wire()))
            case _:
                made = TopologyTable.from_wire(made.to_wire())
        assert made.complete
        assert client.complete
    made.apply([(key_of(p), None) for p in (77, 78, 2, 3)], revision + 1)
    made.apply([(key_of(p), config(p, 2, 1 << 16, "n1")) for p in range(2)], revision + 1)
    client.merge(TopologyTable.from_wire(made.to_wire()))
    for table in (made, client):
        assert [(p.id, p.lo, p.hi) for p in table.in_order()] == [(0, 0, 1 << 63), (1, 1 << 63, 1 << 64)]
        assert not table.aside
