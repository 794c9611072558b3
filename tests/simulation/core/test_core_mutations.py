"""Each of these weakenings of a rule must be seen by the simulation: a check that cannot fail
checks nothing."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core.leading import LeadingReplica
from metastore.core.logindex import LogIndex
from metastore.core.proposals import Proposals
from metastore.core.replica import ACTIVE, Replica
from metastore.core.term import Term
from metastore.history import LastSeenIndex
from tests.simulation.core import node as node_module
from tests.simulation.core.plans import PLANS
from tests.simulation.core.world import world_of
from tests.simulation.planted import a_leader_to_be_is_new, a_sign_of_life_is_proof
from tests.simulation.planting import Patch, Plant, Planter, must_be_seen, plant
from tests.simulation.seeds import seeds_of

#: how many are tried of the plans in which a bug shows
SEEDS = 200


def skip_the_wait(patch: Planter) -> None:
    """R4: activate without waiting for older grants."""
    patch.setattr(Term, "grants_passed", lambda self, now, settings: True)


def forget_the_fence(patch: Planter) -> None:
    """R1: act on messages of an old epoch."""
    patch.setattr(Replica, "obeys", lambda self, now, src, epoch: True)


def read_without_grants(patch: Planter) -> None:
    """R8: an active leader reads whatever it holds."""
    patch.setattr(LeadingReplica, "can_read", lambda self, now: self.role == ACTIVE)


def count_before_durable(patch: Planter) -> None:
    """R1, R5, R6: answers leave before what they say is synced."""
    original = node_module.Node.effect

    def effect(self: Any, e: Any) -> None:
        original(self, e._replace(durable=False) if isinstance(e, fx.Send) else e)

    patch.setattr(node_module.Node, "effect", effect)


def no_remaining_grant(patch: Planter) -> None:
    """R3: a replica answers that it has given no grants."""
    patch.setattr(Replica, "remaining_grant_ns", lambda self, now, owner, resigned: 0)


def restart_forgets_grants(patch: Planter) -> None:
    """R8: a restarted replica answers SEAL at once."""
    original = node_module.Node.start

    def start(self: Any) -> None:
        self.disk.grant_given_ns = 0
        original(self)

    patch.setattr(node_module.Node, "start", start)


def adopt_own_log(patch: Planter) -> None:
    """R3: the owner keeps its own log instead of the highest."""
    patch.setattr(Term, "best_answer", lambda self: self.me)


def seal_without_quorum(patch: Planter) -> None:
    """R3: one's own answer is enough."""
    patch.setattr(Term, "sealed_quorum", lambda self: self.me in self.answers)


def commit_by_one(patch: Planter) -> None:
    """R6: the leader's own copy commits."""
    patch.setattr(Term, "committed_index", lambda self: self.progress[self.me].match)


def leader_starts_at_its_end(patch: Planter) -> None:
    """Not a weakening: the leader has to back up by what followers answer (R5)."""
    original = LeadingReplica.start_replication

    def start_replication(self: Any, now: int, node: str, position: tuple[int, int]) -> None:
        original(self, now, node, self.log.last_position())

    patch.setattr(LeadingReplica, "start_replication", start_replication)


def match_by_index_only(patch: Planter) -> None:
    """R5: prev is compared by index, not by epoch. (It is a second net: SEAL's answers say where
    logs part, so the leader is made to forget them here.)"""
    leader_starts_at_its_end(patch)
    original = Replica.on_append

    def on_append(self: Any, now: int, src: Any, msg: Any) -> None:
        log = self.log
        if log.base_index <= msg.prev_index <= log.last_index:
            msg = msg._replace(prev_epoch=log.epoch_at(msg.prev_index))
        original(self, now, src, msg)

    patch.setattr(Replica, "on_append", on_append)


def no_dedupe(patch: Planter) -> None:
    """R7: a retry is executed again."""
    patch.setattr(Proposals, "_known", lambda self, client, seq, floor, last_seen: None)


def dedupe_committed_only(patch: Planter) -> None:
    """R7: a retry of what is proposed and not committed is executed again."""
    original = Proposals._known

    def known(self: Any, client: bytes, seq: int, floor: int, last_seen: int) -> Any:
        found = original(self, client, seq, floor, LastSeenIndex(last_seen))
        return None if found is not None and found.at else found

    patch.setattr(Proposals, "_known", known)


def reuse_the_epoch(patch: Planter) -> None:
    """R12: a restarted owner goes on under the same epoch."""
    from metastore.core.electing import PartitionReplica

    original = LeadingReplica.begin_term

    def begin_term(self: Any, now: int, epoch: int, config: Any, reason: str, resigned: int = 0) -> None:
        if "R12" in reason:
            epoch -= 1
            self.sealed_epoch -= 1
        original(self, now, epoch, config, reason, resigned)

    patch.setattr(PartitionReplica, "begin_term", begin_term)


def resign_and_read_on(patch: Planter) -> None:
    """R11: a leader that resigned goes on serving under its epoch."""
    original = LeadingReplica.continue_handoff

    def continue_handoff(self: Any, now: int) -> None:
        original(self, now)
        if self.role == "resigned":
            self.role = ACTIVE

    patch.setattr(LeadingReplica, "continue_handoff", continue_handoff)


def unchecked_position(patch: Planter) -> None:
    """R5: the hint of a log is its end, whatever the epochs."""
    patch.setattr(
        LogIndex, "truncate", lambda self, keep: setattr(self, "last_index", max(self.base_index, keep - 1))
    )


def snapshot_over_everything(patch: Planter) -> None:
    """R17: a late snapshot replaces a log that holds as much or more."""

    def staged(self: Any, now: int, src: Any, epoch: int, index: int, index_epoch: int) -> None:
        if self.obeys(now, src, epoch) and not self.installing:
            self.installing = True
            self.emit(fx.InstallSnapshot(self.p, index, index_epoch))
        else:
            self.emit(fx.DiscardSnapshot(self.p))

    patch.setattr(Replica, "on_snapshot_staged", staged)


def two_owners(patch: Planter) -> None:
    """R16: a replica that promised an epoch to one claimer promises it to a rival too."""
    original = Replica.on_seal

    def on_seal(self: Any, now: int, src: Any, msg: Any) -> None:
        if msg.epoch == self.sealed_epoch and self.term is None:
            self.owner = src
        original(self, now, src, msg)

    patch.setattr(Replica, "on_seal", on_seal)


def truncate_without_comparing(patch: Planter) -> None:
    """R5: what an APPEND brings replaces all that follows, conflict or not."""
    original = Replica.store_entries

    def store_entries(self: Any, blobs: list[bytes], checked: list[Any], commit: int) -> None:
        keep = max(checked[0][0] - 1, self.commit_index) if checked else self.commit_index
        if blobs and keep < self.log.last_index:
            self.truncate(keep)
        original(self, blobs, checked, commit)

    patch.setattr(Replica, "store_entries", store_entries)


def commit_by_counting(patch: Planter) -> None:
    """R6: an entry of an old epoch is committed by counting its copies."""

    def maybe_commit(self: Any, now: int, term: Any) -> None:
        index = term.committed_index()
        if index > self.commit_index:
            self.advance_commit(index)
            self.try_activate(now)

    patch.setattr(LeadingReplica, "maybe_commit", maybe_commit)


def effects_later(patch: Planter) -> None:
    """R8: the driver lets clients meet a new leader before what it adopted is applied."""

    def receive(self: Any, src: Any, message: Any) -> None:
        self.do(message, src)
        self.unpark(self.now())
        self.world.after(1_000_000, self, self.run)

    patch.setattr(node_module.Node, "receive", receive)


#: the promises that it may break; a seed that shows it now, tried first; the plans in which it shows soonest
MUTATIONS: dict[Patch, Plant] = {
    a_sign_of_life_is_proof: plant("stale", 17, "resets, long grants", "cuts"),
    a_leader_to_be_is_new: plant("stale", 7, "slow disks, snapshots", "hand-offs"),
    effects_later: plant("I5 I7", 79, "hand-offs"),
    two_owners: plant("I1", 211, "calm network, crashes", "slow disks, snapshots"),
    skip_the_wait: plant("I5 I6", 107, "resets, long grants"),
    forget_the_fence: plant("I2 I3 I5 I6", 8, "short reigns", "bad network"),
    read_without_grants: plant("I5 I6", 38, "short reigns"),
    count_before_durable: plant("I3 I5 I7", 16, "slow disks, snapshots"),
    no_remaining_grant: plant("I5 I6", 107, "resets, long grants"),
    restart_forgets_grants: plant("I5 I6", 7, "resets, long grants"),
    adopt_own_log: plant("I2 I3 I5", 20, "everything"),
    seal_without_quorum: plant("I1 I2 I3 I5", 82, "bad network"),
    commit_by_one: plant("I3 I5", 4, "cuts"),
    commit_by_counting: plant("I2 I3 I5", 508, "short reigns"),
    match_by_index_only: plant("I2 I3 I5", 7, "resets, long grants", "cuts"),
    truncate_without_comparing: plant("I2 I3 I5", 5, "no etcd for long", "cuts"),
    no_dedupe: plant("I5", 2, "bad network"),
    dedupe_committed_only: plant("I5", 2, "bad network"),
    reuse_the_epoch: plant("I1 I2 I3", 56, "everything", "slow disks, snapshots", "resets, long grants"),
    resign_and_read_on: plant("I5 I6", 489, "hand-offs"),
    unchecked_position: plant("I2 I3 I5", 8, "short reigns"),
    snapshot_over_everything: plant("I2 I3 I5 R17", 156, "slow disks, snapshots"),
}


@pytest.mark.parametrize("seed", range(60))
def test_backing_up_by_answers_is_safe_too(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    leader_starts_at_its_end(Planter(monkeypatch))
    world_of(seed).play()


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__)
def test_a_planted_bug_is_seen(mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = MUTATIONS[mutate]
    seeds = seeds_of(planted.plans, PLANS, SEEDS)

    def play(seed: int) -> object:
        # the check of each step would be first (test_steps.py): these are for the invariants of the world
        return world_of(seed, checked=False).play(calm_ns=2_000_000_000)

    must_be_seen(mutate, planted, monkeypatch, seeds, play)
