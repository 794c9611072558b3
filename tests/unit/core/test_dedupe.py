"""R7: what is remembered of finished requests, at its borders: one too many forgotten executes a write twice."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from metastore.core import dedupe, fences
from metastore.core.dedupe import Session, Sessions
from metastore.core.machine import Machine
from metastore.errors import ConditionFailed, RequestIdExpired
from metastore.history import FencingToken, LastSeenIndex
from metastore.operations import ABSENT, OK
from tests.unit.core.test_machine import A, B, Replica, put

C = b"c" * 16


def tail(version: int) -> tuple[Any, ...]:
    return (OK, version, version, True)


def remember(sessions: Sessions, index: int, client: bytes, lowest_open: int, *seqs: int) -> list[bytes]:
    """Entry ``index`` has these requests of the client, which has finished all below ``lowest_open``."""
    return sessions.remember(index, [[client, lowest_open]], [(0, seq, tail(seq)) for seq in seqs])[1]


def is_expired(found: Any) -> bool:
    return found is not None and found[0] == RequestIdExpired.status


@pytest.mark.parametrize("seqs", [(5,), (4, 5, 6)])
def test_the_request_at_the_floor_is_not_finished(seqs: tuple[int, ...]) -> None:
    """The floor is the lowest that may still be sent again."""
    sessions = Sessions()
    remember(sessions, 1, A, 1, *seqs)
    remember(sessions, 2, A, 5)
    assert sessions.known(A, 5, LastSeenIndex(0)) == tail(5)
    if 4 in seqs:
        assert is_expired(sessions.known(A, 4, LastSeenIndex(0)))
    remember(sessions, 3, A, 6)
    assert is_expired(sessions.known(A, 5, LastSeenIndex(0)))


def test_a_floor_never_goes_back() -> None:
    sessions = Sessions()
    remember(sessions, 1, A, 5, 5)
    remember(sessions, 2, A, 1)
    assert is_expired(sessions.known(A, 4, LastSeenIndex(0)))
    assert sessions.known(A, 5, LastSeenIndex(0)) == tail(5)


def test_at_the_floor_a_request_that_is_new_is_executed() -> None:
    sessions = Sessions()
    remember(sessions, 1, A, 5, 5)
    assert sessions.known(A, 6, LastSeenIndex(0)) is None
    remember(sessions, 2, A, 7)
    assert sessions.known(A, 7, LastSeenIndex(0)) is None
    assert is_expired(sessions.known(A, 6, LastSeenIndex(0)))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    """Of two clients at most; A's session, last used at entry 7, is the third's victim."""
    monkeypatch.setattr(dedupe, "MAX_YOUNG_SESSIONS", 2)
    sessions = Sessions()
    remember(sessions, 7, A, 1, 1)
    remember(sessions, 8, B, 1, 1)
    assert remember(sessions, 9, C, 1, 1) == [A]
    return sessions


def test_the_longest_unused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "MAX_YOUNG_SESSIONS", 2)
    sessions = Sessions()
    for index, client in ((1, A), (2, B), (3, A)):
        remember(sessions, index, client, 1, index)
    assert remember(sessions, 4, C, 1, 1) == [B]


def test_without_a_session_the_stamp_tells(two: Sessions) -> None:
    """Stamped at or after the entry at which the forgotten one was last used: it comes later."""
    assert two.expired_below == 7
    assert is_expired(two.known(A, 1, LastSeenIndex(6)))
    assert two.known(A, 1, LastSeenIndex(7)) is None


def test_a_session_begun_anew_has_forgotten_what_was_before(two: Sessions) -> None:
    """Its guard: a request stamped before may have been executed under the session that is gone."""
    remember(two, 10, A, 1, 5)
    assert is_expired(two.known(A, 1, LastSeenIndex(6)))
    assert two.known(A, 1, LastSeenIndex(7)) is None
    assert two.known(A, 5, LastSeenIndex(0)) == tail(5), "what it knows it knows"


def test_a_guard_survives_saving() -> None:
    session = Session(LastSeenIndex(7))
    session.raise_lowest_open(3)
    session.outcomes[3] = tail(3)
    again = Session.unpack(session.pack())
    assert isinstance(again, Session)
    assert (again.minimum, again.lowest_open, again.outcomes) == (7, 3, {3: tail(3)})


def test_a_first_session_has_nothing_to_guard() -> None:
    sessions = Sessions()
    remember(sessions, 10, A, 1, 5)
    assert sessions.known(A, 1, LastSeenIndex(0)) is None


def test_outcomes_over_the_bound_count_as_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused when they come again, never executed."""
    monkeypatch.setattr(dedupe, "MAX_OUTCOMES", 2)
    sessions = Sessions()
    remember(sessions, 1, A, 1, 1, 2, 3)
    assert is_expired(sessions.known(A, 1, LastSeenIndex(0)))
    assert sessions.known(A, 2, LastSeenIndex(0)) == tail(2)


def test_what_all_sessions_hold_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "MAX_ALL_OUTCOMES", 3)
    sessions = Sessions()
    remember(sessions, 1, A, 1, 1, 2)
    remember(sessions, 2, B, 1, 1)
    assert remember(sessions, 3, C, 1, 1) == [A]
    assert (sessions.outcomes, sessions.expired_below) == (2, 1)


def test_what_is_counted_is_what_there_is() -> None:
    """Over floors, forgetting and saving: the bound is of the same number in every replica."""
    sessions = Sessions()
    for index in range(1, 40):
        client = (A, B, C)[index % 3]
        remember(sessions, index, client, max(1, index - 7), index)
        held = sessions.by_client.values()
        assert sessions.outcomes == sum(len(s.outcomes) for s in held)
        assert (
            sessions.size
            == sum(s.size for s in held)
            == sum(sum(map(dedupe.outcome_bytes, s.outcomes.values())) for s in held)
        )
    again = Sessions()
    again.load([(c, Session.unpack(s.pack())) for c, s in sessions.by_client.items()], sessions.expired_below)
    assert (again.outcomes, again.size) == (sessions.outcomes, sessions.size)
    assert list(again.by_client) == list(sessions.by_client), "in the order of their use"


def test_a_failed_condition_is_remembered_by_every_replica() -> None:
    """A retry may meet another leader, and the record as the condition wants it by then."""
    leader, follower = Replica(), Replica()
    payload, (first,) = leader.propose((A, put("x", seq=1, when=7)))
    assert payload is not None
    assert first.tail[0] == ConditionFailed.status
    follower.apply(1, payload)
    follower.index = 1
    again, (second,) = follower.propose((A, put("x", seq=1, when=ABSENT)))
    assert again is None
    assert second.tail == first.tail


def test_what_was_proposed_and_abandoned_is_executed_when_it_comes_again() -> None:
    r = Replica()
    r.propose((A, put("x", seq=1)))
    r.machine.proposals.abandon()
    r.index = 0
    payload, _ = r.propose((A, put("x", seq=1)))
    assert payload is not None


@pytest.mark.parametrize("base", [0, 2])
def test_an_entry_begins_at_the_version_of_the_state(base: int) -> None:
    """I7: earlier, and versions would be given twice; later, and changes are missing here."""
    r = Replica()
    r.run((A, put("x")))
    with pytest.raises(AssertionError, match="I7"):
        r.machine.apply(2, msgpack.packb([base, [], [], [], []]))


def test_a_floor_of_fences_is_the_highest_token_that_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """R20: names of one bucket are forgotten in the order of their raising, not of their tokens."""
    monkeypatch.setattr(fences, "MAX_FENCES", 1)
    table = fences.Fences()
    names = [bytes([0, 1]) + bytes([i]) * 14 for i in range(4)]
    for name, token in zip(names, (3, 10, 5, 20), strict=True):
        table.apply([[name, token]], set())
    assert table.floors == {fences.bucket_of(names[0]): 10}
    assert table.pass_by(names[1], FencingToken(9), []) is not None
    assert table.pass_by(names[1], FencingToken(10), []) is None


def test_a_snapshot_replaces_all_that_was_remembered() -> None:
    """R17: a session, a fence or a version that the snapshot does not have was never there."""
    r, other = Replica(), Replica()
    other.run((A, put("x", seq=1, fence=["lock", 3], ttl=500)))
    r.run((B, put("y", seq=9)), (B, put("z", seq=10, fence=["old", 7])))
    m = r.machine
    m.proposals.resolve(9, [(B, put("w", seq=11))])
    m.reset()
    m.load(list(other.saved.items()))
    assert m.sessions.keys() == {A}
    assert m.timed == other.machine.timed
    assert vars(m.fences) == vars(other.machine.fences)
    assert (m.last_version, m.usage, m.splits) == (1, other.machine.usage, [])
    assert not m.proposals.proposed(9)
    assert sorted(m.metadata_keys()) == sorted(other.machine.metadata_keys())
    assert {key: m.metadata(key) for key in m.metadata_keys()} == other.saved


def test_a_machine_that_is_reset_is_a_new_one() -> None:
    r = Replica()
    r.run((A, put("x", seq=1, fence=["lock", 3], ttl=500)))
    r.machine.proposals.resolve(2, [(A, put("y", seq=2, fence=["lock", 5]))])
    r.machine.reset()
    fresh = Machine(r.state.get)
    for name in ("last_version", "usage", "timed", "splits", "sessions", "expired_below"):
        assert getattr(r.machine, name) == getattr(fresh, name), name
    assert vars(r.machine.fences) == vars(fresh.fences)
    assert r.machine.proposals.resolve(1, [(A, put("q", fence=["lock", 1]))])[1][0].tail[0] == OK
