"""R14: a replica whose state is damaged keeps what its log has promised, leads nothing, and asks for another state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.events import PeerUp, Restored, Resumed, Tick
from metastore.core.replica import InvariantBroken
from metastore.core.settings import MS, CoreSettings
from metastore.errors import RottenEntry
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, blob, deliver, led, log_of, process, seal
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
    node.core.handle(START, m.HandOff(0, TERM1), OWNER)
    assert not campaigns(node.take())


def test_a_restarted_owner_does_not_go_on() -> None:
    """R12, without etcd, and without claims: it owned the newest epoch itself."""
    node = Node(
        process("a", "2"), Restored(log_of(TERM1), TERM1, process("a", "1"), CONFIG, 1), settings=NO_CLAIMS
    )
    node.replica.lose_state()
    node.core.handle(START, Resumed())
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
    a.core.handle(START, m.Rebuild(0, epoch), b.me)
    assert fx.StartSnapshot(0, "b", epoch) in a.take()
    assert a.replica.term is not None
    assert not a.replica.term.progress["b"].snapshotting_since_ns, "its log is fed on"
    a.core.handle(START, m.Rebuild(0, epoch - 1), b.me)
    a.core.handle(START, m.Rebuild(0, epoch), process("d"))
    a.replica.lose_state()
    a.core.handle(START, m.Rebuild(0, epoch), b.me)
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


# --- an entry of the log is lost ------------------------------------------------------------------------------


def rotten(index: int) -> RottenEntry:
    return RottenEntry("rot", partition=0, index=index, segment=1, offset=64)


def without(node: Node, index: int) -> Node:
    """Its log has everything but that entry, which it acknowledged."""
    whole = node.core._read_store

    def read(p: int, first: int, max_bytes: int) -> list[bytes]:
        if first == index:
            raise rotten(index)
        return whole(p, first, max_bytes)[: index - first if first < index else None]

    node.core._read_store = read
    return node


def lacking(index: int = 3) -> Node:
    """A follower whose log had three entries, two of them committed."""
    node = Node(process("b"), Restored(log_of(TERM1, TERM1, TERM1), TERM1, OWNER, CONFIG, 2))
    node.take()
    node.replica.lose_entry(index)
    return node


def test_who_lacks_what_it_acknowledged_counts_in_no_quorum() -> None:
    """It promises (R1), so that it can be brought up by whoever leads; it says nothing of its log, and takes no more in."""
    node = lacking()
    owner, epoch = process("c"), TERM1 + (1 << 16)
    config = dataclasses.replace(CONFIG, epoch=epoch, leader="c")
    node.core.handle(START, seal(epoch, config), owner)
    assert not node.sent(m.Sealed)
    assert node.replica.sealed_epoch == epoch
    node.core.handle(START, m.Append(0, epoch, TERM1, 3, 3, [blob(4, epoch)]), owner)
    assert not node.sent(m.Appended)
    assert node.replica.log.last_index == 3
    assert node.replica.commit_index == 2
    node.core.handle(START, m.Pull(0, epoch, TERM1, 1), owner)
    assert node.sent(m.Refused) == [m.Refused(0, epoch, epoch)]
    node.replica.tick_damaged(START)
    assert node.sent(m.Rebuild) == [m.Rebuild(0, epoch)]


def test_a_leader_that_lacks_an_entry_leads_no_more() -> None:
    nodes = led()
    nodes["a"].replica.lose_entry(1)
    assert nodes["a"].replica.term is None
    assert nodes["a"].replica.role == "follower"
    assert not campaigns(ticks(nodes["a"], 0, 6000))


def test_only_a_snapshot_of_what_is_behind_the_entry_makes_it_whole() -> None:
    node = lacking(3)
    assert staged(node, 2) == [fx.DiscardSnapshot(0)]
    assert node.replica.lost_index == 3
    node.take()
    assert staged(node, 3) == [fx.InstallSnapshot(0, 3, TERM1, keep_log=True)]
    node.replica.on_rebuilt(START, False)
    assert node.replica.lost_index == 3
    node.take()
    staged(node, 3)
    node.replica.on_rebuilt(START, True)
    assert (node.replica.lost_index, node.replica.damaged) == (0, False)
    node.take()
    node.core.handle(START, m.Append(0, TERM1, TERM1, 3, 3, [blob(4, TERM1)]), OWNER)
    assert node.sent(m.Appended) == [m.Appended(0, TERM1, 4)]


def test_a_snapshot_that_takes_the_logs_place_makes_it_whole_too() -> None:
    node = lacking(3)
    assert staged(node, 9) == [fx.InstallSnapshot(0, 9, TERM1)]
    node.replica.on_snapshot_installed(START, 9, TERM1)
    assert (node.replica.lost_index, node.replica.damaged) == (0, False)


def test_the_first_entry_that_is_lost_counts() -> None:
    node = lacking(3)
    node.replica.lose_entry(2)
    node.replica.lose_entry(3)
    assert node.replica.lost_index == 2


def test_a_follower_that_needs_what_has_rotted_at_its_leader_gets_a_snapshot() -> None:
    """And the driver is told."""
    nodes = led()
    a = nodes["a"]
    nodes["c"].up = False
    for _ in range(3):
        a.replica.propose(START, b"")
        deliver(nodes, START)
    assert a.replica.commit_index == 4
    without(a, 3)
    nodes["c"].up = True
    a.core.handle(START, PeerUp("c"))
    found: list[Any] = []
    for ms in range(0, 3000, 50):
        a.core.handle(START + ms * MS, Tick(True))
        for effect in a.take():
            found.append(effect)
            if isinstance(effect, fx.Send) and effect.node == "c":
                nodes["c"].core.handle(START + ms * MS, effect.message, a.me)
        for message in (e for e in nodes["c"].take() if isinstance(e, fx.Send) and e.node == "a"):
            a.core.handle(START + ms * MS, message.message, nodes["c"].me)
    assert [e.error.detail["index"] for e in found if isinstance(e, fx.Rotten)][:1] == [3]
    assert fx.StartSnapshot(0, "c", a.replica.sealed_epoch) in found
    assert a.replica.role == "active", "what its state has it has"
    assert nodes["c"].replica.log.last_index == 2, "and what comes before the entry was sent"
    for match in (1, 2, 2):
        a.core.handle(START, m.Appended(0, a.replica.sealed_epoch, match), nodes["c"].me)
    sent = [e for e in a.take() if isinstance(e, fx.Send) and e.node == "c"]
    assert not [e for e in sent if isinstance(e.message, m.Append)], (
        "it waits for the snapshot, whatever it says before"
    )
    a.core.handle(START, m.Appended(0, a.replica.sealed_epoch, 3), nodes["c"].me)
    assert [
        e for e in a.take() if isinstance(e, fx.Send) and isinstance(e.message, m.Append) and e.node == "c"
    ]


@pytest.mark.parametrize("has_it", [True, False])
def test_who_adopts_gets_a_snapshot_or_looks_elsewhere(has_it: bool) -> None:
    """R3: the replica whose log is to be adopted cannot read it. If its state has the entry, so does its snapshot; if not,
    its answer to SEAL is void, and the others may be a quorum without it."""
    nodes = led()
    nodes["c"].up = False
    nodes["a"].replica.propose(START, b"")
    deliver(nodes, START)
    nodes["a"].up, nodes["c"].up = False, True
    b, c = without(nodes["b"], 2), nodes["c"]
    epoch = b.replica.sealed_epoch + 1
    c.replica.elect_without_etcd(START, "test")
    found = list(pump(nodes))
    assert c.replica.role == "adopting"
    assert fx.StartSnapshot(0, "c", epoch) in found
    if has_it:
        return
    b.replica.lose_entry(2)
    for ms in range(0, 3000, 100):
        c.core.handle(START + ms * MS, Tick(False))
        list(pump(nodes, START + ms * MS))
    assert c.replica.role in ("sealing", "follower"), "it waits for b no more"
    assert c.replica.role != "active", "nobody else has what may be committed"
    assert b.replica.log.last_index == 2
    nodes["a"].up = True
    for ms in range(3000, 9000, 100):
        for node in nodes.values():
            node.core.handle(START + ms * MS, Tick(False))
        list(pump(nodes, START + ms * MS))
    active = [n for n in nodes.values() if n.replica.role == "active"]
    assert active, "a has it still"
    assert all(n.replica.log.last_index >= 2 and n is not b for n in active)


def pump(nodes: dict[str, Node], now: int = START) -> Iterator[Any]:
    """Deliver until nobody has anything to say; every effect there was."""
    moved = True
    while moved:
        moved = False
        for node in nodes.values():
            for e in node.take():
                yield e
                if isinstance(e, fx.Send) and node.up and e.node in nodes and nodes[e.node].up:
                    moved = True
                    nodes[e.node].core.handle(now, e.message, node.me)
