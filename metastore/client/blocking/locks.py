"""Locks and elections, for threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Generic

from typing_extensions import TypeVar

from metastore.client.blocking.portal import Bound, Portal
from metastore.client.blocking.watching import iterate
from metastore.client.elections import AsyncElection, AsyncLeadership
from metastore.client.leasing import Callback, Lease
from metastore.client.locks import AsyncLock
from metastore.client.results import Fence
from metastore.clock import now_ns
from metastore.records import Record

T = TypeVar("T", default=bytes)


class _Held(Bound):
    """What Lock and Leadership have in common."""

    def __init__(self, portal: Portal, lease: Lease) -> None:
        super().__init__(portal)
        self._lease = lease
        self.key = lease.key
        self.ttl_s = lease.ttl_s
        #: set while more than half of the lease is over without a renewal
        self.at_risk: threading.Event = lease.at_risk.twin
        #: set when the lease is over, or another holds the key; stays set until it is taken anew
        self.lost: threading.Event = lease.lost.twin

    def __repr__(self) -> str:
        return repr(self._lease).replace("<Async", "<")

    @property
    def held(self) -> bool:
        """Whether it was taken, not given back, and not lost."""
        return self._lease.looks_held(now_ns())

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder."""
        return self._lease.token

    @property
    def fence(self) -> Fence:
        """For ``fence=`` of any write of the same namespace; see AsyncLock's."""
        return self._lease.fence

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease is over if it is not renewed, on this process's clock; 0 when not held."""
        return self._lease.remaining_s

    def check(self) -> None:
        """Raises LockLost unless it is held now, by this process's clock. Cheap: asks nobody."""
        if not self._lease.looks_held(now_ns()) or self._portal.generation != self._generation:

            async def check() -> None:
                self._lease.check()

            self._call(check)

    def on_at_risk(self, callback: Callback) -> None:
        """Call ``callback`` whenever the lease gets at risk. It runs in the client's thread: be short, and
        do not call the client."""
        self._lease.on_at_risk(callback)

    def on_lost(self, callback: Callback) -> None:
        """Call ``callback`` when the lease is lost. It runs in the client's thread: be short, and do not
        call the client."""
        self._lease.on_lost(callback)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LockLost when the body ended well and it was lost meanwhile."""
        self._call(lambda: self._lease.leave(error))


class Lock(_Held):
    """AsyncLock for threads; also a context manager. Made by ``Namespace.lock``. Between threads of one
    process use one object each, or a ``threading.Lock`` as well: an object is held once."""

    def __init__(self, portal: Portal, inner: AsyncLock) -> None:
        super().__init__(portal, inner)
        self._inner = inner
        self.owner = inner.owner

    def acquire(self, timeout_s: float | None = None) -> None:
        """Return once the lock is held. ``timeout_s``: seconds to wait, None = for as long as it takes."""
        self._call(lambda: self._inner.acquire(timeout_s))

    def try_acquire(self) -> bool:
        """Take it if it is free now; whether it was."""
        return self._call(self._inner.try_acquire)

    def release(self) -> None:
        """Give it back. Raises LockLost when it was lost before."""
        self._call(self._inner.release)

    def holder(self) -> str | None:
        """The ``owner`` of whoever has it now, None when it is free."""
        return self._call(self._inner.holder)

    def __enter__(self) -> Lock:
        self.acquire()
        return self


class Leadership(_Held):
    """AsyncLeadership for threads; also a context manager, which resigns on leaving."""

    def __init__(self, portal: Portal, inner: AsyncLeadership) -> None:
        super().__init__(portal, inner)
        self._inner = inner

    def resign(self) -> None:
        """Step down, so that another can be elected at once. Raises LockLost when it was lost before."""
        self._call(self._inner.resign)

    def __enter__(self) -> Leadership:
        return self


class Election(Bound, Generic[T]):
    """AsyncElection for threads. Made by ``Namespace.election``."""

    def __init__(self, portal: Portal, inner: AsyncElection[T]) -> None:
        super().__init__(portal)
        self._inner = inner
        self.key = inner.key
        self.ttl_s = inner.ttl_s

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key}>"

    def campaign(self, value: T, *, timeout_s: float | None = None) -> Leadership:
        """Return once elected. ``value``: what others see of the leader, such as its address."""
        return Leadership(self._portal, self._call(lambda: self._inner.campaign(value, timeout_s=timeout_s)))

    def resign(self) -> None:
        """Step down if this object leads. Raises LockLost when the leadership was lost before."""
        self._call(self._inner.resign)

    def leader(self, *, deadline_s: float | None = None) -> Record[T] | None:
        """The leader's record now, None when there is none."""
        return self._call(lambda: self._inner.leader(deadline_s=deadline_s))

    def observe(self) -> Iterator[Record[T] | None]:
        """The leader now, then every change: a record, or None when there is none."""
        return iterate(self, self._inner.observe())
