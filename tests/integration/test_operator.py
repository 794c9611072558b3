"""The operator's verbs on real clusters: leaders moved, replicas compared, records out and in again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from metastore import Put
from tests.integration.harness import Cluster, Load, cellctl, keys_by_partition, until
from tests.typed import there


def tool(cluster: Cluster, *args: str, code: int = 0) -> Any:
    """cellctl on this cluster, which has to exit with ``code``; its JSON if that is what was asked for."""
    done = cellctl(*args, "--data", str(cluster.data), check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if "json" in args else done.stdout + done.stderr


@pytest.mark.nightly
async def test_leaders_are_handed_over_under_load(steady_cell: Cluster) -> None:
    cell = steady_cell
    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 2).values() for k in ks])
        running = asyncio.create_task(load.run())
        leader, epoch = cell.leaders()[3]
        to = next(n for n in cell.names() if n != leader)
        [done] = await asyncio.to_thread(tool, cell, "switchover", "3", "--to", to, "-o", "json")
        assert (done["from"], done["to"]) == (leader, to)
        assert cell.leaders()[3] == (to, done["epoch"])
        assert done["epoch"] > epoch
        assert "leads it already" in await asyncio.to_thread(tool, cell, "switchover", "3", "--to", to)
        await asyncio.to_thread(tool, cell, "switchover", "--node", to)
        assert to not in {name for name, _ in cell.leaders().values()}
        for args, says in (
            (("switchover", "99"), "no partition 99"),
            (("switchover",), "give partitions"),
            (("switchover", "--node", "c9n9"), "there is no node 'c9n9'; there are c1n1"),
            (("switchover", "3", "--to", "c9n9"), "connected replicas: "),
        ):
            assert says in await asyncio.to_thread(tool, cell, *args, code=2)
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]


async def test_replicas_are_compared_and_shown(cell: Cluster) -> None:
    async with cell.client() as client:
        ns = client.namespace("shown")
        await ns.batch([Put(f"d{n}/k", b"x") for n in range(64)])
    rows = tool(cell, "verify", "-o", "json")
    assert [row["state"] for row in rows] == ["same"] * 8
    assert "8 of 8 partitions" in tool(cell, "verify")
    shown = tool(cell, "partition", "show", "2", "-o", "json")
    assert [r["state"] for r in shown["replicas"]] == ["up"] * 3
    assert len({r["records"] for r in shown["replicas"]}) == 1
    assert "there is no partition 8" in tool(cell, "partition", "show", "8", code=2)
    nodes = tool(cell, "topology", "-o", "json")["cells"]["c1"]
    assert sorted(p for held in nodes.values() for p in held["leads"]) == list(range(8))
    cell.verb("kill", "c1n3")
    await until("its death is noticed", lambda: cell.node("c1n3")["pid"] is None)
    assert {row["state"] for row in tool(cell, "verify", "-o", "json", code=1)} == {"away"}


@pytest.mark.nightly
async def test_records_go_out_and_in_again(cell: Cluster, tmp_path: Path) -> None:
    """Text, other bytes, content types, TTLs and counters; twice in is once in; what is wrong is told by line."""
    async with cell.client() as client:
        ns = client.namespace("out")
        await ns.put("a/text", "grüße".encode(), content_type="text/plain")
        await ns.put("a/bytes", b"\xff\x00")
        await ns.put("b/short", b"x", ttl_s=3600)
        await ns.add("b/count", 41)
        await ns.batch([Put(f"many/{n}", b"%d" % n) for n in range(2000)])
        file = tmp_path / "out.jsonl"
        assert "2004 records" in await asyncio.to_thread(
            tool, cell, "export", "jsonl", "-n", "out", "-f", str(file)
        )
        for _ in range(2):
            await asyncio.to_thread(tool, cell, "import", "jsonl", str(file), "-n", "in")
        back = client.namespace("in")
        one = {k: (r.value, r.content_type, r.ttl_ms, r.counter) async for k, r in ns.scan()}
        two = {k: (r.value, r.content_type, r.ttl_ms, r.counter) async for k, r in back.scan()}
        assert one == two
        assert len(two) == 2004
        await back.put("a/text", b"mine")
        said = await asyncio.to_thread(tool, cell, "import", "jsonl", str(file), "-n", "in", "--only-absent")
        assert "2004 were there already" in said
        assert there(await back.get("a/text")).value == b"mine"
        bad = [
            "{",
            '{"key": "k"}',
            '{"namespace": "in", "key": "k", "value": 1}',
            '{"namespace": "in", "key": "k", "x": 1}',
        ]
        file.write_text("\n".join([*bad, '{"namespace": "in", "key": "good", "value": "v"}', ""]))
        said = await asyncio.to_thread(tool, cell, "import", "jsonl", str(file), code=2)
        assert all(f"line {n}: " in said for n in (1, 2, 3, 4)), said
        assert there(await back.get("good")).value == b"v"


async def test_a_dead_node_is_replaced(cell: Cluster) -> None:
    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 1).values() for k in ks])
        running = asyncio.create_task(load.run())
        await asyncio.to_thread(cellctl, "dev", "add-node", "--data", str(cell.data), "c1")
        await until("it has registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 4)
        cell.verb("kill", "c1n2")
        await asyncio.to_thread(tool, cell, "node", "replace", "c1n2", "c1n4", "--yes")
        rows = tool(cell, "partition", "list", "-o", "json")
        assert all("c1n4" in row["replicas"] and "c1n2" not in row["replicas"] for row in rows)
        await asyncio.to_thread(tool, cell, "partition", "move", "0", "--to", "c1n1,c1n3", "--yes")
        row = tool(cell, "partition", "show", "0", "-o", "json")
        assert sorted(r["node"] for r in row["replicas"]) == ["c1n1", "c1n3"]
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
