"""Locks among processes: a key with a TTL, taken by absence.

Made from ``metastore/client/locks.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from types import TracebackType

from metastore.client.blocking.leasing import Held
from metastore.client.blocking.portal import Portal
from metastore.client.locks import AsyncLock


class Lock(Held):
    """A lock; also a context manager. Made by ``Namespace.lock``.

    It keeps itself alive while it is held. ``lost`` and ``at_risk`` are events (``threading.Event``) to
    wait for, ``on_lost`` and ``on_at_risk`` take callbacks, ``check()`` raises LockLost, and
    ``remaining_s`` is how long it lasts at least. No lock can stop a holder that is paused for longer
    than its lease: writes that must not be made by a former holder carry ``fence=lock.fence``, and go
    to the lock's own folder or ``{tag}``, where they are refused as soon as another has acquired the
    lock. Not fair: the first client that asks when it is freed gets it, not who has waited longest; and
    every waiter asks. Not reentrant.

    Between threads of one process use one object each, or a ``threading.Lock`` as well: an object is
    held once."""

    _inner: AsyncLock

    def __init__(self, portal: Portal, inner: AsyncLock) -> None:
        super().__init__(portal, inner)
        self.owner = inner.owner

    def acquire(self, timeout_s: float | None = None) -> None:
        """Return once the lock is held. ``timeout_s``: seconds to wait, None = for as long as it takes, also
        while the store is away. Raises DeadlineExceeded; InvalidRequest when this object holds it."""
        inner = self._inner
        self._call(lambda: inner.acquire(timeout_s))

    def try_acquire(self) -> bool:
        """Take it if it is free now; whether it was. Raises MetastoreError when that cannot be told."""
        inner = self._inner
        return self._call(lambda: inner.try_acquire())

    def release(self) -> None:
        """Give it back. Raises LockLost when it was lost before: what was done under it may have met another
        holder. When the store cannot be reached its TTL frees it."""
        inner = self._inner
        self._call(lambda: inner.release())

    def holder(self) -> str | None:
        """The ``owner`` of the client that holds it now, None when it is free."""
        inner = self._inner
        return self._call(lambda: inner.holder())

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LockLost when the body ended well and the lock was lost meanwhile."""
        self.leave(error)
