"""What a follower that stands still costs: ``python -m bench.followers``.

One cell of three nodes. Latency of puts by 16 tasks to partitions that one node leads, in turns
of some seconds: all followers well, then one of them stopped by SIGSTOP, and again.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from bench.measure import percentile, show
from metastore.client import AsyncClient
from tests.integration.harness import Cluster, keys_by_partition, until

TASKS = 16


async def puts(client: AsyncClient, keys: list[str], seconds: float) -> list[float]:
    """Latencies in milliseconds of back-to-back puts by ``TASKS`` tasks."""
    ns, found, stop = client.namespace("load"), [], time.monotonic() + seconds

    async def task(number: int) -> None:
        while time.monotonic() < stop:
            began = time.perf_counter()
            await ns.put(keys[number % len(keys)], b"x" * 100)
            found.append((time.perf_counter() - began) * 1e3)

    await asyncio.gather(*(task(n) for n in range(TASKS)))
    return found


async def measure(cluster: Cluster, turns: int, seconds: float) -> None:
    leaders = cluster.leaders()
    leader = leaders[0][0]
    follower = next(n for n in cluster.names() if n != leader)
    async with cluster.client() as client:
        table = keys_by_partition(client, 2)
        keys = [k for p, ks in table.items() if leaders[p][0] == leader for k in ks]
        await puts(client, keys, 2)
        well: list[float] = []
        paused: list[float] = []
        for _ in range(turns):
            well += await puts(client, keys, seconds)
            await asyncio.to_thread(cluster.verb, "pause", follower)
            await asyncio.sleep(1)
            paused += await puts(client, keys, seconds)
            await asyncio.to_thread(cluster.verb, "resume", follower)
            await until("it has caught up", lambda: _caught_up(cluster, leader, follower))
    rows = []
    for name, values in (("followers well", well), (f"{follower} stopped", paused)):
        row = [f"{percentile(values, q):.2f}" for q in (0.5, 0.9, 0.99, 0.999)]
        rows.append([name, len(values), *row, f"{max(values):.2f}"])
    show(["", "puts", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"], rows)
    print(
        f"{turns} turns of {seconds} s each, alternating; {TASKS} tasks, 100-byte values, durable on 2 of 3"
    )


def _caught_up(cluster: Cluster, leader: str, follower: str) -> bool:
    lags = [p["lag"].get(follower, 0) for p in cluster.status(leader)["partitions"] if p["role"] == "active"]
    return bool(lags) and max(lags) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        cluster = Cluster.up(Path(folder) / "data", partitions=8)
        try:
            asyncio.run(measure(cluster, given.turns, given.seconds))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
