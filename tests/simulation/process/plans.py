"""What the simulated worlds are made of, as data: a seed takes one plan after the other.

``PLANS`` have one or a few kinds of faults each. ``TOGETHER`` have what is seldom thought of together: partitions
split and moved and caught up by snapshots, while records run out, locks are fenced, policies change, the state is
written at any moment and etcd goes away at the worst; seeds from ``TOGETHER_FROM`` on take these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """``faults``: name (a method of Faults) -> mean ms between two. ``workloads``: name (a method of
    Workloads) -> how many of it. ``keys``: in each partition at the start. ``load``: how slow the processors are.
    ``settings``: of the nodes. ``default_ttl_s``: what the policies that are given now and then have records live for."""

    faults: dict[str, int] = field(default_factory=dict)
    workloads: dict[str, int] = field(default_factory=lambda: {"registers": 2})
    cells: int = 1
    nodes: int = 3
    partitions: int = 2
    keys: int = 2
    max_delay_ms: int = 2
    slow_share: float = 0.0
    max_sync_ms: int = 6
    drift_ppm: int = 900
    load: float = 1.0
    seconds: float = 5.0
    settings: dict[str, Any] = field(default_factory=dict)
    default_ttl_s: float = 0.0


#: grants that outlast the loss of a leader: R4 and R8 are all that keeps two from serving
LONG_GRANTS = {"grant_ms": 900, "suspect_after_ms": 1000, "lease_ttl_s": 1.5}

PLANS: dict[str, Plan] = {
    "everything": Plan(
        faults={
            "kill": 2500,
            "power": 4000,
            "tear": 3000,
            "fail_sync": 6000,
            "full_disk": 8000,
            "slow_disk": 2500,
            "pause": 2500,
            "stutter": 2000,
            "cut": 2500,
            "clog": 1000,
            "split": 3000,
            "reset": 2000,
            "etcd": 3000,
            "hand_over": 2500,
        },
        workloads={"registers": 2, "readers": 1, "counting": 1, "stale_readers": 1, "watchers": 2},
        slow_share=0.02,
    ),
    "kills": Plan(faults={"kill": 600}, workloads={"registers": 1, "counting": 2}),
    "no power": Plan(faults={"power": 900, "tear": 500, "fail_sync": 2500}, max_sync_ms=20),
    "torn writes": Plan(
        faults={"tear": 300, "fail_sync": 2500, "full_disk": 4000, "slow_disk": 1200}, max_sync_ms=20
    ),
    "pauses": Plan(
        faults={"pause": 400, "stutter": 800, "etcd": 3000},
        workloads={"registers": 2, "readers": 1},
        drift_ppm=990,
    ),
    "cuts": Plan(faults={"cut": 350, "reset": 1500}, workloads={"registers": 2, "readers": 1, "counting": 1}),
    "bad network": Plan(
        faults={"reset": 150, "cut": 3000, "clog": 400},
        workloads={"registers": 2, "counting": 2},
        slow_share=0.15,
        max_delay_ms=15,
    ),
    "no etcd": Plan(faults={"etcd": 700, "kill": 900, "compact_etcd": 800}),
    "hand-overs": Plan(faults={"hand_over": 120, "pause": 1500, "stutter": 500}, load=4.0),
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
    "divisions": Plan(
        faults={"divide": 700}, workloads={"registers": 2, "readers": 1, "counting": 3}, partitions=1
    ),
    "divisions and deaths": Plan(
        faults={"divide": 600, "kill": 900, "cut": 1500, "etcd": 2500, "pause": 2000, "power": 3500},
        workloads={"registers": 2, "counting": 3},
        partitions=1,
    ),
    "divisions, moves, long grants": Plan(
        faults={"divide": 700, "move": 900, "split": 900, "depose": 1500, "hand_over": 900},
        workloads={"registers": 2, "readers": 1, "counting": 2},
        nodes=5,
        partitions=1,
        settings=LONG_GRANTS,
        seconds=6.0,
    ),
    "five": Plan(faults={"kill": 700, "cut": 900, "pause": 1500}, nodes=5),
    "split, long grants": Plan(
        faults={"split": 600, "depose": 900},
        workloads={"registers": 2, "readers": 2},
        settings=LONG_GRANTS,
    ),
    "late requests": Plan(
        faults={"clog": 120, "hand_over": 200, "reset": 150},
        workloads={"registers": 1, "counting": 3},
    ),
    "moves, split": Plan(faults={"move": 300, "split": 500, "pause": 700}, nodes=6, partitions=4),
    # what a leader acknowledged last is known to nobody for long, and the next one takes long to begin
    "stale reads": Plan(
        faults={"kill": 600, "pause": 1500, "cut": 2000, "split": 2500, "hand_over": 3000},
        workloads={"registers": 2, "stale_readers": 2},
        max_sync_ms=150,
    ),
    "stale reads, moves": Plan(
        faults={"move": 500, "divide": 900, "kill": 2500, "split": 1500, "slow_disk": 2000},
        workloads={"registers": 2, "stale_readers": 2},
        cells=2,
        partitions=1,
        keys=8,
    ),
    # watches are behind when their partition is split, and etcd is away then
    "watches": Plan(
        faults={
            "divide_unseen": 600,
            "dam": 400,
            "etcd": 2000,
            "kill": 2500,
            "move": 1500,
            "hand_over": 1200,
            "reset": 900,
        },
        workloads={"registers": 2, "watchers": 5},
        nodes=5,
        partitions=1,
        keys=8,
    ),
}

#: whole disks are lost (R13): the plans of fresh seeds too, and not of those that are pinned
LOSSES: dict[str, Plan] = {
    "old copies": Plan(
        faults={"restore_old_copy": 700, "kill": 2500, "hand_over": 1500, "etcd": 2000},
        workloads={"registers": 2, "counting": 2},
        seconds=6.0,
    ),
    "wiped, cloned": Plan(
        faults={"wipe": 900, "clone": 900, "kill": 1500, "reset": 1500, "hand_over": 1500},
        workloads={"registers": 2, "counting": 1},
        seconds=6.0,
    ),
}

#: etcd loses its records, and an operator rebuilds them (R13)
CONTROL_LOSSES: dict[str, Plan] = {
    "etcd lost": Plan(
        faults={"lose_etcd": 1500, "move": 700},
        workloads={"registers": 2, "counting": 1},
        nodes=5,
        seconds=6.0,
    ),
    "etcd lost, deaths": Plan(
        faults={"lose_etcd": 1800, "move": 900, "kill": 1200, "hand_over": 1500, "cut": 2500},
        workloads={"registers": 2, "counting": 1},
        nodes=4,
        seconds=6.0,
    ),
    "etcd lost, divisions": Plan(
        faults={"lose_etcd": 1200, "divide": 500, "kill": 1500, "pause": 2500},
        workloads={"registers": 2, "counting": 1},
        partitions=1,
        seconds=6.0,
    ),
}

TOGETHER_FROM = 1 << 41
EVERYTHING = {"mixed": 2, "registers": 1, "counting": 1}

TOGETHER: dict[str, Plan] = {
    "all together": Plan(
        faults={
            "divide": 900,
            "move": 800,
            "hand_over": 1200,
            "policy": 500,
            "flush": 120,
            "kill": 1500,
            "cut": 2000,
            "pause": 2500,
            "trap_etcd": 1200,
            "power": 4000,
        },
        workloads=EVERYTHING,
        nodes=4,
        default_ttl_s=0.9,
    ),
    # one partition is written little and falls behind, since the others roll the log: its stragglers get snapshots
    "logs roll on": Plan(
        faults={"divide": 700, "kill": 1200, "cut": 900, "flush": 150, "pause": 2500},
        workloads={"rolling": 2, "mixed": 1, "counting": 1},
        nodes=4,
        partitions=4,
        seconds=6.0,
    ),
    "logs roll on, moves": Plan(
        faults={"divide": 900, "move": 700, "cut": 900, "kill": 1500, "flush": 150, "trap_etcd": 1500},
        workloads={"rolling": 2, "mixed": 1, "counting": 1},
        nodes=5,
        partitions=4,
        seconds=6.0,
    ),
    "etcd at the worst": Plan(
        faults={"divide": 600, "move": 700, "trap_etcd": 500, "flush": 200},
        workloads=EVERYTHING,
        nodes=4,
        partitions=2,
    ),
    "flushes": Plan(
        faults={"flush": 25, "divide": 500, "kill": 500, "tear": 500, "power": 1500},
        workloads=EVERYTHING,
        partitions=1,
        max_sync_ms=20,
    ),
    "leases, locks, policies": Plan(
        faults={"hand_over": 250, "pause": 800, "policy": 250, "kill": 1200, "stutter": 800, "split": 1500},
        workloads={"mixed": 2, "lookers": 2},
        settings=LONG_GRANTS,
        default_ttl_s=0.9,
    ),
    "between cells": Plan(
        faults={"move": 600, "divide": 900, "trap_etcd": 900, "kill": 1500, "flush": 200, "policy": 700},
        workloads=EVERYTHING,
        cells=2,
        default_ttl_s=0.9,
    ),
}
