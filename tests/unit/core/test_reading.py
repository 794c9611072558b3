"""R8: what allows a leader to answer a read, to the nanosecond; R3 and R4: who has to wait for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metastore.core import messages as m
from metastore.core.events import QuorumAsked, Restored, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.settings import MS, CoreSettings
from metastore.layout import first_epoch
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, deliver, followers, led, process, seal

SETTINGS = CoreSettings()
GRANT = SETTINGS.grant_ns
#: twice the clock rate error of 500 millionths, rounded up
MARGIN = GRANT // 1000 + 1


def beat(nodes: dict[str, Node], now: int) -> m.Heartbeat:
    """The leader's next heartbeat, sent at ``now``."""
    a = nodes["a"]
    a.core.handle(now, QuorumAsked())
    said: list[m.Heartbeat] = a.sent(m.Heartbeat)
    return said[0]


def acknowledge(nodes: dict[str, Node], now: int, name: str, number: int, grant_ns: int = GRANT) -> None:
    nodes["a"].core.handle(now, m.HeartbeatAck(number, 0, grant_ns, []), process(name))


def test_a_grant_counts_from_the_sending_less_the_margin() -> None:
    nodes = led()
    r = nodes["a"].replica
    sent = START + 1000 * MS
    acknowledge(nodes, sent + 100 * MS, "b", beat(nodes, sent).number)
    until = sent + GRANT - MARGIN
    assert r.term is not None
    assert r.term.read_until_ns == until
    assert r.can_read(until - 1)
    assert not r.can_read(until)


def test_the_acknowledgement_says_how_long_the_grant_is() -> None:
    """Settings of two nodes may differ: what was promised counts."""
    nodes = led()
    sent = START + 1000 * MS
    acknowledge(nodes, sent, "b", beat(nodes, sent).number, 100 * MS)
    assert nodes["a"].replica.term is not None
    assert nodes["a"].replica.term.read_until_ns == sent + 100 * MS - 100_001


def test_a_late_answer_takes_no_grant_back() -> None:
    nodes = led()
    first, second = START + 1000 * MS, START + 1200 * MS
    one, two = beat(nodes, first), beat(nodes, second)
    acknowledge(nodes, second + MS, "b", two.number)
    acknowledge(nodes, second + 2 * MS, "b", one.number)
    assert nodes["a"].replica.can_read(second + GRANT - MARGIN - 1)


def test_one_grant_of_three_is_none() -> None:
    nodes = led()
    r, now = nodes["a"].replica, START + 1000 * MS
    assert not r.can_read(now)
    acknowledge(nodes, now, "a", beat(nodes, now).number)
    assert not r.can_read(now), "its own counts already"


def test_an_answer_grants_once_and_only_what_it_does_not_refuse() -> None:
    nodes = led()
    a, now = nodes["a"], START + 1000 * MS
    number = beat(nodes, now).number
    a.core.handle(now, m.HeartbeatAck(number, 0, GRANT, [(0, 0)]), process("b"))
    assert not a.replica.can_read(now)
    acknowledge(nodes, now, "b", number)
    assert not a.replica.can_read(now), "heard already"
    acknowledge(nodes, now, "b", number + 1)
    assert not a.replica.can_read(now), "never sent"


def test_who_is_not_active_reads_nothing() -> None:
    nodes = led()
    r, now = nodes["a"].replica, START + 1000 * MS
    acknowledge(nodes, now, "b", beat(nodes, now).number)
    assert r.can_read(now)
    mark = nodes["a"].core.last_number - 1
    for role in ("follower", "sealing", "adopting", "activating", "resigning", "resigned"):
        r.role = role
        assert not r.can_read(now)
        assert not r.confirmed_since(mark)


def test_a_grant_of_an_earlier_reign_is_none_in_the_next() -> None:
    """R1: the beats say which epoch they were sent under."""
    nodes = led()
    a, now = nodes["a"], START + 1000 * MS
    number = beat(nodes, now).number
    a.replica.elect_without_etcd(now, "again")
    deliver(nodes, now)
    assert a.replica.role == "active"
    acknowledge(nodes, now, "b", number)
    assert not a.replica.can_read(now)
    assert not a.replica.confirmed_since(number - 1)


def test_only_what_was_sent_after_a_read_came_confirms_it() -> None:
    """The heartbeat that was sent before it may have been answered before a later leader was sealed."""
    nodes = led()
    a, now = nodes["a"], START + 1000 * MS
    before = beat(nodes, now)
    mark = a.core.last_number
    acknowledge(nodes, now, "b", before.number)
    assert not a.replica.confirmed_since(mark)
    after = beat(nodes, now)
    acknowledge(nodes, now, "b", after.number)
    assert a.replica.confirmed_since(mark)


def test_confirmation_takes_a_quorum() -> None:
    five = replace(CONFIG, replicas=tuple((n, "s" + n) for n in "abcde"))
    nodes = {n: Node(process(n), Restored(LogIndex(), TERM1, process("a", "0"), five, 0)) for n in "abcde"}
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START)
    a, now = nodes["a"], START + 1000 * MS
    mark, number = a.core.last_number, beat(nodes, now).number
    acknowledge(nodes, now, "b", number)
    assert not a.replica.confirmed_since(mark)
    acknowledge(nodes, now, "e", number)
    assert a.replica.confirmed_since(mark)


# --- a restarted replica has forgotten its grants ----------------------------------------------------


def restarted(name: str = "b") -> Node:
    """It began at START, and an earlier run had granted up to GRANT."""
    restored = Restored(LogIndex(), TERM1, process("a", "0"), CONFIG, 0)
    return Node(process(name), restored, began=START, largest_grant_ns=GRANT)


WAIT = START + GRANT + MARGIN


def test_a_restarted_replica_seals_nothing_before_its_grants_are_over() -> None:
    """With the margin: its clock may be the faster one."""
    node = restarted()
    message = seal(first_epoch(2), replace(CONFIG, epoch=first_epoch(2), leader="c"))
    node.core.handle(WAIT - 1, message, process("c"))
    assert node.take() == []
    assert node.replica.sealed_epoch == TERM1
    node.core.handle(WAIT, message, process("c"))
    assert [s.remaining_grant_ns for s in node.sent(m.Sealed)] == [0]


def test_nor_its_own_seal() -> None:
    """Its own answer counts in the quorum of R4 like any other."""
    node = restarted("a")
    node.replica.elect_without_etcd(START, "test")
    (message,) = (s for s in node.sent(m.Seal)[:1])
    node.core.handle(WAIT - 1, message, node.me)
    assert node.sent(m.Sealed) == []
    node.core.handle(WAIT, message, node.me)
    assert len(node.sent(m.Sealed)) == 1


def test_who_never_granted_anything_need_not_wait() -> None:
    node = Node(process("b"), Restored(LogIndex(), 0, None, CONFIG, 0), began=START)
    node.core.handle(START, seal(TERM1, CONFIG), process("a"))
    assert len(node.sent(m.Sealed)) == 1


# --- R3: what is left of grants given ----------------------------------------------------------------


def left(grants: list[tuple[Process, int, int]], owner: str = "c") -> int:
    """What ``b`` answers to ``owner``, given grants of (process, epoch, ms from now)."""
    node = followers(process("a"), "b")["b"]
    for holder, epoch, ms in grants:
        node.replica.grants[holder] = epoch, START + ms * MS
    second = first_epoch(2)
    node.core.handle(START, seal(second, replace(CONFIG, epoch=second, leader=owner)), process(owner))
    (answer,) = node.sent(m.Sealed)
    return int(answer.remaining_grant_ns) // MS


@pytest.mark.parametrize("order", [(900, 300), (300, 900)])
def test_the_longest_of_several_grants_counts(order: tuple[int, int]) -> None:
    assert left([(process("a"), TERM1, order[0]), (process("d"), TERM1 - 1, order[1])]) == 900


def test_grants_that_are_over_and_ones_own_count_for_nothing() -> None:
    assert left([(process("a"), TERM1, 0), (process("d"), TERM1, -5)]) == 0
    assert left([(process("c"), TERM1, 900)]) == 0
    assert left([(process("c", "0"), TERM1, 900)]) == 900, "an earlier run of it may be reading still"


def test_a_leader_grants_itself_nothing_that_others_wait_for() -> None:
    node = followers(process("a"), "a")["a"]
    node.core.handle(START, m.Heartbeat(1, 0, [(0, TERM1, 1, 0)]), process("a"))
    assert node.replica.grants == {}


# --- R4 ------------------------------------------------------------------------------------------------


def test_activation_waits_for_grants_since_their_answer_came() -> None:
    """The no-op may be committed long before: nothing is read or proposed until the last moment."""
    old = process("c", "0")
    nodes = followers(process("a", "0"), "a", "b", "c")
    for name in "bc":
        nodes[name].replica.grants[old] = TERM1, START + GRANT
    nodes["a"].replica.elect_without_etcd(START, "test")
    came = START + 50 * MS
    deliver(nodes, came)
    r = nodes["a"].replica
    assert (r.role, r.commit_index) == ("activating", 1)
    due = came + SETTINGS.stretched(GRANT - 50 * MS)
    nodes["a"].core.handle(due, Tick(False))
    assert r.role == "activating"
    nodes["a"].core.handle(due + 1, Tick(False))
    assert r.role == "active"


def test_activation_waits_for_the_no_op() -> None:
    def drop(src: str, dst: str, message: object) -> bool:
        return isinstance(message, m.Append)

    nodes = followers(process("a", "0"), "a", "b", "c")
    nodes["a"].replica.elect_without_etcd(START, "test")
    deliver(nodes, START, drop)
    nodes["a"].core.handle(START + 10_000 * MS, Tick(False))
    assert nodes["a"].replica.role == "activating"
