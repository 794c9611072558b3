"""What the simulated worlds are made of, as data: a seed takes one plan after the other."""

from __future__ import annotations

from tests.simulation.process.world import Plan, World

PLANS: dict[str, Plan] = {
    "everything": Plan(
        faults={
            "kill": 2500,
            "power": 4000,
            "tear": 3000,
            "fail_sync": 6000,
            "pause": 2500,
            "cut": 2500,
            "reset": 2000,
            "etcd": 3000,
            "hand_over": 2500,
        },
        workloads={"registers": 2, "counting": 1},
        slow_share=0.02,
    ),
    "kills": Plan(faults={"kill": 600}, workloads={"registers": 1, "counting": 2}),
    "no power": Plan(faults={"power": 1200, "tear": 1500}),
    "torn writes": Plan(faults={"tear": 300, "fail_sync": 2500}, max_sync_ms=20),
    "pauses": Plan(faults={"pause": 400, "etcd": 3000}, drift_ppm=990),
    "cuts": Plan(faults={"cut": 350, "reset": 1500}, workloads={"registers": 2, "counting": 1}),
    "bad network": Plan(faults={"reset": 150, "cut": 3000}, slow_share=0.15, max_delay_ms=15),
    "no etcd": Plan(faults={"etcd": 700, "kill": 900, "compact_etcd": 800}),
    "hand-overs": Plan(faults={"hand_over": 120, "pause": 1500}),
    "many": Plan(
        faults={"kill": 900, "pause": 1500, "cut": 1200, "etcd": 3000}, cells=2, partitions=8, seconds=4.0
    ),
    "moves": Plan(faults={"move": 500}, nodes=5),
    "moves between cells": Plan(faults={"move": 700}, cells=2),
    "moves and deaths": Plan(
        faults={"move": 400, "kill": 900, "cut": 1500, "etcd": 2500, "pause": 2000}, nodes=5
    ),
    "moves between cells and deaths": Plan(
        faults={"move": 500, "kill": 1200, "etcd": 2500, "reset": 1500, "power": 3000}, cells=2
    ),
    "five": Plan(faults={"kill": 700, "cut": 900, "pause": 1500}, nodes=5),
}


def world_of(seed: int, steps: int = 0) -> World:
    """The world of a seed."""
    return World(seed, list(PLANS.values())[seed % len(PLANS)], steps)
