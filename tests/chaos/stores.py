"""The verbs of scenarios about a node's folder: lost, old, or there twice (R13); and logs that roll."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cellctl.dev_files import pick_ports
from metastore.errors import MetastoreError

if TYPE_CHECKING:
    from tests.integration.harness import Cluster

FILL_BYTES = 200_000


class Stores:
    """Mixed into Faults."""

    cluster: Cluster
    #: nodes whose store is not the one that it was: what they have promised may begin anew
    reborn: set[str]
    _copies: list[subprocess.Popen[bytes]]

    def _folder(self, name: str) -> Path:
        return self.cluster.data / "nodes" / name

    def _copy(self, name: str) -> Path:
        return self.cluster.data / f"{name}.copy"

    async def empty(self, name: str) -> None:
        """All that a stopped node has is lost."""
        self.reborn.add(name)
        await asyncio.to_thread(shutil.rmtree, self._folder(name))

    async def copy(self, name: str) -> None:
        """Its folder is copied, running or not."""

        def copy() -> None:
            shutil.copytree(self._folder(name), self._copy(name), dirs_exist_ok=True)

        await asyncio.to_thread(copy)

    async def put_back(self, name: str) -> None:
        """A stopped node has what was copied, and nothing newer."""
        await self.empty(name)
        await asyncio.to_thread(shutil.copytree, self._copy(name), self._folder(name))

    async def start_copy(self, name: str) -> None:
        """The copy is started beside the node, under its name, with addresses of its own."""
        pid = self.cluster.node(name)["pid"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        ports = pick_ports("127.0.0.1", ["rpc", "http"], set())
        for flag, value in (
            ("--data-dir", str(self._copy(name))),
            ("--rpc", f"127.0.0.1:{ports['rpc']}"),
            ("--http", f"127.0.0.1:{ports['http']}"),
        ):
            command[command.index(flag) + 1] = value
        with (self.cluster.data / "logs" / f"{name}-copy.log").open("ab") as out:
            self._copies.append(subprocess.Popen(command, stdout=out, stderr=out))

    async def end_copy(self) -> None:
        copies, self._copies = self._copies, []
        for process in copies:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def fill_log(self, mib: str) -> None:
        """So much is written that the log does not keep all of it."""
        async with self.cluster.client() as client:
            ns, value = client.namespace("fill"), bytes(FILL_BYTES)

            async def fill(worker: int) -> None:
                for number in range(int(mib) * (1 << 20) // FILL_BYTES // 8):
                    with contextlib.suppress(MetastoreError):
                        await ns.put(f"d{worker}/{number % 16}", value)

            await asyncio.gather(*(fill(worker) for worker in range(8)))
