"""The state machine of a partition: conditions, versions, dedupe; every replica ends alike (R7)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.core import machine as machine_module
from metastore.core.machine import META_KEY, SESSION_PREFIX, Machine
from metastore.errors import ConditionFailed, NotANumber, RequestIdExpired
from metastore.records import unpack_record
from metastore.wire.client_messages import ABSENT, ADD, DELETE, EXISTS, PUT

A, B = b"a" * 16, b"b" * 16


class Replica:
    """A machine with the records that a store would hold."""

    def __init__(self) -> None:
        self.state: dict[bytes, bytes] = {}
        self.saved: dict[bytes, bytes] = {}
        self.machine = Machine(self.state.get)
        self.index = 0

    def propose(self, *ops: tuple[bytes, list[Any]]) -> tuple[bytes | None, list[Any]]:
        payload, results = self.machine.resolve(self.index + 1, list(ops))
        if payload is not None:
            self.index += 1
        return payload, results

    def apply(self, index: int, payload: bytes) -> None:
        applied = self.machine.apply(index, payload)
        for key, record in applied.changes:
            if record is None:
                self.state.pop(key, None)
            else:
                self.state[key] = record
        for key in applied.aux:
            row = self.machine.aux(key)
            if row is None:
                self.saved.pop(key, None)
            else:
                self.saved[key] = row

    def run(self, *ops: tuple[bytes, list[Any]]) -> list[tuple[Any, ...]]:
        payload, results = self.propose(*ops)
        if payload is not None:
            self.apply(self.index, b"")
        return [r.tail for r in results]

    def view(self) -> tuple[Any, ...]:
        sessions = {c: s.pack() for c, s in self.machine.sessions.items()}
        return self.state, self.machine.last_version, self.machine.expired_below, sessions


def put(
    key: str, value: bytes = b"v", *, seq: int = 0, floor: int = 0, stamp: int = 0, when: int | None = None
):
    return [0, PUT, 0, key.encode(), seq, floor, stamp, when, value, "", 0]


def delete(key: str, *, seq: int = 0, floor: int = 0, stamp: int = 0, when: int | None = None):
    return [0, DELETE, 0, key.encode(), seq, floor, stamp, when]


def add(key: str, delta: int, *, seq: int = 0, floor: int = 0, stamp: int = 0, when: int | None = None):
    return [0, ADD, 0, key.encode(), seq, floor, stamp, when, delta]


def test_versions_are_dense_and_conditions_hold() -> None:
    r = Replica()
    assert r.run((A, put("x")), (A, put("y"))) == [(0, 1, 1, True), (0, 2, 1, True)]
    assert r.run((A, put("x", when=1))) == [(0, 3, 2, False)]
    ((status, _, detail),) = r.run((A, put("x", when=1)))
    assert (status, detail["version"]) == (ConditionFailed.status, 3)
    assert r.run((A, put("x", when=ABSENT)))[0][0] == ConditionFailed.status
    assert r.run((A, put("z", when=EXISTS)))[0][0] == ConditionFailed.status
    assert r.run((A, put("z", when=ABSENT))) == [(0, 4, 6, True)]
    assert r.run((A, delete("z", when=4))) == [(0, 5, 7)]
    assert r.run((A, delete("z"))) == [(0, 0, 8)]
    assert unpack_record(r.state[b"x"]).created == 1


def test_conditions_see_what_is_proposed_before_them() -> None:
    """Within a batch and across entries that are not committed yet."""
    r = Replica()
    _, first = r.propose((A, put("x", when=ABSENT)), (A, put("x", when=ABSENT)), (A, put("x", when=1)))
    assert [t.tail[0] for t in first] == [0, ConditionFailed.status, 0]
    _, second = r.propose((A, put("x", when=2)), (A, delete("x", when=3)), (A, put("x", when=ABSENT)))
    assert [t.tail[:2] for t in second] == [(0, 3), (0, 4), (0, 5)]
    r.apply(1, b"")
    assert r.propose((A, put("x", when=5)))[1][0].tail[:2] == (0, 6)
    r.apply(2, b"")
    r.apply(3, b"")
    assert unpack_record(r.state[b"x"]).version == 6


def test_counters() -> None:
    r = Replica()
    assert [t[-1] for t in r.run((A, add("n", 5)), (A, add("n", -7)))] == [5, -2]
    r.run((A, put("s", b"text")))
    assert r.run((A, add("s", 1)))[0][0] == NotANumber.status
    r.run((A, add("big", (1 << 63) - 1)))
    assert r.run((A, add("big", 1)))[0][0] == NotANumber.status
    assert r.run((A, add("big", 0)))[0][-1] == (1 << 63) - 1


def test_a_retry_gets_the_first_outcome() -> None:
    """Also while the first is uncommitted, also of a failed condition."""
    r = Replica()
    _, first = r.propose((A, put("x", seq=1)), (A, put("x", seq=2, when=ABSENT)))
    payload, again = r.propose((A, put("x", b"other", seq=1)), (A, put("x", seq=2, when=ABSENT)))
    assert payload is None
    assert again == first
    assert all(result.at == 1 for result in again), "answered when entry 1 is committed"
    r.apply(1, b"")
    payload, third = r.propose((A, put("x", seq=1)), (A, put("x", seq=2, when=ABSENT)))
    assert payload is None
    assert [t.tail for t in third] == [t.tail for t in first]
    assert r.propose((B, put("x", seq=1)))[0] is not None, "another client's id"


def test_finished_ids_are_refused_not_executed() -> None:
    r = Replica()
    r.run((A, put("x", seq=1)))
    r.run((A, put("x", seq=2, floor=2, stamp=1)))
    payload, (result,) = r.propose((A, put("x", seq=1)))
    assert payload is None
    assert result.tail[0] == RequestIdExpired.status


def test_a_forgotten_session_is_refused_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request older than the window may have been executed; one stamped later was not."""
    monkeypatch.setattr(machine_module, "MAX_SESSIONS", 2)
    r = Replica()
    r.run((A, put("x", seq=1)))
    r.run((B, put("y", seq=1)))
    r.run((b"c" * 16, put("z", seq=1)))
    assert A not in r.machine.sessions
    payload, (result,) = r.propose((A, put("x", seq=1)))
    assert payload is None
    assert result.tail[0] == RequestIdExpired.status
    assert result.tail[2]["index"] == 1
    payload, (result,) = r.propose((A, put("x", seq=2, stamp=1)))
    assert payload is not None
    assert result.tail[0] == 0


def test_outcomes_beyond_the_bound_go_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "MAX_OUTCOMES", 3)
    r = Replica()
    for seq in range(1, 6):
        r.run((A, put("x", seq=seq)))
    assert r.propose((A, put("x", seq=2)))[1][0].tail[0] == RequestIdExpired.status
    assert r.propose((A, put("x", seq=3)))[1][0].tail[:2] == (0, 3)


def test_abandoned_proposals_leave_nothing() -> None:
    """Leadership was lost: versions, records and outcomes are as they are committed."""
    r = Replica()
    r.run((A, put("x", seq=1)))
    r.propose((A, put("x", seq=2)), (A, put("y", seq=3)))
    r.machine.abandon()
    r.index = 1
    _, results = r.propose((A, put("x", seq=2, when=1)), (A, put("y", seq=3, when=ABSENT)))
    assert [t.tail[:3] for t in results] == [(0, 2, 2), (0, 3, 2)]


def test_versions_that_do_not_join_up_are_told() -> None:
    r, other = Replica(), Replica()
    payload, _ = r.propose((A, put("x")))
    other.run((A, put("y")))
    assert payload is not None
    with pytest.raises(AssertionError, match="I7"):
        other.apply(2, payload)


OPS = st.builds(
    lambda kind, key, client, seq, floor, stamp, when, delta: (
        client,
        put(key, b"%d" % delta, seq=seq, floor=min(floor, seq), stamp=stamp, when=when)
        if kind == PUT
        else delete(key, seq=seq, floor=min(floor, seq), stamp=stamp, when=when)
        if kind == DELETE
        else add(key, delta, seq=seq, floor=min(floor, seq), stamp=stamp, when=when),
    ),
    st.sampled_from([PUT, PUT, DELETE, ADD]),
    st.sampled_from("xyz"),
    st.sampled_from([A, B, b"c" * 16]),
    st.integers(0, 9),
    st.integers(0, 6),
    st.integers(0, 6),
    st.sampled_from([None, None, None, ABSENT, EXISTS, 1, 2, 3]),
    st.integers(-3, 3),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=5), min_size=1, max_size=10), st.data())
def test_who_resolves_and_who_applies_end_alike(batches: list[list[Any]], data: st.DataObject) -> None:
    """The leader, with several entries in flight; a follower that applies bytes; a replica that
    restarts from saved rows at any point: one state, one dedupe table."""
    machine_module.MAX_SESSIONS, old = 2, machine_module.MAX_SESSIONS
    try:
        leader, follower, restarted = Replica(), Replica(), Replica()
        payloads: list[bytes] = []
        applied = 0
        for batch in batches:
            payload, _ = leader.propose(*batch)
            if payload is not None:
                payloads.append(payload)
            while applied < len(payloads) and data.draw(st.booleans()):
                applied += 1
                leader.apply(applied, b"")
        while applied < len(payloads):
            applied += 1
            leader.apply(applied, b"")
        crash_at = data.draw(st.integers(0, len(payloads)))
        for index, payload in enumerate(payloads, 1):
            follower.apply(index, payload)
            restarted.apply(index, payload)
            if index == crash_at:
                fresh = Replica()
                fresh.state.update(restarted.state)
                fresh.saved = dict(restarted.saved)
                fresh.machine.load(list(restarted.saved.items()))
                restarted = fresh
        assert leader.view() == follower.view() == restarted.view()
        assert follower.saved == restarted.saved
        if payloads:
            assert set(follower.saved) == {META_KEY} | {SESSION_PREFIX + c for c in follower.machine.sessions}
    finally:
        machine_module.MAX_SESSIONS = old
