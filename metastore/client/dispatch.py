"""From an operation to its answer: find the leader, try, learn, try again, end by the deadline.

Used by the Python client and by the router. Request ids (R7) are made here: a retry repeats
``(client id, seq, stamp)``, so it gets the first outcome and never applies twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

from metastore.client.connection import SILENT_TIMEOUT_S, AttemptTimeout, ConnectionLost, NodeConnection
from metastore.errors import (
    ConditionFailed,
    DeadlineExceeded,
    Fenced,
    MetastoreError,
    Moved,
    NotANumber,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RequestIdExpired,
    ShuttingDown,
    TooLarge,
    TooStale,
    Unavailable,
    from_wire,
)
from metastore.topology import Placement, TopologyTable
from metastore.wire.client_messages import (
    ADD,
    CLIENT_ID_BYTES,
    DELETE,
    GET,
    LINEARIZABLE,
    LIST,
    NOT_FOUND,
    OK,
    PUT,
    TOUCH,
    TXN,
)

log = logging.getLogger("metastore.client")

CONNECT_TIMEOUT_S = 1.0
ATTEMPT_TIMEOUT_S = 2.0
BACKOFF_S = (0.01, 0.4)
DEAD_CELL_PATIENCE_S = 0.25
REFRESH_S = 5.0
MIN_REFRESH_GAP_S = 0.2


#: what a write's entry can say beside success: dedupe tells it again
REMEMBERED = frozenset({ConditionFailed.status, NotANumber.status, Fenced.status, TooLarge.status})


class RequestIds:
    """Request ids of one client (R7): ``floor`` and ``stamp`` are kept per partition."""

    def __init__(self, client_id: bytes | None = None) -> None:
        self.client_id = client_id or os.urandom(CLIENT_ID_BYTES)
        self._seq = 0
        self._open: dict[int, dict[int, None]] = {}
        self._stamps: dict[int, int] = {}

    def begin(self, partition: int) -> tuple[int, int]:
        """``(seq, stamp)`` for a new write."""
        self._seq += 1
        opened = self._open.get(partition)
        if opened is None:
            opened = self._open[partition] = {}
        opened[self._seq] = None
        return self._seq, self.stamp(partition)

    def stamp(self, partition: int) -> int:
        """The highest index seen from a partition so far, 0 = none."""
        return self._stamps.get(partition, 0)

    def floor(self, partition: int) -> int:
        opened = self._open.get(partition)
        return next(iter(opened)) if opened else self._seq + 1

    def end(self, partition: int, seq: int) -> None:
        """The write will not be sent again."""
        opened = self._open.get(partition)
        if opened is not None:
            opened.pop(seq, None)

    def seen(self, partition: int, index: int) -> None:
        if index > self._stamps.get(partition, 0):
            self._stamps[partition] = index


class Dispatcher:
    """See the module. ``table`` may be fed from elsewhere too (the router's etcd watch)."""

    def __init__(
        self,
        seeds: list[str],
        cluster: str = "",
        *,
        name: str = "client",
        election_patience_s: float = 6.0,
    ) -> None:
        self.seeds = list(seeds)
        self.cluster = cluster
        self.name = name
        self.table = TopologyTable(cluster)
        self.ids = RequestIds()
        self.election_patience_s = election_patience_s
        self.retries = 0
        self._connections: dict[str, NodeConnection] = {}
        self._connecting: dict[str, asyncio.Future[NodeConnection]] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        self._refreshed_at = -1e9
        self._refresher: asyncio.Task[None] | None = None
        self._rotation = random.randrange(1 << 16)

    # --- life -------------------------------------------------------------------------------

    async def start(self, timeout_s: float, *, required: bool = True) -> None:
        """Learn the topology from a seed. Raises Unavailable when none answers in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        self._refresher = loop.create_task(self._refresh_forever())
        while not await self.refresh() and required:
            if loop.time() > until:
                raise Unavailable(
                    f"no node of {', '.join(self.seeds) or 'an empty list'} tells the topology",
                    retry_after_s=1,
                )
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [t for t in (self._refresher, self._refreshing) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # --- connections ------------------------------------------------------------------------

    async def connect(self, address: str, until: float | None = None) -> NodeConnection:
        """The open connection to ``address``, or a new one. Raises ConnectionLost."""
        connection = self._connections.get(address)
        if connection is not None and not connection.lost:
            return connection
        pending = self._connecting.get(address)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.create_task(self._open(address))
            self._connecting[address] = pending

            def opened(task: asyncio.Future[NodeConnection]) -> None:
                self._connecting.pop(address, None)
                if not task.cancelled():
                    task.exception()  # looked at, even when whoever asked has given up

            pending.add_done_callback(opened)
        timeout_s = CONNECT_TIMEOUT_S
        if until is not None:
            timeout_s = min(timeout_s, max(0.001, until - asyncio.get_running_loop().time()))
        done, _ = await asyncio.wait({pending}, timeout=timeout_s)
        if not done:
            raise ConnectionLost(f"{address} does not answer", sent=False)
        return pending.result()

    async def _open(self, address: str) -> NodeConnection:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: NodeConnection(self.cluster, self.name), host, int(port)
                )
        except TimeoutError:
            raise ConnectionLost(f"{address} does not answer", sent=False) from None
        except OSError as e:
            raise ConnectionLost(f"{address}: {e.strerror or e}", sent=False, refused=True) from None
        self._connections[address] = connection
        return connection

    # --- topology ---------------------------------------------------------------------------

    async def refresh(self) -> bool:
        """Ask one node for its table; shared by all who want it at once, at most a few a second."""
        self.refresh_soon()
        assert self._refreshing is not None
        return await asyncio.shield(self._refreshing)

    def refresh_soon(self) -> None:
        """Begin a refresh unless one is under way; nobody waits for it."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> bool:
        loop = asyncio.get_running_loop()
        wait = self._refreshed_at + MIN_REFRESH_GAP_S - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        self._refreshed_at = loop.time()
        known = [n.rpc for n in self.table.nodes.values()]
        addresses = list(
            dict.fromkeys(random.sample(known, len(known)) + random.sample(self.seeds, len(self.seeds)))
        )
        for address in addresses[:6]:
            try:
                connection = await self.connect(address)
                raw = await connection.topology(CONNECT_TIMEOUT_S)
                table = TopologyTable.from_wire(raw)
                self.table.merge(table)
                if self.table.complete:
                    return True
            except MetastoreError as e:
                log.debug("topology from %s: %s", address, e.message)
        return self.table.complete

    async def _refresh_forever(self) -> None:
        """Constant work: one request every few seconds, whether all is well or not."""
        while True:
            await asyncio.sleep(REFRESH_S * random.uniform(0.7, 1.3))
            await self.refresh()

    # --- operations -------------------------------------------------------------------------

    async def read(self, op: list[Any], lkey: bytes, until: float) -> list[Any]:
        """A GET, LIST or TOUCH (``op`` without id and partition) of the partition of ``lkey``."""
        attempt = _Attempts(self, op, lkey, until)
        if op[1] != TOUCH and op[4 if op[1] == GET else 7] != LINEARIZABLE:
            attempt.spread = True
        return await attempt.run()

    async def write(
        self, op: list[Any], lkey: bytes, until: float, ids: RequestIds | None = None
    ) -> list[Any]:
        """A write; its request id is made here, or belongs to ``ids``."""
        ids = ids or self.ids
        await self.ready(until)
        partition = self.table.route(lkey).id
        seq, stamp = ids.begin(partition)
        op[4], op[6] = seq, stamp
        attempt = _Attempts(self, op, lkey, until)
        attempt.ids, attempt.partition, attempt.client_id = ids, partition, ids.client_id
        attempt.changes = True
        try:
            return await attempt.run()
        finally:
            ids.end(partition, seq)

    async def relay(self, client_id: bytes, op: list[Any], until: float) -> list[Any]:
        """Another client's operation, with the request id that it gave it (``op`` as it came, checked)."""
        attempt = _Attempts(self, op, op[3], until)
        attempt.client_id = client_id
        attempt.changes = op[1] in (PUT, DELETE, ADD, TXN)
        attempt.spread = op[1] in (GET, LIST) and op[4 if op[1] == GET else 7] != LINEARIZABLE
        return await attempt.run()

    async def ready(self, until: float) -> None:
        """Return once the topology is known. Raises Unavailable at ``until``."""
        loop = asyncio.get_running_loop()
        while not self.table.complete:
            if loop.time() >= until:
                raise Unavailable("the topology is not known yet", retry_after_s=1)
            await self.refresh()

    def next_rotation(self) -> int:
        self._rotation += 1
        return self._rotation


class _Attempts:
    """The attempts of one operation."""

    __slots__ = (
        "changes",
        "client",
        "client_id",
        "dead",
        "first_failure",
        "hops",
        "ids",
        "last_error",
        "lkey",
        "maybe_done",
        "op",
        "partition",
        "pauses",
        "spread",
        "tried",
        "until",
    )

    def __init__(self, client: Dispatcher, op: list[Any], lkey: bytes, until: float) -> None:
        self.client = client
        self.op = op
        self.lkey = lkey
        self.until = until
        self.client_id = client.ids.client_id
        self.ids: RequestIds | None = None
        #: whether an attempt may have changed something
        self.changes = False
        self.partition = -1
        self.spread = False
        self.maybe_done = False
        self.tried: set[str] = set()
        self.dead: set[str] = set()
        self.hops = 0
        self.pauses = 0
        self.first_failure = 0.0
        self.last_error: MetastoreError | None = None

    async def run(self) -> list[Any]:
        client = self.client
        loop = asyncio.get_running_loop()
        await client.ready(self.until)
        while True:
            now = loop.time()
            if now >= self.until:
                raise self.at_the_end(DeadlineExceeded("the deadline passed"))
            placement = client.table.route(self.lkey)
            address = self.choose(placement)
            if address is None:
                await self.pause(loop, placement)
                continue
            try:
                connection = client._connections.get(address)
                if connection is None or connection.lost:
                    connection = await client.connect(address, self.until)
                op = self.op.copy()
                op[2] = placement.id
                if self.ids is not None:
                    op[5] = self.ids.floor(self.partition)
                patience = SILENT_TIMEOUT_S if connection.silent else ATTEMPT_TIMEOUT_S
                result = await connection.submit(self.client_id, op, min(self.until, loop.time() + patience))
            except ConnectionLost as e:
                self.maybe_done |= self.changes and bool(e.detail.get("sent"))
                if e.detail.get("refused"):
                    self.dead.add(address)
                self.failed(loop, address, e)
                continue
            except AttemptTimeout as e:
                self.maybe_done |= self.changes
                self.failed(loop, address, e)
                continue
            except Overloaded as e:
                self.failed(loop, address, e)
                await self.pause(loop, placement)
                continue
            status = result[1]
            if status in (OK, NOT_FOUND):
                if self.ids is not None:
                    self.ids.seen(self.partition, result[3])
                return result  # type: ignore[no-any-return]
            await self.on_error(loop, address, placement, from_wire(status, result[2], result[3]))

    # --- where to ---------------------------------------------------------------------------

    def choose(self, placement: Placement) -> str | None:
        """The next address: the leader, then the other replicas; None when all were tried."""
        table = self.client.table
        order = list(placement.replicas)
        if self.spread and order:
            turn = self.client.next_rotation() % len(order)
            order = order[turn:] + order[:turn]
        elif placement.leader is not None:
            order = [placement.leader, *(n for n in order if n != placement.leader)]
        silent: str | None = None
        for node in order:
            address = table.address(node)
            if address is not None and address not in self.tried:
                connection = self.client._connections.get(address)
                if connection is None or connection.lost or not connection.silent:
                    return address
                silent = silent or address
        return silent  # last: the others may know better by now

    # --- what happened ------------------------------------------------------------------------

    def failed(self, loop: asyncio.AbstractEventLoop, address: str, error: MetastoreError) -> None:
        self.client.retries += 1
        self.tried.add(address)
        self.last_error = error
        self.first_failure = self.first_failure or loop.time()

    async def on_error(
        self, loop: asyncio.AbstractEventLoop, address: str, placement: Placement, error: MetastoreError
    ) -> None:
        """Learn from an error answer; returns to try again, raises to end."""
        client = self.client
        if isinstance(error, NotLeader):
            leader, epoch = error.detail.get("leader"), error.detail.get("epoch", 0)
            self.failed(loop, address, error)
            if client.table.apply_hint(placement.id, leader, epoch) and self.hops < 8:
                self.hops += 1
                hinted = client.table.address(leader)
                if hinted is not None:
                    self.tried.discard(hinted)
            return
        if isinstance(error, Moved):
            self.failed(loop, address, error)
            if len(self.tried) > 1:
                await client.refresh()
            return
        if isinstance(error, OutcomeUnknown):
            self.maybe_done = True
            self.failed(loop, address, error)
            return
        if isinstance(error, RequestIdExpired) and self.ids is not None:
            index = error.detail.get("index")
            if not self.maybe_done and not error.detail.get("reused") and isinstance(index, int):
                self.ids.seen(self.partition, index)
                self.op[6] = max(index, self.op[6])
                return
            raise self.at_the_end(error)
        if isinstance(error, Unavailable | Overloaded | ShuttingDown | TooStale):
            self.failed(loop, address, error)
            if isinstance(error, Overloaded) or (
                isinstance(error, Unavailable) and not error.detail.get("final")
            ):
                await self.pause(loop, placement)
            return
        if self.maybe_done and error.status not in REMEMBERED:
            raise self.at_the_end(error)
        # With dedupe this is the first outcome, whatever attempt it belongs to (R7).
        raise error

    async def pause(self, loop: asyncio.AbstractEventLoop, placement: Placement) -> None:
        """All replicas were tried, or one asked for time: wait a little, or give up."""
        now = loop.time()
        waited = now - self.first_failure if self.first_failure else 0.0
        addresses = {a for a in map(self.client.table.address, placement.replicas) if a is not None}
        error = self.last_error
        if addresses and addresses <= self.dead and waited > DEAD_CELL_PATIENCE_S:
            text = f"no replica of partition {placement.id} (cell {placement.cell}) can be reached"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))
        final = isinstance(error, Unavailable) and bool(error.detail.get("final"))
        if error is not None and (waited > self.client.election_patience_s or (final and self.pauses >= 2)):
            if isinstance(error, Unavailable | Overloaded | TooStale):
                raise self.at_the_end(error)
            text = f"partition {placement.id} (cell {placement.cell}) has no leader that answers: {error.message}"
            raise self.at_the_end(Unavailable(text, retry_after_s=1, cell=placement.cell))
        low, high = BACKOFF_S
        ceiling = min(high, low * 2**self.pauses)
        self.pauses += 1
        self.tried.clear()
        delay = random.uniform(0, ceiling)
        if self.pauses in (3, 6) or self.pauses % 12 == 0:
            self.client.refresh_soon()
        await asyncio.sleep(max(0.0, min(delay, self.until - now)))

    def at_the_end(self, error: MetastoreError) -> MetastoreError:
        """``error``, or OutcomeUnknown if an attempt may have been carried out."""
        if self.maybe_done:
            text = f"the write may or may not have taken effect, once at most: {error.message}"
            return OutcomeUnknown(text, **error.detail)
        if isinstance(error, DeadlineExceeded) and self.last_error is not None:
            text = f"{error.message}; the last attempt failed: {self.last_error.message}"
            return DeadlineExceeded(text, **self.last_error.detail)
        return error
