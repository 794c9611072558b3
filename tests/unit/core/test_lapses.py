"""Who lost leaders by silence is the last to get any, for a time that grows and is forgotten (R9)."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from metastore.core.events import PeerDown, Restored
from metastore.core.lapses import MAX_NODES, SECOND_NS, Lapses, LapseSettings
from metastore.layout import first_epoch
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, log_of, process, seal

MINUTE_NS = 60 * SECOND_NS
TERM2 = first_epoch(2)


def test_each_lapse_doubles_the_wait_up_to_a_bound() -> None:
    lapses, now, waits = Lapses(), 0, []
    for _ in range(9):
        now += MINUTE_NS
        lapses.note(now, "a")
        waits.append(lapses.waits_ns(now, "a") // SECOND_NS)
    assert waits == [15, 30, 60, 120, 240, 480, 600, 600, 600]
    assert lapses.view(now) == {"a": [9, 600]}
    assert lapses.waits_ns(now + 600 * SECOND_NS, "a") == 0
    assert lapses.waits_ns(now, "b") == 0


def test_partitions_that_are_lost_at_once_are_one_lapse() -> None:
    lapses = Lapses()
    for ms in range(0, 3000, 100):
        lapses.note(ms * 1_000_000, "a")
    assert lapses.count(3 * SECOND_NS, "a") == 1


def test_lapses_are_forgotten_one_by_one() -> None:
    lapses, forget = Lapses(), LapseSettings().forget_ns
    for n in range(3):
        lapses.note(n * MINUTE_NS, "a")
    last = 2 * MINUTE_NS
    assert [lapses.count(last + k * forget, "a") for k in range(5)] == [3, 2, 1, 0, 0]
    assert not lapses.view(last + 3 * forget)
    lapses.note(last + 2 * forget, "a")
    assert lapses.count(last + 2 * forget, "a") == 2


def test_where_all_have_lapsed_all_are_as_good() -> None:
    lapses = Lapses()
    lapses.note(0, "b")
    assert lapses.steady(0, ["a", "b", "c"]) == ["a", "c"]
    for node in "ac":
        lapses.note(0, node)
    assert lapses.steady(0, ["a", "b", "c"]) == ["a", "b", "c"]
    assert lapses.steady(0, []) == []


@given(st.lists(st.tuples(st.integers(0, 900), st.sampled_from("abc")), max_size=60))
def test_the_wait_is_bounded_and_ends(events: list[tuple[int, str]]) -> None:
    lapses, now = Lapses(), 0
    most = lapses.settings.most_ns
    for seconds, node in events:
        now += seconds * SECOND_NS
        before = lapses.waits_ns(now, node)
        lapses.note(now, node)
        assert before <= lapses.waits_ns(now, node) <= most or before <= most
        assert 0 < lapses.waits_ns(now, node) <= most
    for node in "abc":
        assert lapses.waits_ns(now + most, node) == 0


def test_so_many_are_remembered() -> None:
    lapses = Lapses()
    for n in range(MAX_NODES + 5):
        lapses.note(n, f"n{n}")
    assert len(lapses.view(MAX_NODES + 5)) == MAX_NODES
    assert not lapses.waits_ns(MAX_NODES + 5, "n0")


# --- who is seen to lapse -----------------------------------------------------------------------------------------


def follower(owner: str = "a", me: str = "b", run: str = "1") -> Node:
    node = Node(process(me, run), Restored(log_of(TERM1), TERM1, process(owner), CONFIG, 1))
    node.take()
    return node


LATER = START + 2 * SECOND_NS


def replaced(node: Node, by: str, resigned: int = 0, now: int = LATER) -> int:
    """Another leader seals, two seconds after the last word of ``a``; how many lapses of that are remembered."""
    config = dataclasses.replace(CONFIG, epoch=TERM2, leader=by)
    node.core.handle(now, seal(TERM2, config, resigned), process(by))
    assert node.replica.sealed_epoch == TERM2
    return node.core._ctx.lapses.count(now, "a")


def test_a_leader_that_was_silent_has_lapsed() -> None:
    assert replaced(follower(), "c") == 1
    assert replaced(follower(me="a"), "c") == 1, "it learns of it itself"


def test_a_leader_that_slept_learns_that_it_has_lapsed() -> None:
    """It had heard of no quorum for as long; one that is deposed in the midst of its work has not lapsed."""
    from tests.unit.core.nodes import led

    for later, times in ((2 * SECOND_NS, 1), (1, 0)):
        a = led()["a"]
        assert a.replica.term is not None
        config = dataclasses.replace(CONFIG, epoch=TERM2, leader="c")
        a.core.handle(START + later, seal(TERM2, config), process("c"))
        assert a.replica.sealed_epoch == TERM2
        assert a.core._ctx.lapses.count(START + later, "a") == times


def test_who_died_handed_over_or_came_back_has_not() -> None:
    assert replaced(follower(), "c", TERM1) == 0, "handed over (R11)"
    assert replaced(follower(), "a") == 0, "the same node again"
    assert replaced(follower(), "c", now=START + 1) == 0, "it was heard of just now"
    dead = follower()
    dead.core.handle(LATER, PeerDown("a"))
    assert replaced(dead, "c") == 0, "its connection was reset"
    assert replaced(follower(me="a", run="2"), "c") == 0, "an earlier run of it led"


def test_who_has_lapsed_campaigns_last_and_still_does() -> None:
    steady, lapsed = follower(), follower()
    lapsed.core._ctx.lapses.note(START, "b")
    most = max(steady.replica.election_delay_ns(START) for _ in range(50))
    least = min(lapsed.replica.election_delay_ns(START) for _ in range(50))
    settings = steady.core._ctx.settings
    assert least >= most + 2 * settings.election_stagger_ns, "later than the last of the others"
    assert least < most + 20 * settings.election_stagger_ns, (
        "where nobody else can, service is not kept waiting"
    )
    assert lapsed.replica.election_delay_ns(START + MINUTE_NS) <= most + settings.election_stagger_ns


def test_where_nobody_else_could_lead_it_does_not_wait() -> None:
    """All that are there have lapsed alike; or the one that has not is dead."""
    plain = max(follower().replica.election_delay_ns(START) for _ in range(50))
    alike, alone = follower(), follower()
    for name in "bc":
        alike.core._ctx.lapses.note(START, name)
    alone.core._ctx.lapses.note(START, "b")
    alone.core.handle(START, PeerDown("c"))
    for node in (alike, alone):
        most = max(node.replica.election_delay_ns(START) for _ in range(50))
        assert most < plain + node.core._ctx.settings.election_stagger_ns


def test_the_heir_is_one_that_has_not_lapsed() -> None:
    from tests.unit.core.nodes import led

    a = led()["a"].replica
    assert a.term is not None
    members = a.term.config.members()[1:]
    for progress in a.term.progress.values():
        progress.match = a.log.last_index
    assert a.successor(START, a.term, members) == "b"
    a.ctx.lapses.note(START, "b")
    assert a.successor(START, a.term, members) == "c"
    a.ctx.lapses.note(START, "c")
    assert a.successor(START, a.term, members) == "b", "one of them has to"
