"""A node that returns with an old copy of its folder, with nothing, or twice (R13); the steps of deploy/README.md."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellctl.dev_files import pick_ports
from metastore import Put
from tests.integration.conftest import _cluster
from tests.integration.harness import Cluster, cellctl, until
from tests.processes import PATIENCE_S, copy_of_running
from tests.typed import there

NODE = "c1n2"
DEPLOY = Path(__file__).parents[2] / "deploy" / "README.md"


@pytest.fixture
def cell(request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """One cell of three nodes, 2 partitions."""
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=2)


def tool(cluster: Cluster, *args: str, check: bool = True) -> Any:
    done = cellctl(*args, "--data", str(cluster.data), check=check)
    return json.loads(done.stdout) if "json" in args else done


def folder(cluster: Cluster, node: str = NODE) -> Path:
    return cluster.data / "nodes" / node


def stop(cluster: Cluster, *names: str) -> None:
    cluster.verb("kill", *names)


def ready(cluster: Cluster, node: str = NODE) -> tuple[int, dict[str, Any]]:
    """What /readyz of a node says."""
    try:
        with urllib.request.urlopen(cluster.node(node)["http"] + "/readyz", timeout=PATIENCE_S) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def health(cluster: Cluster) -> list[str]:
    return [row["health"] for row in tool(cluster, "partition", "list", "-o", "json", check=False)]


async def digests_agree(cluster: Cluster) -> None:
    def agree() -> bool:
        for p in range(2):
            found = []
            for name in cluster.names():
                url = f"{cluster.node(name)['http']}/v1/partitions/{p}/digest"
                with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                    answer = json.loads(response.read())
                    found.append((answer["applied"], answer["digest"]))
            if len(set(found)) != 1:
                return False
        return True

    await until("all replicas hold the same", agree)


async def put_back_an_old_copy(cell: Cluster, tmp_path: Path, *, etcd: bool) -> None:
    """Two replicas acknowledge what the third misses; of those one comes back with an old copy of its folder."""
    async with cell.client() as client:
        ns = client.namespace("kept")
        await ns.batch([Put(f"old{i}/x", b"0") for i in range(50)])
        stop(cell, NODE)
        copy = tmp_path / "copy"
        shutil.copytree(folder(cell), copy)
        cell.verb("restart", NODE)
        await until("it is back", lambda: sorted(cell.status(NODE)["peers"]) == ["c1n1", "c1n3"])
        await until("all is led", lambda: len(cell.leaders()) == 2)
        stop(cell, "c1n3")
        await until("all is led", lambda: len(cell.leaders()) == 2)
        for at in range(0, 1000, 100):
            await ns.batch([Put(f"new{i}/x", b"1") for i in range(at, at + 100)])
        stop(cell, NODE, "c1n1")
        if not etcd:
            stop(cell, "etcd")
        shutil.rmtree(folder(cell))
        shutil.copytree(copy, folder(cell))
        cell.verb("restart", NODE, "c1n3")
        await until("it says what it is", lambda: cell.status(NODE)["identity"]["state"] == "refused")
        said = cell.status(NODE)["identity"]
        assert "old copy" in said["why"]
        assert "discard-store" in said["do"]
        code, answer = ready(cell)
        assert (code, answer["ready"]) == (503, False)
        assert "old copy" in answer["why"]
        assert "old copy" in (cell.data / "logs" / f"{NODE}.log").read_text()
        await asyncio.sleep(4)
        assert cell.leaders() == {}, "an old copy makes no quorum"
        cell.verb("restart", "c1n1")
        await until("all is led", lambda: len(cell.leaders()) == 2)
    async with cell.client() as client:
        ns = client.namespace("kept")
        found = [await ns.get(f"new{i}/x") for i in range(1000)]
        assert sum(record is None for record in found) == 0, "acknowledged writes are gone"
    assert all(p["id"] not in (0, 1) or False for p in cell.status(NODE)["partitions"]), (
        "it takes part in nothing"
    )
    if etcd:
        found = tool(cell, "doctor", "-o", "json", check=False)
        assert any(f["about"] == f"node {NODE}" and "old copy" in f["what"] for f in found), found
        cell.verb("restart", NODE)
        await until("it knows it still", lambda: cell.status(NODE)["identity"]["state"] == "refused")
        stop(cell, NODE)
        discard(cell)
        cell.verb("restart", NODE)
        await filled(cell)
        assert list(folder(cell).glob("discarded/*/store.json")), "nothing was deleted"


def discard(cell: Cluster) -> None:
    """The way out, as it is told."""
    done = subprocess.run(
        [sys.executable, "-m", "metastore.node.main", *settings(cell), "--discard-store"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "discarded" in done.stderr


def settings(cell: Cluster, **changes: str) -> list[str]:
    node = cell.node(NODE)
    values = {
        "cluster": "dev",
        "cell": "c1",
        "node": NODE,
        "data-dir": str(folder(cell)),
        "rpc": node["rpc"],
        "http": node["http"].removeprefix("http://"),
        "etcd": cell.json()["etcd"][0]["url"].removeprefix("http://"),
    } | {k.replace("_", "-"): v for k, v in changes.items()}
    return [part for name, value in values.items() for part in (f"--{name}", value)]


async def filled(cell: Cluster) -> None:
    """The node has a new store, and all replicas are in the stores that their nodes have."""
    await until("all is well", lambda: health(cell) == ["ok", "ok"])
    await digests_agree(cell)
    assert cell.status(NODE)["identity"]["state"] == "confirmed"
    await until("tools say so", lambda: tool(cell, "status", check=False).returncode == 0)


@pytest.mark.nightly
async def test_an_old_copy_put_back_takes_part_in_nothing(cell: Cluster, tmp_path: Path) -> None:
    await put_back_an_old_copy(cell, tmp_path, etcd=True)


@pytest.mark.nightly
async def test_an_old_copy_put_back_while_etcd_is_away(cell: Cluster, tmp_path: Path) -> None:
    await put_back_an_old_copy(cell, tmp_path, etcd=False)


async def test_a_copy_of_the_running_node_is_found(cell: Cluster, tmp_path: Path) -> None:
    """No process ran between the copy and its return, so its runs are as they should be; but etcd and the peers
    know how far its log was durable, and its leader what was acknowledged to it, whichever is the first to say so."""
    async with cell.client() as client:
        ns = client.namespace("kept")
        await ns.batch([Put(f"old{i}/x", b"0") for i in range(50)])
        cell.verb("pause", NODE)
        shutil.copytree(folder(cell), tmp_path / "copy")
        cell.verb("resume", NODE)
        await until("all is led by the others", lambda: leads_nothing(cell, NODE))
        for at in range(0, 300, 100):
            await ns.batch([Put(f"new{i}/x", b"1") for i in range(at, at + 100)])
        await until("it has all of it", lambda: lag(cell) == 0)
        stop(cell, NODE)
        shutil.rmtree(folder(cell))
        shutil.copytree(tmp_path / "copy", folder(cell))
        cell.verb("restart", NODE)
        await until("it says what it is", lambda: cell.status(NODE)["identity"]["state"] == "refused")
        why = cell.status(NODE)["identity"]["why"]
        assert "made while that ran" in why or "which it had" in why, why
        assert all(leader != NODE for leader, _ in cell.leaders().values())
        stop(cell, NODE)
        discard(cell)
        cell.verb("restart", NODE)
        await filled(cell)
        assert all([there(await ns.get(f"new{i}/x")).value == b"1" for i in range(300)])


def leads_nothing(cluster: Cluster, node: str) -> bool:
    for p, (leader, _) in cluster.leaders().items():
        if leader == node:
            tool(cluster, "switchover", str(p), check=False)
    found = cluster.leaders()
    return len(found) == 2 and all(leader != node for leader, _ in found.values())


def lag(cluster: Cluster) -> int:
    """Of the node behind its leaders, in entries."""
    found: list[int] = [
        p["lag"].get(NODE, 0) for n in ("c1n1", "c1n3") for p in cluster.status(n)["partitions"]
    ]
    return max(found)


@pytest.mark.nightly
async def test_a_clone_beside_the_living_node_is_refused(cell: Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_of_running(folder(cell), copy)
    ports = pick_ports("127.0.0.1", ["rpc", "http"], set())
    changes = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    before = cell.status(NODE)
    with (tmp_path / "clone.log").open("wb") as log:
        clone = subprocess.Popen(
            [sys.executable, "-m", "metastore.node.main", *settings(cell, data_dir=str(copy), **changes)],
            stdout=log,
            stderr=log,
        )
        try:

            def identity() -> dict[str, Any]:
                with urllib.request.urlopen(
                    f"http://{changes['http']}/v1/status", timeout=PATIENCE_S
                ) as response:
                    found: dict[str, Any] = json.loads(response.read())["identity"]
                    return found

            await until("it is refused", lambda: identity()["state"] == "refused")
            why = identity()["why"]
            assert before["incarnation"] in why
            assert cell.node(NODE)["rpc"] in why
        finally:
            clone.kill()
            clone.wait()
    after = cell.status(NODE)
    assert after["identity"]["state"] == "confirmed"
    assert sorted(after["peers"]) == ["c1n1", "c1n3"]
    assert tool(cell, "status", check=False).returncode == 0


async def test_a_node_that_returns_empty_is_filled_by_itself(cell: Cluster) -> None:
    async with cell.client() as client:
        ns = client.namespace("kept")
        await ns.batch([Put(f"k{i}/x", b"0") for i in range(200)])
        stop(cell, NODE)
        tool(cell, "pause")
        shutil.rmtree(folder(cell))
        cell.verb("restart", NODE)

        def missing() -> list[list[str]]:
            return [row["missing"] for row in tool(cell, "partition", "list", "-o", "json")]

        def told() -> bool:
            found = tool(cell, "doctor", "-o", "json", check=False)
            return any(f["about"] == f"node {NODE}" and "another store" in f["what"] for f in found)

        # degraded they are as soon as it is away
        await until("it is seen to lack", lambda: missing() == [[NODE], [NODE]])
        await until("both are degraded", lambda: health(cell) == ["degraded", "degraded"])
        assert tool(cell, "status", check=False).returncode == 1
        await until("it is told why", told)
        await asyncio.sleep(2)
        assert health(cell) == ["degraded", "degraded"], "nothing changes by itself while it is paused"
        tool(cell, "resume")
        await filled(cell)
        for i in range(200):
            assert there(await ns.get(f"k{i}/x")).value == b"0"
        events = tool(cell, "history", "0", "-o", "json")
        assert any(NODE in e["cause"] and "another store" in e["cause"] for e in events), events


async def test_orders_that_cannot_be_carried_out_are_refused(cell: Cluster) -> None:
    stop(cell, NODE)

    def says(text: str, *args: str) -> None:
        done = tool(cell, *args, check=False)
        assert done.returncode == 2, done
        assert text in done.stderr, done.stderr

    cellctl("dev", "add-node", "--data", str(cell.data), "c1")
    await until("it has registered", lambda: len(tool(cell, "node", "list", "-o", "json")) == 4)
    stop(cell, "c1n4")
    await until(
        "etcd has noticed",
        lambda: (
            {n["node"] for n in tool(cell, "node", "list", "-o", "json") if n["state"] == "away"}
            == {NODE, "c1n4"}
        ),
    )
    says("c1n4 is not running", "partition", "move", "0", "--to", "c1n1,c1n3,c1n4", "--yes", "--no-wait")
    says("c1n4 is not running", "node", "replace", NODE, "c1n4", "--yes", "--no-wait")
    stop(cell, "c1n3")
    await until(
        "etcd has noticed",
        lambda: sum(n["state"] == "away" for n in tool(cell, "node", "list", "-o", "json")) == 3,
    )
    says("no majority", "partition", "split", "0", "--yes", "--no-wait")
    says("no majority", "partition", "move", "0", "--to", "c1n1", "--yes", "--no-wait")


async def test_the_steps_of_the_deploy_guide(cell: Cluster) -> None:
    """Each numbered step of "A node whose disk is lost" and of "An old copy" is what is done here."""
    text = DEPLOY.read_text()
    commands = re.findall(r"^\d+\. .*?`([^`]+)`", text, re.MULTILINE)
    assert "metastore-node --config node.toml --discard-store" in commands
    stop(cell, NODE)
    discard(cell)
    assert not (folder(cell) / "store.json").exists()
    cell.verb("restart", NODE)
    await filled(cell)
