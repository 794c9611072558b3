"""A version of another history is refused, never compared (R19): what the state machine is given, and gives."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core import dedupe
from metastore.core.configs import pack_config, read_config
from metastore.core.machine import Machine
from metastore.core.payloads import check_metadata, read_payload
from metastore.core.rows import base_version, changes_of
from metastore.core.transactions import read_txn
from metastore.elements import RAISE
from metastore.errors import (
    ConditionFailed,
    Fenced,
    HistoryChanged,
    ProtocolError,
    QuotaExceeded,
    RequestIdExpired,
)
from metastore.history import (
    COUNT_BITS,
    LAST_COUNT,
    MAX_GENERATIONS,
    NO_VERSION,
    LastSeenIndex,
    Version,
    count_of,
    first_version,
    generation_of,
    is_mark,
    pack_mark,
)
from metastore.layout import ConfigRecord
from metastore.operations import (
    ABSENT,
    CREATED,
    EQUAL,
    EXISTS,
    GET,
    GREATER,
    NOT_EQUAL,
    OK,
    PUT,
    VALUE,
    VERSION,
)
from metastore.records import pack_record, shown_from, unpack_record
from tests.unit.core.test_machine import A, B, Replica, add, delete, lk, put, touch, txn

G1, G2 = first_version(1), first_version(2)


def changed(r: Replica, generation: int = 1) -> Replica:
    """A new term begins, with the mark of a generation."""
    r.machine.proposals.abandon()
    r.index += 1
    payload = pack_mark(generation)
    assert read_payload(payload)
    r.apply(r.index, payload)
    return r


def before() -> Replica:
    """``x`` at version 1, ``y`` at 2, a counter ``n`` at 3, the fence of ``job`` at 4."""
    r = Replica()
    r.run((A, put("x")), (A, put("y")), (A, add("n", 5)), (A, put("lock", fence=["job", RAISE])))
    return r


def refused(tail: tuple[Any, ...], version: int, generation: int = 1) -> None:
    assert tail[0] == HistoryChanged.status, tail
    assert (tail[2]["version"], tail[2]["generation"]) == (version, generation)
    assert "read again" in tail[1]


# --- marks -----------------------------------------------------------------------------------------


def test_versions_jump_and_go_on() -> None:
    r = before()
    assert r.machine.last_version == 4
    changed(r)
    assert r.machine.last_version == G1
    assert r.run((A, put("x")))[0][1] == G1 + 1
    before_again = r.machine.last_version
    changed(r)  # every later term begins with the same mark
    assert r.machine.last_version == before_again
    changed(r, 2)
    assert r.run((A, put("x")))[0][1] == G2 + 1
    changed(r, 1)  # no way back
    assert r.machine.last_version == G2 + 1


def test_a_mark_is_told_from_every_other_entry() -> None:
    assert pack_mark(0) == b""
    for generation in (1, 2, 17, MAX_GENERATIONS - 1):
        mark = pack_mark(generation)
        assert is_mark(mark)
        assert (base_version(mark), changes_of(mark).changes) == (None, [])
        assert generation_of(read_payload(mark)[0]) == generation
    r = before()
    for op in (put("x"), delete("nothing"), txn([], []), put("x", fence=["a", 9]), put("x", seq=0x9090)):
        payload, _ = r.propose((A, op))
        assert payload is not None
        assert not is_mark(payload)
        r.apply(r.index, b"")


@pytest.mark.parametrize("generation", [MAX_GENERATIONS, 1 << 18])
def test_a_generation_beyond_the_bound_is_refused(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        read_payload(pack_mark(generation))
    config = ConfigRecord(0, 0, 1 << 64, 1 << 16, None, (("n", "s"),), generation=generation)
    with pytest.raises(ProtocolError, match="generation"):
        read_config(pack_config(config), 0)


def test_versions_stay_safe_integers_of_javascript() -> None:
    assert first_version(MAX_GENERATIONS) == 1 << 53
    assert count_of(G2 + 7) == 7


def test_a_generation_that_is_used_up_takes_no_more_writes() -> None:
    r = changed(before())
    r.machine.last_version = r.machine.proposals.version = Version(G1 + LAST_COUNT + 1)
    assert r.run((A, put("x")))[0][0] == QuotaExceeded.status
    assert r.run((A, put("x", fence=["new", RAISE])))[0][0] == QuotaExceeded.status
    changed(r, 2)
    assert r.run((A, put("x")))[0][:2] == (OK, G2 + 1)
    assert LAST_COUNT < 1 << COUNT_BITS


# --- what is given -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [1, 2, 3, 99, G2 + 1])
def test_conditions(stale: int) -> None:
    r = changed(before())
    for op in (put("x", when=stale), delete("x", when=stale), add("n", 1, when=stale), put("z", when=stale)):
        refused(r.run((A, op))[0], stale)
    refused(r.propose((A, touch("x", stale)))[1][0].tail, stale)
    assert r.run((A, put("x", when=EXISTS)))[0][0] == OK
    assert r.run((A, put("new", when=ABSENT)))[0][0] == OK
    assert r.run((A, put("x", when=ABSENT)))[0][0] == ConditionFailed.status


def test_what_is_no_version_at_all_is_of_no_history() -> None:
    """A condition that never holds, in any generation: somebody wants an entry without effect."""
    for r in (before(), changed(before())):
        assert r.run((A, delete("x", when=NO_VERSION)))[0][0] == ConditionFailed.status
        assert r.propose((A, touch("x", NO_VERSION)))[1][0].tail[0] == ConditionFailed.status
        assert r.run((A, txn([[lk("x"), VERSION, GREATER, NO_VERSION]], [])))[0][:2] == (OK, False)


@pytest.mark.parametrize("stale", [1, 99, G2])
def test_compares_of_transactions(stale: int) -> None:
    r = changed(before())
    for target in (VERSION, CREATED):
        for relation in (EQUAL, NOT_EQUAL, GREATER):
            op = txn([[lk("x"), VALUE, EQUAL, b"v"], [lk("y"), target, relation, stale]], [[GET, lk("x")]])
            refused(r.run((A, op))[0], stale)
            refused(read_txn(r.machine, r.machine.read, op)[0], stale)
    op = txn([[lk("x"), VERSION, GREATER, 0], [lk("z"), VERSION, EQUAL, 0]], [[GET, lk("x")]])
    assert r.run((A, op))[0][:2] == (OK, True)


@pytest.mark.parametrize("stale", [1, 4, 99])
def test_fencing_tokens(stale: int) -> None:
    r = changed(before())
    for name in ("job", "unknown"):
        refused(r.run((A, put("x", fence=[name, stale])))[0], stale)
        refused(r.run((A, txn([], [], fence=[name, stale])))[0], stale)
    r.run((A, delete("lock")))
    token = r.run((A, put("lock", when=ABSENT, fence=["job", RAISE])))[0][1]
    assert token > G1
    assert r.run((A, put("x", fence=["job", token])))[0][0] == OK
    assert r.run((A, put("x", fence=["job", token - 1])))[0][0] == Fenced.status
    assert r.run((A, put("x", fence=["elsewhere", G2 + 1])))[0][0] == OK, "a lock's partition may be ahead"


def test_a_refusal_is_remembered_as_it_was() -> None:
    r = changed(before())
    last_seen = G1 + r.index
    first = r.run((A, put("x", when=1, seq=7, last_seen=last_seen)))[0]
    refused(first, 1)
    assert r.run((A, put("x", when=1, seq=7, last_seen=last_seen)))[0] == first
    follower = Replica()
    follower.machine.load([(k, v) for k, v in r.saved.items()])
    assert follower.machine.dedupe.known(A, 7, LastSeenIndex(last_seen)) == first


def test_a_stamp_of_before_says_nothing_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client had seen entry 200 of a history that is lost; here its request was executed at entry 7, and
    forgotten. Compared as numbers, 200 >= 7 would have it executed twice."""
    monkeypatch.setattr(dedupe, "MAX_SESSIONS", 1)
    monkeypatch.setattr(dedupe, "MAX_YOUNG_SESSIONS", 1)
    r = changed(before())
    lost = {"seq": 9, "lowest_open": 9, "last_seen": 200}
    status, _, detail = r.run((A, add("n", 1, **lost)))[0]
    assert (status, detail["index"]) == (RequestIdExpired.status, G1 + r.index), (
        "not told apart: stamp it anew"
    )
    done = r.run((A, add("n", 1, seq=9, lowest_open=9, last_seen=detail["index"])))[0]
    assert done[2] == G1 + r.index
    r.run((B, put("x", seq=1, lowest_open=1, last_seen=done[2])))
    assert A not in r.machine.sessions
    for last_seen in (200, detail["index"]):
        assert (
            r.run((A, add("n", 1, seq=9, lowest_open=9, last_seen=last_seen)))[0][0]
            == RequestIdExpired.status
        )
    assert unpack_record(r.state[lk("n")]).value == b"6"


def test_a_first_request_of_before_is_found_after() -> None:
    r = Replica()
    first = r.run((A, add("n", 1, seq=3)))[0]
    changed(r)
    assert r.run((A, add("n", 1, seq=3)))[0] == first
    assert r.run((A, add("n", 1, seq=4)))[0][3] == 2, "a known client goes on"


# --- what is shown -----------------------------------------------------------------------------------


def test_records_of_before_are_of_the_first_version() -> None:
    r = changed(before())
    m = r.machine
    raw = r.state[lk("x")]
    shown = unpack_record(m.shown(raw))
    assert (shown.version, shown.created, shown.value) == (G1, G1, b"v")
    assert m.shown_versions(raw)[1:] == (G1, G1)
    status, _, detail = r.run((A, put("x", when=G1 + 5)))[0]
    assert (status, detail["version"], unpack_record(detail["record"]).version) == (
        ConditionFailed.status,
        G1,
        G1,
    )
    tail = r.run((A, txn([[lk("x"), VERSION, EQUAL, G1]], [[GET, lk("x")]])))[0]
    assert tail[1] is True
    assert unpack_record(tail[3][0][1]).version == G1
    assert r.propose((A, touch("x", G1)))[1][0].tail[:2] == (OK, G1)
    # what is read now can be written over now
    written = r.run((A, put("x", b"w", when=G1)))[0]
    assert written[:2] == (OK, G1 + 1)
    now = unpack_record(r.state[lk("x")])
    assert (now.version, now.created) == (G1 + 1, G1)
    assert r.run((A, add("n", 1, when=G1)))[0][3] == 6
    assert r.run((A, delete("y", when=G1)))[0][0] == OK
    changed(r, 2)
    assert unpack_record(m.shown(r.state[lk("x")])).version == G2


def test_a_damaged_record_is_not_made_good() -> None:
    packed = bytearray(pack_record(3, 2, b"value", b"text/plain", 7000))
    shown = unpack_record(shown_from(bytes(packed), G1))
    assert shown == unpack_record(bytes(packed))._replace(version=G1, created=G1)
    packed[-1] ^= 1
    assert shown_from(bytes(packed), G1) == bytes(packed)


# --- saved, carried, split ---------------------------------------------------------------------------


def test_a_history_survives_restart_snapshot_and_split() -> None:
    r = changed(before())
    assert all(check_metadata(key, raw) for key, raw in r.saved.items())
    again = Replica()
    again.state, again.index = dict(r.state), r.index
    again.machine.load(list(r.saved.items()))
    assert again.view() == r.view()
    refused(again.run((A, put("x", when=1)))[0], 1)
    r.machine.proposals.count_above(b"\xff" * 8)
    r.machine.proposals.count_slice([], None)
    payload = r.machine.proposals.resolve_split(r.index + 1, 1, 1, (1 << 64) - 1, [("n", "s")])
    r.index += 1
    split_result = r.machine.apply(r.index, payload).split_result
    assert split_result is not None
    child = Machine(lambda _: None)
    child.load(split_result.metadata)
    assert (child.last_version, child.first_version) == (r.machine.last_version, G1)
    assert child.dedupe.history == G1
    assert child.is_other_history(4)


def test_a_follower_ends_alike() -> None:
    leader, follower = before(), Replica()
    payloads = []
    leader = Replica()
    for batch in (
        [put("x"), add("n", 1, seq=1)],
        None,
        [put("x", when=1), put("x", when=G1), put("n", when=7)],
    ):
        if batch is None:
            changed(leader)
            payloads.append(pack_mark(1))
            continue
        payload, _ = leader.propose(*((A, op) for op in batch))
        assert payload is not None
        payloads.append(payload)
        leader.apply(leader.index, b"")
    for index, payload in enumerate(payloads, 1):
        follower.apply(index, payload)
    assert follower.view() == leader.view()
    assert follower.saved == leader.saved


def test_a_put_within_a_transaction_keeps_created_within_the_history() -> None:
    r = changed(before())
    assert r.run((A, txn([], [[PUT, lk("x"), b"t", "", None]])))[0][0] == OK
    assert unpack_record(r.state[lk("x")]).created == G1


def test_a_stamp_that_was_cut_at_a_split_says_nothing_of_another_history_of_that_number() -> None:
    """Parent and child part at an entry and each begins a history after that, of the same number: they are two. What
    the client saw of the parent's is cut at the entry that parted them, and is below all of the child's."""
    r = before()
    parted = r.index
    r.run((A, add("n", 1, seq=5, last_seen=parted)))
    r.machine.dedupe.by_client.clear()  # forgotten
    changed(r)
    cut = G1 + parted
    status, _, detail = r.run((A, add("n", 1, seq=5, last_seen=cut)))[0]
    assert (status, detail["index"]) == (RequestIdExpired.status, r.machine.dedupe.expired_below)
    assert cut < detail["index"] <= G1 + r.index
    assert r.run((B, put("x", seq=1, lowest_open=1, last_seen=detail["index"])))[0][0] == OK
