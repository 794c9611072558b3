"""Steps of whole nodes are judged by the rules: bugs that are planted in the core and in what drives it are named at the first
step that breaks a rule of moves (R10), snapshots (R17) or splits (R18), and what etcd's records may become is looked at
in its transactions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metastore.coordination.interface import Compare, Delete, Put
from metastore.coordination.memory import MemoryEtcd
from metastore.core import effects as fx
from metastore.core.changing import ChangingReplica
from metastore.core.electing import PartitionReplica
from metastore.core.events import EntryCommitted
from metastore.core.messages import Process
from metastore.core.rows import SplitOff
from metastore.core.settings import CoreSettings
from metastore.layout import ConfigRecord, LeaderRecord, first_epoch
from metastore.node.control.assignment import Assignment
from metastore.partition import split
from metastore.partition.split import Split
from metastore.storage.checkpoints import Checkpoints
from tests.simulation.core.rules import Rules
from tests.simulation.core.steps import View, child_of
from tests.simulation.planting import Patch, Planter
from tests.simulation.process.etcd import SimCoordinator
from tests.simulation.process.plans import PLANS
from tests.simulation.process.recording import Judge
from tests.simulation.process.world import world_of
from tests.simulation.seeds import seeds_of
from tests.simulation.violation import Violation

# --- bugs in the core and in its driver --------------------------------------------------------------


def everybody_has_caught_up(patch: Planter) -> None:
    patch.setattr(ChangingReplica, "has_caught_up", lambda self, term, node: True)


def leaves_a_joint_term_at_once(patch: Planter) -> None:
    def leave_joint(self: Any, now: int, term: Any, joint: Any) -> None:
        names = [node for node, _ in joint]
        final = dataclasses.replace(
            term.config, epoch=self.next_term(), leader=names[0], replicas=joint, joint=None
        )
        self.change(now, final, None, "too early")

    patch.setattr(ChangingReplica, "leave_joint", leave_joint)


def changes_without_a_joint_term(patch: Planter) -> None:
    original = ChangingReplica.change

    def change(self: Any, now: int, new: ConfigRecord, *more: Any) -> None:
        if new.joint is not None and (self.ctx.me.node, self.ctx.me.store) in new.joint:
            new = dataclasses.replace(new, replicas=new.joint, joint=None)
        original(self, now, new, *more)

    patch.setattr(ChangingReplica, "change", change)


def appoints_before_it_has_resigned(patch: Planter) -> None:
    def transfer(self: Any, now: int, to: str) -> bool:
        if self.term is not None and self.term.config.joint is not None:
            self.term.handoff_to = to
            self.appoint(now, self.term)
            return False
        return original(self, now, to)

    original = ChangingReplica.transfer
    patch.setattr(ChangingReplica, "transfer", transfer)


def compares_the_record_before(patch: Planter) -> None:
    original = ChangingReplica.change

    def change(self: Any, *args: Any) -> None:
        known, self.config_mod_revision = self.config_mod_revision, self.config_mod_revision - 1
        original(self, *args)
        self.config_mod_revision = known

    patch.setattr(ChangingReplica, "change", change)


def keeps_no_record_of_whom_it_appoints(patch: Planter) -> None:
    """What this check found: etcd's watch tells nothing newer than what is known, so nobody else makes it durable."""
    original = ChangingReplica.on_change_done

    def on_change_done(self: Any, now: int, new: ConfigRecord | None, *more: Any) -> None:
        original(self, now, new, *more)
        effects = self.ctx.emit.__self__
        effects[:] = [e for e in effects if not isinstance(e, fx.PersistConfig) or e.p != self.p]

    patch.setattr(ChangingReplica, "on_change_done", on_change_done)


def begins_what_is_anothers(patch: Planter) -> None:
    def follow_config(self: Any, now: int, reason: str) -> None:
        config = self.config
        if config.leader is not None and self.is_member() and config.epoch > self.sealed_epoch:
            self.begin_term(now, config.epoch, config, reason)

    patch.setattr(PartitionReplica, "follow_config", follow_config)


def drops_before_it_has_looked(patch: Planter) -> None:
    def _left(self: Any, host: Any, config: ConfigRecord, mod_revision: int) -> None:
        self.node.drop_partition(host.p)

    patch.setattr(Assignment, "_left", _left)


def filtered(patch: Planter, kind: type[Any], part: str) -> None:
    """Transactions leave out what they do to some keys."""
    original = SimCoordinator.txn

    async def txn(self: Any, compares: Any, then: Any, otherwise: Any = ()) -> Any:
        kept = [op for op in then if not (isinstance(op, kind) and part in op.key)]
        return await original(self, compares, kept, otherwise)

    patch.setattr(SimCoordinator, "txn", txn)


def leaves_the_leaders_key(patch: Planter) -> None:
    filtered(patch, Delete, "/leader/")


def leaves_the_record_in_the_old_cell(patch: Planter) -> None:
    filtered(patch, Delete, "/config/")


def leaves_the_intention(patch: Planter) -> None:
    filtered(patch, Delete, "/splits/")


def tells_etcd_before_it_is_durable(patch: Planter) -> None:
    original = Split.tell_split

    def tell_split(self: Any) -> None:
        original(self)
        self.state.replica.split_durable = True

    patch.setattr(Split, "tell_split", tell_split)


def goes_on_above_the_point(patch: Planter) -> None:
    patch.setattr(Split, "narrow", lambda self: self.tell_split())


def opens_before_it_is_durable(patch: Planter) -> None:
    original = Checkpoints.apply

    def apply(self: Any, p: int, *args: Any) -> None:
        original(self, p, *args)
        fork = args[-1]
        if fork is not None and self._splits.is_pending(fork.child) and self._writer.loop is not None:
            self._writer.loop.call_soon(self.on_split, fork.child, p)

    patch.setattr(Checkpoints, "apply", apply)


def whatever_it_has_is_committed(patch: Planter) -> None:
    def _entry_committed(self: Any, parent: tuple[int, int, int]) -> None:
        found = self.node.partitions.get(parent[0])
        if found is not None:
            log = found.replica.log
            self._happens(EntryCommitted(parent[0], log.last_position()[0], log.last_index))

    patch.setattr(Assignment, "_entry_committed", _entry_committed)


def names_another_first_leader(patch: Planter) -> None:
    original = split.child_config

    def child_config(parent: int, made: SplitOff) -> ConfigRecord:
        return dataclasses.replace(original(parent, made), leader=made.members[1][0])

    patch.setattr(split, "child_config", child_config)


#: a bug -> the rule that its first step breaks, a seed that shows it now, and the plan in which it comes up
BUGS: dict[Patch, tuple[str, int, str]] = {
    everybody_has_caught_up: ("R10 a member joins that is not within a round", 10, "moves"),
    leaves_a_joint_term_at_once: ("R10 leaves a joint term that is not activated", 34, "moves"),
    changes_without_a_joint_term: ("R10 leaves its replicas without a joint term", 10, "moves"),
    appoints_before_it_has_resigned: (
        "R11 appoints another, and has not resigned",
        11,
        "moves between cells",
    ),
    compares_the_record_before: ("R10 compares another record", 10, "moves"),
    keeps_no_record_of_whom_it_appoints: ("R1 a record is not made durable", 11, "moves between cells"),
    begins_what_is_anothers: ("R2 begins a term that is another's", 10, "moves"),
    drops_before_it_has_looked: ("R10 c1n3 drops its copy, and is a member", 10, "moves"),
    leaves_the_leaders_key: ("R10 the leader of the term before is left", 11, "moves between cells"),
    leaves_the_record_in_the_old_cell: ("R10 two cells have a record", 11, "moves between cells"),
    leaves_the_intention: ("R18 a split is recorded, and still to be done", 14, "divisions"),
    tells_etcd_before_it_is_durable: ("R18 etcd is told of a child that is not durable", 14, "divisions"),
    goes_on_above_the_point: ("R18 proposes what lies above", 14, "divisions"),
    opens_before_it_is_durable: ("R18 opens what was split off before it is durable", 14, "divisions"),
    whatever_it_has_is_committed: ("R18 commits by an entry", 15, "divisions and deaths"),
    names_another_first_leader: ("R18 the child's record is not what its entry made", 14, "divisions"),
}
#: how many are tried of the plan when the seed does not show it any more
SEEDS = 8


@pytest.mark.parametrize("bug", BUGS, ids=lambda f: f.__name__)
def test_a_bug_is_seen_at_its_first_step(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, pinned, plan = BUGS[bug]
    planter = Planter(monkeypatch)
    bug(planter)
    others = []
    for seed in [pinned, *seeds_of([plan], PLANS, SEEDS)]:
        try:
            world_of(seed, checked=True).play()
        except Violation as e:
            said = str(e).splitlines()[0]
            assert not planter.crashes, planter.crashes
            if f"step: {rule}" in said:
                return
            others.append(said[:200])
    pytest.fail(f"{rule}: {len(others)} seeds said something else: {others[:3]}")


# --- records in etcd, one transaction each -----------------------------------------------------------

A, B, C, D = (Process(name, f"s-{name}", "1") for name in "abcd")
TERM, NEXT = first_epoch(3), first_epoch(4)
MEMBERS = tuple((p.node, p.store) for p in (A, B, C))
RECORD = ConfigRecord(0, 0, 1 << 64, TERM, "a", MEMBERS)
AFTER = dataclasses.replace(RECORD, epoch=NEXT)
SPLIT = SplitOff(1, (1 << 63).to_bytes(8, "big"), (1 << 64) - 1, TERM, 5, MEMBERS)
CHILD = child_of(0, SPLIT)
NARROWED = dataclasses.replace(AFTER, hi=1 << 63)
ROOT = "/m/c/"
KEY, OTHER, CHILD_KEY = ROOT + "config/c1/00000", ROOT + "config/c2/00000", ROOT + "config/c1/00001"
LEADER, INTENTION = ROOT + "leader/c1/00000", ROOT + "splits/00000"


class Cluster:
    """etcd with one record, and who judges what becomes of it."""

    def __init__(self) -> None:
        self.etcd, self.seen = MemoryEtcd(), list[Violation]()
        self.judge = Judge(self.etcd, self.seen.append)
        leader = LeaderRecord("a", "1", TERM).to_json()
        self.etcd.txn([], [Put(KEY, RECORD.to_json()), Put(LEADER, leader), Put(INTENTION, b"{}")], [])
        self.mod = self.etcd.kvs[KEY].mod_revision

    def parted(self) -> None:
        self.judge.partings.note(0, SPLIT)
        self.judge.partings.committed.add((0, TERM, 5))

    def swap(self, *ops: Any, compare: bool = True) -> None:
        compares = [Compare.mod_revision_is(KEY, self.mod)] if compare else []
        self.etcd.txn(compares, list(ops), [])


def put(record: ConfigRecord, key: str = KEY) -> Put:
    return Put(key, record.to_json())


GONE, PARTED = Delete(LEADER), Delete(INTENTION)
TRANSACTIONS: dict[str, list[Any]] = {
    "R10 two cells have a record": [put(AFTER), put(AFTER, OTHER), GONE],
    "R10 a record goes": [Delete(KEY), GONE],
    "R2 a record is not of the next term": [put(dataclasses.replace(AFTER, epoch=first_epoch(5))), GONE],
    "R2 a record is not of the next term (of the same)": [put(dataclasses.replace(RECORD, leader="b")), GONE],
    "R10 the leader of the term before is left": [put(AFTER)],
    "R18 a record is narrowed": [put(NARROWED), GONE],
    "R18 the child's record is not": [
        put(NARROWED),
        put(dataclasses.replace(CHILD, leader="b"), CHILD_KEY),
        GONE,
        PARTED,
    ],
    "R18 a child has a record, and its parent's": [put(AFTER), put(CHILD, CHILD_KEY), GONE, PARTED],
    "R18 a split is recorded, and still": [put(NARROWED), put(CHILD, CHILD_KEY), GONE],
}


@pytest.mark.parametrize("rule", TRANSACTIONS)
def test_a_transaction_that_no_rule_allows_is_seen(rule: str) -> None:
    cluster = Cluster()
    cluster.parted()
    with pytest.raises(Violation, match="step: " + rule.split(" (")[0]) as seen:
        cluster.swap(*TRANSACTIONS[rule])
    assert cluster.seen == [seen.value]


def test_a_record_is_changed_by_who_compared_it() -> None:
    with pytest.raises(Violation, match="R10 a record is changed without a look"):
        Cluster().swap(put(AFTER), GONE, compare=False)


def test_a_child_has_a_record_only_by_an_entry_that_is_committed() -> None:
    cluster = Cluster()
    cluster.judge.partings.note(0, SPLIT)
    with pytest.raises(Violation, match="R18 the record of what no committed entry"):
        cluster.swap(put(NARROWED), put(CHILD, CHILD_KEY), GONE, PARTED)


@pytest.mark.parametrize(
    "move", [[put(AFTER), GONE], [Delete(KEY), put(AFTER, OTHER), GONE]], ids=["stays", "moves"]
)
def test_what_the_rules_allow_of_a_record(move: list[Any]) -> None:
    Cluster().swap(*move)


def test_the_swap_that_records_a_split_is_allowed() -> None:
    cluster = Cluster()
    cluster.parted()
    cluster.swap(put(NARROWED), put(CHILD, CHILD_KEY), GONE, PARTED)


# --- copies that are opened and go ---------------------------------------------------------------------

PARENT = View(TERM, A, "follower", 6, (0, 0), 6, (1,), (TERM,), 0, 0, RECORD, 7)
BORN = View(0, None, "follower", 5, (TERM, 5), 5, (), (), 0, 0, CHILD)


def open_child(born: View = BORN, parent: View = PARENT, held: frozenset[int] = frozenset({1})) -> None:
    judge = Cluster().judge
    judge.partings.note(0, SPLIT)
    judge.opened(B, 0, Rules(B, CoreSettings(), 0, 0, judge.partings), parent, frozenset(), new=False)
    if parent.commit >= 5:
        judge.partings.committed.add((0, TERM, 5))
    judge.opened(B, 1, Rules(B, CoreSettings(), 0, 1, judge.partings), born, held, new=True)


def test_a_child_begins_from_what_its_parent_has_applied_here() -> None:
    open_child()
    open_child(BORN._replace(base=(0, 0), last=0, commit=0), held=frozenset())  # empty: it gets all of it
    for rule, what in {
        "begins elsewhere": {"born": BORN._replace(base=(TERM, 4), last=4, commit=4)},
        "no committed entry": {"parent": PARENT._replace(commit=4)},
        "before it is durable": {"held": frozenset[int]()},
    }.items():
        with pytest.raises(Violation, match=f"step: R18 .*{rule}"):
            open_child(**what)  # type: ignore[arg-type]


LEFT = PARENT._replace(config=dataclasses.replace(AFTER, replicas=MEMBERS[:1]))


@pytest.mark.parametrize(
    ("rule", "view", "held"),
    [
        ("R10 b drops its copy, and is a member", PARENT, {1}),
        ("R10 b drops its copy by a record that is older", LEFT._replace(sealed=first_epoch(9)), {1}),
        ("R17 b drops its copy while a snapshot", LEFT._replace(installing=True), {1}),
        ("R18 the only rows of child 1 here go", LEFT, set[int]()),
        ("", LEFT, {1}),
    ],
)
def test_a_copy_goes_when_nobody_needs_it(rule: str, view: View, held: set[int]) -> None:
    cluster = Cluster()
    cluster.parted()
    judge = cluster.judge
    judge.opened(B, 0, Rules(B, CoreSettings(), 0, 0, judge.partings), view, frozenset(), new=False)
    if not rule:
        judge.dropped(B, 0, frozenset(held))
        return
    with pytest.raises(Violation, match="step: " + rule):
        judge.dropped(B, 0, frozenset(held))
