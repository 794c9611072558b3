"""One small cluster for all attacks, an honest client beside them, and what must hold after each."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from metastore.client import AsyncClient, AsyncNamespace
from metastore.errors import MetastoreError
from metastore.keys import storage_key_of
from tests.integration.harness import STEADY, Cluster
from tests.processes import PATIENCE_S

#: so long anything may take that nobody promised a time for; it tells a hang from a busy machine
HANG_S = 180.0
#: how long processes wait for a client, in files that try what comes of it (``HURRIED``): a busy machine may hold up
#: a test for as long, so nothing else is tried there
HURRIED_S = 1.0
#: and in all others: longer than any machine is busy, and as long as can be set
PATIENT_S = 600.0
PATIENT_SETTINGS = (
    "METASTORE_NODE_CLIENT_PATIENCE_S",
    "METASTORE_ROUTER_CLIENT_PATIENCE_S",
    "METASTORE_ROUTER_WRITE_TIMEOUT_S",
)
NODE_MEMORY_MIB = 16
ROUTER_MEMORY_MIB = 32
ROUTER_CONNECTIONS = 500
ENVIRONMENT = {
    # leaders stay: some attacks know who leads, and nothing is handed over or suspected meanwhile
    "METASTORE_NODE_LEADER_SPREAD_S": "0",
    "METASTORE_NODE_SUSPECT_AFTER_MS": "5000",
    # small, so that what costs much is cheap to try
    "METASTORE_NODE_CLIENT_MEMORY_MIB": str(NODE_MEMORY_MIB),
    "METASTORE_ROUTER_MAX_HELD_MIB": str(ROUTER_MEMORY_MIB),
    "METASTORE_ROUTER_MAX_CELL_MIB": str(ROUTER_MEMORY_MIB),
    "METASTORE_ROUTER_MAX_CONNECTIONS": str(ROUTER_CONNECTIONS),
}
#: how far a process may grow while it is attacked, if a test says nothing else. A node: three times what its
#: clients may make it hold, what parsing one frame may take, and the store's own caches; a router: three
#: times its requests' memory and as much for answers that are being taken
NODE_GROWTH_MIB = 160
ROUTER_GROWTH_MIB = 240
#: what nobody may ever see in a log
FORBIDDEN = re.compile(
    r"fail-stop|Traceback|Fatal error|node stops|never retrieved|Unhandled|CRITICAL|Task exception"
)


class Honest:
    """A client that does its work all the while; every operation has to succeed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.done = 0
        self.slowest_s = 0.0
        self.problems: list[str] = []
        self.acked: dict[str, int] = {}
        self.paused = False
        self._stop = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        self._thread.join(2 * HANG_S)

    async def _run(self) -> None:
        nodes = [n["rpc"] for n in self.cluster.json()["nodes"]]
        async with (
            AsyncClient(nodes, cluster="dev", deadline_s=HANG_S) as client,
            aiohttp.ClientSession() as web,
        ):
            await asyncio.gather(self._binary(client), self._http(web))

    async def _binary(self, client: AsyncClient) -> None:
        ns = client.namespace("honest")
        count = 0
        while not self._stop:
            if self.paused:
                await asyncio.sleep(0.01)
                continue
            count += 1
            key = f"k{count % 24}"
            began = time.monotonic()
            try:
                await ns.put(key, b"%d" % count)
                self.acked[key] = count
                record = await ns.get(key)
                if record is None or int(record.value) != count:
                    self.problems.append(f"{key}: wrote {count}, read {record}")
            except MetastoreError as e:
                self.problems.append(f"{key}: {e.code}: {e.message}")
            self._note(began)
            await asyncio.sleep(0.02)

    async def _http(self, web: aiohttp.ClientSession) -> None:
        url = f"{self.cluster.router}/v1/kv/honest/web"
        count = 0
        while not self._stop:
            if self.paused:
                await asyncio.sleep(0.01)
                continue
            count += 1
            began = time.monotonic()
            try:
                async with web.put(url, data=b"%d" % count) as r:
                    if r.status not in (200, 201):
                        self.problems.append(f"PUT: {r.status} {(await r.read())[:200]!r}")
                async with web.get(url) as r:
                    body = await r.read()
                    if (r.status, body) != (200, b"%d" % count):
                        self.problems.append(f"GET: {r.status} {body[:200]!r} after {count}")
            except (aiohttp.ClientError, OSError) as e:
                self.problems.append(f"http: {type(e).__name__}: {e}")
            self._note(began)
            await asyncio.sleep(0.02)

    def _note(self, began: float) -> None:
        self.done += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def pids(cluster: Cluster) -> dict[str, int]:
    found = {n["name"]: n["pid"] for n in cluster.json()["nodes"]}
    return {**found, "router": cluster.json()["router"]["pid"]}


def memory_mib(pid: int, name: str) -> float:
    """VmRSS, or VmHWM (the most since ``forget_peak``)."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None, f"process {pid} is gone"
    return int(found.group(1)) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def logs(cluster: Cluster) -> dict[str, str]:
    return {p.stem: p.read_text(errors="replace") for p in (cluster.data / "logs").glob("[cr]*.log")}


@pytest.fixture(scope="module")
def attacked(request: Any, tmp_path_factory: Any) -> Iterator[Cluster]:
    patience_s = HURRIED_S if getattr(request.module, "HURRIED", False) else PATIENT_S
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | dict.fromkeys(PATIENT_SETTINGS, str(patience_s))).items():
            patch.setenv(name, value)
        cluster = Cluster.up(tmp_path_factory.mktemp("hostile") / "data", partitions=4, settings=STEADY)
    yield cluster
    with contextlib.suppress(MetastoreError, AssertionError):
        cluster.down()


@pytest.fixture(scope="module")
def honest(attacked: Cluster) -> Iterator[Honest]:
    client = Honest(attacked)
    client.start()
    yield client
    client.stop()


@pytest.fixture
def rpc(attacked: Cluster) -> str:
    return str(attacked.node("c1n1")["rpc"])


async def fill(ns: AsyncNamespace, values: dict[str, bytes]) -> None:
    """One after the other, and again where a busy machine was too slow: all at once are more than may be on their way."""
    until = time.monotonic() + PATIENCE_S
    for key, value in values.items():
        while True:
            try:
                await ns.put(key, value)
                break
            except MetastoreError:
                assert time.monotonic() < until, f"{key} cannot be written"
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def large(attacked: Cluster) -> tuple[bytes, int]:
    """The storage key and partition of a record of one MiB in a namespace of thirty such."""
    key, partition = b"", 0

    async def write() -> None:
        nonlocal key, partition
        async with attacked.client() as client:
            ns = client.namespace("large")
            await fill(ns, {f"d/{i}": bytes([i]) * (1 << 20) for i in range(30)})
            key = storage_key_of("large", "d/0")
            partition = client.dispatcher.table.route(key).id

    asyncio.run(write())
    return key, partition


@pytest.fixture(scope="module")
def big(attacked: Cluster) -> str:
    """A namespace of twenty records of one MiB; the path of one."""

    async def write() -> None:
        async with attacked.client() as client:
            ns = client.namespace("big")
            await fill(ns, {f"r{i}": bytes([65 + i]) * (1 << 20) for i in range(20)})

    asyncio.run(write())
    return "/v1/kv/big/r0"


@pytest.fixture(autouse=True)
def unharmed(request: Any, attacked: Cluster, honest: Honest) -> Iterator[None]:
    """After every attack: the same processes, no bigger than allowed, nothing in their logs, and
    the honest client did not notice."""
    mark = request.node.get_closest_marker("growth_mib")
    processes = pids(attacked)
    before = {}
    for name, pid in processes.items():
        forget_peak(pid)
        before[name] = memory_mib(pid, "VmRSS")
    done, seen = honest.done, {name: len(text) for name, text in logs(attacked).items()}
    del honest.problems[:]
    honest.slowest_s = 0.0
    yield
    until = time.monotonic() + HANG_S
    while honest.done < done + 20 and time.monotonic() < until:
        time.sleep(0.02)
    assert not honest.problems, honest.problems[:10]
    assert honest.done >= done + 20, f"the honest client did {honest.done - done} operations"
    assert honest.slowest_s < HANG_S / 2, f"the honest client waited {honest.slowest_s:.1f} s"
    assert pids(attacked) == processes
    peaks = {name: memory_mib(pid, "VmHWM") - before[name] for name, pid in processes.items()}
    print(
        f"grew by {', '.join(f'{n} {p:.0f}' for n, p in peaks.items())} MiB; slowest {honest.slowest_s:.2f} s"
    )
    for name, text in logs(attacked).items():
        found = FORBIDDEN.search(text[seen[name] :])
        assert found is None, f"{name}: {text[seen[name] :][max(0, found.start() - 500) :][:3000]}"
    for name, peak in peaks.items():
        growth = ROUTER_GROWTH_MIB if name == "router" else NODE_GROWTH_MIB
        growth = mark.args[0] if mark else growth
        assert peak < growth, f"{name} grew by {peak:.0f} MiB, over {growth}"
    for name in attacked.names():
        assert attacked.status(name)["failed"] is None


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", "growth_mib(n): how far a process may grow while it is attacked")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:  # one cluster: all in one worker, should the tests run in several
        if "hostile" in Path(item.path).parts:
            item.add_marker(pytest.mark.xdist_group("hostile"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    outcome = yield
    report = outcome.get_result()
    cluster = getattr(item, "funcargs", {}).get("attacked")
    if report.failed and cluster is not None:
        for name, text in logs(cluster).items():
            report.sections.append((f"log of {name}", text[-3000:]))
