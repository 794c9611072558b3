"""The attempts of one operation: where to, what an answer means, when to pause, how it ends.

What an operation does beside the plain case: after a wrong guess it follows the hint; when all
replicas were asked in vain it pauses. While a partition has no leader, one of the operations that
wait for it, its *scout*, asks at the backoff's pace, and the others wait for its word, or for the
backoff's ceiling. Through the router goes what cannot go directly (client.detours).
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from metastore.errors import (
    ClientClosed,
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
from metastore.history import within_history
from metastore.operations import (
    FLOOR_AT,
    INDEX_AT,
    NOT_FOUND,
    OK,
    PARTITION_AT,
    RESULT_HEAD,
    SEQ_AT,
    STAMP_AT,
    STATUS_AT,
    Op,
)
from metastore.routing.backoff import BACKOFF_S, backoff_s
from metastore.routing.connection import CONNECT_TIMEOUT_S, SILENT_TIMEOUT_S
from metastore.routing.failures import AttemptTimeout, ConnectionLost, error_told
from metastore.routing.request_ids import RequestIds
from metastore.topology import Placement

if TYPE_CHECKING:
    from metastore.routing.dispatcher import Dispatcher

ATTEMPT_TIMEOUT_S: Final = 2.0
#: a router waits for elections itself
ROUTER_ATTEMPT_TIMEOUT_S: Final = 4.0
DEAD_CELL_PATIENCE_S: Final = 0.25
#: how long a leader that cannot be reached is waited for, before the router is asked to reach it
LEADER_PATIENCE_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 1.0
MAX_HOPS: Final = 8

#: what a write's entry can say beside success: dedupe tells it again
REMEMBERED: Final = frozenset(
    error.status for error in (ConditionFailed, NotANumber, Fenced, FenceForgotten, HistoryChanged, TooLarge)
)


class Attempts:
    """See the module. ``until``: loop time by which ``run`` has ended, give or take a sweep of the
    connection (50 ms)."""

    __slots__ = (
        "changes",
        "client",
        "client_id",
        "dead",
        "final",
        "first_failure",
        "hops",
        "ids",
        "last_error",
        "lkey",
        "loop",
        "maybe_done",
        "op",
        "owes",
        "partition",
        "pauses",
        "scouting",
        "spread",
        "stamped",
        "told",
        "tried",
        "unreached",
        "until",
    )

    def __init__(self, client: Dispatcher, op: Op, lkey: bytes, until: float) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self.op = op
        self.lkey = lkey
        self.until = until
        self.client_id = client.ids.client_id
        self.ids: RequestIds | None = None
        #: whether an attempt may have changed something
        self.changes = False
        #: for which a write was numbered
        self.partition = -1
        #: of which partition's log its stamp is an entry: the halves of one that is split count each for itself
        self.stamped = -1
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
        self.scouting: int | None = None
        self.first_failure = 0.0
        self.last_error: MetastoreError | None = None
        #: replicas whose last word is that nobody can serve this now -> how often they said so
        self.final: dict[str, int] = {}

    async def run(self) -> list[Any]:
        """The result. Raises MetastoreError."""
        answered = False
        try:
            result = await self._run()
            answered = True
            return result
        finally:
            if self.scouting is not None:
                scout = self.client.scouts.pop(self.scouting, None)
                if scout is not None and not scout.done():
                    scout.set_result(answered)

    async def _run(self) -> list[Any]:
        client, loop = self.client, self.loop
        await client.ready(self.until)
        while True:
            now = loop.time()
            if now >= self.until:
                raise self.at_the_end(DeadlineExceeded("the deadline passed"))
            if client.closed:
                raise self.at_the_end(ClientClosed("the client is closed"))
            try:
                placement = client.table.route(self.lkey)
            except Unavailable:  # part of the table is not known just now
                await self.know_all()
                continue
            address = self.choose(placement)
            if address is None:
                await self.pause(placement)
                continue
            if self.owes:
                self.owes = False
                if not client.budget.take(now):
                    await asyncio.sleep(min(BACKOFF_S[1], self.until - now))
                    continue
            try:
                connection = client.open_connection(address)
                if connection is None:
                    patience = SILENT_TIMEOUT_S if client.is_silent(address) else CONNECT_TIMEOUT_S
                    connection = await client.connect(address, self.until, patience)
                op = self.op.copy()
                op[PARTITION_AT] = placement.id
                if self.changes and placement.id != self.stamped:
                    self.split_off(placement)
                    op[STAMP_AT] = self.op[STAMP_AT]
                if self.ids is not None:
                    op[FLOOR_AT] = self.ids.floor(*client.table.lineage(placement))
                patience = ATTEMPT_TIMEOUT_S if address != client.router_url else ROUTER_ATTEMPT_TIMEOUT_S
                if connection.silent:
                    patience = SILENT_TIMEOUT_S
                result = await connection.submit(self.client_id, op, self.until, patience)
            except ConnectionLost as e:
                self.maybe_done |= self.changes and bool(e.detail.get("sent"))
                self.unreached.add(address)
                refused = bool(e.detail.get("refused"))
                if refused:
                    self.dead.add(address)
                self.failed(address, e, costs=not refused)
                continue
            except AttemptTimeout as e:
                self.maybe_done |= self.changes
                self.unreached.add(address)
                self.failed(address, e)
                continue
            except NoCommonVersion as e:  # nobody else leads the partition
                raise self.at_the_end(e) from None
            except Overloaded as e:
                self.failed(address, e)
                await self.pause(placement)
                continue
            self.unreached.discard(address)
            status = result[STATUS_AT]
            if status in (OK, NOT_FOUND):
                client.budget.succeeded()
                if self.ids is not None:
                    self.ids.seen(placement.id, result[INDEX_AT])
                if self.unreached and address == client.router_url:
                    client.detours.add(self.unreached)
                if self.tried and not self.spread:
                    self.served_by(address, placement)
                return result  # type: ignore[no-any-return]
            await self.on_error(address, placement, self.meant(error_told(status, *result[RESULT_HEAD:])))

    def meant(self, error: MetastoreError) -> MetastoreError:
        """What a server's error says of this operation: a read has no outcome that could be unknown, and of a number that
        is not known here, or a server that failed, it is not certain that nothing was done."""
        if isinstance(error, MaybeHappened) and not self.changes:
            return Unavailable(error.message, retry_after_s=1)
        if isinstance(error, InternalError):
            return OutcomeUnknown(f"a server failed, or says what is not known here: {error.message}")
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

    async def know_all(self) -> None:
        """Raises Unavailable, or OutcomeUnknown, when nobody tells the whole table in time."""
        try:
            await self.client.ready(self.until)
        except MetastoreError as e:
            raise self.at_the_end(e) from None

    def split_off(self, placement: Placement) -> None:
        """The partition that the stamp is of has been split (R18). What its client saw of the one half after
        that says nothing of the other; where they parted is not known, nothing does. Raises Moved,
        OutcomeUnknown: another client's, which has to know."""
        at = self.client.table.split_off(self.stamped, placement.id)
        if at is None and not self.op[STAMP_AT]:
            return  # a stamp of 0 is of no partition, whatever its client named
        if self.ids is None:
            if at is None:  # whoever numbered it knows of a split that is not known here
                self.client.refresh_soon()
            raise self.at_the_end(Moved(f"partition {self.partition} was split", partition=self.partition))
        stamp = self.op[STAMP_AT]
        self.op[STAMP_AT] = 0 if at is None else min(stamp, within_history(stamp, at))
        self.stamped = placement.id

    # --- where to ---------------------------------------------------------------------------

    def choose(self, placement: Placement) -> str | None:
        """The next address: the leader, then the other replicas; None when all were tried."""
        client = self.client
        table, detours = client.table, client.detours.addresses
        if client.direct and placement.leader is not None and not (self.spread or detours):  # nearly always
            address = table.address(placement.leader)
            if address is not None and address not in self.tried and not client.is_silent(address):
                return address
        order = list(placement.replicas) if client.direct else []
        if self.spread and order:
            turn = client.next_rotation() % len(order)
            order = order[turn:] + order[:turn]
        elif placement.leader is not None and order:
            order = [placement.leader, *(n for n in order if n != placement.leader)]
        router = client.router_url if client.router_url not in self.tried else None
        if router is not None and (not order or (detours and self._is_around(order, detours))):
            return router
        silent = avoided = None
        for node in order:
            address = table.address(node)
            if address is None or address in self.tried:
                continue
            if address in detours:
                avoided = avoided or address
                continue
            if not client.is_silent(address):
                return address
            silent = silent or address
        if router is not None and self._router_is_due(order):
            return router
        return silent or avoided  # last: the others may know better by now

    def _is_around(self, order: list[str], detours: set[str]) -> bool:
        """Whether whom this operation needs is known to be reached through the router only."""
        needed = [self.client.table.address(node) for node in (order if self.spread else order[:1])]
        return all(address in detours for address in needed)

    def _router_is_due(self, order: list[str]) -> bool:
        """The last resort: when nobody answers, or the leader has not for a while."""
        addresses = [a for a in map(self.client.table.address, order) if a is not None]
        if all(a in self.unreached for a in addresses):
            return True
        waited = self.loop.time() - self.first_failure if self.first_failure else 0.0
        return waited > LEADER_PATIENCE_S and addresses[0] in self.unreached

    # --- what happened ------------------------------------------------------------------------

    def failed(self, address: str, error: MetastoreError, *, costs: bool = True) -> None:
        self.client.retries += 1
        self.tried.add(address)
        self.owes |= costs
        self.last_error = error
        if isinstance(error, Unavailable) and error.detail.get("final"):
            self.final[address] = self.final.get(address, 0) + 1
        else:
            self.final.pop(address, None)
        self.first_failure = self.first_failure or self.loop.time()

    async def on_error(self, address: str, placement: Placement, error: MetastoreError) -> None:
        """Learn from an error answer; returns to try again, raises to end."""
        client = self.client
        if isinstance(error, NotLeader):
            leader, epoch = error.detail.get("leader"), error.detail.get("epoch", 0)
            news = client.table.apply_hint(placement.id, leader, epoch)
            beyond = client.table.is_beyond(placement.id, epoch)
            if leader is not None and not (news or beyond):
                self.told[leader] = max(epoch, self.told.get(leader, 0))
            hinted = news and self.hops < MAX_HOPS
            self.failed(address, error, costs=not hinted)
            if hinted:
                self.hops += 1
                self.tried.discard(client.table.address(leader) or "")
            elif beyond:
                client.refresh_soon()
            return
        if isinstance(error, Moved):
            leader, epoch = error.detail.get("leader"), error.detail.get("epoch", 0)
            news = client.table.apply_hint(placement.id, leader, epoch)
            if "family" in error.detail and client.table.learn_plain(error.detail["family"]):
                news, leader = True, client.table.route(self.lkey).leader
            hinted = news and self.hops < MAX_HOPS
            self.failed(address, error, costs=not hinted)
            if hinted:
                self.hops += 1
                self.tried.discard(client.table.address(leader) or "")
                client.refresh_soon()
            else:
                await client.refresh(self.until)
            return
        if isinstance(error, OutcomeUnknown):
            self.maybe_done = True
            self.failed(address, error)
            return
        if isinstance(error, RequestIdExpired) and self.ids is not None:
            index = error.detail.get("index")
            reused = bool(error.detail.get("reused"))
            ours = self.ids is client.ids  # another's number says something: it is not exchanged
            if error.detail.get("spent") or (reused and not ours):
                raise error  # that is certain, whatever an attempt before this one did
            if not self.maybe_done and isinstance(index, int) and self.ids.restamps:
                self.ids.seen(placement.id, index)
                if reused:  # so many later ones were finished that it counts as one
                    self.ids.end(self.partition, self.op[SEQ_AT])
                    self.op[SEQ_AT], _ = self.ids.begin(self.partition)
                self.op[STAMP_AT] = max(index, self.op[STAMP_AT])
                return
            raise self.at_the_end(error)
        if isinstance(error, Unavailable | Overloaded | ShuttingDown | TooStale | DeadlineExceeded):
            # DeadlineExceeded: that of the attempt, which says nothing about ours
            self.failed(address, error)
            if self.final.get(address, 0) > 1 and self._all_agree(placement):
                raise self.at_the_end(error)
            if isinstance(error, Overloaded) or (
                isinstance(error, Unavailable) and not error.detail.get("final")
            ):
                await self.pause(placement)
            return
        if self.maybe_done and error.status not in REMEMBERED:
            raise self.at_the_end(error)
        # With dedupe this is the first outcome, whatever attempt it belongs to (R7).
        client.budget.succeeded()
        if self.unreached and address == client.router_url:
            client.detours.add(self.unreached)
        raise error

    async def pause(self, placement: Placement) -> None:
        """All replicas were tried, or one asked for time: wait a little, or give up."""
        client, now, error = self.client, self.loop.time(), self.last_error
        self._give_up(placement, now)
        self.tried.clear()
        self.pauses += 1
        self.owes = False
        if self.pauses in (3, 6) or self.pauses % 12 == 0:
            client.refresh_soon()
        if not self.spread and not isinstance(error, Overloaded) and self.scouting is None:
            scout = client.scouts.get(placement.id)
            if scout is not None:
                await self._wait_for(scout, now)
                return
            client.scouts[placement.id] = self.loop.create_future()
            self.scouting = placement.id
        delay = backoff_s(self.pauses - 1) if client.budget.take(now) else BACKOFF_S[1]
        if isinstance(error, Overloaded):
            asked = min(MAX_RETRY_AFTER_S, float(error.detail.get("retry_after_s") or 0.0))
            delay = max(delay, asked * random.uniform(0.5, 1.0))
        await asyncio.sleep(max(0.0, min(delay, self.until - now)))

    async def _wait_for(self, scout: asyncio.Future[bool], now: float) -> None:
        """Another operation asks whether the partition is led: wait for its word, or the ceiling."""
        timeout = max(0.0, min(BACKOFF_S[1], self.until - now))
        await asyncio.wait({scout}, timeout=timeout)
        self.owes = not (scout.done() and scout.result())

    def _give_up(self, placement: Placement, now: float) -> None:
        """Raises when there is no point in waiting longer."""
        error = self.last_error
        waited = now - self.first_failure if self.first_failure else 0.0
        if waited > DEAD_CELL_PATIENCE_S and self._nobody_listens(placement):
            text = f"no replica of partition {placement.id} (cell {placement.cell}) can be reached"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))
        if error is not None and waited > self.client.election_patience_s:
            if isinstance(error, Unavailable | Overloaded | TooStale):
                raise self.at_the_end(error)
            text = f"partition {placement.id} (cell {placement.cell}) has no leader that answers: {error.message}"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))

    def _all_agree(self, placement: Placement) -> bool:
        """Whether every replica that can be reached says that nobody can serve this now."""
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
            text = f"the write may or may not have taken effect, once at most: {error.message}"
            return OutcomeUnknown(text, **error.detail)
        if isinstance(error, DeadlineExceeded) and isinstance(self.last_error, TooStale):
            return self.last_error
        if isinstance(error, DeadlineExceeded) and self.last_error is not None:
            text = f"{error.message}; the last attempt failed: {self.last_error.message}"
            return DeadlineExceeded(text, **self.last_error.detail)
        return error
