"""Watches: one stream of changes, whichever way it comes.

A watch goes to the nodes (``strands``) or, when they cannot be reached, through the router
(``router_watch``); each continues where the reader of the other one was. What the reader has not taken
yet is bounded, in events and in bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from typing_extensions import TypeVar

from metastore.client.codecs import BYTES, Codec, decoded
from metastore.client.positions import Position, decode_resume, encode_resume
from metastore.client.results import Event
from metastore.client.router_watch import RouterWatch
from metastore.client.strands import Strands
from metastore.errors import ClientClosed, InternalError, InvalidRequest, MetastoreError, Unavailable
from metastore.keys import hash_point, prefix_routing_key, storage_key
from metastore.operations import EXPIRE, PUT
from metastore.records import Record, unpack_record
from metastore.wire.client_messages import WATCH_ANY, WATCH_KEYS

if TYPE_CHECKING:
    from metastore.client.dispatch import Dispatcher

__all__ = ["AsyncWatcher", "decode_resume", "encode_resume"]

log = logging.getLogger("metastore.client")

START_TIMEOUT_S: Final = 30.0
MAX_BUFFER: Final = 1_000_000
MAX_BUFFER_BYTES: Final = 8 << 20
EVENT_BYTES: Final = 200

T = TypeVar("T", default=bytes)
RawEvent = tuple[int, str, int, Any]
"""``(kind, key, version, record: packed, or a Record, or None)``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is watched. ``exact``: the one key that ``prefix`` is."""

    dispatcher: Dispatcher
    namespace: str
    prefix: bytes
    flags: int
    exact: bool

    def is_cut_off(self) -> bool:
        """Whether a leader who would tell is known to be reached through the router only."""
        table, detours = self.dispatcher.table, self.dispatcher.detours.addresses
        if not self.dispatcher.direct or not detours:
            return not self.dispatcher.direct
        rule = table.rule(self.namespace)
        routing = prefix_routing_key(self.prefix, rule)
        placements = table.in_order()
        if self.exact:
            placements = [table.route(storage_key(self.namespace, self.prefix.decode(), rule))]
        elif routing is not None:
            placements = [table.route(hash_point(self.namespace.encode(), routing))]
        return any(table.address(p.leader) in detours for p in placements)


class Source(Protocol):
    """One way that events come. ``delivered``: where the reader is, as far as this one told it."""

    @property
    def delivered(self) -> Position | None: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    def took(self, mark: Any, version: int, last: bool) -> None: ...


class Buffer:
    """What was told and is not taken yet, in *pieces*. ``room``: set while more may come; ``begun``: set
    when every change from then on will be seen."""

    def __init__(self, limit: int, limit_bytes: int = MAX_BUFFER_BYTES) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._pieces: deque[tuple[Source, Any, deque[RawEvent]]] = deque()
        self._count = 0
        self._bytes = 0
        self.room = asyncio.Event()
        self.room.set()
        self.begun = asyncio.Event()
        self.changed = asyncio.Event()

    @property
    def count(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count >= self._limit or self._bytes >= self._limit_bytes

    def put(self, source: Source, mark: Any, events: list[RawEvent]) -> None:
        self._pieces.append((source, mark, deque(events)))
        self._count += len(events)
        self._bytes += sum(map(_size, events))
        self.changed.set()

    def take(self) -> RawEvent | None:
        """The next event, None when there is none now."""
        if not self._pieces:
            return None
        source, mark, events = self._pieces[0]
        event = events.popleft()
        if not events:
            self._pieces.popleft()
        self._count -= 1
        self._bytes -= _size(event)
        if self._count <= self._limit // 2 and self._bytes <= self._limit_bytes // 2:
            self.room.set()
        source.took(mark, event[2], last=not events)
        if not self._pieces:
            self.changed.set()
        return event

    async def drained(self) -> None:
        """Return when the reader has taken everything."""
        while self._pieces:
            self.changed.clear()
            await self.changed.wait()


def _size(event: RawEvent) -> int:
    record = event[3]
    value = record.value if isinstance(record, Record) else record or b""
    return EVENT_BYTES + len(event[1]) + len(value)


class AsyncWatcher(Generic[T]):
    """An async iterator of events; also an async context manager, which waits until the watch has
    begun everywhere and ends it on leaving. Made by ``AsyncNamespace.watch``."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        namespace: str,
        prefix: bytes,
        after: str | None,
        *,
        keys_only: bool = False,
        any_replica: bool = False,
        buffer: int = 10_000,
        buffer_bytes: int = MAX_BUFFER_BYTES,
        codec: Codec[T] = BYTES,  # type: ignore[assignment]
        exact: bool = False,
    ) -> None:
        if not 1 <= buffer <= MAX_BUFFER:
            raise InvalidRequest(f"buffer = {buffer!r:.40} is not within 1 and {MAX_BUFFER} events")
        flags = (WATCH_KEYS if keys_only else 0) | (WATCH_ANY if any_replica else 0)
        self._wanted = Wanted(dispatcher, namespace, prefix, flags, exact)
        self._after = decode_resume(after) if after is not None else None
        self._codec = codec
        self._buffer = Buffer(buffer, buffer_bytes)
        self._source: Source | None = None
        self._error: MetastoreError | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # --- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> AsyncWatcher[T]:
        try:
            await self.started()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def started(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every change from now on will be seen. Raises Unavailable when that takes
        longer than ``timeout_s`` seconds, Compacted, InvalidRequest, ClientClosed."""
        self._begin(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._buffer.begun.wait()
        except TimeoutError:
            raise Unavailable(f"the watch did not begin within {timeout_s} s", retry_after_s=1) from None
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ClientClosed("the watch is closed")

    def _begin(self, timeout_s: float) -> None:
        if self._task is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._follow(loop.time() + timeout_s))

    async def close(self) -> None:
        """End the watch; iteration ends, also where another task waits for the next event."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._wake_all()

    def _wake_all(self) -> None:
        self._buffer.begun.set()
        self._buffer.changed.set()

    # --- reading ----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self

    async def __anext__(self) -> Event[T]:
        """The next change. Raises Compacted and other errors that end the watch; DecodeFailed, which does
        not end it: ``resume`` is behind that event, and iteration may go on."""
        self._begin(START_TIMEOUT_S)
        buffer = self._buffer
        while not self._closed:
            event = buffer.take()
            if event is not None:
                return self._event(*event)
            if self._error is not None:
                raise self._error
            buffer.changed.clear()
            await buffer.changed.wait()
        raise StopAsyncIteration

    async def next(self, timeout_s: float | None = None) -> Event[T] | None:
        """The next change; None when there was none for ``timeout_s`` seconds (None = wait for ever). Raises
        as iteration, and ClientClosed when the watch is closed."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.__anext__()
        except TimeoutError:
            return None
        except StopAsyncIteration:
            raise ClientClosed("the watch is closed") from None

    def _event(self, kind: int, key: str, version: int, raw: Any) -> Event[T]:
        if kind == PUT:
            if raw is None:
                return Event("put", key, version)
            record = raw if isinstance(raw, Record) else unpack_record(raw)
            return Event("put", key, version, decoded(self._codec, key, record))
        return Event("expire" if kind == EXPIRE else "delete", key, version)

    @property
    def waiting(self) -> int:
        """How many changes can be taken without waiting."""
        return self._buffer.count

    @property
    def resume(self) -> str | None:
        """Where the reader is: pass it as ``after`` to go on behind the last event that was taken, in
        another process too. None before the watch has begun everywhere."""
        position = self._source.delivered if self._source is not None else self._after
        return encode_resume(position) if position is not None else None

    # --- following --------------------------------------------------------------------------

    async def _follow(self, until: float) -> None:
        """Follow, one way or the other, until the watch ends."""
        wanted, dispatcher = self._wanted, self._wanted.dispatcher
        position = self._after
        try:
            await dispatcher.ready(until)
            around = wanted.is_cut_off()
            while True:
                source: Source = (RouterWatch if around else Strands)(wanted, self._buffer, position)
                self._source = source
                try:
                    await source.run()
                finally:
                    await source.close()
                await self._buffer.drained()
                position = source.delivered
                around = not dispatcher.direct or not around
                log.info(
                    "the watch of %s goes %s",
                    wanted.namespace,
                    "through the router" if around else "directly",
                )
        except MetastoreError as e:
            self._error = e
        except Exception as e:
            log.exception("a watch of namespace %s failed", wanted.namespace)
            self._error = InternalError(f"the watch failed: {type(e).__name__}: {e}")
        self._wake_all()
