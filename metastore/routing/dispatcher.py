"""From an operation to its answer: connections, topology, and who may go when.

Used by the Python client and by the router. Request ids (R7) are made here: a retry repeats
``(client id, seq, stamp)``, so it gets the first outcome and never applies twice. What one operation
does until it has its answer is ``attempts``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from metastore import net
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
    LATER,
    LINEARIZABLE,
    NOT_FOUND,
    OK,
    PARTITION_AT,
    RESULT_HEAD,
    SEQ_AT,
    SIZED,
    STAMP_AT,
    STATUS_AT,
    WRITES,
    Op,
    check_size,
    is_local,
)
from metastore.routing.attempts import ATTEMPT_TIMEOUT_S, ROUTER_ATTEMPT_TIMEOUT_S, Attempts, Step
from metastore.routing.backoff import BACKOFF_S, RetryBudget
from metastore.routing.connection import CONNECT_TIMEOUT_S, UNRESPONSIVE_TIMEOUT_S, NodeConnection
from metastore.routing.failures import AttemptTimeout, ConnectionLost, error_told
from metastore.routing.gate import Admission
from metastore.routing.request_ids import RequestIds
from metastore.routing.router_connection import RouterConnection
from metastore.routing.unreachable import UnreachableNodes
from metastore.topology import Placement, TopologyTable

__all__ = ["Dispatcher", "RequestIds"]

log = logging.getLogger("metastore.client")

LOOK_S: Final = 0.1
REFRESH_S: Final = 5.0
MIN_REFRESH_GAP_S: Final = 0.2
#: how often all of the topology is asked for, and not only what has changed
FULL_REFRESH_S: Final = 600.0
#: one that does not answer is not waited for longer before the next is asked too
ASK_NEXT_S: Final = 0.25
MAX_ASKED: Final = 6


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
        self.seeds = list(seeds)
        self.cluster = cluster
        self.name = name
        self.table = TopologyTable(cluster)
        self.ids = RequestIds()
        self.election_patience_s = election_patience_s
        self.direct = direct
        self.router = RouterConnection(router, name) if router else None
        self.router_url = self.router.url if self.router else None
        self.retries = 0
        self.budget = RetryBudget()
        self.admission = Admission(max_under_way) if max_under_way else None
        self.unreachable = UnreachableNodes(self._reach)
        self.avoided = self.unreachable.addresses
        #: partition -> ends when the operation that asks for its leader has an answer (attempts)
        self.leader_probes: dict[int, asyncio.Future[bool]] = {}
        self.closed = False
        self._connections: dict[str, NodeConnection] = {}
        self._connecting: dict[str, asyncio.Task[NodeConnection]] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        self._refused: NoCommonVersion | None = None
        self._refreshed_at = -1e9
        #: when the complete topology was received last, and whether an answer has contradicted it since
        self._full_refresh_at = -1e9
        self._doubted = False
        self._refresher: asyncio.Task[None] | None = None
        self._rotation = random.randrange(1 << 16)
        self._background: set[asyncio.Task[None]] = set()

    # --- life -------------------------------------------------------------------------------

    async def start(self, timeout_s: float, *, required: bool = True) -> None:
        """Learn the topology from a seed. Raises Unavailable when none answers in time."""
        self._keep_fresh()
        if required:
            await self.ready(asyncio.get_running_loop().time() + timeout_s)
        else:
            await self.refresh()

    def _keep_fresh(self) -> None:
        if self.closed:
            raise ClientClosed("the client is closed")
        if self._refresher is None:
            self._refresher = asyncio.get_running_loop().create_task(self._refresh_forever())

    async def close(self) -> None:
        """What is under way ends with ClientClosed, or OutcomeUnknown."""
        self.closed = True
        tasks: list[asyncio.Task[Any]] = [t for t in (self._refresher, self._refreshing) if t is not None]
        tasks += [*self._connecting.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.unreachable.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        if self.router is not None:
            await self.router.close()
        await asyncio.sleep(0)  # sockets close in the loop's next turn

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on in the background, until the client is closed at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- connections ------------------------------------------------------------------------

    def open_connection(self, address: str) -> NodeConnection | RouterConnection | None:
        """What is open to ``address`` already."""
        connection = self._connections.get(address)
        if connection is not None:
            return None if connection.lost else connection
        return self.router if address == self.router_url else None

    def is_unresponsive(self, address: str) -> bool:
        """Whether a node owes answers, or owed them when it was last heard of."""
        connection = self._connections.get(address)
        return connection is not None and (
            connection.timed_out if connection.lost else connection.unresponsive
        )

    async def connect(
        self, address: str, until: float | None = None, patience_s: float = CONNECT_TIMEOUT_S
    ) -> NodeConnection:
        """The open connection to a node, or a new one. Raises ConnectionLost."""
        connection = self._connections.get(address)
        if connection is not None and not connection.lost:
            return connection
        if self.closed:
            raise ConnectionLost("the client is closed", sent=False)
        pending = self._connecting.get(address)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.create_task(self._open(address))
            self._connecting[address] = pending

            def opened(task: asyncio.Task[NodeConnection]) -> None:
                self._connecting.pop(address, None)
                if not task.cancelled():
                    task.exception()  # retrieved, even when no caller waits for it any more

            pending.add_done_callback(opened)
        await self._wait_for(pending, until, patience_s)
        if not pending.done() or pending.cancelled():
            raise ConnectionLost(f"{address} did not accept a connection within {patience_s:g} s", sent=False)
        return pending.result()

    @staticmethod
    async def _wait_for(pending: asyncio.Task[NodeConnection], until: float | None, left_s: float) -> None:
        """For ``left_s`` of a loop that turns; the time that ours stands still hardly counts."""
        loop = asyncio.get_running_loop()
        while left_s > 0 and not pending.done():
            began = loop.time()
            step_s = LOOK_S if until is None else min(LOOK_S, until - began)
            if step_s <= 0:
                return
            await asyncio.wait({pending}, timeout=step_s)
            left_s -= min(loop.time() - began, 1.5 * LOOK_S)

    async def _open(self, address: str) -> NodeConnection:
        before = self._connections.get(address)
        timed_out = before is not None and before.timed_out
        try:
            async with asyncio.timeout(3 * CONNECT_TIMEOUT_S):
                connection = await net.dial(
                    lambda: NodeConnection(self.cluster, self.name, timed_out=timed_out), address
                )
        except TimeoutError:
            raise ConnectionLost(
                f"{address} did not accept a connection within {3 * CONNECT_TIMEOUT_S:g} s", sent=False
            ) from None
        except (OSError, ValueError) as e:
            # ValueError: as a table said, it is no address, or a host that is no name
            refused = isinstance(e, ConnectionRefusedError | ValueError)
            text = f"{address}: {getattr(e, 'strerror', None) or e}"
            raise ConnectionLost(text, sent=False, refused=refused) from None
        self._connections[address] = connection
        return connection

    async def _reach(self, address: str) -> bool:
        """Whether a node answers now; learns from what it says."""
        try:
            self.table.merge(await self._table_of(address))
            return True
        except MetastoreError:
            return False

    # --- topology ---------------------------------------------------------------------------

    async def refresh(self, until: float | None = None) -> bool:
        """Ask around for the table, which does not fit what was met; shared by all who want it at once, at most a few a
        second. Returns by ``until`` (loop time): whether every key has a partition now."""
        self.refresh_soon()
        assert self._refreshing is not None
        timeout_s = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        await asyncio.wait({self._refreshing}, timeout=timeout_s)
        return self.table.complete

    def refresh_soon(self) -> None:
        """As ``refresh``; nobody waits for it."""
        self._doubted = True
        self._begin_refresh()

    def _begin_refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> bool:
        loop = asyncio.get_running_loop()
        wait = self._refreshed_at + MIN_REFRESH_GAP_S - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        self._refreshed_at = loop.time()
        known = [n.rpc for n in self.table.nodes.values() if n.rpc not in self.unreachable.addresses]
        addresses = random.sample(known, len(known)) + random.sample(self.seeds, len(self.seeds))
        asked = list(dict.fromkeys(addresses))[:MAX_ASKED] if self.direct else []
        asking: list[Callable[[], Awaitable[TopologyTable]]] = [partial(self._table_of, a) for a in asked]
        if self.router is not None:
            asking.append(partial(self.router.topology, CONNECT_TIMEOUT_S))
        return await self._ask_around(asking)

    async def _ask_around(self, asking: list[Callable[[], Awaitable[TopologyTable]]]) -> bool:
        """Ask one after the other, the next one too when one takes long, until a table is complete."""
        pending: list[asyncio.Future[TopologyTable]] = []
        try:
            while asking or pending:
                if asking:
                    pending.append(asyncio.ensure_future(asking.pop(0)()))
                timeout_s = ASK_NEXT_S if asking else None
                await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                answers = [p for p in pending if p.done()]
                pending = [p for p in pending if not p.done()]
                for answer in answers:
                    try:
                        self.table.merge(answer.result())
                        if self.table.complete:
                            return True
                    except MetastoreError as e:
                        self._refused = e if isinstance(e, NoCommonVersion) else self._refused
                        log.debug("topology: %s", e.message)
            return self.table.complete
        finally:
            for answer in pending:
                answer.cancel()

    async def _table_of(self, address: str) -> TopologyTable:
        """What a node knows; of what is here already, only what has changed. All of it now and then, and sooner when it
        is in doubt, so that nothing that is wrong here stays for long. Raises MetastoreError."""
        connection = await self.connect(address)
        now = asyncio.get_running_loop().time()
        whole = not self.table.complete or now >= self._full_refresh_at + (
            REFRESH_S if self._doubted else FULL_REFRESH_S
        )
        found = TopologyTable.from_wire(
            await connection.topology(CONNECT_TIMEOUT_S, 0 if whole else self.table.revision)
        )
        if found.since is None and found.complete:
            self._full_refresh_at, self._doubted = now, False
        return found

    async def _refresh_forever(self) -> None:
        """Constant work: one request every few seconds, whether all is well or not."""
        while True:
            await asyncio.sleep(REFRESH_S * random.uniform(0.7, 1.3))
            self._begin_refresh()
            assert self._refreshing is not None
            await asyncio.wait({self._refreshing})

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
            seq, stamp = ids.begin(partition)
            op[SEQ_AT], op[STAMP_AT] = seq, stamp
            attempts = Attempts(self, op, storage_key, until)
            attempts.ids, attempts.client_id = ids, ids.client_id
            attempts.partition = attempts.stamped = partition
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
        attempts.partition = attempts.stamped = op[PARTITION_AT]
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
                if self.closed:
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

    async def ready(self, until: float) -> None:
        """Return once the topology is known. Raises NoCommonVersion when no server sends it and a node does not speak with
        this client, Unavailable at ``until``."""
        if self.table.complete and self._refresher is not None:
            return
        self._keep_fresh()
        loop = asyncio.get_running_loop()
        while not self.table.complete:
            if self.closed:
                raise ClientClosed("the client is closed")
            if loop.time() >= until:
                asked = ", ".join([*self.seeds, *([self.router_url] if self.router_url else [])])
                text = (
                    f"none of {asked} answered with it in time: are nodes or routers there?"
                    if asked
                    else "no address is given"
                )
                raise Unavailable(f"the topology is not known: {text}", retry_after_s=1)
            self._refused = None
            if not await self.refresh(until) and self._refused is not None:
                raise self._refused

    def next_rotation(self) -> int:
        self._rotation += 1
        return self._rotation
