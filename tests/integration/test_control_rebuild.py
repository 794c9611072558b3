"""A real etcd that is wiped, or set back to an old copy of its folder, under load: everything is served, and after
``cellctl control rebuild`` everything can change again (R13)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metastore.coordination.embedded import wait_healthy
from tests.integration.harness import Cluster, Load, cellctl, keys_by_partition, until
from tests.processes import PATIENCE_S
from tests.typed import there

#: of etcd, between the copy and its loss
CHANGES = 40


def tool(cluster: Cluster, *args: str, code: int = 0) -> str:
    done = cellctl(*args, "--data", str(cluster.data), check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def distrusting(cluster: Cluster) -> list[str]:
    return [n for n in cluster.names() if cluster.status(n)["etcd"]["untrusted"]]


async def lose_etcd(cluster: Cluster, old: Path | None) -> None:
    """Its folder is ``old`` from now on; None = empty."""
    cluster.verb("kill", "etcd")
    shutil.rmtree(cluster.data / "etcd")
    if old is not None:
        shutil.copytree(old, cluster.data / "etcd")
    cluster.verb("restart", "etcd")
    await until("nobody trusts it", lambda: distrusting(cluster) == cluster.names())


def revision_at(cluster: Cluster, name: str) -> int:
    """The highest revision of etcd that a node has seen."""
    return int(cluster.status(name)["etcd"]["revision"])


async def check_all_can_change(cluster: Cluster) -> None:
    await until("all trust it", lambda: not distrusting(cluster))

    def all_are_up() -> bool:  # a node that has not put its presence back counts as one that does not run
        nodes = json.loads(tool(cluster, "node", "list", "-o", "json"))
        return all(node["state"] == "up" for node in nodes)

    await until("etcd has heard of all of them", all_are_up)
    leader, epoch = cluster.leaders()[3]
    to = next(n for n in cluster.names() if n != leader)

    def handed_over() -> bool:
        done = cellctl("switchover", "3", "--to", to, "--data", str(cluster.data), check=False)
        return done.returncode == 0 and cluster.leaders()[3][1] > epoch

    await until("an election by etcd", handed_over)
    tool(cluster, "partition", "split", "2", "--yes")


@pytest.mark.parametrize("how", ["wiped", "set back"])
async def test_a_lost_etcd_is_rebuilt_under_load(steady_cell: Cluster, tmp_path: Path, how: str) -> None:
    cell = steady_cell
    old = tmp_path / "old"
    if how == "set back":
        cell.verb("kill", "etcd")
        shutil.copytree(cell.data / "etcd", old)
        cell.verb("restart", "etcd")
        # a node may not have noticed yet that it was away
        assert await asyncio.to_thread(wait_healthy, cell.json()["etcd"][0]["url"], PATIENCE_S)
        await until("it answers", lambda: all(cell.status(n)["etcd"]["connected"] for n in cell.names()))
    # set back by more than what nodes write as soon as it is back: who comes when that has made up for it sees nothing
    for weight in [*range(3, 3 + CHANGES), 2]:
        tool(cell, "cell", "set-weight", "c1", str(weight))
    backup = tmp_path / "control.json"
    tool(cell, "control", "backup", str(backup))
    # a node that has not heard of the last change yet would miss nothing in an etcd that was set back to before it
    changed = json.loads(backup.read_text())["revision"]
    await until("all have seen it", lambda: all(revision_at(cell, n) >= changed for n in cell.names()))
    assert "nothing to rebuild" in tool(cell, "control", "rebuild", "--yes", code=1)
    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 1).values() for k in ks])
        running = asyncio.create_task(load.run())
        epochs = {p: epoch for p, (_, epoch) in cell.leaders().items()}
        await lose_etcd(cell, old if how == "set back" else None)
        assert "distrusts etcd, because" in tool(cell, "status")
        assert "control rebuild" in tool(cell, "doctor", code=2)
        assert "nothing was written" in await asyncio.to_thread(tool, cell, "control", "rebuild")
        assert distrusting(cell) == cell.names()
        await asyncio.to_thread(tool, cell, "control", "rebuild", "--yes")
        await check_all_can_change(cell)
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]
    assert all(epoch > epochs[p] for p, (_, epoch) in cell.leaders().items() if p in epochs)
    cells: list[dict[str, Any]] = json.loads(tool(cell, "cell", "list", "-o", "json"))
    assert cells[0]["weight"] == 2.0, "what only etcd had"


@pytest.mark.nightly
async def test_a_cluster_whose_etcd_is_gone_starts_and_serves(cell: Cluster, tmp_path: Path) -> None:
    """Nothing is written into the empty etcd but by who was told to."""
    async with cell.client() as client:
        await client.namespace("kept").put("k", b"v")
    cell.down()
    shutil.rmtree(cell.data / "etcd")
    told = cellctl("dev", "up", "--data", str(cell.data), "--detach")
    assert "control rebuild" in told.stdout + told.stderr
    cell.wait_until_led(8)
    await asyncio.to_thread(tool, cell, "control", "rebuild", "--yes")
    async with cell.client() as client:
        assert there(await client.namespace("kept").get("k")).value == b"v"
    await check_all_can_change(cell)
    cell.down()
    cell.up_again()
    cell.wait_until_led(9)
    assert not distrusting(cell)
