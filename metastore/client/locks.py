"""Locks among processes: a key with a TTL, taken by absence."""

from __future__ import annotations

import os
import socket
from types import TracebackType

from metastore.client.leasing import Lease
from metastore.client.records import AsyncRecords


class AsyncLock(Lease):
    """A lock; also an async context manager. Made by ``AsyncNamespace.lock``.

    It keeps itself alive while it is held. ``lost`` and ``at_risk`` are events to wait for, ``on_lost`` and
    ``on_at_risk`` take callbacks, ``check()`` raises LockLost, and ``remaining_s`` is how long it lasts at
    least. No lock can stop a holder that is paused for longer than its lease: writes that must not be made
    by a former holder carry ``fence=lock.fence``, and go to the lock's own folder or ``{tag}``, where they are refused
    as soon as another has acquired the lock. Not fair: the first client that asks when it is freed gets it,
    not who has waited longest; and every waiter asks. Not reentrant.
    """

    def __init__(self, namespace: AsyncRecords, key: str, ttl_s: float, owner: str) -> None:
        super().__init__(namespace, key, ttl_s)
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}"

    async def acquire(self, timeout_s: float | None = None) -> None:
        """Return once the lock is held. ``timeout_s``: seconds to wait, None = for as long as it takes, also
        while the store is away. Raises DeadlineExceeded; InvalidRequest when this object holds it."""
        await self._take(*self._new_mark(), timeout_s)

    async def try_acquire(self) -> bool:
        """Take it if it is free now; whether it was. Raises MetastoreError when that cannot be told."""
        return await self._take(*self._new_mark(), None, wait=False)

    def _new_mark(self) -> tuple[bytes, str]:
        return f"{self.owner} {os.urandom(8).hex()}".encode(), "text/plain; charset=utf-8"

    async def release(self) -> None:
        """Give it back. Raises LockLost when it was lost before: what was done under it may have met
        another holder. When the store cannot be reached its TTL frees it."""
        await self._give_back()

    async def holder(self) -> str | None:
        """The ``owner`` of the client that holds it now, None when it is free."""
        record = await self._namespace.get(self.key)
        return record.value.decode("utf-8", "replace").rpartition(" ")[0] if record is not None else None

    async def __aenter__(self) -> AsyncLock:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LockLost when the body ended well and the lock was lost meanwhile."""
        await self.leave(error)
