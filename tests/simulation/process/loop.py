"""An asyncio loop in simulated time: one per process, all driven by one queue of events.

Whatever a process does happens in callbacks of its loop. A paused process's callbacks wait, a
dead one's never come. "Threads" (executors, the log's writer) are callbacks after a random delay.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from metastore import clock

MS = 1_000_000
_real_now_ns = clock.now_ns


class Events:
    """The queue. ``now``: true time in ns."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0
        self.count = 0
        self.done = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self.failure: BaseException | None = None

    def at(self, delay_ns: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self._queue, (self.now + max(0, delay_ns), self.count, what))

    def run(self, duration_ns: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; whether ``until`` came true (then it ends there). Raises what failed."""
        end = self.now + duration_ns
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            self.done += 1
            what()
            if self.failure is not None:
                raise self.failure
            if until is not None and until():
                return True
        self.now = end
        return False


class SimLoop(asyncio.AbstractEventLoop):
    """See the module. ``rate``, ``offset_ns``: of this process's clock."""

    def __init__(
        self, events: Events, name: str, network: Any, rate: float = 1.0, offset_ns: int = 0
    ) -> None:
        self.events = events
        self.name = name
        self.network = network
        self.rate = rate
        self.offset_ns = offset_ns
        self.dead = False
        self.paused = False
        self.on_cut: Callable[[], None] = lambda: None
        self._backlog: list[asyncio.Handle] = []

    # --- life -----------------------------------------------------------------------------

    def enter(self, what: Callable[[], Any]) -> Any:
        """Call ``what`` as this process."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            return what()
        finally:
            asyncio._set_running_loop(before)

    def kill(self) -> None:
        self.dead = True
        self._backlog.clear()

    def pause(self) -> None:
        self.paused = True

    def wake(self) -> None:
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for handle in backlog:
            self._fire(handle)

    def _fire(self, handle: asyncio.Handle) -> None:
        if self.dead or handle.cancelled():
            return
        if self.paused:
            self._backlog.append(handle)
        else:
            self.enter(handle._run)

    # --- time -------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self.offset_ns + int(self.events.now * self.rate)

    def time(self) -> float:
        return self.now_ns() / 1e9

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.time() + delay, callback, args, self, context)
        if not self.dead:
            self.events.at(int(delay * 1e9 / self.rate), lambda: self._fire(handle))
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_later(max(0.0, when - self.time()), callback, *args, context=context)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_later(0.0, callback, *args, context=context)

    call_soon_threadsafe = call_soon

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    # --- tasks ------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as e:
                if not future.done():
                    future.set_exception(e)
                return
            if not future.done():
                future.set_result(result)

        self.call_later(self.events.random.randrange(1, 20 * MS) / 1e9, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What no code handles ends the simulation, but for what is left of dead processes."""
        error = context.get("exception")
        if self.dead or error is None:
            return
        if not isinstance(error, asyncio.CancelledError) and self.events.failure is None:
            self.events.failure = error

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return False

    # --- network ----------------------------------------------------------------------------

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(self, factory, host)

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        self.network.listen(self, factory, host)


def now_ns() -> int:
    """The running process's clock."""
    loop = asyncio._get_running_loop()
    return loop.now_ns() if isinstance(loop, SimLoop) else _real_now_ns()


def patch_clocks() -> None:
    """Modules that took the node's clock by name take this one, which is the real one outside."""
    for name, module in list(sys.modules.items()):
        if name.startswith("metastore.") and getattr(module, "now_ns", None) is _real_now_ns:
            module.now_ns = now_ns  # type: ignore[attr-defined]
