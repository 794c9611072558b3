"""Watches, for threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import TypeVar as DefaultTypeVar

from metastore.client.blocking.portal import Bound, Portal
from metastore.client.results import Event
from metastore.client.watching import START_TIMEOUT_S, AsyncWatcher

T = DefaultTypeVar("T", default=bytes)
R = TypeVar("R")


class Watcher(Bound, Generic[T]):
    """AsyncWatcher for threads: an iterator of events, and a context manager. Made by ``Namespace.watch``.
    ``close`` may be called from any thread; iteration ends."""

    def __init__(self, portal: Portal, inner: AsyncWatcher[T]) -> None:
        super().__init__(portal)
        self._inner = inner

    def __enter__(self) -> Watcher[T]:
        self._call(self._inner.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def started(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every change from now on will be seen."""
        self._call(lambda: self._inner.started(timeout_s))

    def close(self) -> None:
        """End the watch; iteration ends, also where another thread waits for the next event."""
        self._call(self._inner.close)

    def __iter__(self) -> Iterator[Event[T]]:
        return self

    def __next__(self) -> Event[T]:
        """The next change."""
        found = self._call(lambda: _next(self._inner))
        if not found:
            raise StopIteration
        return found[0]

    def next(self, timeout_s: float | None = None) -> Event[T] | None:
        """The next change; None when there was none for ``timeout_s`` seconds (None = wait for ever)."""
        return self._call(lambda: self._inner.next(timeout_s))

    @property
    def waiting(self) -> int:
        """How many changes can be taken without waiting."""
        return self._inner.waiting

    @property
    def resume(self) -> str | None:
        """Where the reader is: pass it as ``after`` to go on behind the last event that was taken."""

        async def look() -> str | None:
            return self._inner.resume

        return self._call(look)


async def _next(source: AsyncIterator[R]) -> list[R]:
    """The next item in a list, an empty one at the end."""
    try:
        return [await source.__anext__()]
    except StopAsyncIteration:
        return []


def iterate(bound: Bound, source: Any) -> Iterator[Any]:
    """An async generator as an iterator."""
    try:
        while found := bound._call(lambda: _next(source)):
            yield found[0]
    finally:
        bound._call(source.aclose)
