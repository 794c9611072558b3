"""etcd is wiped, set back and replaced under load, and rebuilt from the stores (R13): no write is lost, no epoch has two owners,
and moves, splits and elections go on after it."""

from __future__ import annotations

from collections import Counter

import pytest

from cellctl import rebuild
from metastore.layout import term_of
from tests.simulation.process.plans import CONTROL_LOSSES
from tests.simulation.process.world import World
from tests.simulation.violation import Violation

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


def test_terms_that_were_sealed_before_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the new terms are not above the sealed ones."""
    monkeypatch.setattr(rebuild, "TERMS_AHEAD", 0)
    for seed in range(20):
        try:
            World(seed, CONTROL_LOSSES["etcd lost, deaths"], name="etcd lost, deaths").play()
        except Violation as e:
            print(f"seed {seed}: {str(e).splitlines()[0][:200]}")
            return
    pytest.fail("terms that were sealed before were not seen")
