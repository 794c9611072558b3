"""The verbs of scenarios in which etcd loses what it knew: wiped, restored from an old snapshot of its own, or replaced by
another etcd that has that; and ``cellctl control rebuild`` (R13)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from cellctl.dev_files import load_shape
from metastore.coordination.embedded import etcd_binary
from tests.integration.harness import cellctl, until

if TYPE_CHECKING:
    from tests.integration.harness import Cluster

#: how etcd is lost -> the token of the cluster that it is restored as; etcd makes its cluster id of that. None = it is empty
TOKENS = {"wiped": None, "restored": "etcd-cluster", "replaced": "another"}


class LostEtcd:
    """Mixed into Faults."""

    cluster: Cluster

    async def snapshot_etcd(self) -> None:
        """Keep what etcd has now, as an operator does."""
        url = str(self.cluster.json()["etcd"][0]["url"])
        command = [etcd_binary("etcdctl"), f"--endpoints={url}", "snapshot", "save", str(self._snapshot)]
        await asyncio.to_thread(_run, *command)

    async def lose_etcd(self, how: str) -> None:
        """See TOKENS. Returns once every node has noticed."""
        await asyncio.to_thread(self._lose, TOKENS[how])
        await until("no node trusts etcd", lambda: asyncio.to_thread(self._distrusted, True))

    async def all_are_led(self) -> None:
        """By the nodes that run, which go by claims (R16)."""

        def are_led() -> bool:
            running = [n for n, state in self.cluster.processes().items() if state == "running"]
            nodes = [n for n in self.cluster.names() if n in running]
            held = {part["id"] for n in nodes for part in self.cluster.status(n)["partitions"]}
            return bool(held) and held == self.cluster.leaders().keys()

        await until("every partition is led", lambda: asyncio.to_thread(are_led))

    async def rebuild(self) -> None:
        """From the stores; returns once every node trusts etcd again."""
        await self._order(lambda: self._distrusted(False), "control", "rebuild", "--yes")

    async def can_change(self, p: str) -> None:
        """A partition moves and moves back, is led by another, and is split: each by records in etcd."""
        names = self.cluster.names()
        for replicas in (names[1:], names):
            await self._order(None, "partition", "move", p, "--to", ",".join(replicas), "--yes")
        before = await asyncio.to_thread(self.cluster.leaders)
        leader, epoch = before[int(p)]
        to = next(n for n in names if n != leader)

        def is_led_anew() -> bool:
            return self.cluster.leaders().get(int(p), ("", 0))[1] > epoch

        await self._order(is_led_anew, "switchover", p, "--to", to)
        await self._order(lambda: len(self.cluster.leaders()) > len(before), "partition", "split", p, "--yes")

    async def _order(self, is_done: Callable[[], bool] | None, *args: str) -> None:
        """Until it is carried out; a busy machine may have a tool fail that waits for an answer."""

        def ask() -> bool:
            done = cellctl(*args, "--data", str(self.cluster.data), check=False)
            return done.returncode == 0 if is_done is None else is_done()

        await until(f"cellctl {' '.join(args)}", lambda: asyncio.to_thread(ask))

    @property
    def _snapshot(self) -> str:
        return str(self.cluster.data / "etcd.snapshot")

    def _lose(self, token: str | None) -> None:
        self.cluster.verb("kill", "etcd")
        folder = self.cluster.data / "etcd"
        shutil.rmtree(folder)
        if token is not None:
            shape = load_shape(self.cluster.data)
            assert shape is not None
            peer = f"http://{shape.hosts.get('etcd', shape.host)}:{shape.ports['etcd-peer']}"
            _run(
                etcd_binary("etcdutl"), "snapshot", "restore", self._snapshot, f"--data-dir={folder}",
                "--name=etcd", f"--initial-cluster=etcd={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster-token={token}",
            )  # fmt: skip
        self.cluster.verb("restart", "etcd")

    def _distrusted(self, wanted: bool) -> bool:
        """Whether all nodes distrust etcd, or none."""
        return all(bool(self.cluster.status(n)["etcd"]["untrusted"]) is wanted for n in self.cluster.names())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
