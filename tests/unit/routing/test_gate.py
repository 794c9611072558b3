"""Retry budget and admission: bounds hold, nobody is forgotten."""

from __future__ import annotations

import asyncio
import random

import pytest

from metastore.errors import DeadlineExceeded
from metastore.routing.backoff import BACKOFF_S, BUDGET_PER_S, BUDGET_TOKENS, RetryBudget, backoff_s
from metastore.routing.gate import Admission


def test_the_budget_runs_dry_and_fills_again() -> None:
    budget = RetryBudget()
    assert all(budget.take(1.0) for _ in range(int(BUDGET_TOKENS)))
    assert not budget.take(1.0)
    assert budget.empty_count == 1
    for _ in range(15):
        budget.succeeded()
    assert budget.take(1.0)
    assert not budget.take(1.0)
    assert budget.take(1.0 + 1 / BUDGET_PER_S)  # by time, slowly
    for _ in range(100_000):
        budget.succeeded()
    taken = 0
    while budget.take(2.0):
        taken += 1
    assert BUDGET_TOKENS <= taken <= BUDGET_TOKENS + 1, "it holds no more than when it was made"


def test_backoff_has_full_jitter_below_a_growing_ceiling() -> None:
    for pauses in range(12):
        ceiling = min(BACKOFF_S[1], BACKOFF_S[0] * 2**pauses)
        seen = [backoff_s(pauses) for _ in range(300)]
        assert 0 <= min(seen) < ceiling / 4
        assert ceiling * 3 / 4 < max(seen) <= ceiling


async def test_admission_is_a_queue_with_a_bound_for_each_cell() -> None:
    admission = Admission(2)
    assert [admission.try_enter("a") for _ in range(3)] == [True, True, False]
    assert admission.try_enter("b"), "another cell does not notice"
    loop = asyncio.get_running_loop()
    order: list[int] = []

    async def enter(number: int) -> None:
        await admission.enter("a", loop.time() + 60)
        order.append(number)

    tasks = [asyncio.create_task(enter(n)) for n in range(3)]
    late = asyncio.create_task(admission.enter("a", loop.time() - 1))
    with pytest.raises(DeadlineExceeded):
        await late
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    admission.leave("a")
    await tasks[1]
    admission.leave("a")
    await tasks[2]
    assert order == [1, 2]
    assert admission.waiting == 0
    admission.leave("a")
    admission.leave("a")
    admission.leave("b")
    assert admission.under_way == 0


async def test_admission_loses_no_place_whatever_is_cancelled() -> None:
    rng = random.Random(7)
    admission = Admission(3)
    loop = asyncio.get_running_loop()
    most = 0

    async def work() -> None:
        nonlocal most
        if not admission.try_enter("a"):
            await admission.enter("a", loop.time() + rng.choice([0.0, 60.0]))
        try:
            most = max(most, admission.under_way)
            await asyncio.sleep(0)
        finally:
            admission.leave("a")

    tasks = [asyncio.create_task(work()) for _ in range(400)]
    while not all(t.done() for t in tasks):
        rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert (admission.under_way, admission.waiting) == (0, 0)
    assert most == 3
