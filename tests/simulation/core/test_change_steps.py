"""The check of steps sees what it is to see of records, replicas, snapshots and splits (R2, R10, R14, R17, R18): planted
steps, one by one. Bugs in whole nodes are planted in ``tests.simulation.process.test_recording``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.core.messages import Process
from metastore.core.replica import ACTIVATING, ACTIVE, FOLLOWER, RESIGNED, SEALING
from metastore.core.rows import SPLIT, SplitOff
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord
from metastore.operations import DELETE
from tests.simulation.core.rules import Rules
from tests.simulation.core.steps import (
    CAMPAIGNED,
    CHANGED,
    FORKED,
    INSTALLED,
    LEARNED,
    RECORD,
    STAGED,
    Partings,
    Step,
    View,
    child_of,
)
from tests.simulation.core.test_steps import (
    BEGIN,
    CONFIG,
    LATER,
    SERVES,
    A,
    B,
    C,
    D,
    E,
    appended,
    became,
    heard,
    sealed_by,
    view,
)
from tests.simulation.violation import Violation

SECOND = 1000 * MS
MEMBERS = CONFIG.replicas
WITH_D = tuple((p.node, p.store) for p in (A, B, D))
JOINT = replace(CONFIG, epoch=LATER, joint=WITH_D)
FINAL = replace(CONFIG, epoch=LATER + (1 << 16), replicas=WITH_D)
BACK = replace(CONFIG, epoch=LATER + (1 << 16))


def known(at: View, config: ConfigRecord = CONFIG, mod: int = 7, **more: Any) -> View:
    """As ``at``, with etcd's record."""
    return at._replace(config=config, mod=mod, **more)


FOLLOWS = known(view())
ACTS = known(view(ACTIVE, A))


def snapshot_at(index: int) -> View:
    return FOLLOWS._replace(base=(E, index), last=index, firsts=(), epochs=(), commit=index)


POINT = (1 << 63).to_bytes(8, "big")
SPLIT_OFF = SplitOff(1, POINT, (1 << 64) - 1, E, 3, MEMBERS)
CHILD = child_of(0, SPLIT_OFF)
NARROWED = replace(CONFIG, epoch=LATER, hi=1 << 63)


def tick(before: View, *effects: Any, after: View | None = None, now: int = SECOND, **more: Any) -> Step:
    return Step(now, "tick", None, before, after or before, list(effects))._replace(**more)


def happens(
    event: str, before: View, after: View, *effects: Any, args: Any, src: Process | None = None
) -> Step:
    return Step(SECOND, event, src, before, after, list(effects), args)


def campaign(new: ConfigRecord, mod: int = 7) -> fx.Campaign:
    return fx.Campaign(0, mod, new, None, "")


def change(
    new: ConfigRecord, mod: int = 7, cell: str | None = None, child: ConfigRecord | None = None
) -> Any:
    return fx.ChangeConfig(0, mod, new, cell, "", child)


def install(index: int, epoch: int = E, *, keep_log: bool = False) -> fx.InstallSnapshot:
    return fx.InstallSnapshot(0, index, epoch, keep_log)


def staged(at: View, index: int, *effects: Any, src: Process = B, epoch: int = E, of: int = E) -> Step:
    after = at._replace(installing=True)
    return happens(STAGED, at, after, *effects, args=(epoch, index, of), src=src)


def payload(*rows: list[Any]) -> bytes:
    raw: bytes = msgpack.packb([1, [], list(rows), [], []])
    return raw


def proposes(before: View, *rows: list[Any]) -> Step:
    index = before.last + 1
    after = before._replace(last=index)
    blob = pack_entry(index, E, payload(*rows))
    return Step(SECOND, "propose", None, before, after, [fx.PersistEntries(0, [blob], 1, E)])


def split_row(**more: Any) -> list[Any]:
    row = SPLIT_OFF._replace(**more)
    return [SPLIT, row.child, row.at, row.last, row.epoch, [], [list(member) for member in row.members]]


#: a leads, with etcd's record of its term; then with two entries
LEADS = [BEGIN._replace(before=known(BEGIN.before), after=known(BEGIN.after)), *SERVES[1:]]
CAUGHT_UP = heard(D, m.Appended(0, E, 2), ACTS, ACTS)
PARTED = [*LEADS, proposes(ACTS, split_row())]
HAS_SPLIT = ACTS._replace(last=3)
ABOVE = POINT + b"n\0key"
BELOW = (1).to_bytes(8, "big") + b"n\0key"
COMMITS = appended(B, 3, HAS_SPLIT, HAS_SPLIT._replace(commit=3))
COMMITTED = [*PARTED, appended(A, 3, HAS_SPLIT, HAS_SPLIT), COMMITS]
APPLIED = HAS_SPLIT._replace(commit=3)

# a begins a term under both sets
JOINED = known(view(SEALING, A, log=(), commit=0, sealed=LATER), JOINT)
IN_JOINT = known(view(ACTIVATING, A, log=(LATER,), commit=0, sealed=LATER), JOINT)
BEGINS_JOINT = Step(
    0,
    CHANGED,
    None,
    known(view(ACTIVE, A, log=(), commit=0)),
    JOINED,
    [became(FOLLOWER), sealed_by(A, LATER, JOINT), became(SEALING)],
    (JOINT, 8, ""),
)


def answers(src: Process, after: View = JOINED, *effects: Any) -> Step:
    return heard(src, m.Sealed(0, LATER, 0, 0, 0, 0), JOINED, after, *effects)


ADOPTS_JOINT = [BEGINS_JOINT, answers(A), answers(B, IN_JOINT, became(ACTIVATING))]
ACTS_JOINT = known(view(ACTIVE, A, log=(LATER,), sealed=LATER), JOINT)
ACTIVE_JOINT = [
    *ADOPTS_JOINT,
    heard(A, m.Appended(0, LATER, 1), IN_JOINT, IN_JOINT),
    heard(B, m.Appended(0, LATER, 1), IN_JOINT, ACTS_JOINT, became(ACTIVE)),
]
#: of partition 1, which partition 0 split off
CHILD_LEADS = Step(
    0,
    "follows its record",
    None,
    known(view(log=(), commit=0, owner=C)._replace(sealed=0, owner=None), CHILD, 0),
    known(view(SEALING, A, log=(), commit=0, sealed=LATER), CHILD, 0),
    [sealed_by(A, LATER, CHILD), became(SEALING)],
)
CHILD_BEGUN = CHILD_LEADS.after
CHILD_ADOPTS = known(view(ACTIVATING, A, log=(LATER,), commit=0, sealed=LATER), CHILD, 0)
EMPTY = known(view(log=(), commit=0), CHILD, 0)
FORK = EMPTY._replace(base=(E, 3), last=3, commit=3)

#: rule -> steps of a, the last of which breaks it
PLANTED: dict[str, list[Step]] = {
    # R2 and records
    "R2 knows a record that nobody told": [tick(FOLLOWS, after=known(FOLLOWS, NARROWED))],
    "R2 knows a record that nobody told (another)": [
        happens(RECORD, FOLLOWS, known(FOLLOWS, NARROWED, 8), args=(JOINT, 8))
    ],
    "I7 an older record": [
        happens(
            RECORD,
            known(FOLLOWS, JOINT),
            known(FOLLOWS, CONFIG, 8),
            fx.PersistConfig(0, pack_config(CONFIG)),
            args=(CONFIG, 8),
        )
    ],
    "R1 a record is not made durable": [
        happens(CHANGED, ACTS, known(ACTS, JOINT, 8), args=(JOINT, 8, "appoints b"))
    ],
    "R2 begins a term under a record": [
        happens(
            CAMPAIGNED,
            FOLLOWS,
            FOLLOWS._replace(sealed=LATER, owner=A, role=SEALING),
            sealed_by(A, LATER, replace(CONFIG, epoch=LATER)),
            became(SEALING),
            args=(None, 0),
        )
    ],
    "R2 begins a term that is another's": [
        tick(
            known(FOLLOWS, replace(CONFIG, epoch=LATER, leader="b")),
            sealed_by(A, LATER, replace(CONFIG, epoch=LATER, leader="b")),
            became(SEALING),
            after=known(
                FOLLOWS, replace(CONFIG, epoch=LATER, leader="b"), sealed=LATER, owner=A, role=SEALING
            ),
        )
    ],
    "R13 begins a term for a store": [
        tick(
            known(FOLLOWS, replace(CONFIG, replicas=WITH_D[1:])),
            sealed_by(A, E + 1, replace(CONFIG, replicas=WITH_D[1:])),
            became(SEALING),
            after=known(FOLLOWS, replace(CONFIG, replicas=WITH_D[1:]), sealed=E + 1, owner=A, role=SEALING),
        )
    ],
    "R2 campaigns against another record": [tick(FOLLOWS, campaign(replace(CONFIG, epoch=LATER), 6))],
    "R2 campaigns for more": [tick(FOLLOWS, campaign(replace(CONFIG, epoch=LATER + (1 << 16))))],
    "R13 campaigns for a store": [
        tick(
            known(FOLLOWS, replace(CONFIG, replicas=WITH_D[1:])),
            campaign(replace(CONFIG, epoch=LATER, replicas=WITH_D[1:])),
        )
    ],
    "R14 campaigns with a copy": [
        tick(FOLLOWS._replace(damaged=True), campaign(replace(CONFIG, epoch=LATER)))
    ],
    # R10
    "R10 changes the record of a term": [tick(FOLLOWS, change(JOINT))],
    "R10 compares another record": [*LEADS, CAUGHT_UP, tick(ACTS, change(JOINT, 6))],
    "R10 compares another record (a claim's)": [
        *LEADS,
        tick(known(ACTS, replace(CONFIG, leader="b")), change(JOINT)),
    ],
    "R10 changes to another than the next": [
        *LEADS,
        CAUGHT_UP,
        tick(ACTS, change(replace(JOINT, epoch=LATER + (1 << 16)))),
    ],
    "R10 changes more than its replicas": [*LEADS, CAUGHT_UP, tick(ACTS, change(replace(JOINT, hi=1 << 62)))],
    "R13 two stores of one name": [
        *LEADS,
        tick(ACTS, change(replace(JOINT, joint=(("b", "s-new"), *WITH_D[::2])))),
    ],
    "R10 leaves its replicas without": [*LEADS, tick(ACTS, change(replace(FINAL, epoch=LATER)))],
    "R10 changes its members, and is not": [
        *LEADS[:3],
        tick(known(view(ACTIVATING, A, log=(E,), commit=0)), change(JOINT)),
    ],
    "R10 a member joins that is not": [*LEADS, tick(ACTS, change(JOINT))],
    "R10 a member joins that is not (it is far behind)": [
        *LEADS,
        CAUGHT_UP,
        tick(ACTS._replace(last=67), change(JOINT)),
    ],
    "R10 leaves a joint term that is not": [*ADOPTS_JOINT, tick(IN_JOINT, change(FINAL))],
    "R10 leaves a joint term for neither": [
        *ACTIVE_JOINT,
        tick(ACTS_JOINT, change(replace(FINAL, replicas=WITH_D[:2]))),
    ],
    "R10 goes to another cell": [*ACTIVE_JOINT, tick(ACTS_JOINT, change(BACK, cell="c2"))],
    "R10 names a leader that is none": [*ACTIVE_JOINT, tick(ACTS_JOINT, change(replace(FINAL, leader="c")))],
    "R11 appoints another, and has not": [
        *ACTIVE_JOINT,
        tick(ACTS_JOINT, change(replace(FINAL, leader="d"))),
    ],
    "R11 appoints one that has not": [
        *ACTIVE_JOINT,
        tick(ACTS_JOINT._replace(role=RESIGNED), change(replace(FINAL, leader="d"))),
    ],
    # R17, R14
    "R17 sends a snapshot under": [*LEADS, tick(ACTS, fx.StartSnapshot(0, "b", E - 1))],
    "R17 sends a snapshot under (a follower)": [tick(FOLLOWS, fx.StartSnapshot(0, "c", E))],
    "R14 sends a snapshot": [*LEADS, tick(ACTS._replace(damaged=True), fx.StartSnapshot(0, "b", E))],
    "R17 switches in what is not staged": [staged(FOLLOWS, 5, install(6))],
    "R17 switches in what is not staged (of an old epoch)": [staged(FOLLOWS, 5, install(5), epoch=E - 1)],
    "R1 switches in a snapshot": [staged(FOLLOWS, 5, install(5), src=C)],
    "R17 a snapshot below what is committed": [staged(FOLLOWS, 1, install(1))],
    "R17 throws away a log": [staged(FOLLOWS, 2, install(2))],
    "R14 replaces the state alone": [staged(FOLLOWS, 2, install(2, keep_log=True))],
    "R14 replaces the state alone (it lacks an entry beyond)": [
        staged(FOLLOWS._replace(damaged=True, lost=2), 1, install(1, keep_log=True))
    ],
    "R17 another snapshot": [
        staged(FOLLOWS, 5, install(5)),
        happens(
            INSTALLED,
            FOLLOWS._replace(installing=True),
            snapshot_at(6),
            args=(6, E),
        ),
    ],
    "R17 its log changes": [
        heard(B, m.Append(0, E, E, 2, 1, [pack_entry(3, E, b"")]), view(installing=True), view(log=(E, E, E)))
    ],
    "R17 commits what its log": [
        happens(STAGED, FOLLOWS, FOLLOWS._replace(commit=2), args=(E, 2, E - 1), src=B)
    ],
    "R14 says what its log lacks": [
        heard(
            B,
            m.Append(0, E, E, 2, 1, []),
            view(lost=2),
            view(lost=2),
            fx.Send("b", m.Appended(0, E, 2), True),
        )
    ],
    "R14 says what its log lacks (to a SEAL)": [
        heard(
            B,
            m.Seal(0, E, b"", 0),
            view(lost=2),
            view(lost=2),
            fx.Send("b", m.Sealed(0, E, E, 2, 1, 0), True),
        )
    ],
    # R18
    "R18 splits in a term": [*LEADS, proposes(known(ACTS, replace(CONFIG, leader="b")), split_row())],
    "R18 splits in a term (its record is not etcd's)": [*LEADS, proposes(ACTS._replace(mod=0), split_row())],
    "R18 splits while its members": [
        *ACTIVE_JOINT,
        proposes(ACTS_JOINT, split_row(epoch=LATER)),
    ],
    "R18 splits off what is not its own": [*LEADS, proposes(ACTS, split_row(at=bytes(8)))],
    "R18 splits off what is not its own (under another epoch)": [
        *LEADS,
        proposes(ACTS, split_row(epoch=E - 1)),
    ],
    "R18 the child has other replicas": [*LEADS, proposes(ACTS, split_row(members=WITH_D))],
    "R18 the child has other replicas (another leader)": [
        *LEADS,
        proposes(ACTS, split_row(members=MEMBERS[::-1])),
    ],
    "R18 proposes what lies above": [*PARTED, proposes(HAS_SPLIT, [DELETE, ABOVE, -1, 0])],
    "R18 members change before": [
        *PARTED,
        heard(D, m.Appended(0, E, 3), HAS_SPLIT, HAS_SPLIT),
        tick(HAS_SPLIT, change(JOINT)),
    ],
    "R18 records a split, and is not active": [
        *COMMITTED,
        tick(APPLIED._replace(role=RESIGNED), change(NARROWED, child=CHILD), held=frozenset({1})),
    ],
    "R18 records a split that is not committed": [
        *PARTED,
        tick(HAS_SPLIT, change(NARROWED, child=CHILD), held=frozenset({1})),
    ],
    "R18 the child's record is not": [
        *COMMITTED,
        tick(APPLIED, change(NARROWED, child=replace(CHILD, leader="b")), held=frozenset({1})),
    ],
    "R18 the parent's record is not narrowed": [
        *COMMITTED,
        tick(APPLIED, change(replace(CONFIG, epoch=LATER), child=CHILD), held=frozenset({1})),
    ],
    "R18 etcd is told of a child that is not durable": [
        *COMMITTED,
        tick(APPLIED, change(NARROWED, child=CHILD)),
    ],
    "R18 commits by an entry": [
        *PARTED,
        happens(LEARNED, HAS_SPLIT, HAS_SPLIT._replace(commit=3), args=(E, 3)),
    ],
    "R18 the only rows of child 1": [
        *COMMITTED,
        happens(INSTALLED, FOLLOWS, snapshot_at(9), args=(9, E)),
    ],
    "R18 what was split off takes the place": [
        *COMMITTED,
        happens(FORKED, known(view(log=(E,)), CHILD, 0), FORK, args=(3, E)),
    ],
    "R18 becomes what another entry": [
        *COMMITTED,
        happens(FORKED, EMPTY, FORK._replace(base=(E, 2), last=2, commit=2), args=(2, E)),
    ],
    "R18 becomes what an entry split off that is not": [*PARTED, happens(FORKED, EMPTY, FORK, args=(3, E))],
    "R18 a child begins without": [
        CHILD_LEADS,
        heard(A, m.Sealed(0, LATER, 0, 0, 0, 0), CHILD_BEGUN, CHILD_BEGUN),
        heard(B, m.Sealed(0, LATER, 0, 0, 0, 0), CHILD_BEGUN, CHILD_ADOPTS, became(ACTIVATING)),
    ],
}


def rules() -> Rules:
    return Rules(A, CoreSettings(), partings=Partings())


@pytest.mark.parametrize("rule", PLANTED)
def test_a_step_that_no_rule_allows_is_seen(rule: str) -> None:
    *before, last = PLANTED[rule]
    judge = rules()
    for step in before:
        judge.check(step)
    with pytest.raises(Violation) as seen:
        judge.check(last)
    assert str(seen.value).startswith("step: " + rule.split(" (")[0])


ALLOWED: dict[str, list[Step]] = {
    "a member joins": [*LEADS, CAUGHT_UP, tick(ACTS, change(JOINT))],
    "the joint term is left": [*ACTIVE_JOINT, tick(ACTS_JOINT, change(FINAL))],
    "a joint term that is not activated goes back": [*ADOPTS_JOINT, tick(IN_JOINT, change(BACK))],
    "a split is recorded": [*COMMITTED, tick(APPLIED, change(NARROWED, child=CHILD), held=frozenset({1}))],
    "what lies below is proposed": [*PARTED, proposes(HAS_SPLIT, [DELETE, BELOW, -1, 0])],
    "the entry is known by its child": [
        *COMMITTED,
        happens(LEARNED, HAS_SPLIT, APPLIED, args=(E, 3)),
    ],
    "a snapshot, and the child is durable": [
        *COMMITTED,
        happens(INSTALLED, FOLLOWS, snapshot_at(9), args=(9, E))._replace(held=frozenset({1})),
    ],
    "an empty replica becomes the fork": [*COMMITTED, happens(FORKED, EMPTY, FORK, args=(3, E))],
    "a state alone is replaced": [staged(FOLLOWS._replace(damaged=True), 2, install(2, keep_log=True))],
    "a snapshot is switched in": [
        staged(FOLLOWS, 5, install(5)),
        happens(
            INSTALLED,
            FOLLOWS._replace(installing=True),
            snapshot_at(5),
            args=(5, E),
        ),
    ],
}


@pytest.mark.parametrize("story", ALLOWED)
def test_what_the_rules_allow_is_no_violation(story: str) -> None:
    """Beside each rule that a planted step breaks stands one that keeps it."""
    judge = rules()
    for step in ALLOWED[story]:
        judge.check(step)


def test_a_store_that_the_record_left_out_needs_no_copy() -> None:
    judge = rules()
    assert judge.partings is not None
    judge.partings.left.add((1, (A.node, A.store)))
    for step in PLANTED["R18 the only rows of child 1"]:
        judge.check(step)
