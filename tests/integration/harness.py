"""A real local cluster for tests, and a load that remembers every promise it was given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellctl.dev_files import pick_ports
from cellctl.dev_supervisor import ask_supervisor
from metastore.client import AsyncClient
from metastore.errors import ConditionFailed, DeadlineExceeded, MetastoreError, Unavailable
from metastore.history import Version
from metastore.keys import storage_key_of
from tests import preloaded
from tests.processes import PATIENCE_S

#: of a call that is to succeed, when nothing else is said
CALL_S = 60.0
#: the router's own deadline is 5 s: a busy machine may take longer, and that is no reason to answer 504
SLOW_MACHINE = {"METASTORE_ROUTER_DEADLINE_S": "30"}
#: leaders stay where they are: none is handed over for the sake of evenness, and none is suspected because a busy
#: machine let it stand still for a second or two. Who is killed is missed at once all the same. For tests that say
#: who has to lead
STEADY = ("leader_spread_s=0", "suspect_after_ms=5000", "lease_ttl_s=6")


def cellctl(
    *args: str, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run cellctl as a user would; ``env``: beside the test's own."""
    done = preloaded.run(list(args), PATIENCE_S, env)
    if check and done.returncode != 0:
        raise AssertionError(f"cellctl {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Cluster:
    """A cluster started with ``cellctl dev up --detach``."""

    def __init__(self, data: Path) -> None:
        self.data = data

    @classmethod
    def up(
        cls,
        data: Path,
        *,
        cells: int = 1,
        nodes: int = 3,
        partitions: int = 8,
        settings: tuple[str, ...] = (),
    ) -> Cluster:
        port = pick_ports("127.0.0.1", ["router"], set())["router"]
        flags = [part for s in settings for part in ("--set", s)]
        cellctl(
            "dev", "up", "--data", str(data), "--cells", str(cells), "--nodes", str(nodes),
            "--partitions", str(partitions), "--port", str(port), "--detach", *flags, env=SLOW_MACHINE,
        )  # fmt: skip
        cluster = cls(data)
        cluster.wait_until_led(partitions)
        return cluster

    def up_again(self) -> None:
        cellctl("dev", "up", "--data", str(self.data), "--detach", env=SLOW_MACHINE)

    def wait_until_whole(self) -> None:
        """Until each node is connected with every other: a death costs no partition its quorum."""
        names = self.names()
        deadline = time.monotonic() + PATIENCE_S
        while not all(self._is_met_by(name, names) for name in names):
            assert time.monotonic() < deadline, "the nodes do not find each other"
            time.sleep(0.05)

    def _is_met_by(self, name: str, names: list[str]) -> bool:
        with contextlib.suppress(OSError):
            return sorted([name, *self.status(name)["peers"]]) == sorted(names)
        return False

    def wait_until_led(self, partitions: int, timeout_s: float = PATIENCE_S) -> None:
        """``up`` returns when a first record is written; the other partitions may still elect."""
        deadline = time.monotonic() + timeout_s
        while len(self.leaders()) < partitions:
            assert time.monotonic() < deadline, f"only {sorted(self.leaders())} of {partitions} are led"
            time.sleep(0.05)

    def down(self) -> None:
        cellctl("dev", "down", "--data", str(self.data))

    def verb(self, verb: str, *names: str) -> None:
        """What ``cellctl dev VERB`` asks of the supervisor, without a second of an interpreter's start. Raises
        ConfigError."""
        ask_supervisor(self.data, verb, [n for n in names if n != "--graceful"], "--graceful" in names)

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "cluster.json").read_text())
        return found

    @property
    def router(self) -> str:
        return str(self.json()["router"]["url"])

    def node(self, name: str) -> dict[str, Any]:
        return next(n for n in self.json()["nodes"] if n["name"] == name)

    def names(self, cell: str | None = None) -> list[str]:
        return [n["name"] for n in self.json()["nodes"] if cell in (None, n["cell"])]

    def processes(self) -> dict[str, str]:
        """Process -> running, paused, stopped or dead (by itself)."""
        return {row["name"]: row["state"] for row in ask_supervisor(self.data, "status")}

    def status(self, name: str) -> dict[str, Any]:
        """A node's own view."""
        with urllib.request.urlopen(self.node(name)["http"] + "/v1/status", timeout=15) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found

    def leaders(self) -> dict[int, tuple[str, int]]:
        """Partition -> (active leader, epoch), from the nodes that answer."""
        found: dict[int, tuple[str, int]] = {}
        for name in self.names():
            with contextlib.suppress(OSError):
                for p in self.status(name)["partitions"]:
                    if p["role"] == "active" and p["epoch"] > found.get(p["id"], ("", -1))[1]:
                        found[p["id"]] = (name, p["epoch"])
        return found

    def client(self, deadline_s: float = CALL_S) -> AsyncClient:
        return AsyncClient([n["rpc"] for n in self.json()["nodes"]], cluster="dev", deadline_s=deadline_s)


async def until(what: str, condition: Any, timeout_s: float = PATIENCE_S) -> Any:
    """Poll ``condition`` (plain or async) until it is true; fails naming ``what``. ``timeout_s``: another patience,
    where how long it takes is what is promised."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = None
        with contextlib.suppress(OSError):  # a process that is not back yet
            found = condition()
            value = await found if asyncio.iscoroutine(found) else found
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)


async def refusal(
    call: Callable[[float], Awaitable[Any]], kind: type[MetastoreError], match: str = ""
) -> MetastoreError:
    """The error that ``call``, of a deadline in seconds, ends with, for what is known only when the deadline comes. It is
    short, and longer again where a busy machine came no further than to miss it."""
    for deadline_s in (0.3, 5.0, CALL_S, PATIENCE_S):
        try:
            result = await call(deadline_s)
        except MetastoreError as e:
            if isinstance(e, kind) and re.search(match, e.message):
                return e
            error = e
            if not isinstance(e, DeadlineExceeded | Unavailable):
                break
        else:
            raise AssertionError(f"not refused: {result!r}")
    raise AssertionError(f"{error!r} where {kind.__name__} {match!r} was due")


@dataclass
class Ack:
    """One operation as its caller saw it; times are monotonic seconds."""

    kind: str
    key: str
    value: int
    began: float
    ended: float
    outcome: str  # ok, none, unknown
    version: int = 0
    error: str = ""


@dataclass
class Load:
    """Writers that increment records by compare-and-set, one key each, and readers beside them.

    A writer's key holds a count that only it changes, so what may be read is known: at least
    the last acknowledged value, at most the last attempted.
    """

    client: AsyncClient
    keys: list[str]
    history: list[Ack] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    attempted: dict[str, int] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stop: bool = False
    pause_s: float = 0.005
    deadline_s: float | None = None

    async def run(self, seconds: float | None = None) -> None:
        tasks = [asyncio.create_task(self.writer(k)) for k in self.keys]
        tasks += [asyncio.create_task(self.reader(k)) for k in self.keys]
        if seconds is not None:
            await asyncio.sleep(seconds)
            self.stop = True
        await asyncio.gather(*tasks)

    async def writer(self, key: str) -> None:
        ns = self.client.namespace("load")
        value, version = 0, None
        while not self.stop:
            value += 1
            self.attempted[key] = value
            began = time.monotonic()
            try:
                result = await ns.put(
                    key,
                    str(value).encode(),
                    version=version,
                    absent=version is None,
                    deadline_s=self.deadline_s,
                )
                version = result.version
                self.note("put", key, value, began, "ok", version)
            except ConditionFailed as e:
                # our own earlier write, whose outcome was not known, has taken effect: fine; if
                # nothing was in doubt, somebody lost or doubled a write
                self.note("put", key, value, began, "none", 0, f"{e.message}")
                version = await self.resolve(key, e.detail["version"])
            except MetastoreError as e:
                self.note("put", key, value, began, e.outcome, 0, f"{e.code}: {e.message}")
                if e.outcome == "unknown":
                    version = await self.resolve(key, None)
                else:
                    value -= 1
            await asyncio.sleep(self.pause_s)

    async def resolve(self, key: str, seen: Version | None) -> Version | None:
        """After doubt: read what is there."""
        ns = self.client.namespace("load")
        while not self.stop:
            try:
                record = await ns.get(key)
            except MetastoreError:
                await asyncio.sleep(0.05)
                continue
            if record is None:
                return None
            return record.version
        return seen

    def note(
        self, kind: str, key: str, value: int, began: float, outcome: str, version: int = 0, error: str = ""
    ) -> None:
        self.history.append(Ack(kind, key, value, began, time.monotonic(), outcome, version, error))
        if kind == "put" and outcome == "ok":
            self.acked[key] = value
            versions = self.versions.setdefault(key, [])
            if versions and version <= versions[-1]:
                self.problems.append(f"{key}: version {version} after {versions[-1]}")
            versions.append(version)

    async def reader(self, key: str) -> None:
        ns = self.client.namespace("load")
        while not self.stop:
            began, floor = time.monotonic(), self.acked.get(key, 0)
            try:
                record = await ns.get(key, deadline_s=self.deadline_s)
            except MetastoreError as e:
                self.note("get", key, 0, began, "none", 0, f"{e.code}: {e.message}")
            else:
                value = int(record.value) if record else 0
                self.note("get", key, value, began, "ok")
                if value < floor:
                    self.problems.append(
                        f"{key}: read {value} after {floor} was acknowledged (stale or lost)"
                    )
                if value > self.attempted.get(key, 0):
                    self.problems.append(f"{key}: read {value}, never written")
            await asyncio.sleep(self.pause_s)

    async def check_all(self) -> None:
        """Every acknowledged write is there and nothing else; raises AssertionError."""
        ns = self.client.namespace("load")
        for key in self.keys:
            record = await ns.get(key, deadline_s=PATIENCE_S)
            value = int(record.value) if record else 0
            if not self.acked.get(key, 0) <= value <= self.attempted.get(key, 0):
                self.problems.append(
                    f"{key}: holds {value}, acknowledged {self.acked.get(key)}, tried {self.attempted.get(key)}"
                )
        assert not self.problems, "\n".join(self.problems[:20])

    def failures(self, since: float = 0.0) -> list[Ack]:
        return [a for a in self.history if a.outcome != "ok" and a.began >= since]

    def resumed_after(self, when: float, keys: list[str]) -> dict[str, float]:
        """Key -> seconds from ``when`` to its next acknowledged write begun after or ended after."""
        found: dict[str, float] = {}
        for a in self.history:
            if (
                a.kind == "put"
                and a.outcome == "ok"
                and a.ended > when
                and a.key in keys
                and a.key not in found
            ):
                found[a.key] = a.ended - when
        return found


def keys_by_partition(client: AsyncClient, count: int, namespace: str = "load") -> dict[int, list[str]]:
    """``count`` keys for each partition."""
    table = client.dispatcher.table
    found: dict[int, list[str]] = {p: [] for p in table.partitions}
    for key in _numbers():
        p = table.route(storage_key_of(namespace, key)).id
        if len(found[p]) < count:
            found[p].append(key)
        elif all(len(keys) >= count for keys in found.values()):
            return found
    raise AssertionError


def _numbers() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"k{number}"
