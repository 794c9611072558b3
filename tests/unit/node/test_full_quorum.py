"""Where no quorum has room for an entry nothing is proposed: whoever asks is told so at once, and nobody waits for
longer than it said."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.core import messages as m
from metastore.core.messages import Process
from metastore.errors import DeadlineExceeded, DiskLow, OutcomeUnknown, Overloaded
from metastore.keys import storage_key_of
from metastore.layout import SplitRecord
from metastore.operations import ADD, DELETE, NOT_FOUND, OK, TXN
from metastore.partition import writes
from metastore.partition.split import may_split
from tests.unit.node.leading import LONG_NS, Leading, P, X

Y = Process("y", "sy", "1")
MS = 1_000_000
KEY = storage_key_of("n", "k")
DELETES = [5, TXN, P, KEY, 0, 0, 0, [], [[DELETE, KEY]], []]
COUNTS = [6, ADD, P, KEY, 0, 0, 0, None, 1]


async def test_what_no_quorum_can_take_is_refused_at_once(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k")
        await led.disks(m.FULL, X)
        assert not led.put("k").results, "this node and the other one are a quorum"
        led.propose()
        await led.acknowledged()
        await led.disks(m.FULL, X, Y)
        last = led.replica.log.last_index
        for asker in (led.put("k"), led.delete("k"), led.ask(DELETES), led.ask(COUNTS)):
            ((_, status, text, detail),) = asker.results
            assert (status, detail["nodes"]) == (DiskLow.status, ["x", "y"])
            assert "the disks of x, y are full" in text
        assert led.get("k").statuses() == [OK]
        assert led.get("none").statuses() == [NOT_FOUND]
        led.propose()
        assert led.replica.log.last_index == last
        await led.disks(m.LOW, X, Y)
        assert led.put("k").statuses() == [DiskLow.status]
        assert not led.delete("k").results, "deletes go on while anything can be logged"
        await led.disks(m.ROOM, X)
        assert not led.put("k").results


async def test_what_waited_to_be_proposed_is_refused_and_a_retry_gets_its_outcome(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        first = led.put("k", seq=1)
        led.propose()
        await led.acknowledged()
        await led.until(lambda: first.results)
        waiting, again, touch = led.put("k", seq=2), led.put("k", seq=1), led.touch("k")
        await led.disks(m.FULL, X, Y)
        last = led.replica.log.last_index
        led.propose()
        assert waiting.statuses() == [DiskLow.status]
        assert again.results == first.results
        assert touch.statuses() == [OK]
        assert led.replica.log.last_index == last
        assert led.node.admission.waiting == 0


async def test_who_waits_for_a_quorum_hears_when_the_time_is_up(tmp_path: Path) -> None:
    """A quorum may never get to it, and may have it all the same."""
    async with Leading(tmp_path) as led:
        await led.lead()
        term = led.replica.term
        assert term is not None
        term.acked_at_ns["x"] = now_ns() + LONG_NS  # it hears its quorum, which takes nothing
        short, long = led.put("a", within_ns=200 * MS), led.put("b")
        led.propose()
        late = led.put("c", within_ns=250 * MS)
        led.propose()
        await led.until(lambda: short.results and late.results)
        assert [r[1] for r in (*short.results, *late.results)] == [OutcomeUnknown.status] * 2
        assert "when its time was up" in short.results[0][2]
        assert (long.results, len(led.host.waiters)) == ([], 1)
        await led.acknowledged()
        await led.until(lambda: long.results)
        assert long.statuses() == [OK]
        assert (len(short.results), len(late.results)) == (1, 1)
        assert led.get("a").statuses() == [OK], "it took effect, once"


async def test_who_waits_to_be_proposed_hears_that_nothing_was_done(tmp_path: Path) -> None:
    """The disk may hang for long."""
    async with Leading(tmp_path) as led:
        await led.lead()
        rounds: list[Any] = []
        writer, led.store.log.writer = led.store.log.writer, rounds.append
        proposed = led.put("a")
        led.propose()
        await led.until(lambda: rounds)
        try:
            short, long = led.put("b", within_ns=100 * MS), led.put("c")
            await led.until(lambda: short.results)
            assert short.statuses() == [DeadlineExceeded.status]
            assert "nothing was done" in short.results[0][2]
            assert (proposed.results, long.results, len(led.host.writes.pending)) == ([], [], 1)
            assert led.node.admission.waiting == led.host.writes.pending_bytes > 0
        finally:  # or the store never ends
            led.store.log.writer = writer
            assert writer is not None
            writer(rounds[0])
        await led.acknowledged()
        await led.until(lambda: proposed.results)


async def test_only_so_many_are_proposed_and_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followers that do not keep up get no more than that."""
    monkeypatch.setattr(writes, "MAX_PROPOSED", 3)
    async with Leading(tmp_path) as led:
        await led.lead()
        taken = [led.put(key) for key in "abc"]
        led.propose()
        assert led.put("d").statuses() == [Overloaded.status]
        await led.acknowledged()
        await led.until(lambda: all(t.results for t in taken))
        assert not led.put("d").results


async def test_nothing_expires_and_nothing_is_split_while_no_quorum_can_take_it(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        wanted = SplitRecord(P, 1, 1 << 63)
        led.node.control.can_elect = lambda: True
        led.node.links.connected = lambda: ["x", "y"]  # type: ignore[method-assign]
        term = led.replica.term
        assert term is not None
        term.progress["y"].sealed, term.progress["y"].probing = True, False
        term.progress["y"].match = led.replica.log.last_index
        led.replica.owns_record = lambda _: True  # type: ignore[method-assign]
        assert may_split(led.host.state, wanted)
        await led.written("l", ttl_ms=600_000)
        led.host.deadlines.add_time(-LONG_NS)
        led.host.writes.expired = led.host.deadlines.due(now_ns(), 1)
        assert len(led.host.writes.expired) == 1, "due before it was known"
        await led.disks(m.FULL, X, Y)
        assert not may_split(led.host.state, wanted)
        last = led.replica.log.last_index
        for _ in range(2):
            led.host.sweep(now_ns())
            led.propose()
            assert (led.host.writes.expired, led.replica.log.last_index) == ([], last)
        await led.disks(m.ROOM, X)
        led.host.sweep(now_ns())
        assert len(led.host.writes.expired) == 2, "none is forgotten"
        led.propose()
        assert led.replica.log.last_index == last + 1
        await led.acknowledged()
        await asyncio.sleep(0)
        await led.until(lambda: not led.host.machine.timed)


async def test_a_retry_of_what_waits_is_not_refused(tmp_path: Path) -> None:
    """R7: the first attempt was let in before the disks were low, and waits for the log; its retry gets the same outcome."""
    async with Leading(tmp_path) as led:
        await led.lead()
        first = led.put("k", seq=1)
        await led.disks(m.LOW, X, Y)
        again, other, new = led.put("k", seq=1), led.put("k", seq=2), led.put("k")
        assert (first.results, again.results) == ([], [])
        assert other.statuses() == new.statuses() == [DiskLow.status]
        led.propose()
        await led.acknowledged()
        await led.until(lambda: first.results and again.results)
        assert first.results == again.results
        assert first.statuses() == [OK]
