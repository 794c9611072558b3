"""One connection of a client to one node: operations of a loop tick share a frame. No retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from metastore.errors import MetastoreError, NoCommonVersion, Overloaded, ProtocolError
from metastore.history import ResumePoint
from metastore.operations import ID_AT, LATER, OPERATIONS, Op, size_of
from metastore.routing.failures import AttemptTimeout, ConnectionLost, Malformed, error_told
from metastore.wire import frames
from metastore.wire.answer_checks import (
    check_answer,
    check_changes,
    check_end,
    check_events,
    check_hello,
    check_refusal,
    check_told,
)
from metastore.wire.versions import Spoken, agree, client_versions, spoken_at

CONNECT_TIMEOUT_S = 1.0
MAX_OUTSTANDING = 4096
MAX_OPS_PER_FRAME = 1024
MAX_FRAME_BYTES = 4 << 20
SWEEP_S = 0.05
UNRESPONSIVE_S = 0.6
#: a connection with watches is pinged this often, and lost when a ping is not answered for that long
PING_S, WATCH_SILENCE_S = 1.0, 4.0
#: one that has given up on operations is lost when it says nothing for that long: another may do better
TIMED_OUT_S = 5.0
#: unsent bytes beyond which a node is not sent more
MAX_UNSENT_BYTES = 8 << 20
MAX_ASKING = 16
FOR_EVER_S = float("inf")
#: patience with one attempt at a node that has fallen silent: enough to hear that it is back
UNRESPONSIVE_TIMEOUT_S = 0.3


OnEvents = Callable[[ResumePoint, list[Any]], None]
OnEnd = Callable[[MetastoreError], None]


def require(wrong: str) -> None:
    """Raises ProtocolError unless ``wrong``, what a check has found, is nothing."""
    if wrong:
        raise ProtocolError(wrong)


class NodeConnection(asyncio.Protocol):
    """See the module. ``submit`` returns a future of the result, which has the form that
    ``wire.answer_checks`` describes for the operation. ``version``: of the protocol, as both speak it; until the node's
    hello has come, the lowest that this side speaks."""

    spoken: Spoken = client_versions()

    def __init__(self, cluster: str, name: str, *, timed_out: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.cluster = cluster
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.hello: list[Any] | None = None
        self.version = self.spoken.lowest
        self._agreed: asyncio.Future[None] = self.loop.create_future()
        self._decoder = frames.FrameDecoder(max_items=frames.MAX_ANSWER_ITEMS)
        self._next_id = 1
        #: id -> (future, until, the operation)
        self._waiting: dict[int, tuple[asyncio.Future[Any], float, Op]] = {}
        self._out: list[tuple[bytes, Op, float, float]] = []
        self._topology: list[asyncio.Future[Any]] = []
        self._status: list[asyncio.Future[Any]] = []
        #: id -> (on_events, on_end, the body without the id)
        self._watches: dict[int, tuple[OnEvents, OnEnd, list[Any]]] = {}
        self._next_watch = 1
        self._heard_at = 0.0
        self._next_ping_at = 0.0
        #: the first ping since something was heard
        self._first_ping_at = -1.0
        self._sweeper: asyncio.TimerHandle | None = None
        #: since when something is waited for and nothing came
        self._idle_since = 0.0
        self._idle = False
        self._sweep_due = 0.0
        #: an operation was given up, and nothing came since it was sent; also when the connection before
        #: this one ended so
        self.timed_out = timed_out
        self._timed_out_at = self.loop.time()
        #: the node reads less than it is sent
        self._write_blocked = False

    @property
    def unresponsive(self) -> bool:
        """Whether the node owes answers and has said nothing for a while: paused, or cut off."""
        return self.timed_out or self._idle

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports are no subclasses of asyncio's
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        transport.write(frames.pack(frames.HELLO, [self.cluster, self.name, list(self.spoken)]))
        self._sweep_again(self.loop.time())

    def pause_writing(self) -> None:
        self._write_blocked = True

    def resume_writing(self) -> None:
        self._write_blocked = False

    def data_received(self, data: bytes) -> None:
        self._idle_since, self.timed_out, self._idle = self.loop.time(), False, False
        self._heard_at = self._idle_since
        try:
            for kind, body in self._decoder.feed(data):
                if kind == frames.RESPONSE:
                    self._results(body)
                else:
                    self._other(kind, body)
        except NoCommonVersion as e:
            self._fail(e)
        except ProtocolError as e:
            self._fail(Malformed(f"the node's answer is malformed: {e.message}", sent=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(f"connection lost: {exc or 'closed by the node'}", sent=True))

    # --- answers ----------------------------------------------------------------------------

    def _results(self, body: Any) -> None:
        """Raises ProtocolError."""
        if type(body) is not list:
            raise ProtocolError("the body of a RESPONSE is not a list of results")
        waiting = self._waiting
        for result in body:
            if type(result) is not list or not result or type(result[0]) is not int:
                raise ProtocolError("a result is not an array that begins with a number")
            found = waiting.get(result[0])
            if found is not None:
                wrong = check_answer(found[2], result)
                if wrong:
                    raise ProtocolError(wrong)
                del waiting[result[0]]
                if not found[0].done():
                    found[0].set_result(result)

    def _other(self, kind: int, body: Any) -> None:
        """Raises ProtocolError."""
        if kind == frames.HELLO_OK:
            require(check_hello(body))
            node = f"node {body[1][:80]}"
            self.version = agree(self.spoken, "this client", spoken_at(body, 5), node)
            self.hello = body[:5]
            self._answer(self._agreed, None)
        elif kind == frames.EVENTS:
            require(check_events(body))
            found = self._watches.get(body[0])
            if found is not None:
                require(check_changes(found[2], body[1], body[2]))
                found[0](body[1], body[2])
        elif kind == frames.WATCH_END:
            require(check_end(body))
            found = self._watches.pop(body[0], None)
            if found is not None:
                found[1](error_told(*body[1:]))
        elif kind in (frames.TOPOLOGY, frames.STATUS):
            require(check_told(body))
            asking = self._topology if kind == frames.TOPOLOGY else self._status
            if asking:
                self._answer(asking.pop(0), body[0])
        elif kind == frames.ERROR:
            require(check_refusal(body))
            error = error_told(*body)
            plain = isinstance(error, Overloaded | NoCommonVersion)
            self._fail(error if plain else ConnectionLost(error.message, sent=True))

    @staticmethod
    def _answer(future: asyncio.Future[Any], value: Any) -> None:
        if not future.done():
            future.set_result(value)

    def _sweep(self) -> None:
        now = self.loop.time()
        if now - self._sweep_due > SWEEP_S:
            # our own loop stood still: hear what is in the socket before calling the node silent
            self._idle_since = max(self._idle_since, now - SWEEP_S)
        else:
            self._time_out(now)
        if not self.lost:
            self._sweep_again(now)

    def _sweep_again(self, now: float) -> None:
        self._sweep_due = now + SWEEP_S
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _time_out(self, now: float) -> None:
        late = [i for i, (_, until, _) in self._waiting.items() if until <= now]
        self._idle = bool(self._waiting) and now - self._idle_since > UNRESPONSIVE_S
        if late and not self.timed_out and now - self._idle_since > UNRESPONSIVE_TIMEOUT_S:
            self.timed_out, self._timed_out_at = True, now
        for i in late:
            future = self._waiting.pop(i)[0]
            if not future.done():
                future.set_exception(AttemptTimeout("the node did not answer in time"))
        if self._watches:
            self._watch_over(now)
        if self.timed_out and now - self._timed_out_at > TIMED_OUT_S:
            self._fail(ConnectionLost(f"the node was silent for {TIMED_OUT_S} s", sent=True))

    def _watch_over(self, now: float) -> None:
        """Who only listens does not notice that the other side is gone, unless it asks."""
        unanswered = self._heard_at < self._first_ping_at
        if unanswered and now - self._first_ping_at > WATCH_SILENCE_S:
            self._fail(ConnectionLost(f"the node was silent for {WATCH_SILENCE_S} s", sent=True))
        elif now >= self._next_ping_at and self.transport is not None:
            self._next_ping_at = now + PING_S
            if not unanswered:
                self._first_ping_at = now
            self.transport.write(frames.pack(frames.PING, None))

    def _fail(self, error: MetastoreError) -> None:
        if self.lost:
            return
        self.lost = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        waiting, self._waiting = self._waiting, {}
        for _, op, _, _ in self._out:
            unsent = waiting.pop(op[ID_AT], None)
            if unsent is not None and not unsent[0].done():
                unsent[0].set_exception(ConnectionLost(error.message, sent=False))
        for future in [f for f, _, _ in waiting.values()] + self._topology + self._status:
            if not future.done():
                future.set_exception(error)
        self._answer(self._agreed, None)
        watches, self._watches = self._watches, {}
        for _, on_end, _ in watches.values():
            on_end(error)
        self._out.clear()
        if self.transport is not None:
            self.transport.abort()

    # --- asking -------------------------------------------------------------------------------

    async def speaks(self, kind: int, until: float) -> None:
        """Return when the node is known to have the operation ``kind``, one of LATER. Raises NoCommonVersion when its build is
        older than the operation, ConnectionLost when its hello has not come by ``until`` (loop time)."""
        await asyncio.wait({self._agreed}, timeout=max(0.0, until - self.loop.time()))
        if self.lost:
            raise ConnectionLost("connection lost", sent=False)
        if self.hello is None:
            raise ConnectionLost("the node did not send its hello in time", sent=False)
        if self.version < LATER[kind]:
            raise NoCommonVersion(
                f"the operation {OPERATIONS[kind].name!r} needs version {LATER[kind]} of the protocol, and node "
                f"{self.hello[1][:80]} speaks version {self.version}: upgrade the nodes first"
            )

    def submit(
        self, client_id: bytes, op: Op, until: float, patience_s: float = FOR_EVER_S
    ) -> asyncio.Future[Any]:
        """Send ``op`` (its id is set here) with what else this tick brings. The future ends by
        ``until`` (loop time) at the latest, or when ``patience_s`` have passed since it was sent. Raises
        Overloaded when too many are outstanding."""
        if self.lost:
            raise ConnectionLost("connection lost", sent=False)
        if len(self._waiting) >= MAX_OUTSTANDING:
            raise Overloaded(
                f"{MAX_OUTSTANDING} operations wait for an answer of this node, the limit of a connection; send fewer at a time",
                retry_after_s=0.05,
            )
        if self._write_blocked:
            if self.timed_out:
                self._fail(
                    ConnectionLost(
                        f"the node does not read its connection: more than {MAX_UNSENT_BYTES} bytes are unsent",
                        sent=True,
                    )
                )
                raise ConnectionLost(
                    f"the node does not read its connection: more than {MAX_UNSENT_BYTES} bytes are unsent",
                    sent=False,
                )
            raise Overloaded(
                f"the node does not read its connection: more than {MAX_UNSENT_BYTES} bytes are unsent",
                retry_after_s=0.1,
            )
        if not self._waiting:
            self._idle_since = self.loop.time()
        op_id = op[ID_AT] = self._next_id
        self._next_id = op_id + 1
        future: asyncio.Future[Any] = self.loop.create_future()
        self._waiting[op_id] = (future, until, op)
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append((client_id, op, until, patience_s))
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.lost or self.transport is None:
            return
        now = self.loop.time()
        waiting = self._waiting
        chunks: list[bytes] = []
        start = 0
        while start < len(out):
            client_id, longest = out[start][0], now
            ops: list[Op] = []
            size = 0
            while start < len(out) and len(ops) < MAX_OPS_PER_FRAME and size < MAX_FRAME_BYTES:
                client, op, until, patience_s = out[start]
                if client is not client_id and client != client_id:
                    break
                if patience_s < until - now:
                    until = now + patience_s
                    found = waiting.get(op[ID_AT])
                    if found is not None:
                        waiting[op[ID_AT]] = found[0], until, op
                ops.append(op)
                size += size_of(op)
                longest = max(longest, until)
                start += 1
            timeout_ms = min(120_000, max(1, int((longest - now) * 1000)))
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
            self._first_ping_at, self._next_ping_at = -1.0, 0.0
        self._watches[watch_id] = (on_events, on_end, body)
        self.transport.write(frames.pack(frames.WATCH, [watch_id, *body]))
        return watch_id

    def unwatch(self, watch_id: int) -> None:
        """End a watch, if it has not ended yet."""
        if self._watches.pop(watch_id, None) is not None and not self.lost and self.transport is not None:
            self.transport.write(frames.pack(frames.UNWATCH, [watch_id]))

    async def topology(self, timeout_s: float, since: int = 0) -> Any:
        """The node's topology table in wire form; of a node that knows it only what a table of the revision ``since``
        lacks."""
        return await self._ask(frames.TOPOLOGY_REQUEST, [since], self._topology, timeout_s)

    async def status(self, timeout_s: float) -> dict[str, Any]:
        """The node's own view."""
        return await self._ask(frames.STATUS_REQUEST, [], self._status, timeout_s) or {}

    async def _ask(self, kind: int, body: Any, queue: list[asyncio.Future[Any]], timeout_s: float) -> Any:
        if self.lost or self.transport is None:
            raise ConnectionLost("connection lost", sent=False)
        if len(queue) >= MAX_ASKING:
            raise AttemptTimeout("the node did not answer in time")
        future: asyncio.Future[Any] = self.loop.create_future()
        queue.append(future)
        self.transport.write(frames.pack(kind, body))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise AttemptTimeout("the node did not answer in time") from None

    def close(self) -> None:
        self._fail(ConnectionLost("closed", sent=True))
