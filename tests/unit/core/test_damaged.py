"""R14: a replica whose state is damaged keeps what its log has promised, leads nothing, and asks for another state."""

from __future__ import annotations

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.replica import InvariantBroken, Restored
from metastore.core.settings import MS, CoreSettings
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, deliver, led, log_of, process
from tests.unit.core.test_electing import campaigns, prevotes, replica, ticks

OWNER = process("a")
NO_CLAIMS = CoreSettings(claim_without_etcd=False)


def damaged(commit: int = 2) -> Node:
    """A follower whose log has three entries."""
    node = Node(process("b"), Restored(log_of(TERM1, TERM1, TERM1), TERM1, OWNER, CONFIG, commit))
    node.take()
    node.replica.lose_state()
    return node


def staged(node: Node, index: int, epoch: int = TERM1) -> list[fx.InstallSnapshot | fx.DiscardSnapshot]:
    node.replica.on_snapshot_staged(START, OWNER, TERM1, index, epoch)
    return [e for e in node.core.effects if isinstance(e, fx.InstallSnapshot | fx.DiscardSnapshot)]


def test_it_does_not_campaign() -> None:
    """The leader key gone, or the leader silent: not while it is damaged."""
    for gone in (True, False):
        node = replica()
        if gone:
            node.replica.on_leader_value(None)
        node.replica.lose_state()
        found = ticks(node, 0, 6000)
        assert not campaigns(found)
        assert not prevotes(found)
    well = replica()
    well.replica.on_leader_value(None)
    assert campaigns(ticks(well, 0, 6000)), "as one does whose state is sound"


def test_it_takes_no_leadership_that_is_handed_over() -> None:
    node = replica()
    node.replica.lose_state()
    node.core.receive(START, OWNER, m.HandOff(0, TERM1))
    assert not campaigns(node.take())


def test_a_restarted_owner_does_not_go_on() -> None:
    """R12, without etcd, and without claims: it owned the newest epoch itself."""
    node = Node(
        process("a", "2"), Restored(log_of(TERM1), TERM1, process("a", "1"), CONFIG, 1), settings=NO_CLAIMS
    )
    node.replica.lose_state()
    node.core.resume_all(START)
    assert node.replica.term is None
    assert node.replica.sealed_epoch == TERM1


def test_it_asks_its_leader_again_and_again() -> None:
    node = damaged()
    asked = []
    for ms in range(0, 5000, 100):
        node.replica.tick_damaged(START + ms * MS)
        asked += node.sent(m.Rebuild)
    assert asked == [m.Rebuild(0, TERM1)] * 3


def test_a_leader_sends_a_snapshot_and_goes_on_as_before() -> None:
    nodes = led()
    a, b = nodes["a"], nodes["b"]
    epoch = a.replica.sealed_epoch
    a.core.receive(START, b.me, m.Rebuild(0, epoch))
    assert fx.StartSnapshot(0, "b", epoch) in a.take()
    assert a.replica.term is not None
    assert not a.replica.term.progress["b"].snapshotting_since_ns, "its log is fed on"
    a.core.receive(START, b.me, m.Rebuild(0, epoch - 1))
    a.core.receive(START, process("d"), m.Rebuild(0, epoch))
    a.replica.lose_state()
    a.core.receive(START, b.me, m.Rebuild(0, epoch))
    assert not [e for e in a.take() if isinstance(e, fx.StartSnapshot)], "stale, no member, or damaged itself"


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_snapshot_takes_the_place_of_the_state_alone(index: int) -> None:
    """The log stays, and with it the position and all that was acknowledged; what is committed never falls (I7)."""
    node = damaged()
    assert staged(node, index) == [fx.InstallSnapshot(0, index, TERM1, keep_log=True)]
    node.take()
    assert node.replica.installing
    node.replica.on_rebuilt(START, True)
    assert not node.replica.damaged
    assert not node.replica.installing
    assert node.replica.log.last_position() == (TERM1, 3)
    assert node.replica.commit_index == max(2, index)
    assert node.sent(m.Missed) == [m.Missed(0, TERM1, TERM1, 3)], "what it let pass is sent again"


def test_a_snapshot_that_the_log_does_not_reach_is_another_matter() -> None:
    """Below the base there would be a gap; of another epoch, or beyond the end, it is one as for any follower (R17)."""
    node = damaged()
    node.replica.log.compact(2)
    assert staged(node, 1) == [fx.DiscardSnapshot(0)]
    assert node.replica.damaged
    node = damaged()
    assert staged(node, 9) == [fx.InstallSnapshot(0, 9, TERM1)]
    node.take()
    node.replica.on_snapshot_installed(START, 9, TERM1)
    assert not node.replica.damaged
    assert node.replica.log.last_position() == (TERM1, 9)


def test_one_that_could_not_be_switched_in_changes_nothing() -> None:
    node = damaged()
    staged(node, 2)
    node.take()
    node.replica.on_rebuilt(START, False)
    assert node.replica.damaged
    with pytest.raises(InvariantBroken):
        node.replica.on_rebuilt(START, True)


def test_a_sound_replica_keeps_its_state() -> None:
    node = Node(process("b"), Restored(log_of(TERM1, TERM1, TERM1), TERM1, OWNER, CONFIG, 2))
    assert staged(node, 2) == [fx.DiscardSnapshot(0)]


def test_it_acknowledges_as_before() -> None:
    """Its log and its seal are sound: it counts in quorums."""
    nodes = led()
    nodes["b"].replica.lose_state()
    nodes["c"].up = False
    index = nodes["a"].replica.propose(START, b"")
    deliver(nodes, START)
    assert nodes["a"].replica.commit_index == index
