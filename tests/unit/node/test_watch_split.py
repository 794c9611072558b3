"""R18 and watches: whoever is behind when its partition is split is told each change of both halves, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.core.events import ConfigSeen, PartingProposed, Propose
from metastore.core.rows import SplitOff
from metastore.history import Version
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, first_epoch
from metastore.partition import watches as watches_module
from metastore.partition.partition import Partition
from metastore.routing import connection as connection_module
from tests.unit.node.single import Single

TOP = 1 << 64
HALF = 1 << 63


async def nothing() -> None:
    pass


class Divided:
    """A node that splits partitions as node.splitting and etcd have it do, one step at a time."""

    def __init__(self, s: Single) -> None:
        self.s = s
        self.ranges = {0: (0, TOP)}
        self.origins: dict[int, tuple[int, int, int]] = {}
        self.term = 1

    async def part(self, p: int, at: int) -> int:
        """Apply the entry that splits ``p`` at a point; the child. Etcd does not know yet."""
        node, host = self.s.node, self.s.node.partitions[p]
        while host.writes.pending or host.waiters or node.store.syncing:
            await asyncio.sleep(0.005)
        child, point = len(self.ranges), at.to_bytes(8, "big")
        host.machine.proposals.count_above(point)
        while (counting := host.machine.proposals.counting) is not None and counting.cursor is not None:
            rows, following, _ = node.store.scan(p, counting.cursor, host.state.hi, 2000, 2 << 20)
            host.machine.proposals.count_slice(rows, following)
        epoch, index = host.replica.sealed_epoch, host.replica.log.last_index + 1
        members = [("f", node.store.store_id)]
        payload = host.machine.proposals.resolve_split(index, epoch, child, self.ranges[p][1] - 1, members)
        node.core.handle(now_ns(), PartingProposed(p, at))
        host.split.narrow()
        node.core.handle(now_ns(), Propose(p, payload))
        node.ticks.run_effects()
        while host.applied < index or node.store.pending_splits(child):
            await asyncio.sleep(0.005)
        lo, hi = self.ranges[p]
        self.ranges[p], self.ranges[child] = (lo, at), (at, hi)
        self.origins[child] = (p, epoch, index)
        return child

    async def record(self, p: int, child: int) -> Partition:
        """Etcd has the two; and both are led again."""
        node, store = self.s.node, self.s.store
        for q in (p, child):
            self.term += 1
            record = ConfigRecord(
                q,
                *self.ranges[q],
                first_epoch(self.term),
                "f",
                (("f", store.store_id),),
                parent=self.origins.get(q),
            )
            node.topology.apply_kv(("config", "c1", f"{q:05d}"), record.to_json(), 10 + self.term)
            if q not in node.partitions:
                node.open_partition(record)
            node.core.handle(now_ns(), ConfigSeen(q, record, 10 + self.term))
        node.ticks.run_effects()
        while {node.partitions[p].role, node.partitions[child].role} != {"active"}:
            await asyncio.sleep(0.005)
        return node.partitions[child]


def keys(first: int, last: int, count: int, tag: str) -> list[str]:
    """So many keys whose points are within a range."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        key = f"{tag}{number}/x"
        if first <= int.from_bytes(storage_key_of("n", key)[:8], "big") < last:
            found.append(key)
        number += 1
    return found


class Watched:
    """One client writes, another watches everything; what is written has to be seen, each once."""

    def __init__(self, writer: Any, reader: Any, watch: Any) -> None:
        self.ns = writer.namespace("n")
        self.reader = reader
        self.watch = watch
        self.wrote: list[str] = []
        (self.connection,) = reader.dispatcher.pool._connections.values()

    async def write(self, keys: list[str], value: bytes = b"v") -> None:
        for key in keys:
            await self.ns.put(key, value)
            self.wrote.append(key)

    async def fall_behind(self, s: Single) -> None:
        self.connection.transport.pause_reading()
        for key in keys(0, TOP, 400, "big"):
            await self.write([key], b"x" * 20_000)
            if s.host.watches._behind:
                return
        pytest.fail("the watch does not fall behind")

    def read_on(self) -> None:
        self.connection.transport.resume_reading()

    async def see(self) -> None:
        """What is written so far, and nothing twice."""
        seen = [event.key async for event in _first(self.watch, len(self.wrote))]
        assert sorted(seen) == sorted(self.wrote), f"not told: {sorted(set(self.wrote) - set(seen))}"


async def _first(watch: Any, count: int) -> Any:
    async with asyncio.timeout(30):
        for _ in range(count):
            yield await anext(watch)


async def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    story: Callable[[Single, Divided, Watched], Awaitable[None]],
    *,
    any_replica: bool = False,
) -> None:
    monkeypatch.setattr(watches_module, "CONGESTED_BYTES", 100_000)
    monkeypatch.setattr(connection_module, "WATCH_SILENCE_S", 60.0)
    async with (
        Single(tmp_path) as s,
        s.client() as writer,
        s.client() as reader,
        reader.namespace("n").watch("", any_replica=any_replica) as watch,
    ):
        watched = Watched(writer, reader, watch)
        await story(s, Divided(s), watched)
        await watched.see()


@pytest.mark.parametrize("any_replica", [False, True])
@pytest.mark.parametrize("behind", [False, True])
async def test_until_etcd_knows(
    behind: bool, any_replica: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(s: Single, divided: Divided, watched: Watched) -> None:
        if behind:
            await watched.fall_behind(s)
        await divided.record(0, await divided.part(0, HALF))
        await watched.write(keys(0, HALF, 10, "low"))
        await watched.write(keys(HALF, TOP, 5, "up"))
        watched.read_on()
        await watched.write(keys(0, TOP, 5, "later"))

    await run(tmp_path, monkeypatch, story, any_replica=any_replica)


@pytest.mark.parametrize("any_replica", [False, True])
@pytest.mark.parametrize("lower", [3, 50])
async def test_before_etcd_knows(
    lower: int, any_replica: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It catches up between the entry and etcd's record, while the lower half is written to: its position there
    is none in the upper half, which is behind it (50: or has not come so far)."""

    async def story(s: Single, divided: Divided, watched: Watched) -> None:
        await watched.fall_behind(s)
        child = await divided.part(0, HALF)
        await watched.write(keys(0, HALF, lower, "low"))
        watched.read_on()
        while s.host.watches._behind:
            await asyncio.sleep(0.005)
        upper = await divided.record(0, child)
        assert upper.machine.last_version == s.host.machine.last_version - lower
        await watched.write(keys(HALF, TOP, 5, "up"))
        await watched.write(keys(0, HALF, 5, "later"))

    await run(tmp_path, monkeypatch, story, any_replica=any_replica)


async def test_the_way_is_told_before_etcd_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Etcd is away after the entry: who watched everything watches both halves, since the nodes name them."""

    async def story(s: Single, divided: Divided, watched: Watched) -> None:
        child = await divided.part(0, HALF)
        while s.node.partitions[child].role != "active":
            await asyncio.sleep(0.005)
        await watched.write(keys(0, HALF, 4, "low"))
        await watched.write(keys(HALF, TOP, 4, "up"))

    await run(tmp_path, monkeypatch, story)


async def test_several_splits_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has read on, its partition has been split twice, and what was split off once."""

    async def story(s: Single, divided: Divided, watched: Watched) -> None:
        await watched.fall_behind(s)
        upper = await divided.part(0, HALF)
        await watched.write(keys(0, HALF, 7, "a"))
        await divided.record(0, upper)
        await watched.write(keys(HALF, TOP, 3, "b"))
        second = await divided.part(0, HALF // 2)
        await watched.write(keys(0, HALF // 2, 9, "c"))
        watched.read_on()
        await divided.record(0, second)
        await watched.write(keys(HALF // 2, HALF, 4, "d"))
        third = await divided.part(upper, HALF + HALF // 2)
        await watched.write(keys(HALF, HALF + HALF // 2, 6, "e"))
        await divided.record(upper, third)
        await watched.write(keys(HALF + HALF // 2, TOP, 4, "f"))
        await watched.write(keys(0, TOP, 20, "g"))

    await run(tmp_path, monkeypatch, story)


async def test_a_watch_that_a_snapshot_took_past_the_split(tmp_path: Path) -> None:
    """R17, R18: it ends where it was told last: the snapshot's version is the lower half's only."""
    async with Single(tmp_path) as s, s.client() as client:
        await client.namespace("n").put("k/x", b"v")
        ended: list[Any] = []
        told: list[Any] = []

        class Connection:
            def write(self, data: bytes) -> None:
                told.append(data)

            def watch_ended(self, watch_id: int, error: Any) -> None:
                ended.append((watch_id, error.code))

        connection: Any = Connection()
        version = s.host.machine.last_version
        for number, (low, high) in enumerate([(0, TOP - 1), (0, HALF), (HALF, TOP - 1)]):
            body = [number, 0, low.to_bytes(8, "big"), high.to_bytes(8, "big"), None, 0, b""]
            s.host.watches.add(connection, body)
        assert len(told) == 3
        epoch, members = s.host.replica.sealed_epoch, (("f", s.store.store_id),)
        s.host.machine.splits.append(
            SplitOff(1, HALF.to_bytes(8, "big"), TOP - 1, epoch, s.host.applied, members)
        )
        for since in (0, 9):  # at the very version that they were told, and beyond it
            s.host.machine.last_version = Version(version + since)
            s.host.watches.snapshot_installed()
            assert ended == [(0, "moved"), (2, "moved")]
        assert len(told) == 3, "they are told no version of what is behind the split"
        s.host.watches.end_all(s.host.refusals.not_leader())
