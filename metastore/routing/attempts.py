"""The attempts of one operation: where to, what an answer means, when to pause, how it ends. Pure: no clock, no loop, no sockets.

What an operation does beside the simple case: after a wrong guess it follows the hint; when all
replicas were asked in vain it pauses. While a partition has no leader, one of the operations that
wait for it, its *leader probe*, asks at the backoff's pace, and the others wait for its answer, or for the
backoff's ceiling. Through the router goes what cannot go directly (``unreachable``). The dispatcher does what
is decided here, and says what time it is.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Set
from typing import Any, Final, Protocol

from metastore.errors import (
    ConditionFailed,
    DeadlineExceeded,
    Fenced,
    FenceForgotten,
    HistoryChanged,
    InternalError,
    MaybeHappened,
    MetastoreError,
    Moved,
    NoCommonVersion,
    NotANumber,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RequestIdExpired,
    ShuttingDown,
    TooLarge,
    TooStale,
    Unavailable,
)
from metastore.history import LastSeenIndex, within_history
from metastore.operations import (
    INDEX_AT,
    LAST_SEEN_AT,
    LOWEST_OPEN_AT,
    PARTITION_AT,
    SEQ_AT,
    Op,
)
from metastore.routing.backoff import BACKOFF_S, RetryBudget, backoff_s
from metastore.routing.failures import AttemptTimeout, ConnectionLost
from metastore.routing.request_ids import RequestIds
from metastore.topology import Placement, TopologyTable

ATTEMPT_TIMEOUT_S: Final = 2.0
#: a router waits for elections itself
ROUTER_ATTEMPT_TIMEOUT_S: Final = 4.0
DEAD_CELL_PATIENCE_S: Final = 0.25
#: how long a leader that cannot be reached is waited for, before the router is asked to reach it
LEADER_PATIENCE_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 1.0
MAX_HOPS: Final = 8

#: outcomes of a write's entry beside success: dedupe returns them again
REMEMBERED: Final = frozenset(
    error.status for error in (ConditionFailed, NotANumber, Fenced, FenceForgotten, HistoryChanged, TooLarge)
)


class Step(enum.Enum):
    """What comes after an attempt that failed."""

    AGAIN = "the next attempt follows at once"
    PAUSE = "a pause comes first"
    REFRESH = "the topology is asked for first"


class Surroundings(Protocol):
    """What all operations of a client share: the dispatcher, or what a test puts in its place."""

    table: TopologyTable
    #: the client's own request ids
    ids: RequestIds
    budget: RetryBudget
    #: how often an attempt failed
    retries: int
    direct: bool
    router_url: str | None
    election_patience_s: float

    @property
    def avoided(self) -> Set[str]:
        """Addresses that are reached through the router only."""
        ...

    def is_unresponsive(self, address: str) -> bool: ...

    def next_rotation(self) -> int: ...


class Attempts:
    """See the module. ``until``: loop time by which the operation has ended, give or take a sweep of the
    connection (50 ms). ``now`` is loop time, too."""

    __slots__ = (
        "changes",
        "client",
        "client_id",
        "dead",
        "doubts",
        "final",
        "first_failure",
        "hops",
        "ids",
        "last_error",
        "maybe_done",
        "op",
        "owes",
        "partition",
        "pauses",
        "probing",
        "reached_around",
        "seen_in",
        "spread",
        "storage_key",
        "told",
        "tried",
        "unreached",
        "until",
    )

    def __init__(self, client: Surroundings, op: Op, storage_key: bytes, until: float) -> None:
        self.client = client
        self.op = op
        self.storage_key = storage_key
        self.until = until
        self.client_id = client.ids.client_id
        self.ids: RequestIds | None = None
        #: whether an attempt may have changed something
        self.changes = False
        #: for which a write was numbered
        self.partition = -1
        #: of which partition's log its last seen index is: the halves of one that is split count each for itself
        self.seen_in = -1
        #: any replica will do
        self.spread = False
        self.maybe_done = False
        self.tried: set[str] = set()
        #: leader -> the epoch that a replica told it to have, without being believed
        self.told: dict[str, int] = {}
        #: addresses where nobody listens
        self.dead: set[str] = set()
        #: addresses that did not answer when last asked
        self.unreached: set[str] = set()
        self.hops = 0
        self.pauses = 0
        #: the next attempt costs a token of the retry budget
        self.owes = False
        self.probing: int | None = None
        self.first_failure = 0.0
        self.last_error: MetastoreError | None = None
        #: replicas whose last answer is that no replica can serve this now -> how often they answered so
        self.final: dict[str, int] = {}
        #: the table does not fit what was met: it is to be asked for in the background
        self.doubts = False
        #: the router answered, while addresses in ``unreached`` did not
        self.reached_around = False

    def request(self, placement: Placement) -> Op:
        """What is sent to the partition. Raises Moved, OutcomeUnknown."""
        op = self.op.copy()
        op[PARTITION_AT] = placement.id
        if self.changes and placement.id != self.seen_in:
            self.split_off(placement)
            op[LAST_SEEN_AT] = self.op[LAST_SEEN_AT]
        if self.ids is not None:
            op[LOWEST_OPEN_AT] = self.ids.lowest_open(*self.client.table.lineage(placement))
        return op

    def succeeded(self, address: str, placement: Placement, result: list[Any]) -> None:
        """``result`` is the operation's."""
        self.client.budget.succeeded()
        if self.ids is not None:
            self.ids.seen(placement.id, result[INDEX_AT])
        if self.unreached and address == self.client.router_url:
            self.reached_around = True
        if self.tried and not self.spread:
            self.served_by(address, placement)

    def meant(self, error: MetastoreError) -> MetastoreError:
        """What a server's error says of this operation: a read has no outcome that could be unknown, and of a number that
        is not known here, or a server that failed, it is not certain that nothing was done."""
        if isinstance(error, MaybeHappened) and not self.changes:
            return Unavailable(error.message, retry_after_s=1)
        if isinstance(error, InternalError):
            return OutcomeUnknown(
                f"the server failed, or answered with a status that this version does not know: {error.message}"
            )
        return error

    def served_by(self, address: str, placement: Placement) -> None:
        """Another replica than the leader of our table has served this, and that one would not, or could not: then it
        does not lead, whatever epoch it was said to have."""
        table = self.client.table
        named = table.address(placement.leader)
        if named != address and (named is None or named in self.tried):
            for node in placement.replicas:
                if table.address(node) == address:
                    table.served(placement, node, self.told.get(node, 0))

    def split_off(self, placement: Placement) -> None:
        """The partition of the last seen index has been split (R18). What its client saw of the one half after
        that says nothing of the other; where they parted is not known, nothing does. Raises Moved,
        OutcomeUnknown: another client's, which has to know."""
        at = self.client.table.split_off(self.seen_in, placement.id)
        if at is None and not self.op[LAST_SEEN_AT]:
            return  # a last seen index of 0 is of no partition, whatever its client named
        if self.ids is None:
            if at is None:  # the client that numbered it knows of a split that is not known here
                self.doubts = True
            raise self.at_the_end(Moved(f"partition {self.partition} was split", partition=self.partition))
        last_seen = self.op[LAST_SEEN_AT]
        self.op[LAST_SEEN_AT] = 0 if at is None else min(last_seen, within_history(last_seen, at))
        self.seen_in = placement.id

    # --- where to ---------------------------------------------------------------------------

    def choose(self, placement: Placement, now: float) -> str | None:
        """The next address: the leader, then the other replicas; None when all were tried."""
        client = self.client
        table, unreachable = client.table, client.avoided
        if (
            client.direct and placement.leader is not None and not (self.spread or unreachable)
        ):  # nearly always
            address = table.address(placement.leader)
            if address is not None and address not in self.tried and not client.is_unresponsive(address):
                return address
        order = list(placement.replicas) if client.direct else []
        if self.spread and order:
            turn = client.next_rotation() % len(order)
            order = order[turn:] + order[:turn]
        elif placement.leader is not None and order:
            order = [placement.leader, *(n for n in order if n != placement.leader)]
        router = client.router_url if client.router_url not in self.tried else None
        if router is not None and (not order or (unreachable and self._is_around(order, unreachable))):
            return router
        unresponsive = avoided = None
        for node in order:
            address = table.address(node)
            if address is None or address in self.tried:
                continue
            if address in unreachable:
                avoided = avoided or address
                continue
            if not client.is_unresponsive(address):
                return address
            unresponsive = unresponsive or address
        if router is not None and self._router_is_due(order, now):
            return router
        return unresponsive or avoided  # last: the others may know better by now

    def _is_around(self, order: list[str], unreachable: Set[str]) -> bool:
        """Whether whom this operation needs is known to be reached through the router only."""
        needed = [self.client.table.address(node) for node in (order if self.spread else order[:1])]
        return all(address in unreachable for address in needed)

    def _router_is_due(self, order: list[str], now: float) -> bool:
        """The last resort: when nobody answers, or the leader has not for a while."""
        addresses = [a for a in map(self.client.table.address, order) if a is not None]
        if all(a in self.unreached for a in addresses):
            return True
        waited = now - self.first_failure if self.first_failure else 0.0
        return waited > LEADER_PATIENCE_S and addresses[0] in self.unreached

    # --- what happened ------------------------------------------------------------------------

    def failed(self, address: str, error: MetastoreError, now: float, *, costs: bool = True) -> None:
        self.client.retries += 1
        self.tried.add(address)
        self.owes |= costs
        self.last_error = error
        if isinstance(error, Unavailable) and error.detail.get("final"):
            self.final[address] = self.final.get(address, 0) + 1
        else:
            self.final.pop(address, None)
        self.first_failure = self.first_failure or now

    def judge(self, address: str, placement: Placement, error: MetastoreError, now: float) -> Step:
        """Learn from an attempt that failed, with or without an answer. Raises the error that the operation ends with."""
        if isinstance(error, ConnectionLost | AttemptTimeout):
            return self._no_answer(address, error, now)
        if isinstance(error, NotLeader | Moved):
            return self._elsewhere(address, placement, error, now)
        if isinstance(error, NoCommonVersion):  # nobody else leads the partition
            raise self.at_the_end(error)
        if isinstance(error, OutcomeUnknown):
            self.maybe_done = True
            self.failed(address, error, now)
            return Step.AGAIN
        if isinstance(error, RequestIdExpired) and self.ids is not None:
            self._number_anew(self.ids, placement, error)
            return Step.AGAIN
        if isinstance(error, Unavailable | Overloaded | ShuttingDown | TooStale | DeadlineExceeded):
            # DeadlineExceeded: that of the attempt, which says nothing about ours
            self.failed(address, error, now)
            if self.final.get(address, 0) > 1 and self._all_agree(placement):
                raise self.at_the_end(error)
            waits = isinstance(error, Unavailable) and not error.detail.get("final")
            return Step.PAUSE if waits or isinstance(error, Overloaded) else Step.AGAIN
        if self.maybe_done and error.status not in REMEMBERED:
            raise self.at_the_end(error)
        # With dedupe this is the first outcome, whatever attempt it belongs to (R7).
        self.client.budget.succeeded()
        self.reached_around = bool(self.unreached) and address == self.client.router_url
        raise error

    def _no_answer(self, address: str, error: MetastoreError, now: float) -> Step:
        """A write that may have been sent may have been carried out."""
        sent = isinstance(error, AttemptTimeout) or bool(error.detail.get("sent"))
        self.maybe_done |= self.changes and sent
        self.unreached.add(address)
        refused = bool(error.detail.get("refused"))
        if refused:
            self.dead.add(address)
        self.failed(address, error, now, costs=not refused)
        return Step.AGAIN

    def _elsewhere(self, address: str, placement: Placement, error: MetastoreError, now: float) -> Step:
        """The operation was not carried out there; the answer may say where it would be."""
        table = self.client.table
        leader, epoch = error.detail.get("leader"), error.detail.get("epoch", 0)
        moved = isinstance(error, Moved)
        news, beyond = table.apply_hint(placement.id, leader, epoch), False
        if moved and "family" in error.detail and table.learn_plain(error.detail["family"]):
            news, leader = True, table.route(self.storage_key).leader
        if not moved:
            beyond = table.is_beyond(placement.id, epoch)
            if leader is not None and not (news or beyond):
                self.told[leader] = max(epoch, self.told.get(leader, 0))
        hinted = news and self.hops < MAX_HOPS
        self.failed(address, error, now, costs=not hinted)
        if hinted:
            self.hops += 1
            self.tried.discard(table.address(leader) or "")
            self.doubts |= moved
            return Step.AGAIN
        self.doubts |= beyond
        return Step.REFRESH if moved else Step.AGAIN

    def _number_anew(self, ids: RequestIds, placement: Placement, error: RequestIdExpired) -> None:
        """The partition has forgotten so far, or this number: it is sent again with what is certain to be new, if nothing that
        was sent before may be what is forgotten. Raises."""
        index, reused = error.detail.get("index"), bool(error.detail.get("reused"))
        ours = ids is self.client.ids  # another's number says something: it is not exchanged
        if error.detail.get("spent") or (reused and not ours):
            raise error  # that is certain, whatever an attempt before this one did
        if self.maybe_done or not isinstance(index, int) or not ids.restamps:
            raise self.at_the_end(error)
        ids.seen(placement.id, LastSeenIndex(index))
        if reused:  # so many later ones were finished that it counts as one
            ids.end(self.partition, self.op[SEQ_AT])
            self.op[SEQ_AT], _ = ids.begin(self.partition)
        self.op[LAST_SEEN_AT] = max(index, self.op[LAST_SEEN_AT])

    def pause(self, placement: Placement, now: float) -> None:
        """All replicas were tried, or one asked for time: all may be asked again after a pause. Raises when it is no use."""
        self._give_up(placement, now)
        self.tried.clear()
        self.pauses += 1
        self.owes = False
        self.doubts |= self.pauses in (3, 6) or self.pauses % 12 == 0

    @property
    def may_probe(self) -> bool:
        """Whether the pause is for a leader, for which one operation asks and others wait."""
        return not self.spread and not isinstance(self.last_error, Overloaded) and self.probing is None

    def delay_s(self, now: float) -> float:
        """How long this pause is."""
        error = self.last_error
        delay = backoff_s(self.pauses - 1) if self.client.budget.take(now) else BACKOFF_S[1]
        if isinstance(error, Overloaded):
            asked = min(MAX_RETRY_AFTER_S, float(error.detail.get("retry_after_s") or 0.0))
            delay = max(delay, asked * random.uniform(0.5, 1.0))
        return max(0.0, min(delay, self.until - now))

    def _give_up(self, placement: Placement, now: float) -> None:
        """Raises when there is no point in waiting longer."""
        error = self.last_error
        waited = now - self.first_failure if self.first_failure else 0.0
        if waited > DEAD_CELL_PATIENCE_S and self._nobody_listens(placement):
            text = f"no replica of partition {placement.id} (cell {placement.cell}) accepts a connection: its nodes are down, or cannot be reached from here"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))
        if error is not None and waited > self.client.election_patience_s:
            if isinstance(error, Unavailable | Overloaded | TooStale):
                raise self.at_the_end(error)
            text = f"partition {placement.id} (cell {placement.cell}) had no leader that answered for {waited:.1f} s; last: {error.message}"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))

    def _all_agree(self, placement: Placement) -> bool:
        """Whether every replica that can be reached answers that no replica can serve this now."""
        addresses = map(self.client.table.address, placement.replicas if self.client.direct else ())
        return all(a is None or a in self.final or a in self.unreached for a in addresses)

    def _nobody_listens(self, placement: Placement) -> bool:
        """At no replica's address, and the router, if there is one, is dead or cannot either."""
        client = self.client
        replicas = placement.replicas if client.direct else ()
        addresses = [a for a in map(client.table.address, replicas) if a is not None]
        if client.router_url is None or client.router_url in self.dead:
            return bool(addresses or client.router_url) and all(a in self.dead for a in addresses)
        cannot = client.router_url in self.tried and isinstance(self.last_error, Unavailable)
        return cannot and bool(addresses) and all(a in self.dead for a in addresses)

    def at_the_end(self, error: MetastoreError) -> MetastoreError:
        """``error``, or OutcomeUnknown if an attempt may have been carried out."""
        if self.maybe_done:
            text = f"the write may or may not have taken effect (at most once); read the record before deciding: {error.message}"
            return OutcomeUnknown(text, **error.detail)
        if isinstance(error, DeadlineExceeded) and isinstance(self.last_error, TooStale):
            return self.last_error
        if isinstance(error, DeadlineExceeded) and self.last_error is not None:
            text = f"{error.message}; the last attempt failed: {self.last_error.message}"
            return DeadlineExceeded(text, **self.last_error.detail)
        return error
