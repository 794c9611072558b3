"""Ten thousand clients that come back at once: ``python -m bench.reconnect``.

One cell of three nodes, one router, ``--clients`` keep-alive connections that have each put a record.
Then, one after the other:

  leader killed      kill -9 of a node; every client puts at that moment, over its open connection
  router restarted   kill -9 of the router, started anew; every client connects and puts at once

A client that is answered 503 waits as long as Retry-After says, and a random part more, and tries
again; one whose connection fails connects again. Told are the time from the moment until its put is
acknowledged, the answers there were on the way, and the router's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

from bench.measure import percentile, show
from tests.integration.harness import Cluster

PER_ADDRESS = 5000
GIVE_UP_S = 120.0
ANSWER_S = 20.0


class Client(asyncio.Protocol):
    """One keep-alive connection, one request at a time, no parsing beyond what is needed."""

    def __init__(self, number: int, host: str, port: int) -> None:
        self.number = number
        self.host, self.port = host, port
        self.source = f"127.0.1.{1 + number // PER_ADDRESS}"
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.waiting: asyncio.Future[tuple[int, float]] | None = None
        self.buffer = b""

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.split(b"\r\n")
        fields = {k.lower(): v for k, _, v in (line.partition(b": ") for line in lines[1:])}
        if len(body) < int(fields.get(b"content-length", b"0")):
            return
        self.buffer = b""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result((int(lines[0].split()[1]), float(fields.get(b"retry-after", b"0"))))
        if fields.get(b"connection") == b"close" and self.transport is not None:
            self.transport.close()
            self.transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(ConnectionResetError())

    # --- what it does -----------------------------------------------------------------------

    async def put(self) -> tuple[int, float]:
        """One attempt: ``(status, Retry-After)``. Raises OSError, TimeoutError."""
        async with asyncio.timeout(ANSWER_S):
            if self.transport is None:
                await self.loop.create_connection(
                    lambda: self, self.host, self.port, local_addr=(self.source, 0)
                )
            assert self.transport is not None
            self.waiting = self.loop.create_future()
            self.transport.write(
                b"PUT /v1/kv/bench/d%d/k HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbeat" % self.number
            )
            return await self.waiting

    async def until_done(self, began: float, answers: Counter[str]) -> tuple[float, float]:
        """Put until it is acknowledged; seconds until the first answer, and until then."""
        first = 0.0
        pause = 0.05
        while True:
            try:
                status, retry_after = await self.put()
                first = first or time.monotonic() - began
                answers[str(status)] += 1
                if status in (200, 201):
                    return first, time.monotonic() - began
                wait = retry_after * random.uniform(1, 1.5)
            except TimeoutError:
                answers["no answer"] += 1
                self.drop()
                wait = random.uniform(0, pause)
            except OSError as e:
                answers[type(e).__name__] += 1
                self.drop()
                pause = min(2.0, pause * 2)
                wait = random.uniform(0, pause)
            if time.monotonic() - began > GIVE_UP_S:
                answers["given up"] += 1
                return first or GIVE_UP_S, GIVE_UP_S
            await asyncio.sleep(wait)

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """0 when the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


async def sample(pid_of: asyncio.Future[int], samples: list[tuple[float, float]]) -> None:
    began = time.monotonic()
    pid = await pid_of
    while True:
        samples.append((time.monotonic() - began, memory_mib(pid)))
        await asyncio.sleep(0.1)


async def stampede(
    name: str, clients: list[Client], cluster: Cluster, router_pid: asyncio.Future[int]
) -> list[object]:
    """All at once; one row of the table."""
    answers: Counter[str] = Counter()
    samples: list[tuple[float, float]] = []
    sampler = asyncio.create_task(sample(router_pid, samples))
    began = time.monotonic()
    times = await asyncio.gather(*(c.until_done(began, answers) for c in clients))
    sampler.cancel()
    first, done = [t[0] for t in times], [t[1] for t in times]
    seen = samples[:: max(1, len(samples) // 8)]
    print(f"{name}: router's memory over time: " + ", ".join(f"{t:.1f} s {m:.0f} MiB" for t, m in seen))
    return [
        name,
        f"{percentile(first, 0.5):.2f} / {percentile(first, 0.99):.2f}",
        f"{percentile(done, 0.5):.2f}",
        f"{percentile(done, 0.99):.2f}",
        f"{max(done):.2f}",
        " ".join(f"{k}:{v}" for k, v in sorted(answers.items())),
        f"{max(m for _, m in samples):.0f}",
    ]


async def measure(cluster: Cluster, count: int) -> None:
    host, _, port = cluster.router.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    pid: asyncio.Future[int] = loop.create_future()
    pid.set_result(cluster.json()["router"]["pid"])
    idle = memory_mib(pid.result())
    clients = [Client(n, host, int(port)) for n in range(count)]
    rows = [await stampede("first connection", clients, cluster, pid)]
    print(
        f"router: {idle:.0f} MiB without clients, {memory_mib(pid.result()):.0f} MiB with {count} idle ones"
    )
    rows.append(await stampede("all well", clients, cluster, pid))
    victim = max(cluster.names(), key=lambda n: sum(led == n for led, _ in cluster.leaders().values()))
    os.kill(cluster.node(victim)["pid"], 9)
    rows.append(await stampede("leader killed", clients, cluster, pid))
    await asyncio.to_thread(cluster.verb, "restart", victim)
    await asyncio.sleep(3)
    restarted: asyncio.Future[int] = loop.create_future()

    async def restart() -> None:
        await asyncio.to_thread(cluster.verb, "restart", "router")
        restarted.set_result(cluster.json()["router"]["pid"])

    os.kill(pid.result(), 9)
    restarting = asyncio.create_task(restart())
    rows.append(await stampede("router restarted", clients, cluster, restarted))
    await restarting
    print(f"router at its highest: {memory_mib(restarted.result(), 'VmHWM'):.0f} MiB")
    show(
        ["", "first answer p50 / p99 s", "put p50 s", "p99 s", "max s", "answers", "router MiB at most"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    count = parser.parse_args().clients
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < count + 500:
        raise SystemExit(f"{count} clients need {count + 500} open files, and {hard} are allowed")
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        cluster = Cluster.up(Path(folder) / "data", partitions=8)
        try:
            uvloop.run(measure(cluster, count))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
