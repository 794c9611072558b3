"""An asyncio loop in simulated time: one per process, all driven by one queue of events.

A loop turns as a real one does. A turn does what was ready when it began: callbacks, sockets with
something to read, timers that are due. What comes up meanwhile waits for the next turn, and a turn
takes its time, so that under load, or after a pause, much is done in one. A paused process does not
turn, a dead one never again. "Threads" (executors, the log's writer) are callbacks after a while.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any

from metastore import clock

MS = 1_000_000
#: from something to do to the beginning of the turn, when the loop sleeps
WAKE_NS = 5_000
#: the most that a turn takes, and each of its callbacks adds
TURN_NS, CALLBACK_NS = 30_000, 20_000
#: tasks that a loop remembers at least before it looks which of them have ended
MIN_TASKS_KEPT = 1000
#: so often a coroutine may wait for something while it is ended, and so many may begin others
MAX_WAYS_OUT = 100
_real_now_ns = clock.now_ns


#: of the world that is, if it was not abandoned: there is one at a time
WORLDS: list[Events] = []


def abandon_worlds() -> None:
    """Nobody has use for the world that there was: no coroutine of it goes on."""
    while WORLDS:
        WORLDS.pop().abandon()


class Events:
    """The queue. ``now``: true time in ns; ``done``: how many things have happened so far."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0
        self.done = 0
        self.count = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.failure: BaseException | None = None
        #: of processes that have ended too
        self.loops: list[SimLoop] = []
        abandon_worlds()
        WORLDS.append(self)

    def fail(self, error: BaseException) -> None:
        """The world ends by the first of them."""
        if self.failure is None:
            self.failure = error

    def abandon(self) -> None:
        """See ``abandon_worlds``."""
        self.queue.clear()
        for loop in self.loops:
            loop.abandon()

    def at(self, delay_ns: int, what: Callable[[], None]) -> None:
        self.count += 1
        heappush(self.queue, (self.now + delay_ns if delay_ns > 0 else self.now, self.count, what))

    def run(self, duration_ns: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; whether ``until`` came true (then it ends there). Raises what failed."""
        end = self.now + duration_ns
        queue = self.queue
        try:
            while queue and queue[0][0] <= end:
                self.now, _, what = heappop(queue)
                self.done += 1
                what()
                if self.failure is not None:
                    raise self.failure
                if until is not None and until():
                    return True
        finally:
            _set_running_loop(None)  # turns leave it set: the next one follows soon
        self.now = end
        return False


class Handle:
    """Of a callback, as asyncio's; with ``when`` that of a timer."""

    __slots__ = ("args", "callback", "context", "loop", "time")

    def __init__(self, loop: SimLoop, callback: Any, args: Any, context: Any, time: float = 0.0) -> None:
        self.loop = loop
        self.callback = callback
        self.args = args
        self.context = context
        self.time = time

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.time

    def due(self) -> None:
        self.loop.events.done -= 1  # counted when it is called
        if self.callback is not None:
            self.loop.ready(self)


class SimLoop(asyncio.AbstractEventLoop):
    """See the module. ``rate``, ``offset_ns``: of this process's clock; ``load``: how slow its turns are."""

    # what neither nodes nor clients ask of a loop: it raises NotImplementedError, as the base class has it
    add_reader: Any
    add_signal_handler: Any
    add_writer: Any
    close: Any
    connect_read_pipe: Any
    connect_write_pipe: Any
    create_datagram_endpoint: Any
    default_exception_handler: Any
    get_exception_handler: Any
    get_task_factory: Any
    getaddrinfo: Any
    getnameinfo: Any
    remove_reader: Any
    remove_signal_handler: Any
    remove_writer: Any
    run_forever: Any
    run_until_complete: Any
    sendfile: Any
    set_debug: Any
    set_default_executor: Any
    set_exception_handler: Any
    set_task_factory: Any
    shutdown_asyncgens: Any
    shutdown_default_executor: Any
    sock_accept: Any
    sock_connect: Any
    sock_recv: Any
    sock_recv_into: Any
    sock_recvfrom: Any
    sock_recvfrom_into: Any
    sock_sendall: Any
    sock_sendfile: Any
    sock_sendto: Any
    start_tls: Any
    stop: Any
    subprocess_exec: Any
    subprocess_shell: Any

    def __init__(
        self,
        events: Events,
        name: str,
        network: Any,
        rate: float = 1.0,
        offset_ns: int = 0,
        load: float = 1.0,
    ) -> None:
        self.events = events
        self.name = name
        self.network = network
        self.rate = rate
        self.offset_ns = offset_ns
        self.load = load
        self.dead = False
        self.paused = False
        self._ready: deque[Handle] = deque()
        self._queued = False
        self._free_at = 0
        self._turn_callback = self._turn
        #: those that have not ended, and some that have
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_kept = 0
        events.loops.append(self)

    # --- life -----------------------------------------------------------------------------

    def enter(self, what: Callable[[], Any]) -> Any:
        """Call ``what`` as this process."""
        before = asyncio._get_running_loop()
        _set_running_loop(self)
        try:
            return what()
        finally:
            _set_running_loop(before)

    def kill(self) -> None:
        self.dead = True
        self._ready.clear()

    def pause(self) -> None:
        self.paused = True

    def wake(self) -> None:
        self.paused = False
        if self._ready and not self._queued and not self.dead:
            self._queue_turn()

    # --- turns ------------------------------------------------------------------------------

    def ready(self, handle: Handle) -> None:
        if not self.dead:
            self._ready.append(handle)
            if not self._queued:
                self._queue_turn()

    def _queue_turn(self) -> None:
        self._queued = True
        events = self.events
        when = events.now + WAKE_NS
        events.count += 1
        heappush(
            events.queue, (when if when > self._free_at else self._free_at, events.count, self._turn_callback)
        )

    def _turn(self) -> None:
        events, ready = self.events, self._ready
        events.done -= 1
        if self.dead or self.paused:
            self._queued = False
            return
        count = len(ready)
        events.done += count
        _set_running_loop(self)
        for _ in range(count):
            handle = ready.popleft()
            callback = handle.callback
            if callback is None:
                continue
            try:
                if handle.context is None:
                    callback(*handle.args)
                else:
                    handle.context.run(callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as e:
                self.call_exception_handler({"exception": e})
            if self.dead:
                return
        took = events.random.random() * self.load * (TURN_NS + CALLBACK_NS * count)
        self._free_at = events.now + int(took)
        if ready:
            self._queue_turn()
        else:
            self._queued = False

    # Its handles are its own and cannot be told apart from asyncio's by who calls, so `override` is ignored below.

    # --- time -------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self.offset_ns + int(self.events.now * self.rate)

    def time(self) -> float:
        return (self.offset_ns + int(self.events.now * self.rate)) / 1e9

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(self, callback, args, context, self.time() + delay)
        if not self.dead:
            self.events.at(int(delay * 1e9 / self.rate), handle.due)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(self, callback, args, context, when)
        if not self.dead:
            self.events.at(int((when - self.time()) * 1e9 / self.rate), handle.due)
        return handle

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle(self, callback, args, context)
        if not self.dead:
            self._ready.append(handle)
            if not self._queued:
                self._queue_turn()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    # --- tasks ------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        """Whoever created it may forget it: nothing of a dead process is to run, not even what a coroutine that nobody
        has any more does on its way out, so they are all kept until the world is over (``abandon``)."""
        task = asyncio.Task(coro, loop=self, **options)
        self._tasks.append(task)
        if len(self._tasks) > 2 * self._tasks_kept + MIN_TASKS_KEPT:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_kept = len(self._tasks)
        return task

    def abandon(self) -> None:
        """End all coroutines where they are. What they do on their way out reaches nobody."""
        self.kill()
        for _ in range(MAX_WAYS_OUT):
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    self.enter(partial(end, task.get_coro()))
            if not tasks:
                return

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
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

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return await self.network.connect(self, factory, host)

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        self.network.listen(self, factory, host)


def end(coroutine: Any) -> None:
    """As the collector would, which can only complain of one that waits for something on its way out."""
    for _ in range(MAX_WAYS_OUT):
        try:
            coroutine.close()
            return
        except RuntimeError:  # it waits once more: that never comes
            continue
        except KeyboardInterrupt:
            raise
        except BaseException:  # of a disk that is no more, too
            return


def now_ns() -> int:
    """The running process's clock."""
    loop = asyncio._get_running_loop()
    return loop.now_ns() if isinstance(loop, SimLoop) else _real_now_ns()


def patch_clocks() -> None:
    """Modules that took the node's clock by name take this one, which is the real one outside."""
    for name, module in list(sys.modules.items()):
        if name.startswith("metastore.") and getattr(module, "now_ns", None) is _real_now_ns:
            module.now_ns = now_ns  # type: ignore[attr-defined]
