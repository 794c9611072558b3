"""Stale reads and watches in the simulation: there are many of each kind, and each planted bug of theirs is seen by the
very judge that it is planted for."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core.replica import Replica
from metastore.history import ResumePoint
from metastore.operations import LIST, STALE
from metastore.partition.reads import Reads
from metastore.partition.watches import PartitionWatches
from tests.simulation.planted import a_leader_to_be_is_new, a_sign_of_life_is_proof
from tests.simulation.planting import Patch, Plant, Planter, must_be_seen, plant
from tests.simulation.process.plans import PLANS
from tests.simulation.process.world import World, world_of
from tests.simulation.seeds import seeds_of


def plays(*plans: str, count: int) -> list[World]:
    return [world_of(seed).play() for seed in seeds_of(plans, PLANS, count)]


@pytest.mark.nightly
def test_stale_reads_happen() -> None:
    """Old ones and new ones, from all bounds; at leaders and at others, with records and without."""
    found = [
        read
        for world in plays("stale reads", "stale reads, moves", count=4)
        for _, reader in world.workloads.stale
        for read in reader.found
    ]
    ages = [read.age_ms for read in found]
    assert len(found) > 400
    assert min(sum(a == 0 for a in ages), sum(a is not None and a > 20 for a in ages)) > 40
    assert min(sum(r.value == "" for r in found), sum(r.at_least is not None for r in found)) > 20
    listed = [r for r in found if r.listed and r.age_ms != 0]
    assert min(sum(r.value == "" for r in listed), sum(r.value != "" for r in listed)) > 20


@pytest.mark.nightly
def test_watches_happen() -> None:
    """They are many, are gone and go on, lose what is not kept, and live through splits."""
    worlds = plays("watches", count=3)
    watches = [watch for world in worlds for watch in world.workloads.watches]
    assert sum(w.told for w in watches) > 2000
    assert sum(w.resumed for w in watches) > 20
    assert sum(len(w.sessions) for w in watches) > len(watches), "none was ever told that it lost something"
    assert sum(len(world.partitions()) for world in worlds) > 6
    ends = [len(w.sessions[-1].end) for w in watches]
    assert max(ends) > 2, "no position has a version for each half"


def what_comes_late_is_new(patch: Planter) -> None:
    """R8: the age counts from the receipt of a heartbeat, not from its sending."""
    grant = Replica.grant

    def granted(
        self: Any, now: int, src: Any, epoch: int, says: int, commit: int, echo: int, grant_ns: int
    ) -> bool:
        return grant(self, now, src, epoch, says, commit, now, grant_ns)

    patch.setattr(Replica, "grant", granted)


def who_is_behind_is_new(patch: Planter) -> None:
    """R8: whether this replica has what the leader has committed is not asked."""
    grant = Replica.grant

    def granted(
        self: Any, now: int, src: Any, epoch: int, says: int, commit: int, echo: int, grant_ns: int
    ) -> bool:
        return grant(self, now, src, epoch, says, min(commit, self.commit_index), echo, grant_ns)

    patch.setattr(Replica, "grant", granted)


def bounds_are_not_kept(patch: Planter) -> None:
    """R8: every age is within every bound."""
    read_local = Reads.local

    def read(self: Any, connection: Any, op: list[Any]) -> None:
        at = 5 if op[1] == 1 else 8
        asked = op[at] if op[at - 1] != 1 else None
        read_local(self, connection, [*op[:at], asked, *op[at + 1 :]])

    patch.setattr(Reads, "local", read)


def versions_are_not_waited_for(patch: Planter) -> None:
    """A replica answers what was to be at a version, whatever it is at."""
    read_local = Reads.local

    def read(self: Any, connection: Any, op: list[Any]) -> None:
        at = 5 if op[1] == 1 else 8
        asked = 0 if op[at - 1] == 2 else op[at]
        read_local(self, connection, [*op[:at], asked, *op[at + 1 :]])

    patch.setattr(Reads, "local", read)


def listings_are_new(patch: Planter) -> None:
    """R8: the age of what a replica lists is said to be nothing."""
    list_rows = Reads.list_rows

    def listed(self: Any, op: list[Any], age_ms: int | None) -> tuple[list[Any], int]:
        return list_rows(self, op, age_ms and 0)

    patch.setattr(Reads, "list_rows", listed)


def listings_are_of_any_age(patch: Planter) -> None:
    """R8: how old a listing may be is not asked."""
    read_local = Reads.local

    def read(self: Any, connection: Any, op: list[Any]) -> None:
        asked = [*op[:8], None, *op[9:]] if op[1] == LIST and op[7] == STALE else op
        read_local(self, connection, asked)

    patch.setattr(Reads, "local", read)


def the_parents_version_is_the_childs(patch: Planter) -> None:
    """R18: a watch that is sent on is told the latest version of the lower half."""
    send_on = PartitionWatches._send_on

    def sent(self: Any, watch: Any) -> None:
        watch.version = self.state.machine.last_version
        send_on(self, watch)

    patch.setattr(PartitionWatches, "_send_on", sent)


def resumes_too_late(patch: Planter) -> None:
    """A watch goes on one entry behind the one that it has not seen."""
    seek = PartitionWatches._seek

    def sought(self: Any, watch: Any, after: int) -> Any:
        error = seek(self, watch, ResumePoint(after))
        watch.index += error is None and watch.index < self.host.applied
        return error

    patch.setattr(PartitionWatches, "_seek", sought)


def forgets_who_is_slow(patch: Planter) -> None:
    """What an entry changed is not told to a watch whose connection is full then, and never again."""
    go_live = PartitionWatches._go_live

    def live(self: Any, watch: Any) -> None:
        watch.version = max(watch.version, self.state.machine.last_version)
        go_live(self, watch)

    def feed(self: Any, watch: Any) -> bool:
        del self._behind[watch]
        watch.index = self.host.applied
        live(self, watch)
        return False

    patch.setattr(PartitionWatches, "_feed", feed)


def what_is_gone_is_passed_over(patch: Planter) -> None:
    """Who comes back is told what comes from now on."""

    def sought(self: Any, watch: Any, after: int) -> None:
        watch.index, watch.version = self.state.store.applied, self.state.machine.last_version

    patch.setattr(PartitionWatches, "_seek", sought)


#: the judge that has to see it, a seed that shows it now, the plans in which it shows soonest
MUTATIONS: dict[Patch, Plant] = {
    a_sign_of_life_is_proof: plant("stale", 261, "stale reads"),
    what_comes_late_is_new: plant("stale", 21, "stale reads"),
    who_is_behind_is_new: plant("stale", 21, "stale reads"),
    a_leader_to_be_is_new: plant("stale", 117, "stale reads"),
    bounds_are_not_kept: plant("stale", 21, "stale reads"),
    versions_are_not_waited_for: plant("stale", 21, "stale reads"),
    listings_are_new: plant("stale", 21, "stale reads"),
    listings_are_of_any_age: plant("stale", 21, "stale reads"),
    the_parents_version_is_the_childs: plant("watch", 23, "watches"),
    resumes_too_late: plant("watch", 23, "watches"),
    forgets_who_is_slow: plant("watch", 23, "watches"),
    what_is_gone_is_passed_over: plant("watch", 23, "watches"),
}
SEEDS = 40


@pytest.mark.nightly
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__)
def test_a_planted_bug_is_seen(mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = MUTATIONS[mutate]
    seeds = seeds_of(planted.plans, PLANS, SEEDS)
    must_be_seen(mutate, planted, monkeypatch, seeds, lambda seed: world_of(seed).play())
