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


def play(plan: str, seed: int) -> World:
    world = World(seed, CONTROL_LOSSES[plan], name=plan).play()
    assert sum(len(t.history) for _, t in world.workloads.traffics) > 50, "no work done"
    for p in world.partitions():
        leader = next(h for h in world.hosts(p) if h.replica.role == "active")
        assert term_of(world.config(p).epoch) == term_of(leader.replica.sealed_epoch)
    return world


@pytest.mark.parametrize("plan", CONTROL_LOSSES)
def test_it_is_rebuilt_and_nothing_is_lost_in_one_run(plan: str) -> None:
    """What every commit plays of what follows."""
    assert play(plan, 0).control_losses.rebuilt


@pytest.mark.nightly
@pytest.mark.parametrize("plan", CONTROL_LOSSES)
def test_it_is_rebuilt_and_nothing_is_lost(plan: str) -> None:
    seen: Counter[str] = Counter()
    rebuilt = 0
    for seed in range(SEEDS):
        world = play(plan, seed)
        seen.update(world.control_losses.seen)
        rebuilt += world.control_losses.rebuilt
    assert rebuilt >= seen.total() > 2, (seen, rebuilt)


@pytest.mark.nightly
def test_terms_below_the_sealed_ones_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: nodes find that such an etcd has forgotten what they sealed, and never trust it for long."""
    monkeypatch.setattr(rebuild, "TERMS_AHEAD", -2)
    with pytest.raises(Violation, match="somebody distrusts it still"):
        World(2, CONTROL_LOSSES["etcd lost, divisions"], name="etcd lost, divisions").play()
