"""A watch that goes through the router, by server-sent events, for what cannot go to the nodes."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import TYPE_CHECKING, Any, Final

from metastore.client.watch.resume_tokens import Position, decode_resume, encode_resume
from metastore.elements import is_count
from metastore.errors import (
    ClientClosed,
    Compacted,
    HistoryChanged,
    InvalidRequest,
    MetastoreError,
    Unavailable,
)
from metastore.history import Version
from metastore.keys import MAX_VALUE_BYTES, prefix_routing_key
from metastore.operations import DELETE, EXPIRE, PUT
from metastore.records import Record
from metastore.routing.failures import Malformed
from metastore.wire.client_messages import WATCH_KEYS

if TYPE_CHECKING:
    from metastore.client.watch.subscription import Buffer, RawEvent, SubscriptionFilter

RETRY_S: Final = (0.05, 1.0)
LOOK_S: Final = 1.0
#: the watch ends when so many times in a row the router's message was malformed
MAX_MALFORMED: Final = 8
_KINDS: Final = {"put": PUT, "delete": DELETE, "expire": EXPIRE}


class RouterWatch:
    """See the module. ``run`` it once; then ``close`` it."""

    def __init__(self, watch_filter: SubscriptionFilter, buffer: Buffer, after: Position | None) -> None:
        self._filter = watch_filter
        self._buffer = buffer
        #: the positions after the last event that was put into the buffer, and after the last one that the reader took
        self._position = after
        self._delivered = after
        self._queued = 0
        self._begun = False
        assert watch_filter.dispatcher.router is not None
        self._router = watch_filter.dispatcher.router

    @property
    def delivered(self) -> Position | None:
        return self._delivered

    def took(self, mark: Position, version: Version, last: bool) -> None:
        """The reader has taken an event, after which it is at ``mark``."""
        self._queued -= 1
        self._delivered = mark if self._queued else self._position

    async def close(self) -> None:
        pass

    async def run(self) -> None:
        """Follow. Returns when the nodes should be asked themselves; raises what ends the watch."""
        watch_filter, dispatcher = self._filter, self._filter.dispatcher
        rule = dispatcher.table.rule(watch_filter.namespace)
        if watch_filter.exact and self._position and prefix_routing_key(watch_filter.prefix, rule) is None:
            raise Unavailable(
                "a watch of one key cannot be resumed through the router: get the key, and watch again",
                retry_after_s=0,
            )
        reading = asyncio.ensure_future(self._read())
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=LOOK_S)
                if self._begun and not watch_filter.is_cut_off():
                    return
            reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        pause, malformed = RETRY_S[0], 0
        while not self._filter.dispatcher.closed:
            heard = False
            try:
                await self._buffer.room.wait()
                async for message in self._router.events(self._filter.namespace, self._params()):
                    self._begun = True
                    self._buffer.begun.set()
                    if message is not None:
                        self._take(*message)
                        heard, malformed = True, 0
                        await self._buffer.room.wait()
            except (Compacted, HistoryChanged, InvalidRequest):
                raise
            except MetastoreError as e:
                malformed += isinstance(e, Malformed)
                if malformed >= MAX_MALFORMED:
                    raise Unavailable(
                        f"the watch ended: {MAX_MALFORMED} messages in a row from the router were malformed, the last one: {e.message}",
                        retry_after_s=1,
                    ) from None
                if self._begun and self._position is None:
                    raise Unavailable(
                        "the watch was disconnected before it had a position: list, and watch again",
                        retry_after_s=0,
                    ) from e
            if not heard and self._filter.dispatcher.direct:
                return
            pause = RETRY_S[0] if heard else min(pause * 2, RETRY_S[1])
            await asyncio.sleep(random.uniform(0, pause))
        raise ClientClosed("the client is closed")

    def _params(self) -> dict[str, str]:
        params = {"prefix": self._filter.prefix.decode()}
        if self._position is not None:
            params["after"] = encode_resume(self._position)
        if self._filter.flags & WATCH_KEYS:
            params["keys_only"] = "true"
        return params

    def _take(self, token: str, message: Any) -> None:
        """One message of the router: a change, or None, and where the watch is after it. Raises Malformed, after which
        the watch is where it was."""
        keys_only = bool(self._filter.flags & WATCH_KEYS)
        try:
            position = decode_resume(token)
            event = None if message is None else event_of(message, keys_only)
        except (InvalidRequest, ValueError) as e:
            raise Malformed(f"the router's message about a watch is malformed: {e}", sent=True) from None
        self._position = position
        if event is not None and not (self._filter.exact and event[1] != self._filter.prefix.decode()):
            self._queued += 1
            self._buffer.put(self, position, [event])
            if self._buffer.full:
                self._buffer.room.clear()
        elif not self._queued:
            self._delivered = position


def event_of(message: Any, keys_only: bool) -> RawEvent:
    """``(kind, key, version, record)`` of an event of the stream. Raises ValueError."""
    if type(message) is not dict:
        raise ValueError("the event is not a JSON object")
    word, key, version = message.get("kind"), message.get("key"), message.get("version")
    kind = _KINDS.get(word) if type(word) is str else None
    if kind is None or type(key) is not str or not key or not is_count(version):
        raise ValueError("the event has no kind, key and version")
    return kind, key, Version(version), _record(message) if kind == PUT and not keys_only else None


def _record(event: dict[str, Any]) -> Record:
    """Raises ValueError."""
    text, coded = event.get("value"), event.get("value_base64")
    content_type, counter = event.get("content_type", ""), event.get("counter", False)
    created, ttl_ms = event.get("created"), event.get("ttl_ms", 0)
    if type(content_type) is not str or type(counter) is not bool:
        raise ValueError("the event's content_type is not a string, or its counter is not true or false")
    if not is_count(created) or not is_count(ttl_ms):
        raise ValueError("the event's created or ttl_ms is not a number of at least 0")
    if type(text) is str and coded is None:
        value = text.encode()
    elif type(coded) is str and text is None:
        value = base64.b64decode(coded, validate=True)
    else:
        raise ValueError("the event has neither value nor value_base64")
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"the event's value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES}")
    return Record(event["version"], Version(created), value, content_type, ttl_ms, counter)
