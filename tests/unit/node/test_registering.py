"""R13: a process asks etcd whether its store is the one that it says, before it says anything else."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from metastore.config import NodeConfig
from metastore.coordination.interface import Put, Session
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.layout import Layout, NodeRecord, node_record_from_json, to_json
from metastore.node.clients import ClientConnection
from metastore.node.identity import State
from metastore.node.node import Node
from metastore.node.registering import Outcome
from metastore.node.startup import take_part
from metastore.storage.store import Store

LAYOUT = Layout("metastore")
Start = Callable[..., Awaitable[Node]]
SERVERS: dict[Node, asyncio.Server] = {}


@pytest.fixture
def etcd() -> MemoryEtcd:
    return MemoryEtcd()


@pytest.fixture
async def start(etcd: MemoryEtcd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts a process on a folder, which may take part or not."""
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 20.0)
    monkeypatch.setattr("metastore.node.registering.PROBE_S", 20.0)
    nodes: list[Node] = []
    loop = asyncio.get_running_loop()

    async def begin(folder: Path, run: str, rpc: str = "127.0.0.1:0", name: str = "n") -> Node:
        store = Store.open(folder, cluster="metastore", node=name)
        store.raise_generation(run)
        host, _, port = rpc.rpartition(":")
        server = await loop.create_server(
            lambda: ClientConnection(node), host, int(port), start_serving=False
        )
        rpc = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = NodeConfig(cell="c", node=name, data_dir=str(folder), rpc=rpc, http="127.0.0.1:1")
        node = Node(config, store, run)
        nodes.append(node)
        SERVERS[node] = server
        await take_part(node, MemoryCoordinator(etcd, loop.time), server.start_serving)
        return node

    yield begin
    for node in nodes:
        if not node.stopping:
            await end(node, etcd)


async def end(node: Node, etcd: MemoryEtcd, *, presence_stays: bool = False) -> None:
    """As ``kill -9``, with ``presence_stays``: its lease goes later."""
    SERVERS.pop(node).close()
    kept = etcd.kvs.get(LAYOUT.presence("n"))
    await node.stop(hand_over=False)
    if presence_stays and kept is not None:
        etcd.kvs[LAYOUT.presence("n")] = kept


def record(etcd: MemoryEtcd) -> NodeRecord:
    return node_record_from_json(etcd.kvs[LAYOUT.node("n")].value)


def states(*nodes: Node) -> list[State]:
    return [node.identity.state for node in nodes]


async def test_each_start_raises_the_generation(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        node = await start(tmp_path, f"run{number}")
        assert states(node) == ["confirmed"]
        assert (record(etcd).generation, record(etcd).incarnation) == (number, f"run{number}")
        await end(node, etcd)


async def test_an_old_copy_is_refused_and_knows_it_for_good(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    await end(await start(live, "run1"), etcd)
    shutil.copytree(live, copy)
    await end(await start(live, "run2"), etcd, presence_stays=True)
    before = dict(etcd.kvs)
    old = await start(copy, "run3")
    assert states(old) == ["refused"]
    assert "old copy" in old.identity.why
    assert not old.core_started
    assert {k: v for k, v in etcd.kvs.items() if "/nodes/" in k} == {
        k: v for k, v in before.items() if "/nodes/" in k
    }
    await end(old, etcd)
    etcd.up = False  # it need not ask again
    again = await start(copy, "run4")
    assert states(again) == ["refused"]


async def test_starting_an_old_copy_often_does_not_make_it_newer(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    """It dies each time before it has heard of etcd."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    await end(await start(live, "run1"), etcd)
    shutil.copytree(live, copy)
    await end(await start(live, "run2"), etcd)
    for number in range(5):
        store = Store.open(copy, cluster="metastore", node="n")
        store.raise_generation(f"dies{number}")
        store.abandon()
    old = await start(copy, "run3")
    assert old.identity.lineage.generation > record(etcd).generation
    assert states(old) == ["refused"]


async def test_a_crash_before_it_is_registered(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    await end(await start(tmp_path, "run1"), etcd)
    for number in range(3):
        store = Store.open(tmp_path, cluster="metastore", node="n")
        store.raise_generation(f"dies{number}")
        store.abandon()
    node = await start(tmp_path, "run2")
    assert states(node) == ["confirmed"]
    assert record(etcd).generation == 5


async def test_a_lost_answer_of_the_swap(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    txn = etcd.txn

    def lose_the_second(*args: object) -> object:
        """The first asks, the second swaps."""
        nonlocal calls
        calls += 1
        etcd.lose_next_answer = calls == 2
        return txn(*args)  # type: ignore[arg-type]

    calls = 0
    etcd.txn = lose_the_second  # type: ignore[method-assign, assignment]
    node = await start(tmp_path, "run1")
    assert states(node) == ["confirmed"]
    assert record(etcd).incarnation == "run1"


async def test_without_etcd_it_goes_on_and_etcds_word_counts_when_it_is_back(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12; and nothing is changed in etcd before."""
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 0.3)
    live, copy = tmp_path / "live", tmp_path / "copy"
    await end(await start(live, "run1"), etcd)
    shutil.copytree(live, copy)
    await end(await start(live, "run2"), etcd)
    etcd.up = False
    true = await start(live, "run3")
    old = await start(copy, "run4")
    assert states(true, old) == ["provisional", "provisional"]
    register, could = true.control.registration.register, []

    async def registers(session: Session) -> Outcome:
        could.append(true.control.can_elect())
        return await register(session)

    true.control.registration.register = registers  # type: ignore[method-assign]
    etcd.up = True
    while "provisional" in states(true, old):
        await asyncio.sleep(0.01)
    assert states(old) == ["refused"]
    assert old.hosts == {}
    assert states(true) == ["confirmed"]
    assert record(etcd).incarnation == "run3"
    assert could
    assert not any(could), "it might have been elected before etcd knew it"


async def test_two_processes_of_one_store(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    """The clone is refused whatever the lease of the living one says."""
    live = tmp_path / "live"
    first = await start(live, "run1")
    for number, forget in enumerate((False, True)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(live, copy, ignore=shutil.ignore_patterns("LOCK", "*.new"))
        if forget:
            del etcd.kvs[LAYOUT.presence("n")]
        clone = await start(copy, f"clone{number}")
        assert states(first, clone) == ["confirmed", "refused"]
        assert f"process run1 at {first.config.rpc}" in clone.identity.why
        assert record(etcd).incarnation == "run1"


async def test_an_empty_folder_under_a_dead_nodes_name(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    old = await start(tmp_path / "old", "run1")
    await end(old, etcd, presence_stays=True)
    new = await start(tmp_path / "new", "run2", old.config.rpc)  # its address: nobody else is there
    assert states(new) == ["confirmed"]
    assert record(etcd).store_id == new.me.store
    await end(new, etcd)
    back = await start(tmp_path / "old", "run3")
    assert states(back) == ["refused"]
    assert "was replaced by it" in back.identity.why


async def test_an_empty_folder_under_a_living_nodes_name(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    living = await start(tmp_path / "old", "run1")
    wrong = await start(tmp_path / "new", "run2")
    assert states(living, wrong) == ["confirmed", "refused"]
    assert "runs as node n already" in wrong.identity.why
    await end(wrong, etcd)
    await end(living, etcd)
    later = await start(tmp_path / "new", "run3")
    assert states(later) == ["confirmed"], "that was said of the moment, not of the folder"


async def test_a_lease_elsewhere_is_waited_for(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process does not answer, and may be about to."""
    old = await start(tmp_path / "old", "run1")
    await end(old, etcd, presence_stays=True)
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 0.3)
    starting = asyncio.create_task(start(tmp_path / "old", "run2"))
    while etcd.kvs[LAYOUT.node("n")].mod_revision == 0 or len(etcd.leases) < 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # longer than its patience with an etcd that is silent
    assert not starting.done()
    assert record(etcd).incarnation == "run1"
    del etcd.kvs[LAYOUT.presence("n")]
    node = await starting
    assert states(node) == ["confirmed"]


async def test_a_replaced_process_that_lives_stops(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    """Another process was registered on a copy of its store while it had no lease."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    first = await start(live, "run1")
    shutil.copytree(live, copy, ignore=shutil.ignore_patterns("LOCK", "*.new"))
    mine = record(etcd)
    other = NodeRecord(mine.node, mine.cell, mine.store_id, "127.0.0.1:9", mine.http, "", 2, "run2")
    etcd.txn([], [Put(LAYOUT.node("n"), to_json(other))], [])
    first.control._lease_changed()
    while first.identity.state != "refused":
        await asyncio.sleep(0.01)
    assert "process run2 at 127.0.0.1:9" in first.identity.why
