"""Who is measured, each a real cluster of three on this machine, durable on a majority before it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.drive import Driven, connect
from bench.wire import Etcd, Metastore, Redis, Target, target
from cellctl.dev_files import pick_ports
from metastore.coordination.embedded import etcd_binary, wait_healthy
from metastore.routing.connection import NodeConnection
from metastore.topology import TopologyTable
from tests.integration.harness import Cluster

HOST = "127.0.0.1"
KEYS = 20_000
DIRECTORIES = 200
PER_DIRECTORY = KEYS // DIRECTORIES


def key(n: int) -> str:
    """24 bytes; so many in a directory."""
    return f"directory-{n % DIRECTORIES:04d}/key-{n // DIRECTORIES:05d}"


class Peer(Protocol):
    name: str

    def pids(self) -> list[int]:
        """All server processes."""
        ...

    async def connections(self, count: int, value: bytes) -> list[Driven]: ...


class MetastorePeer:
    """One cell of three nodes. ``settings``: of the nodes."""

    def __init__(
        self, folder: Path, *, cells: int = 1, partitions: int = 8, settings: Sequence[str] = ()
    ) -> None:
        self.name = f"metastore, {partitions} partitions" if partitions > 1 else "metastore"
        # the load generator knows who leads from the start, and follows nobody
        still = ("leader_spread_s=0", *settings)
        self.cluster = Cluster.up(folder / "metastore", cells=cells, partitions=partitions, settings=still)

    def pids(self) -> list[int]:
        return [n["pid"] for n in self.cluster.json()["nodes"]]

    def table(self) -> TopologyTable:
        import urllib.request

        with urllib.request.urlopen(f"{self.cluster.router}/v1/topology", timeout=10) as response:
            return TopologyTable.from_wire(json.loads(response.read()))

    def targets(self) -> dict[str, list[Target]]:
        """Leader's address -> the keys whose partitions it leads. Whole directories: a listing is of one."""
        table = self.table()
        found: dict[str, list[Target]] = {}
        for n in range(KEYS):
            at = target("bench", key(n), table)
            address = table.address(table.partitions[at.partition].leader)
            assert address is not None
            found.setdefault(address, []).append(at)
        return found

    async def connections(self, count: int, value: bytes) -> list[Driven]:
        """Spread over the leaders: each connection asks one node for what that leads."""
        by_leader = sorted(self.targets().items())
        rng = random.Random(1)
        driven = []
        for number in range(count):
            address, targets = by_leader[number % len(by_leader)]
            host, _, port = address.rpartition(":")
            mine = targets.copy()
            rng.shuffle(mine)
            driven.append(await connect((host, int(port)), Metastore(os.urandom(16), mine, value)))
        return driven

    async def collections(self) -> dict[str, Any]:
        """Python's garbage collector on each node since it started: collections by generation, their time."""
        found = {}
        for node in self.cluster.json()["nodes"]:
            host, _, port = node["rpc"].rpartition(":")
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: NodeConnection("", "bench"), host, int(port)
            )
            found[node["name"]] = (await connection.status(10))["gc"]
            connection.close()
        return found

    def stop(self) -> None:
        self.cluster.down()


class EtcdPeer:
    """Three members of etcd, its own defaults; every client speaks to the leader, which saves it a hop."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        names = [f"m{n}" for n in range(3)]
        self.ports = pick_ports(HOST, [f"{n}-{kind}" for n in names for kind in ("client", "peer")], set())
        initial = ",".join(f"{n}=http://{HOST}:{self.ports[f'{n}-peer']}" for n in names)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands = {}
        for name in names:
            client, peer = (
                f"http://{HOST}:{self.ports[f'{name}-client']}",
                f"http://{HOST}:{self.ports[f'{name}-peer']}",
            )
            self._commands[name] = [
                etcd_binary(), f"--name={name}", f"--data-dir={folder / 'etcd' / name}",
                f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={initial}", "--initial-cluster-state=new", "--log-level=error",
                "--quota-backend-bytes=8589934592",
            ]  # fmt: skip
            self.start(name)
        for name in names:
            if not wait_healthy(f"http://{HOST}:{self.ports[f'{name}-client']}", 30):
                raise RuntimeError(f"etcd {name} does not become healthy")

    def start(self, name: str) -> None:
        quiet: Any = subprocess.DEVNULL
        self.processes[name] = subprocess.Popen(self._commands[name], stdout=quiet, stderr=quiet)

    def pids(self) -> list[int]:
        return [p.pid for p in self.processes.values() if p.poll() is None]

    def leader(self) -> str:
        endpoints = ",".join(f"{HOST}:{self.ports[f'{n}-client']}" for n in self.processes)
        command = [etcd_binary("etcdctl"), "--endpoints", endpoints, "endpoint", "status", "-w", "json"]
        done = subprocess.run(
            command, capture_output=True, check=False, env={**os.environ, "ETCDCTL_API": "3"}, timeout=30
        )
        for status in json.loads(done.stdout):
            if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
                port = int(status["Endpoint"].rpartition(":")[2])
                return next(n for n in self.processes if self.ports[f"{n}-client"] == port)
        raise RuntimeError("etcd has no leader")

    async def connections(self, count: int, value: bytes, member: str = "") -> list[Driven]:
        address = HOST, self.ports[f"{member or self.leader()}-client"]
        driven = []
        for number in range(count):
            keys = [key(n).encode() for n in range(KEYS)]
            random.Random(number).shuffle(keys)
            driven.append(await connect(address, Etcd(keys, value, f"{address[0]}:{address[1]}")))
        return driven

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


class RedisPeer:
    """One that takes writes, two that copy it, each with its append-only file synced at every write; an
    answer counts once one copy has it (WAIT 1)."""

    name = "Redis"

    def __init__(self, folder: Path) -> None:
        ports = pick_ports(HOST, ["r0", "r1", "r2"], set())
        self.port = ports["r0"]
        self.processes = []
        for name, port in ports.items():
            data = folder / "redis" / name
            data.mkdir(parents=True)
            command = [
                "redis-server", "--port", str(port), "--bind", HOST, "--dir", str(data), "--save", "",
                "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no", "--loglevel", "warning",
            ]  # fmt: skip
            if name != "r0":
                command += ["--replicaof", HOST, str(self.port)]
            self.processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        deadline = time.monotonic() + 30
        while self._replicas() < 2:
            if time.monotonic() > deadline:
                raise RuntimeError("the Redis replicas do not come up")
            time.sleep(0.1)
        time.sleep(1)

    def _replicas(self) -> int:
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), "info", "replication"], capture_output=True, check=False
        )
        return done.stdout.count(b"state=online")

    def pids(self) -> list[int]:
        return [p.pid for p in self.processes]

    async def connections(self, count: int, value: bytes) -> list[Driven]:
        driven = []
        for number in range(count):
            keys = [key(n).encode() for n in range(KEYS)]
            random.Random(number).shuffle(keys)
            driven.append(await connect((HOST, self.port), Redis(keys, value)))
        return driven

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def peers(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Those of ``names`` that can run here, started; stopped at the end."""
    started: dict[str, Any] = {}
    try:
        for name in names:
            if name.startswith("metastore"):
                # one as etcd is, a single group under one leader; and as it is meant to be used
                partitions = 8 if "8" in name else 1
                started[name] = MetastorePeer(folder / str(partitions), partitions=partitions)
            elif name == "etcd":
                started[name] = EtcdPeer(folder)
            elif name == "Redis" and shutil.which("redis-server"):
                started[name] = RedisPeer(folder)
        yield started
    finally:
        for peer in started.values():
            peer.stop()
