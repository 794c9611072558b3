"""Runs one scenario: a cluster, traffic, faults, healing, every check, a result."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from cellctl.dev_files import Shape, pick_ports, save_shape
from metastore.client import AsyncClient
from metastore.errors import MetastoreError
from metastore.keys import storage_key_of
from tests.chaos.etcds import Members, wrapper
from tests.chaos.faults import Faults
from tests.chaos.lab import Lab
from tests.chaos.mixed import Mixed, homes_of
from tests.chaos.scenarios import Scenario
from tests.chaos.traffic import KEYS_PER_PARTITION, Traffic
from tests.checkers.history import Operation, save
from tests.checkers.linearizability import Undecided, check, check_versions
from tests.integration.harness import Cluster, cellctl, keys_by_partition, until

PARTITIONS = 8
#: a bound for machines that are busy with other things as well; how long it took is told
SERVICE_BACK_S = 60.0
DISK_BYTES = 400 << 20
_ACTIVE = re.compile(
    r"^(\S+) INFO metastore.node: active: activated node=(\S+) partition=(\d+) epoch=(\d+)\.(\d+)"
)


@dataclass
class Result:
    """What a scenario showed; ``problems`` empty = every promise was kept."""

    scenario: Scenario
    problems: list[str] = field(default_factory=list)
    history: list[Operation] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    #: (seconds since the start, what was done)
    marks: list[tuple[float, str]] = field(default_factory=list)
    #: (seconds since the start, node, partition, epoch)
    reigns: list[tuple[float, str, int, int]] = field(default_factory=list)
    started_ns: int = 0
    #: the same moment as seconds of the day, as logs tell the time
    started_clock: float = 0.0
    back_s: float = 0.0
    outage_s: float = 0.0


def shape_of(scenario: Scenario, lab: Lab | None) -> Shape:
    """One cell of three nodes, with the faulty node module, in namespaces if there is a lab."""
    shape = Shape(1, 3, PARTITIONS, "127.0.0.1", 20000)
    names = ["etcd", "etcd-peer"] + [f"c1n{n}-{kind}" for n in (1, 2, 3) for kind in ("rpc", "http")]

    shape.ports = pick_ports(shape.host, [*names, "router"], set())
    shape.port = shape.ports.pop("router")
    shape.node_module = "tests.chaos.builds" if scenario.builds else "tests.chaos.faulty_node"
    shape.settings = {"segment_mib": "18", "log_retention_mib": "36", "disk_low_mib": "64"}
    if scenario.etcds > 1:
        more = pick_ports(
            shape.host,
            [f"etcd{n}-{kind}" for n in (2, 3) for kind in ("rpc", "peer")],
            {shape.port, *shape.ports.values()},
        )
        clients = [shape.ports["etcd"], more["etcd2-rpc"], more["etcd3-rpc"]]
        shape.settings["etcd"] = ",".join(f"{shape.host}:{port}" for port in clients)
        shape.ports |= more
        pairs = [(more[f"etcd{n}-rpc"], more[f"etcd{n}-peer"]) for n in (2, 3)]
        shape.wrap["etcd"] = wrapper(pairs)
    if lab is not None:
        shape.hosts = dict(lab.hosts)
        shape.wrap = {name: lab.wrap(name) for name in lab.hosts}
    return shape


async def run(scenario: Scenario, lab: Lab | None, seed: int, keep: Path | None = None) -> Result:
    """``keep``: a folder for the history and the logs when something is wrong."""
    result = Result(scenario)
    with tempfile.TemporaryDirectory(prefix="metastore-chaos-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        small = [data / "nodes" / f"c1n{n}" for n in (1, 2, 3)] if "disk" in scenario.name else []
        for disk in small:
            disk.mkdir(parents=True)
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)], check=True
            )
        cluster = Cluster(data)
        members: Members | None = None
        try:
            if scenario.etcds > 1:
                lab = None  # its members are all here
            shape = shape_of(scenario, lab)
            if scenario.etcds > 1:
                ports = [(shape.ports[f"etcd{n}-rpc"], shape.ports[f"etcd{n}-peer"]) for n in (2, 3)]
                members = Members(cluster, ports)
            save_shape(data, shape)
            await asyncio.to_thread(cellctl, "dev", "up", "--data", str(data), "--detach")
            await _run(scenario, cluster, Faults(cluster, lab, seed, members), seed, result)
        except (AssertionError, OSError, MetastoreError) as e:
            result.problems.append(f"{type(e).__name__}: {e}")
        finally:
            if lab is not None:
                lab.heal()
            if members is not None:
                members.close()
            result.reigns = reigns(data, result)
            result.problems += check_reigns(result.reigns)
            if result.problems and keep is not None:
                _keep(keep / scenario.name, data, result)
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(cluster.down)
            for disk in small:
                subprocess.run(["umount", "-l", str(disk)], check=False)
    return result


async def _run(scenario: Scenario, cluster: Cluster, faults: Faults, seed: int, result: Result) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(c) for c in clients_of(scenario, cluster)]
        first = clients[0]
        table = keys_by_partition(first, KEYS_PER_PARTITION, "chaos")
        plain = Traffic(clients, [k for ks in table.values() for k in ks], seed)
        mixed = Mixed(clients, homes_of(first, 1), seed, history=plain.history, errors=plain.errors)
        traffics: tuple[Traffic | Mixed, ...] = (plain, mixed)
        running = [asyncio.create_task(traffic.run()) for traffic in traffics]
        epochs = Epochs(cluster, faults.reborn)
        watching = asyncio.create_task(epochs.watch())
        began, result.started_ns = time.monotonic(), time.monotonic_ns()
        day = datetime.now()
        result.started_clock = day.hour * 3600 + day.minute * 60 + day.second + day.microsecond / 1e6
        result.history, result.errors = plain.history, plain.errors
        try:
            for second_at, verb, *who in scenario.steps:
                await asyncio.sleep(max(0.0, began + second_at - time.monotonic()))
                at = time.monotonic() - began
                result.marks.append((at, await faults.do(verb, tuple(who))))
            await asyncio.sleep(max(0.0, began + scenario.seconds - time.monotonic()))
        finally:
            dead = [n for n, s in (await asyncio.to_thread(cluster.processes)).items() if s == "dead"]
            if len(dead) > scenario.died:
                result.problems += [f"{name} ended by itself: {last_words(cluster, name)}" for name in dead]
            result.marks.append((time.monotonic() - began, "heal"))
            await faults.heal()
        result.back_s = max([await traffic.until_all_serve(SERVICE_BACK_S) for traffic in traffics])
        epochs.stop = True
        for traffic in traffics:
            traffic.stop = True
        await asyncio.gather(*running, watching)
        result.problems += epochs.problems
        for traffic in traffics:
            await traffic.read_all()
        if scenario.faultless and result.errors:
            result.problems.append(f"requests failed: {result.errors}")
        now = first.dispatcher.table
        by_key = {k: now.route(storage_key_of(t.namespace, k)).id for t in traffics for k in t.keys}
        try:
            result.problems += check(plain.history)
        except Undecided as e:
            result.problems.append(f"undecided: {e}")
        result.problems += check_versions(plain.history, by_key)
        result.outage_s = longest_outage(plain.history)
        await until("all replicas hold the same", lambda: same_everywhere(cluster), SERVICE_BACK_S)


def clients_of(scenario: Scenario, cluster: Cluster) -> list[AsyncClient]:
    """The first goes to the nodes."""
    direct = [cluster.client(deadline_s=20.0) for _ in range(2 if scenario.routed else 3)]
    routed = [AsyncClient(router=cluster.router, direct=False, deadline_s=20.0) for _ in range(2)]
    return direct + routed if scenario.routed else direct


class Epochs:
    """I7: what a replica has promised only grows, also over its restarts. Asks every node, over and over."""

    def __init__(self, cluster: Cluster, reborn: set[str]) -> None:
        self.cluster = cluster
        #: nodes that have another store than before
        self.reborn = reborn
        self.stop = False
        self.asked = 0
        self.problems: list[str] = []
        self._seen: dict[tuple[str, int], int] = {}

    async def watch(self) -> None:
        while not self.stop:
            for name in self.cluster.names():
                with contextlib.suppress(OSError, TimeoutError, AssertionError, ValueError):
                    self._look(name, await asyncio.to_thread(self.cluster.status, name))
            await asyncio.sleep(0.3)
        if not self.asked:
            self.problems.append("no node told its epochs")

    def _look(self, name: str, status: dict[str, Any]) -> None:
        self.asked += 1
        if name in self.reborn:
            return
        for part in status["partitions"]:
            at, epoch = (name, part["id"]), part["epoch"]
            before = self._seen.get(at, 0)
            if epoch < before:
                self.problems.append(
                    f"I7: {name} had sealed {before} of partition {part['id']}, and now {epoch}"
                )
            self._seen[at] = max(before, epoch)


def last_words(cluster: Cluster, name: str) -> str:
    log = cluster.data / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "without a word"


async def same_everywhere(cluster: Cluster) -> bool:
    """Whether all replicas of every partition have one digest at one applied index."""
    from urllib.request import urlopen

    def digest(url: str) -> Any:
        with urlopen(url, timeout=5) as response:
            return orjson.loads(response.read())

    with urlopen(f"{cluster.router}/v1/topology", timeout=5) as response:
        placements = orjson.loads(response.read())["partitions"]
    for placement in placements:
        p = placement["id"]
        urls = [f"{cluster.node(n)['http']}/v1/partitions/{p}/digest" for n in placement["replicas"]]
        found = [await asyncio.to_thread(digest, url) for url in urls]
        if len({f["applied"] for f in found}) > 1:
            return False
        if len({f["digest"] for f in found}) > 1:
            raise AssertionError(
                f"I2: replicas of partition {p} differ at entry {found[0]['applied']}: {found}"
            )
    return True


def longest_outage(history: list[Operation]) -> float:
    """The longest time in which some key took no write, in seconds; of keys that are written all the time."""
    last: dict[str, int] = {}
    longest = 0
    plain = [o for o in history if o.kind in ("put", "delete", "add") and o.outcome in ("ok", "refused")]
    for op in sorted((o for o in plain if "/" not in o.key), key=lambda o: o.ended):
        longest = max(longest, op.ended - last.get(op.key, op.ended))
        last[op.key] = op.ended
    return longest / 1e9


def reigns(data: Path, result: Result) -> list[tuple[float, str, int, int]]:
    """Every activation that the nodes logged, in order of time."""
    found = []
    for log in sorted((data / "logs").glob("c*.log")):
        for line in log.read_text(errors="replace").splitlines():
            match = _ACTIVE.match(line)
            if match:
                clock, node, p, term, restart = match.groups()
                h, m, s = clock.split(":")
                at = int(h) * 3600 + int(m) * 60 + float(s) - result.started_clock
                if at < -43_200:  # past midnight
                    at += 86_400
                found.append((at, node, int(p), int(term) << 16 | int(restart)))
    return sorted(found)


def check_reigns(found: list[tuple[float, str, int, int]]) -> list[str]:
    """I1: an epoch is activated once, by one process."""
    owners: dict[tuple[int, int], list[str]] = defaultdict(list)
    for _, node, p, epoch in found:
        owners[p, epoch].append(node)
    return [
        f"I1: epoch {epoch >> 16}.{epoch & 0xFFFF} of partition {p} was activated by {names}"
        for (p, epoch), names in sorted(owners.items())
        if len(names) > 1
    ]


def _keep(folder: Path, data: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "history.jsonl", result.history)
    for log in (data / "logs").glob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes())
    (folder / "problems.txt").write_text("\n".join(result.problems) + "\n")
