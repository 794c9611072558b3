"""What the control plane costs a node by how much of it there is: ``python -m bench.control_cost``.

One node in this process, with a real store on disk, follows an etcd that is in memory: 10 namespaces and 16 partitions beside
10,000 and 8,192, in turns. It holds four partitions of either; the others are other nodes'. Measured are the CPU time of an idle
second; the CPU time of a change of one record (a namespace, a partition's leader, a node's address), without the idle
second's; what the change writes to the log, and to the state when that is saved; and the bytes of the answer to a client that
asks for the topology again after it. Ratios of one run are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import show
from metastore.config import NodeConfig
from metastore.coordination.interface import Op, Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.layout import ConfigRecord, Layout, LeaderRecord, NodeRecord, first_epoch, to_json
from metastore.namespaces import Policy
from metastore.node.clients import ClientConnection
from metastore.node.node import Node
from metastore.node.startup import take_part
from metastore.storage.store import Store
from metastore.wire import frames

LAYOUT = Layout("metastore")
SIZES = ((16, 10), (8192, 10_000))
HELD = 4
OTHERS = 24
POLL_S = 0.02
ME = "f"
CHANGES = 10


@dataclass
class Case:
    """A node with so much to know. ``term`` grows with each change of a leader."""

    node: Node
    etcd: MemoryEtcd
    address: str
    partitions: int
    namespaces: int
    term: int = 10
    number: int = 0
    state_bytes: int = 0
    start_ms: float = 0.0


def members(p: int) -> tuple[tuple[str, str], ...]:
    return tuple((f"n{(p + i) % OTHERS}", f"s{(p + i) % OTHERS}") for i in range(3))


def config(p: int, count: int, store: str, term: int) -> ConfigRecord:
    width = (1 << 64) // count
    of = ((ME, store),) if p < HELD else members(p)
    return ConfigRecord(p, p * width, (p + 1) * width, first_epoch(term), of[0][0], of)


def other(n: int, port: int = 1) -> NodeRecord:
    return NodeRecord(f"n{n}", "c2", f"s{n}", f"10.0.0.{n}:{port}", f"10.0.0.{n}:2")


def fill(etcd: MemoryEtcd, store: str, partitions: int, namespaces: int) -> None:
    def put(key: str, value: bytes) -> None:
        etcd.txn([], [Put(key, value)], [])

    for n in range(OTHERS):
        put(LAYOUT.node(f"n{n}"), to_json(other(n)))
    for p in range(partitions):
        put(LAYOUT.config("c1" if p < HELD else "c2", p), config(p, partitions, store, 1).to_json())
        if p >= HELD:
            leader = LeaderRecord(members(p)[0][0], "run", first_epoch(1))
            put(LAYOUT.leader("c2", p), leader.to_json())
    for n in range(namespaces):
        put(LAYOUT.namespace(f"namespace-{n}"), Policy(max_records=1000 * (n % 2)).to_json())
    etcd.compact()


@asynccontextmanager
async def running(folder: Path, partitions: int, namespaces: int) -> AsyncIterator[Case]:
    loop, etcd = asyncio.get_running_loop(), MemoryEtcd()
    store = Store.open(folder, cluster="metastore", node=ME)
    fill(etcd, store.store_id, partitions, namespaces)
    node: Node
    server = await loop.create_server(lambda: ClientConnection(node), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = NodeConfig(
        cell="c1", node=ME, data_dir=str(folder), rpc=address, http="127.0.0.1:1", lease_ttl_s=600
    )
    node = Node(settings, store, "run1")
    case = Case(node, etcd, address, partitions, namespaces)
    write = store.state.write

    def counted(job: Any, records: Any = ()) -> None:
        records = list(records)
        case.state_bytes += sum(len(key) + len(value or b"") for _, key, value in job)
        case.state_bytes += sum(len(key) + len(value or b"") for key, value in records)
        write(job, records)

    store.state.write = counted  # type: ignore[method-assign]
    cpu = time.process_time()
    try:
        await take_part(node, MemoryCoordinator(etcd, loop.time, poll_s=POLL_S))
        await until(lambda: sum(h.role == "active" for h in node.partitions.values()) == HELD)
        await asyncio.sleep(3)
        case.start_ms = (time.process_time() - cpu) * 1000
        etcd.compact()
        yield case
    finally:
        server.close()
        await node.stop(hand_over=False)


async def until(true: Callable[[], bool], patience_s: float = 120.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the node does not come to where it should be")
        await asyncio.sleep(0.01)


async def idle(seconds: float) -> float:
    """CPU milliseconds of a second."""
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) * 1000 / (time.monotonic() - began)


async def calls(seconds: float) -> float:
    """Calls of functions, Python's and C's, in a second: the same on every machine, as far as it keeps up."""
    count = 0

    def seen(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    began = time.monotonic()
    sys.setprofile(seen)
    await asyncio.sleep(seconds)
    sys.setprofile(None)
    return count / (time.monotonic() - began)


def namespace(case: Case) -> Op:
    return Put(LAYOUT.namespace("namespace-1"), Policy(max_records=5000 + case.number).to_json())


def leader(case: Case) -> Op:
    case.term += 1
    record = LeaderRecord(f"n{case.number % OTHERS}", "run", first_epoch(case.term))
    return Put(LAYOUT.leader("c2", case.partitions - 1), record.to_json())


def node_record(case: Case) -> Op:
    return Put(LAYOUT.node("n3"), to_json(other(3, 1000 + case.number)))


async def asked(case: Case, revision: int) -> int:
    """Bytes of the answer to a client that has the table of that revision."""
    host, port = case.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 25)
    writer.write(frames.pack(frames.HELLO, ["", "bench"]))
    writer.write(frames.pack(frames.TOPOLOGY_REQUEST, [revision]))
    size = 0
    for _ in range(2):
        (size,) = struct.unpack(">I", await reader.readexactly(4))
        await reader.readexactly(size)
    writer.close()
    return size


async def saved(case: Case) -> int:
    """Bytes that saving the state writes now."""
    store = case.node.store
    await until(lambda: store.changes.flushing is None)
    before, flushes = case.state_bytes, store.checkpoints.count
    store.checkpoints.freeze()
    store.start_sync()
    store.checkpoints.submit()
    await until(lambda: store.checkpoints.count > flushes)
    return case.state_bytes - before


async def changed(case: Case, make: Callable[[Case], Op], idle_ms: float) -> dict[str, float]:
    """What one change costs, the mean of some."""
    node = case.node
    await saved(case)
    bytes_before, cpu, began = logged(case), time.process_time(), time.monotonic()
    revision = node.topology.revision
    for _ in range(CHANGES):
        case.number += 1
        revision = node.topology.revision
        case.etcd.txn([], [make(case)], [])
        await until(lambda: kept(node) >= case.etcd.revision)
    spent = (time.process_time() - cpu) * 1000 - idle_ms * (time.monotonic() - began)
    written = (logged(case) - bytes_before) / CHANGES
    await asyncio.sleep(0.1)
    answer = await asked(case, revision)
    case.etcd.compact()
    return {
        "cpu_ms": max(0.0, spent / CHANGES),
        "log_bytes": written,
        "state_bytes": await saved(case),
        "answer_bytes": answer,
    }


def logged(case: Case) -> int:
    """Where the log ends, in bytes since it began."""
    segment, end = case.node.store.log.durable_end
    return segment * case.node.store.options.segment_bytes + end


def kept(node: Any) -> int:
    """Up to which revision the node's copy is durable."""
    found: int = node.status()["topology_kept"]
    return found


KINDS: dict[str, Callable[[Case], Op]] = {"namespace": namespace, "leader": leader, "node": node_record}


async def measure(turns: int, seconds: float) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for size, (partitions, namespaces) in enumerate(SIZES):
                async with running(Path(folder) / f"{turn}-{size}", partitions, namespaces) as case:
                    idle_ms = await idle(seconds)
                    found.setdefault(("start: cpu ms", size), []).append(case.start_ms)
                    found.setdefault(("idle second: cpu ms", size), []).append(idle_ms)
                    found.setdefault(("idle second: calls", size), []).append(await calls(seconds))
                    for kind, make in KINDS.items():
                        for what, value in (await changed(case, make, idle_ms)).items():
                            found.setdefault((f"{kind}: {what.replace('_', ' ')}", size), []).append(value)
    names = list(dict.fromkeys(name for name, _ in found))
    rows = []
    for name in names:
        small, large = (statistics.median(found[name, size]) for size in (0, 1))
        rows.append([name, f"{small:,.1f}", f"{large:,.1f}", f"{large / small:.2f}" if small else "-"])
    header = [f"{n:,} namespaces, {p:,} partitions" for p, n in SIZES]
    show(["", *header, "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.control_cost", description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of being idle, in each turn")
    options = parser.parse_args()
    asyncio.run(measure(options.turns, options.seconds))


if __name__ == "__main__":
    main()
