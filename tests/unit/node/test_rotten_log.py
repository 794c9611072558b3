"""R14: an entry of the log that has rotted costs one partition its copy at most, and never the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metastore.client.watch.watcher import encode_resume
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.errors import Compacted, StorageError
from metastore.history import ResumePoint
from metastore.records import pack_record
from metastore.storage import damage as damage_module
from metastore.storage.snapshot import DATA, METADATA
from metastore.storage.store import Store
from tests.unit.node.leading import Leading, X
from tests.unit.node.single import Single
from tests.unit.node.test_fail_stop import EPOCH, LEADER, Fixture, put_entry


def rots(store: Store, p: int, index: int) -> Path:
    """A bit of an entry on the disk; nothing of the log is in memory any more. Its file."""
    part = store.log.partitions[p]
    part.blobs.clear()
    location = part.locations[index - part.index.base_index - 1]
    path = store.log.files.path(location >> 32)
    raw = bytearray(path.read_bytes())
    raw[(location & 0xFFFFFFFF) + 30] ^= 4
    path.write_bytes(raw)
    return path


async def until(store: Store, what: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not what():
            assert store.writer.failure is None, store.writer.failure
            await asyncio.sleep(0.005)


async def test_a_watch_that_comes_to_it_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The state has the entry: it is as if it had been compacted away, and soon it is."""
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        for n in range(4):
            await ns.put(f"d/{n}", b"x")
        page = await ns.list("d/")
        assert page.resume is not None
        from metastore.client.watch.watcher import decode_resume

        ((point, version),) = decode_resume(page.resume)
        file = rots(s.store, 0, s.host.applied - 2)
        watch = ns.watch("d/", after=encode_resume([(point, ResumePoint(version - 4))]))
        with pytest.raises(Compacted):
            await anext(watch)
        await watch.close()
        assert s.node.failure is None
        assert s.store.damage.count >= 1
        await until(s.store, lambda: not file.exists())
        again = await ns.put("d/5", b"y")
        watch = ns.watch("d/", after=encode_resume([(point, version)]))
        assert (await anext(watch)).version == again.version
        await watch.close()
        assert not s.host.replica.damaged
        assert s.node.failure is None


async def test_a_follower_that_needs_it_gets_a_snapshot(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        for n in range(4):
            await led.written(f"k{n}")
        started: list[tuple[int, str]] = []
        led.node.snapshots.start = lambda p, to, epoch: started.append((p, to))  # type: ignore[method-assign]
        file = rots(led.store, 0, led.host.applied - 2)
        y = m.Sealed(0, EPOCH, 0, 0, 0, 0)
        led.node.on_peer_messages(led_y := X._replace(node="y", store="sy"), [y])
        index = led.host.applied - 3
        led.node.on_peer_messages(led_y, [m.Appended(0, EPOCH, index)])
        assert (0, "y") in started
        assert led.host.role == "active"
        await until(led.store, lambda: not file.exists())
        await led.written("on")
        assert led.node.failure is None


# --- a copy that has not applied it ------------------------------------------------------------------------------


async def lose(f: Fixture) -> None:
    """Three entries; the second, which is not committed yet, rots; then all are committed."""
    entries = (pack_entry(1, EPOCH, b""), put_entry(2, EPOCH, b"v"), pack_entry(3, EPOCH, b""))
    f.node.on_peer_messages(LEADER, [f.append(0, *entries, commit=1)])
    await f.durable()
    assert f.host.applied == 1
    f.host.applying.staged.clear()
    rots(f.store, 0, 2)
    f.out.clear()
    f.node.on_peer_messages(LEADER, [f.append(3, commit=3)])
    assert f.node.failure is None


def snapshot(index: int) -> list[Any]:
    """What a leader sends of its state at that entry."""
    from metastore.core.machine import Machine
    from metastore.keys import storage_key_of

    state: dict[bytes, bytes] = {}
    machine = Machine(state.get)
    rows: list[tuple[int, bytes, bytes]] = []
    if index >= 2:
        applied = machine.apply(2, put_entry(2, EPOCH, b"v")[20:])
        assert applied.changes[0][0] == storage_key_of("ns", "k")
        rows = [(DATA, key, record) for key, record in applied.changes if record is not None]
    rows += [
        (METADATA, key, row) for key in machine.metadata_keys() if (row := machine.metadata(key)) is not None
    ]
    begin = m.SnapshotBegin(0, EPOCH, 1, index, EPOCH, [])
    return [begin, m.SnapshotChunk(0, EPOCH, 1, 0, rows), m.SnapshotChunk(0, EPOCH, 1, 1, [])]


async def test_it_takes_part_in_nothing_and_is_rebuilt(f: Fixture) -> None:
    await lose(f)
    replica = f.host.replica
    assert (f.host.applied, replica.lost_index, replica.damaged) == (1, 2, True)
    assert 0 in f.node.rebuild.why
    await f.durable()  # an acknowledgement that it had given before may leave again
    f.out.clear()
    f.node.on_peer_messages(LEADER, [m.Seal(0, EPOCH, pack_config(f.record), 0)])
    f.node.on_peer_messages(LEADER, [f.append(3, pack_entry(4, EPOCH, b""), commit=3)])
    await f.durable()
    assert not f.answers(), "it lacks what it would say that it has"
    await until(f.store, lambda: [x for x in f.out if isinstance(x, m.Rebuild)])
    f.node.on_peer_messages(LEADER, snapshot(1))  # one that does not reach as far
    await until(f.store, lambda: [x for x in f.out if isinstance(x, m.SnapshotAck) and x.number == 1])
    await asyncio.sleep(0)
    assert replica.damaged
    f.out.clear()
    f.node.on_peer_messages(LEADER, snapshot(3))
    await until(f.store, lambda: not replica.damaged)
    await until(f.store, lambda: 0 not in f.node.rebuild.why)
    assert (f.host.applied, replica.lost_index, replica.log.last_index) == (3, 0, 3)
    f.out.clear()
    f.node.on_peer_messages(LEADER, [f.append(3, pack_entry(4, EPOCH, b""), commit=3)])
    await f.durable()
    assert f.answers() == [m.Appended(0, EPOCH, 4)]
    f.node.on_peer_messages(LEADER, [f.append(4, commit=4)])
    await until(f.store, lambda: f.store.log.files.segments[0].number > 1)  # and nothing of it is left
    assert f.node.failure is None


async def test_the_node_waits_for_the_copy_and_ends_when_nothing_comes_of_it(
    f: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is rebuilt may take long; when no copy is being rebuilt and the segment is needed still, it ends (R14)."""
    monkeypatch.setattr(damage_module, "LET_GO_S", 0.05)
    await lose(f)
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert f.node.failure is None
    f.node.rebuild.why.clear()
    async with asyncio.timeout(60):
        await f.node.halt.failed.wait()
    assert isinstance(f.node.failure, StorageError)
    assert "has rotted" in str(f.node.failure)


async def test_a_log_that_rots_while_the_copy_is_rebuilt(f: Fixture) -> None:
    """The entry behind the snapshot is lost as well: the copy stays damaged, and asks for a later one."""
    await lose(f)
    rots(f.store, 0, 3)
    f.node.on_peer_messages(LEADER, snapshot(2))
    await until(f.store, lambda: f.host.applied == 2 and not f.host.replica.installing)
    assert (f.host.replica.damaged, f.host.replica.lost_index) == (True, 3) or f.host.replica.lost_index == 2
    f.node.on_peer_messages(LEADER, snapshot(3))
    await until(f.store, lambda: not f.host.replica.damaged)
    assert (f.host.applied, f.host.replica.lost_index) == (3, 0)
    record, _, _ = f.store.scan(0, b"", b"\xff" * 9, 10, 1 << 20)
    assert [r for _, r in record] == [pack_record(1, 1, b"v")]
    assert f.node.failure is None
