"""Watches: one stream of changes, whichever way it comes.

A watch goes to the nodes (``direct_watch``) or, when they cannot be reached, through the router
(``router_watch``); each continues where the reader of the other one was. What the reader has not taken
yet is bounded, in events and in bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic

from typing_extensions import TypeVar

from metastore.client.codecs import BYTES, Codec, decoded
from metastore.client.results import Event
from metastore.client.watch.direct_watch import DirectWatch
from metastore.client.watch.resume_tokens import decode_resume, encode_resume
from metastore.client.watch.router_watch import RouterWatch
from metastore.client.watch.subscription import MAX_BUFFER_BYTES, Buffer, Source, SubscriptionFilter
from metastore.errors import ClientClosed, InternalError, InvalidRequest, MetastoreError, Unavailable
from metastore.history import Version
from metastore.operations import EXPIRE, PUT
from metastore.records import Record, unpack_record
from metastore.wire.client_messages import WATCH_ANY, WATCH_KEYS

if TYPE_CHECKING:
    from metastore.routing.dispatcher import Dispatcher

__all__ = ["AsyncWatcher", "decode_resume", "encode_resume"]

log = logging.getLogger("metastore.client")

START_TIMEOUT_S: Final = 30.0
MAX_BUFFER: Final = 1_000_000

T = TypeVar("T", default=bytes)


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
        self._filter = SubscriptionFilter(dispatcher, namespace, prefix, flags, exact)
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
            raise Unavailable(
                f"the watch did not begin within {timeout_s} s: a partition has no leader, or cannot be reached; try again",
                retry_after_s=1,
            ) from None
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

    def _event(self, kind: int, key: str, version: Version, raw: Any) -> Event[T]:
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
        watch_filter, dispatcher = self._filter, self._filter.dispatcher
        position = self._after
        try:
            await dispatcher.ready(until)
            around = watch_filter.is_cut_off()
            while True:
                source: Source = (RouterWatch if around else DirectWatch)(
                    watch_filter, self._buffer, position
                )
                self._source = source
                try:
                    await source.run()
                finally:
                    await source.close()
                await self._buffer.drained()
                position = source.delivered
                around = not dispatcher.direct or not around
                log.info(
                    "the watch of namespace %s follows changes %s",
                    watch_filter.namespace,
                    "through the router" if around else "from the nodes",
                )
        except MetastoreError as e:
            self._error = e
        except Exception as e:
            log.exception("a watch of namespace %s failed", watch_filter.namespace)
            self._error = InternalError(f"the watch failed: {type(e).__name__}: {e}")
        self._wake_all()
