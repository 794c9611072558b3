"""Watches: one stream of changes, whichever way it comes.

Made from ``metastore/client/watch/watcher.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from typing_extensions import TypeVar

from metastore.client.blocking.bases import WatcherBase
from metastore.client.results import Event
from metastore.client.watch.watcher import START_TIMEOUT_S

T = TypeVar("T", default=bytes)


class Watcher(WatcherBase[T]):
    """An iterator of events; also a context manager, which waits until the watch has begun everywhere and
    ends it on leaving. Made by ``Namespace.watch``.

    ``close`` may be called from any thread."""

    # --- life -------------------------------------------------------------------------------

    def __enter__(self) -> Watcher[T]:
        try:
            self.started()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def started(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every change from now on will be seen. Raises Unavailable when that takes longer than
        ``timeout_s`` seconds, Compacted, InvalidRequest, ClientClosed."""
        inner = self._inner
        self._call(lambda: inner.started(timeout_s))

    def close(self) -> None:
        """End the watch; iteration ends, also where another thread waits for the next event."""
        inner = self._inner
        self._call(lambda: inner.close())

    # --- reading ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Event[T]]:
        return self

    def __next__(self) -> Event[T]:
        """The next change. Raises Compacted and other errors that end the watch; DecodeFailed, which does not
        end it: ``resume`` is behind that event, and iteration may go on."""
        return self._take()

    def next(self, timeout_s: float | None = None) -> Event[T] | None:
        """The next change; None when there was none for ``timeout_s`` seconds (None = wait for ever). Raises
        as iteration, and ClientClosed when the watch is closed."""
        inner = self._inner
        return self._call(lambda: inner.next(timeout_s))

    @property
    def waiting(self) -> int:
        """How many changes can be taken without waiting."""
        return self._inner.waiting

    @property
    def resume(self) -> str | None:
        """Where the reader is: pass it as ``after`` to go on behind the last event that was taken, in another
        process too. None before the watch has begun everywhere."""
        inner = self._inner
        return self._look(lambda: inner.resume)
