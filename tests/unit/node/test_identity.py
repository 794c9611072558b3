"""R13: which stores are let in, by etcd's record and by what peers remember."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metastore.core.messages import Lineage, Process
from metastore.layout import NodeRecord
from metastore.node.identity import (
    MAX_REMEMBERED,
    Identity,
    Known,
    judge,
    judge_living,
    judge_peer,
)
from metastore.node.replacing import renewed
from metastore.storage.store import MAX_RUNS, Store

MINE = NodeRecord("n", "c", "s", "h:1", "h:2", "", 5, "e")
LINEAGE = Lineage(5, tuple("edcba"))
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
    ],
)
def test_what_etcd_says(record: NodeRecord | None, present: str, fresh: bool, kind: str) -> None:
    verdict = judge(MINE, LINEAGE, record, present, fresh)
    assert verdict.kind == kind
    if kind == "refused":
        assert verdict.lasting
        assert "--discard-store" in verdict.do


def test_who_holds_the_store_is_said() -> None:
    clone = judge_living(MINE, known(4, "d", ELSEWHERE))
    assert (clone.kind, clone.lasting) == ("refused", True)
    assert "process d at far:1" in clone.why
    other = judge_living(MINE, replace(ELSEWHERE, store_id="t", incarnation="t"))
    assert (other.kind, other.lasting) == ("refused", False)
    assert "a name and an empty folder of its own" in other.do


PEER = Process("n", "s", "e")


@pytest.mark.parametrize(
    ("told", "current", "rival", "copy"),
    [
        (None, False, None, None),
        (Known("s", 5, "e"), False, None, None),
        (Known("s", 4, "d"), False, None, None),
        (Known("s", 6, "f"), False, None, True),
        (Known("s", 5, "x"), False, None, True),
        (Known("s", 3, "x"), False, None, True),
        (Known("s", 6, "f"), True, None, None),  # etcd's word comes first
        (Known("s", 4, "d"), False, Process("n", "s", "d"), False),  # its last process lives
        (Known("s", 4, "d"), False, PEER, None),  # the same process, by a new connection
        (Known("s", 4, "d"), True, Process("n", "s", "d"), None),
        (Known("other", 9, "z"), False, None, None),  # what was known of a store that is gone
    ],
)
def test_what_peers_remember(
    told: Known | None, current: bool, rival: Process | None, copy: bool | None
) -> None:
    refusal = judge_peer(PEER, LINEAGE, told, current, rival)
    assert (None if refusal is None else refusal.copy) == copy


def test_a_peer_that_tells_no_generation_is_older_than_one_that_did() -> None:
    refusal = judge_peer(PEER, Lineage(), Known("s", 1, "a"), False, None)
    assert refusal is not None
    assert judge_peer(PEER, Lineage(), Known("s", 0, ""), False, None) is None


def test_lineages_are_bounded_and_part_at_the_copy() -> None:
    lineage = Lineage(100, tuple(f"r{i}" for i in range(100, 100 - MAX_RUNS, -1)))
    assert lineage.descends_from(100, "r100")
    assert lineage.descends_from(37, "r37")
    assert not lineage.descends_from(37, "x")
    assert lineage.descends_from(36, "too long ago to be told apart")
    assert not lineage.descends_from(101, "r101")


def test_the_generation_is_durable_before_anything_is_said(tmp_path: Path) -> None:
    for number in range(1, MAX_RUNS + 3):
        store = Store.open(tmp_path, cluster="c", node="n")
        store.raise_generation(f"run{number}")
        store.abandon()  # as a crash right after it would
    store = Store.open(tmp_path, cluster="c", node="n")
    assert store.lineage.generation == MAX_RUNS + 2
    assert len(store.lineage.runs) == MAX_RUNS
    assert store.lineage.runs[0] == f"run{MAX_RUNS + 2}"
    store.abandon()


def test_what_is_remembered_of_peers(tmp_path: Path) -> None:
    store = Store.open(tmp_path, cluster="c", node="n")
    identity = Identity(store, Process("n", store.store_id, "1"))
    nodes = {"a": NodeRecord("a", "c", "sa", "", "", "", 3, "a3")}
    assert identity.known("a", None) is None
    assert identity.known("a", nodes["a"]) == ("sa", 3, "a3")
    kept = identity.remember(Process("a", "sa", "a4"), 4, nodes)
    assert kept == {"a": ["sa", 4, "a4"]}
    assert identity.remember(Process("a", "sa", "a4"), 4, nodes) is None, "nothing new"
    assert identity.remember(Process("b", "sb", "b0"), 0, nodes) is None, "it tells none"
    assert identity.known("a", nodes["a"]) == ("sa", 4, "a4"), "etcd's record is behind"
    replaced = replace(nodes["a"], store_id="sa2", generation=1, incarnation="x")
    assert identity.known("a", replaced) == ("sa2", 1, "x"), "a store that is replaced is forgotten"
    identity.remember(Process("c", "sc", "c1"), 1, {})
    assert identity.known("a", None) is None, "so is a node that is gone"
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
    assert again.known("n7", None) == ("s", 1, "1")
    store.abandon()


def test_members_get_the_store_that_their_node_has() -> None:
    nodes = {n: NodeRecord(n, "c", s, "", "") for n, s in (("a", "sa"), ("b", "new"))}
    assert renewed((("a", "sa"), ("b", "sb"), ("gone", "sg")), nodes) == (
        ("a", "sa"),
        ("b", "new"),
        ("gone", "sg"),
    )
