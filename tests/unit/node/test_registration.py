"""R13: a process asks etcd whether its store is the one that it says, before it says anything else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellctl.dev_files import pick_ports
from metastore.config import NodeConfig
from metastore.coordination.interface import Put, Session, TxnResult
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.core.messages import MAX_RUNS, Lineage, Process, Run, Seen
from metastore.fields import BadRecord
from metastore.layout import Layout, MarkRecord, NodeRecord, node_record_from_json, to_json
from metastore.node.clients import ClientConnection
from metastore.node.control.registration import Outcome
from metastore.node.identity import State, judge
from metastore.node.main import serve
from metastore.node.node import Node
from metastore.node.startup import take_part
from metastore.storage.records import SealEntry
from metastore.storage.store import Store
from metastore.wire import frames
from metastore.wire.peer_messages import Hello, hello
from metastore.wire.versions import peer_versions
from tests.processes import copy_of_running

LAYOUT = Layout("metastore")
Start = Callable[..., Coroutine[Any, Any, Node]]
SERVERS: dict[Node, asyncio.Server] = {}
NODES: list[Node] = []


@pytest.fixture
def etcd() -> MemoryEtcd:
    return MemoryEtcd()


@pytest.fixture
async def start(etcd: MemoryEtcd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts a process on a folder, which may take part or not."""
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 20.0)
    monkeypatch.setattr("metastore.node.control.registration.PROBE_S", 20.0)
    NODES.clear()
    loop = asyncio.get_running_loop()

    async def begin(folder: Path, run: str, rpc: str = "127.0.0.1:0", name: str = "n") -> Node:
        store = Store.open(folder, cluster="metastore", node=name)
        host, _, port = rpc.rpartition(":")
        node: Node
        server = await loop.create_server(lambda: ClientConnection(node), host, int(port))
        rpc = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = NodeConfig(
            cell="c", node=name, data_dir=str(folder), rpc=rpc, http="127.0.0.1:1", lease_ttl_s=600
        )
        node = Node(config, store, run)
        NODES.append(node)
        SERVERS[node] = server
        await take_part(node, MemoryCoordinator(etcd, loop.time))
        return node

    yield begin
    for node in NODES:
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
    copy_of_running(live, copy)
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
    copy_of_running(live, copy)
    await end(await start(live, "run2"), etcd)
    for number in range(5):
        store = Store.open(copy, cluster="metastore", node="n")
        store.raise_generation(f"dies{number}")
        store.abandon()
    old = await start(copy, "run3")
    assert old.identity.lineage.generation > record(etcd).generation
    assert states(old) == ["refused"]


@pytest.mark.parametrize("starts", [1, MAX_RUNS + 3])
async def test_however_often_an_old_copy_was_started(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, starts: int
) -> None:
    """What it does not remember it never had, for all that anybody can know."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    await end(await start(live, "run1"), etcd)
    copy_of_running(live, copy)
    await end(await start(live, "run2"), etcd)
    crash_at_start(copy, starts)
    assert states(await start(copy, "run3")) == ["refused"]


@pytest.mark.parametrize("lost", [False, True])
async def test_however_often_a_store_was_started_without_etcd(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, lost: bool
) -> None:
    """What etcd may have is never forgotten; also where its answer to the swap was ``lost``."""
    await end(await start(tmp_path, "run1"), etcd)
    if lost:
        txn = etcd.txn

        def lose_the_swap(compares: Any, then: Any, otherwise: Any) -> TxnResult:
            etcd.lose_next_answer = any(isinstance(op, Put) for op in then)
            return txn(compares, then, otherwise)

        etcd.txn = lose_the_swap  # type: ignore[method-assign]
        starting = asyncio.create_task(start(tmp_path, "run2"))
        while record(etcd).incarnation != "run2":
            await asyncio.sleep(0)
        etcd.up = False  # what became of the swap it never learns
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await end(NODES[-1], etcd)
        etcd.txn, etcd.up = txn, True  # type: ignore[method-assign]
        for lease in list(etcd.leases):  # of those who are dead
            etcd.revoke(lease)
    crash_at_start(tmp_path, MAX_RUNS + 3)
    node = await start(tmp_path, "run3")
    assert states(node) == ["confirmed"]
    assert len(node.identity.lineage.runs) == MAX_RUNS


def crash_at_start(folder: Path, times: int) -> None:
    """Processes that say nothing. (The folder is opened once for all of them: that is what takes its time.)"""
    store = Store.open(folder, cluster="metastore", node="n")
    for number in range(times):
        store.raise_generation(f"dies{number}")
    store.abandon()


async def test_a_copy_of_the_running_folder_put_back_before_any_other_start(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd was told how far the store was durable."""
    monkeypatch.setattr("metastore.node.control.registration.MARK_NS", 0)
    live, copy, later = tmp_path / "live", tmp_path / "copy", tmp_path / "later"
    first = await start(live, "run1")
    await write(first, 1)
    copy_of_running(live, copy)
    await write(first, 2)
    copy_of_running(live, later)
    while LAYOUT.mark("n") not in etcd.kvs or mark(etcd).mark < first.store.mark:
        first.control.wake()
        await asyncio.sleep(0.01)
    told = mark(etcd)
    assert told == MarkRecord(first.me.store, 1, "run1", first.store.mark)
    await end(first, etcd)
    old = await start(copy, "run2")
    assert states(old) == ["refused"]
    assert f"up to record {told.mark}" in old.identity.why
    assert "made while that ran" in old.identity.why
    await end(old, etcd)
    assert states(await start(later, "run3")) == ["confirmed"], "it has all that was told"


async def test_a_mark_is_of_who_is_registered(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metastore.node.control.registration.MARK_NS", 0)
    node = await start(tmp_path, "run1")
    await write(node, 1)
    etcd.txn([], [Put(LAYOUT.node("n"), to_json(replace(record(etcd), incarnation="other")))], [])
    etcd.kvs.pop(LAYOUT.mark("n"), None)
    node.control.registration._told_mark = 0  # it may have told this one by itself
    assert await node.control.registration.tell_mark() is False
    assert LAYOUT.mark("n") not in etcd.kvs


async def write(node: Node, epoch: int) -> None:
    """Something that is more than a note of the node's own."""
    if 7 not in node.store.partitions:
        node.store.add_partition(7)
    seq = node.store.append(SealEntry(7, epoch, b"", b""))
    node.store.start_sync()
    while node.store.durable_seq < seq:
        await asyncio.sleep(0.005)
    assert node.store.mark == seq


def mark(etcd: MemoryEtcd) -> MarkRecord:
    return MarkRecord.from_json(etcd.kvs[LAYOUT.mark("n")].value)


async def test_two_first_starts_of_one_name_at_once(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    """One of them is registered, and the other learns which."""
    both = await asyncio.gather(*(start(tmp_path / name, name) for name in ("one", "two")))
    assert sorted(states(*both)) == ["confirmed", "refused"]
    won, lost = sorted(both, key=lambda node: node.identity.state)
    assert record(etcd).incarnation == won.me.incarnation
    assert f"process {won.me.incarnation} at {won.config.rpc} runs as node n already" in lost.identity.why


async def test_two_first_starts_at_addresses_of_one_name(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    """On two machines one address may name either: only the lease tells that the other one is gone."""
    first = await start(tmp_path / "one", "one")
    other = replace(record(etcd), store_id="elsewhere", incarnation="other")
    verdict = judge(other, Lineage(), record(etcd), "one", True)
    assert verdict.kind == "wait"
    assert f"process one at {first.config.rpc} may still run as node n" in verdict.why


async def test_whoever_asks_a_node_that_starts_learns_who_it_is(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    """And nothing else: not a peer is let in, nothing is read."""
    etcd.up = False
    starting = asyncio.create_task(start(tmp_path, "run1"))
    while not NODES or NODES[-1] not in SERVERS:
        await asyncio.sleep(0)
    node = NODES[-1]
    host, _, port = node.config.rpc.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(frames.pack(frames.HELLO, ["metastore", "test"]))
    writer.write(frames.pack(frames.REQUEST, [[b"c" * 16, 0], 1000, [[1, 0, 0, "ns", "k"]]]))
    decoder = frames.FrameDecoder(1 << 20)
    got: list[Any] = []
    while len(got) < 2:
        decoder.push(await reader.read(4096))
        while (frame := decoder.pull()) is not None:
            got.append(frame)
    assert got[0] == (frames.HELLO_OK, ["metastore", "n", "c", node.me.store, "run1"])
    writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    caller = Process("a", "sa", "1")
    told = Hello(caller, Lineage((Run(1, "1"),)), peer_versions())
    body = hello("metastore", told, "n", node.me.store)
    writer.write(frames.pack(frames.PEER_HELLO, body))
    decoder.push(await reader.read())
    said = decoder.pull()
    assert said is not None
    assert said[0] == frames.ERROR
    assert "is starting" in said[1][1]
    assert not node.core_started
    etcd.up = True
    assert states(await starting) == ["confirmed"]
    writer.close()


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
    txn, calls = etcd.txn, 0

    def lose_the_second(*args: object) -> object:
        """The first asks, the second swaps."""
        nonlocal calls
        calls += 1
        etcd.lose_next_answer = calls == 2
        return txn(*args)  # type: ignore[arg-type]

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
    copy_of_running(live, copy)
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
    assert old.partitions == {}
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
        copy_of_running(live, copy)
        if forget:
            del etcd.kvs[LAYOUT.presence("n")]
        clone = await start(copy, f"clone{number}")
        assert states(first, clone) == ["confirmed", "refused"]
        assert f"process run1 at {first.config.rpc}" in clone.identity.why
        assert record(etcd).incarnation == "run1"


async def test_an_empty_folder_under_a_dead_nodes_name(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    """Once its lease is gone: that its address could be had says nothing of another machine where that has the same name."""
    old = await start(tmp_path / "old", "run1")
    await end(old, etcd, presence_stays=True)
    starting = asyncio.create_task(start(tmp_path / "new", "run2", old.config.rpc))
    await asyncio.sleep(0.3)
    assert record(etcd).incarnation == "run1"
    del etcd.kvs[LAYOUT.presence("n")]
    new = await starting
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
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 2.0)
    starting = asyncio.create_task(start(tmp_path / "old", "run2"))
    while etcd.kvs[LAYOUT.node("n")].mod_revision == 0 or len(etcd.leases) < 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(2.5)  # longer than its patience with an etcd that is silent
    assert not starting.done()
    assert record(etcd).incarnation == "run1"
    del etcd.kvs[LAYOUT.presence("n")]
    node = await starting
    assert states(node) == ["confirmed"]


async def test_a_replaced_process_that_lives_stops(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    """Another process was registered on a copy of its store while it had no lease."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    first = await start(live, "run1")
    copy_of_running(live, copy)
    mine = record(etcd)
    other = NodeRecord(mine.node, mine.cell, mine.store_id, "127.0.0.1:9", mine.http, "", 2, "run2")
    etcd.txn([], [Put(LAYOUT.node("n"), to_json(other))], [])
    first.control._lease_changed()
    while first.identity.state != "refused":
        await asyncio.sleep(0.01)
    assert "process run2 at 127.0.0.1:9" in first.identity.why


async def test_a_process_that_cannot_listen_is_none(tmp_path: Path) -> None:
    """It has not run on the store, whichever of its addresses another process has; and the store can be opened at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = f"127.0.0.1:{taken.getsockname()[1]}"
        free = f"127.0.0.1:{pick_ports('127.0.0.1', ['rpc'], set())['rpc']}"
        for rpc, http in ((there, free), (free, there)):
            config = NodeConfig(cell="c", node="n", data_dir=str(tmp_path), rpc=rpc, http=http)
            with pytest.raises(OSError, match="in use"):
                await serve(config)
            store = Store.open(tmp_path, cluster="metastore", node="n")
            assert store.lineage.generation == 0
            store.abandon()


async def pair(start: Start, tmp_path: Path, etcd: MemoryEtcd, run: str) -> tuple[Node, Node]:
    """Two nodes of one cell, which know each other; etcd, and so each of them, knows both."""
    node, peer = await start(tmp_path / "n", run), await start(tmp_path / "o", f"{run}o", name="o")
    await met(node, peer)
    return node, peer


async def met(node: Node, peer: Node) -> None:
    while node.links.connected() != ["o"] or peer.links.connected() != ["n"]:
        await asyncio.sleep(0.01)


async def test_a_peer_remembers_how_far_a_store_was_durable(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever etcd says, and whoever leads: it is refused for good, since it can see for itself."""
    monkeypatch.setattr("metastore.node.peers.PING_S", 0.02)
    node, peer = await pair(start, tmp_path, etcd, "run1")
    await write(node, 1)
    copy_of_running(tmp_path / "n", tmp_path / "copy")
    await write(node, 2)
    while peer.identity.known("n", None)[0].mark < node.store.mark:
        await asyncio.sleep(0.01)
    await end(node, etcd)
    etcd.kvs.pop(LAYOUT.mark("n"), None)
    back = await start(tmp_path / "copy", "run2", node.config.rpc)
    assert states(back) == ["confirmed"], "etcd knows nothing of it"
    while not back.identity.refused:
        await asyncio.sleep(0.01)
    assert f"up to record {node.store.mark}" in back.identity.why
    assert peer.links.connected() == []
    await end(back, etcd)
    assert states(await start(tmp_path / "copy", "run3", node.config.rpc)) == ["refused"], "it knows it still"


async def test_a_run_that_came_and_went_while_etcd_was_away(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd never heard of it, so what it confirms need not descend from it: the peer that met it knows better."""
    node, peer = await pair(start, tmp_path, etcd, "run1")
    await end(node, etcd)
    copy_of_running(tmp_path / "n", tmp_path / "copy")
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 0.2)
    etcd.up = False
    node = await start(tmp_path / "n", "run2", node.config.rpc)
    await met(node, peer)
    assert states(node) == ["provisional"]
    await end(node, etcd)
    etcd.up = True
    monkeypatch.setattr("metastore.node.startup.ETCD_PATIENCE_S", 20.0)
    back = await start(tmp_path / "copy", "run3", node.config.rpc)
    while not back.identity.refused:
        await asyncio.sleep(0.01)
    assert "process run2 ran on that store" in back.identity.why


async def test_what_may_be_out_of_date_condemns_nobody(
    start: Start, etcd: MemoryEtcd, tmp_path: Path
) -> None:
    node = await start(tmp_path, "run1")
    node.identity.state = "provisional"
    for number, seen in enumerate((None, Seen(1, "run1"), Seen(1, "run1", 99))):
        node.on_accused("o", f"its table {number}", seen)
        assert states(node) == ["provisional"]
        assert node.identity.view()["accused"] == f"o says: its table {number}"
    node.on_peer_lineage(Process("o", "so", "1"), Lineage((Run(1, "1"),)))
    assert node.identity.view()["accused"] == "", "it has let it in"
    node.on_accused("o", "another ran as that", Seen(1, "x"))
    assert states(node) == ["refused"]


async def test_a_table_that_is_behind_names_no_copies(start: Start, etcd: MemoryEtcd, tmp_path: Path) -> None:
    """R13: another store under the name is refused, and is told nothing that would condemn it."""
    node, _ = await pair(start, tmp_path, etcd, "run1")
    refusal = node.why_no_peer(Process("o", "another", "1"), Lineage((Run(1, "1"),)), None)
    assert refusal is not None
    assert "its store is" in refusal.why
    assert refusal.seen is None


@pytest.mark.parametrize(
    "raw",
    [b"", b"{]", b"[]", b"5", b"\xff", b"{}", b'{"store_id":5,"generation":3,"incarnation":"i","mark":9}',
     b'{"store_id":"s","generation":-1,"incarnation":"i","mark":9}', b'{"store_id":"s","generation":1,"incarnation":"i"}',
     b'{"store_id":"s","generation":1,"incarnation":"i","mark":9223372036854775808}', b"[" * 50_000],
)  # fmt: skip
def test_what_makes_no_sense_is_no_mark(raw: bytes) -> None:
    with pytest.raises(BadRecord):
        MarkRecord.from_json(raw)


async def test_a_mark_that_makes_no_sense_keeps_nobody_out(
    start: Start, etcd: MemoryEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over, and there is a good one again as soon as there is more to tell."""
    monkeypatch.setattr("metastore.node.control.registration.MARK_NS", 0)
    await end(await start(tmp_path, "run1"), etcd)
    etcd.txn([], [Put(LAYOUT.mark("n"), b'{"mark": "x"}')], [])
    again = await start(tmp_path, "run2")
    assert states(again) == ["confirmed"]
    await write(again, 1)
    assert await again.control.registration.tell_mark()
    assert mark(etcd).incarnation == "run2"
