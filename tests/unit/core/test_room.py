"""Nodes tell each other how much room their disks have; who has none takes no entries, and lags."""

from __future__ import annotations

import pytest

from metastore.core import messages as m
from metastore.core.events import QuorumAsked
from metastore.core.settings import MS
from metastore.history import pack_mark
from metastore.wire.peer_messages import decode, encode
from tests.unit.core.nodes import START, blob, led, log_of, process
from tests.unit.core.test_committing import NOW, OLD, answers, append, follower


def test_an_acknowledgement_says_how_much_room_there_is() -> None:
    node = follower()
    for room in (m.ROOM, m.LOW, m.FULL):
        node.core._ctx.room = room
        node.core.handle(START, m.Heartbeat(1, 0, [(0, NOW, 1, 0)]), process("a"))
        (ack,) = answers(node.take())
        assert (ack.room, decode(encode(ack))) == (room, ack)


def test_a_full_follower_takes_no_entries_and_lives() -> None:
    """What it has it acknowledges; a leader's no-op is small enough, and without it nobody could lead."""
    node = follower(log_of(OLD))
    node.core._ctx.room = m.FULL
    assert append(node, (OLD, 1), blob(2, NOW, b"data")) == []
    assert node.replica.log.last_index == 1
    assert answers(append(node, (OLD, 1))) == [m.Appended(0, NOW, 1)]
    noop = blob(2, NOW, b"")
    assert answers(append(node, (OLD, 1), noop)) == [m.Appended(0, NOW, 2)]
    assert answers(append(node, (OLD, 1), noop)) == [m.Appended(0, NOW, 2)], "an old one once more"
    node.core._ctx.room = m.LOW
    assert answers(append(node, (NOW, 2), blob(3, NOW, b"data"))) == [m.Appended(0, NOW, 3)]


def test_a_full_follower_takes_the_mark_of_a_generation() -> None:
    """R19: that is what a leader begins its term with, in the place of the no-op."""
    node = follower(log_of(OLD))
    node.core._ctx.room = m.FULL
    mark = blob(2, NOW, pack_mark(3))
    assert answers(append(node, (OLD, 1), mark)) == [m.Appended(0, NOW, 2)]
    assert append(node, (NOW, 2), blob(3, NOW, pack_mark(3) + b"x")) == []


@pytest.mark.parametrize(
    ("own", "others", "low", "full"),
    [
        (m.ROOM, {}, [], []),
        (m.ROOM, {"b": m.FULL}, [], []),
        (m.ROOM, {"b": m.LOW, "c": m.LOW}, ["b", "c"], []),
        (m.ROOM, {"b": m.LOW, "c": m.FULL}, ["b", "c"], []),
        (m.ROOM, {"b": m.FULL, "c": m.FULL}, ["b", "c"], ["b", "c"]),
        (m.LOW, {}, ["a"], []),
        (m.LOW, {"b": m.FULL, "c": m.FULL}, ["a", "b", "c"], ["b", "c"]),
        (m.FULL, {"c": m.LOW}, ["a", "c"], ["a"]),
        (m.ROOM, {"elsewhere": m.FULL, "b": m.FULL}, [], []),
    ],
)
def test_a_leader_adds_where_it_and_a_quorum_have_room(
    own: int, others: dict[str, int], low: list[str], full: list[str]
) -> None:
    """And it logs nothing at all where it or a quorum can take no entry."""
    a = led()["a"]
    ctx = a.core._ctx
    ctx.room = own
    ctx.peer_room = others
    assert a.replica.short_of_room(m.LOW) == low
    assert a.replica.short_of_room(m.FULL) == full


def test_a_peer_is_short_of_room_until_it_says_otherwise() -> None:
    a = led()["a"]

    def told(room: int) -> dict[str, int]:
        a.core.handle(START + 5000 * MS, QuorumAsked())
        number = a.core.last_number
        a.core.handle(START + 5000 * MS, m.HeartbeatAck(number, 0, 900 * MS, [], room), process("b"))
        return a.core._ctx.peer_room

    assert told(m.LOW) == {"b": m.LOW}
    assert told(m.FULL) == {"b": m.FULL}
    assert told(m.ROOM) == {}


def test_no_leader_adds_where_it_leads_nothing() -> None:
    node = follower()
    node.core._ctx.room = m.LOW
    assert node.replica.short_of_room(m.LOW) == []
