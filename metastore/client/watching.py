"""Watches: one stream of changes out of one server-side watch per partition.

A watch covers one range of storage keys, or (a whole namespace) the ring. It is cut into *strands*,
one per partition; each stands at a version, follows its partition's leader, and goes on from its
version when the connection or the leader is lost, or when the partition moves or is split: every
change comes once, in order for each key. What the reader has not taken yet is bounded: when the
buffer is full, strands are let go, and resumed when it has room.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from metastore.client.connection import ConnectionLost, NodeConnection
from metastore.client.results import Event
from metastore.errors import (
    Compacted,
    InvalidRequest,
    MetastoreError,
    Moved,
    NotLeader,
    Overloaded,
    Unavailable,
    WrongRouting,
)
from metastore.keys import END_OF_RING, hash_point, next_key, prefix_routing_key, split_storage_key
from metastore.records import unpack_record
from metastore.wire.client_messages import EXPIRE, PUT, WATCH_ANY, WATCH_KEYS

if TYPE_CHECKING:
    from metastore.client.dispatch import Dispatcher

RETRY_S: Final = (0.02, 1.0)
MAX_STRANDS: Final = 65_536
START_TIMEOUT_S: Final = 30.0
MAX_BUFFER_BYTES: Final = 8 << 20
#: forms of a resume token
_EVEN, _POINTS = 1, 2

Position = list[tuple[bytes, int]]
"""``[(first point, version), ...]`` in order of points: each holds up to the next one's point."""


def _even(count: int) -> list[bytes]:
    """The first points of ``count`` equal ranges."""
    return [(i * ((1 << 64) // count)).to_bytes(8, "big") for i in range(count)]


def encode_resume(position: Position) -> str:
    """A position as text, short: it comes with every event. ``_EVEN, log2 of the count`` (partitions
    as a cluster is made with them), or ``_POINTS`` and each version behind its point; versions as
    groups of 7 bits, the lowest first."""
    points = [point for point, _ in position]
    count = len(points)
    even = not count & (count - 1) and (count == 1 or points[1] == _even(count)[1]) and points == _even(count)
    raw = bytearray((_EVEN, count.bit_length() - 1) if even else (_POINTS,))
    for point, version in position:
        if not even:
            raw += point
        while version > 127:
            raw.append(version & 127 | 128)
            version >>= 7
        raw.append(version)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_resume(resume: str) -> Position:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(resume.encode("ascii") + b"=" * (-len(resume) % 4))
        even = raw[0] == _EVEN
        if (not even and raw[0] != _POINTS) or (even and raw[1] > 16):
            raise ValueError
        points = _even(1 << raw[1]) if even else []
        at = 2 if even else 1
        position: Position = []
        while at < len(raw) and len(position) < MAX_STRANDS:
            if not even:
                points.append(raw[at : at + 8])
                at += 8
            version = shift = 0
            while True:
                version |= (raw[at] & 127) << shift
                shift += 7
                at += 1
                if raw[at - 1] < 128:
                    break
            position.append((points[len(position)], version))
        if at != len(raw) or len(position) != len(points) or not points or points != sorted(set(points)):
            raise ValueError
        if not all(v < 1 << 63 for _, v in position) or encode_resume(position) != resume:
            raise ValueError
    except (binascii.Error, ValueError, IndexError):
        raise InvalidRequest(f"resume token {resume!r:.80} was not made by this store") from None
    return position


class _Strand:
    """One range within one partition. ``version``: up to where changes were put into the buffer, None
    before the first word of a server; ``delivered``: up to where the reader has taken them;
    ``queued``: pieces of it in the buffer, the one being read included."""

    __slots__ = ("delivered", "end", "heard", "queued", "start", "started", "task", "version")

    def __init__(self, start: bytes, end: bytes, version: int | None) -> None:
        self.start, self.end = start, end
        self.version = version
        self.delivered = version
        self.queued = 0
        self.started = False
        self.heard = False
        self.task: asyncio.Task[None] | None = None


class Watcher:
    """An async iterator of events; also an async context manager, which waits until the watch has
    begun everywhere and ends it on leaving. Made by ``Namespace.watch``."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        namespace: str,
        prefix: bytes,
        after: str | None,
        keys_only: bool,
        any_replica: bool,
        buffer: int,
        buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> None:
        self._dispatcher = dispatcher
        self._namespace = namespace.encode()
        self._name = namespace
        self._prefix = prefix
        self._after = decode_resume(after) if after is not None else None
        self._flags = (WATCH_KEYS if keys_only else 0) | (WATCH_ANY if any_replica else 0)
        self._limit, self._limit_bytes = buffer, buffer_bytes
        self._strands: list[_Strand] = []
        #: (strand, version, events, their bytes): the reader has all up to version once it has taken them
        self._queue: deque[tuple[_Strand, int, list[Event], int]] = deque()
        self._queued = self._queued_bytes = 0
        self._ready: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._error: MetastoreError | None = None
        self._begun: asyncio.Task[None] | None = None
        self._all_started = asyncio.Event()
        self._closed = False

    # --- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Watcher:
        await self.started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def started(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every change from now on will be seen. Raises Unavailable when that takes
        longer than ``timeout_s``, Compacted, InvalidRequest."""
        self._begin(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_started.wait()
        except TimeoutError:
            raise Unavailable(f"the watch did not begin within {timeout_s} s", retry_after_s=1) from None
        if self._error is not None:
            raise self._error

    def _begin(self, timeout_s: float) -> None:
        if self._begun is None:
            loop = asyncio.get_running_loop()
            self._begun = loop.create_task(self._cut(loop.time() + timeout_s))

    async def close(self) -> None:
        """End the watch; iteration ends."""
        self._closed = True
        tasks = [s.task for s in self._strands if s.task is not None]
        if self._begun is not None:
            tasks.append(self._begun)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wake.set()

    # --- reading ----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next change. Raises Compacted and other errors that end the watch."""
        self._begin(START_TIMEOUT_S)
        while not self._ready:
            if self._queue:
                strand, version, events, size = self._queue.popleft()
                self._queued -= len(events)
                self._queued_bytes -= size
                if self._queued <= self._limit // 2 and self._queued_bytes <= self._limit_bytes // 2:
                    self._room.set()
                self._ready.extend(events)
                self._current = strand, version
            elif self._error is not None:
                raise self._error
            elif self._closed:
                raise StopAsyncIteration
            else:
                self._wake.clear()
                await self._wake.wait()
        event = self._ready.popleft()
        strand, version = self._current
        if self._ready:
            strand.delivered = event.version
        else:
            strand.queued -= 1
            strand.delivered = version if strand.queued else strand.version
        return event

    @property
    def waiting(self) -> int:
        """How many changes can be taken without waiting."""
        return len(self._ready) + self._queued

    @property
    def resume(self) -> str | None:
        """Where the reader is: pass it as ``after`` to go on from here, in another process too. None
        before the watch has begun everywhere."""
        strands = sorted(self._strands, key=lambda s: s.start)
        position = [(s.start[:8], s.delivered) for s in strands if s.delivered is not None]
        return encode_resume(position) if strands and len(position) == len(strands) else None

    # --- strands ----------------------------------------------------------------------------

    async def _cut(self, until: float) -> None:
        """Make the strands, once the topology is known."""
        try:
            await self._dispatcher.ready(until)
            self._make_strands()
        except MetastoreError as e:
            self._end(e)

    def _make_strands(self) -> None:
        table = self._dispatcher.table
        routing = prefix_routing_key(self._prefix, table.rule(self._name))
        wanted = self._namespace + b"\0" + self._prefix
        if routing is not None:
            start = hash_point(self._namespace, routing) + wanted
            if self._after is not None and [p for p, _ in self._after] != [start[:8]]:
                raise InvalidRequest("the resume token is of another prefix or namespace")
            self._follow(start, next_key(start), self._after[0][1] if self._after else None)
            return
        cuts: list[tuple[bytes, int | None]]
        if self._after is None:
            cuts = [(p.lo.to_bytes(8, "big"), None) for p in table.in_order()]
        else:
            cuts = list(self._after)
            if cuts[0][0] != bytes(8):
                raise InvalidRequest(
                    "the resume token is of a listing within one directory, not of a namespace"
                )
        for number, (start, version) in enumerate(cuts):
            end = cuts[number + 1][0] if number + 1 < len(cuts) else END_OF_RING
            self._follow(start, end, version)

    def _follow(self, start: bytes, end: bytes, version: int | None) -> None:
        strand = _Strand(start, end, version)
        self._strands.append(strand)
        strand.task = asyncio.get_running_loop().create_task(self._run(strand))

    def _end(self, error: MetastoreError) -> None:
        if self._error is None:
            self._error = error
        self._wake.set()
        self._all_started.set()

    async def _run(self, strand: _Strand) -> None:
        pause = RETRY_S[0]
        try:
            while True:
                try:
                    await self._room.wait()
                    await self._subscribe(strand)
                    continue
                except (Compacted, InvalidRequest):
                    raise
                except WrongRouting:
                    # nothing can have been written under another rule: begin anew under the right one
                    await self._dispatcher.refresh()
                    raise
                except NotLeader as e:
                    table = self._dispatcher.table
                    partition = table.route(strand.start).id
                    table.apply_hint(partition, e.detail.get("leader"), e.detail.get("epoch", 0))
                except Moved:
                    await self._dispatcher.refresh()
                except MetastoreError as e:
                    if isinstance(e, ConnectionLost | Unavailable | Overloaded):
                        self._dispatcher.refresh_soon()
                pause = RETRY_S[0] if strand.heard else min(pause * 2, RETRY_S[1])
                strand.heard = False
                await asyncio.sleep(random.uniform(0, pause))
        except MetastoreError as e:
            self._end(e)

    def _narrow(self, strand: _Strand) -> int:
        """The partition that the strand begins in; what lies in others becomes strands of their own
        (a partition was split)."""
        table = self._dispatcher.table
        placement = table.route(strand.start)
        end = END_OF_RING if placement.hi >> 64 else placement.hi.to_bytes(8, "big")
        if end < strand.end:
            self._follow(end, strand.end, strand.version)
            strand.end = end
        return placement.id

    async def _subscribe(self, strand: _Strand) -> None:
        """Follow one server-side watch until the buffer is full; raises when it ends otherwise."""
        dispatcher = self._dispatcher
        partition = self._narrow(strand)
        connection = await self._connect(partition)
        ended: asyncio.Future[MetastoreError | None] = asyncio.get_running_loop().create_future()

        def on_events(version: int, raw: list[Any]) -> None:
            if ended.done():
                return
            self._take(strand, version, raw)
            if self._queued > self._limit or self._queued_bytes > self._limit_bytes:
                self._room.clear()
                ended.set_result(None)

        def on_end(error: MetastoreError) -> None:
            if not ended.done():
                ended.set_result(error)

        wanted = self._namespace + b"\0" + self._prefix
        body = [partition, strand.start, strand.end, strand.version, self._flags, wanted]
        watch_id = connection.watch(body, on_events, on_end)
        try:
            error = await ended
        finally:
            connection.unwatch(watch_id)
        if error is not None:
            dispatcher.retries += 1
            raise error

    async def _connect(self, partition: int) -> NodeConnection:
        dispatcher = self._dispatcher
        placement = dispatcher.table.partitions[partition]
        order = [*([placement.leader] if placement.leader else []), *placement.replicas]
        if self._flags & WATCH_ANY:
            order = random.sample(placement.replicas, len(placement.replicas))
        error: MetastoreError | None = None
        for node in dict.fromkeys(order):
            address = dispatcher.table.address(node)
            if address is not None:
                try:
                    return await dispatcher.connect(address)
                except MetastoreError as e:
                    error = e
        raise error or Unavailable(f"no replica of partition {partition} has a known address")

    def _take(self, strand: _Strand, version: int, raw: list[Any]) -> None:
        """What a server told: everything up to ``version``."""
        events: list[Event] = []
        size = 0
        for kind, lkey, at, record in raw:
            if strand.version is not None and at <= strand.version:
                continue
            size += len(lkey) + len(record or b"")
            name = "put" if kind == PUT else "expire" if kind == EXPIRE else "delete"
            key = split_storage_key(lkey)[1]
            events.append(Event(name, key, at, unpack_record(record) if record is not None else None))  # type: ignore[arg-type]
        strand.version = version if strand.version is None else max(version, strand.version)
        strand.heard = True
        if events:
            strand.queued += 1
            self._queue.append((strand, strand.version, events, size))
            self._queued += len(events)
            self._queued_bytes += size
            self._wake.set()
        elif not strand.queued:
            strand.delivered = strand.version
        if not strand.started:
            strand.started = True
            if all(s.started for s in self._strands):
                self._all_started.set()
