"""What one router holds at a time, bounded in all and for each cell.

Four things are counted: requests under way, operations under way (per cell), bytes of bodies and
answers in memory, and watches (in all and per cell). Beyond a bound the answer is 503 at once and
costs nothing, so whatever ten thousand clients do, memory stays below a figure known beforehand, and
a cell that is dead or slow uses up its own quota and no more.

Operations to one partition are sent a window at a time; the others wait in the partition's queue. So when everybody
comes at once, or a partition is between two leaders, only a window of operations is retried, and the operations of
other partitions do not wait behind it. An operation that has waited for most of its time is refused with Overloaded while
there is time left to answer.

A request holds bytes from when its body comes in until its answer has left for the socket: a client
that reads or writes slowly holds what it has caused and nobody else's. The large ones leave a part of
the bytes to the small ones, so that clients which do not take large answers do not shut the others out;
and of those that are being taken, the oldest are given up before they are half of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from metastore.config import RouterConfig
from metastore.errors import Overloaded
from metastore.operations import KEY_AT, Op, size_of
from metastore.routing.dispatcher import Dispatcher, RequestIds

MIB = 1 << 20
#: a request that holds no more is small: all of ``max_held_mib`` is there for it
SMALL_BYTES = 64 << 10
#: the part of ``max_held_mib`` that is there for all others together
LARGE_PART = 0.75
#: the part of ``max_held_mib`` that answers which are being taken may hold
TAKEN_PART = 0.5
#: operations to one partition that are under way at a time; the next ones wait in the queue
WINDOW = 256
#: the part of its time that an operation may wait in the queue
PATIENCE = 0.8
#: when to come again, in seconds: apart from the others
RETRY_S = (1.0, 3.0)

Ask = Callable[[], Awaitable[list[Any]]]


class CellQuota:
    """How much of its quota one cell uses."""

    __slots__ = ("bytes", "ops", "watches")

    def __init__(self) -> None:
        self.ops = 0
        self.bytes = 0
        self.watches = 0


class Bulkheads:
    """See the module. All of it runs in the loop's thread."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.requests = 0
        self.bytes = 0
        self.watches = 0
        self.cells: dict[str, CellQuota] = {}
        #: bound -> how often it was met
        self.refused: dict[str, int] = {}

    def refuse(self, bound: str, text: str, **detail: Any) -> Overloaded:
        """The error of a request that exceeds a bound; counted."""
        self.refused[bound] = self.refused.get(bound, 0) + 1
        return Overloaded(f"{text} ({bound})", retry_after_s=random.uniform(*RETRY_S), **detail)

    def quota(self, cell: str) -> CellQuota:
        found = self.cells.get(cell)
        if found is None:
            found = self.cells[cell] = CellQuota()
        return found

    @property
    def full(self) -> bool:
        """Whether no further request is accepted now; counts the refusal."""
        if self.requests < self.config.max_inflight:
            return False
        self.refused["max_inflight"] = self.refused.get("max_inflight", 0) + 1
        return True

    def request(self) -> Reservation:
        """A request from its headers to the end of its answer, for which its hold is entered. Raises
        Overloaded."""
        if self.requests >= self.config.max_inflight:
            raise self.refuse(
                "max_inflight",
                f"{self.requests} requests are under way, the limit of this router; retry, or raise the setting",
            )
        return Reservation(self, counted=True)

    def begin(self, cell: str, size: int) -> CellQuota:
        """An operation of ``size`` bytes is to be sent to a cell: the quota that it counts against, until ``end``.
        Raises Overloaded."""
        quota, config = self.quota(cell), self.config
        if quota.ops >= config.max_inflight_per_cell:
            raise self.refuse(
                "max_inflight_per_cell",
                f"{quota.ops} operations to cell {cell} are under way, the limit for one cell: the cell is slow or down, or the setting is too low",
                cell=cell,
            )
        if quota.bytes + size > config.max_cell_mib * MIB:
            raise self.refuse(
                "max_cell_mib",
                f"{quota.bytes} bytes are on their way to cell {cell}, and {size} more are over the limit of {config.max_cell_mib} MiB: the cell is slow or down, or the setting is too low",
                cell=cell,
            )
        quota.ops += 1
        quota.bytes += size
        return quota

    @staticmethod
    def end(quota: CellQuota, size: int) -> None:
        quota.ops -= 1
        quota.bytes -= size

    @contextlib.contextmanager
    def watch(self, cells: set[str]) -> Iterator[None]:
        """A watch that follows partitions of ``cells``. Raises Overloaded."""
        config = self.config
        if self.watches >= config.max_watches:
            raise self.refuse(
                "max_watches",
                f"{self.watches} watches are open, the limit of this router; close some, or raise the setting",
            )
        quotas = [self.quota(cell) for cell in sorted(cells)]
        for cell, quota in zip(sorted(cells), quotas, strict=True):
            if quota.watches >= config.max_watches_per_cell:
                raise self.refuse(
                    "max_watches_per_cell",
                    f"{quota.watches} watches of cell {cell} are open, the limit for one cell; close some, or raise the setting",
                    cell=cell,
                )
        self.watches += 1
        for quota in quotas:
            quota.watches += 1
        try:
            yield
        finally:
            self.watches -= 1
            for quota in quotas:
                quota.watches -= 1


class PartitionQueue:
    """The operations that may be sent to one partition now, and those that wait for their turn."""

    __slots__ = ("active", "waiting")

    def __init__(self) -> None:
        self.active = 0
        self.waiting: deque[asyncio.Future[None]] = deque()

    def try_enter(self) -> bool:
        """Whether it is one's turn at once."""
        if self.active >= WINDOW:
            return False
        self.active += 1
        return True

    async def wait(self, until: float) -> bool:
        """Return when it is one's turn; False when ``until`` came first."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
            return True
        except BaseException as e:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came, and too late
            if isinstance(e, TimeoutError):
                return False
            raise

    def leave(self) -> None:
        """Let the next one in."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.active -= 1


class Reservation:
    """The bytes that one request holds while it is entered. ``counted``: the request itself counts too."""

    __slots__ = ("_all", "_counted", "bytes")

    def __init__(self, bulkheads: Bulkheads, counted: bool = False) -> None:
        self._all = bulkheads
        self._counted = counted
        self.bytes = 0

    def take(self, size: int) -> None:
        """Reserve ``size`` bytes more. Raises Overloaded when the router holds too many."""
        self.look(size)
        self.force(size)

    def look(self, size: int) -> None:
        """Whether ``size`` bytes more could be held now, before the work for them is done. Raises Overloaded."""
        bulkheads = self._all
        bound = bulkheads.config.max_held_mib * MIB
        if self.bytes + size > SMALL_BYTES:
            bound = int(bound * LARGE_PART)
        if bulkheads.bytes + size > bound:
            raise bulkheads.refuse(
                "max_held_mib",
                f"bodies and answers of {bulkheads.bytes} bytes are in memory: with "
                f"{self.bytes + size} bytes of this request they would be over the limit of {bound}; retry, or raise the setting",
            )

    def force(self, size: int) -> None:
        """Reserve what is there anyway and cannot be dropped, such as the answer to a write."""
        self._all.bytes += size
        self.bytes += size

    def release(self) -> None:
        self._all.bytes -= self.bytes
        self.bytes = 0

    def __enter__(self) -> Reservation:
        self._all.requests += self._counted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.requests -= self._counted
        self.release()


class CellDispatcher(Dispatcher):
    """A dispatcher all of whose operations count against the quota of the cell they go to: those of
    listings, batches, transactions and relayed ones like single ones."""

    def __init__(self, config: RouterConfig, bulkheads: Bulkheads, election_patience_s: float) -> None:
        super().__init__(
            list(config.nodes), config.cluster, name="router", election_patience_s=election_patience_s
        )
        self.bulkheads = bulkheads
        self._queues: dict[int, PartitionQueue] = {}
        self._loop = asyncio.get_running_loop()

    def cell_of(self, storage_key: bytes) -> str:
        """ "" while the topology is not known."""
        return self.table.route(storage_key).cell if self.table.complete else ""

    async def _in_turn(self, storage_key: bytes, size: int, until: float, ask: Ask) -> list[Any]:
        """``ask`` within the quota of its cell and the queue of its partition."""
        if not self.table.complete:
            await self.ready(until)
        placement = self.table.route(storage_key)
        quota = self.bulkheads.begin(placement.cell, size)
        try:
            queue = self._queues.get(placement.id)
            if queue is None:
                queue = self._queues[placement.id] = PartitionQueue()
            now = self._loop.time()
            if not queue.try_enter() and not await queue.wait(now + (until - now) * PATIENCE):
                raise self.bulkheads.refuse(
                    "queue",
                    f"{WINDOW} operations to partition {placement.id} are under way, and this one waited {PATIENCE:.0%} of its time: the partition is slow or has no leader",
                    cell=placement.cell,
                )
            try:
                return await ask()
            finally:
                queue.leave()
        finally:
            self.bulkheads.end(quota, size)

    @property
    def waiting(self) -> int:
        """Operations that wait in a partition's queue."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    async def read(self, op: Op, storage_key: bytes, until: float) -> list[Any]:
        ask = partial(super().read, op, storage_key, until)
        return await self._in_turn(storage_key, len(storage_key), until, ask)

    async def write(
        self, op: Op, storage_key: bytes, until: float, ids: RequestIds | None = None
    ) -> list[Any]:
        ask = partial(super().write, op, storage_key, until, ids)
        return await self._in_turn(storage_key, size_of(op), until, ask)

    async def relay(self, client_id: bytes, op: Op, until: float) -> list[Any]:
        ask = partial(super().relay, client_id, op, until)
        return await self._in_turn(op[KEY_AT], size_of(op), until, ask)
