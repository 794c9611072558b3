"""Elections among processes: one leader at a time, known to all who look."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Generic

from typing_extensions import TypeVar

from metastore.client.codecs import decoded
from metastore.client.leasing import Lease, check_lease_ttl
from metastore.client.records import AsyncRecords
from metastore.client.watch.watcher import AsyncWatcher
from metastore.errors import Compacted, HistoryChanged, InvalidRequest, MetastoreError
from metastore.keys import MAX_CONTENT_TYPE_BYTES, encode_key
from metastore.records import Record
from metastore.routing.backoff import backoff_s

T = TypeVar("T", default=bytes)


class AsyncLeadership(Lease):
    """A leadership that was won; also an async context manager, which resigns on leaving. It is what a
    held lock is: ``lost``, ``at_risk``, ``check()``, ``remaining_s``, ``token``, ``fence``."""

    async def resign(self) -> None:
        """Step down, so that another can be elected at once. Raises LockLost when it was lost before."""
        await self._give_back()

    async def __aenter__(self) -> AsyncLeadership:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LockLost when the body ended well and the leadership was lost meanwhile."""
        await self.leave(error)


class AsyncElection(Generic[T]):
    """An election. Made by ``AsyncNamespace.election``. Not fair, as locks are not."""

    def __init__(self, namespace: AsyncRecords[T], key: str, ttl_s: float) -> None:
        encode_key(key)
        self._namespace = namespace
        self.key = key
        self.ttl_s = check_lease_ttl(ttl_s)
        self._leadership: AsyncLeadership | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key}>"

    async def campaign(self, value: T, *, timeout_s: float | None = None) -> AsyncLeadership:
        """Return once elected. ``value``: what others see of the leader, such as its address.
        ``timeout_s``: seconds to wait, None = for as long as it takes, also while the store is away. Raises
        DeadlineExceeded; InvalidRequest when this object leads already; what the codec raises."""
        if self._leadership is not None and self._leadership.held:
            raise InvalidRequest(
                f"{self.key!r:.200} is led by this object already; make another for a second candidate"
            )
        namespace = self._namespace
        kind = namespace.codec.content_type or "application/octet-stream"
        # unique to this candidacy, so that after doubt we know our own record
        content_type = f"{kind}; candidate={os.urandom(8).hex()}"
        if len(content_type) > MAX_CONTENT_TYPE_BYTES:
            raise InvalidRequest(
                f"the codec's content type of {len(kind)} characters is too long for elections; shorten it"
            )
        raw: AsyncRecords[bytes] = AsyncRecords(namespace.dispatcher, namespace.name, namespace.deadline_s)
        leadership = AsyncLeadership(raw, self.key, self.ttl_s)
        await leadership._take(namespace.codec.encode(value), content_type, timeout_s)
        self._leadership = leadership
        return leadership

    async def resign(self) -> None:
        """Step down if this object leads. Raises LockLost when the leadership was lost before."""
        leadership, self._leadership = self._leadership, None
        if leadership is not None and (leadership.held or leadership.lost.is_set()):
            await leadership.resign()

    async def leader(self, *, deadline_s: float | None = None) -> Record[T] | None:
        """The leader's record now (its ``value`` and, as ``version``, its fencing token), None when there is
        none. Raises as ``get``."""
        return await self._namespace.get(self.key, deadline_s=deadline_s)

    async def observe(self) -> AsyncIterator[Record[T] | None]:
        """The leader now, then every change: a record, or None when there is none. Goes on while the
        store is away; a change that was made and undone meanwhile may be left out."""
        namespace = self._namespace
        last: int | None = None
        failures = 0
        while True:
            try:
                async with self._watcher() as watcher:
                    record = await self.leader()
                    failures = 0
                    seen = record.version if record is not None else 0
                    if seen != last:
                        last = seen
                        yield record
                    async for event in watcher:
                        if event.key == self.key and event.version > seen:
                            raw = event.record
                            seen = event.version
                            last = seen if raw is not None else 0
                            yield None if raw is None else decoded(namespace.codec, self.key, raw)
                return
            except MetastoreError as e:
                if not (e.retryable or isinstance(e, Compacted | HistoryChanged)):
                    raise
                await asyncio.sleep(backoff_s(failures))
                failures += 1

    def _watcher(self) -> AsyncWatcher:
        raw = encode_key(self.key)
        return AsyncWatcher(self._namespace.dispatcher, self._namespace.name, raw, None, exact=True)
