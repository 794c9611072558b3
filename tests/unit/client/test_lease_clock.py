"""A lease ends at its holder no later than at its leader: it counts from before the request, less a margin (R15)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from metastore.client.leasing import CLOCK_MARGIN, Lease
from metastore.clock import now_ns
from metastore.errors import ConditionFailed, LockLost, OutcomeUnknown, Unavailable
from tests.processes import PATIENCE_S

TTL_S = 600.0
HELD_NS = int(TTL_S * (1 - CLOCK_MARGIN) * 1e9)


class Namespace:
    """What a lease asks of one: its answers take their time, and may fail."""

    def __init__(self) -> None:
        self.name, self.deadline_s = "n", 10.0
        #: when each request came, on the clock of all
        self.came: list[int] = []
        self.error: Exception | None = None
        self.record: Any = None
        self.abandoned = 0
        self.dispatcher: Any = SimpleNamespace(spawn=self.spawn, closed=False)

    def spawn(self, work: Any) -> None:
        work.close()
        self.abandoned += 1

    def takes_time(self) -> None:
        self.came.append(now_ns())
        while now_ns() <= self.came[-1] + 1_000_000:
            pass
        if self.error is not None:
            raise self.error

    async def put(self, key: str, value: bytes, **options: Any) -> Any:
        self.takes_time()
        return SimpleNamespace(version=5)

    async def get(self, key: str, **options: Any) -> Any:
        return self.record

    async def touch(self, key: str, **options: Any) -> Any:
        self.takes_time()
        return SimpleNamespace()

    async def delete(self, key: str, **options: Any) -> Any:
        self.takes_time()


@pytest.fixture
def ns() -> Namespace:
    return Namespace()


async def taken(ns: Namespace) -> Lease:
    lease = Lease(ns, "lock", TTL_S)  # type: ignore[arg-type]
    await lease._take(b"me", "text/plain", 5.0, wait=False)
    return lease


def stop(lease: Lease) -> None:
    for task in lease._tasks:
        task.cancel()


async def test_a_lease_counts_from_before_its_request(ns: Namespace) -> None:
    """The leader counts from when the record is applied, which is later; the answer comes later still."""
    lease = await taken(ns)
    assert lease.held
    assert lease._over_at_ns <= ns.came[0] + HELD_NS
    stop(lease)


async def test_a_renewal_counts_from_before_its_touch(ns: Namespace) -> None:
    lease = await taken(ns)
    stop(lease)
    lease._over_at_ns = now_ns() + int(TTL_S * 0.6e9)  # more than a third is over: it is renewed now
    before = lease._over_at_ns
    keeping = lease._keep()
    keeping.send(None)
    assert len(ns.came) == 2
    assert before < lease._over_at_ns <= ns.came[1] + HELD_NS
    keeping.close()


async def test_the_margin_is_of_twice_the_largest_error_of_a_clock(ns: Namespace) -> None:
    assert CLOCK_MARGIN == 0.001
    lease = Lease(ns, "lock", TTL_S)  # type: ignore[arg-type]
    lease._renewed(1000)
    assert lease._over_at_ns == 1000 + 599_400_000_000


async def test_a_lease_that_is_over_is_not_held(ns: Namespace) -> None:
    lease = await taken(ns)
    lost: list[bool] = []
    lease.on_lost(lambda: lost.append(True))
    lease._over_at_ns = now_ns()
    assert not lease.held
    assert lost == [True]
    with pytest.raises(LockLost):
        lease.check()
    assert lease.token == 5, "for what was begun under it"
    lease._renewed(now_ns())
    assert not lease.held, "a renewal that comes too late brings nothing back"
    stop(lease)


async def test_a_touch_that_comes_back_after_the_end_renews_nothing(ns: Namespace) -> None:
    lease = await taken(ns)
    stop(lease)
    lease._over_at_ns = now_ns() + int(TTL_S * 0.6e9)  # more than a third is over: it is renewed now
    ends: list[int] = []

    async def touch(key: str, **options: Any) -> Any:
        ends.append(now_ns())
        lease._over_at_ns = ends[-1]  # it ends while the touch is under way
        return SimpleNamespace(version=7, ttl_s=TTL_S)

    def renewed(sent_ns: int) -> None:
        raise AssertionError("it came back")

    ns.touch = touch  # type: ignore[method-assign]
    lease._renewed = renewed  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE_S):
        await lease._keep()
    assert not lease.held
    assert [lease._over_at_ns] == ends


async def test_who_finds_the_record_of_another_holds_nothing(ns: Namespace) -> None:
    ns.error = ConditionFailed("there", version=3, index=1)
    lease = Lease(ns, "lock", TTL_S)  # type: ignore[arg-type]
    assert not await lease._take(b"me", "text/plain", 5.0, wait=False)
    assert not lease.held
    assert not ns.abandoned


@pytest.mark.parametrize(("value", "held"), [(b"me", True), (b"other", False)])
async def test_after_doubt_the_record_tells(ns: Namespace, value: bytes, held: bool) -> None:
    """It is ours: then its lease begins with the touch that says so, not with what may have been written when."""
    ns.error = OutcomeUnknown("lost")
    ns.record = SimpleNamespace(value=value, content_type="text/plain", version=8)
    lease = Lease(ns, "lock", TTL_S)  # type: ignore[arg-type]
    put = ns.put

    async def doubtful(*args: Any, **options: Any) -> Any:
        try:
            return await put(*args, **options)
        finally:
            ns.error = None

    ns.put = doubtful  # type: ignore[method-assign]
    assert await lease._take(b"me", "text/plain", 5.0, wait=False) == held
    assert lease.held == held
    if held:
        assert lease.token == 8
        assert lease._over_at_ns <= ns.came[-1] + HELD_NS
    stop(lease)


async def test_who_gives_up_in_doubt_sees_to_it_that_nothing_is_left(ns: Namespace) -> None:
    lease = Lease(ns, "lock", TTL_S)  # type: ignore[arg-type]
    ns.error = OutcomeUnknown("lost")

    async def away(*args: Any, **options: Any) -> Any:
        raise Unavailable("away")

    ns.get = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await lease._take(b"me", "text/plain", 5.0, wait=False)
    assert ns.abandoned == 1
