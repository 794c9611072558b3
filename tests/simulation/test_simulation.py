"""The core under thousands of seeded schedules; invariants I1 to I8 checked after every step.

``make sim SEED=17`` replays one schedule; ``make sim COUNT=5000`` runs so many fresh ones.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from metastore.core.settings import MS
from tests.simulation.world import Faults, World

FAULTY_NS = 5_000 * MS
FIXED = 160
FRESH = 40

KINDS = [
    ("everything", Faults()),
    ("calm network, crashes", Faults(loss=0, duplicate=0, slow=0, crash_every_ns=500 * MS, cut_every_ns=0)),
    ("bad network", Faults(loss=0.15, duplicate=0.1, slow=0.3, crash_every_ns=4000 * MS)),
    ("pauses and drift", Faults(pause_every_ns=400 * MS, crash_every_ns=0, drift_ppm=1990)),
    ("cuts", Faults(cut_every_ns=300 * MS, crash_every_ns=3000 * MS)),
    ("no etcd for long", Faults(etcd_every_ns=800 * MS, crash_every_ns=700 * MS)),
    (
        "slow disks, snapshots",
        Faults(sync_max_ns=150 * MS, compact_every_ns=100 * MS, crash_every_ns=800 * MS),
    ),
    (
        "resets, long grants",
        Faults(
            reset_every_ns=700 * MS,
            depose_every_ns=700 * MS,
            crash_every_ns=1000 * MS,
            etcd_every_ns=0,
            cut_every_ns=0,
            max_delay_ns=4 * MS,
            grant_ns=800 * MS,
        ),
    ),
    ("hand-offs", Faults(transfer_every_ns=200 * MS, pause_every_ns=800 * MS)),
]


def world_of(seed: int) -> World:
    _, faults = KINDS[seed % len(KINDS)]
    return World(seed, nodes=5 if seed % 11 == 0 else 3, faults=faults)


def run(seed: int) -> World:
    world = world_of(seed)
    world.finish(FAULTY_NS)
    return world


def test_fixed_seeds() -> None:
    for seed in range(FIXED):
        world = run(seed)
        assert any(op.outcome == "ok" and op.kind == "write" for op in world.history), (
            f"seed {seed}: no work done"
        )


def test_fresh_or_given_seeds() -> None:
    given, count = os.environ.get("SIM_SEED"), os.environ.get("SIM_COUNT")
    first = int(given) if given else random.randrange(1 << 40)
    events = 0
    for seed in range(first, first + (1 if given else int(count or FRESH))):
        events += run(seed).events
    print(f"\nseeds from {first}: {events} events", file=sys.stderr)


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in (3, 4):
        a, b = run(seed), run(seed)
        assert a.digest.digest() == b.digest.digest()
        assert a.story == b.story
        assert a.events == b.events
    assert run(5).digest.digest() != run(13).digest.digest()


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[name for name, _ in KINDS])
def test_every_kind_of_world_elects_and_serves(kind: int) -> None:
    """The faults really happen: leaders change, and work is done between them."""
    terms, writes = 0, 0
    for seed in range(kind, kind + 3 * len(KINDS), len(KINDS)):
        world = run(seed)
        terms += len(world.owners)
        writes += sum(1 for op in world.history if op.kind == "write" and op.outcome == "ok")
    assert terms > 6
    assert writes > 100
