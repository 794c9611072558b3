"""What one router holds at a time, bounded in all and for each cell.

Four things are counted: requests under way, operations under way (per cell), bytes of bodies and
answers in memory, and watches (in all and per cell). Beyond a bound the answer is 503 at once and
costs nothing, so whatever ten thousand clients do, memory stays below a figure known beforehand, and
a cell that is dead or slow uses up its own share and no more.

Operations to one partition are sent a window at a time; the others stand in line. So when everybody
comes at once, or a partition is between two leaders, what is tried and tried again is a window and
not all there is, and other partitions' operations are not behind it. Who has stood in line for most
of its time is told to come again while there is time left to say so.

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
#: operations to one partition that are under way at a time; the next ones stand in line
WINDOW = 256
#: the part of its time that an operation may stand in line
PATIENCE = 0.8
#: when to come again, in seconds: apart from the others
RETRY_S = (1.0, 3.0)

Ask = Callable[[], Awaitable[list[Any]]]


class Share:
    """What is held of one cell."""

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
        self.cells: dict[str, Share] = {}
        #: bound -> how often it was met
        self.refused: dict[str, int] = {}

    def refuse(self, bound: str, text: str, **detail: Any) -> Overloaded:
        """The error for who meets a bound; counted."""
        self.refused[bound] = self.refused.get(bound, 0) + 1
        return Overloaded(f"{text} ({bound})", retry_after_s=random.uniform(*RETRY_S), **detail)

    def share(self, cell: str) -> Share:
        found = self.cells.get(cell)
        if found is None:
            found = self.cells[cell] = Share()
        return found

    @property
    def full(self) -> bool:
        """Whether no further request is taken now; counts who asks in vain."""
        if self.requests < self.config.max_inflight:
            return False
        self.refused["max_inflight"] = self.refused.get("max_inflight", 0) + 1
        return True

    def request(self) -> Hold:
        """A request from its headers to the end of its answer, for which its hold is entered. Raises
        Overloaded."""
        if self.requests >= self.config.max_inflight:
            raise self.refuse("max_inflight", f"{self.requests} requests are under way, the limit")
        return Hold(self, counted=True)

    def begin(self, cell: str, size: int) -> Share:
        """An operation of ``size`` bytes is to be sent to a cell: the share that it takes from, until ``end``.
        Raises Overloaded."""
        share, config = self.share(cell), self.config
        if share.ops >= config.max_inflight_per_cell:
            raise self.refuse(
                "max_inflight_per_cell",
                f"{share.ops} operations to cell {cell} are under way, the limit",
                cell=cell,
            )
        if share.bytes + size > config.max_cell_mib * MIB:
            raise self.refuse(
                "max_cell_mib", f"{share.bytes} bytes wait for cell {cell}, the limit", cell=cell
            )
        share.ops += 1
        share.bytes += size
        return share

    @staticmethod
    def end(share: Share, size: int) -> None:
        share.ops -= 1
        share.bytes -= size

    @contextlib.contextmanager
    def watch(self, cells: set[str]) -> Iterator[None]:
        """A watch that follows partitions of ``cells``. Raises Overloaded."""
        config = self.config
        if self.watches >= config.max_watches:
            raise self.refuse("max_watches", f"{self.watches} watches are open, the limit")
        shares = [self.share(cell) for cell in sorted(cells)]
        for cell, share in zip(sorted(cells), shares, strict=True):
            if share.watches >= config.max_watches_per_cell:
                raise self.refuse(
                    "max_watches_per_cell",
                    f"{share.watches} watches of cell {cell} are open, the limit",
                    cell=cell,
                )
        self.watches += 1
        for share in shares:
            share.watches += 1
        try:
            yield
        finally:
            self.watches -= 1
            for share in shares:
                share.watches -= 1


class Line:
    """Who may send to one partition now, and who comes next."""

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


class Hold:
    """The bytes that one request holds, while it is entered. ``counted``: so is the request."""

    __slots__ = ("_all", "_counted", "bytes")

    def __init__(self, bulkheads: Bulkheads, counted: bool = False) -> None:
        self._all = bulkheads
        self._counted = counted
        self.bytes = 0

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more. Raises Overloaded when the router holds too many."""
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
                f"bodies and answers of {bulkheads.bytes} bytes are in memory; "
                f"the limit for one of {self.bytes + size} is {bound}",
            )

    def force(self, size: int) -> None:
        """Hold what is there anyway and cannot be dropped, such as the answer to a write."""
        self._all.bytes += size
        self.bytes += size

    def release(self) -> None:
        self._all.bytes -= self.bytes
        self.bytes = 0

    def __enter__(self) -> Hold:
        self._all.requests += self._counted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.requests -= self._counted
        self.release()


class CellDispatcher(Dispatcher):
    """A dispatcher all of whose operations count against the share of the cell they go to: those of
    listings, batches, transactions and relayed ones like single ones."""

    def __init__(self, config: RouterConfig, bulkheads: Bulkheads, election_patience_s: float) -> None:
        super().__init__(
            list(config.nodes), config.cluster, name="router", election_patience_s=election_patience_s
        )
        self.bulkheads = bulkheads
        self._lines: dict[int, Line] = {}
        self._loop = asyncio.get_running_loop()

    def cell_of(self, lkey: bytes) -> str:
        """ "" while the topology is not known."""
        return self.table.route(lkey).cell if self.table.complete else ""

    async def _in_turn(self, lkey: bytes, size: int, until: float, ask: Ask) -> list[Any]:
        """``ask`` within the share of its cell and the line of its partition."""
        if not self.table.complete:
            await self.ready(until)
        placement = self.table.route(lkey)
        share = self.bulkheads.begin(placement.cell, size)
        try:
            line = self._lines.get(placement.id)
            if line is None:
                line = self._lines[placement.id] = Line()
            now = self._loop.time()
            if not line.try_enter() and not await line.wait(now + (until - now) * PATIENCE):
                raise self.bulkheads.refuse(
                    "line", f"too many operations wait for partition {placement.id}", cell=placement.cell
                )
            try:
                return await ask()
            finally:
                line.leave()
        finally:
            self.bulkheads.end(share, size)

    @property
    def waiting(self) -> int:
        """Operations that stand in line."""
        return sum(len(line.waiting) for line in self._lines.values())

    async def read(self, op: Op, lkey: bytes, until: float) -> list[Any]:
        ask = partial(super().read, op, lkey, until)
        return await self._in_turn(lkey, len(lkey), until, ask)

    async def write(self, op: Op, lkey: bytes, until: float, ids: RequestIds | None = None) -> list[Any]:
        ask = partial(super().write, op, lkey, until, ids)
        return await self._in_turn(lkey, size_of(op), until, ask)

    async def relay(self, client_id: bytes, op: Op, until: float) -> list[Any]:
        ask = partial(super().relay, client_id, op, until)
        return await self._in_turn(op[KEY_AT], size_of(op), until, ask)
