"""The operator's diagnosis, history, snapshots and last resort, on real clusters."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import yaml

from metastore import Put
from metastore.config import NodeConfig, load_config
from metastore.errors import ClientClosed, MetastoreError
from tests.integration.conftest import _cluster
from tests.integration.harness import STEADY, Cluster, Load, cellctl, keys_by_partition, until
from tests.integration.test_operator import tool
from tests.typed import there

QUICK_SPREAD = (*STEADY, "leader_spread_s=1")


@pytest.mark.nightly
async def test_leaders_come_back_and_leave(spreading_cell: Cluster) -> None:
    """After a failure leaders spread evenly by themselves; a drained node gives all it leads; no
    operation fails for it, and nothing of it happens while it is paused."""
    cell = spreading_cell

    def counts() -> Counter[str]:
        return Counter(name for name, _ in cell.leaders().values())

    async with cell.client() as client:
        load = Load(client, [k for ks in keys_by_partition(client, 2).values() for k in ks])
        running = asyncio.create_task(load.run())
        cell.verb("kill", "c1n1")
        await until("all are led again", lambda: sum(counts().values()) == 8)
        tool(cell, "pause")
        cell.verb("restart", "c1n1")
        await asyncio.sleep(4)
        assert counts()["c1n1"] == 0, "nothing changes by itself while it is paused"
        tool(cell, "resume")
        await until("leaders are even", lambda: sorted(counts().values()) == [2, 3, 3])
        epochs = cell.leaders()
        await asyncio.sleep(4)
        assert cell.leaders() == epochs, "it has come to rest"
        tool(cell, "node", "drain", "c1n2")
        await until("it leads nothing", lambda: counts()["c1n2"] == 0 and sum(counts().values()) == 8)
        load.stop = True
        await running
        await load.check_all()
        assert not load.failures(), load.failures()[:5]


async def test_history_tells_why(steady_cell: Cluster) -> None:
    cell = steady_cell
    leader, epoch = cell.leaders()[2]
    to = next(n for n in cell.names() if n != leader)
    tool(cell, "switchover", "2", "--to", to)
    cell.verb("kill", to)
    await until("another leads", lambda: cell.leaders().get(2, (to, 0))[0] != to)
    heir = cell.leaders()[2][0]
    await until("etcd has it", lambda: tool(cell, "history", "2", "-o", "json")[-1]["leader"] == heir)
    events = tool(cell, "history", "2", "-o", "json")
    assert [e["kind"] for e in events][:2] == ["election", "hand-over"]
    assert events[0]["leader"] == leader
    assert events[0]["cause"] == "first election"
    assert events[1]["cause"] == f"handed over by {leader}"
    assert events[-1]["kind"] == "election"
    assert [e["epoch"] for e in events] == sorted(e["epoch"] for e in events)
    assert events[0]["epoch"] == epoch
    assert yaml.safe_load(tool(cell, "history", "2", "-o", "yaml")) == events
    assert "no partition 99" in tool(cell, "history", "99", code=2)


async def test_the_doctor(steady_cell: Cluster) -> None:
    cell = steady_cell
    done = cellctl("doctor", "-o", "json", "--data", str(cell.data), check=False)
    # a machine that is busy with other things makes nodes stand still, which is a finding, and leaders uneven
    assert [
        f for f in json.loads(done.stdout) if "stood still" not in f["what"] and "uneven" not in f["what"]
    ] == []
    if json.loads(done.stdout) == []:
        assert "nothing is wrong" in tool(cell, "doctor")
    cell.verb("kill", "c1n3")
    cell.verb("kill", "router")
    tool(cell, "pause")
    await until("all are led again", lambda: len(cell.leaders()) == 8)
    found = tool(cell, "doctor", "-o", "json", code=2)
    assert {(f["level"], f["about"]) for f in found} >= {
        ("error", "router"),
        ("error", "node c1n3"),
        ("warning", "cluster"),
    }
    cell.verb("kill", "etcd")
    assert "it does not answer from here" in tool(cell, "doctor", "--timeout", "2", code=2)


async def test_a_partition_without_its_majority_goes_on_by_force(cell: Cluster) -> None:
    async with cell.client() as client:
        keys = keys_by_partition(client, 20, "kept")
        ns = client.namespace("kept")
        await ns.batch([Put(k, b"x") for ks in keys.values() for k in ks])
        for args, says in (
            (("failover", "3"), "has a leader that serves"),
            (("failover", "99"), "no partition 99"),
        ):
            assert says in await asyncio.to_thread(tool, cell, *args, code=2)
        cell.verb("kill", "c1n1", "c1n2")
        await until(
            "the last one serves nothing",
            lambda: all(p["health"] != "ok" for p in cell.status("c1n3")["partitions"]),
        )
        before = cell.leaders().get(3)  # it may be the last one, which does not serve
        said = await asyncio.to_thread(tool, cell, "failover", "3", code=2)
        assert "Acknowledged writes that only c1n1, c1n2 hold would be lost" in said
        assert "give --force" in said
        assert cell.leaders().get(3) in (None, before)
        done = await asyncio.to_thread(tool, cell, "failover", "--force", "3", "--yes", "-o", "json")
        assert (done["leader"], sorted(done["without"])) == ("c1n3", ["c1n1", "c1n2"])
        # everything was acknowledged by all three, so nothing is lost here
        for key in keys[3]:
            assert there(await ns.get(key)).value == b"x"
        await ns.put(keys[3][0], b"y")
        cell.verb("restart", "c1n1")
        cell.verb("restart", "c1n2")
        await until(
            "what they held of it is gone",
            lambda: all(3 not in {p["id"] for p in cell.status(n)["partitions"]} for n in ("c1n1", "c1n2")),
        )
        await asyncio.to_thread(tool, cell, "partition", "move", "3", "--to", "c1n1,c1n2,c1n3", "--yes")
        assert there(await ns.get(keys[3][0])).value == b"y"
        await until("all are led", lambda: len(cell.leaders()) == 8)
        assert "forced" in [e["kind"] for e in tool(cell, "history", "3", "-o", "json")]


@pytest.mark.nightly
async def test_a_snapshot_is_of_one_moment_and_goes_anywhere(cell: Cluster, tmp_path: Path) -> None:
    """Pairs that one transaction changes are never apart in it, what was answered before is in it, though
    its leaders are killed meanwhile; and a cluster of another shape takes it."""
    file = tmp_path / "all.snapshot"
    async with cell.client() as client:
        ns = client.namespace("pairs")
        await asyncio.to_thread(
            tool, cell, "namespace", "create", "whole", "--routing", "key", "--default-ttl", "1h"
        )
        await client.namespace("whole").put("a/b", b"v")
        await client.namespace("whole").add("n", 42)
        await ns.batch([Put(f"d{d}/{n}", b"0") for d in range(40) for n in range(200)])
        acked = dict.fromkeys(range(40), 0)
        stop = False

        async def change(worker: int) -> None:
            mine = random.Random(worker)
            while not stop:
                d = mine.randrange(worker, 40, 8)
                value = acked[d] + 1
                with_value = [Put(f"d{d}/{n}", b"%d" % value) for n in range(5)]
                try:
                    await ns.txn([], with_value)
                    acked[d] = value
                except ClientClosed:
                    return  # the test has failed
                except MetastoreError:
                    pass

        workers = [asyncio.create_task(change(w)) for w in range(8)]
        await asyncio.sleep(0.5)
        before = dict(acked)
        saving = asyncio.create_task(asyncio.to_thread(tool, cell, "snapshot", "save", str(file)))
        await asyncio.sleep(0.05)
        cell.verb("kill", "c1n2")
        await saving
        stop = True
        await asyncio.gather(*workers)
        at_most = {d: v + 8 for d, v in acked.items()}
    shown = json.loads(cellctl("snapshot", "show", str(file), "-o", "json").stdout)
    assert shown["namespaces"]["pairs"]["records"] == 8000
    damaged = tmp_path / "damaged.snapshot"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    (tmp_path / "short.snapshot").write_bytes(file.read_bytes()[:-20])
    for bad in ("damaged", "short"):
        said = tool(cell, "snapshot", "restore", "--merge", str(tmp_path / f"{bad}.snapshot"), code=2)
        assert "damaged or incomplete" in said
    assert "holds records here" in tool(cell, "snapshot", "restore", str(file), code=2)
    other = Cluster.up(tmp_path / "other", cells=1, nodes=1, partitions=2)
    try:
        await asyncio.to_thread(tool, other, "snapshot", "restore", "--merge", str(file))
        async with other.client() as client:
            ns = client.namespace("pairs")
            assert [k async for k, _ in ns.scan()].__len__() == 8000
            for d in range(40):
                values = {there(await ns.get(f"d{d}/{n}")).value for n in range(5)}
                assert len(values) == 1, f"d{d} is of two moments: {values}"
                assert before[d] <= int(values.pop()) <= at_most[d]
            whole = client.namespace("whole")
            assert there(await whole.get("a/b")).ttl_ms == 3_600_000
            assert there(await whole.get("n")).counter
        row = tool(other, "namespace", "show", "whole", "-o", "json")
        assert row["routing"] == "key"
        again = tool(other, "snapshot", "restore", str(file), "--only-absent", "-n", "whole")
        assert "2 were there already" in again
    finally:
        other.down()


def test_names_that_are_nearly_right(cell: Cluster, tmp_path: Path) -> None:
    for args, says in (
        (("cell", "show", "c11"), "there is no cell 'c11'; did you mean 'c1'; there are c1"),
        (("node", "drain", "c1m2"), "did you mean 'c1n2'"),
        (("partition", "locat", "k"), "Did you mean"),
        (("histroy",), "Did you mean 'history'"),
        (("cell", "add", "c1"), "is there already"),
        (("cell", "add", "9/"), "use 1 to 63"),
    ):
        assert says in tool(cell, *args, code=2)
    tool(cell, "cell", "add", "c7", "--weight", "0")
    assert tool(cell, "cell", "show", "c7", "-o", "json")["weight"] == 0
    new = cellctl(
        "node", "add", "c1n4", "--cell", "c1", "--rpc", "127.0.0.1:1", "--http", "127.0.0.1:2",
        "--data-dir", "/d", "--data", str(cell.data),
    )  # fmt: skip
    (tmp_path / "c1n4.toml").write_text(new.stdout)
    config = load_config(NodeConfig, ["--config", str(tmp_path / "c1n4.toml")], "METASTORE_NODE", "node")
    assert (config.node, config.cell, config.cluster) == ("c1n4", "c1", "dev")
    assert config.heartbeat_ms == cell.status("c1n1")["settings"]["heartbeat_ms"]
    assert "is there already" in tool(
        cell, "node", "add", "c1n1", "--cell", "c1", "--rpc", "127.0.0.1:1", "--http", "127.0.0.1:2",
        "--data-dir", "/d", code=2,
    )  # fmt: skip
    for shell in ("bash", "zsh", "fish"):
        assert "_CELLCTL_COMPLETE" in cellctl("completion", shell).stdout
    advice = tool(cell, "advise", "--rto", "3s", "--pause", "2s", "--measure", "-o", "json")
    assert advice["measured"]
    assert advice["costs"]["handover_ms"] > 0
    assert tool(cell, "advise", "--rto", "1s", "--pause", "2s", code=1)


def test_the_completion_completes() -> None:
    env = os.environ | {"_CELLCTL_COMPLETE": "bash_complete", "COMP_WORDS": "cellctl sw", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cellctl.main"], env=env, capture_output=True, text=True, check=False
    )
    assert "switchover" in done.stdout


@pytest.fixture
def spreading_cell(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """One cell whose leaders spread quickly."""
    yield from _cluster(request, tmp_path, cells=1, nodes=3, partitions=8, settings=QUICK_SPREAD)


async def test_what_a_node_heard_is_played_again(steady_cell: Cluster) -> None:
    """deploy/README.md, "When a node has stopped": by a signal into the folder, and by HTTP; the build that wrote it comes to
    the same."""
    cell = steady_cell
    async with cell.client() as client:
        ns = client.namespace("n")
        for n in range(200):
            await ns.put(f"d{n % 9}/k{n}", bytes(100))
    node = cell.node("c1n1")
    os.kill(node["pid"], signal.SIGUSR1)
    folder = cell.data / "nodes" / "c1n1" / "recordings"
    await until("the file is there", lambda: list(folder.glob("*.msrec")))
    asked = folder / "asked.msrec"
    with urllib.request.urlopen(node["http"] + "/v1/recording", timeout=60) as answer:
        asked.write_bytes(answer.read())
    for file in folder.glob("*.msrec"):
        done = subprocess.run(
            [sys.executable, "-m", "metastore.replay", str(file), "--last", "20"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "events: the same came of them as the node recorded" in done.stdout
