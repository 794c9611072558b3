"""What adding cells does: ``python -m bench.scaling``. Two cores say little by themselves, so it is shown three ways.

quota      The processes of each cell together get a fixed share of one core (a CPU quota of cgroups), so small that the
           machine is not the limit: throughput against the number of cells, against linear, with the Universal
           Scalability Law fitted: X(n) = a n / (1 + s (n - 1) + k n (n - 1)).
cost       Server CPU per operation at one and the same load, against the number of cells, and of partitions.
control    What the control plane does for n nodes: stubs that register, hold a lease and watch all records, as nodes
           do; requests a second and CPU of etcd, what one election costs everybody; and a router's memory for so
           many partitions. Extrapolated to 10,000 nodes and a million partitions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.compare import VALUE, fill
from bench.curves import resident
from bench.drive import Load, Offered, close
from bench.measure import cpu_seconds, show
from bench.peers import KEYS, MetastorePeer
from cellctl.dev_files import pick_ports
from metastore.coordination.embedded import etcd_command, wait_healthy
from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Put
from metastore.layout import (
    CellRecord,
    ClusterMeta,
    ConfigRecord,
    Layout,
    LeaderRecord,
    NodeRecord,
    first_epoch,
    to_json,
)
from metastore.placement import RING

CGROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 20_000
SHARE = 0.15
CELLS = (1, 2, 4, 8)
PARTITIONS = (4, 16, 64, 256)
FIXED_RATE = 2000.0
STUBS = (50, 100, 200, 400)
TABLES = (256, 1024, 4096, 8192)


# --- quota ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quotas(peer: MetastorePeer, share: float) -> Iterator[bool]:
    """Hold each cell to ``share`` of a core; whether that can be done here."""
    made: list[Path] = []
    try:
        try:
            for cell in sorted({n["cell"] for n in peer.cluster.json()["nodes"]}):
                group = CGROUPS / f"metastore-bench-{os.getpid()}-{cell}"
                group.mkdir()
                made.append(group)
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * share)))
                for node in peer.cluster.json()["nodes"]:
                    if node["cell"] == cell:
                        (group / "cgroup.procs").write_text(str(node["pid"]))
        except OSError as e:
            print(f"no CPU quota can be set here ({e}): skipped")
            yield False
            return
        yield True
    finally:
        for group in made:
            with contextlib.suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    (CGROUPS / "cgroup.procs").write_text(pid)
                group.rmdir()


async def by_quota(seconds: float) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for cells in CELLS:
        with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
            peer = MetastorePeer(Path(folder), cells=cells, partitions=8 * cells)
            try:
                await fill(peer)
                with quotas(peer, SHARE) as possible:
                    if not possible:
                        return []
                    connections = await peer.connections(12 * cells, VALUE)
                    await asyncio.sleep(1)
                    row: dict[str, float] = {"cells": cells}
                    for kind in ("put", "get"):
                        await Load(connections, kind, 8, KEYS).run(2.0, peer.pids())
                        r = await Load(connections, kind, 8, KEYS).run(seconds, peer.pids())
                        row |= {
                            f"{kind}_per_second": round(r.rate),
                            f"{kind}_server_us": round(r.server_us, 1),
                            f"{kind}_load_us": round(r.load_us, 1),
                        }
                    rows.append(row)
                    print(row, flush=True)
                    await close(connections)
            finally:
                peer.stop()
    for row in rows:
        for kind in ("put", "get"):
            row[f"{kind}_efficiency"] = round(
                row[f"{kind}_per_second"] / (row["cells"] * rows[0][f"{kind}_per_second"]), 3
            )
    return rows


def fit(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """``(a, s, k)`` of the Universal Scalability Law: n / X is linear in 1, n - 1 and n (n - 1)."""
    rows = [((1.0, n - 1, n * (n - 1)), n / x) for n, x in points]
    normal = [[sum(r[i] * r[j] for r, _ in rows) for j in range(3)] for i in range(3)]
    right = [sum(r[i] * y for r, y in rows) for i in range(3)]
    for i in range(3):  # Gauss
        pivot = max(range(i, 3), key=lambda j: abs(normal[j][i]))
        normal[i], normal[pivot], right[i], right[pivot] = normal[pivot], normal[i], right[pivot], right[i]
        for j in range(i + 1, 3):
            factor = normal[j][i] / normal[i][i]
            right[j] -= factor * right[i]
            normal[j] = [a - factor * b for a, b in zip(normal[j], normal[i], strict=True)]
    solved = [0.0, 0.0, 0.0]
    for i in (2, 1, 0):
        rest = sum(normal[i][j] * solved[j] for j in range(i + 1, 3))
        solved[i] = (right[i] - rest) / normal[i][i]
    return 1 / solved[0], solved[1] / solved[0], solved[2] / solved[0]


# --- cost ------------------------------------------------------------------------------------------------


async def cost_of(cells: int, partitions: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        peer = MetastorePeer(Path(folder), cells=cells, partitions=partitions)
        try:
            await asyncio.sleep(2)
            cpu, began = cpu_seconds(peer.pids()), time.perf_counter()
            await asyncio.sleep(5)
            idle = (cpu_seconds(peer.pids()) - cpu) / (time.perf_counter() - began)
            await fill(peer)
            connections = await peer.connections(24, VALUE)
            await asyncio.sleep(0.5)
            row: dict[str, float] = {"cells": cells, "partitions": partitions}
            for kind in ("put", "get"):
                await Offered(connections, kind, FIXED_RATE, KEYS).run(1.0, peer.pids())
                r = await Offered(connections, kind, FIXED_RATE, KEYS).run(seconds, peer.pids())
                row[f"{kind}_server_us"] = round(r.server_us, 1)
            row["idle_cores"] = round(idle, 3)
            row["put_beyond_idle_us"] = round(row["put_server_us"] - idle / FIXED_RATE * 1e6, 1)
            await close(connections)
            print(row, flush=True)
            return row
        finally:
            peer.stop()


async def costs(seconds: float) -> list[dict[str, float]]:
    rows = [await cost_of(cells, 16, seconds) for cells in (1, 2, 4)]
    return rows + [await cost_of(1, partitions, seconds) for partitions in PARTITIONS]


# --- the control plane ---------------------------------------------------------------------------------------


def etcd_counts(url: str) -> dict[str, float]:
    """Requests handled, and bytes sent to clients, since its start."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    handled = sent = 0.0
    for line in text.splitlines():
        if line.startswith("grpc_server_handled_total{"):
            handled += float(line.rpartition(" ")[2])
        elif line.startswith("etcd_network_client_grpc_sent_bytes_total"):
            sent += float(line.rpartition(" ")[2])
    return {"handled": handled, "sent": sent}


async def control(seconds: float) -> dict[str, Any]:
    """Stub nodes, each with a connection, a lease, its records and a watch of its own."""
    found: dict[str, Any] = {"nodes": [], "router": []}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as name:
        ports = pick_ports("127.0.0.1", ["client", "peer", "router"], set())
        quiet = asyncio.subprocess.DEVNULL
        command = etcd_command(Path(name) / "etcd", "etcd", ports["client"], ports["peer"])
        etcd = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
        url = f"http://127.0.0.1:{ports['client']}"
        try:
            assert await asyncio.to_thread(wait_healthy, url, 30.0)
            address = f"127.0.0.1:{ports['client']}"
            await _stubs(found["nodes"], etcd.pid, url, address, seconds)
            await _routers(found["router"], address, ports["router"], name)
        finally:
            etcd.kill()
            await etcd.wait()
    return found


async def _stubs(rows: list[Any], pid: int, url: str, address: str, seconds: float) -> None:
    layout = Layout("stubs")
    stubs: list[Any] = []
    told = 0

    def on_change(_: int, changes: list[Any]) -> None:
        nonlocal told
        told += len(changes)

    for count in STUBS:
        while len(stubs) < count:
            number = len(stubs)
            coordinator = EtcdCoordinator([address])
            session = coordinator.session(5.0)
            session.start()
            record = NodeRecord(
                f"n{number}", f"c{number // 3}", f"{number:032x}", f"h{number}:1", f"h{number}:2"
            )
            watch = coordinator.watch(layout.root, on_change)
            while not session.alive:
                await asyncio.sleep(0.005)
            puts = [Put(layout.node(record.node), to_json(record)), Put(layout.presence(record.node), b"x" * 32, session.lease_id)]  # fmt: skip
            await coordinator.txn([], puts)
            stubs.append((coordinator, session, watch))
        await asyncio.sleep(3)
        before, cpu, began = etcd_counts(url), cpu_seconds([pid]), time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        after, spent = etcd_counts(url), cpu_seconds([pid]) - cpu
        told, elected = 0, time.perf_counter()
        cpu = cpu_seconds([pid])
        elections = 20
        for p in range(elections):
            config = ConfigRecord(p, 0, 1, first_epoch(1), "n0", (("n0", "s"), ("n1", "s"), ("n2", "s")))
            leader = LeaderRecord("n0", "i", first_epoch(1))
            await stubs[0][0].txn([], [Put(layout.config("c0", p), config.to_json()), Put(layout.leader("c0", p), leader.to_json())])  # fmt: skip
        while told < 2 * elections * count and time.perf_counter() - elected < 20:
            await asyncio.sleep(0.01)
        done = etcd_counts(url)
        rows.append(
            {
                "nodes": count,
                "requests_per_second": round((after["handled"] - before["handled"]) / took, 1),
                "idle_kib_per_second": round((after["sent"] - before["sent"]) / took / 1024, 1),
                "etcd_cores": round(spent / took, 3),
                "etcd_mib": round(resident(pid) / (1 << 20)),
                "election_etcd_ms": round((cpu_seconds([pid]) - cpu) / elections * 1000, 2),
                "election_kib": round((done["sent"] - after["sent"]) / elections / 1024, 1),
            }
        )
        print(rows[-1], flush=True)
    for coordinator, session, watch in stubs:
        watch.close()
        await session.close()
        await coordinator.close()


async def _routers(rows: list[Any], address: str, port: int, folder: str) -> None:
    """A router beside a table of so many partitions of 100 nodes: its memory, and how long until it is ready."""
    import sys

    coordinator = EtcdCoordinator([address])
    nodes = [
        NodeRecord(f"n{i}", f"c{i // 3}", f"{i:032x}", f"10.0.0.{i}:7100", f"10.0.0.{i}:7101")
        for i in range(99)
    ]
    for partitions in TABLES:
        layout = Layout(f"table{partitions}")
        puts = [Put(layout.node(n.node), to_json(n)) for n in nodes]
        puts += [Put(layout.cell(f"c{c}"), CellRecord().to_json()) for c in range(33)]
        width = (1 << 64) // partitions
        for p in range(partitions):
            cell = p % 33
            members = tuple((n.node, n.store_id) for n in nodes[3 * cell : 3 * cell + 3])
            config = ConfigRecord(p, p * width, (p + 1) * width, first_epoch(1), members[0][0], members)
            puts.append(Put(layout.config(f"c{cell}", p), config.to_json()))
        puts.append(Put(layout.meta, to_json(ClusterMeta(1, layout.cluster, partitions, "xxh3", RING))))
        for start in range(0, len(puts), 100):
            await coordinator.txn([], list(puts[start : start + 100]))
        began = time.monotonic()
        command = ("--cluster", layout.cluster, "--etcd", address, "--http", f"127.0.0.1:{port}")
        snapshot = f"{folder}/{partitions}.table"
        quiet = asyncio.subprocess.DEVNULL
        router = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router.main",
            *command,
            "--snapshot-path",
            snapshot,
            stdout=quiet,
            stderr=quiet,
        )
        try:
            while True:
                try:
                    with urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/v1/topology", timeout=5
                    ) as response:
                        raw = response.read()
                    if len(json.loads(raw)["partitions"]) == partitions:
                        break
                    await asyncio.sleep(0.02)
                except OSError:
                    await asyncio.sleep(0.05)
            ready = time.monotonic() - began
            await asyncio.sleep(2)
            rows.append(
                {"partitions": partitions, "router_mib": round(resident(router.pid) / (1 << 20), 1), "table_kib": round(len(raw) / 1024), "ready_s": round(ready, 2)}
            )  # fmt: skip
            print(rows[-1], flush=True)
        finally:
            router.kill()
            await router.wait()
    await coordinator.close()


def slope(rows: list[dict[str, float]], x: str, y: str) -> tuple[float, float]:
    """Least squares: ``(at 0, for each of x)``."""
    n = len(rows)
    mean_x, mean_y = sum(r[x] for r in rows) / n, sum(r[y] for r in rows) / n
    up = sum((r[x] - mean_x) * (r[y] - mean_y) for r in rows)
    each = up / sum((r[x] - mean_x) ** 2 for r in rows)
    return mean_y - each * mean_x, each


def extrapolated(found: dict[str, Any]) -> list[list[str]]:
    """To 10,000 nodes and a million partitions, by straight lines."""
    nodes, tables_ = found["nodes"], found["router"]
    rows = []
    for name, unit in (
        ("requests_per_second", "requests/s at rest"),
        ("etcd_cores", "cores of etcd at rest"),
        ("election_etcd_ms", "ms of etcd's CPU for one election"),
        ("election_kib", "KiB sent for one election"),
    ):
        base, each = slope(nodes, "nodes", name)
        rows.append([unit, f"{each:.4g} a node", f"{base + each * 10_000:,.0f}"])
    for name, unit in (
        ("router_mib", "MiB of a router"),
        ("table_kib", "KiB of the table"),
        ("ready_s", "s until a router serves"),
    ):
        base, each = slope(tables_, "partitions", name)
        rows.append([unit, f"{each:.4g} a partition", f"{base + each * 1_000_000:,.0f}"])
    return rows


def tables(found: dict[str, Any]) -> None:
    if found.get("quota"):
        show(list(found["quota"][0]), [list(r.values()) for r in found["quota"]])
        for kind, (a, s, k) in found["usl"].items():
            print(f"{kind}: X(n) = {a:,.0f} n / (1 + {s:.4f} (n - 1) + {k:.5f} n (n - 1))")
        print()
    if "cost" in found:
        show(list(found["cost"][0]), [list(r.values()) for r in found["cost"]])
        print()
    if "control" in found:
        for part in ("nodes", "router"):
            show(list(found["control"][part][0]), [list(r.values()) for r in found["control"][part]])
            print()
        show(["", "measured", "10,000 nodes, a million partitions"], extrapolated(found["control"]))


def run(seconds: float, parts: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "quota" in parts:
        found["quota"] = uvloop.run(by_quota(seconds))
        if found["quota"]:
            found["usl"] = {
                kind: fit([(r["cells"], r[f"{kind}_per_second"]) for r in found["quota"]])
                for kind in ("put", "get")
            }
    if "cost" in parts:
        found["cost"] = uvloop.run(costs(seconds))
    if "control" in parts:
        found["control"] = asyncio.run(control(seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--parts", default="quota,cost,control")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.seconds, set(args.parts.split(",")))
    tables(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
