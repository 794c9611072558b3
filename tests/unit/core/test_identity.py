"""R13 in the core: who lacks what it acknowledged, and how a new store comes under an old name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.changing import next_set
from metastore.core.events import LineageKnown, PeerUp, Restored, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.settings import MS
from metastore.layout import MoveRecord, first_epoch
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, deliver, followers, process

LEADER = process("a", "now")


def led(count: int = 5) -> dict[str, Node]:
    """a leads b and c, and all have ``count`` entries and the no-op."""
    nodes = followers(process("a", "old"), "b", "c")
    nodes["a"] = Node(LEADER, Restored(LogIndex(), TERM1, process("a", "old"), CONFIG, 0))
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    assert nodes["a"].replica.role == "active"
    for _ in range(count):
        nodes["a"].replica.propose(START, b"")
    deliver(nodes, START)
    assert {n.replica.log.last_index for n in nodes.values()} == {count + 1}
    return nodes


def lost(nodes: dict[str, Node], name: str, keep: int, sealed: int) -> Node:
    """The node comes back with the first ``keep`` entries of what it had."""
    old = nodes[name]
    log = LogIndex()
    for index in range(1, keep + 1):
        log.append(index, old.replica.log.epoch_at(index))
    owner = LEADER if sealed == nodes["a"].replica.sealed_epoch else process("a", "old")
    node = Node(process(name, "2"), Restored(log, sealed, owner, CONFIG, 0), seed=7)
    node.core.handle(START, LineageKnown(("2", "1", "0")))
    node.blobs = {i: b for i, b in old.blobs.items() if i <= keep}
    nodes[name] = node
    return node


def condemned(node: Node) -> list[str]:
    return [e.why for e in node.take() if isinstance(e, fx.Condemned)]


def settle(nodes: dict[str, Node], now: int, watch: str) -> tuple[list[str], list[str]]:
    """Deliver everything; what the node ``watch`` finds of itself, and what its leader notices."""
    why: list[str] = []
    noticed: list[str] = []
    for _ in range(20):
        for name, node in nodes.items():
            for e in node.take():
                if isinstance(e, fx.Condemned):
                    assert name == watch
                    why.append(e.why)
                elif isinstance(e, fx.Lacking):
                    noticed.append(e.what)
                elif isinstance(e, fx.Send) and not why:
                    nodes[e.node].core.handle(now, e.message, node.me)
    return why, noticed


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
@pytest.mark.parametrize("forgot_seal", [False, True])
def test_a_follower_that_lacks_what_it_acknowledged_is_found(keep: int, forgot_seal: bool) -> None:
    nodes = led()
    leader = nodes["a"].replica
    lost(nodes, "b", keep, TERM1 if forgot_seal else leader.sealed_epoch)
    nodes["a"].core.handle(START, PeerUp("b"))
    why, noticed = settle(nodes, START + 400 * MS, "b")
    assert len(why) == 1, (why, noticed)
    assert noticed
    assert "entry 6" in noticed[0]
    assert leader.term is not None
    assert leader.term.progress["b"].match == 0, "it counts in no quorum"


def test_one_that_has_it_all_is_not() -> None:
    nodes = led()
    lost(nodes, "b", 6, nodes["a"].replica.sealed_epoch)
    nodes["a"].core.handle(START, PeerUp("b"))
    assert settle(nodes, START + 400 * MS, "b") == ([], [])


@pytest.mark.parametrize("number", range(3))
def test_a_late_message_makes_nobody_lack_anything(number: int) -> None:
    """Networks that lose the order of messages: the follower knows best, and says so. Each of the three that a follower may have
    sent before it acknowledged, alone."""
    nodes = led()
    leader, b = nodes["a"], nodes["b"]
    now, epoch = START + 400 * MS, leader.replica.sealed_epoch
    late = m.Missed(0, epoch, TERM1, 2), m.Refused(0, epoch, TERM1), m.Sealed(0, epoch, TERM1, 2, 0, 0)
    leader.core.handle(now, late[number], b.me)
    recalls = [e for e in leader.core.effects if isinstance(e, fx.Send) and isinstance(e.message, m.Recall)]
    assert recalls == []
    why, noticed = settle(nodes, now, "b")
    leader.core.handle(now + 400 * MS, Tick(False))
    why += settle(nodes, now + 400 * MS, "b")[0]
    assert (why, noticed) == ([], []), "nobody is even asked"
    assert leader.replica.term is not None
    assert leader.replica.term.progress["b"].match == 6


def test_what_a_recall_means_to_whom() -> None:
    nodes = led()
    b, epoch = nodes["b"], nodes["a"].replica.sealed_epoch
    b.core.handle(START, LineageKnown(("1", "0")))
    later = first_epoch(9)
    for src, message, lacks in (
        (LEADER, m.Recall(0, epoch, 6, "0"), False),
        (LEADER, m.Recall(0, epoch, 7, "0"), True),
        (process("c"), m.Recall(0, epoch, 7, "0"), False),  # the epoch is not its own
        (Process("a", "other", "now"), m.Recall(0, later, 7, "0"), False),  # no member
        (LEADER, m.Recall(0, TERM1, 99, "0"), False),  # since then a suffix may have gone by right
        (LEADER, m.Recall(0, epoch, 7, "1"), False),  # what this process acknowledged it knows itself
        (LEADER, m.Recall(0, epoch, 7, "x"), False),  # no process of this store
        (process("c"), m.Recall(0, later, 7, "0"), True),  # it had sealed that
        (process("c"), m.Recall(0, first_epoch(1 << 40), 7, "0"), False),  # not credible
    ):
        b.core.handle(START, message, src)
        assert bool(condemned(b)) == lacks, message


def test_what_was_dropped_by_right_is_not_missed() -> None:
    """R10: a replica that left and comes again is empty, and its sealed epoch is what it was."""
    epoch = TERM1 + 5
    node = Node(process("b"), Restored(LogIndex(), epoch, LEADER, replace(CONFIG, epoch=epoch), 0, epoch))
    node.core.handle(START, LineageKnown(("1", "0")))
    node.core.handle(START, m.Recall(0, epoch, 7, "0"), LEADER)
    assert condemned(node) == []
    node.core.handle(START, m.Recall(0, epoch + 1, 7, "0"), LEADER)
    assert condemned(node)


def test_learners_are_not_recalled() -> None:
    nodes = led()
    term = nodes["a"].replica.term
    assert term is not None
    term.learn("d", "sd")
    term.progress["d"].acked = 4
    nodes["a"].core.handle(START, m.Missed(0, term.epoch, 0, 0), Process("d", "sd", "1"))
    assert nodes["a"].sent(m.Recall) == []


# --- a new store under an old name ------------------------------------------------------------------


A, B, C, D = (("a", "sa"), ("b", "sb"), ("c", "sc"), ("d", "sd"))
NEW_A, NEW_C = ("a", "sa2"), ("c", "sc2")


@pytest.mark.parametrize(
    ("replicas", "target", "goes_to"),
    [
        ((A, B, C), (A, B, D), (A, B, D)),
        ((A, B, C), (A, B, NEW_C), (A, B)),
        ((A, B), (A, B, NEW_C), (A, B, NEW_C)),
        ((A, B, C), (D, NEW_C), (A, B)),
        ((A, B, C), (NEW_A, B, NEW_C), (B,)),
        ((C,), (A, B, NEW_C), (A, B)),
        ((C,), (NEW_C,), (C,)),  # nobody could do it
    ],
)
def test_no_term_has_two_stores_of_one_name(replicas: Any, target: Any, goes_to: Any) -> None:
    found = next_set(replicas, target)
    assert found == goes_to
    assert len(dict(replicas + found)) == len(set(replicas + found))


def test_a_new_store_joins_in_two_steps_and_never_counts_for_the_old() -> None:
    nodes = led()
    leader, now = nodes["a"].replica, START + 1000 * MS
    record = replace(CONFIG, epoch=leader.sealed_epoch)
    leader.on_config(now, record, 10)
    leader.home, leader.move = "c1", MoveRecord(0, "c1", (A, B, NEW_C))
    replaced = Process("c", "sc2", "1")
    revision, steps = 10, []
    for _ in range(40):
        now += 600 * MS
        nodes["a"].core.handle(now, Tick(True))
        for e in nodes["a"].take():
            if isinstance(e, fx.ChangeConfig):
                revision += 1
                steps.append((e.new.replicas, e.new.joint))
                leader.on_change_done(now, e.new, revision, e.reason)
            elif isinstance(e, fx.Send) and e.node == "a":
                nodes["a"].core.handle(now, e.message, LEADER)
            elif isinstance(e, fx.Send) and e.node == "b":
                nodes["b"].core.handle(now, e.message, LEADER)
                for back in nodes["b"].take():
                    if isinstance(back, fx.Send) and back.node == "a":
                        nodes["a"].core.handle(now, back.message, nodes["b"].me)
            elif isinstance(e, fx.Send) and e.node == "c" and isinstance(e.message, m.Seal):
                # the new store answers whatever is said to its name; as a learner it has everything at once
                term = leader.term
                assert term is not None
                nodes["a"].core.handle(now, m.Sealed(0, term.epoch, 0, 0, 0, 0), replaced)
                counts = ("c", "sc2") in term.members
                assert ("c" in term.answers) <= counts, "the new store answers for the old"
            elif isinstance(e, fx.Send) and e.node == "c" and isinstance(e.message, m.Append):
                match = e.message.prev_index + len(e.message.entries)
                before = leader.term.progress["c"].match if leader.term else 0
                nodes["a"].core.handle(now, m.Appended(0, e.message.epoch, match), replaced)
                known = leader.term is not None and (
                    ("c", "sc2") in leader.term.members or "c" in leader.term.learners
                )
                assert known or leader.term is None or leader.term.progress["c"].match == before
        if steps and steps[-1] == ((A, B, NEW_C), None):
            break
    assert steps == [
        ((A, B, C), (A, B)),
        ((A, B), None),
        ((A, B), (A, B, NEW_C)),
        ((A, B, NEW_C), None),
    ]


def test_another_store_says_nothing_for_the_member_before_an_election() -> None:
    """R9: a majority that has lost the leader is one of members."""
    node = Node(process("b"), Restored(LogIndex(), TERM1, LEADER, CONFIG, 0))
    node.core._ctx.down.add("a")
    replica = node.replica
    for at in range(100):
        node.core.handle(START + at * 20 * MS, Tick(False))
    asked = node.sent(m.PreVote)
    assert asked
    reply = m.PreVoteReply(0, TERM1, asked[-1].round, True)
    node.core.handle(START, reply, Process("c", "sc2", "1"))
    assert replica.term is None
    node.core.handle(START, reply, process("c"))
    assert replica.term is not None
