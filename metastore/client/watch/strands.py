"""A watch that goes to the nodes: one server-side watch per partition.

It covers one range of storage keys, or (a whole namespace) the ring, and is cut into *strands*, one
per partition. Each stands at a version, follows its partition's leader, and goes on from its version
when the connection or the leader is lost, or when the partition moves or is split: every change comes
once, in order for each key. When the reader's buffer is full, strands are let go, and resumed when it
has room.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from metastore.client.watch.positions import Position
from metastore.errors import (
    ClientClosed,
    Compacted,
    HistoryChanged,
    InternalError,
    InvalidRequest,
    MetastoreError,
    Moved,
    NotLeader,
    Unavailable,
    WrongRouting,
)
from metastore.keys import END_OF_RING, end_point, hash_point, next_key, prefix_routing_key, storage_key
from metastore.routing.connection import NodeConnection
from metastore.routing.failures import Malformed
from metastore.wire.client_messages import WATCH_ANY

if TYPE_CHECKING:
    from metastore.client.watch.subscription import Buffer, Wanted

log = logging.getLogger("metastore.client")

RETRY_S: Final = (0.02, 1.0)
#: how long a strand goes without a word before the router, if there is one, is asked instead
PATIENCE_S: Final = 3.0
#: a watch ends when so many times, without a change in between, what nodes told of it was not the protocol
MAX_MALFORMED: Final = 8


class Mark:
    """Belongs to a piece of the buffer: once its events are taken, ``strands`` are at ``version``."""

    __slots__ = ("strands", "version")

    def __init__(self, strand: Strand, version: int) -> None:
        self.strands = [strand]
        self.version = version


class Strand:
    """One range within one partition. ``version``: up to where changes were put into the buffer, None
    before the first word of a server; ``delivered``: up to where the reader has taken them; ``marks``:
    of its pieces in the buffer, the one being read included.

    A version holds for every point of the range, whoever has it later: partitions are split only, a node tells
    none beyond the entry that gave part of the range away, and up to there the halves count alike (R18)."""

    __slots__ = (
        "delivered",
        "end",
        "failing_since",
        "heard",
        "malformed",
        "malformed_at",
        "marks",
        "start",
        "started",
        "task",
        "version",
    )

    def __init__(self, start: bytes, end: bytes, version: int | None) -> None:
        self.start, self.end = start, end
        self.version = version
        self.delivered = version
        self.marks: deque[Mark] = deque()
        self.started = False
        self.heard = False
        self.failing_since = 0.0
        #: how often what was told of it was not the protocol, and at which version
        self.malformed = 0
        self.malformed_at: int | None = None
        self.task: asyncio.Task[None] | None = None


class Strands:
    """See the module. ``run`` it once; then ``close`` it."""

    def __init__(self, wanted: Wanted, buffer: Buffer, after: Position | None) -> None:
        self._wanted = wanted
        self._buffer = buffer
        self._after = after
        self._dispatcher = wanted.dispatcher
        self._prefix = wanted.namespace.encode() + b"\0" + wanted.prefix
        self._rule = 0
        self._strands: list[Strand] = []
        self._outcome: asyncio.Future[None]

    @property
    def delivered(self) -> Position | None:
        """Where the reader is; None before the watch has begun everywhere."""
        if not self._strands:
            return self._after
        position: Position = []
        for strand in sorted(self._strands, key=lambda s: s.start):
            if strand.delivered is None:
                return None
            position.append((strand.start[:8], strand.delivered))
        return position

    async def run(self) -> None:
        """Follow all strands. Returns when the way through the router should be taken; raises what
        ends the watch."""
        self._outcome = asyncio.get_running_loop().create_future()
        self._make_strands()
        await self._outcome

    async def close(self) -> None:
        tasks = [s.task for s in self._strands if s.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def took(self, mark: Mark, version: int, last: bool) -> None:
        """The reader has taken an event of a piece; ``last``: all of them."""
        for strand in mark.strands:
            if last:
                strand.marks.popleft()
                assert strand.version is not None
                strand.delivered = mark.version if strand.marks else strand.version
            else:
                strand.delivered = version

    # --- ranges -----------------------------------------------------------------------------

    def _make_strands(self) -> None:
        """Raises InvalidRequest when the resume token is of something else."""
        wanted, table, after = self._wanted, self._dispatcher.table, self._after
        namespace = wanted.namespace.encode()
        self._rule = rule = table.rule(wanted.namespace)
        if wanted.exact:
            start = storage_key(wanted.namespace, wanted.prefix.decode(), rule)
            self._follow_one(start, start + b"\0")
            return
        routing = prefix_routing_key(wanted.prefix, rule)
        if routing is not None:
            start = hash_point(namespace, routing) + self._prefix
            self._follow_one(start, next_key(start))
            return
        cuts: list[tuple[bytes, int | None]]
        if after is None:
            cuts = [(p.lo.to_bytes(8, "big"), None) for p in table.in_order()]
        else:
            cuts = list(after)
            if cuts[0][0] != bytes(8):
                raise InvalidRequest(
                    "the resume token is of a listing within one directory, not of a namespace"
                )
        for number, (start, version) in enumerate(cuts):
            end = cuts[number + 1][0] if number + 1 < len(cuts) else END_OF_RING
            self._follow(start, end, version)

    def _follow_one(self, start: bytes, end: bytes) -> None:
        if self._after is not None and [p for p, _ in self._after] != [start[:8]]:
            raise InvalidRequest("the resume token is of another prefix or namespace")
        self._follow(start, end, self._after[0][1] if self._after else None)

    def _follow(self, start: bytes, end: bytes, version: int | None) -> Strand:
        strand = Strand(start, end, version)
        self._strands.append(strand)
        strand.task = asyncio.get_running_loop().create_task(self._run(strand))
        return strand

    def _narrow(self, strand: Strand) -> int:
        """The partition that the strand begins in; what lies in others becomes strands of their own
        (a partition was split), which are where the reader is in what is in the buffer too."""
        placement = self._dispatcher.table.route(strand.start)
        end = end_point(placement.hi)
        if end < strand.end:
            rest = self._follow(end, strand.end, strand.version)
            rest.delivered, rest.started = strand.delivered, strand.started
            for mark in strand.marks:
                mark.strands.append(rest)
            rest.marks.extend(strand.marks)
            strand.end = end
        return placement.id

    # --- following --------------------------------------------------------------------------

    async def _run(self, strand: Strand) -> None:
        try:
            await self._keep_following(strand)
        except MetastoreError as e:
            self._finish(e)
        except Exception as e:
            log.exception("a watch of namespace %s failed", self._wanted.namespace)
            self._finish(InternalError(f"the watch failed: {type(e).__name__}: {e}"))

    def _finish(self, error: MetastoreError | None) -> None:
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    async def _keep_following(self, strand: Strand) -> None:
        dispatcher, loop = self._dispatcher, asyncio.get_running_loop()
        pause, turn = RETRY_S[0], 0
        while not dispatcher.closed:
            try:
                await self._buffer.room.wait()
                if self._is_cut_off(strand):
                    self._finish(None)
                    return
                await self._subscribe(strand, turn)
                continue
            except (Compacted, HistoryChanged, InvalidRequest):
                raise
            except WrongRouting:
                await self._other_rule(strand)
                continue
            except NotLeader as e:
                # of the partition that was asked: by now the strand may be in one split off it
                leader, epoch = e.detail.get("leader"), e.detail.get("epoch", 0)
                if not dispatcher.table.apply_hint(e.detail.get("partition", -1), leader, epoch):
                    turn += 1
                    dispatcher.refresh_soon()
            except Moved as e:
                if not dispatcher.table.learn_plain(e.detail.get("family")):
                    await dispatcher.refresh()
            except MetastoreError as e:
                turn += 1
                log.debug("watch of %s: %s", self._wanted.namespace, e.message)
                dispatcher.refresh_soon()
                if isinstance(e, Malformed):
                    self._count_malformed(strand, e)
            if strand.heard:
                pause, turn, strand.failing_since = RETRY_S[0], 0, 0.0
                strand.heard = False
            else:
                pause = min(pause * 2, RETRY_S[1])
            strand.failing_since = strand.failing_since or loop.time()
            if dispatcher.router is not None and loop.time() - strand.failing_since > PATIENCE_S:
                dispatcher.detours.add(
                    a for a in self._leader(strand) if dispatcher.open_connection(a) is None
                )
                self._finish(None)
                return
            await asyncio.sleep(random.uniform(0, pause))
        raise ClientClosed("the client is closed")

    def _count_malformed(self, strand: Strand, error: Malformed) -> None:
        """Nothing of a malformed frame is taken, so the strand may go on where it is, with another node. Raises
        Unavailable when nobody tells it better."""
        if strand.version != strand.malformed_at:
            strand.malformed, strand.malformed_at = 0, strand.version
        strand.malformed += 1
        if strand.malformed >= MAX_MALFORMED:
            raise Unavailable(
                f"the watch of namespace {self._wanted.namespace} cannot go on: {MAX_MALFORMED} times in a row what "
                f"nodes told was not the protocol, last: {error.message}",
                retry_after_s=1,
            )

    async def _other_rule(self, strand: Strand) -> None:
        """The namespace was created with another routing rule than was known here, so there was nothing in it
        under the other: what has not begun yet begins anew. Raises WrongRouting."""
        await self._dispatcher.refresh()
        if self._dispatcher.table.rule(self._wanted.namespace) == self._rule:
            await asyncio.sleep(RETRY_S[1] * random.random())
        elif strand.version is not None:
            raise WrongRouting(
                f"namespace {self._wanted.namespace} was created, with a routing rule of its own, after this watch "
                "began: list, and watch again"
            )
        else:
            self._strands.clear()
            self._make_strands()
            raise asyncio.CancelledError

    def _leader(self, strand: Strand) -> list[str]:
        table = self._dispatcher.table
        address = table.address(table.route(strand.start).leader)
        return [address] if address is not None else []

    def _is_cut_off(self, strand: Strand) -> bool:
        """Whether who would tell is known to be reached through the router only."""
        detours = self._dispatcher.detours.addresses
        return bool(detours) and any(a in detours for a in self._leader(strand))

    def _addresses(self, partition: int, turn: int) -> list[str]:
        """Whom to ask, in order."""
        table = self._dispatcher.table
        placement = table.partitions[partition]
        nodes = [*([placement.leader] if placement.leader else []), *placement.replicas]
        if self._wanted.flags & WATCH_ANY:
            nodes = random.sample(placement.replicas, len(placement.replicas))
        addresses = [a for a in map(table.address, dict.fromkeys(nodes)) if a is not None]
        if addresses:
            turn %= len(addresses)
        return addresses[turn:] + addresses[:turn]

    async def _connect(self, partition: int, turn: int) -> NodeConnection:
        dispatcher = self._dispatcher
        addresses = self._addresses(partition, turn)
        error: MetastoreError | None = None
        for address in sorted(addresses, key=dispatcher.is_silent):
            try:
                return await dispatcher.connect(address)
            except MetastoreError as e:
                error = e
        raise error or Unavailable(f"no replica of partition {partition} has a known address")

    async def _subscribe(self, strand: Strand, turn: int) -> None:
        """Follow one server-side watch until the buffer is full; raises when it ends otherwise."""
        partition = self._narrow(strand)
        connection = await self._connect(partition, turn)
        ended: asyncio.Future[MetastoreError | None] = asyncio.get_running_loop().create_future()
        told = -1

        def on_events(version: int, raw: list[Any]) -> None:
            nonlocal told
            if ended.done():
                return
            if raw and raw[0][2] <= told:  # else what comes now would be passed over, in silence
                text = f"a change at version {raw[0][2]} was told after all up to {told}"
                ended.set_result(Malformed(text, sent=True))
                return
            told = max(told, version)
            if raw and self._buffer.full:
                self._buffer.room.clear()
                ended.set_result(None)
                return
            try:
                self._take(strand, version, raw)
            except ValueError as e:
                ended.set_result(Malformed(f"a key that is told is none: {e}", sent=True))

        def on_end(error: MetastoreError) -> None:
            if not ended.done():
                ended.set_result(error)

        body = [partition, strand.start, strand.end, strand.version, self._wanted.flags, self._prefix]
        watch_id = connection.watch(body, on_events, on_end)
        try:
            error = await ended
        finally:
            connection.unwatch(watch_id)
        if error is not None:
            self._dispatcher.retries += 1
            raise error

    def _take(self, strand: Strand, version: int, raw: list[Any]) -> None:
        """What a server told: everything up to ``version``."""
        events = [
            (kind, lkey[lkey.index(b"\0", 8) + 1 :].decode(), at, packed)
            for kind, lkey, at, packed in raw
            if strand.version is None or at > strand.version
        ]
        strand.version = version if strand.version is None else max(version, strand.version)
        strand.heard = True
        if events:
            mark = Mark(strand, strand.version)
            strand.marks.append(mark)
            self._buffer.put(self, mark, events)
        elif not strand.marks:
            strand.delivered = strand.version
        if not strand.started:
            strand.started = True
            if all(s.started for s in self._strands):
                self._buffer.begun.set()
