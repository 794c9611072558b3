"""Whole nodes and clients under seeded faults: every history is linearizable, replicas are equal
in the end, everything serves again. ``make sim SEED=…`` replays one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from metastore.client.dispatch import RequestIds
from metastore.core.machine import Machine
from metastore.core.term import Term
from metastore.node.host import PartitionHost
from metastore.node.node import Node
from metastore.storage.log import NodeLog
from metastore.storage.segments import SegmentFiles
from tests.simulation.process.loop import MS
from tests.simulation.process.plans import PLANS, world_of
from tests.simulation.process.world import Plan, Violation, World

FIXED = 33
FRESH = 11


def test_fixed_seeds() -> None:
    for seed in range(FIXED):
        world = world_of(seed).play()
        assert sum(len(t.history) for t in world.workloads.traffics) > 50, f"seed {seed}: no work done"


def test_fresh_seeds() -> None:
    first = random.SystemRandom().randrange(1 << 40)
    events = sum(world_of(seed).play().events.done for seed in range(first, first + FRESH))
    print(f"\nseeds from {first}: {events} events", file=sys.stderr)


def test_seeds_that_found_something() -> None:
    """3342: a connection to a machine without power was waited on for ever."""
    for seed in (3342,):
        world_of(seed).play()


REPLAY = """
from tests.simulation.process.plans import world_of
for seed in (0, 7, 9):
    print(world_of(seed).play().digest.hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    """Also with another order of hashes."""
    found = [
        subprocess.run(
            [sys.executable, "-c", REPLAY],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(set(found[0].split())) == 3


def test_faults_happen() -> None:
    """Leaders change, snapshots go over, processes die in the middle of a write."""
    seen = {"snapshots": 0, "terms": 0, "torn": 0, "stops": 0}
    for seed in range(len(PLANS)):
        world = world_of(seed).play()
        seen["snapshots"] += world.snapshots
        seen["terms"] += len(world.owners)
        seen["torn"] += sum("disk operation" in line for line in world.story)
        seen["stops"] += sum("stops: " in line for line in world.story)
    assert seen["terms"] > 40
    assert min(seen.values()) > 0, seen


def test_a_machine_without_power_is_found_again() -> None:
    """Nobody's packets tell the others that it went; it is dialled again all the same."""
    world = World(1, Plan(seconds=0.5))
    world.play()
    victim = world.processes["c1n3"]
    victim.die(silently=True)
    world.network.dark.add("c1n3")
    world.run(300 * MS)
    victim.restart()
    world.run(12_000 * MS)
    for process in world.processes.values():
        others = sorted(set(world.processes) - {process.name})
        assert process.node.links.connected() == others


# --- planted bugs in the code around the core ------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def sends_before_durable(patch: pytest.MonkeyPatch) -> None:
    """R1, R5: the driver does not hold messages until the log is synced."""
    original = Node._run

    def run(self: Any, effect: Any) -> None:
        original(self, effect._replace(durable=False) if hasattr(effect, "durable") else effect)

    patch.setattr(Node, "_run", run)


def syncs_nothing(patch: pytest.MonkeyPatch) -> None:
    """R14: a round is written and called durable without a sync."""

    def write(self: Any, pieces: Any) -> None:
        for segment, offset, data in pieces:
            self.files.disk.write(segment.fd, data, offset)

    patch.setattr(NodeLog, "write_pieces", write)


def goes_on_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    """R14: a failed sync is passed over."""
    original = NodeLog.round_written
    patch.setattr(NodeLog, "round_written", lambda self, error: original(self, None))


def trusts_the_cache(patch: pytest.MonkeyPatch) -> None:
    """Recovery: blocks that nothing vouches for are believed without writing them again."""
    patch.setattr(SegmentFiles, "_make_durable", lambda self, blocks: None)


def effects_a_turn_later(patch: pytest.MonkeyPatch) -> None:
    """R8: clients meet a new leader before what it adopted is applied."""
    patch.setattr(Node, "settle", Node.schedule_turn)


def no_wait(patch: pytest.MonkeyPatch) -> None:
    """R4."""
    patch.setattr(Term, "grants_passed", lambda self, now, settings: True)


def retries_without_dedupe(patch: pytest.MonkeyPatch) -> None:
    """R7: the client makes a new request id for each attempt's retry."""
    patch.setattr(Machine, "_known", lambda self, client, seq, stamp: None)


def answers_lost_writes_with_failure(patch: pytest.MonkeyPatch) -> None:
    """R7: a leader that loses its leadership says that nothing happened."""
    import metastore.node.host as host
    from metastore.errors import ConditionFailed

    class Wrong(ConditionFailed):
        def __init__(self, message: str, **detail: Any) -> None:
            super().__init__(message, version=0, index=0)

    patch.setattr(host, "OutcomeUnknown", Wrong)


def forgets_what_it_granted(patch: pytest.MonkeyPatch) -> None:
    """R8: the largest grant is not durable, and a restarted node seals at once."""
    original = Node.start

    def start(self: Any) -> None:
        self.core.quiet_until_ns = 0
        original(self)

    patch.setattr(Node, "start", start)


def reads_whatever_it_has(patch: pytest.MonkeyPatch) -> None:
    """R8: linearizable reads without grants."""

    def read(self: Any, connection: Any, client: bytes, op: list[Any], deadline: int) -> None:
        connection.answer(*self.read(connection, op, 0))

    patch.setattr(PartitionHost, "read_linearizable", read)


def finishes_ids_early(patch: pytest.MonkeyPatch) -> None:
    """R7: the client says that ids are finished which it may still send again."""
    patch.setattr(RequestIds, "floor", lambda self, partition: self._seq + 1)


MUTATIONS: dict[Patch, list[str]] = {
    sends_before_durable: ["no power", "torn writes"],
    syncs_nothing: ["no power"],
    goes_on_after_a_failed_sync: ["torn writes", "everything"],
    trusts_the_cache: ["torn writes", "everything"],
    effects_a_turn_later: ["hand-overs", "cuts"],
    no_wait: ["cuts", "pauses"],
    retries_without_dedupe: ["bad network"],
    answers_lost_writes_with_failure: ["cuts", "hand-overs", "pauses"],
    reads_whatever_it_has: ["cuts"],
    finishes_ids_early: ["bad network", "cuts"],
}
SEEDS = 60


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__)
def test_a_planted_bug_is_seen(mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    names = list(PLANS)
    for round_ in range(SEEDS):
        for name in MUTATIONS[mutate]:
            seed = round_ * len(names) + names.index(name)
            try:
                world_of(seed).play()
            except Violation as e:
                print(f"seen with seed {seed}: {str(e).splitlines()[0][:200]}")
                return
    pytest.fail(f"{mutate.__name__} was not seen in {SEEDS} seeds")
