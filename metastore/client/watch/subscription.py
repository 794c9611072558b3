"""The subscription filter of a watch, and the buffer of events that its reader has not taken yet. Both ways of following share them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from metastore.client.watch.resume_tokens import Position
from metastore.history import Version
from metastore.keys import hash_point, prefix_routing_key, storage_key_of
from metastore.records import Record

if TYPE_CHECKING:
    from metastore.routing.dispatcher import Dispatcher

MAX_BUFFER_BYTES: Final = 8 << 20
EVENT_BYTES: Final = 200

RawEvent = tuple[int, str, Version, Any]
"""``(kind, key, version, record: packed, or a Record, or None)``."""


@dataclass(frozen=True, slots=True)
class SubscriptionFilter:
    """What is watched. ``exact``: the one key that ``prefix`` is."""

    dispatcher: Dispatcher
    namespace: str
    prefix: bytes
    flags: int
    exact: bool

    def is_cut_off(self) -> bool:
        """Whether a leader of the watched range is known to be reachable through the router only."""
        table, unreachable = self.dispatcher.table, self.dispatcher.unreachable.addresses
        if not self.dispatcher.direct or not unreachable:
            return not self.dispatcher.direct
        rule = table.rule(self.namespace)
        routing = prefix_routing_key(self.prefix, rule)
        placements = table.in_order()
        if self.exact:
            placements = [table.route(storage_key_of(self.namespace, self.prefix.decode(), rule))]
        elif routing is not None:
            placements = [table.route(hash_point(self.namespace.encode(), routing))]
        return any(table.address(p.leader) in unreachable for p in placements)


class Source(Protocol):
    """One way that events come. ``delivered``: the reader's position in the events of this source."""

    @property
    def delivered(self) -> Position | None: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    def took(self, mark: Any, version: Version, last: bool) -> None: ...


class Buffer:
    """The events that the reader has not taken yet, in *pieces*. ``room``: set while more may come; ``begun``: set
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
