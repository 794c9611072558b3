"""A watch that goes to the nodes: one server-side watch per partition.

It covers one range of storage keys, or (a whole namespace) the ring, and is cut into *subscriptions*, one
per partition. Each has received the changes up to a version, follows its partition's leader, and goes on from its version
when the connection or the leader is lost, or when the partition moves or is split: every change comes
once, in order for each key. When the reader's buffer is full, subscriptions are ended, and resumed when it
has room.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from metastore.client.watch.resume_tokens import Position
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
from metastore.history import ResumePoint, Version, resume_after
from metastore.keys import END_OF_RING, end_point, hash_point, next_key, prefix_routing_key, storage_key_of
from metastore.routing.connection import NodeConnection
from metastore.routing.failures import Malformed
from metastore.wire.client_messages import WATCH_ANY

if TYPE_CHECKING:
    from metastore.client.watch.subscription import Buffer, SubscriptionFilter

log = logging.getLogger("metastore.client")

RETRY_S: Final = (0.02, 1.0)
#: how long a subscription goes without a message before the router, if there is one, is asked instead
PATIENCE_S: Final = 3.0
#: a watch ends when so many times, without a change in between, a node's message was malformed
MAX_MALFORMED: Final = 8


class Mark:
    """Belongs to a piece of the buffer: once its events are taken, ``subscriptions`` are at ``version``."""

    __slots__ = ("subscriptions", "version")

    def __init__(self, subscription: PartitionSubscription, version: ResumePoint) -> None:
        self.subscriptions = [subscription]
        self.version = version


class PartitionSubscription:
    """One range within one partition. ``version``: up to where changes were put into the buffer, None
    before the first message of a server; ``delivered``: up to where the reader has taken them; ``marks``:
    of its pieces in the buffer, including the one that is being read.

    A version holds for every point of the range, in whichever partition it is later: partitions are only ever split, a node sends
    no change beyond the entry that split the range, and up to that entry both halves have the same versions (R18)."""

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

    def __init__(self, start: bytes, end: bytes, version: ResumePoint | None) -> None:
        self.start, self.end = start, end
        self.version = version
        self.delivered = version
        self.marks: deque[Mark] = deque()
        self.started = False
        self.heard = False
        self.failing_since = 0.0
        #: how many messages about it were malformed, and at which version
        self.malformed = 0
        self.malformed_at: int | None = None
        self.task: asyncio.Task[None] | None = None


class DirectWatch:
    """See the module. ``run`` it once; then ``close`` it."""

    def __init__(self, watch_filter: SubscriptionFilter, buffer: Buffer, after: Position | None) -> None:
        self._filter = watch_filter
        self._buffer = buffer
        self._after = after
        self._dispatcher = watch_filter.dispatcher
        self._prefix = watch_filter.namespace.encode() + b"\0" + watch_filter.prefix
        self._rule = 0
        self._subscriptions: list[PartitionSubscription] = []
        self._outcome: asyncio.Future[None]

    @property
    def delivered(self) -> Position | None:
        """Where the reader is; None before the watch has begun everywhere."""
        if not self._subscriptions:
            return self._after
        position: Position = []
        for subscription in sorted(self._subscriptions, key=lambda s: s.start):
            if subscription.delivered is None:
                return None
            position.append((subscription.start[:8], subscription.delivered))
        return position

    async def run(self) -> None:
        """Follow all subscriptions. Returns when the way through the router should be taken; raises what
        ends the watch."""
        self._outcome = asyncio.get_running_loop().create_future()
        self._make_subscriptions()
        await self._outcome

    async def close(self) -> None:
        tasks = [s.task for s in self._subscriptions if s.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def took(self, mark: Mark, version: Version, last: bool) -> None:
        """The reader has taken an event of a piece; ``last``: all of them."""
        for subscription in mark.subscriptions:
            if last:
                subscription.marks.popleft()
                assert subscription.version is not None
                subscription.delivered = mark.version if subscription.marks else subscription.version
            else:
                subscription.delivered = resume_after(version)

    # --- ranges -----------------------------------------------------------------------------

    def _make_subscriptions(self) -> None:
        """Raises InvalidRequest when the resume token is of something else."""
        watch_filter, table, after = self._filter, self._dispatcher.table, self._after
        namespace = watch_filter.namespace.encode()
        self._rule = rule = table.rule(watch_filter.namespace)
        if watch_filter.exact:
            start = storage_key_of(watch_filter.namespace, watch_filter.prefix.decode(), rule)
            self._follow_one(start, start + b"\0")
            return
        routing = prefix_routing_key(watch_filter.prefix, rule)
        if routing is not None:
            start = hash_point(namespace, routing) + self._prefix
            self._follow_one(start, next_key(start))
            return
        cuts: list[tuple[bytes, ResumePoint | None]]
        if after is None:
            cuts = [(p.lo.to_bytes(8, "big"), None) for p in table.in_order()]
        else:
            cuts = list(after)
            if cuts[0][0] != bytes(8):
                raise InvalidRequest(
                    "the resume token belongs to a watch within one directory, not of a whole namespace; use it with that prefix"
                )
        for number, (start, version) in enumerate(cuts):
            end = cuts[number + 1][0] if number + 1 < len(cuts) else END_OF_RING
            self._follow(start, end, version)

    def _follow_one(self, start: bytes, end: bytes) -> None:
        if self._after is not None and [p for p, _ in self._after] != [start[:8]]:
            raise InvalidRequest(
                "the resume token belongs to a watch of another prefix or namespace; use it with that one"
            )
        self._follow(start, end, self._after[0][1] if self._after else None)

    def _follow(self, start: bytes, end: bytes, version: ResumePoint | None) -> PartitionSubscription:
        subscription = PartitionSubscription(start, end, version)
        self._subscriptions.append(subscription)
        subscription.task = asyncio.get_running_loop().create_task(self._run(subscription))
        return subscription

    def _narrow(self, subscription: PartitionSubscription) -> int:
        """The partition that the subscription begins in; what lies in others becomes subscriptions of their own
        (a partition was split), which are where the reader is in what is in the buffer too."""
        placement = self._dispatcher.table.route(subscription.start)
        end = end_point(placement.hi)
        if end < subscription.end:
            rest = self._follow(end, subscription.end, subscription.version)
            rest.delivered, rest.started = subscription.delivered, subscription.started
            for mark in subscription.marks:
                mark.subscriptions.append(rest)
            rest.marks.extend(subscription.marks)
            subscription.end = end
        return placement.id

    # --- following --------------------------------------------------------------------------

    async def _run(self, subscription: PartitionSubscription) -> None:
        try:
            await self._keep_following(subscription)
        except MetastoreError as e:
            self._finish(e)
        except Exception as e:
            log.exception("a watch of namespace %s failed", self._filter.namespace)
            self._finish(InternalError(f"the watch failed: {type(e).__name__}: {e}"))

    def _finish(self, error: MetastoreError | None) -> None:
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    async def _keep_following(self, subscription: PartitionSubscription) -> None:
        dispatcher, loop = self._dispatcher, asyncio.get_running_loop()
        pause, turn = RETRY_S[0], 0
        while not dispatcher.closed:
            try:
                await self._buffer.room.wait()
                if self._is_cut_off(subscription):
                    self._finish(None)
                    return
                await self._subscribe(subscription, turn)
                continue
            except (Compacted, HistoryChanged, InvalidRequest):
                raise
            except WrongRouting:
                await self._other_rule(subscription)
                continue
            except NotLeader as e:
                # of the partition that was asked: by now the subscription may be in one split off it
                leader, epoch = e.detail.get("leader"), e.detail.get("epoch", 0)
                if not dispatcher.table.apply_hint(e.detail.get("partition", -1), leader, epoch):
                    turn += 1
                    dispatcher.refresh_soon()
            except Moved as e:
                if not dispatcher.table.learn_plain(e.detail.get("family")):
                    await dispatcher.refresh()
            except MetastoreError as e:
                turn += 1
                log.debug("watch of %s: %s", self._filter.namespace, e.message)
                dispatcher.refresh_soon()
                if isinstance(e, Malformed):
                    self._count_malformed(subscription, e)
            if subscription.heard:
                pause, turn, subscription.failing_since = RETRY_S[0], 0, 0.0
                subscription.heard = False
            else:
                pause = min(pause * 2, RETRY_S[1])
            subscription.failing_since = subscription.failing_since or loop.time()
            if dispatcher.router is not None and loop.time() - subscription.failing_since > PATIENCE_S:
                dispatcher.unreachable.add(
                    a for a in self._leader(subscription) if dispatcher.open_connection(a) is None
                )
                self._finish(None)
                return
            await asyncio.sleep(random.uniform(0, pause))
        raise ClientClosed("the client is closed")

    def _count_malformed(self, subscription: PartitionSubscription, error: Malformed) -> None:
        """Nothing of a malformed frame is taken, so the subscription may go on where it is, with another node. Raises
        Unavailable after MAX_MALFORMED of them in a row."""
        if subscription.version != subscription.malformed_at:
            subscription.malformed, subscription.malformed_at = 0, subscription.version
        subscription.malformed += 1
        if subscription.malformed >= MAX_MALFORMED:
            raise Unavailable(
                f"the watch of namespace {self._filter.namespace} ended: {MAX_MALFORMED} messages in a row from "
                f"nodes were malformed, the last one: {error.message}; watch again, or look at the nodes' versions",
                retry_after_s=1,
            )

    async def _other_rule(self, subscription: PartitionSubscription) -> None:
        """The namespace was created with another routing rule than was known here, so there was nothing in it
        under the other: what has not begun yet begins anew. Raises WrongRouting."""
        await self._dispatcher.refresh()
        if self._dispatcher.table.rule(self._filter.namespace) == self._rule:
            await asyncio.sleep(RETRY_S[1] * random.random())
        elif subscription.version is not None:
            raise WrongRouting(
                f"namespace {self._filter.namespace} was created with another routing rule after this watch "
                "had begun: list, and watch again"
            )
        else:
            self._subscriptions.clear()
            self._make_subscriptions()
            raise asyncio.CancelledError

    def _leader(self, subscription: PartitionSubscription) -> list[str]:
        table = self._dispatcher.table
        address = table.address(table.route(subscription.start).leader)
        return [address] if address is not None else []

    def _is_cut_off(self, subscription: PartitionSubscription) -> bool:
        """Whether the leader is known to be reachable through the router only."""
        unreachable = self._dispatcher.unreachable.addresses
        return bool(unreachable) and any(a in unreachable for a in self._leader(subscription))

    def _addresses(self, partition: int, turn: int) -> list[str]:
        """The addresses to ask, in order."""
        table = self._dispatcher.table
        placement = table.partitions[partition]
        nodes = [*([placement.leader] if placement.leader else []), *placement.replicas]
        if self._filter.flags & WATCH_ANY:
            nodes = random.sample(placement.replicas, len(placement.replicas))
        addresses = [a for a in map(table.address, dict.fromkeys(nodes)) if a is not None]
        if addresses:
            turn %= len(addresses)
        return addresses[turn:] + addresses[:turn]

    async def _connect(self, partition: int, turn: int) -> NodeConnection:
        dispatcher = self._dispatcher
        addresses = self._addresses(partition, turn)
        error: MetastoreError | None = None
        for address in sorted(addresses, key=dispatcher.is_unresponsive):
            try:
                return await dispatcher.connect(address)
            except MetastoreError as e:
                error = e
        raise error or Unavailable(
            f"no replica of partition {partition} has a known address: its nodes are not registered, or not yet known here"
        )

    async def _subscribe(self, subscription: PartitionSubscription, turn: int) -> None:
        """Follow one server-side watch until the buffer is full; raises when it ends otherwise."""
        partition = self._narrow(subscription)
        connection = await self._connect(partition, turn)
        ended: asyncio.Future[MetastoreError | None] = asyncio.get_running_loop().create_future()
        told = ResumePoint(-1)

        def on_events(version: ResumePoint, raw: list[Any]) -> None:
            nonlocal told
            if ended.done():
                return
            if raw and raw[0][2] <= told:  # else what comes now would be passed over, in silence
                text = f"a change at version {raw[0][2]} came after all changes up to {told}"
                ended.set_result(Malformed(text, sent=True))
                return
            told = max(told, version)
            if raw and self._buffer.full:
                self._buffer.room.clear()
                ended.set_result(None)
                return
            try:
                self._take(subscription, version, raw)
            except ValueError as e:
                ended.set_result(Malformed(f"the key of a change is not a storage key: {e}", sent=True))

        def on_end(error: MetastoreError) -> None:
            if not ended.done():
                ended.set_result(error)

        body = [
            partition,
            subscription.start,
            subscription.end,
            subscription.version,
            self._filter.flags,
            self._prefix,
        ]
        watch_id = connection.watch(body, on_events, on_end)
        try:
            error = await ended
        finally:
            connection.unwatch(watch_id)
        if error is not None:
            self._dispatcher.retries += 1
            raise error

    def _take(self, subscription: PartitionSubscription, version: ResumePoint, raw: list[Any]) -> None:
        """What a server told: everything up to ``version``."""
        events = [
            (kind, storage_key[storage_key.index(b"\0", 8) + 1 :].decode(), at, packed)
            for kind, storage_key, at, packed in raw
            if subscription.version is None or at > subscription.version
        ]
        subscription.version = version if subscription.version is None else max(version, subscription.version)
        subscription.heard = True
        if events:
            mark = Mark(subscription, subscription.version)
            subscription.marks.append(mark)
            self._buffer.put(self, mark, events)
        elif not subscription.marks:
            subscription.delivered = subscription.version
        if not subscription.started:
            subscription.started = True
            if all(s.started for s in self._subscriptions):
                self._buffer.begun.set()
