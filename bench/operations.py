"""Puts and gets through the Python client: ``python -m bench.operations``.

One cell of three nodes, 8 partitions, one client process of 64 tasks, 100-byte values. Server CPU
is the time that all nodes used, divided by operations: the figure to trust on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.measure import cpu_seconds, show
from tests.integration.harness import Cluster

TASKS = 64
KEYS = 20_000


async def drive(operate: Callable[[int], Awaitable[object]], seconds: float) -> tuple[int, float]:
    """``(operations, seconds)`` of ``TASKS`` tasks back to back."""
    done, began = 0, time.perf_counter()
    stop = began + seconds

    async def task(number: int) -> None:
        nonlocal done
        while time.perf_counter() < stop:
            await operate(number)
            number = (number * 31 + 7) % KEYS
            done += 1

    await asyncio.gather(*(task(n) for n in range(TASKS)))
    return done, time.perf_counter() - began


async def measure(cluster: Cluster, turns: int, seconds: float) -> None:
    pids = [n["pid"] for n in cluster.json()["nodes"]]
    rows = []
    async with cluster.client() as client:
        ns = client.namespace("bench")
        operations: list[tuple[str, Callable[[int], Awaitable[object]]]] = [
            ("put", lambda n: ns.put(f"d{n % 100}/k{n}", b"x" * 100)),
            ("get", lambda n: ns.get(f"d{n % 100}/k{n}")),
        ]
        for name, operate in operations:
            await drive(operate, 2)
            rates, micros = [], []
            for _ in range(turns):
                before = cpu_seconds(pids)
                done, took = await drive(operate, seconds)
                rates.append(done / took)
                micros.append((cpu_seconds(pids) - before) / done * 1e6)
            rates.sort()
            micros.sort()
            middle = turns // 2
            rows.append(
                [
                    name,
                    f"{rates[middle]:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})",
                    f"{micros[middle]:.1f} ({micros[0]:.1f} to {micros[-1]:.1f})",
                ]
            )
    show(["", "operations/s, median (min to max)", "server CPU µs/op"], rows)
    print(
        f"{turns} turns of {seconds} s after a warm-up; {TASKS} tasks in one client; puts durable on 2 of 3"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        cluster = Cluster.up(Path(folder) / "data", partitions=8)
        try:
            uvloop.run(measure(cluster, given.turns, given.seconds))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
