"""One connection of a client to one node: operations of a loop tick share a frame. No retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from metastore.errors import MetastoreError, Overloaded, ProtocolError, from_wire
from metastore.wire import frames
from metastore.wire.client_messages import PUT, TXN

MAX_OUTSTANDING = 4096
MAX_OPS_PER_FRAME = 1024
MAX_FRAME_BYTES = 4 << 20
SWEEP_S = 0.05
#: a sweep that comes later than this was held up by its own loop
STALL_S = 0.1
SILENT_S = 0.6
#: a connection with watches is pinged this often, and lost when nothing came for that long
PING_S, WATCH_SILENCE_S = 1.0, 4.0
#: patience with one attempt at a node that has fallen silent: enough to hear that it is back
SILENT_TIMEOUT_S = 0.3


def op_bytes(op: list[Any]) -> int:
    """Roughly what is large in an operation."""
    if op[1] == PUT:
        return len(op[8])
    if op[1] == TXN:
        return sum(len(part[2]) for parts in op[8:10] for part in parts if part[0] == PUT)
    return 0


OnEvents = Callable[[int, list[Any]], None]
OnEnd = Callable[[MetastoreError], None]


class ConnectionLost(MetastoreError):
    """The connection ended, or never began, before the answer came. ``detail["sent"]`` says
    whether the operation may have reached the node; ``refused`` whether nobody listened."""

    code = "connection_lost"
    retryable = True


class AttemptTimeout(MetastoreError):
    """The node holds the connection open and does not answer."""

    code = "attempt_timeout"
    retryable = True


class NodeConnection(asyncio.Protocol):
    """See the module. ``submit`` returns a future of the raw result."""

    def __init__(self, cluster: str, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.cluster = cluster
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.hello: list[Any] | None = None
        self._decoder = frames.FrameDecoder()
        self._next_id = 1
        self._waiting: dict[int, tuple[asyncio.Future[Any], float]] = {}
        self._out: list[tuple[bytes, list[Any], float]] = []
        self._topology: list[asyncio.Future[Any]] = []
        self._status: list[asyncio.Future[Any]] = []
        self._watches: dict[int, tuple[OnEvents, OnEnd]] = {}
        self._next_watch = 1
        self._heard_at = 0.0
        self._ping_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0
        #: since when something is waited for and nothing came
        self._quiet_since = 0.0
        #: an operation was given up, and nothing came since it was sent
        self._gave_up = False

    @property
    def silent(self) -> bool:
        """Whether the node owes answers and has said nothing for a while: paused, or cut off."""
        return self._gave_up or (bool(self._waiting) and self.loop.time() - self._quiet_since > SILENT_S)

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports are no subclasses of asyncio's
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.write(frames.pack(frames.HELLO, [self.cluster, self.name]))
        self._sweep_due = self.loop.time() + SWEEP_S
        self._sweeper = self.loop.call_at(self._sweep_due, self._sweep)

    def data_received(self, data: bytes) -> None:
        self._quiet_since, self._gave_up = self.loop.time(), False
        self._heard_at = self._quiet_since
        try:
            for kind, body in self._decoder.feed(data):
                if kind == frames.RESPONSE:
                    self._results(body)
                else:
                    self._other(kind, body)
        except (ProtocolError, IndexError, TypeError) as e:
            self._fail(ConnectionLost(f"the node's answer is not the protocol: {e}", sent=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(f"connection lost: {exc or 'closed by the node'}", sent=True))

    # --- answers ----------------------------------------------------------------------------

    def _results(self, body: list[Any]) -> None:
        waiting = self._waiting
        for result in body:
            found = waiting.pop(result[0], None)
            if found is not None and not found[0].done():
                found[0].set_result(result)

    def _other(self, kind: int, body: Any) -> None:
        if kind == frames.HELLO_OK:
            self.hello = body
        elif kind == frames.EVENTS:
            found = self._watches.get(body[0])
            if found is not None:
                found[0](body[1], body[2])
        elif kind == frames.WATCH_END:
            found = self._watches.pop(body[0], None)
            if found is not None:
                found[1](from_wire(body[1], body[2], body[3]))
        elif kind == frames.TOPOLOGY and self._topology:
            self._answer(self._topology.pop(0), body[0])
        elif kind == frames.STATUS and self._status:
            self._answer(self._status.pop(0), body[0])
        elif kind == frames.ERROR:
            self._fail(
                from_wire(body[0], body[1], body[2])
                if body[0] in (6,)
                else ConnectionLost(body[1], sent=True)
            )

    @staticmethod
    def _answer(future: asyncio.Future[Any], value: Any) -> None:
        if not future.done():
            future.set_result(value)

    def _sweep(self) -> None:
        now = self.loop.time()
        stalled = now - self._sweep_due
        if stalled > STALL_S:
            # This side stood still. What the node has said meanwhile is in the socket: hear it before
            # anything is given up, or a busy client takes every node for silent and tries all again.
            self._quiet_since += stalled
            self._heard_at += stalled
            late = []
        else:
            late = [i for i, (_, until) in self._waiting.items() if until <= now]
        self._gave_up |= bool(late) and now - self._quiet_since > SILENT_TIMEOUT_S
        for i in late:
            future, _ = self._waiting.pop(i)
            if not future.done():
                future.set_exception(AttemptTimeout("the node does not answer"))
        if self._watches:
            self._watch_over(now)
        if not self.lost:
            self._sweep_due = self.loop.time() + SWEEP_S
            self._sweeper = self.loop.call_at(self._sweep_due, self._sweep)

    def _watch_over(self, now: float) -> None:
        """Who only listens does not notice that the other side is gone, unless it asks."""
        if now - self._heard_at > WATCH_SILENCE_S:
            self._fail(ConnectionLost(f"the node was silent for {WATCH_SILENCE_S} s", sent=True))
        elif now >= self._ping_at and self.transport is not None:
            self._ping_at = now + PING_S
            self.transport.write(frames.pack(frames.PING, None))

    def _fail(self, error: MetastoreError) -> None:
        if self.lost:
            return
        self.lost = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        waiting, self._waiting = self._waiting, {}
        for future in [f for f, _ in waiting.values()] + self._topology + self._status:
            if not future.done():
                future.set_exception(error)
        watches, self._watches = self._watches, {}
        for _, on_end in watches.values():
            on_end(error)
        self._out.clear()
        if self.transport is not None:
            self.transport.abort()

    # --- asking -------------------------------------------------------------------------------

    def submit(self, client_id: bytes, op: list[Any], until: float) -> asyncio.Future[Any]:
        """Send ``op`` (its id is set here) with what else this tick brings. The future ends by
        ``until`` (loop time) at the latest. Raises Overloaded when too many are outstanding."""
        if self.lost:
            raise ConnectionLost("connection lost", sent=False)
        if len(self._waiting) >= MAX_OUTSTANDING:
            raise Overloaded(f"{MAX_OUTSTANDING} operations are outstanding to this node", retry_after_s=0.05)
        if not self._waiting:
            self._quiet_since = self.loop.time()
        op_id = op[0] = self._next_id
        self._next_id = op_id + 1
        future: asyncio.Future[Any] = self.loop.create_future()
        self._waiting[op_id] = (future, until)
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append((client_id, op, until))
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.lost or self.transport is None:
            return
        now = self.loop.time()
        chunks: list[bytes] = []
        start = 0
        while start < len(out):
            client_id, _, until = out[start]
            ops: list[list[Any]] = []
            size = 0
            while start < len(out) and len(ops) < MAX_OPS_PER_FRAME and size < MAX_FRAME_BYTES:
                client, op, op_until = out[start]
                if client is not client_id and client != client_id:
                    break
                ops.append(op)
                size += 64 + op_bytes(op)
                until = max(until, op_until)
                start += 1
            timeout_ms = min(120_000, max(1, int((until - now) * 1000)))
            chunks.append(frames.pack(frames.REQUEST, [client_id, timeout_ms, ops]))
        self.transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def watch(self, body: list[Any], on_events: OnEvents, on_end: OnEnd) -> int:
        """Begin a watch (``body`` without its id); its id. ``on_events(version, events)`` for what
        comes, ``on_end(error)`` once when it ends by itself. Raises ConnectionLost."""
        if self.lost or self.transport is None:
            raise ConnectionLost("connection lost", sent=False)
        watch_id = self._next_watch
        self._next_watch += 1
        if not self._watches:
            self._heard_at = self.loop.time()
        self._watches[watch_id] = (on_events, on_end)
        self.transport.write(frames.pack(frames.WATCH, [watch_id, *body]))
        return watch_id

    def unwatch(self, watch_id: int) -> None:
        """End a watch, if it has not ended yet."""
        if self._watches.pop(watch_id, None) is not None and not self.lost and self.transport is not None:
            self.transport.write(frames.pack(frames.UNWATCH, [watch_id]))

    async def topology(self, timeout_s: float) -> Any:
        """The node's topology table in wire form."""
        return await self._ask(frames.TOPOLOGY_REQUEST, [0], self._topology, timeout_s)

    async def status(self, timeout_s: float) -> Any:
        """The node's own view."""
        return await self._ask(frames.STATUS_REQUEST, [], self._status, timeout_s)

    async def _ask(self, kind: int, body: Any, queue: list[asyncio.Future[Any]], timeout_s: float) -> Any:
        if self.lost or self.transport is None:
            raise ConnectionLost("connection lost", sent=False)
        future: asyncio.Future[Any] = self.loop.create_future()
        queue.append(future)
        self.transport.write(frames.pack(kind, body))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise AttemptTimeout("the node does not answer") from None

    def close(self) -> None:
        self._fail(ConnectionLost("closed", sent=False))
