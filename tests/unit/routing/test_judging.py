"""The policy of retries as a table: how an attempt failed, whether it was sent, what the operation does -> what comes next, and
what the operation's outcome is should it end then. No loop, no clock, no socket."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from metastore.errors import (
    ConditionFailed,
    DeadlineExceeded,
    Fenced,
    HistoryChanged,
    InternalError,
    InvalidRequest,
    MetastoreError,
    Moved,
    NoCommonVersion,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RequestIdExpired,
    ShuttingDown,
    TooStale,
    Unavailable,
)
from metastore.layout import NodeRecord
from metastore.operations import GET, LINEARIZABLE, PUT
from metastore.routing.attempts import DEAD_CELL_PATIENCE_S, MAX_HOPS, Attempts, Step
from metastore.routing.backoff import BACKOFF_S, RetryBudget
from metastore.routing.failures import AttemptTimeout, ConnectionLost, Malformed
from metastore.routing.request_ids import RequestIds
from metastore.topology import Placement, TopologyTable

NODES = ("n1", "n2", "n3")
ADDRESSES = tuple(f"{n}:1" for n in NODES)
ROUTER = "http://router:80"


def known() -> TopologyTable:
    table = TopologyTable("test")
    table.partitions = {0: Placement(0, 0, 1 << 64, "c", NODES, leader="n1", epoch=5)}
    table.nodes = {n: NodeRecord(n, "c", n, f"{n}:1", "") for n in NODES}
    return table


@dataclass
class Client:
    """What operations of a client share, without the client."""

    table: TopologyTable = field(default_factory=known)
    ids: RequestIds = field(default_factory=RequestIds)
    budget: RetryBudget = field(default_factory=RetryBudget)
    retries: int = 0
    direct: bool = True
    router_url: str | None = None
    election_patience_s: float = 6.0
    avoided: set[str] = field(default_factory=set)
    unresponsive: set[str] = field(default_factory=set)
    rotation: int = 0

    def is_unresponsive(self, address: str) -> bool:
        return address in self.unresponsive

    def next_rotation(self) -> int:
        self.rotation += 1
        return self.rotation


def attempts(writes: bool, client: Client | None = None, *, foreign: bool = False) -> Attempts:
    """Of a put with the client's own request id (``foreign``: with another's, as a router has it), or a get."""
    client = client or Client()
    if not writes:
        return Attempts(client, [0, GET, 0, b"", LINEARIZABLE, None], b"", 100.0)
    seq, last_seen = client.ids.begin(0)
    found = Attempts(client, [0, PUT, 0, b"", seq, 0, last_seen, None, b"v", "", 0], b"", 100.0)
    found.changes, found.partition, found.seen_in = True, 0, 0
    found.ids = None if foreign else client.ids
    return found


def placement(of: Attempts) -> Placement:
    return of.client.table.partitions[0]


def judged(
    of: Attempts, error: MetastoreError, address: str = "n1:1", now: float = 1.0
) -> Step | MetastoreError:
    """The next step, or the error that it ends with."""
    try:
        return of.judge(address, placement(of), of.meant(error), now)
    except MetastoreError as e:
        return e


def outcome(of: Attempts) -> type[MetastoreError]:
    """What the operation ends with when its time is up."""
    return type(of.at_the_end(DeadlineExceeded("the deadline passed")))


NONE, UNKNOWN = DeadlineExceeded, OutcomeUnknown
#: the failure of an attempt -> the next step of a write, what the write ends with if there is no time for it, the next step of a
#: read, which always ends with DeadlineExceeded then
RETRIED = [
    (ConnectionLost("", sent=False), Step.AGAIN, NONE, Step.AGAIN),
    (ConnectionLost("", sent=False, refused=True), Step.AGAIN, NONE, Step.AGAIN),
    (ConnectionLost("", sent=True), Step.AGAIN, UNKNOWN, Step.AGAIN),
    (Malformed("", sent=True), Step.AGAIN, UNKNOWN, Step.AGAIN),
    (AttemptTimeout(""), Step.AGAIN, UNKNOWN, Step.AGAIN),
    (NotLeader("", leader="n2", epoch=6), Step.AGAIN, NONE, Step.AGAIN),
    (NotLeader("", leader="n2", epoch=4), Step.AGAIN, NONE, Step.AGAIN),
    (NotLeader("", leader=None, epoch=0), Step.AGAIN, NONE, Step.AGAIN),
    (Moved("", leader="n2", epoch=6), Step.AGAIN, NONE, Step.AGAIN),
    (Moved(""), Step.REFRESH, NONE, Step.REFRESH),
    (Unavailable(""), Step.PAUSE, NONE, Step.PAUSE),
    (Unavailable("", final=True), Step.AGAIN, NONE, Step.AGAIN),
    (Overloaded("", retry_after_s=1), Step.PAUSE, NONE, Step.PAUSE),
    (ShuttingDown(""), Step.AGAIN, NONE, Step.AGAIN),
    (DeadlineExceeded(""), Step.AGAIN, NONE, Step.AGAIN),
    (OutcomeUnknown(""), Step.AGAIN, UNKNOWN, Step.PAUSE),
    (InternalError(""), Step.AGAIN, UNKNOWN, Step.PAUSE),
]


@pytest.mark.parametrize(("error", "step", "ends", "of_read"), RETRIED, ids=lambda x: str(x)[:30])
@pytest.mark.parametrize("in_doubt", [False, True], ids=["first", "after doubt"])
def test_what_comes_after_a_failure(
    error: MetastoreError, step: Step, ends: type[MetastoreError], of_read: Step, in_doubt: bool
) -> None:
    write, read = attempts(True), attempts(False)
    for one in (write, read):
        if in_doubt:
            assert judged(one, AttemptTimeout(""), "n3:1") is Step.AGAIN
    assert judged(write, error) is step
    assert outcome(write) is (UNKNOWN if in_doubt else ends), "once in doubt, always in doubt"
    assert judged(read, error) is of_read
    assert outcome(read) is NONE
    assert write.client.retries == read.client.retries == 1 + in_doubt
    assert "n1:1" in write.tried


#: answers that end the operation: the error itself, or OutcomeUnknown after an attempt that may have been carried out
FINAL = [
    (ConditionFailed("", version=3), True),
    (Fenced("", token=3), True),
    (HistoryChanged(""), True),
    (InvalidRequest(""), False),
    (NoCommonVersion(""), False),
    (RequestIdExpired("", spent=True), True),
    (RequestIdExpired("", index=None), False),
]


@pytest.mark.parametrize(("error", "remembered"), FINAL, ids=lambda x: str(type(x).__name__))
@pytest.mark.parametrize("in_doubt", [False, True], ids=["first", "after doubt"])
def test_what_ends_a_write(error: MetastoreError, remembered: bool, in_doubt: bool) -> None:
    """What dedupe remembers is the first outcome, whatever attempt it belongs to (R7); a refusal of a later attempt says nothing
    of an earlier one."""
    one = attempts(True)
    if in_doubt:
        judged(one, ConnectionLost("", sent=True), "n3:1")
    told = judged(one, error)
    assert type(told) is (OutcomeUnknown if in_doubt and not remembered else type(error))


@pytest.mark.parametrize("error", [InvalidRequest(""), NoCommonVersion("")], ids=lambda x: type(x).__name__)
def test_what_ends_a_read(error: MetastoreError) -> None:
    one = attempts(False)
    judged(one, ConnectionLost("", sent=True), "n3:1")
    assert judged(one, error) is error


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("in_doubt", [False, True])
@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_a_request_id_that_is_too_old_is_made_anew_only_when_nothing_may_have_been_done(
    reused: bool, in_doubt: bool, foreign: bool
) -> None:
    one = attempts(True, foreign=foreign)
    seq = one.op[4]
    if in_doubt:
        judged(one, AttemptTimeout(""), "n3:1")
    told = judged(one, RequestIdExpired("", index=40, reused=reused))
    if foreign:  # whoever numbered it has to know
        assert type(told) is (OutcomeUnknown if in_doubt else RequestIdExpired)
    elif in_doubt:
        assert type(told) is OutcomeUnknown
    else:
        assert told is Step.AGAIN
        assert one.op[6] == 40
        assert (one.op[4] != seq) == reused
        return
    assert (one.op[4], one.op[6]) == (seq, 0)


# --- where to --------------------------------------------------------------------------------------------------------


def test_the_leader_is_asked_then_the_others_then_nobody() -> None:
    one = attempts(True)
    for address in ADDRESSES:
        assert one.choose(placement(one), 1.0) == address
        judged(one, ConnectionLost("", sent=False), address)
    assert one.choose(placement(one), 1.0) is None


def test_a_hint_is_followed_so_many_times() -> None:
    one = attempts(True)
    for epoch in range(6, 6 + MAX_HOPS):
        node = NODES[epoch % 3]
        assert judged(one, NotLeader("", leader=node, epoch=epoch), ADDRESSES[(epoch + 1) % 3]) is Step.AGAIN
        assert not one.owes, "a hint costs nothing"
        assert one.choose(placement(one), 1.0) == f"{node}:1"
    judged(one, NotLeader("", leader="n1", epoch=99), "n2:1")
    assert one.owes


def test_who_is_silent_or_around_comes_last() -> None:
    client = Client(unresponsive={"n1:1"}, avoided={"n2:1"})
    one = attempts(True, client)
    assert one.choose(placement(one), 1.0) == "n3:1"
    one.tried.add("n3:1")
    assert one.choose(placement(one), 1.0) == "n1:1"
    one.tried.add("n1:1")
    assert one.choose(placement(one), 1.0) == "n2:1"


@pytest.mark.parametrize(
    ("direct", "avoided", "lost", "expected"),
    [
        (False, set(), (), ROUTER),
        (True, set(), (), "n1:1"),
        (True, {"n1:1"}, (), ROUTER),
        (True, set(), ADDRESSES, ROUTER),
    ],
    ids=["only by the router", "directly", "the leader is around", "nobody answers"],
)
def test_the_router_is_the_way_around(
    direct: bool, avoided: set[str], lost: tuple[str, ...], expected: str
) -> None:
    one = attempts(True, Client(direct=direct, avoided=avoided, router_url=ROUTER))
    for address in lost:
        judged(one, ConnectionLost("", sent=False), address)
    assert one.choose(placement(one), 1.0) == expected


@pytest.mark.parametrize("answer", [None, ConditionFailed("")], ids=["a result", "an error"])
@pytest.mark.parametrize("unreached", [True, False])
def test_what_the_router_reached_and_nobody_else_is_noted(
    answer: MetastoreError | None, unreached: bool
) -> None:
    one = attempts(True, Client(router_url=ROUTER))
    if unreached:
        judged(one, ConnectionLost("", sent=False), "n1:1")
    if answer is None:
        one.succeeded(ROUTER, placement(one), [0, 0, 9, 1, True])
    else:
        assert judged(one, answer, ROUTER) is answer
    assert one.reached_around == unreached


# --- pauses, and the end ----------------------------------------------------------------------------------------------


def test_all_may_be_asked_again_after_a_pause_and_now_and_then_the_table_is_doubted() -> None:
    one = attempts(True)
    doubted = []
    for count in range(1, 25):
        judged(one, ConnectionLost("", sent=False), "n1:1", 1.0)
        one.pause(placement(one), 1.0)
        assert not one.tried
        assert 0 <= one.delay_s(1.0) <= BACKOFF_S[1]
        if one.doubts:
            doubted.append(count)
            one.doubts = False
    assert doubted == [3, 6, 12, 24]


def test_a_pause_never_outlasts_the_deadline() -> None:
    one = attempts(True)
    judged(one, Overloaded("", retry_after_s=5), now=99.99)
    one.pause(placement(one), 99.99)
    assert one.delay_s(99.99) <= 0.011
    assert one.delay_s(101.0) == 0.0


@pytest.mark.parametrize(
    ("failures", "waited_s", "ends"),
    [
        ([ConnectionLost("", sent=False, refused=True)] * 3, DEAD_CELL_PATIENCE_S + 0.1, True),
        ([ConnectionLost("", sent=False, refused=True)] * 2, DEAD_CELL_PATIENCE_S + 0.1, False),
        ([ConnectionLost("", sent=False)] * 3, DEAD_CELL_PATIENCE_S + 0.1, False),
        ([ConnectionLost("", sent=False)] * 3, 6.1, True),
        ([NotLeader("", leader=None, epoch=0)] * 3, 5.9, False),
        ([NotLeader("", leader=None, epoch=0)] * 3, 6.1, True),
        ([TooStale("")] * 3, 6.1, True),
    ],
    ids=["nobody listens", "one may", "lost", "too long", "no leader yet", "no leader", "too stale"],
)
@pytest.mark.parametrize("in_doubt", [False, True])
def test_when_waiting_is_no_use(
    failures: list[MetastoreError], waited_s: float, ends: bool, in_doubt: bool
) -> None:
    one = attempts(True)
    one.maybe_done = in_doubt
    for address, failure in zip(ADDRESSES, failures, strict=False):
        judged(one, failure, address, 1.0)
    if not ends:
        one.pause(placement(one), 1.0 + waited_s)
        return
    with pytest.raises(OutcomeUnknown if in_doubt else (Unavailable, TooStale)):
        one.pause(placement(one), 1.0 + waited_s)


def test_when_all_that_can_be_reached_say_so_twice_it_ends() -> None:
    one = attempts(True)
    judged(one, ConnectionLost("", sent=False), "n3:1")
    final = Unavailable("no quorum", final=True)
    steps = [judged(one, final, address) for address in ("n1:1", "n2:1", "n1:1")]
    assert steps == [Step.AGAIN, Step.AGAIN, final]
