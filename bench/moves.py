"""What a move costs: ``python -m bench.moves --mib 1024``.

Two cells of three nodes. One directory, so one partition, is filled with records of 16 KiB; then eight tasks put
and eight get small records of that partition, and as many of others, first undisturbed and then while the
partition moves to the other cell. Shown are latencies, failures, the longest time between two acknowledged
writes of the moved partition, how long the move took and how fast bytes went over.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from pathlib import Path

from bench.measure import percentile, show
from metastore import AsyncClient, MetastoreError
from metastore.client import AsyncNamespace
from metastore.keys import storage_key_of
from tests.integration.harness import Cluster, cellctl

RECORD = 16 << 10
TASKS = 8
UNDISTURBED_S = 10.0


class Clients:
    """Tasks that put and get; latencies in seconds by kind, and when writes were acknowledged."""

    def __init__(self, ns: AsyncNamespace, keys: list[str]) -> None:
        self.ns = ns
        self.keys = keys
        self.took: dict[str, list[float]] = {"put": [], "get": []}
        self.acked: list[float] = []
        self.failed = 0
        self.stop = False

    async def run(self) -> None:
        work = [self._one("put", n) for n in range(TASKS)] + [self._one("get", n) for n in range(TASKS)]
        await asyncio.gather(*work)

    async def _one(self, kind: str, number: int) -> None:
        mine = self.keys[number::TASKS]
        count = 0
        while not self.stop:
            key = mine[count % len(mine)]
            count += 1
            began = time.monotonic()
            try:
                if kind == "put":
                    await self.ns.put(key, b"%d" % count)
                    self.acked.append(time.monotonic())
                else:
                    await self.ns.get(key)
                self.took[kind].append(time.monotonic() - began)
            except MetastoreError:
                self.failed += 1
            await asyncio.sleep(0.002)

    def cut(self) -> dict[str, list[float]]:
        """What was measured since the last call."""
        took, self.took = self.took, {"put": [], "get": []}
        return took


async def fill(client: AsyncClient, directory: str, mib: int) -> None:
    ns = client.namespace("bench")
    numbers = iter(range(mib * (1 << 20) // RECORD))

    async def worker() -> None:
        for number in numbers:
            await ns.put(f"{directory}/big-{number}", os.urandom(RECORD))

    await asyncio.gather(*(worker() for _ in range(32)))


def longest_gap_ms(acked: list[float], since: float) -> float:
    times = [t for t in acked if t >= since]
    return max(b - a for a, b in itertools.pairwise(times)) * 1000


async def measure(cluster: Cluster, mib: int) -> None:
    async with cluster.client(deadline_s=60) as client:
        table = client.dispatcher.table

        def home(directory: str) -> int:
            return table.route(storage_key_of("bench", f"{directory}/x")).id

        moved = "d0"
        p = home(moved)
        elsewhere = next(f"d{n}" for n in range(1, 1000) if home(f"d{n}") != p)
        await fill(client, moved, mib)
        ns = client.namespace("bench")
        here = Clients(ns, [f"{moved}/small-{n}" for n in range(64)])
        other = Clients(ns, [f"{elsewhere}/small-{n}" for n in range(64)])
        running = [asyncio.create_task(c.run()) for c in (here, other)]
        await asyncio.sleep(3)
        here.cut(), other.cut()
        began = time.monotonic()
        await asyncio.sleep(UNDISTURBED_S)
        quiet = {"moved": here.cut(), "others": other.cut()}
        calm_gap = longest_gap_ms(here.acked, began)
        cell = table.partitions[p].cell
        to = ",".join(cluster.names("c2" if cell == "c1" else "c1"))
        leader = table.partitions[p].leader
        assert leader is not None
        size = sum(x["bytes"] for x in cluster.status(leader)["partitions"] if x["id"] == p)
        began = time.monotonic()
        args = ("partition", "move", str(p), "--to", to, "--yes", "--data", str(cluster.data))
        await asyncio.to_thread(cellctl, *args)
        took = time.monotonic() - began
        busy = {"moved": here.cut(), "others": other.cut()}
        gap = longest_gap_ms(here.acked, began)
        here.stop = other.stop = True
        await asyncio.gather(*running)
    rows = []
    for who in ("moved", "others"):
        for kind in ("put", "get"):
            for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
                a, b = percentile(quiet[who][kind], q) * 1000, percentile(busy[who][kind], q) * 1000
                rows.append([who, kind, name, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"])
    show(["partition", "operation", "", "undisturbed ms", "while it moves ms", "ratio"], rows)
    print(
        f"{size / (1 << 20):.0f} MiB to three nodes in {took:.1f} s ({3 * size / (1 << 20) / took:.0f} MiB/s in all); longest "
        f"time between two acknowledged writes of the partition {gap:.0f} ms (undisturbed {calm_gap:.0f} ms); "
        f"failed: {here.failed + other.failed}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the partition")
    parser.add_argument("--rate", type=int, default=64, help="snapshot_mib_s of the nodes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        settings = (f"snapshot_mib_s={args.rate}",)
        cluster = Cluster.up(Path(folder) / "data", cells=2, partitions=4, settings=settings)
        try:
            asyncio.run(measure(cluster, args.mib))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
