"""Partitions move under load, within a cell and between cells, and nobody notices (R10)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from metastore import Put
from tests.integration.harness import Cluster, Load, cellctl, keys_by_partition, until
from tests.integration.witness import Witness


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
    await asyncio.to_thread(tool, cluster, "rebalance", "apply", str(file), "--yes", "--timeout", "500")
    return moves


@pytest.mark.nightly
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


async def test_watches_and_scans_go_along(cell: Cluster, tmp_path: Path) -> None:
    """Every change once and in order, and every record in every scan, while all partitions move to
    another cell and the way there is interrupted."""
    async with cell.client() as writing, cell.client() as watching:
        still = watching.namespace("still")
        keys = sorted(k for ks in keys_by_partition(watching, 5, "still").values() for k in ks)
        await still.batch([Put(k, b"x") for k in keys])
        await asyncio.to_thread(cellctl, "dev", "add-cell", "--data", str(cell.data))
        await until(
            "the new nodes have registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 6
        )
        witness = Witness(writing, "witness", 11)
        await witness.watch("plain", watching)
        await witness.watch("reopened", watching, reopen=40)
        await witness.watch("any replica", watching, any_replica=True)
        witness.write(4)
        await witness.everybody_has_seen("nothing happened yet")
        scans, stop = 0, False

        async def scan() -> None:
            nonlocal scans
            while not stop:
                assert sorted([k async for k, _ in still.scan(page=7)]) == keys
                scans += 1

        scanning = asyncio.create_task(scan())
        tool(cell, "cell", "drain", "c1")
        plan = tmp_path / "plan.json"
        await asyncio.to_thread(tool, cell, "rebalance", "plan", "--out", str(plan))
        await asyncio.to_thread(tool, cell, "rebalance", "apply", str(plan), "--yes", "--no-wait")
        for victim in ("c1n2", "c2n1"):  # one that moves are led from, one that they go to
            os.kill(cell.node(victim)["pid"], signal.SIGKILL)
            await until("its death is noticed", lambda v=victim: cell.node(v)["pid"] is None)
            cell.verb("restart", victim)
        await until("all have moved", lambda: set(homes(cell).values()) == {"c2"})
        await until("no move is left", lambda: tool(cell, "rebalance", "status", check=False).returncode == 1)
        await witness.everybody_has_seen("everything has moved")
        await until("scans go on", lambda: scans > 3 or scanning.done())
        stop = True
        await scanning
        await witness.end()


@pytest.mark.nightly
async def test_a_move_is_interrupted_and_goes_back(cell: Cluster, tmp_path: Path) -> None:
    """The tool is killed, etcd stands still, and the operator changes their mind."""
    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 2).values() for k in ks])
        running = asyncio.create_task(load.run())
        await asyncio.to_thread(cellctl, "dev", "add-cell", "--data", str(cell.data))
        await until(
            "the new nodes have registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 6
        )
        tool(cell, "pause")
        plan = tmp_path / "plan.json"
        await asyncio.to_thread(tool, cell, "rebalance", "plan", "--out", str(plan))
        wanted = {m["partition"] for m in json.loads(plan.read_text())["moves"]}
        before = homes(cell)
        apply = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cellctl.main", "rebalance", "apply", str(plan), "--yes",
            "--data", str(cell.data), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await until(
            "the moves are asked for",
            lambda: len(tool(cell, "rebalance", "status", "-o", "json", check=False)) == len(wanted),
        )
        apply.kill()
        await apply.wait()
        assert homes(cell) == before, "nothing moves while it is paused"
        cell.verb("pause", "etcd")
        await asyncio.sleep(1)
        cell.verb("resume", "etcd")
        back = min(wanted)
        tool(cell, "rebalance", "cancel", str(back))
        tool(cell, "resume")
        await until(
            "the rest has moved", lambda: tool(cell, "rebalance", "status", check=False).returncode == 1
        )
        assert {p for p, home in homes(cell).items() if home != before[p]} == wanted - {back}
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
