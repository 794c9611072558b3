"""The thread that writes the state, and what a store's first failure is for all of it (R14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metastore.errors import StorageError


class Writer:
    """Runs work one after the other, in a thread once the store is started, and at once before that. Everything else is for the
    loop's thread. ``failure``: the first one; nothing is tried after it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: StorageError | None = None
        self._on_failure: Callable[[StorageError], None] = lambda error: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-writer")

    def start(self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[StorageError], None]) -> None:
        """From here on work is done in the thread; ``on_failure`` is called once at most."""
        self.loop, self._on_failure = loop, on_failure

    def now_s(self) -> float:
        """The loop's time in seconds; 0.0 before the store is started."""
        return self.loop.time() if self.loop is not None else 0.0

    def fail(self, error: BaseException, what: str = "state writer") -> None:
        """R14: the store has failed. ``what`` says what did, should ``error`` be none of storage's."""
        if self.failure is None:
            self.failure = error if isinstance(error, StorageError) else StorageError(f"{what}: {error!r}")
            self._on_failure(self.failure)

    def task_ended(self, what: str, task: asyncio.Task[None]) -> None:
        """R14: a task without which the store is not kept in order has ended: by an error, the store has failed."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error, what)

    def submit(
        self, then: Callable[[BaseException | None], None], work: Callable[..., Any], *args: Any
    ) -> None:
        """Run ``work`` in the thread; ``then`` gets its error, or None, in the loop. A store that is closed hears of nothing."""
        assert self.loop is not None
        future = self.loop.run_in_executor(self._thread, work, *args)
        future.add_done_callback(lambda f: None if f.cancelled() else then(f.exception()))

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work`` after what was submitted before it; its result. Raises what it raises."""
        if self.loop is None:
            return work(*args)
        return await self.loop.run_in_executor(self._thread, work, *args)

    def close(self) -> None:
        """End the thread; what it has not begun is not done."""
        self._thread.shutdown(wait=True, cancel_futures=True)
