"""``cellctl dev`` and the CLI on a real cluster: cluster.json is true, data comes back, messages are clear."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cellctl.dev_files import process_start
from tests.integration.harness import Cluster, cellctl, until
from tests.processes import PATIENCE_S


def alive(pid: int | None) -> bool:
    return pid is not None and process_start(pid) is not None


async def test_cluster_json_is_always_true(cell: Cluster) -> None:
    data = str(cell.data)
    before = cell.json()
    assert before["cluster"] == "dev"
    assert [n["name"] for n in before["nodes"]] == ["c1n1", "c1n2", "c1n3"]
    assert set(before["nodes"][0]) == {"name", "cell", "pid", "rpc", "http"}
    assert set(before["etcd"][0]) == {"name", "url", "pid"}
    pids = [before["router"]["pid"], before["etcd"][0]["pid"], *(n["pid"] for n in before["nodes"])]
    assert all(alive(p) for p in pids)
    cell.verb("kill", "c1n2", "router")
    assert cell.node("c1n2")["pid"] is None
    assert cell.json()["router"]["pid"] is None
    assert not alive(before["nodes"][1]["pid"])
    rows = json.loads(cellctl("dev", "status", "--data", data, "-o", "json", check=False).stdout)
    assert {r["name"]: r["state"] for r in rows}["c1n2"] == "stopped"
    cell.verb("restart", "c1n2", "router")
    assert alive(cell.node("c1n2")["pid"])
    assert cell.node("c1n2")["rpc"] == before["nodes"][1]["rpc"]
    # one that dies by itself is told too
    os.kill(cell.node("c1n3")["pid"], signal.SIGKILL)
    await until("its death is noticed", lambda: cell.node("c1n3")["pid"] is None)
    rows = json.loads(cellctl("dev", "status", "--data", data, "-o", "json", check=False).stdout)
    assert {r["name"]: r["state"] for r in rows}["c1n3"] == "dead"
    cell.verb("restart", "c1n3")
    cell.verb("pause", "c1n1")
    rows = json.loads(cellctl("dev", "status", "--data", data, "-o", "json", check=False).stdout)
    assert {r["name"]: r["state"] for r in rows}["c1n1"] == "paused"
    cell.verb("resume", "c1n1")


async def test_messages_and_second_up(cell: Cluster, tmp_path: Path) -> None:
    data = str(cell.data)
    wrong = cellctl("dev", "kill", "--data", data, "c1n9", check=False)
    assert wrong.returncode == 2
    assert "did you mean c1n" in wrong.stderr
    again = cellctl("dev", "up", "--data", data, "--detach", check=False)
    assert again.returncode == 2
    assert "already up" in again.stderr
    nobody = cellctl("dev", "kill", "--data", str(tmp_path / "none"), "c1n1", check=False)
    assert nobody.returncode == 2
    assert "no cluster is up" in nobody.stderr
    mistyped = cellctl("partitoin", check=False)
    assert mistyped.returncode == 2
    assert "partition" in mistyped.stderr

    cellctl("kv", "put", "--data", data, "-n", "notes", "today", "remember")
    pids = [n["pid"] for n in cell.json()["nodes"]]
    cell.down()
    assert not any(alive(p) for p in pids)
    assert cell.json()["nodes"][0]["pid"] is None
    other = cellctl("dev", "up", "--data", data, "--cells", "2", "--detach", check=False)
    assert other.returncode == 2
    assert "made with --cells 1" in other.stderr
    port = int(cell.router.rpartition(":")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        busy = cellctl("dev", "up", "--data", data, "--detach", check=False)
        assert busy.returncode == 2
        assert f"port {port} (for router) is in use" in busy.stderr
    shape = cell.data / "dev.json"
    good = shape.read_text()
    shape.write_text(good.replace('"format": 1', '"format": 0'))
    old = cellctl("dev", "up", "--data", data, "--detach", check=False)
    assert old.returncode == 2
    assert "data format 0" in old.stderr
    shape.write_text(good)
    cell.up_again()
    assert cellctl("kv", "get", "--data", data, "-n", "notes", "today").stdout == "remember"


@pytest.mark.nightly
async def test_left_over_processes_are_told(tmp_path: Path) -> None:
    """A supervisor killed with SIGKILL takes its children along; a stranger's process is not ours."""
    cluster = Cluster.up(tmp_path / "data", partitions=4)
    pids = [n["pid"] for n in cluster.json()["nodes"]]
    supervisor = int((cluster.data / "ready").read_text())
    os.kill(supervisor, signal.SIGKILL)
    await until("nothing is left over", lambda: not any(alive(p) for p in pids))
    found = cluster.json()
    # a process that names the folder stands in for one that could not be ended
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(cluster.data)])
    try:
        found["nodes"][0]["pid"] = sleeper.pid
        (cluster.data / "cluster.json").write_text(json.dumps(found))
        refused = cellctl("dev", "up", "--data", str(cluster.data), "--detach", check=False)
        assert refused.returncode == 2
        assert f"c1n1 (pid {sleeper.pid})" in refused.stderr
    finally:
        sleeper.kill()
        sleeper.wait()
    cluster.up_again()
    cluster.down()


@pytest.mark.nightly
async def test_a_real_tree_goes_in_and_survives_everybody(two_cells: Cluster, tmp_path: Path) -> None:
    """The main job: import, list like ls, kill every node, restart, and it is all there."""
    tree = tmp_path / "tree"
    names = ["b", "a", "A", "ä", ".hidden", "z z", "per%cent", "{tag", "longer" * 40]
    for number, name in enumerate(names):
        folder = tree / "doc" / name
        folder.mkdir(parents=True)
        (folder / "file").write_text("x" * number)
        (folder / "link").symlink_to("file")
    for i in range(3000):
        (tree / "doc" / f"f{i}").touch()
    data = str(two_cells.data)
    done = cellctl("import", "tree", str(tree), "--data", data)
    assert "records in" in done.stderr
    prefix = str(tree / "doc").lstrip("/") + "/"

    def listing(folder: str) -> list[str]:
        return cellctl("kv", "list", "--data", data, "-n", "files", folder).stdout.splitlines()

    expect = sorted((prefix + n for n in os.listdir(tree / "doc")), key=os.fsencode)
    assert listing(prefix) == expect
    inner = json.loads(cellctl("kv", "get", "--data", data, "-n", "files", f"{prefix}b/link").stdout)
    assert inner["type"] == "link"
    assert inner["target"] == "file"
    kind = json.loads(cellctl("kv", "get", "--data", data, "-n", "files", f"{prefix}a").stdout)["type"]
    assert kind == "dir"
    two_cells.verb("kill", *two_cells.names())
    two_cells.verb("restart", *two_cells.names())
    await until("all partitions are led", lambda: len(two_cells.leaders()) == 8)
    assert listing(prefix) == expect
    located = json.loads(
        cellctl("partition", "locate", "--data", data, "-n", "files", f"{prefix}a", "-o", "json").stdout
    )
    assert located["leader"] in located["replicas"]
    assert located["health"] == "ok"
    status = cellctl("status", "--data", data, "-o", "json")
    assert len(json.loads(status.stdout)["partitions"]) == 8
    two_cells.verb("kill", "c1n1")
    await until("others lead", lambda: len(two_cells.leaders()) == 8)
    worse = cellctl("status", "--data", data, check=False)
    assert worse.returncode == 1
    assert "down" in worse.stdout
    table = cellctl("partition", "list", "--data", data).stdout
    assert "c1n1(down)" in table
    assert "degraded" in table


def test_the_node_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    def node(*flags: str) -> str:
        base = [
            "--cell",
            "c",
            "--node",
            "n",
            "--data-dir",
            str(tmp_path),
            "--rpc",
            "127.0.0.1:1",
            "--http",
            "127.0.0.1:2",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "metastore.node.main", *base, *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        return done.stderr

    assert "raise grant_ms to" in node("--grant-ms", "200")
    assert "did you mean heartbeat_ms" in node("--heart-beat-ms", "200")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/v1/topology"])
async def test_health_and_topology(cell: Cluster, path: str) -> None:
    with urllib.request.urlopen(cell.router + path, timeout=PATIENCE_S) as response:
        assert response.status == 200
        assert response.read()
