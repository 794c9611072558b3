"""How cost and latency change with what varies: ``python -m bench.curves``.

Latency against offered load (open loop), for metastore and etcd; cost of a put and a get against the value's size;
the time a killed node takes to be back against the size of its log; memory for each million records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.compare import VALUE, at_rate, fill, turn
from bench.drive import Load, close
from bench.measure import show
from bench.peers import KEYS, MetastorePeer, peers
from bench.wire import Wrong

RATES = (500, 1000, 2000, 4000, 6000, 8000, 12_000, 16_000, 24_000)
SIZES = (16, 100, 1000, 4000, 16_000, 64_000, 256_000)
SIZED_KEYS = 16
#: beyond it a rate counts as not kept up with
HOPELESS_MS = 1000.0


async def offered(started: dict[str, Any], seconds: float) -> dict[str, list[dict[str, float]]]:
    """p50 and p99 of puts at each rate, until a peer no longer keeps up."""
    found: dict[str, list[dict[str, float]]] = {p: [] for p in started}
    over: set[str] = set()
    for rate in RATES:
        for name, peer in started.items():
            if name in over:
                continue
            try:
                r = await at_rate(peer, rate, seconds)
            except Wrong as e:
                print(f"{name} at {rate}/s: {e}")
                over.add(name)
                continue
            row = {"rate": rate, "p50_ms": round(r.ms(0.5), 2), "p99_ms": round(r.ms(0.99), 2)}
            row["server_us"] = round(r.server_us, 1)
            print(name, row, flush=True)
            if row["p50_ms"] > HOPELESS_MS:
                over.add(name)
            else:
                found[name].append(row)
    return found


async def by_size(peer: Any, seconds: float) -> list[dict[str, float]]:
    """8 connections with 4 outstanding each; puts then gets of values of that size."""
    rows = []
    for size in SIZES:
        row: dict[str, float] = {"bytes": size}
        for kind in ("put", "get"):
            connections = await peer.connections(8, b"x" * size)
            for connection in connections:  # few keys, so that every one holds a value of this size
                speaker: Any = connection.speaker
                speaker.targets = speaker.targets[:SIZED_KEYS]
            await asyncio.sleep(0.2)
            await Load(connections, kind, 4, KEYS).run(2.0, peer.pids())
            r = await Load(connections, kind, 4, KEYS).run(seconds, peer.pids())
            await close(connections)
            row |= {f"{kind}_per_second": round(r.rate), f"{kind}_server_us": round(r.server_us, 1)}
            row[f"{kind}_mib_per_second"] = round(r.rate * size / (1 << 20), 1)
        print(row, flush=True)
        rows.append(row)
    return rows


def resident(pid: int) -> int:
    """Bytes of memory that are the process's own: files that it maps (LMDB's state) are the kernel's to drop."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) << 10


async def memory(folder: Path, millions: float) -> list[dict[str, float]]:
    """One node of one partition, filled by quarters; after each its own memory, and the state on disk."""
    from tests.integration.harness import Cluster

    cluster = Cluster.up(folder / "memory", cells=1, nodes=1, partitions=1)
    try:
        pid = cluster.json()["nodes"][0]["pid"]
        rows: list[dict[str, float]] = [
            {"records": 0, "anonymous_mib": round(resident(pid) / (1 << 20)), "state_mib": 0}
        ]
        total = int(millions * 1e6)
        async with cluster.client(deadline_s=60) as client:
            ns = client.namespace("memory")
            for quarter in range(4):
                numbers = iter(range(quarter * total // 4, (quarter + 1) * total // 4))

                async def work(numbers: Any = numbers) -> None:
                    for n in numbers:
                        await ns.put(f"d{n // 100}/k{n}", VALUE)

                await asyncio.gather(*(work() for _ in range(512)))
                await asyncio.sleep(3)
                state = folder / "memory" / "nodes" / "c1n1" / "state" / "data.mdb"
                used = state.stat().st_blocks * 512
                row: dict[str, float] = {
                    "records": (quarter + 1) * total // 4,
                    "anonymous_mib": round(resident(pid) / (1 << 20)),
                    "state_mib": round(used / (1 << 20)),
                }
                print(row, flush=True)
                rows.append(row)
        return rows
    finally:
        cluster.down()


async def recovery(folder: Path) -> list[dict[str, float]]:
    """A node killed under load, and what its log holds then; from its start until it answers as a replica."""
    rows = []
    for mib in (8, 32, 64, 128):
        peer = MetastorePeer(folder / f"recovery-{mib}", partitions=8)
        try:
            cluster = peer.cluster
            connections = await peer.connections(8, b"x" * 1000)
            await asyncio.sleep(0.2)
            began = time.monotonic()
            while True:
                await Load(connections, "put", 16, KEYS).run(0.5, peer.pids())
                held = cluster.status("c1n1")["storage"]["log_bytes"]
                applied = sum(p["applied_index"] for p in cluster.status("c1n1")["partitions"])
                written = mib << 20
                if (applied and _log_size(peer, "c1n1") >= written) or time.monotonic() - began > 60:
                    break
            await close(connections)
            cluster.verb("kill", "c1n1")
            size = _log_size(peer, "c1n1")
            at = time.monotonic()
            await asyncio.to_thread(cluster.verb, "restart", "c1n1")
            while True:
                try:
                    if len(cluster.status("c1n1")["partitions"]) == 8:
                        break
                except OSError:
                    pass
                await asyncio.sleep(0.01)
            rows.append(
                {"log_mib": round(size / (1 << 20)), "segments_mib": round(held / (1 << 20)), "seconds": round(time.monotonic() - at, 2)}
            )  # fmt: skip
            print(rows[-1], flush=True)
        finally:
            peer.stop()
            shutil.rmtree(folder / f"recovery-{mib}", ignore_errors=True)
    return rows


def _log_size(peer: MetastorePeer, name: str) -> int:
    """Bytes that were written to segments that are still there: full ones, and the last one's part."""
    folder = peer.cluster.data / "nodes" / name / "log"
    full = sorted(folder.glob("*.seg"))
    if not full:
        return 0
    size = sum(f.stat().st_size for f in full[:-2])
    for last in full[-2:]:
        with last.open("rb") as f:
            data = f.read()
        size += len(data.rstrip(b"\0"))
    return size


def tables(found: dict[str, Any]) -> None:
    if "offered" in found:
        rows = []
        for rate in RATES:
            cells: list[Any] = [f"{rate:,}"]
            for rows_of in found["offered"].values():
                at = next((r for r in rows_of if r["rate"] == rate), None)
                cells += [at["p50_ms"], at["p99_ms"], at["server_us"]] if at else ["-", "-", "-"]
            rows.append(cells)
        names = [f"{p} {what}" for p in found["offered"] for what in ("p50 ms", "p99 ms", "server µs/op")]
        show(["puts offered/s", *names], rows)
        print()
    for part in ("sizes", "memory", "recovery"):
        if part in found:
            show(list(found[part][0]), [list(r.values()) for r in found[part]])
            print()


def run(seconds: float, millions: float, parts: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def with_peers(started: dict[str, Any]) -> None:
        for peer in started.values():
            await fill(peer)
        if "offered" in parts:
            found["offered"] = await offered(started, seconds)
        if "sizes" in parts:
            await turn(started["metastore"], "get", 8, 4, 0.5)
            found["sizes"] = await by_size(started["metastore"], seconds)

    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as name:
        folder = Path(name)
        if parts & {"offered", "sizes"}:
            with peers(folder, ["metastore", "etcd"]) as started:
                uvloop.run(with_peers(started))
        if "recovery" in parts:
            found["recovery"] = uvloop.run(recovery(folder))
        if "memory" in parts:
            found["memory"] = uvloop.run(memory(folder, millions))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--millions", type=float, default=1.0)
    parser.add_argument("--parts", default="offered,sizes,recovery,memory")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.seconds, args.millions, set(args.parts.split(",")))
    tables(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
