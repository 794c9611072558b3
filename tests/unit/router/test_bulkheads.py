"""What a router holds is bounded, and given back whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore.config import RouterConfig
from metastore.errors import Overloaded, TooLarge
from metastore.routing.dispatcher import Dispatcher
from metastore.topology import Placement
from router.batch_and_txn import MAX_ANSWER_BYTES, AnswerRoom, answer_is_full, spread
from router.bulkheads import MIB, SMALL_BYTES, WINDOW, Bulkheads, CellDispatcher, PartitionQueue, Reservation


def test_each_bound() -> None:
    b = Bulkheads(
        RouterConfig(
            max_inflight=2,
            max_inflight_per_cell=2,
            max_held_mib=16,
            max_cell_mib=4,
            max_watches=2,
            max_watches_per_cell=1,
        )
    )
    with b.request() as first, b.request() as second:
        first.take(11 * MIB)
        second.take(SMALL_BYTES)
        with pytest.raises(Overloaded, match="max_held_mib"):
            second.take(MIB)  # the rest is for small ones
        second.force(5 * MIB - SMALL_BYTES)  # an answer that is there
        with pytest.raises(Overloaded, match="max_held_mib"), Reservation(b) as third:
            third.take(1)
        with pytest.raises(Overloaded, match="max_inflight"), b.request():
            pass
    assert (b.requests, b.bytes) == (0, 0)
    quota = b.begin("c1", 3 * MIB)
    with pytest.raises(Overloaded, match="max_cell_mib") as failed:
        b.begin("c1", 2 * MIB)
    assert failed.value.detail["cell"] == "c1"
    assert b.begin("c1", 0) is quota
    other = b.begin("c2", 2 * MIB)
    with pytest.raises(Overloaded, match="max_inflight_per_cell"):
        b.begin("c1", 0)
    b.end(other, 2 * MIB)
    b.end(quota, 0)
    b.end(quota, 3 * MIB)
    with b.watch({"c1"}):
        with pytest.raises(Overloaded, match="max_watches_per_cell"), b.watch({"c2", "c1"}):
            pass
        assert b.quota("c2").watches == 0, "nothing is held by who was refused"
        with b.watch({"c2"}), pytest.raises(Overloaded, match="max_watches"), b.watch(set()):
            pass
    assert {(s.ops, s.bytes, s.watches) for s in b.cells.values()} == {(0, 0, 0)}
    assert b.watches == 0
    assert set(b.refused) == {
        "max_held_mib",
        "max_inflight",
        "max_cell_mib",
        "max_inflight_per_cell",
        "max_watches_per_cell",
        "max_watches",
    }


def test_a_cell_has_its_share_and_leaves_the_rest_to_others() -> None:
    """However much the router may have under way in all."""
    b = Bulkheads(RouterConfig(max_inflight=1000, max_inflight_per_cell=2))
    for _ in range(2):
        b.begin("c1", 0)
    with pytest.raises(Overloaded, match="max_inflight_per_cell"):
        b.begin("c1", 0)
    b.begin("c2", 0)


async def test_a_turn_that_comes_too_late_is_passed_on() -> None:
    """Who waited is gone in the very moment in which its turn comes: nobody else would ever have it."""
    queue, until = PartitionQueue(), asyncio.get_running_loop().time() + 60
    for _ in range(WINDOW):
        assert queue.try_enter()
    gone = asyncio.ensure_future(queue.wait(until))
    after = asyncio.ensure_future(queue.wait(until))
    await asyncio.sleep(0)
    queue.leave()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    for _ in range(3):
        await asyncio.sleep(0)
    assert after.done()
    for _ in range(WINDOW):
        queue.leave()
    assert queue.active == 0


def test_given_back_when_something_fails() -> None:
    b = Bulkheads(RouterConfig())

    def fail() -> None:
        with b.request() as reservation, b.watch({"c"}):
            reservation.take(100)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (b.requests, b.bytes, b.watches, b.quota("c").watches) == (0,) * 4


async def test_an_operation_that_fails_gives_back_its_share_and_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatcher = CellDispatcher(RouterConfig(), Bulkheads(RouterConfig()), 1.0)
    dispatcher.table.partitions[0] = Placement(0, 0, 1 << 64, "c", ("n",))
    quota = dispatcher.bulkheads.quota("c")
    seen: list[tuple[int, int]] = []

    async def fails(*_: Any) -> list[Any]:
        seen.append((quota.ops, dispatcher._queues[0].active))
        raise ZeroDivisionError

    monkeypatch.setattr(Dispatcher, "read", fails)
    with pytest.raises(ZeroDivisionError):
        await dispatcher.read([], b"k", dispatcher._loop.time() + 1)
    assert seen == [(1, 1)]
    assert (quota.ops, quota.bytes, dispatcher._queues[0].active) == (0, 0, 0)


def test_what_could_not_be_held_is_refused_before_it_is_there() -> None:
    """``look`` says what ``take`` would, and holds nothing."""
    bulkheads = Bulkheads(RouterConfig(max_held_mib=16, max_cell_mib=16))
    with Reservation(bulkheads) as reservation:
        for size in (1, 64 << 10, 1 << 20, 12 << 20, 13 << 20, 17 << 20):
            try:
                reservation.look(size)
            except Overloaded:
                assert bulkheads.bytes == 0
                with pytest.raises(Overloaded):
                    reservation.take(size)
                assert size > 12 << 20
            else:
                assert bulkheads.bytes == 0
                reservation.take(size)
                reservation.release()


async def test_an_answer_that_is_full_has_nothing_more_read_for_it() -> None:
    read: list[int] = []
    with Reservation(Bulkheads(RouterConfig())) as reservation:
        room = AnswerRoom(reservation, answer_is_full)

        async def work(number: int) -> str:
            try:
                room.look()
                read.append(number)
                await asyncio.sleep(0)
                room.take(1 << 20)
            except TooLarge:
                return "too large"
            return "read"

        found = await spread(range(1000), lambda n: f"{n % 4}", work)
    assert found.count("read") == MAX_ANSWER_BYTES >> 20
    assert len(read) < 600, "at most those that were under way"
    room.take(0)
