"""From an operation to its answer: connections, topology, and who may go when.

Used by the Python client and by the router. Request ids (R7) are made here: a retry repeats
``(client id, seq, last_seen)``, so it gets the first outcome and never applies twice. What one operation
does until it has its answer is ``attempts``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from typing import Any

from metastore.errors import (
    ClientClosed,
    DeadlineExceeded,
    MetastoreError,
    NoCommonVersion,
    Overloaded,
    Unavailable,
)
from metastore.operations import (
    CONSISTENCY_AT,
    KEY_AT,
    KIND_AT,
    LAST_SEEN_AT,
    LATER,
    LINEARIZABLE,
    NOT_FOUND,
    OK,
    PARTITION_AT,
    RESULT_HEAD,
    SEQ_AT,
    SIZED,
    STATUS_AT,
    WRITES,
    Op,
    check_size,
    is_local,
)
from metastore.routing.attempts import ATTEMPT_TIMEOUT_S, ROUTER_ATTEMPT_TIMEOUT_S, Attempts, Step
from metastore.routing.backoff import BACKOFF_S, RetryBudget
from metastore.routing.connection import CONNECT_TIMEOUT_S, UNRESPONSIVE_TIMEOUT_S, NodeConnection
from metastore.routing.directory import Directory
from metastore.routing.failures import AttemptTimeout, ConnectionLost, error_told
from metastore.routing.gate import Admission
from metastore.routing.pool import Pool
from metastore.routing.request_ids import RequestIds
from metastore.topology import Placement, TopologyTable

__all__ = ["Dispatcher", "RequestIds"]

log = logging.getLogger("metastore.client")


class Dispatcher:
    """See the module. ``table`` may be fed from elsewhere too (the router's etcd watch).

    ``router``: its URL, the way around for what cannot go directly; with ``direct`` off, the only way.
    ``max_under_way``: operations to one cell that may be under way, 0 = no bound; others wait.
    """

    def __init__(
        self,
        seeds: list[str],
        cluster: str = "",
        *,
        name: str = "client",
        election_patience_s: float = 6.0,
        router: str | None = None,
        direct: bool = True,
        max_under_way: int = 0,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.pool = Pool(cluster, name, router)
        #: the directory's; bound here once, as much as is below: each operation looks at it several times
        self.table = TopologyTable(cluster)
        self.directory = Directory(self.table, self.pool, seeds, direct)
        self.ids = RequestIds()
        self.election_patience_s = election_patience_s
        self.direct = direct
        self.router, self.router_url = self.pool.router, self.pool.router_url
        self.retries = 0
        self.budget = RetryBudget()
        self.admission = Admission(max_under_way) if max_under_way else None
        self.unreachable = self.directory.unreachable
        self.avoided = self.unreachable.addresses
        self.open_connection, self.is_unresponsive = self.pool.open_connection, self.pool.is_unresponsive
        self.ready = self.directory.ready
        #: partition -> ends when the operation that asks for its leader has an answer (attempts)
        self.leader_probes: dict[int, asyncio.Future[bool]] = {}
        self._rotation = random.randrange(1 << 16)
        self._background: set[asyncio.Task[None]] = set()

    @property
    def closed(self) -> bool:
        return self.pool.closed

    @property
    def seeds(self) -> list[str]:
        """Addresses that are asked first."""
        return self.directory.seeds

    @seeds.setter
    def seeds(self, seeds: list[str]) -> None:
        self.directory.seeds = seeds

    # --- life -------------------------------------------------------------------------------

    async def start(self, timeout_s: float, *, required: bool = True) -> None:
        """Learn the topology from a seed. Raises Unavailable when none answers in time."""
        self.directory.keep_fresh()
        if required:
            await self.ready(asyncio.get_running_loop().time() + timeout_s)
        else:
            await self.refresh()

    async def close(self) -> None:
        """What is under way ends with ClientClosed, or OutcomeUnknown."""
        tasks: list[asyncio.Task[Any]] = [*self.pool.shut(), *self.directory.shut(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.unreachable.close()
        await self.pool.close()
        await asyncio.sleep(0)  # sockets close in the loop's next turn

    async def connect(
        self, address: str, until: float | None = None, patience_s: float = CONNECT_TIMEOUT_S
    ) -> NodeConnection:
        """The open connection to a node, or a new one. Raises ConnectionLost."""
        return await self.pool.connect(address, until, patience_s)

    async def refresh(self, until: float | None = None) -> bool:
        """Ask around for the table (``Directory.refresh``)."""
        return await self.directory.refresh(until)

    def refresh_soon(self) -> None:
        """As ``refresh``; nobody waits for it."""
        self.directory.refresh_soon()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on in the background, until the client is closed at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- operations -------------------------------------------------------------------------

    async def read(self, op: Op, storage_key: bytes, until: float) -> list[Any]:
        """A GET, LIST or TOUCH (``op`` without id and partition) of the partition of ``storage_key``."""
        attempts = Attempts(self, op, storage_key, until)
        at = CONSISTENCY_AT.get(op[KIND_AT])
        attempts.spread = at is not None and op[at] != LINEARIZABLE
        return await (self._run(attempts) if self.admission is None else self._admitted(attempts))

    async def write(
        self, op: list[Any], storage_key: bytes, until: float, ids: RequestIds | None = None
    ) -> list[Any]:
        """A write; its request id is made here, or belongs to ``ids``. Raises TooLarge before anything is sent."""
        refused = check_size(op) if op[KIND_AT] in SIZED else None
        if refused is not None:
            raise refused
        if ids is None:
            ids = self.ids
        else:
            ids.lasts(until - asyncio.get_running_loop().time())
        partition = -1
        try:
            await self.ready(until)
            partition = self.table.route(storage_key).id
            seq, last_seen = ids.begin(partition)
            op[SEQ_AT], op[LAST_SEEN_AT] = seq, last_seen
            attempts = Attempts(self, op, storage_key, until)
            attempts.ids, attempts.client_id = ids, ids.client_id
            attempts.partition = attempts.seen_in = partition
            attempts.changes = True
            return await (self._run(attempts) if self.admission is None else self._admitted(attempts))
        except MetastoreError as e:
            said = ids.about(e)
            if said is e:
                raise
            raise said from e
        finally:
            if partition >= 0:
                ids.end(partition, op[SEQ_AT])

    async def relay(self, client_id: bytes, op: Op, until: float) -> list[Any]:
        """Another client's operation, with the request id that it gave it (``op`` as it came, checked)."""
        attempts = Attempts(self, op, op[KEY_AT], until)
        attempts.client_id = client_id
        attempts.changes = op[KIND_AT] in WRITES
        attempts.partition = attempts.seen_in = op[PARTITION_AT]
        attempts.spread = is_local(op)
        return await self._run(attempts)

    async def _run(self, attempts: Attempts) -> list[Any]:
        """Attempt after attempt, as ``attempts`` decides; the result. Raises MetastoreError."""
        loop, until, answered = asyncio.get_running_loop(), attempts.until, False
        try:
            await self.ready(until)
            while True:
                now = loop.time()
                if now >= until:
                    raise attempts.at_the_end(DeadlineExceeded("the deadline passed before an answer came"))
                if self.pool.closed:
                    raise attempts.at_the_end(ClientClosed("the client is closed"))
                try:
                    placement = self.table.route(attempts.storage_key)
                except Unavailable:  # part of the table is not known just now
                    await self._know_all(attempts)
                    continue
                address = attempts.choose(placement, now)
                if address is None:
                    await self._pause(attempts, placement)
                    continue
                if attempts.owes:
                    attempts.owes = False
                    if not self.budget.take(now):
                        await asyncio.sleep(min(BACKOFF_S[1], until - now))
                        continue
                try:
                    connection = self.open_connection(address)
                    if connection is None:
                        patience = (
                            UNRESPONSIVE_TIMEOUT_S if self.is_unresponsive(address) else CONNECT_TIMEOUT_S
                        )
                        connection = await self.connect(address, until, patience)
                    op = attempts.request(placement)
                    if op[KIND_AT] in LATER and isinstance(connection, NodeConnection):
                        await connection.speaks(op[KIND_AT], min(until, loop.time() + CONNECT_TIMEOUT_S))
                    patience = ATTEMPT_TIMEOUT_S if address != self.router_url else ROUTER_ATTEMPT_TIMEOUT_S
                    if connection.unresponsive:
                        patience = UNRESPONSIVE_TIMEOUT_S
                    result = await connection.submit(attempts.client_id, op, until, patience)
                except (ConnectionLost, AttemptTimeout, NoCommonVersion, Overloaded) as e:
                    step = attempts.judge(address, placement, e, loop.time())
                else:
                    attempts.unreached.discard(address)
                    if result[STATUS_AT] in (OK, NOT_FOUND):
                        attempts.succeeded(address, placement, result)
                        answered = True
                        return result  # type: ignore[no-any-return]
                    error = attempts.meant(error_told(result[STATUS_AT], *result[RESULT_HEAD:]))
                    step = attempts.judge(address, placement, error, loop.time())
                if step is not Step.AGAIN or attempts.doubts:
                    await self._before_the_next(attempts, placement, step)
        finally:
            if attempts.probing is not None or attempts.reached_around or attempts.doubts:
                self._conclude(attempts, answered)

    def _conclude(self, attempts: Attempts, answered: bool) -> None:
        if attempts.probing is not None:
            leader_probe = self.leader_probes.pop(attempts.probing, None)
            if leader_probe is not None and not leader_probe.done():
                leader_probe.set_result(answered)
        if attempts.reached_around:
            self.unreachable.add(attempts.unreached)
        self._look_into(attempts)

    def _look_into(self, attempts: Attempts) -> None:
        """Ask for the topology in the background, if an attempt doubts it."""
        if attempts.doubts:
            attempts.doubts = False
            self.refresh_soon()

    async def _before_the_next(self, attempts: Attempts, placement: Placement, step: Step) -> None:
        self._look_into(attempts)
        if step is Step.REFRESH:
            await self.refresh(attempts.until)
        elif step is Step.PAUSE:
            await self._pause(attempts, placement)

    async def _pause(self, attempts: Attempts, placement: Placement) -> None:
        """Wait a little, or for the word of another operation that asks whether the partition is led, or give up."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        attempts.pause(placement, now)
        self._look_into(attempts)
        if attempts.may_probe:
            leader_probe = self.leader_probes.get(placement.id)
            if leader_probe is not None:
                await asyncio.wait({leader_probe}, timeout=max(0.0, min(BACKOFF_S[1], attempts.until - now)))
                attempts.owes = not (leader_probe.done() and leader_probe.result())
                return
            self.leader_probes[placement.id] = loop.create_future()
            attempts.probing = placement.id
        await asyncio.sleep(attempts.delay_s(now))

    async def _know_all(self, attempts: Attempts) -> None:
        """Raises Unavailable, or OutcomeUnknown, when no server sends the complete table in time."""
        try:
            await self.ready(attempts.until)
        except MetastoreError as e:
            raise attempts.at_the_end(e) from None

    async def _admitted(self, attempts: Attempts) -> list[Any]:
        admission = self.admission
        assert admission is not None
        if not self.table.complete:
            await self.ready(attempts.until)
        cell = self.table.route(attempts.storage_key).cell
        if not admission.try_enter(cell):
            await admission.enter(cell, attempts.until)
        try:
            return await self._run(attempts)
        finally:
            admission.leave(cell)

    def next_rotation(self) -> int:
        self._rotation += 1
        return self._rotation
