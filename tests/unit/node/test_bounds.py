"""What clients may take of a node: turns of its loop, memory, digests. On one node, without attackers:
the bounds themselves; ``tests/hostile`` has those who run into them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from metastore.clock import now_ns
from metastore.errors import Overloaded
from metastore.keys import storage_key_of
from metastore.node import http as http_module
from metastore.node.admission import Admission
from metastore.node.clients import MAX_CLIENT_NS, ClientConnection
from metastore.node.http import Digests
from metastore.operations import GET, LINEARIZABLE, OK, PUT
from metastore.wire import frames
from tests.unit.node.single import Single

LKEY = storage_key_of("n", "k")


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, Any]] = []
        self.unread = 0
        self.reading = True
        self.closed = False
        self._decoder = frames.FrameDecoder()

    def write(self, data: bytes) -> None:
        self.frames += self._decoder.feed(data)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def results(self) -> list[int]:
        """Ids of the operations that were answered."""
        return [result[0] for kind, body in self.frames if kind == frames.RESPONSE for result in body]


async def until(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds; what does not for a minute never will."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def connect(s: Single) -> tuple[ClientConnection, Wire]:
    connection, wire = ClientConnection(s.node), Wire()
    connection.connection_made(cast(asyncio.Transport, wire))
    connection.data_received(frames.pack(frames.HELLO, ["", "test"]))
    return connection, wire


def gets(*ids: int) -> bytes:
    """A frame for each."""
    client = b"c" * 16
    return b"".join(
        frames.pack(frames.REQUEST, [client, 5000, [[i, GET, 0, LKEY, LINEARIZABLE, None]]]) for i in ids
    )


async def test_what_no_turn_has_time_for_waits_for_the_next(tmp_path: Path) -> None:
    """In order, and nothing more is read from who has had his share."""
    async with Single(tmp_path) as s:
        connection, wire = connect(s)
        s.node.ticks.client_ns = MAX_CLIENT_NS + 1
        connection.data_received(gets(1, 2))
        assert not wire.reading
        connection.data_received(gets(3))
        assert wire.results() == []
        assert connection.decoder.buffered_bytes == len(gets(1, 2, 3))
        await until(lambda: wire.results() == [1, 2, 3])
        await until(lambda: wire.reading)
        assert connection.decoder.buffered_bytes == 0
        connection.connection_lost(None)


async def test_who_does_not_read_is_not_worked_for(tmp_path: Path) -> None:
    async with Single(tmp_path) as s:
        connection, wire = connect(s)
        connection.pause_writing()
        connection.data_received(gets(1, 2))
        await asyncio.sleep(0.02)
        assert wire.results() == []
        assert not wire.reading
        connection.resume_writing()
        await until(lambda: wire.results() == [1, 2])
        await until(lambda: wire.reading)
        connection.connection_lost(None)


async def test_writes_beyond_the_budget_are_refused(tmp_path: Path) -> None:
    async with Single(tmp_path, client_memory_mib=16) as s:
        connection, wire = connect(s)
        value = bytes(1 << 20)
        go = s.block_syncs()
        for i in range(24):
            op = [i, PUT, 0, LKEY, 0, 0, 0, None, value, "", 0]
            connection.data_received(frames.pack(frames.REQUEST, [b"c" * 16, 60_000, [op]]))
            await asyncio.sleep(0)
        assert 16 << 20 < s.node.admission.waiting < 18 << 20
        go.set()
        while len(wire.results()) < 24:
            await asyncio.sleep(0.01)
        outcomes = {r[1] for kind, body in wire.frames if kind == frames.RESPONSE for r in body}
        assert outcomes == {OK, Overloaded.status}
        assert s.node.admission.waiting == 0
        connection.connection_lost(None)


class Holder:
    """What the admission sees of a connection."""

    def __init__(self, since_ns: int) -> None:
        self.unfinished = self.unread = 0
        self.gone = self.closed = False
        self.since_ns = since_ns

    def held_since_ns(self) -> int:
        return self.since_ns

    def measure(self, now: int) -> int:
        return self.unread

    def close(self) -> None:
        self.closed = True


def test_the_longest_standing_make_room(tmp_path: Path) -> None:
    admission = Admission(10, 10**9, 1000)
    now = now_ns()
    holders: list[Any] = [Holder(now - age) for age in (50, 400, 100, 300, 200)]
    for holder in holders:
        admission.holds(holder, 190, 0, now)
    assert not any(h.closed for h in holders)
    admission.holds(holders[0], 300, 0, now)
    assert [h.closed for h in holders] == [False, True, False, True, False]
    assert admission.unfinished == 300 + 190 + 190
    admission.holds(holders[1], 500, 0, now)
    assert admission.unfinished == 680, "who is gone holds nothing"
    assert admission.evicted == 2


def test_who_does_not_get_on_goes_and_who_does_stays() -> None:
    admission = Admission(10, 10**9, 1000)
    old, young = Holder(0), Holder(9 * 10**8)
    for holder in (old, young):
        admission.holds(cast(ClientConnection, holder), 10, 0, 10**9)
    admission.sweep(10**9 + 10**8)
    assert old.closed
    assert not young.closed


async def test_digests_are_made_one_at_a_time_and_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Single(tmp_path) as s:
        running, most, made = 0, 0, 0

        async def digest(slices: Any) -> dict[str, Any]:
            nonlocal running, most, made
            running, made = running + 1, made + 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            return {"applied": s.host.applied, "digest": "d"}

        monkeypatch.setattr(http_module, "in_slices", digest)
        for p in range(1, 5):
            s.node.partitions[p] = s.host
        monkeypatch.setattr(http_module, "MAX_DIGESTS", 3)
        digests = Digests(s.node)
        asked = [digests.of(p) for p in (0, 1, 2, 3, 4, 0, 1, 2)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        for p in range(1, 5):
            del s.node.partitions[p]
    assert most == 1
    assert made == 3, "those for one partition share one"
    assert [type(f) is dict for f in found] == [True, True, True, False, False, True, True, True]
    assert all(isinstance(f, Overloaded) for f in found[3:5])


async def test_thousands_of_watches_on_a_slow_connection_are_fed_and_not_cut_off(tmp_path: Path) -> None:
    """Each is told of a large change; were all told at once, their connection would hold gigabytes."""
    async with Single(tmp_path) as s, s.client() as client:
        connection, wire = connect(s)
        for i in range(200):
            body = [i, 0, bytes(8), b"\xff" * 8, None, 0, b""]
            connection.data_received(frames.pack(frames.WATCH, body))
        # on a busy machine some are for a later turn (MAX_CLIENT_NS)
        await until(lambda: len(wire.frames) == 201)
        sent = len(wire.frames)
        wire.unread = 2 << 20
        await client.namespace("n").put("k", bytes(1 << 20))
        await asyncio.sleep(0.02)
        assert len(wire.frames) == sent, "nothing is added to what is not read"
        assert not wire.closed
        wire.unread = 0
        s.node.ticks.feed(s.host.p)
        await until(lambda: sum(1 for kind, body in wire.frames if kind == frames.EVENTS and body[2]) == 200)
        connection.connection_lost(None)
