"""Two more members of etcd beside the one that ``cellctl dev`` has, and verbs about whichever leads them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastore.coordination.embedded import etcd_command, wait_healthy

if TYPE_CHECKING:
    from tests.integration.harness import Cluster

PATIENCE_S = 60.0


def _post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=5) as response:
        found: dict[str, Any] = json.loads(response.read())
        return found


class Members:
    """``ports``: of the members that are added, ``(client, peer)``."""

    def __init__(self, cluster: Cluster, ports: list[tuple[int, int]]) -> None:
        self.cluster = cluster
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.first = str(cluster.json()["etcd"][0]["url"])
        self.ports = ports

    def start(self) -> None:
        """Add them, one after the other."""
        for number, (client, peer) in enumerate(self.ports, 2):
            name, url = f"etcd{number}", f"http://127.0.0.1:{peer}"
            members = self._add(url)
            initial = ",".join(f"{m.get('name') or name}={m['peerURLs'][0]}" for m in members)
            data = self.cluster.data / name
            command = [
                part
                for part in etcd_command(Path(data), name, client, peer)
                if not part.startswith("--initial-cluster")
            ]
            command += [f"--initial-cluster={initial}", "--initial-cluster-state=existing"]
            with (self.cluster.data / "logs" / f"{name}.log").open("ab") as out:
                self.processes[name] = subprocess.Popen(command, stdout=out, stderr=out)
            assert wait_healthy(f"http://127.0.0.1:{client}", PATIENCE_S), f"{name} did not become healthy"

    def _add(self, url: str) -> list[dict[str, Any]]:
        """Etcd takes no new member before the last one has been well for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                found: list[dict[str, Any]]
                found = _post(self.first, "/v3/cluster/member/add", {"peerURLs": [url]})["members"]
                return found
            except urllib.error.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def leader(self) -> str:
        """``etcd`` or one of ours."""
        urls = {"etcd": self.first}
        urls |= {f"etcd{n}": f"http://127.0.0.1:{client}" for n, (client, _) in enumerate(self.ports, 2)}
        for name, url in urls.items():
            status = _post(url, "/v3/maintenance/status", {})
            if status["leader"] == status["header"]["member_id"]:
                return name
        raise AssertionError("etcd has no leader")

    async def signal_leader(self, verb: str) -> None:
        """pause or kill it; what is killed is brought back by ``resume``."""
        name = await asyncio.to_thread(self.leader)
        if name == "etcd":
            await asyncio.to_thread(self.cluster.verb, verb, name)
        else:
            number = signal.SIGSTOP if verb == "pause" else signal.SIGKILL
            os.kill(self.processes[name].pid, number)

    async def resume(self) -> None:
        """All run that can."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        states = await asyncio.to_thread(self.cluster.processes)
        if states["etcd"] == "paused":
            await asyncio.to_thread(self.cluster.verb, "resume", "etcd")
        elif states["etcd"] != "running":
            await asyncio.to_thread(self.cluster.verb, "restart", "etcd")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
