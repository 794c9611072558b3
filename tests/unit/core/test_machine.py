"""The state machine of a partition: conditions, versions, dedupe; every replica ends alike (R7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.core import dedupe, fences, transactions
from metastore.core.machine import Machine
from metastore.core.rows import base_version, changes_of
from metastore.core.transactions import read_txn
from metastore.elements import ONE_REQUEST, RAISE
from metastore.errors import ConditionFailed, Fenced, NotANumber, RequestIdExpired, TooLarge
from metastore.history import pack_mark
from metastore.operations import (
    ABSENT,
    ADD,
    CREATED,
    DELETE,
    EQUAL,
    EXISTS,
    GET,
    GREATER,
    LESS,
    NOT_EQUAL,
    NOT_FOUND,
    OK,
    PUT,
    TOUCH,
    TXN,
    VALUE,
    VERSION,
)
from metastore.records import COUNTER, pack_record, unpack_record

A, B = b"a" * 16, b"b" * 16


class Replica:
    """A machine with the records that a store would hold."""

    def __init__(self) -> None:
        self.state: dict[bytes, bytes] = {}
        self.saved: dict[bytes, bytes] = {}
        self.machine = Machine(self.state.get)
        self.index = 0

    def propose(self, *ops: tuple[bytes, list[Any]]) -> tuple[bytes | None, list[Any]]:
        payload, results = self.machine.proposals.resolve(self.index + 1, list(ops))
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
        for key in applied.metadata:
            row = self.machine.metadata(key)
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
        m = self.machine
        tokens = list(m.fences.by_name.items()), m.fences.floors
        spent = list(m.dedupe.spent.items())
        versions = m.last_version, m.first_version, m.expired_below
        return self.state, versions, sessions, spent, m.usage, m.timed, tokens


def lk(key: str, namespace: str = "n") -> bytes:
    return b"........" + namespace.encode() + b"\0" + key.encode()


def put(
    key: str,
    value: bytes = b"v",
    *,
    seq: int = 0,
    lowest_open: int = 0,
    last_seen: int = 0,
    when: int | None = None,
    ttl: int | None = None,
    fence: list[Any] | None = None,
) -> list[Any]:
    return [
        0,
        PUT,
        0,
        lk(key),
        seq,
        lowest_open,
        last_seen,
        when,
        value,
        "",
        ttl,
        *([fence] if fence else []),
    ]


def delete(
    key: str, *, seq: int = 0, lowest_open: int = 0, last_seen: int = 0, when: int | None = None
) -> list[Any]:
    return [0, DELETE, 0, lk(key), seq, lowest_open, last_seen, when]


def add(
    key: str, delta: int, *, seq: int = 0, lowest_open: int = 0, last_seen: int = 0, when: int | None = None
) -> list[Any]:
    return [0, ADD, 0, lk(key), seq, lowest_open, last_seen, when, delta]


def txn(
    compares: list[Any], then: list[Any], otherwise: Sequence[Any] = (), *, seq: int = 0, fence: Any = None
) -> list[Any]:
    return [0, TXN, 0, lk("x"), seq, 0, 0, compares, then, list(otherwise), *([fence] if fence else [])]


def touch(key: str, when: int | None = None) -> list[Any]:
    return [0, TOUCH, 0, lk(key), when]


def assert_accounts(r: Replica) -> None:
    """Usage and TTLs are what a count of the records gives."""
    records = len(r.state)
    size = sum(len(k) + len(v) for k, v in r.state.items())
    assert r.machine.usage == ({b"n": [records, size]} if records else {})
    timed = {k: (u.version, u.ttl_ms) for k, v in r.state.items() if (u := unpack_record(v)).ttl_ms}
    assert r.machine.timed == timed


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
    assert unpack_record(r.state[lk("x")]).created == 1


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
    assert unpack_record(r.state[lk("x")]).version == 6


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
    assert third[0].tail == first[0].tail
    status, text, detail = first[1].tail
    assert unpack_record(detail.pop("record")).version == 1, "who failed the condition is shown why"
    assert third[1].tail == (status, text, detail), "a retry is told the version"
    assert r.propose((B, put("x", seq=1)))[0] is not None, "another client's id"


def test_finished_ids_are_refused_not_executed() -> None:
    r = Replica()
    r.run((A, put("x", seq=1)))
    r.run((A, put("x", seq=2, lowest_open=2, last_seen=1)))
    payload, (result,) = r.propose((A, put("x", seq=1)))
    assert payload is None
    assert result.tail[0] == RequestIdExpired.status


def test_a_forgotten_session_is_refused_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request older than the window may have been executed; one stamped later was not."""
    monkeypatch.setattr(dedupe, "MAX_SESSIONS", 1)
    monkeypatch.setattr(dedupe, "MAX_YOUNG_SESSIONS", 2)
    r = Replica()
    r.run((A, put("x", seq=1)))
    r.run((B, put("y", seq=1)))
    r.run((b"c" * 16, put("z", seq=1)))
    assert A not in r.machine.sessions
    payload, (result,) = r.propose((A, put("x", seq=1)))
    assert payload is None
    assert result.tail[0] == RequestIdExpired.status
    assert result.tail[2]["index"] == 1
    payload, (result,) = r.propose((A, put("x", seq=2, last_seen=1)))
    assert payload is not None
    assert result.tail[0] == 0


def test_outcomes_beyond_the_bound_go_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "MAX_OUTCOMES", 3)
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
    r.machine.proposals.abandon()
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


def test_a_transaction_does_all_of_one_branch() -> None:
    r = Replica()
    r.run((A, put("x", b"1")), (A, add("n", 5)))
    swap = txn(
        [[lk("x"), VALUE, EQUAL, b"1"], [lk("y"), VERSION, EQUAL, 0], [lk("n"), VERSION, GREATER, 1]],
        [
            [GET, lk("x")],
            [PUT, lk("y"), b"2", "", None],
            [DELETE, lk("x")],
            [DELETE, lk("x")],
            [ADD, lk("n"), 2],
            [GET, lk("y")],
            [GET, lk("x")],
        ],
        [[GET, lk("x")]],
    )
    ((status, succeeded, index, parts),) = r.run((A, swap))
    assert (status, succeeded, index) == (OK, True, 2)
    assert unpack_record(parts[0][1]).value == b"1"
    assert parts[1:5] == [[OK, 3, True], [OK, 4], [OK, 0], [OK, 5, 7]]
    assert unpack_record(parts[5][1]).version == 3
    assert parts[6] == [NOT_FOUND]
    ((_, succeeded, _, parts),) = r.run((A, swap))
    assert (succeeded, parts) == (False, [[NOT_FOUND]])
    assert r.machine.last_version == 5
    assert set(r.state) == {lk("y"), lk("n")}


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        ([VERSION, EQUAL, 2], True), ([VERSION, EQUAL, 1], False), ([VERSION, NOT_EQUAL, 2], False),
        ([VERSION, LESS, 3], True), ([VERSION, GREATER, 2], False), ([CREATED, EQUAL, 1], True),
        ([CREATED, LESS, 1], False), ([VALUE, EQUAL, b"b"], True), ([VALUE, NOT_EQUAL, b"b"], False),
        ([VALUE, LESS, b"c"], True), ([VALUE, GREATER, b"b"], False),
    ],
)  # fmt: skip
def test_compares(compare: list[Any], holds: bool) -> None:
    r = Replica()
    r.run((A, put("x", b"a")), (A, put("x", b"b")))
    ((_, succeeded, _, _),) = r.run((A, txn([[lk("x"), *compare]], [])))
    assert succeeded is holds


@pytest.mark.parametrize(
    ("compare", "holds"),
    [([VERSION, EQUAL, 0], True), ([CREATED, GREATER, 0], False), ([VALUE, EQUAL, b""], False),
     ([VALUE, NOT_EQUAL, b""], True), ([VALUE, LESS, b"z"], False)],
)  # fmt: skip
def test_compares_with_what_is_absent(compare: list[Any], holds: bool) -> None:
    r = Replica()
    ((_, succeeded, _, _),) = r.run((A, txn([[lk("x"), *compare]], [])))
    assert succeeded is holds


def test_a_transaction_that_cannot_be_done_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    r = Replica()
    r.run((A, put("x", b"text")))
    half = [[PUT, lk("y"), b"", "", None], [ADD, lk("x"), 1]]
    assert r.run((A, txn([], half)))[0][0] == NotANumber.status
    monkeypatch.setattr(transactions, "MAX_TXN_READ_BYTES", 10)
    assert r.run((A, txn([], [[PUT, lk("y"), b"", "", None], [GET, lk("x")]])))[0][0] == TooLarge.status
    assert set(r.state) == {lk("x")}
    assert r.machine.last_version == 1
    assert_accounts(r)


def test_a_retried_transaction_gets_what_it_read_then() -> None:
    r = Replica()
    r.run((A, put("x", b"1")))
    op = txn([], [[GET, lk("x")], [PUT, lk("x"), b"2", "", None]], seq=1)
    (first,) = r.run((A, op))
    payload, (again,) = r.propose((A, op))
    assert payload is None
    assert again.tail == first
    fresh = Machine(r.state.get)
    fresh.load(list(r.saved.items()))
    assert fresh.proposals.resolve(9, [(A, op)])[1][0].tail == first
    assert fresh.sessions[A].size == r.machine.sessions[A].size > 0


def test_what_outcomes_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "MAX_OUTCOME_BYTES", 400)
    r = Replica()
    r.run((A, put("x", b"v" * 100)))
    for seq in range(1, 5):
        r.run((A, txn([], [[GET, lk("x")]], seq=seq)))
    assert sorted(r.machine.sessions[A].outcomes) == [3, 4]


def test_a_lower_token_is_refused_once_a_higher_was_seen() -> None:
    r = Replica()
    assert r.run((A, put("x", fence=["lock", 7])))[0][0] == OK
    assert r.run((A, put("x", fence=["lock", 7])))[0][0] == OK, "the holder's own"
    status, text, detail = r.run((A, put("x", fence=["lock", 6])))[0]
    assert (status, detail["token"]) == (Fenced.status, 7)
    assert "7" in text
    assert r.run((A, put("x", fence=["other", 1])))[0][0] == OK
    assert r.run((A, txn([], [], fence=["lock", 6])))[0][0] == Fenced.status
    _, results = r.propose((A, put("x", fence=["lock", 9])), (A, put("x", fence=["lock", 8])))
    assert [t.tail[0] for t in results] == [OK, Fenced.status], "also while the higher is uncommitted"
    r.machine.proposals.abandon()
    r.index -= 1
    assert r.run((A, put("x", fence=["lock", 8])))[0][0] == OK, "it never was"


def test_records_expire_by_version_only() -> None:
    r = Replica()
    r.run((A, put("x", ttl=5000)), (A, put("y", ttl=0)))
    assert r.machine.timed == {lk("x"): (1, 5000)}
    assert r.machine.proposals.resolve(2, [], [(lk("x"), 9), (lk("z"), 1)]) == (None, [])
    payload, _ = r.machine.proposals.resolve(2, [(A, put("x", when=ABSENT))], [(lk("x"), 1)])
    assert payload is not None
    applied = r.machine.apply(2, b"")
    assert [(k, v is None) for k, v in applied.changes] == [(lk("x"), True), (lk("x"), False)]
    assert applied.expired == {3}
    assert changes_of(payload) == applied._replace(metadata=set())
    assert base_version(payload) == 2
    assert r.machine.timed == {}


def test_what_is_split_off_keeps_its_ttls_and_what_was_done() -> None:
    """R18: of both halves, and after a restart of either."""
    r = Replica()
    first = r.run((A, put("x", ttl=5000)), (A, add("n", 3, seq=1)), (A, put("y")))[1]
    r.machine.proposals.count_above(b"." * 8)  # all of it
    r.machine.proposals.count_slice(sorted(r.state.items()), None)
    payload = r.machine.proposals.resolve_split(r.index + 1, 1, 1, (1 << 64) - 1, [("n", "s")])
    r.index += 1
    split_result = r.machine.apply(r.index, payload).split_result
    assert split_result is not None
    child = Replica()
    child.state, child.index = dict(r.state), r.index
    child.machine.load(split_result.metadata)
    assert child.machine.timed == {lk("x"): (1, 5000)}
    assert r.machine.timed == {}
    assert_accounts(child)
    for half in (child, r):
        assert half.run((A, add("n", 3, seq=1))) == [first]


def test_a_touch_proposes_nothing_and_waits_for_what_it_met() -> None:
    r = Replica()
    assert r.propose((A, touch("x"))) == (None, [(0, (NOT_FOUND, 0))])
    r.propose((A, put("x", ttl=5000)))
    assert r.propose((A, touch("x"))) == (None, [(1, (OK, 1, 0, 5000))])
    assert r.propose((A, touch("x", 7)))[1][0].tail[0] == ConditionFailed.status
    r.machine.proposals.resolve(2, [], [(lk("x"), 1)])
    assert r.propose((A, touch("x"))) == (None, [(2, (NOT_FOUND, 0))]), "its end is proposed"


def test_a_counter_keeps_its_ttl() -> None:
    r = Replica()
    r.run((A, add("n", 1)))
    assert r.machine.timed == {}
    r.state[lk("n")] = pack_record(1, 1, b"1", b"", 500, COUNTER)
    r.run((A, add("n", 1)))
    assert r.machine.timed == {lk("n"): (2, 500)}


def operation(
    kind: int, keys: list[str], client: bytes, seq: int, lowest_open: int, when: int | None, delta: int
) -> tuple[bytes, list[Any]]:
    """``delta`` decides whatever else there is to decide."""
    lasts = min(lowest_open, seq) if client in (A, B) else ONE_REQUEST
    key, number = keys[0], {"seq": seq, "lowest_open": lasts, "last_seen": lowest_open, "when": when}
    ttl, fence = 1000 * max(0, delta), ["fgh"[delta % 3], delta + 4] if delta else None
    if kind == PUT:
        if seq % 2:
            fence = [key, RAISE]
        return client, put(key, b"%d" % delta, ttl=ttl, fence=fence, **number)  # type: ignore[arg-type]
    if kind == DELETE:
        return client, delete(key, **number)  # type: ignore[arg-type]
    if kind == ADD:
        return client, add(key, delta, **number)  # type: ignore[arg-type]
    if kind == TOUCH:
        return client, touch(key, when)
    parts = [[GET, lk(k)] for k in keys] + [[PUT, lk(k), b"t", "", ttl] for k in keys[1:]]
    parts += [[DELETE, lk(keys[0])], [ADD, lk("n"), delta]]
    return client, txn([[lk(key), VERSION, GREATER, delta]], parts, [[GET, lk(key)]], seq=seq, fence=fence)


OPS = st.builds(
    operation,
    st.sampled_from([PUT, PUT, DELETE, ADD, TXN, TOUCH]),
    st.lists(st.sampled_from("xyz"), min_size=1, max_size=3),
    st.sampled_from([A, B, *(bytes([single]) * 16 for single in range(5))]),
    st.integers(0, 9),
    st.integers(0, 6),
    st.sampled_from([None, None, None, ABSENT, EXISTS, 1, 2, 3]),
    st.integers(-3, 3),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=5), min_size=1, max_size=10), st.data())
def test_who_resolves_and_who_applies_end_alike(batches: list[list[Any]], data: st.DataObject) -> None:
    """The leader, with several entries in flight; a follower that applies bytes; a replica that
    restarts from saved rows at any point: one state, one dedupe table."""
    bounds = "MAX_SESSIONS", "MAX_YOUNG_SESSIONS", "MAX_SPENT"
    with pytest.MonkeyPatch.context() as patch:
        for name, bound in zip(bounds, (1, 3, 2), strict=True):
            patch.setattr(dedupe, name, bound)
        patch.setattr(fences, "MAX_FENCES", 2)
        leader, follower, restarted = Replica(), Replica(), Replica()
        payloads: list[bytes] = []
        applied = 0
        for batch in batches:
            if data.draw(st.integers(0, 4)) == 0:  # another reign, in the next generation perhaps (R19)
                while applied < len(payloads):
                    applied += 1
                    leader.apply(applied, b"")
                leader.machine.proposals.abandon()
                leader.index += 1
                applied += 1
                payloads.append(pack_mark(1 + data.draw(st.integers(0, applied // 3))))
                leader.apply(applied, payloads[-1])
            leader.machine.proposals.horizon = data.draw(st.integers(0, applied))
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
            assert set(follower.saved) == set(follower.machine.metadata_keys())
        assert_accounts(follower)


def test_a_transaction_that_reads_too_much_reads_no_more() -> None:
    """It is refused as soon as that is known, and not after all of it was read."""
    r = Replica()
    read: list[bytes] = []

    def get(storage_key: bytes) -> bytes | None:
        read.append(storage_key)
        return r.state.get(storage_key)

    for n in range(8):
        r.run((A, put(f"k{n}", b"x" * (1 << 19))))
    machine = Machine(get)
    tail, _ = read_txn(machine, machine.read, txn([], [[GET, lk(f"k{n}")] for n in range(8)]))
    assert tail[0] == TooLarge.status
    assert len(read) == 2, "what makes it too large is the second of them"
