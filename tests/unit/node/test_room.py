"""Disks that fill: what adds data is refused with what to do, all else goes on, and so do writes once there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from metastore.client import Delete, Get, Put, Record
from metastore.core import messages as m
from metastore.errors import DiskLow, Unavailable
from metastore.node import pins
from metastore.node.pins import GRACE_NS, Pins
from metastore.routing.request_ids import RequestIds
from metastore.storage.disk import Disk
from metastore.storage.options import StorageOptions
from tests.typed import there
from tests.unit.node.single import Single

MIB = 1 << 20


class SmallDisk(Disk):
    """A real one that says how much is free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def space(self, folder: Path) -> tuple[int, int]:
        return self.free, 1 << 41


def small(folder: Path) -> tuple[Single, SmallDisk]:
    disk = SmallDisk(1 << 40)
    return Single(folder, options=StorageOptions(low_bytes=100 * MIB, segment_bytes=4 * MIB), disk=disk), disk


async def until(what: Any) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


async def test_below_the_mark_only_what_adds_is_refused(tmp_path: Path) -> None:
    single, disk = small(tmp_path)
    async with single, single.client() as client:
        ns, ctx = client.namespace("n"), single.node.core.ctx
        for key in "abc":
            await ns.put(key, b"1", ttl_s=3600)
        lock = ns.lock("held", ttl_s=3600)
        await lock.acquire()
        once = RequestIds.named("once")
        first = await ns.add("count", 5, ids=once)
        disk.free = 40 * MIB
        await until(lambda: ctx.room == m.LOW)
        with pytest.raises(DiskLow) as low:
            await ns.put("a", b"2")
        assert (low.value.outcome, low.value.retryable, low.value.http_status) == ("none", True, 507)
        assert low.value.detail["nodes"] == ["f"]
        assert low.value.detail["retry_after_s"] == 10
        for part in (
            "40 MiB are free",
            "the mark is 100 MiB",
            "disk_low_mib",
            "delete records",
            "cellctl doctor",
        ):
            assert part in low.value.message
        for refused in (
            ns.add("new", 1),
            ns.txn([], [Delete("a"), Put("b", b"2")]),
            ns.txn([], [], [Put("b", b"2")]),
        ):
            with pytest.raises(DiskLow):
                await refused
        again = await ns.add("count", 5, ids=RequestIds.named("once"))
        assert again == first, "what was done before is told (R7)"
        assert there(await ns.get("a")).value == b"1"
        assert await ns.touch("a") is not None
        assert await ns.delete("a", fence=lock.fence)
        await ns.txn([], [Delete("b"), Get("c")])
        await lock.release()
        assert await ns.get("held") is None
        disk.free = 110 * MIB
        await until(lambda: single.store.space.disk_free == disk.free)
        with pytest.raises(DiskLow):
            await ns.put("a", b"2")
        disk.free = 125 * MIB
        await until(lambda: ctx.room == m.ROOM)
        assert (await ns.put("a", b"2")).created
        assert single.node.failure is None


async def test_records_expire_below_the_mark(tmp_path: Path) -> None:
    single, disk = small(tmp_path)
    async with single, single.client() as client:
        ns = client.namespace("n")
        disk.free = 40 * MIB
        await ns.put("k", b"v", ttl_s=1.5)
        await until(lambda: single.node.core.ctx.room == m.LOW)
        await until(lambda: not single.host.machine.timed)
        assert await ns.get("k") is None


async def test_a_full_disk_takes_nothing_and_reads_go_on(tmp_path: Path) -> None:
    single, _ = small(tmp_path)
    async with single, single.client() as client:
        ns = client.namespace("n")
        await ns.put("k", b"v")
        single.store.look = lambda: None
        single.store.space.low = single.store.space.full = True
        await until(lambda: single.node.core.ctx.room == m.FULL)
        for refused in (ns.put("k", b"w"), ns.delete("k"), ns.txn([], [Delete("k")])):
            with pytest.raises(DiskLow, match="nothing can be written"):
                await refused
        assert there(await ns.get("k")).value == b"v"
        (found,) = (await ns.txn([], [Get("k")])).results
        assert isinstance(found, Record)
        assert found.value == b"v"
        single.store.space.low = single.store.space.full = False
        await until(lambda: single.node.core.ctx.room == m.ROOM)
        await ns.put("k", b"w")


async def test_status_and_metrics_tell(tmp_path: Path) -> None:
    single, disk = small(tmp_path)
    async with single:
        disk.free = 40 * MIB
        await until(lambda: single.node.core.ctx.room == m.LOW)
        told = single.node.status()
        assert (told["disk"]["free_bytes"], told["disk"]["low"], told["disk"]["full"]) == (40 * MIB, 1, 0)
        assert told["disk"]["low_mark_bytes"] == 100 * MIB
        assert told["storage"]["room_low"] == 1
        assert 0 < told["storage"]["state_bytes"] <= told["storage"]["state_limit_bytes"]
        assert told["snapshots"] == []


# --- snapshots pin the state's pages ----------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5
        monkeypatch.setattr(pins, "now_ns", lambda: self.now)

    async def passes(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


async def test_who_takes_a_snapshot_too_slowly_is_sent_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Single(tmp_path, snapshot_min_kib_s=1) as single:
        config = single.node.config
    clock, all_pins, grace_s = Clock(monkeypatch), Pins(config), GRACE_NS / 1e9
    with all_pins.pin(7, "b") as pin:
        pin.sent_bytes = 1024 * 10
        await pin.wait(clock.passes(grace_s + 10), 60)
        clock.now += 10**12
        pin.check()
        (told,) = all_pins.status()
        assert (told["partition"], told["to"], told["sent_bytes"]) == (7, "b", 10240)
        with pytest.raises(Unavailable, match="b reads the snapshot of partition 7 too slowly"):
            await pin.wait(clock.passes(0.1), 60)
    assert all_pins.status() == []


async def test_a_snapshot_does_not_take_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Single(tmp_path, snapshot_max_s=60.0) as single:
        config = single.node.config
    clock, all_pins = Clock(monkeypatch), Pins(config)

    async def send() -> None:
        with all_pins.pin(7, "b") as pin:
            pin.sent_bytes = 1 << 40
            await pin.wait(clock.passes(60), 70)
            assert all_pins.ended == 0
            await pin.wait(clock.passes(0.1), 70)

    with pytest.raises(Unavailable, match="snapshot_max_s"):
        await send()
    assert all_pins.ended == 1
