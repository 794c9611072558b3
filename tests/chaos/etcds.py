"""Two more members of etcd beside the one that ``cellctl dev`` has, and verbs about whichever leads them.

``python -m tests.chaos.etcds CLIENT PEER CLIENT PEER ETCD…`` is what the command line of dev's etcd begins with: it
starts the other two, unless they run, and becomes the first. Their process ids are in files beside the data.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metastore.coordination.embedded import etcd_command

if TYPE_CHECKING:
    from tests.integration.harness import Cluster


def wrapper(ports: list[tuple[int, int]]) -> list[str]:
    """``ports``: of the members that are added, ``(client, peer)``."""
    return [sys.executable, "-m", __name__, *(str(port) for pair in ports for port in pair)]


def _of(data: Path, number: int) -> Path:
    """The folder of a member, beside the first's."""
    return data.with_name(f"etcd{number}")


def _pid(data: Path, number: int) -> int | None:
    """Of a member that runs."""
    try:
        pid = int(_of(data, number).with_suffix(".pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(_of(data, number)).encode() in command else None


def main(ports: list[tuple[int, int]], first: list[str]) -> None:
    flags = dict(part.split("=", 1) for part in first[1:])
    data = Path(flags["--data-dir"])
    members = [flags["--initial-cluster"]]
    members += [f"etcd{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports, 2)]
    together = "--initial-cluster=" + ",".join(members)

    def command(single: list[str]) -> list[str]:
        return [part for part in single if not part.startswith("--initial-cluster=")] + [together]

    for number, (client, peer) in enumerate(ports, 2):
        if _pid(data, number) is None:
            process = subprocess.Popen(
                command(etcd_command(_of(data, number), f"etcd{number}", client, peer))
            )
            _of(data, number).with_suffix(".pid").write_text(str(process.pid))
    os.execv(first[0], command(first))


class Members:
    """Those of a running cluster."""

    def __init__(self, cluster: Cluster, ports: list[tuple[int, int]]) -> None:
        self.cluster = cluster
        self.data = cluster.data / "etcd"
        self.ports = ports

    def leader(self) -> int:
        """Its number, from 1."""
        urls = [str(self.cluster.json()["etcd"][0]["url"])]
        urls += [f"http://127.0.0.1:{client}" for client, _ in self.ports]
        for number, url in enumerate(urls, 1):
            request = urllib.request.Request(f"{url}/v3/maintenance/status", b"{}")
            with urllib.request.urlopen(request, timeout=30) as response:
                status: dict[str, Any] = json.loads(response.read())
            if status["leader"] == status["header"]["member_id"]:
                return number
        raise AssertionError("etcd has no leader")

    async def pause_leader(self) -> None:
        number = await asyncio.to_thread(self.leader)
        if number == 1:
            await asyncio.to_thread(self.cluster.verb, "pause", "etcd")
        else:
            self._signal(number, signal.SIGSTOP)

    def _signal(self, number: int, what: signal.Signals) -> None:
        pid = _pid(self.data, number)
        if pid is not None:
            os.kill(pid, what)

    async def resume(self) -> None:
        """All run that can."""
        for number in range(2, 2 + len(self.ports)):
            self._signal(number, signal.SIGCONT)
        states = await asyncio.to_thread(self.cluster.processes)
        if states["etcd"] == "paused":
            await asyncio.to_thread(self.cluster.verb, "resume", "etcd")

    def close(self) -> None:
        for number in range(2, 2 + len(self.ports)):
            self._signal(number, signal.SIGKILL)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:5]]
    main([(numbers[0], numbers[1]), (numbers[2], numbers[3])], sys.argv[5:])
