"""Watches and TTLs of one node under what is rare: slow readers, mass expiry, versions of the future."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metastore.client.watch.watcher import encode_resume
from metastore.clock import now_ns
from metastore.core.rows import Applied
from metastore.errors import InvalidRequest, Unavailable
from metastore.history import ResumePoint
from metastore.partition import watches as watches_module
from metastore.partition.watches import event_frames
from metastore.records import pack_record
from metastore.wire.frames import unpack_body
from tests.unit.node.single import Single


async def test_a_watch_goes_on_after_its_reader_was_slow(tmp_path: Path) -> None:
    """Its buffer was too full to be fed and not full enough for the transport to say when it is read."""
    async with Single(tmp_path) as s, s.client() as writer, s.client() as reader:
        ns = writer.namespace("n")
        async with reader.namespace("n").watch("d/") as watch:
            (connection,) = reader.dispatcher.pool._connections.values()
            assert connection.transport is not None
            connection.transport.pause_reading()
            count = 0
            while not s.host.watches._behind:
                await ns.put(f"d/{count}", b"x" * 200_000)
                count += 1
            connection.transport.resume_reading()
            for number in range(3):
                await ns.put(f"d/after{number}", b"y")
            async with asyncio.timeout(120):
                seen = [(await anext(watch)).version for _ in range(count + 3)]
        assert seen == list(range(1, count + 4))


async def test_thousands_of_records_that_are_over_at_once(tmp_path: Path) -> None:
    """While the log syncs for long: no entry is too large, and who watches sees each of them go."""
    count = 1500
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        long = "k" * 1900
        await asyncio.gather(*(ns.put(f"{{t}}/{i:05d}{long}", b"", ttl_s=600) for i in range(count)))
        async with client.namespace("n").watch("{t}/") as watch:
            go = s.block_syncs()
            blocked = asyncio.create_task(ns.put("x", b""))
            while not s.store.syncing:
                await asyncio.sleep(0.005)
            s.host.deadlines.add_time(-700 * 10**9)
            for _ in range(20):
                s.host.sweep(now_ns())
            go.set()
            await blocked
            async with asyncio.timeout(120):
                gone = {(await anext(watch)).key for _ in range(count)}
        assert len(gone) == count
        assert s.node.failure is None
        assert not s.host.machine.timed


def test_what_one_entry_changed_comes_in_pieces_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "MAX_FRAME_EVENTS", 4)
    monkeypatch.setattr(watches_module, "MAX_FRAME_EVENT_BYTES", 500)
    small, large = pack_record(1, 1, b"v"), pack_record(1, 1, b"v" * 300)
    changes: list[tuple[bytes, bytes | None]] = [
        (b"p" * 8 + b"n\0" + bytes([65 + i]), large if i in (5, 6) else small) for i in range(10)
    ]
    changes.append((b"q" * 8 + b"n\0x", small))
    group = (b"p" * 8, b"p" * 8 + b"\xff", 0, b"")
    found = event_frames(Applied(changes, set(), 100), group)
    events = [event for _, body in found for event in unpack_body(body)]
    assert [e[2] for e in events] == list(range(101, 111))
    assert [version for version, _ in found] == [104, 107, 111], "the last stands for the whole entry"
    again = event_frames(Applied(changes, set(), 100), group, 104)
    assert [e[2] for _, body in again for e in unpack_body(body)] == list(range(105, 111))


async def test_what_a_leader_has_not_yet_is_another_replicas_to_tell(tmp_path: Path) -> None:
    """A version beyond the last: nonsense to a leader that is one for certain, else a reason to ask on."""
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        page = await ns.list("d/")
        assert page.resume is not None
        from metastore.client.watch.watcher import decode_resume

        ((point, _),) = decode_resume(page.resume)
        watch = ns.watch("d/", after=encode_resume([(point, ResumePoint(999))]))
        with pytest.raises(InvalidRequest, match="nothing can be resumed"):
            await anext(watch)
        await watch.close()
        body = [7, 0, point + b"n\0d/", point + b"n\0d0", 999, 0, b""]
        watch_server = watches_module.Watch.__new__(watches_module.Watch)
        watch_server.version, watch_server.index = ResumePoint(0), 0
        s.host.replica.can_read = lambda now: False  # type: ignore[method-assign]
        assert isinstance(s.host.watches._seek(watch_server, body[4]), Unavailable)  # type: ignore[arg-type]
