"""Load: closed loop (so many connections, so many requests outstanding on each) and open loop (so many requests a
second, whatever the answers do; latency counts from when a request was due, so that a stall is seen by all that
it delays). One process, uvloop, no task or future per request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from bench.measure import cpu_seconds, percentile
from bench.wire import Speaker, Wrong

Kind = str
"""``put``, ``get`` or ``listing``: a method of a speaker."""


@dataclass
class Result:
    """Of one turn. ``server_us``, ``load_us``: CPU per operation of all server processes, and of this one."""

    operations: int
    seconds: float
    server_us: float
    load_us: float
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.operations / self.seconds

    def ms(self, q: float) -> float:
        return percentile(self.latencies, q) * 1000


class Driven(asyncio.Protocol):
    """One connection."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.transport: asyncio.Transport
        self.load: Load | None = None
        self.error: Exception | None = None
        self.began: dict[Any, float] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        first = self.speaker.begin()
        if first:
            self.transport.write(first)

    def data_received(self, data: bytes) -> None:
        try:
            done = self.speaker.feed(data)
        except Wrong as e:
            self.error = e
            if self.load is not None:
                self.load.failed(e)
            return
        reply = getattr(self.speaker, "reply", b"")
        if reply:
            self.transport.write(reply)
        if done and self.load is not None:
            self.load.answered(self, done)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.load is not None:
            self.load.failed(exc or Wrong("the connection was closed"))

    def send(self, kind: Kind, count: int, numbers: Callable[[], int], due: float | None = None) -> None:
        make = getattr(self.speaker, kind)
        requests = []
        now = time.perf_counter() if due is None else due
        for _ in range(count):
            request, number = make(numbers())
            requests.append(request)
            self.began[number] = now
        self.transport.write(self.speaker.join(requests))


class Load:
    """A closed loop."""

    def __init__(self, connections: Sequence[Driven], kind: Kind, depth: int, keys: int) -> None:
        self.connections = connections
        self.kind = kind
        self.depth = depth
        self.keys = keys
        self.done = 0
        self.stopping = False
        self.latencies: list[float] = []
        self.problem: BaseException | None = None
        self._n = 1
        self._outstanding = 0
        self._idle = asyncio.Event()

    def number(self) -> int:
        self._n = (self._n * 1103515245 + 12345) & 0x7FFFFFFF
        return self._n >> 4

    def failed(self, error: BaseException) -> None:
        self.problem = self.problem or error
        self._idle.set()

    def answered(self, connection: Driven, done: list[Any]) -> None:
        now = time.perf_counter()
        began = connection.began
        for number in done:
            self.latencies.append(now - began.pop(number))
        self.done += len(done)
        self._outstanding -= len(done)
        if not self.stopping:
            self._outstanding += len(done)
            connection.send(self.kind, len(done), self.number)
        elif self._outstanding <= 0:
            self._idle.set()

    async def run(self, seconds: float, pids: Sequence[int]) -> Result:
        """Raises Wrong, OSError when anything is answered with an error."""
        for connection in self.connections:
            connection.load = self
        cpu, own, began = cpu_seconds(pids), time.process_time(), time.perf_counter()
        for connection in self.connections:
            self._outstanding += self.depth
            connection.send(self.kind, self.depth, self.number)
        for _ in range(int(seconds * 20)):
            await asyncio.sleep(0.05)
            if self.problem is not None:
                raise self.problem
        took, done = time.perf_counter() - began, self.done
        server, load = cpu_seconds(pids) - cpu, time.process_time() - own
        self.stopping = True
        async with asyncio.timeout(30):
            await self._idle.wait()
        if self.problem is not None:
            raise self.problem
        for connection in self.connections:
            connection.load = None
        return Result(done, took, server / done * 1e6, load / done * 1e6, self.latencies)


class Offered(Load):
    """An open loop: ``rate`` a second over all connections, evenly."""

    STEP_S = 0.001

    def __init__(self, connections: Sequence[Driven], kind: Kind, rate: float, keys: int) -> None:
        super().__init__(connections, kind, 0, keys)
        self.offered = rate

    def answered(self, connection: Driven, done: list[Any]) -> None:
        now = time.perf_counter()
        for number in done:
            self.latencies.append(now - connection.began.pop(number))
        self.done += len(done)
        self._outstanding -= len(done)

    async def run(self, seconds: float, pids: Sequence[int]) -> Result:
        for connection in self.connections:
            connection.load = self
        cpu, own, began = cpu_seconds(pids), time.process_time(), time.perf_counter()
        sent, turn = 0, 0
        while (now := time.perf_counter()) < began + seconds:
            due = int((now - began) * self.offered)
            while sent < due:
                # each was due at its own moment, not when this loop came to it
                at = began + sent / self.offered
                self.connections[turn % len(self.connections)].send(self.kind, 1, self.number, at)
                turn += 1
                sent += 1
                self._outstanding += 1
            await asyncio.sleep(self.STEP_S)
            if self.problem is not None:
                raise self.problem
        server, load = cpu_seconds(pids) - cpu, time.process_time() - own
        until = time.perf_counter() + 20
        while self._outstanding > 0 and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        took = time.perf_counter() - began
        for connection in self.connections:
            connection.load = None
        if self._outstanding > 0:
            raise Wrong(f"{self._outstanding} of {sent} were not answered in 20 s")
        return Result(self.done, took, server / self.done * 1e6, load / self.done * 1e6, self.latencies)


async def connect(address: tuple[str, int], speaker: Speaker) -> Driven:
    loop = asyncio.get_running_loop()
    _, driven = await loop.create_connection(lambda: Driven(speaker), *address)
    return driven


async def close(connections: Sequence[Driven]) -> None:
    for connection in connections:
        connection.load = None
        connection.transport.abort()
    await asyncio.sleep(0.05)
