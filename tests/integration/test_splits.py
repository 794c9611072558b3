"""A partition becomes two under load, and nobody notices (R18)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from metastore import Put
from tests.integration.harness import Cluster, Load, keys_by_partition, until
from tests.integration.test_operator import tool
from tests.integration.witness import Witness
from tests.typed import there


def partitions(cluster: Cluster) -> dict[int, str]:
    """Partition -> its leader, as the nodes say."""
    return {p: name for p, (name, _) in cluster.leaders().items()}


async def test_partitions_are_split_under_load(cell: Cluster) -> None:
    """Every one of eight becomes two, one after the other, under load: nothing fails, nothing is lost or
    doubled, watches and scans go along, and replicas are equal."""
    async with cell.client() as client, cell.client() as watching:
        load = Load(client, [k for ks in keys_by_partition(client, 4).values() for k in ks])
        running = asyncio.create_task(load.run())
        still = watching.namespace("still")
        keys = sorted(k for ks in keys_by_partition(watching, 12, "still").values() for k in ks)
        await still.batch([Put(k, b"x") for k in keys])
        witness = Witness(client, "witness", 11)
        await witness.watch("plain", watching)
        await witness.watch("reopened", watching, reopen=40)
        await witness.watch("any replica", watching, any_replica=True)
        witness.write(4)
        await witness.everybody_has_seen("nothing happened yet")
        before = tool(cell, "status", "-o", "json")
        for p in range(8):
            await asyncio.to_thread(tool, cell, "partition", "split", str(p), "--yes")
            assert sorted([k async for k, _ in still.scan(page=7)]) == keys
        await until("all are led", lambda: len(partitions(cell)) == 16)
        await witness.everybody_has_seen("everything is split")
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
        await witness.end()
    assert len(before["partitions"]) == 8
    rows = await asyncio.to_thread(tool, cell, "verify", "-o", "json")
    assert [row["state"] for row in rows] == ["same"] * 16
    assert "is not a hexadecimal" in tool(cell, "partition", "split", "3", "--at", "xy", "--yes", code=2)
    assert "is not inside" in tool(cell, "partition", "split", "3", "--at", "0" * 16, "--yes", code=2)
    assert "no partition 99" in tool(cell, "partition", "split", "99", "--yes", code=2)
    kinds = [e["kind"] for e in tool(cell, "history", "3", "-o", "json")]
    assert "split" in kinds


@pytest.mark.nightly
async def test_halves_survive_everything(cell: Cluster, tmp_path: Path) -> None:
    """Nodes are killed while partitions are split; all are killed after; the halves move on their own; the
    same cluster comes back."""
    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 4).values() for k in ks])
        running = asyncio.create_task(load.run())
        ns = client.namespace("kept")
        keys = [k for ks in keys_by_partition(client, 30, "kept").values() for k in ks]
        await ns.batch([Put(k, k.encode()) for k in keys])
        for p in range(4):
            tool(cell, "partition", "split", str(p), "--yes", "--no-wait")
        await asyncio.sleep(0.02)
        os.kill(cell.node(partitions(cell).get(0, "c1n1"))["pid"], signal.SIGKILL)
        await until("a death is noticed", lambda: any(cell.node(n)["pid"] is None for n in cell.names()))
        cell.verb("restart", *[n for n in cell.names() if cell.node(n)["pid"] is None])
        await until("all are split", lambda: len(partitions(cell)) == 12)
        cell.verb("kill", *cell.names())
        cell.verb("restart", *cell.names())
        await until("all are led", lambda: len(partitions(cell)) == 12)
        await asyncio.to_thread(tool, cell, "partition", "move", "8", "--to", "c1n1", "--yes")
        await asyncio.to_thread(tool, cell, "partition", "move", "8", "--to", "c1n2,c1n3", "--yes")
        load.stop = True
        await running
        await load.check_all()
        assert not [a for a in load.failures() if a.outcome == "none" and "condition" in a.error]
        for key in keys:
            assert there(await ns.get(key)).value == key.encode()
    assert 8 not in {p["id"] for p in cell.status("c1n1")["partitions"]}
    cell.down()
    cell.up_again()
    await until("all are led", lambda: len(partitions(cell)) == 12)
    async with cell.client() as client:
        ns = client.namespace("kept")
        assert sorted([k async for k, _ in ns.scan()]) == sorted(keys)
    rows = await asyncio.to_thread(tool, cell, "verify", "-o", "json")
    assert {row["state"] for row in rows} == {"same"}
