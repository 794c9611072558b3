"""R7 at the client: what a write's attempts say of it, answer by answer; and which number it is sent again with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore.elements import ONE_REQUEST
from metastore.errors import (
    ConditionFailed,
    DeadlineExceeded,
    Fenced,
    InvalidRequest,
    MetastoreError,
    OutcomeUnknown,
    RequestIdExpired,
    Unavailable,
)
from metastore.history import LastSeenIndex
from metastore.keys import storage_key_of
from metastore.layout import NodeRecord
from metastore.operations import GET, LINEARIZABLE, OK, PUT
from metastore.routing.dispatcher import Dispatcher, RequestIds
from metastore.routing.failures import AttemptTimeout, ConnectionLost
from metastore.topology import Placement

LKEY = storage_key_of("n", "k")
NODES = ("n1", "n2", "n3")
DONE = [0, OK, 9, 12, True]
READ = [0, OK, b"record", 0]


def error(kind: type[MetastoreError], **detail: Any) -> list[Any]:
    return [0, kind.status, "as told", detail]


class Scripted(Dispatcher):
    """Every node answers with the next line of a script: a result, or an error of the connection."""

    unresponsive = False

    def __init__(self, *script: Any) -> None:
        super().__init__([])
        self.open_connection = lambda address: self  # type: ignore[assignment,return-value]
        self.table.partitions = {0: Placement(0, 0, 1 << 64, "c", NODES, leader="n1", epoch=1)}
        self.table.nodes = {n: NodeRecord(n, "c", n, f"{n}:1", "") for n in NODES}
        self.script = list(script)
        #: ``(seq, lowest_open, last_seen)`` of the writes that were sent
        self.sent: list[tuple[int, int, int]] = []

    async def submit(self, client_id: bytes, op: list[Any], until: float, patience: float) -> list[Any]:
        if op[1] == PUT:
            self.sent.append((op[4], op[5], op[6]))
        step = self.script.pop(0)
        if isinstance(step, MetastoreError):
            raise step
        return step  # type: ignore[no-any-return]

    async def put(self, ids: RequestIds | None = None) -> list[Any]:
        until = asyncio.get_running_loop().time() + 60
        try:
            return await self.write([0, PUT, 0, LKEY, 0, 0, 0, None, b"v", "", 0], LKEY, until, ids)
        finally:
            await self.close()

    async def get(self) -> list[Any]:
        until = asyncio.get_running_loop().time() + 60
        try:
            return await self.read([0, GET, 0, LKEY, LINEARIZABLE, None], LKEY, until)
        finally:
            await self.close()


LOST = ConnectionLost("reset", sent=True)
UNSENT = ConnectionLost("refused", sent=False)
SILENT = AttemptTimeout("no answer")
REFUSED = error(InvalidRequest)


# --- what is unknown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doubt", [LOST, SILENT, error(OutcomeUnknown)], ids=lambda x: str(x)[:20])
async def test_after_an_attempt_that_may_have_been_carried_out_a_refusal_says_nothing(doubt: Any) -> None:
    """The first may take effect yet, or have: only what dedupe remembers is about the write itself."""
    with pytest.raises(OutcomeUnknown):
        await Scripted(doubt, REFUSED).put()


@pytest.mark.parametrize("doubt", [LOST, SILENT, error(OutcomeUnknown)], ids=lambda x: str(x)[:20])
@pytest.mark.parametrize("kind", [ConditionFailed, Fenced])
async def test_what_dedupe_remembers_is_the_first_outcome(doubt: Any, kind: type[MetastoreError]) -> None:
    with pytest.raises(kind):
        await Scripted(doubt, error(kind, version=3, token=3)).put()


@pytest.mark.parametrize(
    "harmless", [UNSENT, error(Unavailable), error(DeadlineExceeded)], ids=lambda x: str(x)[:20]
)
async def test_an_attempt_that_was_never_sent_or_was_refused_leaves_no_doubt(harmless: Any) -> None:
    with pytest.raises(InvalidRequest):
        await Scripted(harmless, REFUSED).put()


@pytest.mark.parametrize("doubt", [LOST, SILENT], ids=lambda x: str(x)[:20])
async def test_a_read_leaves_no_doubt(doubt: Any) -> None:
    with pytest.raises(InvalidRequest):
        await Scripted(doubt, REFUSED).get()
    assert await Scripted(doubt, READ).get() == READ


async def test_a_retry_is_the_same_request() -> None:
    client = Scripted(LOST, SILENT, error(OutcomeUnknown), DONE)
    client.ids.seen(0, LastSeenIndex(7))
    assert await client.put() == DONE
    assert set(client.sent) == {(1, 1, 7)}


# --- numbers --------------------------------------------------------------------------------------------------------


TOO_OLD = error(RequestIdExpired, index=40, reused=False)
REUSED = error(RequestIdExpired, index=40, reused=True)


async def test_a_request_that_was_refused_as_too_old_is_stamped_anew() -> None:
    """It was certainly not carried out: the partition has said up to where it has forgotten."""
    client = Scripted(TOO_OLD, DONE)
    assert await client.put() == DONE
    assert client.sent == [(1, 1, 0), (1, 1, 40)]


async def test_one_that_counts_as_finished_gets_a_new_number() -> None:
    client = Scripted(REUSED, DONE)
    assert await client.put() == DONE
    assert client.sent == [(1, 1, 0), (2, 2, 40)]


@pytest.mark.parametrize("doubt", [LOST, SILENT, error(OutcomeUnknown)], ids=lambda x: str(x)[:20])
@pytest.mark.parametrize("refusal", [TOO_OLD, REUSED], ids=["too old", "reused"])
async def test_not_when_an_attempt_may_have_been_carried_out(doubt: Any, refusal: Any) -> None:
    """It may be what was forgotten: under another stamp, or number, it would be done twice."""
    client = Scripted(doubt, refusal)
    with pytest.raises(OutcomeUnknown):
        await client.put()
    assert len(set(client.sent)) == 1


async def test_a_named_request_that_counts_as_finished_is_told() -> None:
    """Whoever named it has sent it before, from wherever."""
    client = Scripted(REUSED)
    with pytest.raises(RequestIdExpired):
        await client.put(RequestIds.named("order 4711"))
    assert len(client.sent) == 1


async def test_what_a_success_says_of_the_log_is_the_next_stamp() -> None:
    client = Scripted(DONE)
    await client.put()
    assert client.ids.last_seen(0) == 12


# --- floors ---------------------------------------------------------------------------------------------------------


def test_a_floor_is_the_lowest_request_under_way() -> None:
    ids = RequestIds()
    assert ids.lowest_open(0) == 1
    first, _ = ids.begin(0)
    second, _ = ids.begin(0)
    other, _ = ids.begin(7)
    assert (first, second, other) == (1, 2, 3)
    assert ids.lowest_open(0) == 1
    ids.end(0, second)
    assert ids.lowest_open(0) == 1, "the first may be sent again"
    ids.end(0, first)
    assert ids.lowest_open(0) == 4, "all are finished"
    assert ids.lowest_open(0, 7) == 3, "one that was numbered for another may come here"


def test_a_stamp_only_grows() -> None:
    ids = RequestIds()
    for index, last_seen in ((7, 7), (3, 7), (9, 9)):
        ids.seen(0, LastSeenIndex(index))
        assert ids.last_seen(0) == last_seen
    assert ids.last_seen(1) == 0
    assert ids.begin(0) == (1, 9)


async def test_the_floor_told_to_a_child_counts_what_was_numbered_for_its_parent() -> None:
    """R18: a write that was numbered before the split may come to either half yet."""
    client = Scripted(DONE)
    client.table.partitions = {
        0: Placement(0, 0, 1, "c", NODES, leader="n1", epoch=1),
        1: Placement(1, 1, 1 << 64, "c", NODES, leader="n1", epoch=1, parent=(0, 40)),
    }
    old, _ = client.ids.begin(0)
    await client.put()
    assert client.sent == [(2, old, 0)]


async def test_a_number_is_finished_when_its_write_has_ended_however() -> None:
    client = Scripted(REFUSED)
    with pytest.raises(InvalidRequest):
        await client.put()
    assert client.ids.lowest_open(0) == 2


async def test_an_age_counts_to_the_end_of_the_attempts() -> None:
    """They may go on for a minute: 530 s is too old by then, and is sent with a stamp that says nothing."""
    for age_s, last_seen in ((500.0, 99), (530.0, 0)):
        ids = RequestIds.named("order", age_s)
        ids.seen(0, LastSeenIndex(99))
        client = Scripted(DONE)
        await client.put(ids)
        assert client.sent == [(1, ONE_REQUEST, last_seen)]
