"""One Idempotency-Key is one request id: judged by the partition's own machine (R7)."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from metastore.core import dedupe
from metastore.core.dedupe import MAX_SESSIONS
from metastore.core.machine import Machine
from metastore.elements import DEDUPE_WINDOW_S, ONE_REQUEST
from metastore.errors import (
    ConditionFailed,
    DiskLow,
    InvalidRequest,
    OutcomeUnknown,
    QuotaExceeded,
    RequestIdExpired,
    Unavailable,
)
from metastore.history import LastSeenIndex
from metastore.keys import storage_key_of
from metastore.operations import ADD
from metastore.routing.dispatcher import RequestIds
from metastore.routing.request_ids import AGE_MARGIN_S
from metastore.wire.op_checks import check_op, op_shape
from router.idempotency import AGE_HEADER, KEY_HEADER, OneRequest, aged, note_batch, refused, was_sent_before

KEY = storage_key_of("app", "n")


class Partition:
    """A machine whose entries are committed when told to."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes | None] = {}
        self.machine = Machine(lambda storage_key: self.records.get(storage_key))
        self.index = 0
        self.proposed: list[tuple[int, bytes]] = []

    def add(self, ids: RequestIds, delta: int) -> Any:
        """One attempt; what it will be told once all is committed."""
        seq, last_seen = ids.begin(0)
        op = [0, ADD, 0, KEY, seq, ids.lowest_open(0), last_seen, None, delta]
        assert op_shape(op) is None
        assert check_op(op) is None
        payload, [result] = self.machine.proposals.resolve(self.index + 1, [(ids.client_id, op)])
        if payload is not None:
            self.index += 1
            self.proposed.append((self.index, payload))
        return result.tail

    def commit(self) -> None:
        for index, payload in self.proposed:
            for storage_key, record in self.machine.apply(index, payload).changes:
                self.records[storage_key] = record
        self.proposed.clear()

    def restart(self) -> None:
        rows = [(key, self.machine.metadata(key)) for key in self.machine.metadata_keys()]
        self.machine = Machine(lambda storage_key: self.records.get(storage_key))
        self.machine.load([(k, v) for k, v in rows if v is not None])


def request(key: str, body: Any, scope: tuple[str, ...] = ("app", "n")) -> OneRequest:
    return OneRequest(RequestIds(), key, scope, body)


@pytest.mark.parametrize("committed", [True, False])
def test_the_same_request_is_carried_out_once_and_another_never(committed: bool) -> None:
    p = Partition()
    first = p.add(request("k", ["add", 5]), 5)
    if committed:
        p.commit()
        p.restart()
    assert p.add(request("k", ["add", 5]), 5) == first, "also through another router"
    for number in range(200):  # whatever their hash: above and below the first one's
        refused = p.add(request("k", ["add", 6, number]), 6)
        assert refused[0] == RequestIdExpired.status
        assert refused[2]["reused"] is True
    p.commit()
    assert p.machine.last_version == 1
    assert p.add(request("other", ["add", 1]), 1)[3] == 6
    assert p.add(request("k", ["add", 1], ("app", "another record")), 1)[3] == 7


def test_the_window() -> None:
    """A key is remembered until as many others have come as a partition keeps, and the leader has said that
    it is older than the window; then it is refused, and never executed once more without a word."""
    p = Partition()
    first = p.add(request("k", 1), 1)
    p.commit()
    for number in range(MAX_SESSIONS + 10):
        p.add(request(f"other-{number}", 1), 1)
    p.commit()
    assert p.add(request("k", 1), 1) == first, "it is young"
    p.machine.proposals.horizon = p.index
    p.add(request("one more", 1), 1)
    p.commit()
    router = RequestIds()
    router.seen(0, LastSeenIndex(p.index))
    late = p.add(OneRequest(router, "k", ("app", "n"), 1), 1)
    assert late[0] == RequestIdExpired.status
    assert late[2]["spent"] is True, "however fresh the router's stamp is"


def test_who_tells_its_age_is_refused_beyond_any_memory() -> None:
    router = RequestIds()
    router.seen(0, LastSeenIndex(99))
    young = OneRequest(router, "k", ("app", "n"), 1, 10.0)
    old = OneRequest(router, "k", ("app", "n"), 1, DEDUPE_WINDOW_S + 1.0)
    named = RequestIds.named("order", DEDUPE_WINDOW_S + 1.0)
    named.seen(0, LastSeenIndex(99))
    assert (named.begin(0), named.lowest_open(0), named.restamps) == ((1, 0), ONE_REQUEST, False)
    assert (young.begin(0)[1], young.restamps) == (99, True)
    assert (old.begin(0)[1], old.restamps) == (0, False)


def test_what_is_said_is_about_the_key() -> None:
    """An attempt that was turned away says nothing of those before it, unless it is told to be the first."""
    away, unsure = Unavailable("no leader", retry_after_s=2), request("k", 1)
    said = unsure.about(away)
    assert (type(said), said.outcome, said.detail) == (OutcomeUnknown, "unknown", {"retry_after_s": 2})
    assert "no leader" in said.message
    first = OneRequest(RequestIds(), "k", ("app", "n"), 1, 0.0)
    assert first.about(away) is away
    assert RequestIds().about(away) is away
    for error in (ConditionFailed(), QuotaExceeded(), DiskLow(), RequestIdExpired(), OutcomeUnknown()):
        assert unsure.about(error) is error, "from the partition, which looked; or unknown already"
    assert RequestIdExpired.outcome == "unknown"


def test_numbers_fit_the_wire() -> None:
    for number in range(1000):
        ids = request("k", number)
        seq, last_seen = ids.begin(3)
        assert 0 < seq < ONE_REQUEST == ids.lowest_open(3)
        assert last_seen == 0
    assert request("k", 1).client_id != request("k", 1, ("app", "m")).client_id
    assert request("k", 1).client_id == request("k", 2).client_id


def test_stamps_are_the_routers() -> None:
    router = RequestIds()
    router.seen(4, LastSeenIndex(77))
    ids = OneRequest(router, "k", ("app", "n"), 1)
    assert ids.begin(4)[1] == 77
    ids.seen(4, LastSeenIndex(99))
    assert router.last_seen(4) == 99


# --- at the end of the window ----------------------------------------------------------------------------------------


def test_a_repetition_at_the_end_of_the_window_is_not_carried_out_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client counted 599 seconds, and it takes a while until the partition looks: by then the key, and its mark,
    have gone. Nothing but the age tells it from a first time."""
    monkeypatch.setattr(dedupe, "MAX_SPENT", 1)
    monkeypatch.setattr(dedupe, "MAX_SESSIONS", 1)
    p, router = Partition(), RequestIds()
    p.add(request("k", 1), 1)
    p.commit()
    p.machine.proposals.horizon = p.index + 9
    for number in range(3):
        p.add(OneRequest(router, f"other-{number}", ("app", "n"), 1), 1)
        p.commit()
        router.seen(0, LastSeenIndex(p.index))
    late = OneRequest(router, "k", ("app", "n"), 1, DEDUPE_WINDOW_S - 1.0)
    assert p.add(late, 1)[0] == RequestIdExpired.status
    assert p.machine.last_version == 4


@pytest.mark.parametrize(
    ("age_s", "left_s", "may"),
    [
        (DEDUPE_WINDOW_S - AGE_MARGIN_S - 10, 10, True),
        (DEDUPE_WINDOW_S - AGE_MARGIN_S - 10, 10.1, False),
        (0, DEDUPE_WINDOW_S, False),
        (None, 10**9, True),
    ],
)
def test_an_age_counts_to_the_end_of_the_last_attempt(age_s: float | None, left_s: float, may: bool) -> None:
    ids = RequestIds.named("order", age_s)
    ids.seen(0, LastSeenIndex(99))
    ids.lasts(left_s)
    assert (ids.restamps, ids.last_seen(0)) == (may, 99 if may else 0)


def test_what_the_request_waited_at_the_router_is_of_its_age() -> None:
    assert aged(None, 5.0) is None
    assert aged(0, 5.0) == 0, "it is the first time, however long it takes"
    assert aged(0.5, 5.0) == 5.5


# --- what is refused whole ---------------------------------------------------------------------------------------------

AWAY = Unavailable("no leader", retry_after_s=2)


@pytest.mark.parametrize(
    ("method", "path", "headers", "outcome"),
    [
        ("PUT", "/v1/kv/app/n", {}, "none"),
        ("PUT", "/v1/kv/app/n", {KEY_HEADER: "k"}, "unknown"),
        ("PUT", "/v1/kv/app/n", {KEY_HEADER: "k", AGE_HEADER: "0"}, "none"),
        ("PUT", "/v1/kv/app/n", {KEY_HEADER: "k", AGE_HEADER: "1"}, "unknown"),
        ("GET", "/v1/kv/app/n", {KEY_HEADER: "k"}, "none"),
        ("POST", "/v1/batch/app", {}, "unknown"),
        ("POST", "/v1/batch/app?timeout_ms=5", {}, "unknown"),
        ("POST", "/v1/add/batch/n", {}, "none"),
    ],
)
def test_a_refusal_of_what_nobody_looked_into(
    method: str, path: str, headers: dict[str, str], outcome: str
) -> None:
    """Operations of a batch may have keys, and whoever did not read it cannot know."""
    asked = make_mocked_request(method, path, headers)
    assert refused(AWAY, asked).outcome == outcome
    assert was_sent_before(asked) == (outcome == "unknown")


@pytest.mark.parametrize(
    ("ops", "outcome"),
    [
        ([], "none"),
        ([{"op": "put", "key": "a"}, InvalidRequest("no operation at all")], "none"),
        ([{"op": "put", "key": "a"}, {"op": "add", "key": "b", "idempotency_key": "k"}], "unknown"),
        ([{"op": "put", "key": "a", "idempotency_key": "k", "idempotency_age_s": 0}], "none"),
        ([{"op": "put", "key": "a", "idempotency_key": "k", "idempotency_age_s": 3}], "unknown"),
        ([{"op": "get", "key": "a"}], "none"),
    ],
)
def test_a_batch_that_was_read_is_refused_by_what_is_in_it(ops: list[Any], outcome: str) -> None:
    asked = make_mocked_request("POST", "/v1/batch/app")
    note_batch(asked, ops)
    said = refused(AWAY, asked)
    assert said.outcome == outcome
    assert "no leader" in said.message
    assert refused(InvalidRequest("no JSON"), asked).outcome == "none"
