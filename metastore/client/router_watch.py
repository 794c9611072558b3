"""A watch that goes through the router, by server-sent events, for what cannot go to the nodes."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import TYPE_CHECKING, Any, Final

from metastore.client.positions import Position, decode_resume, encode_resume
from metastore.errors import (
    ClientClosed,
    Compacted,
    HistoryChanged,
    InvalidRequest,
    MetastoreError,
    Unavailable,
)
from metastore.keys import prefix_routing_key
from metastore.records import Record
from metastore.wire.client_messages import DELETE, EXPIRE, PUT, WATCH_KEYS

if TYPE_CHECKING:
    from metastore.client.watching import Buffer, Wanted

RETRY_S: Final = (0.05, 1.0)
LOOK_S: Final = 1.0
_KINDS: Final = {"put": PUT, "delete": DELETE, "expire": EXPIRE}


class RouterWatch:
    """See the module. ``run`` it once; then ``close`` it."""

    def __init__(self, wanted: Wanted, buffer: Buffer, after: Position | None) -> None:
        self._wanted = wanted
        self._buffer = buffer
        #: up to where events were put into the buffer, and taken out of it
        self._position = after
        self._delivered = after
        self._queued = 0
        self._begun = False
        assert wanted.dispatcher.router is not None
        self._router = wanted.dispatcher.router

    @property
    def delivered(self) -> Position | None:
        return self._delivered

    def took(self, mark: Position, version: int, last: bool) -> None:
        """The reader has taken an event, after which it is at ``mark``."""
        self._queued -= 1
        self._delivered = mark if self._queued else self._position

    async def close(self) -> None:
        pass

    async def run(self) -> None:
        """Follow. Returns when the nodes should be asked themselves; raises what ends the watch."""
        wanted, dispatcher = self._wanted, self._wanted.dispatcher
        rule = dispatcher.table.rule(wanted.namespace)
        if wanted.exact and self._position and prefix_routing_key(wanted.prefix, rule) is None:
            raise Unavailable(
                "a watch of one key cannot go on through the router: begin anew", retry_after_s=0
            )
        reading = asyncio.ensure_future(self._read())
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=LOOK_S)
                if self._begun and not wanted.is_cut_off():
                    return
            reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        pause = RETRY_S[0]
        while not self._wanted.dispatcher.closed:
            heard = False
            try:
                await self._buffer.room.wait()
                async for message in self._router.events(self._wanted.namespace, self._params()):
                    self._begun = True
                    self._buffer.begun.set()
                    if message is not None:
                        heard = True
                        self._take(*message)
                        await self._buffer.room.wait()
            except (Compacted, HistoryChanged, InvalidRequest):
                raise
            except MetastoreError as e:
                if self._begun and self._position is None:
                    raise Unavailable(
                        "the watch was cut off before it had a position: list, and watch again",
                        retry_after_s=0,
                    ) from e
            if not heard and self._wanted.dispatcher.direct:
                return
            pause = RETRY_S[0] if heard else min(pause * 2, RETRY_S[1])
            await asyncio.sleep(random.uniform(0, pause))
        raise ClientClosed("the client is closed")

    def _params(self) -> dict[str, str]:
        params = {"prefix": self._wanted.prefix.decode()}
        if self._position is not None:
            params["after"] = encode_resume(self._position)
        if self._wanted.flags & WATCH_KEYS:
            params["keys_only"] = "true"
        return params

    def _take(self, token: str, event: Any) -> None:
        """One message of the router: a change, or None, and where the watch is after it."""
        self._position = decode_resume(token)
        if isinstance(event, dict) and not (
            self._wanted.exact and event["key"] != self._wanted.prefix.decode()
        ):
            self._queued += 1
            kind = _KINDS[event["kind"]]
            record = _record(event) if kind == PUT and not self._wanted.flags & WATCH_KEYS else None
            self._buffer.put(self, self._position, [(kind, str(event["key"]), int(event["version"]), record)])
            if self._buffer.full:
                self._buffer.room.clear()
        elif not self._queued:
            self._delivered = self._position


def _record(event: dict[str, Any]) -> Record:
    raw = event.get("value")
    value = raw.encode() if isinstance(raw, str) else base64.b64decode(event["value_base64"])
    return Record(
        int(event["version"]),
        int(event["created"]),
        value,
        str(event.get("content_type") or ""),
        int(event.get("ttl_ms") or 0),
        bool(event.get("counter")),
    )
