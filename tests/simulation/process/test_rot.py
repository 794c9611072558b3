"""Rot in the state of one machine: nobody ever sees it, and its copies are rebuilt from the others (R14)."""

from __future__ import annotations

import pytest

from tests.simulation.process.plans import Plan
from tests.simulation.process.world import World

PLANS = {
    "rot": Plan(faults={"rot": 250}, workloads={"registers": 2, "readers": 1, "counting": 1}),
    "rot and deaths": Plan(
        faults={"rot": 400, "kill": 1500, "power": 4000, "pause": 2500, "hand_over": 1500},
        workloads={"registers": 2, "readers": 1, "counting": 2},
    ),
    "log rot": Plan(
        faults={"rot_log": 150, "hand_over": 900, "cut": 700, "pause": 1200},
        workloads={"registers": 2, "readers": 1, "counting": 2},
    ),
    "rot and divisions": Plan(
        faults={"rot": 400, "divide": 900, "kill": 2500},
        workloads={"registers": 2, "counting": 3},
        partitions=1,
    ),
}


@pytest.mark.parametrize("seeds", [(1,), pytest.param((0, 1), marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", PLANS)
def test_what_rots_is_rebuilt(name: str, seeds: tuple[int, ...]) -> None:
    rebuilt = 0
    for seed in seeds:
        world = World(seed, PLANS[name], name=name).play()
        found = "scrub_damage_total" if name == "log rot" else "rebuilt_total"
        rebuilt += sum(
            {**q.node.store.stats(), "rebuilt_total": q.node.rebuild.rebuilt}[found]
            for q in world.processes.values()
        )
        assert sum(len(t.history) for _, t in world.workloads.traffics) > 50, "no work done"
    assert rebuilt
