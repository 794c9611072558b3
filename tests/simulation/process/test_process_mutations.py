"""Each planted bug must be seen by the simulation of whole processes: a check that cannot fail
checks nothing. The core's own are in tests/simulation/core/test_core_mutations.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metastore.core import electing, quorum, term
from metastore.core.machine import Machine
from metastore.core.proposals import Proposals
from metastore.core.replica import Replica
from metastore.core.rows import SESSION_PREFIX
from metastore.core.term import Term
from metastore.history import LastSeenIndex
from metastore.layout import ConfigRecord
from metastore.node.control.assignment import Assignment
from metastore.node.node import Node
from metastore.node.tick_loop import TickLoop
from metastore.partition.reads import Reads
from metastore.partition.split import Split
from metastore.routing.dispatcher import RequestIds
from metastore.storage.log import NodeLog
from metastore.storage.segments import SegmentFiles
from metastore.storage.store import Store
from tests.simulation.planting import Patch, Plant, Planter, must_be_seen, plant
from tests.simulation.process.plans import PLANS
from tests.simulation.process.world import world_of
from tests.simulation.seeds import seeds_of


def sends_before_durable(patch: Planter) -> None:
    """R1, R5: the driver does not hold messages until the log is synced."""
    original = TickLoop._send

    def send(self: Any, effect: Any) -> None:
        original(self, effect._replace(durable=False))

    patch.setattr(TickLoop, "_send", send)


def syncs_nothing(patch: Planter) -> None:
    """R14: a round is written and called durable without a sync."""

    def write(self: Any, pieces: Any) -> None:
        for segment, offset, data in pieces:
            self.files.disk.write(segment.fd, data, offset)

    patch.setattr(NodeLog, "write_pieces", write)


def goes_on_after_a_failed_sync(patch: Planter) -> None:
    """R14: a failed sync is passed over."""
    original = NodeLog.group_written
    patch.setattr(NodeLog, "group_written", lambda self, error: original(self, None))


def trusts_the_cache(patch: Planter) -> None:
    """Recovery: blocks that nothing vouches for are believed without writing them again."""
    patch.setattr(SegmentFiles, "_make_durable", lambda self, blocks: None)


def effects_a_turn_later(patch: Planter) -> None:
    """R8: clients meet a new leader before what it adopted is applied."""
    patch.setattr(TickLoop, "run_effects", TickLoop.wake)


def applies_a_turn_later(patch: Planter) -> None:
    """R6, R8: who is answered may look, and what was answered is not in the state yet."""
    original = TickLoop._apply_committed

    def apply(self: Any) -> None:
        if self._committed:
            self._loop.call_soon(original, self)

    patch.setattr(TickLoop, "_apply_committed", apply)


def no_wait(patch: Planter) -> None:
    """R4."""
    patch.setattr(Term, "grants_passed", lambda self, now, settings: True)


def forgets_what_it_granted(patch: Planter) -> None:
    """R8: the largest grant is not durable, and a restarted node seals at once."""
    original = Node.start

    def start(self: Any) -> None:
        self.core.ctx.seal_not_before_ns = 0
        original(self)

    patch.setattr(Node, "start", start)


def reads_whatever_it_has(patch: Planter) -> None:
    """R8: linearizable reads without grants."""

    def read(self: Any, connection: Any, client: bytes, op: list[Any], deadline: int) -> None:
        connection.answer(*self.read(connection, op, 0))

    patch.setattr(Reads, "linearizable", read)


def retries_without_dedupe(patch: Planter) -> None:
    """R7: the leader executes a request that it has executed before."""
    patch.setattr(Proposals, "_known", lambda self, client, seq, floor, last_seen: None)


def finishes_ids_early(patch: Planter) -> None:
    """Not a weakening: the client says that ids are finished which it may still send again, and such
    a retry is refused as too old (R7): its outcome stays unknown, and it is not executed twice."""
    patch.setattr(RequestIds, "floor", lambda self, partition: self._seq + 1)


def executes_what_is_too_old(patch: Planter) -> None:
    """R7: a request id older than the dedupe window is executed. (Such a request needs a copy that
    outlives its own client's patience; the client is made to retry them here.)"""
    finishes_ids_early(patch)
    original = Proposals._known

    def known(self: Any, client: bytes, seq: int, floor: int, last_seen: int) -> Any:
        found = original(self, client, seq, floor, LastSeenIndex(last_seen))
        return None if found is not None and "dedupe window" in str(found.tail[1]) else found

    patch.setattr(Proposals, "_known", known)


def answers_lost_writes_with_failure(patch: Planter) -> None:
    """R7: a leader that loses its leadership says that nothing happened."""
    import metastore.partition.writes as writes
    from metastore.errors import ConditionFailed

    class Wrong(ConditionFailed):
        def __init__(self, message: str, **detail: Any) -> None:
            super().__init__(message, version=0, index=0)

    patch.setattr(writes, "OutcomeUnknown", Wrong)


def forgets_the_fence(patch: Planter) -> None:
    """R1: a replica acts on messages of an old epoch."""
    patch.setattr(Replica, "obeys", lambda self, now, src, epoch: True)


def new_members_alone(patch: Planter) -> None:
    """R10: under a joint config the new set is quorum enough."""

    def alone(config: ConfigRecord) -> ConfigRecord:
        return dataclasses.replace(config, replicas=config.joint or config.replicas, joint=None)

    for module in (term, electing):
        patch.setattr(module, "is_quorum", lambda config, having: quorum.is_quorum(alone(config), having))
    value = quorum.quorum_value
    patch.setattr(term, "quorum_value", lambda config, value_of: value(alone(config), value_of))


def removed_forgets_its_promise(patch: Planter) -> None:
    """R10: who is removed forgets the epoch that it has sealed with its data."""
    original = Store.drop_partition

    def drop(self: Any, p: int) -> None:
        original(self, p)
        meta = self.partitions[p].meta
        meta.sealed, meta.owner = 0, b""

    patch.setattr(Store, "drop_partition", drop)


def an_empty_child_counts(patch: Planter) -> None:
    """R18: a child is begun by replicas none of which has come to the split."""
    patch.setattr(Assignment, "_waits_for_parent", lambda self, config, since: False)
    patch.setattr(Term, "has_origin", lambda self: True)


def serves_what_was_split_off(patch: Planter) -> None:
    """R18: the parent goes on to serve the upper half."""
    patch.setattr(Split, "narrow", lambda self: self.tell_split())


def a_child_forgets_requests(patch: Planter) -> None:
    """R18: what was done before the split is done again after it."""
    original = Machine.part_with

    def forgetful(self: Any, index: int, row: Any, metadata: Any) -> Any:
        forked = original(self, index, row, metadata)
        return forked._replace(metadata=[(k, v) for k, v in forked.metadata if k[:1] != SESSION_PREFIX])

    patch.setattr(Machine, "part_with", forgetful)


#: the promises that it may break; a seed that shows it now, tried first; the plans in which it shows soonest
MUTATIONS: dict[Patch, Plant] = {
    sends_before_durable: plant("I3 I5 I7", 26, "no power", "torn writes"),
    syncs_nothing: plant("I3 I5 I7 R14", 2, "no power", "everything"),
    goes_on_after_a_failed_sync: plant("I3 I5 I7 R14", 24, "no power", "torn writes"),
    trusts_the_cache: plant("I3 I5 I7 R14", 2, "no power"),
    effects_a_turn_later: plant("I5 R7", 8, "hand-overs"),
    applies_a_turn_later: plant("I5 R7", 8, "hand-overs"),
    no_wait: plant("I5 I6", 18, "split, long grants"),
    forgets_what_it_granted: plant("I5 I6", 42, "split, long grants"),
    reads_whatever_it_has: plant("I5", 37, "split, long grants"),
    retries_without_dedupe: plant("I5", 6, "bad network"),
    executes_what_is_too_old: plant("I5", 19, "bad network"),
    answers_lost_writes_with_failure: plant("I5", 39, "split, long grants"),
    forgets_the_fence: plant("I2 I3 I5 I6", 18, "split, long grants", "cuts"),
    new_members_alone: plant("I3 I5", 956, "moves, split"),
    removed_forgets_its_promise: plant(
        "I7", 10, "moves and deaths", "moves between cells and deaths", "moves"
    ),
    an_empty_child_counts: plant("I3 I5 I7", 14, "divisions"),
    serves_what_was_split_off: plant("I5 states usage", 15, "divisions and deaths"),
    a_child_forgets_requests: plant("I5", 15, "divisions and deaths"),
}
#: how many are tried of the plans in which a bug shows
SEEDS = 60


@pytest.mark.nightly
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__)
def test_a_planted_bug_is_seen(mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = MUTATIONS[mutate]
    seeds = seeds_of(planted.plans, PLANS, SEEDS)
    must_be_seen(mutate, planted, monkeypatch, seeds, lambda seed: world_of(seed, checked=False).play())


@pytest.mark.nightly
@pytest.mark.parametrize("seed", list(seeds_of(["bad network"], PLANS, 5)))
def test_ids_that_are_finished_early_are_safe_too(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    finishes_ids_early(Planter(monkeypatch))
    world_of(seed).play()
