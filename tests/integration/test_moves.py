"""Partitions move under load, within a cell and between cells, and nobody notices (R10)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.integration.harness import Cluster, Load, cellctl, keys_by_partition, until


def tool(cluster: Cluster, *args: str, check: bool = True) -> Any:
    """cellctl on this cluster; its JSON, if that is what was asked for."""
    done = cellctl(*args, "--data", str(cluster.data), check=check)
    return json.loads(done.stdout) if "json" in args else done


def homes(cluster: Cluster) -> dict[int, str]:
    return {row["id"]: row["cell"] for row in tool(cluster, "partition", "list", "-o", "json", check=False)}


async def rebalance(cluster: Cluster, folder: Path) -> int:
    """Plan and apply; how many moves."""
    file = folder / "plan.json"
    planned = await asyncio.to_thread(tool, cluster, "rebalance", "plan", "--out", str(file), check=False)
    if planned.returncode:
        return 0
    moves = len(json.loads(file.read_text())["moves"])
    await asyncio.to_thread(tool, cluster, "rebalance", "apply", str(file), "--yes", "--timeout", "120")
    return moves


async def test_a_cell_joins_and_leaves_under_load(cell: Cluster, tmp_path: Path) -> None:
    """One cell becomes two and one again: no failed operation, nothing lost or doubled."""
    async with cell.client() as client:
        by_partition = keys_by_partition(client, 2)
        load = Load(client, [k for keys in by_partition.values() for k in keys])
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        await asyncio.to_thread(cellctl, "dev", "add-cell", "--data", str(cell.data))
        await until(
            "the new nodes have registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 6
        )
        assert await rebalance(cell, tmp_path) == 4
        assert sorted(homes(cell).values()) == ["c1"] * 4 + ["c2"] * 4
        tool(cell, "cell", "drain", "c1")
        assert await rebalance(cell, tmp_path) == 4
        assert set(homes(cell).values()) == {"c2"}
        tool(cell, "cell", "remove", "c1")
        assert await rebalance(cell, tmp_path) == 0
        await asyncio.sleep(0.5)
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
    gone = [cell.status(n)["partitions"] for n in cell.names("c1")]
    assert gone == [[], [], []], "what moved away is deleted"


async def test_a_drained_node_is_replaced(cell: Cluster, tmp_path: Path) -> None:
    async with cell.client() as client:
        by_partition = keys_by_partition(client, 1)
        load = Load(client, [k for keys in by_partition.values() for k in keys])
        running = asyncio.create_task(load.run())
        await asyncio.to_thread(cellctl, "dev", "add-node", "--data", str(cell.data), "c1")
        await until("it has registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 4)
        tool(cell, "node", "drain", "c1n1")
        assert await rebalance(cell, tmp_path) == 8
        tool(cell, "node", "remove", "c1n1")
        await until("nothing is left there", lambda: cell.status("c1n1")["partitions"] == [])
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
