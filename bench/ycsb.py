"""The core workloads of YCSB, A to F, through the Python client and through HTTP: ``python -m bench.ycsb``.

Records of ten fields of 100 bytes, kept as one value of 1000 bytes; a read gets all of it, an update replaces all of it
(a store of whole records has no other way). Request distributions as there: zipfian (scrambled, constant 0.99),
latest, uniform for the length of scans (1 to 100). One directory holds 100 records, and a scan reads on from a
record within its directory.

    A 50 % reads, 50 % updates     B 95 % reads, 5 % updates      C reads
    D 95 % reads of the latest, 5 % inserts      E 95 % scans, 5 % inserts      F 50 % reads, 50 % read-modify-write
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.measure import cpu_seconds, percentile, show
from metastore.errors import ConditionFailed
from tests.integration.harness import Cluster

RECORDS = 20_000
PER_DIRECTORY = 100
FIELDS, FIELD_BYTES = 10, 100
TASKS = 64
ZIPFIAN = 0.99
MAX_SCAN = 100

#: workload -> (reads, updates, inserts, scans, read-modify-writes), distribution
WORKLOADS = {
    "A": ((50, 50, 0, 0, 0), "zipfian"),
    "B": ((95, 5, 0, 0, 0), "zipfian"),
    "C": ((100, 0, 0, 0, 0), "zipfian"),
    "D": ((95, 0, 5, 0, 0), "latest"),
    "E": ((0, 0, 5, 95, 0), "zipfian"),
    "F": ((50, 0, 0, 0, 50), "zipfian"),
}


class Zipfian:
    """Gray et al., "Quickly generating billion-record synthetic databases", as YCSB has it."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self.count, self.rng = count, rng
        self._zeta = sum(1 / i**ZIPFIAN for i in range(1, count + 1))
        self._alpha = 1 / (1 - ZIPFIAN)
        zeta2 = 1 + 1 / 2**ZIPFIAN
        self._eta = (1 - (2 / count) ** (1 - ZIPFIAN)) / (1 - zeta2 / self._zeta)

    def rank(self) -> int:
        """0 is the most asked for."""
        u = self.rng.random()
        uz = u * self._zeta
        if uz < 1:
            return 0
        if uz < 1 + 0.5**ZIPFIAN:
            return 1
        return min(self.count - 1, int(self.count * (self._eta * u - self._eta + 1) ** self._alpha))


def scrambled(rank: int) -> int:
    """Spread over all records, always the same (FNV-1a of the rank)."""
    value = 0xCBF29CE484222325
    for byte in rank.to_bytes(8, "little"):
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return value % RECORDS


def key(n: int) -> str:
    return f"users-{n // PER_DIRECTORY:05d}/user{n:08d}"


class Native:
    """Through the Python client, straight to the leaders."""

    name = "Python client"

    def __init__(self, cluster: Cluster) -> None:
        self.client = cluster.client()

    async def start(self) -> None:
        await self.client.start()
        self.ns = self.client.namespace("ycsb")

    async def read(self, n: int) -> None:
        assert await self.ns.get(key(n)) is not None

    async def write(self, n: int, value: bytes) -> None:
        await self.ns.put(key(n), value)

    async def modify(self, n: int, value: bytes) -> None:
        while True:
            record = await self.ns.get(key(n))
            assert record is not None
            try:
                await self.ns.put(key(n), value, version=record.version)
                return
            except ConditionFailed:
                continue

    async def scan(self, n: int, count: int) -> None:
        await self.ns.list(key(n).rpartition("/")[0] + "/", limit=count)

    async def close(self) -> None:
        await self.client.close()


class Http:
    """Through one router."""

    name = "HTTP"

    def __init__(self, cluster: Cluster) -> None:
        self.url = f"{cluster.router}/v1/kv/ycsb"

    async def start(self) -> None:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=TASKS))

    async def _ask(
        self, method: str, url: str, body: bytes | None = None, **headers: str
    ) -> aiohttp.ClientResponse:
        async with self.session.request(method, url, data=body, headers=headers) as response:
            await response.read()
            if response.status not in (200, 201, 204, 412):
                raise RuntimeError(f"{method} {url}: {response.status}")
            return response

    async def read(self, n: int) -> None:
        await self._ask("GET", f"{self.url}/{key(n)}")

    async def write(self, n: int, value: bytes) -> None:
        await self._ask("PUT", f"{self.url}/{key(n)}", value)

    async def modify(self, n: int, value: bytes) -> None:
        while True:
            found = await self._ask("GET", f"{self.url}/{key(n)}")
            done = await self._ask(
                "PUT", f"{self.url}/{key(n)}", value, **{"If-Match": found.headers["ETag"]}
            )
            if done.status != 412:
                return

    async def scan(self, n: int, count: int) -> None:
        await self._ask("GET", f"{self.url}?prefix={key(n).rpartition('/')[0]}/&limit={count}")

    async def close(self) -> None:
        await self.session.close()


async def run_workload(way: Any, name: str, seconds: float, pids: list[int]) -> dict[str, float]:
    shares, distribution = WORKLOADS[name]
    rng = random.Random(name)
    zipfian = Zipfian(RECORDS, rng)
    newest = acknowledged = RECORDS
    ahead: set[int] = set()
    value = os.urandom(FIELDS * FIELD_BYTES)
    took: list[float] = []
    until = 0.0

    def pick() -> int:
        rank = zipfian.rank()
        return max(0, acknowledged - 1 - rank) if distribution == "latest" else scrambled(rank)

    async def insert(_: int) -> None:
        nonlocal newest, acknowledged
        n, newest = newest, newest + 1
        await way.write(n, value)
        ahead.add(n)
        while acknowledged in ahead:  # reads are of what is there for certain
            ahead.remove(acknowledged)
            acknowledged += 1

    acts: list[Callable[[int], Any]] = [
        way.read,
        lambda n: way.write(n, value),
        insert,
        lambda n: way.scan(n, rng.randint(1, MAX_SCAN)),
        lambda n: way.modify(n, value),
    ]

    async def task() -> None:
        while (began := time.perf_counter()) < until:
            await rng.choices(acts, shares)[0](pick())
            took.append(time.perf_counter() - began)

    for duration in (1.0, seconds):
        took.clear()
        cpu, began = cpu_seconds(pids), time.perf_counter()
        until = began + duration
        await asyncio.gather(*(task() for _ in range(TASKS)))
    passed = time.perf_counter() - began
    return {
        "per_second": round(len(took) / passed),
        "server_us": round((cpu_seconds(pids) - cpu) / len(took) * 1e6, 1),
        "p50_ms": round(percentile(took, 0.5) * 1000, 2),
        "p99_ms": round(percentile(took, 0.99) * 1000, 2),
    }


async def measure(cluster: Cluster, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    state = cluster.json()
    nodes = [n["pid"] for n in state["nodes"]]
    found: dict[str, dict[str, dict[str, float]]] = {}
    native = Native(cluster)
    await native.start()
    numbers = iter(range(RECORDS))

    async def load() -> None:
        for n in numbers:
            await native.write(n, os.urandom(FIELDS * FIELD_BYTES))

    await asyncio.gather(*(load() for _ in range(TASKS)))
    http = Http(cluster)
    await http.start()
    for name in WORKLOADS:
        found[name] = {
            native.name: await run_workload(native, name, seconds, nodes),
            http.name: await run_workload(http, name, seconds, [*nodes, state["router"]["pid"]]),
        }
        print(name, found[name], flush=True)
    await native.close()
    await http.close()
    return found


def tables(found: dict[str, dict[str, dict[str, float]]]) -> None:
    show(
        ["workload", "through", "operations/s", "server CPU µs/op (HTTP: with the router)", "p50 ms", "p99 ms"],
        [[w, way, f"{v['per_second']:,.0f}", v["server_us"], v["p50_ms"], v["p99_ms"]] for w, ways in found.items() for way, v in ways.items()],
    )  # fmt: skip


def run(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        cluster = Cluster.up(Path(folder) / "data", partitions=8)
        try:
            return uvloop.run(measure(cluster, seconds))
        finally:
            cluster.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.seconds)
    tables(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
