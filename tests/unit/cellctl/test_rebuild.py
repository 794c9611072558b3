"""What etcd's records are rebuilt to, by what stores promised and nodes remember (R13): every case by hand, nothing running."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cellctl.rebuild import TERMS_AHEAD, Etcd, Rebuild, compute
from cellctl.reports import Held, Report
from metastore.coordination.interface import KV, Compare, Delete, Put
from metastore.errors import InvalidRequest
from metastore.layout import (
    CellRecord,
    ConfigRecord,
    HistoryRecord,
    Layout,
    LineageRecord,
    MoveRecord,
    NodeRecord,
    SplitRecord,
    first_epoch,
    term_of,
)
from metastore.topology import TopologyTable

LAYOUT = Layout("c")
MEMBERS = tuple((f"n{i}", f"s{i}") for i in (1, 2, 3))
END = 1 << 64
OLD, NEW = 0xA, 0xB


def config(p: int = 0, term: int = 5, **changed: Any) -> ConfigRecord:
    return replace(ConfigRecord(p, 0, END, first_epoch(term), "n1", MEMBERS), **changed)


def held(record: ConfigRecord | None, sealed: int | None = None, *, leads: bool = False, p: int = 0) -> Held:
    epoch = record.epoch if record is not None else 0
    return Held(record.partition if record else p, epoch if sealed is None else sealed, leads, False, record)


def report(i: int, *parts: Held, **changed: Any) -> Report:
    table = TopologyTable("c")
    node = NodeRecord(f"n{i}", "c1", f"s{i}", f"127.0.0.1:{i}", f"127.0.0.1:1{i}", "", 1, f"run{i}")
    table.nodes[node.node] = node
    table.revision = 90 + i
    found = Report(
        node, "confirmed", OLD, 100 + i, 0, 0, "gone", False, {h.id: h for h in parts}, table, None, 0
    )
    return replace(found, **changed)


def etcd(records: dict[str, bytes] | None = None, *, cluster_id: int = NEW, revision: int = 7) -> Etcd:
    kvs = {LAYOUT.root + k: KV(LAYOUT.root + k, v, 3, 3) for k, v in (records or {}).items()}
    return Etcd(cluster_id, revision, kvs)


def rebuilt(*reports: Report, there: Etcd | None = None, **more: Any) -> Rebuild:
    return compute(LAYOUT, there or etcd(), reports, **more)


def written(result: Rebuild) -> dict[str, bytes | None]:
    """Key below the root -> what it is to be."""
    found: dict[str, bytes | None] = {}
    for step in result.steps:
        for op in step.ops:
            assert isinstance(op, Put | Delete)
            if op.key.startswith(LAYOUT.root):
                found[op.key[len(LAYOUT.root) :]] = op.value if isinstance(op, Put) else None
    return found


def test_a_partition_goes_on_with_its_leader_above_every_term_ever_sealed() -> None:
    claimed = config().epoch + 3  # R16: by restarts of the term
    result = rebuilt(
        report(1, held(config(), leads=True)),  # one that was deposed, and does not know
        report(2, held(config(), claimed, leads=True)),
        report(3, held(config(), first_epoch(9))),
    )
    cell, record = result.configs[0]
    assert cell == "c1"
    assert record == config(term=9 + TERMS_AHEAD, leader="n2")
    assert ConfigRecord.from_json(written(result)["config/c1/00000"] or b"") == record
    assert written(result)["leader/c1/00000"] is None


def test_terms_that_others_name_count_whoever_says_so() -> None:
    old = report(3, held(config(), first_epoch(40)), identity="refused")
    result = rebuilt(report(1, held(config())), report(2, held(config())), old)
    assert term_of(result.configs[0][1].epoch) == 40 + TERMS_AHEAD
    there = etcd({"config/c1/00000": config(term=70).to_json()})
    result = rebuilt(report(1, held(config())), report(2, held(config())), there=there)
    assert term_of(result.configs[0][1].epoch) == 70 + TERMS_AHEAD


def test_without_a_leader_none_is_named() -> None:
    result = rebuilt(report(1, held(config())), report(2, held(config())))
    assert result.configs[0][1].leader is None


@pytest.mark.parametrize(
    "others",
    [
        [],
        [report(2, held(config()), identity="refused")],
        [report(2, held(config()), identity="starting")],
        [report(2, held(config()), node=replace(report(2).node, store_id="another"))],
    ],
    ids=["silent", "an old copy", "not judged yet", "another store"],
)
def test_a_partition_without_a_quorum_is_refused(others: list[Report]) -> None:
    result = rebuilt(report(1, held(config(), leads=True)), *others)
    assert list(result.refused) == [0]
    assert "no quorum" in result.refused[0]
    assert "n2, n3" in result.refused[0]
    assert not result.steps
    assert result.lineage is None


def test_a_store_that_holds_nothing_yet_counts_as_having_answered() -> None:
    result = rebuilt(report(1, held(config(), leads=True)), report(2))
    assert result.configs[0][1].leader == "n1"


def test_it_can_be_left_out_and_then_has_no_record_that_is_behind() -> None:
    low, high = config(0, hi=1 << 63), config(1, lo=1 << 63, replicas=(("n7", "s7"), ("n8", "s8")))
    there = etcd({"config/c1/00001": config(1, term=1, lo=1 << 63).to_json()})
    nodes = [report(i, held(low), held(high)) for i in (1, 2)]
    assert list(rebuilt(*nodes, there=there).refused) == [1]
    result = rebuilt(*nodes, there=there, without=[1])
    assert result.left_out == [1]
    assert written(result)["config/c1/00001"] is None
    assert written(result)["config/c1/00000"]
    assert result.lineage


def test_a_joint_config_needs_both_quorums() -> None:
    joint = config(term=6, joint=(("n4", "s4"), ("n5", "s5"), ("n6", "s6")))
    old = [report(i, held(joint)) for i in (1, 2)]
    assert "no quorum" in rebuilt(*old).refused[0]
    result = rebuilt(*old, report(4, held(joint)), report(5, held(None)))
    assert result.configs[0][1].joint == joint.joint, "the move goes on, or back, by itself"


def test_the_newest_config_counts_and_not_that_of_most() -> None:
    moved = config(term=7, replicas=(("n4", "s4"), ("n5", "s5"), ("n6", "s6")))
    old = [report(i, held(config())) for i in (1, 2, 3)]
    assert "n4" in rebuilt(*old, report(5, held(moved))).refused[0]
    result = rebuilt(*old, report(5, held(moved)), report(6, held(moved)))
    assert result.configs[0][1].replicas == moved.replicas


def test_what_was_split_off_ends_its_parent_whether_etcd_knew_or_not() -> None:
    child = config(4, term=6, lo=1 << 62, parent=(0, first_epoch(5), 17))
    grandchild = config(6, term=8, lo=1 << 63, parent=(4, first_epoch(7), 3))
    splits = {
        "splits/00000": SplitRecord(0, 4, 1 << 62).to_json(),
        "splits/00006": SplitRecord(6, 9, 3 << 62).to_json(),
    }
    seen = {k: v.decode() for k, v in splits.items()}
    result = rebuilt(
        report(1, held(config(), leads=True), held(child, leads=True), held(grandchild)),
        report(2, held(config()), mirror=seen, mirror_revision=90),
    )
    ranges = {p: (c.lo, c.hi) for p, (_, c) in result.configs.items()}
    assert ranges == {0: (0, 1 << 62), 4: (1 << 62, 1 << 63), 6: (1 << 63, END)}
    assert written(result)["next_partition"] == b"7"
    assert "splits/00000" not in written(result), "it is done"
    assert written(result)["splits/00006"], "it is not"


def test_a_gap_is_refused_whole() -> None:
    low = config(0, hi=1 << 63)
    with pytest.raises(InvalidRequest, match="end at 8000000000000000"):
        rebuilt(report(1, held(low)), report(2, held(low)))


def test_stores_that_disagree_are_refused() -> None:
    result = rebuilt(report(1, held(config())), report(2, held(config(leader="n2"))))
    assert "disagree" in result.refused[0]


def test_two_etcds_at_once_are_refused() -> None:
    follows = report(2, held(config()), untrusted="", connected=True)
    with pytest.raises(InvalidRequest, match="n2 follows another etcd"):
        rebuilt(report(1, held(config())), follows)


def test_nothing_is_done_when_nobody_distrusts() -> None:
    trusting = [report(i, held(config()), untrusted="", cluster_id=NEW) for i in (1, 2, 3)]
    assert not rebuilt(*trusting).needed


def test_the_lineage_names_all_that_was_known() -> None:
    before = LineageRecord(3, OLD, 50, (1, 2))
    result = rebuilt(
        report(1, held(config()), number=4),
        report(2, held(config()), cluster_id=0xC, revision=1000),
        there=etcd({"lineage": before.to_json()}),
    )
    made = result.lineage
    assert made is not None
    assert (made.number, made.cluster_id, made.base) == (5, NEW, 1000)
    assert set(made.replaces) == {OLD, 0xC, 1, 2}
    assert result.steps[-1].what == "lineage", "last of all"


def test_a_rebuilding_has_a_number_that_none_had() -> None:
    """Also where only the record knows: of another etcd than this one, or of this."""
    for there in (OLD, NEW):
        before = LineageRecord(3, there, 50, (OLD,))
        reports = [report(i, held(config())) for i in (1, 2)]
        made = rebuilt(*reports, there=etcd({"lineage": before.to_json()})).lineage
        assert made is not None
        assert made.number == 4


def test_every_record_is_compared_with_what_was_read() -> None:
    there = etcd({"config/c1/00000": config(term=2).to_json(), "nodes/n1": b"{}", "cells/c1": b"[]"})
    result = rebuilt(*(report(i, held(config())) for i in (1, 2, 3)), there=there)
    compared = {c.key: c for step in result.steps for c in step.compares}
    for key, kv in there.kvs.items():
        assert compared[key] == Compare.mod_revision_is(key, kv.mod_revision)
    for step in result.steps:
        assert LAYOUT.root + step.what in {c.key for c in step.compares}, step.what
        assert all(c == Compare.absent(c.key) for c in step.compares if c.key not in there.kvs)


def test_records_that_are_good_stay_when_it_is_done_again() -> None:
    """A node was away when the others went over, and knows of something later."""
    there = etcd(
        {
            "lineage": LineageRecord(1, NEW, 200, (OLD,)).to_json(),
            "config/c1/00000": config(term=30).to_json(),
        },
        revision=50,
    )
    followed = {"cluster_id": NEW, "revision": 240, "base": 200, "number": 1, "untrusted": ""}
    good = [report(i, held(config(term=30), leads=i == 1), **followed) for i in (1, 2)]
    result = rebuilt(*good, report(3, held(config(term=5)), revision=210), there=there)
    assert list(result.kept) == [0]
    assert not result.configs
    assert result.lineage is not None
    assert (result.lineage.number, result.lineage.base) == (2, 250)
    assert not rebuilt(*good, report(3, held(config(term=5)), revision=199), there=there).needed, "by itself"
    sealed = report(3, held(config(term=5), first_epoch(31)), revision=210)
    assert list(rebuilt(*good, sealed, there=there).configs) == [0]


def test_what_only_etcd_had_comes_from_who_saw_it_last() -> None:
    move = MoveRecord(0, "c1", MEMBERS)
    seen = {
        "cells/c1": CellRecord(2.0).to_json().decode(),
        "drained/n9": "{}",
        "moves/00000": move.to_json().decode(),
        "cells/bad": "7",
    }
    older = {"paused": "{}"}
    there = etcd(
        {
            "drained/n1": b"{}",
            "namespaces/gone": b"{}",
            "unknown/kind": b"{}",
            "splits/00000": b"7",
            "features": b"x",
        }
    )
    result = rebuilt(
        report(1, held(config()), mirror=older, mirror_revision=80),
        report(2, held(config()), mirror=seen, mirror_revision=95),
        report(3, untrusted="", cluster_id=NEW, mirror={}, mirror_revision=2000),  # of the empty etcd
        there=there,
    )
    found = written(result)
    assert CellRecord.from_json(found["cells/c1"] or b"").weight == 2.0
    assert found["drained/n9"] == b"{}"
    assert found["moves/00000"] == move.to_json()
    assert found["drained/n1"] is None
    assert found["namespaces/gone"] is None
    assert not {"paused", "cells/bad", "unknown/kind", "splits/00000", "features"} & found.keys()


def test_the_feature_level_never_falls() -> None:
    nodes = [report(1, held(config())), report(2, held(config()), level=3)]
    assert written(rebuilt(*nodes))["features"] == b'{"level":3}'
    assert written(rebuilt(*nodes, backup={"features": b'{"level":4}'}))["features"] == b'{"level":4}'
    kept = etcd({"features": b'{"level":5}'})
    assert "features" not in written(rebuilt(*nodes, there=kept)), "it stays"
    assert "features" not in written(rebuilt(report(1, held(config())), report(2))), "none has been raised"


def test_a_backup_fills_in_what_nobody_remembers() -> None:
    backup = {
        "cells/c1": CellRecord(3.0).to_json(),
        "drained/n2": b"{}",
        "config/c1/00000": config(term=1).to_json(),
        "moves/00000": MoveRecord(0, "c1", MEMBERS).to_json(),
    }
    nodes = [report(1, held(config())), report(2, held(config()))]
    found = written(rebuilt(*nodes, backup=backup))
    assert CellRecord.from_json(found["cells/c1"] or b"").weight == 3.0
    assert found["drained/n2"] == b"{}"
    assert "moves/00000" not in found, "an old intention"
    assert term_of(ConfigRecord.from_json(found["config/c1/00000"] or b"").epoch) == 5 + TERMS_AHEAD
    without = rebuilt(*nodes)
    assert any("no node remembers" in text for text in without.notes)
    assert CellRecord.from_json(written(without)["cells/c1"] or b"") == CellRecord()


def test_a_generation_of_history_is_the_stores_whatever_etcd_says() -> None:
    """R19: an etcd of before knows a lower one, and a leader that was deposed too."""
    new, old = config(term=8, generation=3), config(term=5, generation=2)
    there = etcd({"config/c1/00000": config(term=4, generation=1).to_json()})
    result = rebuilt(
        report(1, held(old, leads=True)), report(2, held(new)), report(3, held(new)), there=there
    )
    assert result.configs[0][1].generation == 3


def event(p: int, term: int) -> HistoryRecord:
    return HistoryRecord(p, first_epoch(term), "c1", "n1", ("n1",), "election", "test", 1)


def test_events_come_back_from_a_backup_and_take_the_place_of_none() -> None:
    nodes = [report(i, held(config())) for i in (1, 2, 3)]
    made = LAYOUT.history(0, first_epoch(5 + TERMS_AHEAD))
    there = LAYOUT.history(0, first_epoch(6))
    lost = {LAYOUT.history(p, first_epoch(t)): event(p, t).to_json() for p in range(9) for t in range(7, 20)}
    past = {
        **lost,
        there: event(0, 6).to_json(),
        made: event(0, 5 + TERMS_AHEAD).to_json(),
        LAYOUT.history(1, first_epoch(2)): b"nonsense",
        LAYOUT.history(1, first_epoch(3)): event(2, 3).to_json(),  # in another's place
        "/elsewhere": event(1, 1).to_json(),
    }
    result = rebuilt(*nodes, there=replace(etcd(), past=frozenset({there})), past=past)
    steps = [step for step in result.steps if step.what == "history"]
    puts = {op.key: op.value for step in steps for op in step.ops if isinstance(op, Put)}
    assert puts == lost
    assert all(len(step.ops) <= 100 for step in steps)
    assert [c for step in steps for c in step.compares] == [Compare.absent(key) for key in sorted(lost)]
    assert result.steps[-1].what == "lineage"
