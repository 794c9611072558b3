"""etcd is wiped, set back and replaced under load, and rebuilt from the stores (R13): no write is lost, no epoch has two owners,
and moves, splits and elections go on after it."""

from __future__ import annotations

from collections import Counter

import pytest

from metastore.layout import term_of
from tests.simulation.process.plans import CONTROL_LOSSES
from tests.simulation.process.world import World

SEEDS = 3


@pytest.mark.parametrize("plan", CONTROL_LOSSES)
def test_it_is_rebuilt_and_nothing_is_lost(plan: str) -> None:
    seen: Counter[str] = Counter()
    rebuilt = 0
    for seed in range(SEEDS):
        world = World(seed, CONTROL_LOSSES[plan], name=plan).play()
        seen.update(world.control_losses.seen)
        rebuilt += world.control_losses.rebuilt
        assert sum(len(t.history) for _, t in world.workloads.traffics) > 50, "no work done"
        for p in world.partitions():
            leader = next(h for h in world.hosts(p) if h.replica.role == "active")
            assert term_of(world.config(p).epoch) == term_of(leader.replica.sealed_epoch)
    assert rebuilt >= seen.total() > 2, (seen, rebuilt)
