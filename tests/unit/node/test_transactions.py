"""What a node writes to the control plane, as tables: each change compares what it was made from, and a lost answer
decides nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metastore.coordination.interface import KV, Compare, Delete, Get, Op, Put
from metastore.core import effects as fx
from metastore.layout import ConfigRecord, HistoryRecord, Layout, LeaderRecord, MoveRecord, first_epoch
from metastore.node.control.transactions import (
    Author,
    Transaction,
    change,
    change_found,
    changed_key,
    election,
    election_found,
    end_of_move,
    is_to_be_put_back,
    put_back,
)

P, CHILD, NOW_MS, REVISION = 3, 9, 1_000, 40
LAYOUT, ME = Layout("metastore"), Author("f", "run1", 77)
TERM1, TERM2 = first_epoch(1), first_epoch(2)
MEMBERS = (("f", "sf"), ("x", "sx"), ("y", "sy"))
OLD = ConfigRecord(P, 0, 1 << 64, TERM1, "x", MEMBERS)
NEW = replace(OLD, epoch=TERM2, leader="f")
CONFIG, LEADER = LAYOUT.config("c1", P), LAYOUT.leader("c1", P)
OTHERS = LeaderRecord("x", "run9", TERM1).to_json()
CAMPAIGN = fx.Campaign(P, REVISION, NEW, OTHERS, "x is lost")
CHANGE = fx.ChangeConfig(P, REVISION, replace(OLD, leader="f"), None, "y joins")


def kv(key: str, value: bytes, lease: int = 0) -> KV:
    return KV(key, value, 55, 1, lease)


def history(made: Transaction) -> list[tuple[int, str, str]]:
    """Partition, kind and cause of each event that is written."""
    told = [
        HistoryRecord.from_json(op.value) for op in made.then if isinstance(op, Put) and "-history/" in op.key
    ]
    return [(event.partition, event.kind, event.cause) for event in told]


def records(made: Transaction) -> list[Op]:
    """What is done to records that are no history."""
    return [op for op in made.then if "-history/" not in op.key]


@pytest.mark.parametrize(
    ("effect", "leader_is", "kind"),
    [
        (CAMPAIGN, Compare.value_is(LEADER, OTHERS), "election"),
        (CAMPAIGN._replace(replace=None), Compare.absent(LEADER), "election"),
        (CAMPAIGN._replace(handed_over=True), Compare.value_is(LEADER, OTHERS), "hand-over"),
    ],
)
def test_an_election(effect: fx.Campaign, leader_is: Compare, kind: str) -> None:
    made = election(LAYOUT, "c1", ME, effect, NOW_MS)
    assert made.compares == [Compare.mod_revision_is(CONFIG, REVISION), leader_is]
    assert records(made) == [Put(CONFIG, NEW.to_json()), Put(LEADER, ME.leads(TERM2), ME.lease)]
    assert history(made) == [(P, kind, "x is lost")]
    assert made.otherwise == [Get(CONFIG), Get(LEADER)]


@pytest.mark.parametrize(
    ("config", "leader", "at"),
    [
        (kv(CONFIG, NEW.to_json()), kv(LEADER, ME.leads(TERM2), ME.lease), 55),
        (kv(CONFIG, NEW.to_json()), kv(LEADER, OTHERS), 0),
        (kv(CONFIG, NEW.to_json()), kv(LEADER, ME.leads(TERM1), ME.lease), 0),
        (kv(CONFIG, NEW.to_json()), kv(LEADER, ME._replace(incarnation="run0").leads(TERM2)), 0),
        (kv(CONFIG, NEW.to_json()), None, 0),
        (None, kv(LEADER, ME.leads(TERM2)), 0),
        (None, None, 0),
    ],
)
def test_an_election_whose_answer_was_lost(config: KV | None, leader: KV | None, at: int) -> None:
    assert election_found(ME, CAMPAIGN, config, leader) == at


def test_a_change_of_members() -> None:
    made = change(LAYOUT, "c1", ME, CHANGE, None, None, NOW_MS)
    assert made.compares == [Compare.mod_revision_is(CONFIG, REVISION)]
    assert records(made) == [Put(CONFIG, CHANGE.new.to_json()), Put(LEADER, ME.leads(TERM1), ME.lease)]
    assert history(made) == [(P, "move", "y joins")]
    assert changed_key(LAYOUT, "c1", CHANGE) == CONFIG


def test_a_change_that_names_another_leader_takes_the_key_away() -> None:
    made = change(LAYOUT, "c1", ME, CHANGE._replace(new=replace(OLD, leader="y")), None, None, NOW_MS)
    assert records(made)[-1] == Delete(LEADER)


def test_the_last_step_to_another_cell() -> None:
    effect, there = CHANGE._replace(cell="c2"), LAYOUT.config("c2", P)
    move = MoveRecord(P, "c2", MEMBERS, cause="drain c1")
    made = change(LAYOUT, "c1", ME, effect, move, None, NOW_MS)
    assert made.compares == [Compare.mod_revision_is(CONFIG, REVISION), Compare.absent(there)]
    assert records(made)[:2] == [Delete(CONFIG), Put(there, CHANGE.new.to_json())]
    assert history(made) == [(P, "move", "y joins, for drain c1")]
    assert changed_key(LAYOUT, "c1", effect) == there


@pytest.mark.parametrize("child_epoch", [None, TERM2])
def test_a_split(child_epoch: int | None) -> None:
    child = replace(OLD, partition=CHILD, lo=1 << 63)
    made = change(LAYOUT, "c1", ME, CHANGE._replace(child=child), None, child_epoch, NOW_MS)
    theirs = LAYOUT.config("c1", CHILD)
    assert made.compares == [Compare.mod_revision_is(CONFIG, REVISION), Compare.absent(theirs)]
    led = [Put(LAYOUT.leader("c1", CHILD), ME.leads(TERM2), ME.lease)] if child_epoch else []
    assert records(made)[1:-1] == [Put(theirs, child.to_json()), Delete(LAYOUT.split(P)), *led]
    assert history(made) == [(CHILD, "split", f"is split off {P}"), (P, "split", "y joins")]


@pytest.mark.parametrize(
    ("config", "at"),
    [(kv(CONFIG, CHANGE.new.to_json()), 55), (kv(CONFIG, OLD.to_json()), 0), (None, 0)],
)
def test_a_change_whose_answer_was_lost(config: KV | None, at: int) -> None:
    assert change_found(CHANGE, config) == at


def test_the_end_of_a_move_is_of_that_wish_only() -> None:
    key = LAYOUT.move(P)
    assert end_of_move(LAYOUT, P, 8) == Transaction([Compare.mod_revision_is(key, 8)], [Delete(key)], [])


@pytest.mark.parametrize(
    ("seen", "due"),
    [
        (None, True),
        (kv(LEADER, ME.leads(TERM2), ME.lease), False),
        (kv(LEADER, ME.leads(TERM2), ME.lease - 1), True),
        (kv(LEADER, ME.leads(TERM1), ME.lease), True),
        (kv(LEADER, OTHERS, ME.lease), False),
        (kv(LEADER, b"nonsense"), False),
    ],
)
def test_when_a_leader_key_is_put_back(seen: KV | None, due: bool) -> None:
    assert is_to_be_put_back(ME, TERM2, seen) is due
    if due:
        made = put_back(LAYOUT, "c1", ME, P, TERM2, seen, REVISION, None)
        leader_is = Compare.absent(LEADER) if seen is None else Compare.value_is(LEADER, seen.value)
        assert made.compares == [Compare.mod_revision_is(CONFIG, REVISION), leader_is]
        assert made.then == [Put(LEADER, ME.leads(TERM2), ME.lease)]
