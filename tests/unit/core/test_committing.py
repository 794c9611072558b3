"""R5, R6, R11, R17: what is taken into a log, what counts as committed, and what a leader may leave behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.events import Compacted, PeerUp, QuorumAsked, Restored, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.replica import InvariantBroken
from metastore.core.settings import MS
from metastore.errors import ProtocolError
from metastore.layout import first_epoch
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, blob, deliver, led, log_of, process, seal

OWNER = process("a")
OLD, NOW = TERM1 - 1, TERM1


def follower(log: LogIndex | None = None, commit: int = 0) -> Node:
    return Node(process("b"), Restored(log or LogIndex(), NOW, OWNER, CONFIG, commit))


def append(node: Node, prev: tuple[int, int], *blobs: bytes, commit: int = 0) -> list[Any]:
    """What the follower does about it; ``prev`` = (epoch, index)."""
    node.core.handle(START, m.Append(0, NOW, *prev, commit, list(blobs)), OWNER)
    return node.take()


def answers(effects: list[Any]) -> list[Any]:
    return [e.message for e in effects if isinstance(e, fx.Send)]


# --- R5: what a follower takes -------------------------------------------------------------------------


def test_what_follows_is_appended_and_acknowledged() -> None:
    node = follower(log_of(OLD))
    blobs = [blob(2, NOW), blob(3, NOW)]
    assert append(node, (OLD, 1), *blobs) == [
        fx.PersistEntries(0, blobs, 0, NOW, [None, None]),
        fx.Send("a", m.Appended(0, NOW, 3), True),
    ]


def test_what_is_there_already_stays() -> None:
    """A late copy of an APPEND takes nothing back that a later one brought."""
    node = follower(log_of(OLD, NOW, NOW))
    assert append(node, (OLD, 1), blob(2, NOW)) == [fx.Send("a", m.Appended(0, NOW, 2), True)]
    assert node.replica.log.last_index == 3


def test_a_conflicting_suffix_goes_first() -> None:
    node = follower(log_of(OLD, OLD, OLD, OLD))
    new = blob(3, NOW)
    effects = append(node, (OLD, 1), blob(2, OLD), new)
    assert effects[:2] == [fx.PersistTruncate(0, 2, NOW), fx.PersistEntries(0, [new], 0, NOW, [None])]
    assert node.replica.log.last_position() == (NOW, 3)


def test_nothing_committed_is_taken_back() -> None:
    """I4: what is committed is equal everywhere, so nothing that comes can contradict it: it is passed over."""
    node = follower(log_of(OLD, OLD, OLD), 3)
    effects = append(node, (OLD, 1), blob(2, NOW), blob(3, NOW))
    assert [type(e) for e in effects] == [fx.Send]
    with pytest.raises(InvariantBroken, match="I4"):
        node.replica.truncate(2)


@pytest.mark.parametrize("prev", [(NOW, 3), (NOW, 2), (OLD, 5)])
def test_a_log_that_lacks_the_entry_before_says_where_it_stands(prev: tuple[int, int]) -> None:
    """By epoch and index: an entry of another epoch is another entry."""
    node = follower(log_of(OLD, OLD))
    assert answers(append(node, prev, blob(prev[1] + 1, NOW))) == [m.Missed(0, NOW, OLD, 2)]
    assert node.replica.log.last_index == 2


@pytest.mark.parametrize(
    "blobs",
    [
        [blob(3, NOW)],
        [blob(2, NOW), blob(4, NOW)],
        [blob(2, NOW), blob(3, OLD)],
        [blob(2, NOW + 1)],
        [blob(2, OLD - 1)],
        [blob(2, NOW)[:-1] + b"?"],
        [blob(2, NOW, b"x")[:-1] + b"y"],
        [b"short"],
    ],
)
def test_entries_that_do_not_follow_on_cost_the_connection(blobs: list[bytes]) -> None:
    node = follower(log_of(OLD))
    with pytest.raises(ProtocolError):
        append(node, (OLD, 1), *blobs)
    assert node.take() == []
    assert node.replica.log.last_index == 1


def test_nothing_is_appended_while_a_snapshot_is_switched_in() -> None:
    node = follower(log_of(OLD))
    node.replica.installing = True
    assert append(node, (OLD, 1), blob(2, NOW)) == []


# --- R6: how far a follower counts as committed -----------------------------------------------------------


def test_a_follower_commits_no_further_than_this_append_matched() -> None:
    """Beyond that its log may hold what an earlier leader alone appended."""
    node = follower(log_of(OLD, OLD, OLD))
    effects = append(node, (OLD, 1), blob(2, OLD), commit=3)
    assert node.replica.commit_index == 2
    assert fx.Committed(0, 2) in effects


def test_nor_further_than_the_leader() -> None:
    node = follower()
    append(node, (0, 0), blob(1, NOW), blob(2, NOW), commit=1)
    assert node.replica.commit_index == 1


def test_a_heartbeat_commits_nothing() -> None:
    node = follower(log_of(OLD, OLD, OLD), 1)
    node.core.handle(START, m.Heartbeat(7, 0, [(0, NOW, 1, 3)]), OWNER)
    assert node.replica.commit_index == 1
    assert not [e for e in node.take() if isinstance(e, fx.Committed)]


def test_commit_never_goes_back() -> None:
    node = follower(log_of(OLD, OLD, OLD), 3)
    append(node, (OLD, 3), commit=1)
    assert node.replica.commit_index == 3


# --- R6: what a leader counts -----------------------------------------------------------------------------


def drop_appends_to_c(src: str, dst: str, message: Any) -> bool:
    return dst == "c" and isinstance(message, m.Append)


def test_a_leader_counts_its_own_copy_when_it_is_durable() -> None:
    nodes = led()
    a = nodes["a"]
    index = a.replica.propose(START, b"")
    effects = a.take()
    own = [e for e in effects if isinstance(e, fx.Send) and e.node == "a"]
    assert own == [fx.Send("a", m.Appended(0, TERM1 + 1, index), True)]
    assert a.replica.commit_index == index - 1
    a.core.handle(START, m.Appended(0, TERM1 + 1, index), process("b"))
    assert a.replica.commit_index == index - 1, "one of three"
    a.core.handle(START, own[0].message, a.me)
    assert a.replica.commit_index == index


def test_a_follower_that_was_sent_again_what_it_had_hears_what_is_committed() -> None:
    """Its one acknowledgement of two entries was late, so the leader had begun again with the first, and said with it that
    both are committed; a follower commits no further than such a message reaches."""
    nodes = led()
    leader, behind = nodes["a"], nodes["b"]
    leader.core._ctx.settings = replace(leader.core.ctx.settings, max_append_bytes=1)
    late: list[m.Append] = []

    def keep(_: str, to: str, message: Any) -> bool:
        if to == "b" and isinstance(message, m.Append):
            late.append(message)
            return True
        return False

    for payload in (b"first", b"second"):
        leader.replica.propose(START, payload)
    deliver(nodes, START, keep)
    now = START + leader.core._ctx.settings.retry_ns
    leader.core.handle(now, Tick(True))
    deliver(nodes, now, keep)
    assert [len(message.entries) for message in late] == [1, 1, 1]
    for message in late:
        behind.core.handle(now, message, leader.me)
    leader.core.handle(now, behind.sent(m.Appended)[1], behind.me)
    leader.core.handle(now, Tick(True))
    deliver(nodes, now)
    assert behind.replica.commit_index == leader.replica.commit_index == leader.replica.log.last_index


def test_entries_of_earlier_epochs_commit_with_one_of_its_own() -> None:
    """Figure 8 of the Raft paper: a majority that has an old entry does not make it committed."""
    nodes = {
        n: Node(process(n), Restored(log_of(OLD, OLD), NOW, process("a", "0"), CONFIG, 0)) for n in "abc"
    }
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START, lambda s, d, x: isinstance(x, m.Append))
    a, epoch = nodes["a"], NOW + 1
    assert a.replica.role == "activating"
    for name in "abc":
        a.core.handle(START, m.Appended(0, epoch, 2), process(name))
    assert a.replica.commit_index == 0
    a.core.handle(START, m.Appended(0, epoch, 3), process("b"))
    a.core.handle(START, m.Appended(0, epoch, 3), process("c"))
    assert a.replica.commit_index == 3


@pytest.mark.parametrize("src", [Process("b", "another store", "1"), process("x")], ids=str)
def test_only_members_own_stores_count(src: Process) -> None:
    """R13: a node that came back with another store has nothing of what the old one acknowledged."""
    nodes = led(drop=drop_appends_to_c)
    a = nodes["a"]
    epoch = TERM1 + 1
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Appended(0, epoch, index), a.me)
    a.core.handle(START, m.Appended(0, epoch, index), src)
    assert a.replica.commit_index == index - 1
    number = a.core.last_number
    a.core.handle(START, QuorumAsked())
    a.core.handle(START, m.HeartbeatAck(number + 1, 0, 900 * MS, []), src)
    assert not a.replica.can_read(START)


@pytest.mark.parametrize("src", [Process("b", "another store", "1"), process("x")], ids=str)
def test_only_members_own_stores_answer_a_seal(src: Process) -> None:
    node = Node(process("a"), Restored(log_of(OLD), NOW, process("a", "0"), CONFIG, 0))
    node.replica.elect_without_etcd(START, "test")
    epoch = NOW + 1
    node.core.handle(START, m.Sealed(0, epoch, OLD, 1, 0, 0), node.me)
    node.core.handle(START, m.Sealed(0, epoch, OLD, 1, 0, 0), src)
    assert node.replica.role == "sealing"
    node.core.handle(START, m.Sealed(0, epoch, OLD, 1, 0, 0), process("b"))
    assert node.replica.role == "activating"


def test_an_acknowledgement_of_another_epoch_counts_for_nothing() -> None:
    nodes = led(drop=drop_appends_to_c)
    a = nodes["a"]
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Appended(0, TERM1 + 1, index), a.me)
    for epoch in (TERM1, TERM1 + 2):
        a.core.handle(START, m.Appended(0, epoch, index), process("b"))
    assert a.replica.commit_index == index - 1


def test_nobody_acknowledges_what_there_is_not() -> None:
    nodes = led()
    a = nodes["a"]
    last = a.replica.log.last_index
    a.core.handle(START, m.Appended(0, TERM1 + 1, last + 5), process("b"))
    assert a.replica.term is not None
    assert a.replica.term.progress["b"].match == last


def test_a_learner_counts_in_no_quorum() -> None:
    """R10."""
    nodes = led(drop=drop_appends_to_c)
    a, epoch = nodes["a"], TERM1 + 1
    assert a.replica.term is not None
    a.replica.term.learn("x", "sx")
    index = a.replica.propose(START, b"")
    a.core.handle(START, m.Appended(0, epoch, index), a.me)
    a.core.handle(START, m.Sealed(0, epoch, 0, 0, 0, 0), process("x"))
    a.core.handle(START, m.Appended(0, epoch, index), process("x"))
    assert a.replica.term.progress["x"].match == index
    assert a.replica.commit_index == index - 1
    assert "x" not in a.replica.term.answers


def test_only_an_active_leader_proposes() -> None:
    nodes = led()
    r = nodes["a"].replica
    for role in ("sealing", "adopting", "activating", "resigning", "resigned", "follower"):
        r.role = role
        with pytest.raises(InvariantBroken, match="R4"):
            r.propose(START, b"")


# --- R3: adoption -----------------------------------------------------------------------------------------


def test_the_highest_log_of_a_quorum_is_adopted() -> None:
    """Epoch before length; what its own log has instead goes, and what is of the term is above it."""
    three = first_epoch(3)
    config = replace(CONFIG, epoch=three)
    old = process("c", "0")
    logs = {"a": log_of(1, 1, 1, 1), "b": log_of(1, 2, 2), "c": log_of(1)}
    nodes = {n: Node(process(n), Restored(log, three, old, config, 1)) for n, log in logs.items()}
    for n, log in logs.items():
        nodes[n].blobs = {
            i: blob(i, log.epoch_at(i), n.encode() if i > 1 else b"")
            for i in range(1, 5)
            if i <= log.last_index
        }
    b = dict(nodes["b"].blobs)
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    a = nodes["a"]
    assert a.replica.role == "active"
    assert {i: a.blobs[i] for i in (1, 2, 3)} == {**b, 1: blob(1, 1)}
    assert a.replica.log.epoch_at(4) == three + 1


def test_a_log_is_pulled_no_further_than_it_was_sealed() -> None:
    """R3: entries of the answer's position, and of no later epoch than it says."""
    node = Node(process("a"), Restored(log_of(1), NOW, process("a", "0"), CONFIG, 0))
    node.replica.elect_without_etcd(START, "test")
    epoch = NOW + 1
    for name, last in (("a", (1, 1)), ("b", (5, 3))):
        node.core.handle(START, m.Sealed(0, epoch, *last, 0, 0), process(name))
    assert node.replica.role == "adopting"
    for odd in ([blob(2, 6)], [blob(2, 5), blob(3, 5), blob(4, 5)]):
        with pytest.raises(ProtocolError):
            node.core.handle(START, m.Pulled(0, epoch, 1, 1, odd), process("b"))
    node.core.handle(START, m.Pulled(0, epoch, 1, 1, [blob(2, 5), blob(3, 5)]), process("c"))
    assert node.replica.log.last_index == 1, "it was not asked"
    node.core.handle(START, m.Pulled(0, epoch, 1, 1, [blob(2, 5), blob(3, 5)]), process("b"))
    assert node.replica.role == "activating"


# --- R11: what a leader resigns with -----------------------------------------------------------------------


def test_an_heir_has_the_whole_log_before_its_leader_resigns() -> None:
    nodes = led()
    a, epoch = nodes["a"], TERM1 + 1
    index = a.replica.propose(START, b"")
    a.take()
    assert a.replica.transfer(START, "b")
    a.core.handle(START, m.Appended(0, epoch, index), a.me)
    a.core.handle(START, m.Appended(0, epoch, index), process("c"))
    assert a.replica.commit_index == index
    assert a.replica.role == "resigning"
    assert not a.sent(m.HandOff)
    a.core.handle(START, m.Appended(0, epoch, index), process("b"))
    assert a.replica.role == "resigned"
    assert a.sent(m.HandOff) == [m.HandOff(0, epoch)]


def test_nor_before_all_of_it_is_committed() -> None:
    """What it proposed and nobody has answered yet would end as unknown."""
    nodes = led()
    a, epoch = nodes["a"], TERM1 + 1
    index = a.replica.propose(START, b"")
    assert a.replica.transfer(START, "b")
    five = a.replica.commit_index
    assert a.replica.term is not None
    a.replica.term.progress["b"].match = index
    a.replica.continue_handoff(START)
    assert (a.replica.role, a.replica.commit_index) == ("resigning", five)
    a.core.handle(START, m.Appended(0, epoch, index), a.me)
    a.core.handle(START, m.Appended(0, epoch, index), process("b"))
    assert a.replica.role == "resigned"


def test_who_resigned_neither_reads_nor_proposes_nor_goes_back() -> None:
    nodes = led()
    a, now = nodes["a"], START + 1000 * MS
    a.core.handle(now, QuorumAsked())
    a.core.handle(now, m.HeartbeatAck(a.core.last_number, 0, 900 * MS, []), process("b"))
    mark = a.core.last_number - 1
    assert a.replica.can_read(now)
    assert a.replica.transfer(now, "b")
    assert a.replica.role == "resigned", "b had everything already"
    assert not a.replica.can_read(now)
    assert not a.replica.confirmed_since(mark)
    a.take()
    for late in range(1, 200):
        a.core.handle(now + late * 100 * MS, Tick(False))
        assert a.replica.role in ("resigned", "sealing"), "in a new epoch at the earliest"
        if a.replica.role == "sealing":
            assert a.replica.sealed_epoch > TERM1 + 1
            return
        assert not a.sent(m.Heartbeat)


def test_leadership_goes_to_no_learner_and_no_stranger() -> None:
    nodes = led()
    a = nodes["a"]
    assert a.replica.term is not None
    a.replica.term.learn("x", "sx")
    a.replica.term.progress["x"].sealed = True
    for to in ("x", "y", "a"):
        assert not a.replica.transfer(START, to)
    assert a.replica.role == "active"


# --- R17: what a snapshot may replace ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "commit", "at"),
    [(log_of(OLD, OLD, OLD), 0, (2, OLD)), (log_of(OLD, OLD, OLD), 3, (2, NOW)), (log_of(OLD), 1, (1, OLD))],
)
def test_a_snapshot_of_what_is_here_is_not_switched_in(
    log: LogIndex, commit: int, at: tuple[int, int]
) -> None:
    """Such a log may have acknowledged what lies behind it."""
    node = follower(log, commit)
    node.replica.on_snapshot_staged(START, OWNER, NOW, *at)
    effects = node.take()
    assert fx.DiscardSnapshot(0) in effects
    assert answers(effects) == [m.Appended(0, NOW, at[0])]
    assert not node.replica.installing


@pytest.mark.parametrize("at", [(4, NOW), (2, NOW)])
def test_a_snapshot_of_what_is_not_here_is(at: tuple[int, int]) -> None:
    node = follower(log_of(OLD, OLD, OLD), 1)
    node.replica.on_snapshot_staged(START, OWNER, NOW, *at)
    assert node.take() == [fx.InstallSnapshot(0, *at)]
    node.replica.on_snapshot_installed(START, *at)
    assert answers(node.take()) == [m.Appended(0, NOW, at[0])]
    assert node.replica.log.last_position() == (at[1], at[0])
    assert node.replica.commit_index == at[0]


def test_a_snapshot_of_another_owner_or_epoch_is_refused() -> None:
    for src, epoch in ((process("c"), NOW), (process("a", "2"), NOW), (OWNER, NOW - 1), (OWNER, NOW + 1)):
        node = follower(log_of(OLD), 1)
        assert not node.replica.takes_snapshot(src, epoch)
        node.replica.on_snapshot_staged(START, src, epoch, 9, NOW)
        assert fx.DiscardSnapshot(0) in node.take()
        assert not node.replica.installing


def test_a_snapshot_that_nobody_asked_for_is_not_installed() -> None:
    node = follower(log_of(OLD, OLD), 2)
    with pytest.raises(InvariantBroken, match="R17"):
        node.replica.on_snapshot_installed(START, 9, NOW)
    node.replica.installing = True
    with pytest.raises(InvariantBroken, match="R17"):
        node.replica.on_snapshot_installed(START, 1, OLD)


def test_nothing_is_sealed_while_a_snapshot_is_switched_in() -> None:
    """R3: the position is read in the same step as the seal; there is none now."""
    node = follower(log_of(OLD), 1)
    node.replica.installing = True
    node.core.handle(
        START, seal(first_epoch(2), replace(CONFIG, epoch=first_epoch(2), leader="c")), process("c")
    )
    assert node.take() == []
    assert node.replica.sealed_epoch == NOW


def test_who_is_offered_a_snapshot_of_what_it_has_hears_what_is_committed() -> None:
    """R5, R17: its acknowledgements were lost, then its connection, and the log that it has is compacted away here. It
    says that it lacks nothing; what it was told of the commit before may have been lost with the connection."""
    nodes = led()
    leader, behind = nodes["a"].replica, nodes["c"].replica
    last = leader.propose(START, b"x")
    deliver(nodes, START, lambda src, dst, message: src == "c")
    later = START + 400 * MS
    nodes["a"].core.handle(later, Tick(True))
    deliver(nodes, later, lambda src, dst, message: "c" in (src, dst))
    assert (leader.commit_index, behind.log.last_index, behind.commit_index) == (last, last, last - 1)
    nodes["a"].core.handle(0, Compacted(0, last))
    nodes["a"].core.handle(later, PeerUp("c"))
    started = [e for e in nodes["a"].take() if isinstance(e, fx.StartSnapshot)]
    assert [e.node for e in started] == ["c"]
    nodes["a"].core.handle(later, m.Appended(0, leader.sealed_epoch, last), process("c"))
    nodes["a"].core.handle(later + 20 * MS, Tick(True))
    deliver(nodes, later + 20 * MS)
    assert behind.commit_index == last
