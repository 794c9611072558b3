"""R13: which stores are let in, by etcd's record and by what peers remember."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metastore.core.entry import pack_entry
from metastore.core.messages import ASKED, CONFIRMED, MAX_RUNS, Lineage, Process, Run, Seen
from metastore.layout import MarkRecord, NodeRecord
from metastore.node.control.replacement import renewed
from metastore.node.identity import (
    MAX_REMEMBERED,
    Identity,
    Known,
    judge,
    judge_living,
    judge_peer,
)
from metastore.storage.records import SealEntry
from metastore.storage.store import Store

MINE = NodeRecord("n", "c", "s", "h:1", "h:2", "", 5, "e")
LINEAGE = Lineage(tuple(Run(5 - at, name, 50 - 10 * at) for at, name in enumerate("edcba")))
ELSEWHERE = replace(MINE, rpc="far:1")


def known(generation: int, incarnation: str, record: NodeRecord = MINE) -> NodeRecord:
    return replace(record, generation=generation, incarnation=incarnation)


@pytest.mark.parametrize(
    ("record", "present", "fresh", "kind"),
    [
        (None, "", True, "good"),
        (known(4, "d"), "", False, "good"),
        (known(4, "d"), "d", False, "good"),  # its address is bound here: that process is gone
        (known(1, "a"), "", False, "good"),
        (known(0, ""), "", False, "good"),  # of a version that had no generations
        (MINE, "e", False, "good"),  # registered before, and its lease was lost
        (known(6, "f"), "", False, "refused"),  # a later process ran on it
        (known(5, "x"), "", False, "refused"),  # the copy was taken before that process
        (known(4, "x"), "", False, "refused"),  # and it was started often enough to pass it
        (known(1, "x"), "", False, "refused"),
        (known(4, "d", ELSEWHERE), "d", False, "wait"),  # who is it that lives there?
        (known(4, "d", ELSEWHERE), "", False, "good"),
        (replace(MINE, store_id="t", generation=9, incarnation="t"), "", True, "good"),  # a lost store's name
        (replace(MINE, store_id="t", generation=9, incarnation="t"), "", False, "refused"),  # replaced by it
        (replace(ELSEWHERE, store_id="t", incarnation="t"), "t", True, "wait"),
        (
            replace(MINE, store_id="t", incarnation="t"),
            "t",
            True,
            "wait",
        ),  # its address may be of two machines
    ],
)
def test_what_etcd_says(record: NodeRecord | None, present: str, fresh: bool, kind: str) -> None:
    verdict = judge(MINE, LINEAGE, record, present, fresh)
    assert verdict.kind == kind
    if kind == "refused":
        assert verdict.lasting
        assert "--discard-store" in verdict.do


@pytest.mark.parametrize(
    ("store", "run", "mark", "kind"),
    [
        ("s", (4, "d"), 40, "good"),
        ("s", (4, "d"), 41, "refused"),  # it had told more when it ended elsewhere
        ("s", (1, "a"), 11, "refused"),
        ("s", (5, "e"), 99, "good"),  # of this very process, which knows best
        ("s", (4, "x"), 99, "good"),  # of none that this store knows: its record says so
        ("t", (4, "d"), 99, "good"),  # another store's
    ],
)
@pytest.mark.parametrize("record", [None, MINE])
def test_what_etcd_was_told_last(
    record: NodeRecord | None, store: str, run: tuple[int, str], mark: int, kind: str
) -> None:
    verdict = judge(MINE, LINEAGE, record, "", False, MarkRecord(store, *run, mark))
    assert verdict.kind == kind
    if kind == "refused":
        assert verdict.lasting
        assert f"up to record {mark}, and in this folder the log ends at" in verdict.why


def test_who_holds_the_store_is_said() -> None:
    clone = judge_living(MINE, known(4, "d", ELSEWHERE))
    assert (clone.kind, clone.lasting) == ("refused", True)
    assert "process d at far:1" in clone.why
    other = judge_living(MINE, replace(ELSEWHERE, store_id="t", incarnation="t"))
    assert (other.kind, other.lasting) == ("refused", False)
    assert "a name and an empty folder of its own" in other.do


PEER = Process("n", "s", "e")


OTHER = Process("n", "s", "d")


@pytest.mark.parametrize(
    ("told", "current", "rival", "refused"),
    [
        (None, False, None, False),
        (Known("s", 5, "e"), False, None, False),
        (Known("s", 4, "d"), False, None, False),
        (Known("s", 6, "f"), False, None, True),
        (Known("s", 5, "x"), False, None, True),
        (Known("s", 3, "x"), False, None, True),
        (Known("s", 6, "f", vouched=True), True, None, False),  # etcd's record of before: etcd knows better
        (Known("s", 6, "f"), True, None, True),  # it came and went while etcd was away
        (Known("s", 4, "d", 40), False, None, False),
        (Known("s", 4, "d", 41), False, None, True),
        (Known("s", 4, "d", 41, vouched=True), True, None, True),  # etcd does not know what it told here
        (Known("s", 5, "e", 99), False, None, False),  # the process itself
        (Known("other", 9, "z", 99), False, None, False),  # what was known of a store that is gone
    ],
)
def test_what_peers_remember(told: Known | None, current: bool, rival: Process | None, refused: bool) -> None:
    refusal = judge_peer(PEER, LINEAGE, [told] if told else [], current, rival)
    assert (refusal is not None) == refused
    if refusal is not None:
        assert told is not None
        assert refusal.seen == told.seen, "it can see for itself"


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        (Known("s", 3, "x"), True),  # etcd may never have heard of it
        (Known("s", 3, "x", vouched=True), False),  # what etcd has now descends from it
        (Known("s", 3, "c", 31, vouched=True), True),
        (Known("s", 3, "c", 30, vouched=True), False),
    ],
)
@pytest.mark.parametrize("current", [False, True])
def test_what_peers_remember_beside_a_later_record(told: Known, refused: bool, current: bool) -> None:
    record = Known("s", 4, "d", vouched=True)
    assert (judge_peer(PEER, LINEAGE, [record, told], current, None) is not None) == refused


@pytest.mark.parametrize(
    ("current", "rival", "refused"),
    [(False, OTHER, True), (False, PEER, False), (True, OTHER, False), (False, None, False)],
)
def test_a_second_process_of_a_node_that_is_heard(
    current: bool, rival: Process | None, refused: bool
) -> None:
    refusal = judge_peer(PEER, LINEAGE, [Known("s", 4, "d", vouched=True)], current, rival)
    assert (refusal is not None) == refused
    assert refusal is None or refusal.seen is None, "that says nothing of its store"


def test_a_peer_that_tells_no_generation_is_older_than_one_that_did() -> None:
    refusal = judge_peer(PEER, Lineage(), [Known("s", 1, "a")], False, None)
    assert refusal is not None
    assert judge_peer(PEER, Lineage(), [Known("s", 0, "")], False, None) is None


def lineage_of(first: int, last: int, *asked: tuple[int, int]) -> Lineage:
    """Runs r1, r2, … that ended at record 10, 20, …, as far as they are remembered after ``last``."""
    lineage = Lineage((Run(first, f"r{first}", 10 * first, dict(asked).get(first, 0)),))
    for number in range(first + 1, last + 1):
        lineage = lineage.begun(f"r{number}", 10 * (number - 1))
        if number in dict(asked):
            lineage = lineage.noted(dict(asked)[number])
    return lineage


def test_lineages_are_bounded_and_part_at_the_copy() -> None:
    lineage = lineage_of(1, 100)
    assert (lineage.generation, len(lineage.runs)) == (100, MAX_RUNS)
    assert lineage.has(Seen(100, "r100"))
    assert lineage.has(Seen(37, "r37"))
    assert not lineage.has(Seen(37, "x"))
    assert lineage.contradicts(Seen(37, "x"))
    assert not lineage.has(Seen(36, "r36")), "what is not remembered was never seen"
    assert not lineage.contradicts(Seen(36, "r36")), "but nobody can say that it was not"
    assert not lineage.has(Seen(101, "r101"))
    assert lineage.contradicts(Seen(101, "r101"))
    assert lineage.has(Seen(99, ""))  # of a version that named none
    assert not lineage.contradicts(Seen(99, ""))
    assert lineage.contradicts(Seen(101, ""))


def test_a_copy_made_while_a_run_went_on_falls_short_of_what_that_told() -> None:
    lineage = lineage_of(1, 9)
    assert lineage.has(Seen(8, "r8", 80))
    assert not lineage.has(Seen(8, "r8", 81))
    assert lineage.lacks(Seen(8, "r8", 81))
    assert lineage.contradicts(Seen(8, "r8", 81))
    assert lineage.end_of(Seen(8, "r8", 81)) == 80
    assert lineage.has(Seen(9, "r9", 999)), "it is that one"
    assert not lineage.lacks(Seen(8, "x", 81))
    assert lineage.end_of(Seen(8, "x")) == 0


@pytest.mark.parametrize(
    ("asked", "kept", "forgotten"),
    [
        (((3, CONFIRMED),), {3}, {2, 4}),
        (((3, CONFIRMED), (5, ASKED), (6, ASKED)), {3, 5, 6}, {2, 4, 7}),  # any of them may be etcd's
        (((3, CONFIRMED), (5, ASKED), (6, CONFIRMED)), {6}, {3, 5}),
        (((3, ASKED),), {3}, {2}),
    ],
)
def test_what_etcd_may_have_is_never_forgotten(
    asked: tuple[tuple[int, int], ...], kept: set[int], forgotten: set[int]
) -> None:
    lineage = lineage_of(1, 400, *asked)
    assert len(lineage.runs) == MAX_RUNS
    assert [run.generation for run in lineage.runs] == sorted(
        (run.generation for run in lineage.runs), reverse=True
    )
    assert all(lineage.has(Seen(g, f"r{g}", 10 * g)) for g in kept)
    assert not any(lineage.has(Seen(g, f"r{g}")) for g in forgotten)


def test_where_all_have_asked_the_one_that_was_confirmed_is_kept() -> None:
    asked = [(g, ASKED) for g in range(1, 200)]
    asked[4] = (5, CONFIRMED)
    lineage = lineage_of(1, 199, *asked)
    assert len(lineage.runs) == MAX_RUNS
    assert lineage.has(Seen(5, "r5"))
    assert not lineage.has(Seen(6, "r6"))
    assert lineage.has(Seen(198, "r198"))


def test_the_runs_are_durable_before_anything_is_said(tmp_path: Path) -> None:
    ends = []
    for number in range(1, 4):
        store = Store.open(tmp_path, cluster="c", node="n")
        ends.append(store.last_seq)
        store.raise_generation(f"run{number}")
        store.note_asked(ASKED)
        store.abandon()  # as a crash right after it would
    store = Store.open(tmp_path, cluster="c", node="n")
    assert store.lineage.generation == 3
    assert [run.incarnation for run in store.lineage.runs] == ["run3", "run2", "run1"]
    assert [run.end for run in store.lineage.runs] == [0, ends[2], ends[1]]
    assert {run.asked for run in store.lineage.runs} == {ASKED}
    store.abandon()


def test_a_mark_is_of_what_may_have_been_answered_for(tmp_path: Path) -> None:
    store = Store.open(tmp_path, cluster="c", node="n")
    store.raise_generation("run1")
    assert store.mark == 0, "what a node notes of others is nobody's loss"
    store.add_partition(7)
    seq = store.append(SealEntry(7, 1, b"", b""))
    assert store.mark < seq, "it is not durable"
    store.keep_fact("some", "thing")
    assert store.mark == seq
    store.append_entries(7, 1, 0, [pack_entry(1, 1, b"")])
    store.sync_now()
    assert store.mark == seq + 2
    store.truncate(7, 1, 0)
    store.sync_now()
    assert store.mark == seq + 3
    store.abandon()


def test_what_is_remembered_of_peers(tmp_path: Path) -> None:
    store = Store.open(tmp_path, cluster="c", node="n")
    identity = Identity(store, Process("n", store.store_id, "1"))
    nodes = {"a": NodeRecord("a", "c", "sa", "", "", "", 3, "a3")}
    assert identity.known("a", None) == []
    assert identity.known("a", nodes["a"]) == [("sa", 3, "a3", 0, True)]
    kept = identity.remember(Process("a", "sa", "a4"), 4, nodes)
    assert kept == {"a": ["sa", 4, "a4", 0, False]}
    assert identity.remember(Process("a", "sa", "a4"), 4, nodes) is None, "nothing new"
    assert identity.remember(Process("b", "sb", "b0"), 0, nodes) is None, "it tells none"
    assert identity.known("a", nodes["a"]) == [("sa", 4, "a4", 0, False)], "etcd's record is behind"
    newer = replace(nodes["a"], generation=5, incarnation="a5")
    assert identity.known("a", newer) == [("sa", 5, "a5", 0, True), ("sa", 4, "a4", 0, False)], (
        "etcd may never have heard of the one"
    )
    assert identity.note_mark(Process("a", "sa", "a4"), 30)
    assert not identity.note_mark(Process("a", "sa", "a4"), 30)
    assert not identity.note_mark(Process("a", "sa", "a3"), 99), "a late word of an earlier process"
    assert not identity.note_mark(Process("z", "sz", "z1"), 99)
    same = replace(nodes["a"], generation=4, incarnation="a4")
    assert not identity.vouch(newer)
    assert identity.vouch(same)
    assert not identity.vouch(same)
    assert identity.known("a", same) == [("sa", 4, "a4", 30, True)]
    assert identity.known("a", newer) == [("sa", 5, "a5", 0, True), ("sa", 4, "a4", 30, True)]
    assert identity.remember(Process("a", "sa", "a4"), 4, nodes) is None, "nor is a mark forgotten"
    assert identity.memory()["a"] == ["sa", 4, "a4", 30, True]
    replaced = replace(nodes["a"], store_id="sa2", generation=1, incarnation="x")
    assert identity.known("a", replaced) == [("sa2", 1, "x", 0, True)], (
        "a store that is replaced is forgotten"
    )
    identity.remember(Process("c", "sc", "c1"), 1, {})
    assert identity.known("a", None) == [], "so is a node that is gone"
    for number in range(MAX_REMEMBERED + 5):
        many = {f"n{i}": nodes["a"] for i in range(number + 1)}
        kept = identity.remember(Process(f"n{number}", "s", "1"), 1, many)
    assert kept is not None
    assert len(kept) == MAX_REMEMBERED
    store.keep_fact("peer_generations", kept)
    store.keep_fact("refused", ["because", "do"])
    store.abandon()
    store = Store.open(tmp_path, cluster="c", node="n")
    again = Identity(store, Process("n", store.store_id, "2"))
    assert (again.refused, again.why, again.do) == (True, "because", "do")
    assert again.known("n7", None) == [("s", 1, "1", 0, False)]
    store.abandon()


def test_members_get_the_store_that_their_node_has() -> None:
    nodes = {n: NodeRecord(n, "c", s, "", "") for n, s in (("a", "sa"), ("b", "new"))}
    assert renewed((("a", "sa"), ("b", "sb"), ("gone", "sg")), nodes) == (
        ("a", "sa"),
        ("b", "new"),
        ("gone", "sg"),
    )
