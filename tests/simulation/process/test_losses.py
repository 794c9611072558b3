"""Nodes that return with an old copy of their disk, with nothing, or twice, under load (R13): nothing that was
acknowledged is lost, whoever should take no part takes none, and a new store is filled by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from metastore.core.electing import PartitionReplica
from metastore.core.messages import Lineage
from metastore.node import node as node_module
from metastore.node.control import registration
from metastore.node.identity import Verdict
from tests.simulation.process.plans import LOSSES
from tests.simulation.process.world import World
from tests.simulation.violation import Violation

SEEDS = 6

Patch = Callable[[pytest.MonkeyPatch], None]


def play(plan: str, seed: int) -> World:
    return World(seed, LOSSES[plan], name=plan).play()


@pytest.mark.parametrize("plan", LOSSES)
def test_nothing_is_lost_in_one_run(plan: str) -> None:
    """What every commit plays of what follows."""
    assert play(plan, 0).losses.seen


@pytest.mark.nightly
@pytest.mark.parametrize("plan", LOSSES)
def test_nothing_is_lost(plan: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        world = play(plan, seed)
        seen.update(world.losses.seen)
        assert sum(len(t.history) for _, t in world.workloads.traffics) > 50, "no work done"
    wanted = {"old copies": {"an old copy"}, "wiped, cloned": {"wiped", "cloned", "clone refused"}}[plan]
    assert set(seen) == wanted
    assert min(seen.values()) > 1, seen


def generations_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Neither etcd's record nor what peers remember says anything of an old copy; nor does its leader notice that
    it lacks something (which finds many, but not those whose leader is gone)."""
    patch.setattr(registration, "judge", lambda *_: Verdict("good"))
    patch.setattr(node_module, "judge_peer", lambda *_: None)
    patch.setattr(PartitionReplica, "on_recall", lambda *_: None)


def generations_are_numbers_only(patch: pytest.MonkeyPatch) -> None:
    """Which processes ran on a store is not looked at: an old copy passes what is known of its store once it has
    been started once or twice."""
    patch.setattr(Lineage, "has", lambda self, seen: self.generation >= seen.generation)
    patch.setattr(PartitionReplica, "on_recall", lambda *_: None)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("mutate", "pinned"), [(generations_are_not_compared, 12), (generations_are_numbers_only, 0)]
)
def test_a_planted_bug_is_seen_as_lost_writes(
    mutate: Patch, pinned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    for seed in [pinned, *range(40)]:
        try:
            # an old copy that nobody refuses is never discarded: what was promised must be broken before that
            play("old copies", seed)
        except Violation as e:
            text = str(e).splitlines()[0]
            print(f"seed {seed}: {text[:200]}")
            if any(broken in text for broken in ("I3:", "I5:", "hold different states")):
                return
    pytest.fail(f"{mutate.__name__} was not seen")
