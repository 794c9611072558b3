"""Whole nodes under plans of what is seldom thought of together, judged as all others are; and bugs of what only
these plans have: leases, locks and their fences. A planted bug counts as seen only when the promise that it breaks is
named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count, islice
from typing import Any

import pytest

from metastore.core.fences import FENCE_PREFIX, FLOOR_PREFIX, Fences
from metastore.core.machine import Machine
from metastore.partition.expiry import Deadlines
from tests.simulation.process.plans import TOGETHER, TOGETHER_FROM
from tests.simulation.process.world import plan_of, world_of
from tests.simulation.seeds import fixed
from tests.simulation.violation import Violation

EACH = 3


@pytest.mark.parametrize("number", fixed(EACH * len(TOGETHER), len(TOGETHER)))
def test_fixed_seeds(number: int) -> None:
    world_of(TOGETHER_FROM + number).play()


@pytest.mark.nightly
def test_it_happens_together() -> None:
    """Partitions are split and moved, snapshots go over, fences refuse, records run out, policies refuse, and etcd goes
    in the middle of it."""
    seen: Counter[str] = Counter()
    for number in range(len(TOGETHER)):
        world = world_of(TOGETHER_FROM + number).play()
        seen["snapshots"] += world.watcher.snapshots
        seen["halves"] += len(world.partitions()) - world.plan.partitions
        for _, _, line in world.story:
            seen["moves"] += "is to move to" in line
            seen["traps"] += "in the middle of something" in line
        for _, traffic in world.workloads.traffics:
            seen.update(f"{op.kind} {op.outcome}" for op in traffic.history)
            seen.update(traffic.errors.keys())
            seen["gone"] += sum(op.kind == "touch" and op.version == 0 for op in traffic.history)
    seen["policies"] = seen["condition_required"] + seen["quota_exceeded"]
    wanted = ["snapshots", "halves", "moves", "traps", "gone", "policies"]
    wanted += ["txn ok", "list ok", "add ok", "put fenced", "add fenced"]
    assert all(seen[name] for name in wanted), {name: seen[name] for name in wanted}


Patch = Callable[[pytest.MonkeyPatch], None]


def touches_renew_nothing(patch: pytest.MonkeyPatch) -> None:
    """R15: a touch is answered, and the record's time goes on."""
    patch.setattr(Deadlines, "renew", lambda self, now, storage_key, timed: None)


def locks_raise_nothing(patch: pytest.MonkeyPatch) -> None:
    """R20: a lock is taken, and its former holder may write until the new one has."""
    patch.setattr(Fences, "take", lambda self, digest, version, raised: None)


def tokens_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    """R20: every token passes."""
    patch.setattr(Fences, "pass_by", lambda self, digest, token, raised: None)


def a_child_forgets_fences(patch: pytest.MonkeyPatch) -> None:
    """R18: the upper half begins without the fences of the partition that it was split off."""
    original = Machine.part_with

    def forgetful(self: Any, *args: Any) -> Any:
        forked = original(self, *args)
        return forked._replace(
            metadata=[r for r in forked.metadata if r[0][:1] not in (FENCE_PREFIX, FLOOR_PREFIX)]
        )

    patch.setattr(Machine, "part_with", forgetful)


#: -> the plans in which it shows soonest
PLANTED: dict[Patch, list[str]] = {
    touches_renew_nothing: ["leases, locks, policies", "etcd at the worst"],
    locks_raise_nothing: ["etcd at the worst", "between cells"],
    tokens_are_not_compared: ["etcd at the worst", "between cells"],
    a_child_forgets_fences: ["etcd at the worst", "between cells"],
}
SEEDS = 20


@pytest.mark.nightly
@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__)
def test_a_planted_bug_is_seen(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    seeds = (seed for seed in count(TOGETHER_FROM) if plan_of(seed) in PLANTED[plant])
    for seed in islice(seeds, SEEDS):
        try:
            world_of(seed).play()
        except Violation as e:
            if "I5: " in str(e):
                print(f"seen with seed {seed}: {str(e).splitlines()[0][:200]}")
                return
    pytest.fail(f"{plant.__name__} was not seen in {SEEDS} seeds")
