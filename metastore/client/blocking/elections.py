"""Elections among processes: one leader at a time, known to all who look.

Made from ``metastore/client/elections.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Generic

from typing_extensions import TypeVar

from metastore.client.blocking.bases import Bound, iterate
from metastore.client.blocking.leasing import Held
from metastore.client.blocking.portal import Portal
from metastore.client.elections import AsyncElection, AsyncLeadership
from metastore.records import Record

T = TypeVar("T", default=bytes)


class Leadership(Held):
    """A leadership that was won; also a context manager, which resigns on leaving. It is what a held lock
    is: ``lost``, ``at_risk``, ``check()``, ``remaining_s``, ``token``, ``fence``."""

    _inner: AsyncLeadership

    def resign(self) -> None:
        """Step down, so that another can be elected at once. Raises LockLost when it was lost before."""
        inner = self._inner
        self._call(lambda: inner.resign())

    def __enter__(self) -> Leadership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LockLost when the body ended well and the leadership was lost meanwhile."""
        self.leave(error)


class Election(Bound, Generic[T]):
    """An election. Made by ``Namespace.election``. Not fair, as locks are not."""

    _inner: AsyncElection[T]

    def __init__(self, portal: Portal, inner: AsyncElection[T]) -> None:
        super().__init__(portal, inner)
        self.key = inner.key
        self.ttl_s = inner.ttl_s

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key}>"

    def campaign(self, value: T, *, timeout_s: float | None = None) -> Leadership:
        """Return once elected. ``value``: what others see of the leader, such as its address. ``timeout_s``:
        seconds to wait, None = for as long as it takes, also while the store is away. Raises
        DeadlineExceeded; InvalidRequest when this object leads already; what the codec raises."""
        inner = self._inner
        return Leadership(self._portal, self._call(lambda: inner.campaign(value, timeout_s=timeout_s)))

    def resign(self) -> None:
        """Step down if this object leads. Raises LockLost when the leadership was lost before."""
        inner = self._inner
        self._call(lambda: inner.resign())

    def leader(self, *, deadline_s: float | None = None) -> Record[T] | None:
        """The leader's record now (its ``value`` and, as ``version``, its fencing token), None when there is
        none. Raises as ``get``."""
        inner = self._inner
        return self._call(lambda: inner.leader(deadline_s=deadline_s))

    def observe(self) -> Iterator[Record[T] | None]:
        """The leader now, then every change: a record, or None when there is none. Goes on while the store is
        away; a change that was made and undone meanwhile may be left out."""
        return iterate(self, self._inner.observe())
