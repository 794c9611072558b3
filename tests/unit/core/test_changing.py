"""R10: a partition's replicas become others, step by step; each step waits for what it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.changing import MAX_LEARNER_LAG
from metastore.core.configs import pack_config
from metastore.core.events import MovesPaused, Restored
from metastore.core.logindex import LogIndex
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord, MoveRecord, first_epoch
from tests.unit.core.nodes import CONFIG, MEMBERS, START, TERM1, Node, blob, deliver, led, log_of, process

TARGET = (("b", "sb"), ("c", "sc"), ("d", "sd"))
MOVE = MoveRecord(0, "c1", TARGET)
EPOCH, SECOND, THIRD = TERM1 + 1, first_epoch(2), first_epoch(3)
JOINT = replace(CONFIG, epoch=SECOND, joint=TARGET)
PATIENCE = CoreSettings().activation_patience_ns


def leader(move: MoveRecord | None = MOVE) -> Node:
    """``a`` leads in the first term, whose record it knows; ``move`` is wanted."""
    a = led()["a"]
    a.replica.config_mod_revision = 7
    a.replica.home = "c1"
    a.replica.move = move
    a.core._ctx.can_elect = True
    return a


def changes(node: Node, now: int = START) -> list[fx.ChangeConfig]:
    node.replica.tick_changing(now)
    return [e for e in node.take() if isinstance(e, fx.ChangeConfig)]


def learner(node: Node, *, match: int, sealed: bool = True, snapshot: bool = False) -> None:
    assert node.replica.term is not None
    pr = node.replica.term.progress["d"]
    pr.match, pr.sealed, pr.snapshotting_since_ns = match, sealed, int(snapshot)


# --- learning ----------------------------------------------------------------------------------------------


def test_a_new_member_gets_the_log_before_it_joins() -> None:
    a = leader()
    assert not changes(a), "it has nothing yet"
    assert a.replica.term is not None
    assert a.replica.term.learners == {"d": "sd"}
    last = a.replica.log.last_index
    states: tuple[dict[str, Any], ...] = (
        {"match": last, "sealed": False},
        {"match": 0},
        {"match": last, "snapshot": True},
    )
    for state in states:
        learner(a, **state)
        assert not changes(a), state
    learner(a, match=last)
    (change,) = changes(a)
    assert change.new == replace(CONFIG, epoch=SECOND, joint=TARGET)
    assert change.expect_mod_revision == 7


def test_it_is_within_one_round_of_the_leader_when_it_joins() -> None:
    a = leader()
    changes(a)
    for _ in range(MAX_LEARNER_LAG + 5):
        a.replica.propose(START, b"")
    last = a.replica.log.last_index
    learner(a, match=last - MAX_LEARNER_LAG - 1)
    assert not changes(a)
    learner(a, match=last - MAX_LEARNER_LAG)
    assert changes(a)


def test_another_store_under_a_members_name_has_to_wait_for_the_old_one_to_go() -> None:
    """R13: no term has both, since answers are counted by names."""
    a = leader(replace(MOVE, target=(("a", "sa"), ("b", "sb"), ("c", "a new store"))))
    (change,) = changes(a)
    assert change.new == replace(CONFIG, epoch=SECOND, joint=(("a", "sa"), ("b", "sb")))
    assert a.replica.term is not None
    assert a.replica.term.learners == {}


def test_a_learner_of_another_store_than_is_wanted_goes() -> None:
    a = leader()
    changes(a)
    a.replica.move = replace(MOVE, target=(*TARGET[:2], ("d", "another store")))
    changes(a)
    assert a.replica.term is not None
    assert a.replica.term.learners == {"d": "another store"}


# --- who may change anything ----------------------------------------------------------------------------------


def ready() -> Node:
    a = leader()
    changes(a)
    learner(a, match=a.replica.log.last_index)
    return a


@pytest.mark.parametrize("role", ["sealing", "adopting", "activating", "resigning", "follower"])
def test_only_an_active_leader_changes_membership(role: str) -> None:
    a = ready()
    a.replica.role = role
    assert not changes(a)


def test_only_who_owns_the_record_that_it_compares() -> None:
    """R10: each swap compares the revision of the very record that made the leader's own term."""
    for record, revision in (
        (CONFIG, 0),
        (replace(CONFIG, leader="b"), 7),
        (replace(CONFIG, epoch=SECOND), 7),
    ):
        a = ready()
        a.replica.config, a.replica.config_mod_revision = record, revision
        assert not changes(a), record


def test_one_change_at_a_time() -> None:
    a = ready()
    assert len(changes(a)) == 1
    assert not changes(a, START + 5000 * MS), "its answer is awaited"


def test_nothing_changes_while_moves_are_paused_or_etcd_is_away() -> None:
    a = ready()
    a.core.handle(START, MovesPaused(True))
    assert not changes(a)
    a.core._ctx.moves_paused, a.core._ctx.can_elect = False, False
    assert not changes(a)
    a.core._ctx.can_elect = True
    assert changes(a)


def test_a_swap_that_was_not_made_changes_nothing() -> None:
    a = ready()
    changes(a)
    a.replica.on_change_done(START, None, 0, "test")
    assert (a.replica.config, a.replica.sealed_epoch) == (CONFIG, EPOCH)
    assert a.replica.role == "active"


def test_a_swap_that_is_told_late_changes_nothing() -> None:
    """A later term is sealed here, or known to be etcd's."""
    a = ready()
    (change,) = changes(a)
    a.replica.sealed_epoch = THIRD
    a.replica.on_change_done(START, change.new, 8, "test")
    assert a.replica.config == CONFIG
    b = ready()
    (change,) = changes(b)
    b.replica.config = replace(CONFIG, epoch=THIRD, leader="b")
    b.replica.on_change_done(START, change.new, 8, "test")
    assert b.replica.sealed_epoch == EPOCH


# --- under both sets -----------------------------------------------------------------------------------------


def joint(role: str = "active", move: MoveRecord | None = MOVE) -> Node:
    """``a`` in the joint term, in that role."""
    a = Node(process("a"), Restored(log_of(TERM1), TERM1, process("a"), CONFIG, 1))
    a.blobs = {1: blob(1, TERM1)}
    nodes = {"a": a} | {
        n: Node(process(n), Restored(LogIndex(), TERM1, process("a"), CONFIG, 0)) for n in "bcd"
    }
    a.replica.begin_term(START, SECOND, JOINT, "test")
    deliver(nodes, START)
    assert a.replica.role == "active"
    a.replica.config_mod_revision = 8
    a.replica.home = "c1"
    a.replica.move = move
    a.core._ctx.can_elect = True
    a.replica.role = role
    return a


def test_the_joint_term_has_quorums_of_both_sets() -> None:
    a = joint()
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Appended(0, SECOND, index), a.me)
    a.core.handle(START, m.Appended(0, SECOND, index), process("d"))
    assert a.replica.commit_index == index - 1, "a and d: one of three of either set is missing"
    a.core.handle(START, m.Appended(0, SECOND, index), process("b"))
    assert a.replica.commit_index == index
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Appended(0, SECOND, index), a.me)
    a.core.handle(START, m.Appended(0, SECOND, index), process("b"))
    assert a.replica.commit_index == index - 1, "a and b: the old set has it, the new one has not"
    a.core.handle(START, m.Appended(0, SECOND, index), process("c"))
    assert a.replica.commit_index == index


def test_neither_set_is_quorum_enough_alone() -> None:
    five = replace(JOINT, joint=(("d", "sd"), ("e", "se"), ("f", "sf")))
    for own in ("abc", "adef"):
        a = Node(process("a"), Restored(LogIndex(), TERM1, process("a"), CONFIG, 0))
        a.replica.begin_term(START, SECOND, five, "test")
        for name in own:
            a.core.handle(START, m.Sealed(0, SECOND, 0, 0, 0, 0), process(name))
        assert a.replica.role == "sealing"


def test_the_new_set_alone_only_after_full_activation() -> None:
    """The wait for old grants included."""
    for role in ("sealing", "adopting", "activating", "resigning", "resigned"):
        a = joint(role)
        now = START + 1 if role == "resigned" else START + 2 * PATIENCE
        assert not [c for c in changes(a, now) if c.new.replicas == TARGET], role


def test_an_active_leader_that_leaves_hands_over_to_one_that_stays() -> None:
    a = joint()
    assert not changes(a)
    assert a.replica.role == "resigned", "b has everything"
    assert a.replica.term is not None
    assert a.replica.term.handoff_to == "b"


def test_an_active_leader_that_stays_leads_on_in_the_new_set() -> None:
    stays = (("a", "sa"), *TARGET[1:])
    a = joint(move=replace(MOVE, target=stays))
    assert a.replica.term is not None
    a.replica.term.config = replace(JOINT, joint=stays)
    (change,) = changes(a)
    assert change.new == replace(CONFIG, epoch=THIRD, replicas=stays)
    assert (change.expect_mod_revision, change.cell) == (8, None)


@pytest.mark.parametrize(
    "move", [None, replace(MOVE, cancel=True), replace(MOVE, target=(*TARGET[:2], ("e", "se")))]
)
def test_what_is_not_wanted_any_more_is_undone(move: MoveRecord | None) -> None:
    a = joint(move=move)
    (change,) = changes(a)
    assert change.new == replace(CONFIG, epoch=THIRD)


def test_newcomers_that_stay_dead_are_left() -> None:
    """Going back needs no more than the ownership of the joint term."""
    a = joint("sealing")
    assert not changes(a, START + 2 * PATIENCE)
    (change,) = changes(a, START + 2 * PATIENCE + 1)
    assert change.new == replace(CONFIG, epoch=THIRD)


def test_a_leader_that_left_appoints_its_heir_once_that_one_knows() -> None:
    """R11: whom etcd names has nothing to wait for, and knows it."""
    a = joint()
    changes(a)
    assert a.replica.role == "resigned"
    for src, epoch in ((process("c"), SECOND), (process("b"), EPOCH)):
        a.core.handle(START, m.Appointed(0, epoch), src)
        assert not [e for e in a.take() if isinstance(e, fx.ChangeConfig)]
    a.core.handle(START, m.Appointed(0, SECOND), process("b"))
    (change,) = (e for e in a.take() if isinstance(e, fx.ChangeConfig))
    assert change.new == replace(CONFIG, epoch=THIRD, leader="b", replicas=TARGET)


def test_the_record_that_appoints_another_is_durable_here() -> None:
    """The last config that a replica knows is durable: etcd's watch, which tells the same, is too late to make it so."""
    a = joint()
    changes(a)
    a.core.handle(START, m.Appointed(0, SECOND), process("b"))
    (change,) = (e for e in a.take() if isinstance(e, fx.ChangeConfig))
    a.replica.on_change_done(START, change.new, 9, "test")
    assert [e.config for e in a.take() if isinstance(e, fx.PersistConfig)] == [pack_config(change.new)]
    a.replica.on_config(START, change.new, 9)
    assert not a.take()


def test_the_last_step_to_another_cell_names_it() -> None:
    a = joint(move=replace(MOVE, cell="c2"))
    changes(a)
    a.core.handle(START, m.Appointed(0, SECOND), process("b"))
    (change,) = (e for e in a.take() if isinstance(e, fx.ChangeConfig))
    assert change.cell == "c2"


def test_an_heir_is_near_the_end_of_the_log() -> None:
    a = joint()
    assert a.replica.term is not None
    for pr in a.replica.term.progress.values():
        pr.match = 0
    for _ in range(MAX_LEARNER_LAG):
        a.replica.propose(START, b"")
    assert a.replica.successor(START, a.replica.term, TARGET) is None
    a.replica.term.progress["c"].match = 2
    assert a.replica.successor(START, a.replica.term, TARGET) == "c"
    a.core._ctx.down.add("c")
    assert a.replica.successor(START, a.replica.term, TARGET) is None


# --- who is appointed ---------------------------------------------------------------------------------------------


def test_an_heir_knows_before_it_is_named() -> None:
    b = Node(process("b"), Restored(LogIndex(), SECOND, process("a"), JOINT, 0))
    b.core.handle(START, m.Appoint(0, SECOND, b"", 0), process("a"))
    assert b.sent(m.Appointed) == [m.Appointed(0, SECOND)]
    final = replace(CONFIG, epoch=THIRD, leader="b", replicas=TARGET)
    b.core.handle(START, m.Appoint(0, SECOND, pack_config(final), 9), process("a"))
    assert [s.resigned for s in b.sent(m.Seal)] == [SECOND] * 3


def ended(move: MoveRecord, config: ConfigRecord = CONFIG) -> list[Any]:
    a = leader(move)
    assert a.replica.term is not None
    a.replica.term.config = config
    a.replica.tick_changing(START)
    return [e for e in a.take() if isinstance(e, fx.MoveEnded)]


def test_a_move_ends_when_it_is_done_or_not_wanted() -> None:
    assert ended(replace(MOVE, target=MEMBERS)) == [fx.MoveEnded(0, "done")]
    assert ended(replace(MOVE, cancel=True)) == [fx.MoveEnded(0, "cancelled")]
    assert ended(replace(MOVE, target=MEMBERS, cell="c2")) == [], "it is in the old cell still"
    assert ended(MOVE) == []
