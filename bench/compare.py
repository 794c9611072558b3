"""metastore beside its peers, in one run on one machine: ``python -m bench.compare``.

Every figure is a median over turns that alternate between the peers, so that what else the machine does hits all of
them. 100-byte values, 24-byte keys, three replicas, durable on a majority before the answer (etcd and metastore;
Redis: on the disk of one and of one copy). Every server has its own best settings and is spoken to in its own
protocol by one process, which says what it needs itself (load µs/op): it is not what is measured as long as that
is well below the time between two answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.drive import Driven, Load, Offered, Result, close
from bench.measure import cpu_seconds, show
from bench.peers import DIRECTORIES, HOST, KEYS, PER_DIRECTORY, EtcdPeer, MetastorePeer, key, peers
from bench.wire import Etcd, Metastore, Wrong, count_fields, target
from metastore.wire import frames

VALUE = b"x" * 100
#: what is measured: name, kind, connections, outstanding on each
CLOSED = (
    ("put 64 x 1", "put", 64, 1),
    ("put 1 x 64", "put", 1, 64),
    ("put 8 x 32", "put", 8, 32),
    ("get 64 x 1", "get", 64, 1),
    ("get 1 x 64", "get", 1, 64),
    ("get 8 x 32", "get", 8, 32),
    ("list of 100, 16 x 1", "listing", 16, 1),
)
WATCHERS = 100
PEERS = ("metastore", "metastore-8", "etcd", "Redis")


async def fill(peer: Any) -> None:
    """Every key once. Each connection of metastore's has the keys of one leader."""
    count = len(peer.targets()) if isinstance(peer, MetastorePeer) else 1
    connections = await peer.connections(count, VALUE)
    await asyncio.sleep(0.3)
    for connection in connections:
        speaker = connection.speaker
        count = len(speaker.targets if isinstance(speaker, Metastore) else speaker.keys)
        load = Load([connection], "put", 0, count)
        load.stopping, connection.load = True, load
        for start in range(0, count, 256):
            numbers = iter(range(start, min(start + 256, count)))
            load._idle.clear()
            load._outstanding = min(256, count - start)
            connection.send("put", load._outstanding, lambda numbers=numbers: next(numbers))
            async with asyncio.timeout(60):
                await load._idle.wait()
            if load.problem is not None:
                raise load.problem
    await close(connections)


async def turn(peer: Any, kind: str, count: int, depth: int, seconds: float) -> Result:
    connections = await peer.connections(count, VALUE)
    await asyncio.sleep(0.2)
    try:
        await Load(connections, kind, depth, KEYS).run(0.5, peer.pids())
        return await Load(connections, kind, depth, KEYS).run(seconds, peer.pids())
    finally:
        await close(connections)


def middle(results: list[Result], what: str) -> float:
    values: list[float] = [getattr(r, what) for r in results]
    return statistics.median(values)


async def closed_loops(started: dict[str, Any], turns: int, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind, count, depth in CLOSED:
        results: dict[str, list[Result]] = {p: [] for p in started}
        for _ in range(turns):
            for peer_name, peer in started.items():
                if kind == "listing" and peer_name == "Redis":
                    continue
                results[peer_name].append(await turn(peer, kind, count, depth, seconds))
        found[name] = {
            p: {
                "per_second": round(middle(rs, "rate")),
                "per_second_min": round(min(r.rate for r in rs)),
                "per_second_max": round(max(r.rate for r in rs)),
                "server_us": round(middle(rs, "server_us"), 1),
                "load_us": round(middle(rs, "load_us"), 1),
                "p50_ms": round(statistics.median(r.ms(0.5) for r in rs), 2),
                "p99_ms": round(statistics.median(r.ms(0.99) for r in rs), 2),
            }
            for p, rs in results.items()
            if rs
        }
        print(f"{name}: " + ", ".join(f"{p} {v['per_second']:,}/s {v['server_us']} µs" for p, v in found[name].items()), flush=True)  # fmt: skip
    return found


# --- watches --------------------------------------------------------------------------------------------


class Watcher(Driven):
    """A connection that counts the events it is told."""

    events = 0
    ready = False

    def data_received(self, data: bytes) -> None:
        speaker: Any = self.speaker
        if isinstance(speaker, Etcd):
            speaker.feed(data)
            if speaker.reply:
                self.transport.write(speaker.reply)
            messages, speaker.messages = speaker.messages, []
            for message in messages:
                if self.ready:
                    self.events += count_fields(message, 11)
                self.ready = True
        else:
            for kind, body in speaker._decoder.feed(data):
                if kind == frames.EVENTS:
                    self.events += len(body[2])
                    self.ready = True
                elif kind in (frames.ERROR, frames.WATCH_END):
                    raise Wrong(str(body))


async def fan_out(peer: Any, seconds: float) -> dict[str, float]:
    """100 connections watch one directory; one writer changes it, 16 puts outstanding."""
    loop = asyncio.get_running_loop()
    directory = key(0).rpartition("/")[0] + "/"
    names = [key(n * DIRECTORIES) for n in range(PER_DIRECTORY)]
    watchers: list[Watcher] = []
    port = peer.ports[f"{peer.leader()}-client"] if isinstance(peer, EtcdPeer) else 0
    for _ in range(WATCHERS):
        if isinstance(peer, EtcdPeer):
            address = HOST, port
            speaker: Any = Etcd([n.encode() for n in names], VALUE, f"{address[0]}:{address[1]}")
            _, watcher = await loop.create_connection(partial(Watcher, speaker), *address)
            watcher.transport.write(speaker.watch(directory.encode()))
            speaker.watching()
        else:
            table = peer.table()
            at = target("bench", names[0], table)
            where = table.address(table.partitions[at.partition].leader)
            port = int(where.rpartition(":")[2])
            speaker = Metastore(os.urandom(16), [target("bench", n, table) for n in names], VALUE)
            _, watcher = await loop.create_connection(partial(Watcher, speaker), HOST, port)
            start = at.storage_key[: at.storage_key.rindex(b"/") + 1]
            body = [1, at.partition, start, start[:-1] + b"0", None, 0, b""]
            watcher.transport.write(frames.pack(frames.WATCH, body))
        watchers.append(watcher)
    deadline = time.monotonic() + 20
    while not all(w.ready for w in watchers):
        if time.monotonic() > deadline:
            raise Wrong("not all watches have begun")
        await asyncio.sleep(0.05)
    if isinstance(peer, EtcdPeer):
        address = HOST, port
        writing: Any = Etcd([n.encode() for n in names], VALUE, f"{address[0]}:{address[1]}")
        _, writer = await loop.create_connection(lambda: Driven(writing), *address)
    else:
        writing = Metastore(os.urandom(16), [target("bench", n, table) for n in names], VALUE)
        _, writer = await loop.create_connection(lambda: Driven(writing), HOST, port)
    await asyncio.sleep(0.2)
    before, cpu, began = sum(w.events for w in watchers), cpu_seconds(peer.pids()), time.perf_counter()
    result = await Load([writer], "put", 16, PER_DIRECTORY).run(seconds, peer.pids())
    deadline = time.monotonic() + 20
    while (
        sum(w.events for w in watchers) - before < result.operations * WATCHERS
        and time.monotonic() < deadline
    ):
        await asyncio.sleep(0.02)
    took, events = time.perf_counter() - began, sum(w.events for w in watchers) - before
    spent = cpu_seconds(peer.pids()) - cpu
    await close([*watchers, writer])
    return {"per_second": round(events / took), "server_us": round(spent / events * 1e6, 2)}


async def fan_outs(started: dict[str, Any], turns: int, seconds: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(turns):
        for name, peer in started.items():
            if name in ("metastore", "etcd"):
                found.setdefault(name, []).append(await fan_out(peer, seconds))
    return {
        n: {k: statistics.median(r[k] for r in rs) for k in ("per_second", "server_us")}
        for n, rs in found.items()
    }


# --- latency at half of what each can ----------------------------------------------------------------------


async def at_rate(peer: Any, rate: float, seconds: float, kind: str = "put") -> Result:
    connections = await peer.connections(24, VALUE)
    await asyncio.sleep(0.2)
    try:
        await Offered(connections, kind, rate, KEYS).run(1.0, peer.pids())
        return await Offered(connections, kind, rate, KEYS).run(seconds, peer.pids())
    finally:
        await close(connections)


async def half_peak(
    started: dict[str, Any], peaks: dict[str, float], turns: int, seconds: float
) -> dict[str, Any]:
    """Each at half of its own peak, and metastore at half of etcd's too: the same work."""
    found: dict[str, Any] = {}
    wanted = [(p, p, peaks[p] / 2) for p in started if p in ("metastore", "etcd", "Redis")]
    if "etcd" in started:
        wanted.append(("metastore at etcd's half", "metastore", peaks["etcd"] / 2))
    results: dict[str, list[Result]] = {}
    for _ in range(turns):
        for name, peer, rate in wanted:
            try:
                results.setdefault(name, []).append(await at_rate(started[peer], rate, seconds))
            except Wrong as e:
                print(f"{name}: {e}")
    for name, _, rate in wanted:
        rs = results.get(name)
        if rs:
            found[name] = {
                "offered_per_second": round(rate),
                **{
                    f"p{q}_ms": round(statistics.median(r.ms(q / 100) for r in rs), 2) for q in (50, 99, 99.9)
                },
            }
    return found


# --- a leader killed ----------------------------------------------------------------------------------------


async def etcd_failovers(peer: EtcdPeer, kills: int) -> list[float]:
    """Seconds from a SIGKILL of the leader to the next acknowledged put, asked of the members that live."""
    took = []
    for _ in range(kills):
        leader = peer.leader()
        others = [n for n in peer.processes if n != leader]
        peer.processes[leader].kill()
        began, done = time.perf_counter(), False
        while not done:
            for member in others:
                try:
                    [connection] = await peer.connections(1, VALUE, member)
                    load = Load([connection], "put", 1, KEYS)
                    load.stopping, load._outstanding, connection.load = True, 1, load
                    connection.send("put", 1, load.number)
                    async with asyncio.timeout(0.4):
                        await load._idle.wait()
                    done = load.problem is None
                    await close([connection])
                    if done:
                        break
                except (OSError, TimeoutError):
                    continue
        took.append(time.perf_counter() - began)
        peer.processes[leader].wait()
        peer.start(leader)
        await asyncio.sleep(4)
    return took


# --- all of it ------------------------------------------------------------------------------------------------


async def measure(started: dict[str, Any], turns: int, seconds: float) -> dict[str, Any]:
    for peer in started.values():
        await fill(peer)
        await asyncio.sleep(0.5)
    found: dict[str, Any] = {"closed": await closed_loops(started, turns, seconds)}
    found["watch"] = await fan_outs(started, turns, seconds)
    print(f"fan-out to {WATCHERS}: {found['watch']}", flush=True)
    peaks = {p: found["closed"]["put 64 x 1"][p]["per_second"] for p in started}
    found["half_peak"] = await half_peak(started, peaks, turns, seconds)
    print(f"half peak: {found['half_peak']}", flush=True)
    if "metastore" in started:
        found["gc"] = await started["metastore"].collections()
        print(f"garbage collections: {found['gc']}", flush=True)
    if "etcd" in started:
        took = await etcd_failovers(started["etcd"], 5)
        found["etcd_failover_s"] = [round(t, 2) for t in sorted(took)]
        print(f"etcd, leader killed: {found['etcd_failover_s']} s", flush=True)
    return found


def tables(found: dict[str, Any]) -> None:
    """What was measured, as Markdown."""
    rows = []
    for name, by_peer in found["closed"].items():
        etcd = by_peer.get("etcd")
        for peer, v in by_peer.items():
            against = (
                f"{v['per_second'] / etcd['per_second']:.2f} x, CPU {v['server_us'] / etcd['server_us']:.2f} x"
                if etcd and peer != "etcd"
                else ""
            )
            rows.append(
                [
                    name,
                    peer,
                    f"{v['per_second']:,} ({v['per_second_min']:,} to {v['per_second_max']:,})",
                    v["server_us"],
                    v["load_us"],
                    v["p50_ms"],
                    v["p99_ms"],
                    against,
                ]
            )
    show(["", "", "per second, median (min to max)", "server µs/op", "load µs/op", "p50 ms", "p99 ms", "against etcd"], rows)  # fmt: skip
    print()
    show(
        [f"watch, {WATCHERS} watchers", "events/s", "server µs/event"],
        [[p, f"{v['per_second']:,.0f}", v["server_us"]] for p, v in found["watch"].items()],
    )
    print()
    show(
        ["put, open loop", "offered/s", "p50 ms", "p99 ms", "p99.9 ms"],
        [[p, *v.values()] for p, v in found["half_peak"].items()],
    )


def run(names: Sequence[str], turns: int, seconds: float) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder,
        peers(Path(folder), names) as started,
    ):
        return uvloop.run(measure(started, turns, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = run(args.peers.split(","), args.turns, args.seconds)
    tables(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
