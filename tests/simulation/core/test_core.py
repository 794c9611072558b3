"""The core under thousands of seeded schedules; invariants I1 to I8 checked after every step.

``make sim SEED=17`` replays one schedule; ``make soak`` runs fresh ones.
"""

from __future__ import annotations

import pytest

from tests.simulation.core.plans import PLANS
from tests.simulation.core.world import world_of
from tests.simulation.seeds import fixed

#: of them the first so many at every commit
FIXED, COMMIT = 200, 50


@pytest.mark.parametrize("seed", fixed(FIXED, COMMIT))
def test_fixed_seeds(seed: int) -> None:
    world = world_of(seed).play()
    assert any(op.outcome == "ok" and op.kind == "write" for op in world.checks.history), "no work done"


def test_a_run_stops_where_it_is_told() -> None:
    assert world_of(3, steps=1000).play().done == 1000


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in (3, 4):
        a, b = world_of(seed).play(), world_of(seed).play()
        assert a.digest.digest() == b.digest.digest()
        assert a.story == b.story
        assert a.done == b.done
    assert world_of(5).play().digest.digest() != world_of(13).play().digest.digest()


@pytest.mark.parametrize("kind", range(len(PLANS)), ids=list(PLANS))
def test_every_kind_of_world_elects_and_serves(kind: int) -> None:
    """The faults really happen: leaders change, and work is done between them."""
    terms, writes = 0, 0
    for seed in range(kind, kind + 3 * len(PLANS), len(PLANS)):
        world = world_of(seed).play()
        terms += len(world.checks.owners)
        writes += sum(1 for op in world.checks.history if op.kind == "write" and op.outcome == "ok")
    assert terms > 6
    assert writes > 100
