"""What the twins for threads rest on, by hand: the way into the loop, iteration, and what is looked up without the loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from typing_extensions import TypeVar as DefaultTypeVar

from metastore.client.blocking.portal import Portal
from metastore.client.client import AsyncClient
from metastore.client.codecs import Codec
from metastore.client.leasing import Lease
from metastore.client.namespace import AsyncNamespace
from metastore.client.results import Event
from metastore.client.watch.watcher import AsyncWatcher
from metastore.clock import now_ns
from metastore.errors import ClientClosed

R = TypeVar("R")
T = DefaultTypeVar("T", default=bytes)


class Handle:
    """Something of a client that works in every process: a child of a fork goes on with a loop of its own."""

    _portal: Portal

    def _call(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run the coroutine that ``make`` makes in the loop, and wait for it. What it raises is raised here."""
        return self._portal.call(make)

    def _look(self, look: Callable[[], R]) -> R:
        """``look()``, in the loop: no task runs meanwhile."""

        async def looked() -> R:
            return look()

        return self._call(looked)


class ClientBase(Handle):
    """A loop in a thread, and the client in it. ``make`` makes it, again in each child of a fork; what is wrong with its
    arguments is refused at once."""

    def __init__(self, make: Callable[[], AsyncClient]) -> None:
        self.deadline_s = make().deadline_s
        self._portal = Portal(make)

    @property
    def _inner(self) -> AsyncClient:
        return self._portal.client()


class RecordsBase(Handle, Generic[T]):
    """A namespace of the client that runs now: of this process."""

    name: str
    deadline_s: float
    codec: Codec[T]

    @property
    def _inner(self) -> AsyncNamespace[T]:
        return AsyncNamespace(self._portal.client().dispatcher, self.name, self.deadline_s, self.codec)


class Bound(Handle):
    """Something that lives in the loop of one process: its methods raise ClientClosed in a child of a fork."""

    def __init__(self, portal: Portal, inner: Any) -> None:
        self._portal = portal
        self._generation = portal.generation
        self._inner = inner

    def _call(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        if self._portal.generation != self._generation:
            raise ClientClosed(
                "this client was made by the parent process before a fork: make a new one in this process"
            )
        return self._portal.call(make)


class WatcherBase(Bound, Generic[T]):
    """How a watcher is iterated."""

    _inner: AsyncWatcher[T]

    def _take(self) -> Event[T]:
        """Raises StopIteration at the end."""
        found = self._call(lambda: _next(self._inner))
        if not found:
            raise StopIteration
        return found[0]


class HeldBase(Bound):
    """What is known of a hold without asking the loop, which may be late."""

    _inner: Lease

    def __init__(self, portal: Portal, inner: Lease) -> None:
        super().__init__(portal, inner)
        self.key = inner.key
        self.ttl_s = inner.ttl_s
        #: set while more than half of the lease is over without a renewal
        self.at_risk: threading.Event = inner.at_risk.twin
        #: set when the lease is over, or another holds the key; stays set until it is taken anew
        self.lost: threading.Event = inner.lost.twin

    def __repr__(self) -> str:
        return repr(self._inner).replace("<Async", "<")

    def _looks_held(self) -> bool:
        return self._inner.looks_held(now_ns())

    def _check(self) -> None:
        if not self._looks_held() or self._portal.generation != self._generation:
            self._look(self._inner.check)

    def leave(self, error: BaseException | None) -> None:
        """What leaving a ``with`` does: give it back; what the body raised comes first."""
        self._call(lambda: self._inner.leave(error))


async def _next(source: AsyncIterator[R]) -> list[R]:
    """The next item in a list, an empty one at the end."""
    try:
        return [await source.__anext__()]
    except StopAsyncIteration:
        return []


def iterate(bound: Bound, source: Any) -> Iterator[Any]:
    """An asynchronous generator as an iterator. It ends with the iterator."""
    try:
        while found := bound._call(lambda: _next(source)):
            yield found[0]
    finally:
        bound._call(source.aclose)
