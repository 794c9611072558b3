"""The verbs of scenarios in which an operator changes the cluster while it is used, and is interrupted."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from tests.integration.harness import cellctl, until

if TYPE_CHECKING:
    from tests.integration.harness import Cluster

DONE_S = 90.0


class Operators:
    """Mixed into Faults."""

    cluster: Cluster

    def _tool(self, *args: str) -> Any:
        done = cellctl(*args, "--data", str(self.cluster.data), check=False)
        if "json" in args:
            return json.loads(done.stdout)
        if done.returncode == 2:
            raise AssertionError(f"cellctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.returncode

    async def _ask(self, *args: str) -> Any:
        return await asyncio.to_thread(self._tool, *args)

    async def _settled(self) -> None:
        async def no_move() -> bool:
            try:
                return bool(await self._ask("rebalance", "status") == 1)
            except AssertionError:
                return False  # etcd is not back yet

        await until("all moves have ended", no_move, DONE_S)

    async def add_cells(self, count: str) -> None:
        for _ in range(int(count)):
            before = len(await self._ask("node", "list", "-o", "json"))
            await asyncio.to_thread(cellctl, "dev", "add-cell", "--data", str(self.cluster.data))

            async def registered(before: int = before) -> bool:
                return len(await self._ask("node", "list", "-o", "json")) == before + 3

            await until("the new nodes have registered", registered)

    async def rebalance(self) -> None:
        plan = self.cluster.data / "plan.json"
        if await self._ask("rebalance", "plan", "--out", str(plan)) == 0:
            await self._ask("rebalance", "apply", str(plan), "--yes", "--timeout", str(DONE_S))
        again = await self._ask("rebalance", "plan", "-o", "json")
        assert not again["moves"], f"uneven after a rebalance: {again['moves']}"

    async def drain(self, *cells: str) -> None:
        for cell in cells:
            await self._ask("cell", "drain", cell)

    async def remove_cell(self, *cells: str) -> None:
        for cell in cells:
            await self._ask("cell", "remove", cell)
            names = self.cluster.names(cell)
            held = [p["id"] for n in names for p in self.cluster.status(n)["partitions"]]
            assert not held, f"{cell} still holds {held}"
            await asyncio.to_thread(self.cluster.verb, "kill", *names)
            self.gone |= set(names)

    gone: set[str]

    async def divide(self, *numbers: str) -> None:
        for p in numbers:
            await self._ask("partition", "split", p, "--yes", "--no-wait")

    async def replicas(self, *names_and_partition: str) -> None:
        """A partition is to be held by these nodes; it is asked for, and nobody waits."""
        *names, p = names_and_partition
        await self._ask("partition", "move", p, "--to", ",".join(names), "--yes", "--no-wait")

    async def replace(self, old: str) -> None:
        """Kill a node for good, start a new one, and have it take over."""
        await asyncio.to_thread(cellctl, "dev", "add-node", "--data", str(self.cluster.data), "c1")
        new = self.cluster.names("c1")[-1]

        async def registered() -> bool:
            return new in {n["node"] for n in await self._ask("node", "list", "-o", "json")}

        await until("the new node has registered", registered)
        await asyncio.to_thread(self.cluster.verb, "kill", old)
        self.gone.add(old)
        await self._ask("node", "replace", old, new, "--yes")

    async def interrupted_move(self, victim: str, after_ms: str) -> None:
        """Move partition 0 to the other cell; so long after it was asked for, kill -9 the source's leader, the
        target's first node, etcd or the tool itself; bring it back, and wait until the move has ended."""
        row = next(r for r in await self._ask("partition", "list", "-o", "json") if r["id"] == 0)
        other = "c2" if row["cell"] == "c1" else "c1"
        targets = self.cluster.names(other)
        tool = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cellctl.main", "partition", "move", "0", "--to", ",".join(targets), "--yes",
            "--data", str(self.cluster.data),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def asked() -> bool:
            if tool.returncode is not None:
                return True
            return bool(await self._ask("rebalance", "status", "-o", "json"))

        await until("the move is asked for", asked, DONE_S)
        await asyncio.sleep(int(after_ms) / 1000)
        name = {"source": row["leader"], "target": targets[0], "etcd": "etcd"}.get(victim)
        if name is None:
            if tool.returncode is None:
                tool.kill()
        else:
            await asyncio.to_thread(self.cluster.verb, "kill", name)
            await asyncio.sleep(1.5)
            await asyncio.to_thread(self.cluster.verb, "restart", name)
        await tool.wait()
        await self._settled()
        row = next(r for r in await self._ask("partition", "list", "-o", "json") if r["id"] == 0)
        assert sorted(row["replicas"]) == sorted(targets), f"partition 0 is at {row['replicas']}"
