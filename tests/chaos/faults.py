"""The verbs of the scenarios: each does one thing to a running cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from metastore.errors import DiskLow
from tests.chaos import builds
from tests.chaos.etcds import Members
from tests.chaos.lab import Lab
from tests.chaos.lost import LostEtcd
from tests.chaos.operators import Operators
from tests.chaos.stores import Stores
from tests.chaos.unsynced import folder_of, take_back
from tests.integration.harness import Cluster, until
from tests.processes import PATIENCE_S

STUTTER_ON_S, STUTTER_OFF_S = 0.02, 0.18
BUSY = "while True: pass"
MIN_FLOOD = 1000
FULL_KEYS = 8


class Faults(Operators, Stores, LostEtcd):
    """See the module. ``lab``: where the network can be cut, if it can. ``members``: of etcd, if there are several."""

    def __init__(self, cluster: Cluster, lab: Lab | None, seed: int, members: Members | None = None) -> None:
        self.members = members
        self.reborn: set[str] = set()
        self._copies: list[subprocess.Popen[bytes]] = []
        self.random = random.Random(seed)
        self.cluster = cluster
        self.lab = lab
        self.it = ""
        self._stutters: dict[str, asyncio.Task[None]] = {}
        self._busy: list[subprocess.Popen[bytes]] = []
        self._flood: subprocess.Popen[bytes] | None = None
        self._filled: list[str] = []
        #: nodes that are not to come back
        self.gone: set[str] = set()

    # --- who ----------------------------------------------------------------------------------

    def _leader(self) -> str:
        return self.cluster.leaders().get(0, (self.it, 0))[0]

    def names(self, who: tuple[str, ...]) -> list[str]:
        """The processes meant; also remembers ``it``."""
        found: list[str] = []
        for word in who:
            if word == "leader":
                self.it = self._leader()
                found.append(self.it)
            elif word == "follower":
                leader = self._leader()
                self.it = next(n for n in self.cluster.names() if n != leader)
                found.append(self.it)
            elif word == "it":
                found.append(self.it)
            elif word == "nodes":
                found += self.cluster.names()
            elif word == "others":
                found += [n for n in self.cluster.names() if n != self.it]
            else:
                found.append(word)
        return found

    async def do(self, verb: str, who: tuple[str, ...]) -> str:
        """Carry out one step; how to show it."""
        words = tuple(w for w in who if not w.lstrip("-").isdigit())
        numbers = [w for w in who if w.lstrip("-").isdigit()]
        names = await asyncio.to_thread(self.names, words)
        await getattr(self, verb)(*names, *numbers)
        return " ".join([verb, *names, *numbers])

    async def _verb(self, verb: str, *names: str) -> None:
        await asyncio.to_thread(self.cluster.verb, verb, *names)

    # --- processes ----------------------------------------------------------------------------

    async def kill(self, *names: str) -> None:
        await self._verb("kill", *names)

    async def power_off(self, *names: str) -> None:
        """As kill, and what was not synced is lost in any part."""
        await self.kill(*names)
        for name in names:
            data = self.cluster.data / "nodes" / name
            take_back(folder_of(str(data)), data / "log", self.random)

    async def restart(self, *names: str) -> None:
        await self._verb("restart", *names)

    async def restart_gracefully(self, *names: str) -> None:
        await self._verb("restart", "--graceful", *names)

    async def upgrade(self, *names: str) -> None:
        """Become a later build, one after the other."""
        for name in names:
            later = await asyncio.to_thread(builds.make, self.cluster.data / "later-build")
            (self.cluster.data / "nodes" / f"{name}.build").write_text(str(later))
            await self._change_build(name, later=True)

    async def roll_back(self, *names: str) -> None:
        """Become this build again."""
        for name in names:
            (self.cluster.data / "nodes" / f"{name}.build").unlink()
            await self._change_build(name, later=False)

    async def _change_build(self, name: str, later: bool) -> None:
        """As an operator does it: the next one goes when this one has caught up."""
        await self.restart_gracefully(name)

        def is_in_step() -> bool:
            status = self.cluster.status(name)
            assert (status["version"] == builds.LATER) is later
            parts = status["partitions"]
            return bool(parts) and all(p["health"] == "ok" for p in parts) and len(status["peers"]) == 2

        await until(f"{name} is back", lambda: asyncio.to_thread(is_in_step))

    async def pause(self, *names: str) -> None:
        await self._verb("pause", *names)

    async def resume(self, *names: str) -> None:
        await self._verb("resume", *names)

    async def stutter(self, name: str) -> None:
        pid = self.cluster.node(name)["pid"]

        async def go() -> None:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(STUTTER_OFF_S)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(STUTTER_ON_S)

        self._stutters[name] = asyncio.create_task(go())

    async def steady(self, name: str) -> None:
        task = self._stutters.pop(name, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.cluster.node(name)["pid"], signal.SIGCONT)

    async def starve(self) -> None:
        self._busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(8)]

    async def feed(self) -> None:
        for process in self._busy:
            process.kill()
            process.wait()
        self._busy = []

    async def flood(self) -> None:
        """Another process keeps all nodes busy."""
        addresses = [node["rpc"] for node in self.cluster.json()["nodes"]]
        command = [sys.executable, "-m", "tests.chaos.flood", *addresses]
        self._flood = subprocess.Popen(command, stdout=subprocess.PIPE)

    async def ebb(self) -> None:
        process, self._flood = self._flood, None
        if process is not None:
            process.terminate()
            said, _ = await asyncio.to_thread(process.communicate, timeout=30)
            print(f"flooded with {int(said):,} operations", flush=True)
            assert int(said) > MIN_FLOOD, f"{int(said)} operations are no flood"

    # --- disks and clocks ------------------------------------------------------------------------

    def _control(self, name: str, **faults: float) -> None:
        path = self.cluster.data / "nodes" / f"{name}.faults"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        fresh.rename(path)

    async def slow_disk(self, name: str) -> None:
        self._control(name, sync_delay_ms=80)

    async def broken_disk(self, name: str) -> None:
        self._control(name, sync_fails=1)

    async def hang_disk(self, name: str) -> None:
        self._control(name, sync_hangs=1)

    async def good_disk(self, name: str) -> None:
        self._control(name)

    async def clock(self, name: str, jump_s: str) -> None:
        self._control(name, clock_jump_s=int(jump_s))

    async def fill_disk(self, *names: str) -> None:
        def fill() -> None:
            for name in names:
                self._fill(name)

        await asyncio.to_thread(fill)

    def _fill(self, name: str) -> None:
        path = self.cluster.data / "nodes" / name / "filler"
        self._filled.append(name)
        with contextlib.suppress(OSError), path.open("wb", buffering=0) as f:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while f.write(bytes(size)) == size:
                        pass

    async def free_disk(self, *names: str) -> None:
        for name in names:
            (self.cluster.data / "nodes" / name / "filler").unlink(missing_ok=True)

    async def leave_records(self) -> None:
        async with self.cluster.client() as client:
            for number in range(FULL_KEYS):
                await client.namespace("full").put(f"k{number}", b"v")

    async def reads_and_deletes_go_on(self) -> None:
        """With all disks full: what adds is refused with what to do, gets and deletes are not."""
        async with self.cluster.client() as client:
            ns = client.namespace("full")
            for number in range(FULL_KEYS):
                await self._refused(partial(ns.add, f"n{number}", 1))
                found = await ns.get(f"k{number}")
                assert found is None or found.value == b"v"
                await ns.delete(f"k{number}")
                assert await ns.get(f"k{number}") is None

    @staticmethod
    async def _refused(write: Callable[[], Awaitable[object]]) -> None:
        """A node looks at its disk now and then: before that it may accept a write for which there is still room."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(DiskLow):
                while True:
                    await write()
                    await asyncio.sleep(0.05)

    # --- the network ---------------------------------------------------------------------------

    def _others(self, name: str) -> list[str]:
        return [n for n in self.cluster.names() if n != name]

    def _cut(self, src: str, dst: str) -> None:
        assert self.lab is not None
        self.lab.cut(src, dst)

    async def cut(self, a: str, b: str) -> None:
        self._cut(a, b)
        self._cut(b, a)

    async def isolate(self, name: str) -> None:
        for other in [*self._others(name), "etcd"]:
            await self.cut(name, other)

    async def deafen(self, name: str) -> None:
        for other in self._others(name):
            self._cut(other, name)

    async def mute(self, name: str) -> None:
        for other in self._others(name):
            self._cut(name, other)

    async def slow_network(self, delay_ms: str, jitter_ms: str) -> None:
        """Everything between nodes takes so long, each way."""
        assert self.lab is not None
        for src in self.cluster.names():
            for dst in self._others(src):
                self.lab.delay(src, dst, int(delay_ms), int(jitter_ms))

    async def far(self, name: str, delay_ms: str, jitter_ms: str) -> None:
        """What others send to ``name`` takes so long; what it sends does not."""
        assert self.lab is not None
        for src in self._others(name):
            self.lab.delay(src, name, int(delay_ms), int(jitter_ms))

    async def mend(self) -> None:
        if self.lab is not None:
            self.lab.heal()

    # --- etcd -----------------------------------------------------------------------------------

    async def pause_etcd_leader(self) -> None:
        assert self.members is not None
        await self.members.pause_leader()

    async def resume_etcds(self) -> None:
        assert self.members is not None
        await self.members.resume()

    # --- the end --------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Undo everything; start what is not running."""
        await self.mend()
        await self.end_copy()
        if self.members is not None:
            await self.members.resume()
        await self.feed()
        await self.ebb()
        for name in list(self._stutters):
            await self.steady(name)
        for name in self._filled:
            await self.free_disk(name)
        for name in self.cluster.names():
            self._control(name)
        states = await asyncio.to_thread(self.cluster.processes)
        for name, state in states.items():
            if state == "paused":
                await self.resume(name)
            elif state != "running" and name not in self.gone:
                await self.restart(name)
