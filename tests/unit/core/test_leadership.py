"""Corners of electing and leading that only a certain order of events reaches."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.core.events import Restored, Resumed, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.settings import MS
from metastore.layout import first_epoch, term_of
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, deliver, followers, process


def test_an_answer_owed_to_an_earlier_run_grants_nothing() -> None:
    """R8: the numbers of two runs' heartbeats never meet."""
    runs = [
        Node(process("a", f"{i}"), Restored(LogIndex(), TERM1, None, CONFIG, 0), seed=i) for i in range(8)
    ]
    numbers = sorted(n.core.last_number for n in runs)
    assert all(b - a > 1 << 32 for a, b in itertools.pairwise(numbers))


def test_news_from_before_a_sleep_are_not_fresh() -> None:
    """The age of a copy counts from what the leader is known to have known, not from receipt."""
    leader = process("a")
    node = followers(leader, "b")["b"]
    echo, wake = START + 1000 * MS, START + 61_000 * MS
    node.core.handle(wake, m.Heartbeat(7, echo, [(0, TERM1, m.FRESH, 0)]), leader)
    assert node.replica.fresh_ns == echo
    (ack,) = node.sent(m.HeartbeatAck)
    assert ack.clock == wake
    node.core.handle(wake, m.Heartbeat(8, 0, [(0, TERM1, m.FRESH, 0)]), leader)
    assert node.replica.fresh_ns == echo, "nothing was echoed"


def test_heartbeats_echo_the_last_acknowledgement() -> None:
    nodes = followers(process("a", "0"), "a", "b", "c")
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    now = START + 200 * MS
    nodes["a"].core.handle(now, Tick(False))
    beats = nodes["a"].sent(m.Heartbeat)
    assert [b.echo for b in beats] == [0, 0]
    nodes["a"].core.handle(now, m.HeartbeatAck(beats[0].number, 777, 900 * MS, []), process("b"))
    nodes["a"].core.handle(now + 200 * MS, Tick(False))
    assert sorted(b.echo for b in nodes["a"].sent(m.Heartbeat)) == [0, 777]


def test_a_won_term_that_was_superseded_is_left_alone() -> None:
    """R2: the answer of the transaction comes after the watch told of the next term."""
    node = Node(process("a"), Restored(LogIndex(), 0, None, None, 0))
    r, now = node.replica, START
    r.on_config(now, replace(CONFIG, leader="c"), 10)
    r.on_leader_value(None)
    for _ in range(400):
        now += 20 * MS
        node.core.handle(now, Tick(True))
        campaigns = [e for e in node.take() if isinstance(e, fx.Campaign)]
        if campaigns:
            break
    r.on_config(now, replace(CONFIG, epoch=first_epoch(3), leader="b"), 21)
    r.on_campaign_done(now, campaigns[0].new, 20)
    assert r.config is not None
    assert (term_of(r.config.epoch), r.config_mod_revision) == (3, 21)
    assert r.term is None


def test_a_leader_without_a_quorum_vetoes_nobody() -> None:
    """I8, R16: rivals claim one restart; the winner's quorum dies; the loser may go on with the winner."""
    old = process("a", "old")
    nodes = followers(old, "a", "b", "c")
    a, b, c = (nodes[n] for n in "abc")
    for n in (b, c):
        n.core._ctx.down.add("a")
    held: list[tuple[Node, Node, Any]] = []

    def crossing(src: str, dst: str, message: Any) -> bool:
        """a's and b's SEALs cross, c is sealed by b, and b's no-op is lost with c."""
        if isinstance(message, m.Seal) and "a" in (src, dst) and src != dst:
            if dst != "c":
                held.append((nodes[src], nodes[dst], message))
            return True
        return isinstance(message, m.Append) and (src, dst) == ("b", "c")

    now = START
    a.core.handle(now, Resumed())
    b.replica.tick_electing(now)
    now += 200 * MS
    b.replica.tick_electing(now)
    deliver(nodes, now, crossing)
    for src, dst, message in held:
        dst.core.handle(now, message, src.me)
    deliver(nodes, now, lambda s, d, x: isinstance(x, m.Append) and d == "c")
    assert a.replica.owner != b.replica.owner, "each promised the epoch to itself"
    c.up = False
    for n in (a, b):
        n.core._ctx.down = {"c"}
    for _ in range(3000):
        now += 20 * MS
        for n in (a, b):
            n.core.handle(now, Tick(False))
        deliver(nodes, now)
        if "active" in (a.replica.role, b.replica.role):
            return
    raise AssertionError(f"nobody leads: a {a.replica.role}, b {b.replica.role}")


def test_a_node_whose_disk_hangs_leads_nothing() -> None:
    """Its heartbeats say so, it vetoes nobody, and it does not try to become a leader itself."""
    nodes = followers(process("a", "0"), "a", "b", "c")
    a, b = nodes["a"], nodes["b"]
    a.replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    now = START + 200 * MS
    assert a.replica.role == "active"
    a.core.handle(now, Tick(False, stuck=True))
    assert [beat[2] for h in a.sent(m.Heartbeat) for beat in h.beats] == [0, 0]
    a.core.handle(now, m.PreVote(0, a.replica.sealed_epoch, 1), b.me)
    assert [r.lost for r in a.sent(m.PreVoteReply)] == [True]
    for _ in range(500):
        now += 20 * MS
        b.core.handle(now, Tick(False, stuck=True))
        assert not b.sent(m.PreVote)


def test_a_seal_of_an_old_config_leaves_the_newer_one_durable() -> None:
    newer = replace(CONFIG, epoch=first_epoch(3), leader="c")
    node = Node(process("b"), Restored(LogIndex(), TERM1, process("a"), newer, 0))
    restart = replace(CONFIG, epoch=TERM1)
    node.core.handle(START, m.Seal(0, TERM1 + 1, pack_config(restart), 0), process("a", "2"))
    kinds = [type(e) for e in node.take()]
    assert kinds.index(fx.PersistConfig) == kinds.index(fx.PersistSeal) + 1
    assert node.replica.config == newer


def test_what_is_read_for_one_message_is_bounded_in_number() -> None:
    """Small entries by the thousand: a frame takes so many elements and no more."""
    node = Node(process("a"), Restored(LogIndex(), TERM1, None, CONFIG, 0))
    blobs = [pack_entry(i, TERM1, b"x") for i in range(1, 20_001)]
    node.core.emit(fx.PersistEntries(0, blobs, 0, TERM1))
    assert len(node.core._read_log(0, 1, 1 << 20)) == 4096


def _sealed_after_a_hand_over(grants: dict[Process, int], owner: Process, sealed: int, resigned: int) -> int:
    """What ``b`` says is left of its grants (process -> the epoch it was given in), when ``c`` seals the term
    after ``resigned``."""
    node = Node(process("b"), Restored(LogIndex(), sealed, owner, replace(CONFIG, epoch=sealed), 0))
    for holder, epoch in grants.items():
        node.replica.grants[holder] = epoch, START + 900 * MS
    epoch = first_epoch(term_of(resigned) + 1)
    config = pack_config(replace(CONFIG, epoch=epoch, leader="c"))
    node.core.handle(START, m.Seal(0, epoch, config, resigned), process("c"))
    (answer,) = node.sent(m.Sealed)
    return int(answer.remaining_grant_ns)


def test_who_resigns_has_given_up_its_earlier_epochs_too() -> None:
    """R11: a move's joint term may end before its first heartbeat: the grants are of the term before, and of the
    very process that has resigned. Nobody has to wait for those."""
    a, joint = process("a"), first_epoch(2)
    assert _sealed_after_a_hand_over({a: TERM1}, a, joint, joint) == 0
    assert _sealed_after_a_hand_over({a: joint}, a, joint, joint) == 0


def test_whom_nobody_saw_resign_may_be_reading_still() -> None:
    """R3: the same grants count where this replica does not know who resigned, or it was somebody else."""
    a, b2, joint = process("a"), process("c", "0"), first_epoch(2)
    assert _sealed_after_a_hand_over({a: TERM1}, a, TERM1, joint) == 900 * MS
    assert _sealed_after_a_hand_over({a: TERM1}, b2, joint, joint) == 900 * MS
    assert _sealed_after_a_hand_over({process("a", "0"): TERM1}, a, joint, joint) == 900 * MS


def test_an_old_resignation_frees_no_later_grant() -> None:
    """R11: who resigned once may have led again since."""
    a, second, fourth = process("a"), first_epoch(2), first_epoch(4)
    node = Node(process("b"), Restored(LogIndex(), second, a, replace(CONFIG, epoch=second), 0))
    third = first_epoch(3)
    config = pack_config(replace(CONFIG, epoch=third, leader="c"))
    node.core.handle(START, m.Seal(0, third, config, second), process("c"))
    node.replica.grants[a] = third + 1, START + 900 * MS  # it claimed the term again, and leads
    node.take()
    config = pack_config(replace(CONFIG, epoch=first_epoch(5), leader="c"))
    node.core.handle(START, m.Seal(0, first_epoch(5), config, fourth), process("c"))
    (answer,) = node.sent(m.Sealed)
    assert answer.remaining_grant_ns == 900 * MS
