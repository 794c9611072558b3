"""How long a request id is remembered (R7): a time on the leader's clock, and a number of them."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core import dedupe
from metastore.core.dedupe import WINDOW_NS, WINDOW_STEP_NS, Sessions, Window
from metastore.core.machine import Machine
from metastore.core.payloads import check_metadata, read_payload
from metastore.core.rows import changes_of
from metastore.elements import DEDUPE_WINDOW_S, ONE_REQUEST
from metastore.errors import RequestIdExpired
from metastore.history import LastSeenIndex
from tests.unit.core.test_machine import Replica, put

S = 1_000_000_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "MAX_SESSIONS", 2)
    monkeypatch.setattr(dedupe, "MAX_YOUNG_SESSIONS", 6)
    monkeypatch.setattr(dedupe, "MAX_SPENT", 3)


def single(number: int) -> bytes:
    return number.to_bytes(16, "big")


def once(number: int, last_seen: int = 0) -> tuple[bytes, list[Any]]:
    """The only request of its client, as an Idempotency-Key makes it."""
    return single(number), put("x", seq=7, lowest_open=ONE_REQUEST, last_seen=last_seen)


def status(r: Replica, number: int) -> tuple[int, bool]:
    """What a repetition with a fresh stamp is told, and whether it would be executed."""
    payload, (result,) = r.machine.proposals.resolve(r.index + 1, [once(number, r.index)])
    r.machine.proposals.abandon()
    return result.tail[0], payload is not None


def test_what_is_younger_than_the_window_is_kept() -> None:
    r = Replica()
    first = [r.run(once(n, r.index))[0] for n in range(6)]
    assert [r.run(once(n, r.index))[0] for n in range(6)] == first
    r.machine.proposals.horizon = 2  # entries 1 and 2 are older
    r.run(once(6, r.index))
    assert [status(r, n) for n in (0, 1)] == [(RequestIdExpired.status, False)] * 2
    assert status(r, 2) == (0, False), "its first outcome"


def test_the_last_ones_are_kept_whatever_their_age() -> None:
    r = Replica()
    r.run(once(0, r.index))
    r.machine.proposals.horizon = 1
    r.run(once(1, r.index))
    assert status(r, 0) == (0, False)


def test_beyond_the_bound_the_longest_unused_go_whatever_their_age() -> None:
    r = Replica()
    for number in range(8):
        r.run(once(number, r.index))
    assert [status(r, n) for n in (0, 1, 2)] == [(RequestIdExpired.status, False)] * 2 + [(0, False)]


def test_marks_of_single_requests_are_bounded() -> None:
    """A mark that has gone leaves what always held: an honest stamp tells, and a fresh one does not."""
    r = Replica()
    for number in range(10):
        r.run(once(number, r.index))
    assert list(r.machine.dedupe.spent) == [single(n) for n in (1, 2, 3)]
    assert status(r, 0) == (0, True), "nothing tells it from a first time"
    payload, (result,) = r.machine.proposals.resolve(r.index + 1, [once(0, last_seen=0)])
    assert (payload, result.tail[0]) == (None, RequestIdExpired.status), "who is honest about its age is told"


def test_who_comes_back_after_its_mark_has_none() -> None:
    """Its next request was resolved while the last was remembered, and is applied when that is forgotten. All replicas
    are to agree about it, also one that has been restarted since. (Who keeps to its word makes no other request.)"""
    r = Replica()
    r.run((single(0), put("x", seq=ONE_REQUEST, lowest_open=ONE_REQUEST)))
    first = r.index + 1
    payload, _ = r.propose(*[once(n, r.index) for n in range(1, 7)])
    assert payload is not None
    for number in (7, 8):
        r.propose((single(0), put("x", seq=ONE_REQUEST + number, lowest_open=ONE_REQUEST)))
    for index in range(first, r.index + 1):
        r.apply(index, b"")
    assert single(0) in r.machine.sessions
    again = Machine(r.state.get)
    again.load(list(r.saved.items()))
    assert list(again.dedupe.spent.items()) == list(r.machine.dedupe.spent.items())
    assert single(0) not in again.dedupe.spent


def test_clients_that_live_on_leave_no_mark() -> None:
    r = Replica()
    for number in range(8):
        r.run((single(number), put("x", seq=1)))
    assert not r.machine.dedupe.spent


def test_marks_survive_a_restart_and_go_with_a_snapshot() -> None:
    r = Replica()
    for number in range(9):
        r.run(once(number, r.index))
    assert set(r.saved) == set(r.machine.metadata_keys())
    assert all(check_metadata(key, row) for key, row in r.saved.items())
    again = Machine(r.state.get)
    again.load(list(r.saved.items()))
    assert list(again.dedupe.spent.items()) == list(r.machine.dedupe.spent.items())
    assert not check_metadata(b"s" + single(1), b"\xff"), "a mark below zero"


def test_the_leaders_word_is_in_the_entry_and_followers_go_by_it() -> None:
    leader, follower = Replica(), Replica()
    for number in range(4):
        leader.machine.proposals.horizon = 1 if number == 3 else 0
        payload, _ = leader.propose(once(number, leader.index))
        assert payload is not None
        read_payload(payload)
        assert len(changes_of(payload).changes) == 1
        leader.apply(leader.index, b"")
        follower.apply(leader.index, payload)
    assert leader.view() == follower.view()
    assert list(follower.machine.dedupe.spent) == [single(0)]


def test_a_window_is_never_shorter_and_begins_anew_with_each_reign() -> None:
    assert WINDOW_NS == DEDUPE_WINDOW_S * S
    w = Window()
    assert w.horizon(10**15, 9) == 0, "who leads not knows nothing"
    w.begin(0, 5)
    assert w.horizon(WINDOW_NS, 100) == 0
    assert w.horizon(WINDOW_NS + 1, 101) == 5
    w.begin(WINDOW_NS, 101)
    assert w.horizon(WINDOW_NS + 1, 102) == 0
    w.end()
    assert w.horizon(10 * WINDOW_NS, 102) == 0


def test_the_window_is_exact_to_a_step() -> None:
    w = Window()
    w.begin(0, 0)
    now, last = 0, 0
    made: list[int] = []  # when each entry was
    while now < 3 * WINDOW_NS:
        now, last = now + S, last + 1
        made.append(now)
        horizon = w.horizon(now, last)
        if horizon:
            assert now - made[horizon - 1] > WINDOW_NS, "younger than the window"
            assert now - made[horizon] <= WINDOW_NS + WINDOW_STEP_NS + S, "kept for much longer"
    assert len(w._marks) <= WINDOW_NS // WINDOW_STEP_NS + 2


def test_loads_in_the_order_of_use() -> None:
    table = Sessions()
    table.load([(b"b", 5 << 16), (b"a", 4 << 16 | 2), (b"c", 4 << 16 | 1)], LastSeenIndex(9))
    assert list(table.spent) == [b"c", b"a", b"b"]
