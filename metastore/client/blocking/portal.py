"""From threads to the event loop: one loop in one daemon thread, for one Client.

Calls of many threads meet in the loop, so operations that are under way at once share frames as they
do with asyncio. After a fork the child has neither the thread nor the right to the parent's
connections and request ids: what belongs to the parent is left alone there, untouched, and the first call
in the child starts anew.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from metastore.client.client import AsyncClient
from metastore.errors import ClientClosed, OutcomeUnknown

R = TypeVar("R")
CLOSE_TIMEOUT_S: Final = 2.0


class _Running:
    """A loop that runs, and its client."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="metastore-client", daemon=True)
        self.pid = os.getpid()
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def stop(self) -> None:
        """End everything, within seconds. Does nothing in a process that has it from its parent."""
        if os.getpid() != self.pid or self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._stop()))
        if threading.get_ident() != self.thread.ident:
            self.thread.join(2 * CLOSE_TIMEOUT_S)

    async def _stop(self) -> None:
        me = asyncio.current_task()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.client.close()
                others = [t for t in asyncio.all_tasks() if t is not me]
                if others:
                    await asyncio.wait(others)  # what is under way ends by itself now
        except TimeoutError:
            pass
        tasks = [t for t in asyncio.all_tasks() if t is not me]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        self.loop.stop()


class Portal:
    """See the module. ``generation`` grows with every fork."""

    def __init__(self, make: Callable[[], AsyncClient]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        self.generation = 0
        _portals.add(self)

    def client(self) -> AsyncClient:
        """The client that runs, started if need be. Raises ClientClosed."""
        return self._get().client

    def _get(self) -> _Running:
        running = self._running
        if running is None:
            with self._lock:
                running = self._running
                if running is None:
                    self._check()
                    running = self._running = _Running(self._make())
                    weakref.finalize(self, running.stop)  # collected, or at exit, without close
        return running

    def _check(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed")

    def call(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine in the loop and wait for it. What it raises is raised here."""
        running = self._get()
        if threading.get_ident() == running.thread.ident:
            raise RuntimeError(
                "the client was called from its own loop, which would wait for itself: call it from another thread, not from a callback"
            )
        with self._lock:
            self._check()
            future = asyncio.run_coroutine_threadsafe(make(), running.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise OutcomeUnknown("the client was closed while the operation was under way") from None
        except BaseException:
            future.cancel()  # interrupted; nothing when it has ended
            raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
            running = self._running
        if running is not None:
            running.stop()

    def forked(self) -> None:
        """In the child."""
        if self._running is not None:
            _inherited.append(self._running)
        self._lock = threading.Lock()
        self._running = None
        self.generation += 1


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()
#: the parent's loops: never touched here, not even to be collected, since the child shares their epoll sets
_inherited: list[_Running] = []


def _after_fork() -> None:
    for portal in list(_portals):
        portal.forked()


os.register_at_fork(after_in_child=_after_fork)
