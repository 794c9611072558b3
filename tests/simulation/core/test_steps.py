"""The check of the core's steps sees what it is to see: planted steps, one by one, and planted bugs in the core."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.electing import PartitionReplica
from metastore.core.entry import pack_entry
from metastore.core.leading import LeadingReplica
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.replica import ACTIVATING, ACTIVE, FOLLOWER, RESIGNED, SEALING, Replica
from metastore.core.settings import MS, CoreSettings
from metastore.core.term import Term
from metastore.layout import ConfigRecord, first_epoch
from tests.simulation.core.plans import PLANS, SETTINGS
from tests.simulation.core.rules import Rules
from tests.simulation.core.steps import INSTALLED, Step, View
from tests.simulation.core.world import World, world_of
from tests.simulation.violation import Violation

A, B, C = (Process(name, f"s-{name}", "1") for name in "abc")
E = first_epoch(3)
LATER = first_epoch(4)
CONFIG = ConfigRecord(0, 0, 1 << 64, E, "a", tuple((p.node, p.store) for p in (A, B, C)))
SECOND = 1000 * MS


def view(role: str = FOLLOWER, owner: Process = B, log: tuple[int, ...] = (E, E), **more: Any) -> View:
    """A replica whose log has entries of these epochs, the first one committed."""
    firsts = [i for i in range(1, len(log) + 1) if i == 1 or log[i - 2] != log[i - 1]]
    epochs = tuple(log[i - 1] for i in firsts)
    plain = View(E, owner, role, 1, (0, 0), len(log), tuple(firsts), epochs, 0, 0, CONFIG)
    return plain._replace(**more)


def entry(index: int, epoch: int = E) -> bytes:
    return pack_entry(index, epoch, b"")


def append(prev: int, *epochs: int, commit: int = 0, prev_epoch: int = E) -> m.Append:
    return m.Append(0, E, prev_epoch, prev, commit, [entry(prev + 1 + i, e) for i, e in enumerate(epochs)])


def sealed_by(owner: Process, epoch: int = E, config: ConfigRecord = CONFIG) -> fx.PersistSeal:
    return fx.PersistSeal(0, epoch, owner, pack_config(config))


def became(role: str) -> fx.RoleChanged:
    return fx.RoleChanged(0, role, "", E, "")


def answer(last: tuple[int, int], commit: int = 1, left: int = 0, to: str = "b", epoch: int = E) -> fx.Send:
    return fx.Send(to, m.Sealed(0, epoch, *last, commit, left), True)


NONE = view(owner=C, log=())._replace(sealed=0, owner=None, commit=0)
BEGUN = view(SEALING, A, log=(), commit=0)
#: a begins its term: what a story of a leader starts with
BEGIN = Step(0, "campaign done", None, NONE, BEGUN, [sealed_by(A), became(SEALING)])
LED = view(ACTIVATING, A, log=(E,), commit=0)


def heard(src: Process, event: Any, before: View, after: View, *effects: Any, now: int = SECOND) -> Step:
    return Step(now, event, src, before, after, list(effects))


def sealed(src: Process, last: tuple[int, int] = (0, 0), left: int = 0) -> Step:
    return heard(src, m.Sealed(0, E, *last, 0, left), BEGUN, BEGUN)


def adopted(src: Process = B, last: tuple[int, int] = (0, 0), left: int = 0) -> Step:
    return heard(src, m.Sealed(0, E, *last, 0, left), BEGUN, LED, became(ACTIVATING))


LEADS = [BEGIN, sealed(A), adopted()]
COMMITTED = LED._replace(commit=1)
ACTS = view(ACTIVE, A, log=(E,))


def appended(src: Process, match: int, before: View, after: View, *effects: Any) -> Step:
    return heard(src, m.Appended(0, E, match), before, after, *effects)


SERVES = [*LEADS, appended(A, 1, LED, LED), appended(B, 1, LED, ACTS, became(ACTIVE))]
TWO = view(ACTIVE, A)
HANDED = fx.Send("b", m.HandOff(0, E))
FOLLOWS = view()
GRANTED = heard(
    B,
    m.Heartbeat(7, 0, [(0, E, 1, 0)]),
    FOLLOWS,
    FOLLOWS,
    fx.Send("b", m.HeartbeatAck(7, 0, SECOND, []), True),
)
D = Process("d", "s-d", "1")
LATEST = first_epoch(5)
SEAL_C, SEAL_D = m.Seal(0, LATER, b"", 0), m.Seal(0, LATEST, b"", 0)
FOR_C, FOR_D = view(owner=C, sealed=LATER), view(owner=D, sealed=LATEST)
#: c has it promise less than b did
GRANTED_LATER = heard(
    C,
    m.Heartbeat(8, 0, [(0, LATER, 1, 0)]),
    FOR_C,
    FOR_C,
    fx.Send("c", m.HeartbeatAck(8, 0, SECOND // 2, []), True),
)
#: rule -> steps of a, the last of which breaks it
PLANTED: dict[str, list[Step]] = {
    "I7 the sealed epoch went down": [heard(B, append(2), FOLLOWS, FOLLOWS._replace(sealed=E - 1))],
    "R1 the owner of an epoch changed": [heard(C, m.Seal(0, E, b"", 0), FOLLOWS, FOLLOWS._replace(owner=C))],
    "R1 an epoch is sealed and not persisted": [heard(C, SEAL_C, FOLLOWS, FOR_C)],
    "R1 sealed another epoch": [heard(C, SEAL_C, FOLLOWS, FOR_C._replace(owner=B), sealed_by(B, LATER))],
    "R1 sealed for another without": [Step(0, "tick", None, FOLLOWS, FOR_C, [sealed_by(C, LATER)])],
    "R1 a message left before": [
        heard(C, SEAL_C, FOLLOWS, FOR_C, answer((E, 2), epoch=LATER), sealed_by(C, LATER))
    ],
    "R1 an epoch under the config": [
        Step(0, "tick", None, FOLLOWS, view(SEALING, A, sealed=LATER), [sealed_by(A, LATER), became(SEALING)])
    ],
    "R12 neither a term": [
        Step(0, "tick", None, FOLLOWS, view(SEALING, A, sealed=E + 2), [sealed_by(A, E + 2), became(SEALING)])
    ],
    "R1 acts on a message of another owner": [
        heard(C, append(2), FOLLOWS, FOLLOWS, fx.Send("b", m.Appended(0, E, 2), True))
    ],
    "R1 acknowledges to one": [
        heard(B, append(2), FOLLOWS, FOLLOWS, fx.Send("c", m.Appended(0, E, 2), True))
    ],
    "R3 follower became active": [Step(0, "tick", None, FOLLOWS, view(ACTIVE), [became(ACTIVE)])],
    "R3 no quorum of answers": [BEGIN, heard(A, m.Sealed(0, E, 0, 0, 0, 0), BEGUN, LED, became(ACTIVATING))],
    "R3 no quorum of answers is covered": [BEGIN, sealed(A), adopted(last=(E - 1, 5))],
    "R3 answers with another position": [
        heard(C, SEAL_C, FOLLOWS, FOR_C, sealed_by(C, LATER), answer((E, 1), to="c", epoch=LATER))
    ],
    "R3 leaves out a grant": [
        GRANTED,
        heard(C, SEAL_C, FOLLOWS, FOR_C, sealed_by(C, LATER), answer((E, 2), to="c", epoch=LATER)),
    ],
    "R3 leaves out a grant (the longest of two)": [
        GRANTED,
        GRANTED_LATER,
        heard(
            D,
            SEAL_D,
            FOR_C,
            FOR_D,
            sealed_by(D, LATEST),
            answer((E, 2), left=SECOND // 2, to="d", epoch=LATEST),
        ),
    ],
    "R4 active before its no-op": [
        *LEADS,
        Step(0, "tick", None, LED, view(ACTIVE, A, log=(E,), commit=0), [became(ACTIVE)]),
    ],
    "R4 active before the grants": [
        BEGIN,
        sealed(A),
        adopted(left=SECOND),
        appended(A, 1, LED, LED),
        appended(B, 1, LED, ACTS, became(ACTIVE)),
    ],
    "R4 active before the grants (the margin)": [
        BEGIN,
        sealed(A),
        adopted(left=SECOND),
        appended(A, 1, LED, LED),
        appended(B, 1, LED, ACTS, became(ACTIVE))._replace(now=2 * SECOND + 1),
    ],
    "R5 takes entries after a position": [heard(B, append(4, E), FOLLOWS, view(log=(E, E, E)))],
    "R5 entry 3 has another epoch": [heard(B, append(2, E - 1), FOLLOWS, view(log=(E, E, E)))],
    "R5 entry 3 comes from nowhere": [heard(B, append(2), FOLLOWS, view(log=(E, E, E)))],
    "R5 truncated, and no owner": [Step(0, "tick", None, FOLLOWS, view(log=(E,)), [])],
    "R5 acknowledges what it does not have": [
        heard(B, append(2), FOLLOWS, FOLLOWS, fx.Send("b", m.Appended(0, E, 3), True))
    ],
    "R5 appends under an epoch": [Step(0, "tick", None, FOLLOWS, FOLLOWS, [fx.Send("c", append(1))])],
    "I4 truncated to 0": [heard(B, append(0, E), FOLLOWS, view(log=(E + 1,), commit=1))],
    "I7 the commit index went down": [heard(B, append(2), FOLLOWS, FOLLOWS._replace(commit=0))],
    "I3 commits what it does not have": [heard(B, append(2, commit=3), FOLLOWS, FOLLOWS._replace(commit=3))],
    "R6 commits beyond": [heard(B, append(1, commit=2), FOLLOWS, FOLLOWS._replace(commit=2))],
    "R6 commits by itself": [Step(0, "tick", None, FOLLOWS, FOLLOWS._replace(commit=2), [])],
    "R6 commits without a quorum": [*LEADS, appended(A, 1, LED, COMMITTED)],
    "R6 commits an entry of an earlier epoch": [
        BEGIN,
        sealed(A),
        heard(
            B,
            m.Sealed(0, E, 0, 0, 0, 0),
            view(SEALING, A, log=(1,), commit=0),
            view(ACTIVATING, A, log=(1, E), commit=0),
            became(ACTIVATING),
        ),
        appended(A, 2, view(ACTIVATING, A, log=(1, E), commit=0), view(ACTIVATING, A, log=(1, E), commit=0)),
        appended(B, 1, view(ACTIVATING, A, log=(1, E), commit=0), view(ACTIVATING, A, log=(1, E), commit=1)),
    ],
    "R7 appends as activating": [*LEADS, Step(0, "propose", None, LED, view(ACTIVATING, A, commit=0), [])],
    "R8 a grant to another": [GRANTED._replace(src=C)],
    "R8 takes itself for fresh": [
        heard(B, m.Heartbeat(7, SECOND, [(0, E, m.HEALTHY, 0)]), FOLLOWS, FOLLOWS._replace(fresh=SECOND))
    ],
    "R8 takes itself for fresh (it lacks what is committed)": [
        heard(B, m.Heartbeat(7, SECOND, [(0, E, m.FRESH, 2)]), FOLLOWS, FOLLOWS._replace(fresh=SECOND))
    ],
    "R8 takes itself for fresh (as of its own receipt)": [
        heard(B, m.Heartbeat(7, 1, [(0, E, m.FRESH, 1)]), FOLLOWS, FOLLOWS._replace(fresh=SECOND))
    ],
    "R8 says fresh": [
        *SERVES,
        Step(SECOND, "tick", None, ACTS, ACTS, [fx.Send("b", m.Heartbeat(7, 0, [(0, E, m.FRESH, 1)]))]),
    ],
    "R8 holds grants for longer": [
        *SERVES,
        Step(SECOND, "tick", None, ACTS, ACTS, [fx.Send("b", m.Heartbeat(7, 0, []))]),
        heard(B, m.HeartbeatAck(7, 0, SECOND, []), ACTS, ACTS._replace(read_until=2 * SECOND)),
    ],
    "R11 resigns before its target": [
        *SERVES,
        Step(0, "propose", None, ACTS, TWO, []),
        appended(A, 2, TWO, TWO),
        appended(
            C, 2, TWO, TWO._replace(role=RESIGNED, commit=2), became("resigning"), became(RESIGNED), HANDED
        ),
    ],
    "R17 a snapshot below": [Step(0, INSTALLED, None, view(commit=2), view(log=(), base=(E, 1), last=1), [])],
}


@pytest.mark.parametrize("rule", PLANTED)
def test_a_step_that_no_rule_allows_is_seen(rule: str) -> None:
    *before, last = PLANTED[rule]
    rules = Rules(A, CoreSettings())
    for step in before:
        rules.check(step)
    with pytest.raises(Violation) as seen:
        rules.check(last)
    assert str(seen.value).startswith("step: " + rule.split(" (")[0])


def test_a_restarted_replica_is_quiet_until_its_grants_have_passed() -> None:
    own = heard(A, m.Seal(0, E, b"", 0), BEGUN, BEGUN, answer((0, 0), 0, to="a"))
    Rules(A, CoreSettings(), SECOND).check(own)
    with pytest.raises(Violation, match="R8 a restarted replica answers"):
        Rules(A, CoreSettings(), SECOND + 1).check(own)


def test_what_is_written_can_be_replayed() -> None:
    """Steps are plain data: written out, read back, and judged again without the core."""
    world = world_of(3)
    world.checked, world.trace = True, []
    world.play()
    assert len(world.trace) > 1000
    assert {type(step.event) for _, _, step in world.trace} > {m.Append, m.Seal, m.Sealed, m.Heartbeat, str}
    judges: dict[Process, Rules] = {}
    for me, quiet_until, step in pickle.loads(pickle.dumps(world.trace)):
        judges.setdefault(me, Rules(me, SETTINGS, quiet_until)).check(step)
    assert len(judges) >= 3


Patch = Callable[[pytest.MonkeyPatch], None]


def adopt_own_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Term, "best_answer", lambda self: self.me)


def seal_without_quorum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Term, "sealed_quorum", lambda self: self.me in self.answers)


def skip_the_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Term, "grants_passed", lambda self, now, settings: True)


def commit_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Term, "committed_index", lambda self: self.progress[self.me].match)


def commit_as_the_leader(patch: pytest.MonkeyPatch) -> None:
    """A follower's commit index is the leader's, as far as its log goes."""
    original = Replica.on_append

    def on_append(self: Any, now: int, src: Process, msg: m.Append) -> None:
        original(self, now, src, msg)
        if (msg.epoch, src) == (self.sealed_epoch, self.owner) and not self.installing:
            self.advance_commit(min(msg.commit, self.log.last_index))

    patch.setattr(Replica, "on_append", on_append)


def answer_no_grants(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replica, "remaining_grant_ns", lambda self, now, owner, resigned: 0)


def grant_to_anybody(patch: pytest.MonkeyPatch) -> None:
    original = Replica.grant

    def grant(self: Any, now: int, src: Process, *beat: Any) -> bool:
        return original(self, now, src, *beat) or beat[0] >= self.sealed_epoch

    patch.setattr(Replica, "grant", grant)


def hold_without_margin(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CoreSettings, "shrunk", lambda self, duration: duration)


def answer_own_seal_at_once(patch: pytest.MonkeyPatch) -> None:
    original = Replica.on_seal

    def on_seal(self: Any, now: int, src: Process, msg: m.Seal) -> None:
        until = self.ctx.seal_not_before_ns
        if src == self.ctx.me:
            self.ctx.seal_not_before_ns = 0
        original(self, now, src, msg)
        self.ctx.seal_not_before_ns = until

    patch.setattr(Replica, "on_seal", on_seal)


def resign_before_the_heir_has_it(patch: pytest.MonkeyPatch) -> None:
    def continue_handoff(self: Any, now: int) -> None:
        term = self.term
        if term is not None and self.role == "resigning" and self.commit_index == self.log.last_index:
            self.set_role(RESIGNED, "too early")
            self.resigned(now, term)

    patch.setattr(LeadingReplica, "continue_handoff", continue_handoff)


def say_fresh_when_healthy(patch: pytest.MonkeyPatch) -> None:
    original = NodeCore._quorum_asked

    def heartbeat(self: Any, now: int, event: Any = None) -> None:
        patch.setattr(LeadingReplica, "can_read", LeadingReplica.is_healthy)
        original(self, now)
        patch.setattr(LeadingReplica, "can_read", can_read)

    can_read = LeadingReplica.can_read
    patch.setattr(NodeCore, "_quorum_asked", heartbeat)


def begin_the_same_again(patch: pytest.MonkeyPatch) -> None:
    original = LeadingReplica.begin_term

    def begin_term(self: Any, now: int, epoch: int, config: Any, reason: str, resigned: int = 0) -> None:
        original(self, now, epoch + ("R12" in reason), config, reason, resigned)

    patch.setattr(PartitionReplica, "begin_term", begin_term)


def go_back_to_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    def on_snapshot_staged(
        self: Any, now: int, src: Process, epoch: int, index: int, index_epoch: int
    ) -> None:
        if self.installing or not self.obeys(now, src, epoch):
            self.emit(fx.DiscardSnapshot(self.p))
            return
        self.installing = True
        self.emit(fx.InstallSnapshot(self.p, index, index_epoch))

    patch.setattr(Replica, "on_snapshot_staged", on_snapshot_staged)


#: a bug in the core -> the rule that its first step breaks, and a plan in which it comes up
BUGS: list[tuple[Patch, str, str]] = [
    (adopt_own_log, "R3 no quorum of answers is covered", "calm network, crashes"),
    (seal_without_quorum, "R3 no quorum of answers", "everything"),
    (skip_the_wait, "R4 active before the grants", "cuts"),
    (commit_by_one, "R6 commits without a quorum", "everything"),
    (commit_as_the_leader, "R6 commits beyond", "short reigns"),
    (answer_no_grants, "R3 leaves out a grant", "cuts"),
    (grant_to_anybody, "R8 a grant to another", "resets, long grants"),
    (hold_without_margin, "R8 holds grants for longer", "everything"),
    (answer_own_seal_at_once, "R8 a restarted replica answers", "calm network, crashes"),
    (resign_before_the_heir_has_it, "R11 resigns before", "hand-offs"),
    (say_fresh_when_healthy, "R8 says fresh", "everything"),
    (begin_the_same_again, "R12 neither a term", "no etcd for long"),
    (go_back_to_a_snapshot, "R17 a snapshot below what is committed", "calm network, crashes"),
]


def first_violation(plan: str) -> str:
    """What the first of forty schedules that is seen says."""
    for seed in range(40):
        try:
            World(seed, PLANS[plan]).play()
        except Violation as e:
            return str(e).splitlines()[0]
    return "nothing"


@pytest.mark.parametrize(("bug", "rule", "plan"), BUGS, ids=[bug.__name__ for bug, *_ in BUGS])
def test_a_bug_in_the_core_is_seen_at_its_first_step(
    bug: Patch, rule: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    assert rule in first_violation(plan)
