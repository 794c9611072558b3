"""Trace validation: every step of a replica is one that the rules allow.

The simulation writes each step of the real core as plain data: what happened, the replica before and after, what it
asked for. ``Rules`` replays the steps of one process and remembers, from the messages alone, what that process may rely
on: who answered its SEAL and when, what followers have acknowledged, which grants it holds and gave. Nothing here calls
the core's own arithmetic, so a mistake there is not repeated here. Raises Violation that names the rule.
"""

from __future__ import annotations

from typing import Any

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import unpack_config
from metastore.core.entry import entry_position
from metastore.core.messages import Process
from metastore.core.replica import ACTIVATING, ACTIVE, ADOPTING, FOLLOWER, RESIGNED, RESIGNING, SEALING
from metastore.core.settings import CoreSettings
from tests.simulation.core.changes import Changes
from tests.simulation.core.steps import (
    FORKED,
    INSTALLED,
    LEARNED,
    LOG,
    STAGED,
    Answer,
    Partings,
    Reign,
    Step,
    View,
)
from tests.simulation.violation import Violation

#: role -> what it may become within one step. SEALING begins a later epoch, whatever came before
EDGES = {
    FOLLOWER: {FOLLOWER, SEALING},
    SEALING: {FOLLOWER, ADOPTING, ACTIVATING},
    ADOPTING: {FOLLOWER, SEALING, ACTIVATING},
    ACTIVATING: {FOLLOWER, ACTIVE},
    ACTIVE: {FOLLOWER, RESIGNING},
    RESIGNING: {FOLLOWER, ACTIVE, RESIGNED},
    RESIGNED: {FOLLOWER},
}


#: effects that ask something of etcd, of snapshots, or that may propose
ASKING = {fx.Campaign, fx.ChangeConfig, fx.StartSnapshot, fx.InstallSnapshot, fx.PersistEntries}


class Rules(Changes):
    """The steps of one process in partition ``p``, in order. ``quiet_until``: it has forgotten its grants until
    then (R8). ``partings``: of a world in which partitions are split."""

    def __init__(
        self,
        me: Process,
        settings: CoreSettings,
        quiet_until: int = 0,
        p: int = 0,
        partings: Partings | None = None,
    ) -> None:
        super().__init__(me, p, partings)
        self.settings, self.quiet_until = settings, quiet_until
        #: R8: process -> [(epoch, until)] of grants given
        self.given: dict[Process, dict[int, int]] = {}
        #: R11: an epoch resigned -> the process that owned it, as sealed here
        self.owned: dict[int, Process] = {}
        #: (to whom, number of a heartbeat that covers this partition) -> when it was sent
        self.beats: dict[tuple[str, int], int] = {}

    def check(self, step: Step) -> None:
        """Raises Violation unless the rules allow it."""
        before, after = step.before, step.after
        if not step.effects and before == after:
            if step.src is not None:
                self.hear(step)
            return
        kinds = {type(e) for e in step.effects}
        if before.sealed != after.sealed or before.owner != after.owner or fx.PersistSeal in kinds:
            self.check_seal(step)
        if before.config is not after.config and before.config != after.config:
            self.check_record(step)
        if fx.Send in kinds or step.src is not None:
            self.hear(step)
        if fx.RoleChanged in kinds or before.role != after.role:
            self.check_roles(step)
        if before[LOG] != after[LOG]:
            self.check_log(step)
        if before.commit != after.commit:
            self.check_commit(step)
            if self.partings is not None:
                self.partings.commit(self.p, before.commit, after)
        if not ASKING.isdisjoint(kinds):
            self.check_asked(step)
        if fx.Send in kinds:
            self.check_sent(step)
        if before.fresh != after.fresh:
            self.check_fresh(step)
        if after.role == ACTIVE and after.read_until > before.read_until:
            self.check_grants_held(after)

    def drift(self, duration: int) -> int:
        """R15: by how much two clocks may part in ``duration``."""
        return duration * 2 * self.settings.clock_rate_error_ppm // 1_000_000

    # --- R1 -----------------------------------------------------------------------------------------

    def check_seal(self, step: Step) -> None:
        """The sealed epoch only grows, with its owner, and is persisted before anything else of that epoch."""
        before, after, event = step.before, step.after, step.event
        seals = [e for e in step.effects if isinstance(e, fx.PersistSeal)]
        if before.owner is not None:
            self.owned[before.sealed] = before.owner
        if after.sealed < before.sealed:
            self.fail(step, "I7 the sealed epoch went down")
        if after.sealed == before.sealed:
            if after.owner != before.owner or seals:
                self.fail(step, "R1 the owner of an epoch changed")
            return
        if not seals or (seals[-1].epoch, seals[-1].owner) != (after.sealed, after.owner):
            self.fail(step, "R1 an epoch is sealed and not persisted")
        for effect in step.effects:
            if isinstance(effect, fx.PersistSeal):
                break
            if isinstance(effect, fx.Send) and getattr(effect.message, "epoch", 0) == after.sealed:
                self.fail(step, "R1 a message left before its epoch was persisted")
        if isinstance(event, m.Seal):
            if (after.sealed, after.owner) != (event.epoch, step.src):
                self.fail(step, "R1 sealed another epoch or owner than was asked")
        elif after.owner != self.me:
            self.fail(step, "R1 sealed for another without being asked")
        if after.owner == self.me:
            config = unpack_config(seals[-1].config)
            if config.epoch >> 16 != after.sealed >> 16:
                self.fail(step, "R1 an epoch under the config of another term")
            fresh = after.sealed >> 16 > before.sealed >> 16 and after.sealed == config.epoch
            if not fresh and after.sealed != max(before.sealed, config.epoch) + 1:
                self.fail(step, "R12 neither a term that etcd gave nor the next restart")
            self.check_begun(step, config, fresh)
            self.reign = Reign(after.sealed, config, self.me)
        else:
            self.reign = None

    # --- what is heard -------------------------------------------------------------------------------

    def hear(self, step: Step) -> None:
        """What this process may count from now on."""
        event, src, reign = step.event, step.src, self.reign
        for effect in step.effects:
            said = effect.message if isinstance(effect, fx.Send) else None
            if isinstance(said, m.Heartbeat) and any(beat[0] == self.p for beat in said.beats):
                self.beats[effect.node, said.number] = step.now  # type: ignore[union-attr]
        if isinstance(event, m.Heartbeat):
            self.give(step, event)
        if reign is None or src is None:
            return
        if not reign.is_member(src):
            if (
                isinstance(event, m.Appended)
                and event.epoch == reign.epoch
                and event.match <= step.before.last
            ):
                who = src.node, src.store
                reign.learned[who] = max(event.match, reign.learned.get(who, 0))
            return
        if isinstance(event, m.Sealed) and event.epoch == reign.epoch:
            answer = Answer((event.last_epoch, event.last_index), event.remaining_grant_ns, step.now)
            reign.answers.setdefault(src.node, []).append(answer)
        elif isinstance(event, m.Appended) and event.epoch == reign.epoch and reign.noop:
            if event.match <= step.before.last:
                reign.match[src.node] = max(event.match, reign.match.get(src.node, 0))
        elif isinstance(event, m.HeartbeatAck) and self.p not in dict(event.refused):
            sent = self.beats.get((src.node, event.number))
            if sent is not None:
                until = sent + event.grant_ns - self.drift(event.grant_ns)
                reign.hold[src.node] = max(until, reign.hold.get(src.node, 0))

    def give(self, step: Step, beat: m.Heartbeat) -> None:
        """R8: a grant is given only to the owner of the sealed epoch."""
        acks = [
            e.message
            for e in step.effects
            if isinstance(e, fx.Send) and isinstance(e.message, m.HeartbeatAck)
        ]
        refused = {p for ack in acks for p, _ in ack.refused}
        for p, epoch, _, _ in beat.beats:
            if p != self.p or not acks or p in refused:
                continue
            if (epoch, step.src) != (step.after.sealed, step.after.owner):
                self.fail(step, "R8 a grant to another than the owner of the sealed epoch")
            assert step.src is not None
            self.given.setdefault(step.src, {})[epoch] = step.now + acks[0].grant_ns

    def owed(self, now: int, owner: Process, resigned: int) -> int:
        """R3: what is left of the grants given to others than ``owner``, R11's exceptions left out."""
        left = 0
        for process, grants in self.given.items():
            for epoch, until in grants.items():
                excused = resigned and (
                    epoch == resigned or (epoch < resigned and self.owned.get(resigned) == process)
                )
                if process != owner and not excused:
                    left = max(left, until - now)
        return left

    # --- roles ----------------------------------------------------------------------------------------

    def check_roles(self, step: Step) -> None:
        role = step.before.role
        for effect in step.effects:
            if not isinstance(effect, fx.RoleChanged):
                continue
            if effect.role not in EDGES[role]:
                self.fail(step, f"R3 {role} became {effect.role}")
            if effect.role == ACTIVATING:
                self.check_adoption(step)
            elif effect.role == ACTIVE and role == ACTIVATING:
                self.check_activation(step)
                if self.reign is not None:
                    self.reign.activated = True
            elif effect.role == RESIGNED:
                self.check_resignation(step)
            role = effect.role
        if role != step.after.role:
            self.fail(step, f"R3 is {step.after.role} and said {role}")
        if role == FOLLOWER:
            self.reign = None
        elif role != RESIGNED and (step.after.owner != self.me or self.reign is None):
            self.fail(step, "R1 leads an epoch that it does not own")

    def check_adoption(self, step: Step) -> None:
        """R3: a quorum answered whose logs are no higher than ours; then the no-op of this very epoch."""
        reign, after = self.reign, step.after
        if reign is None:
            self.fail(step, "R3 adopts without a term")
            return
        noop = after.last
        if after.epoch_at(noop) != reign.epoch or (
            noop > after.base[1] and _epoch_before(after, noop) >= reign.epoch
        ):
            self.fail(step, "R3 no no-op of its epoch ends the adopted log")
        own = (_epoch_before(after, noop), noop - 1)
        having = {n for n, answers in reign.answers.items() if any(a.position <= own for a in answers)}
        if self.me.node not in having or not reign.quorum(having):
            self.fail(step, "R3 no quorum of answers is covered by the log adopted")
        self.check_origin(step, own)
        reign.noop = noop

    def check_activation(self, step: Step) -> None:
        """R4: the no-op is committed, and the grants of a quorum of answers have passed since these arrived."""
        reign = self.reign
        if reign is None or not reign.noop or step.after.commit < reign.noop:
            self.fail(step, "R4 active before its no-op is committed")
            return
        passed = {
            node
            for node, answers in reign.answers.items()
            if any(
                not a.remaining or step.now > a.arrived + a.remaining + self.drift(a.remaining)
                for a in answers
            )
        }
        if not reign.quorum(passed):
            self.fail(step, "R4 active before the grants of a quorum have passed")

    def check_resignation(self, step: Step) -> None:
        """R11: everything is committed, and the target has all of it."""
        reign, last = self.reign, step.after.last
        if reign is None or step.after.commit != last:
            self.fail(step, "R11 resigns with entries that are not committed")
            return
        for effect in step.effects:
            if not isinstance(effect, fx.Send) or not isinstance(effect.message, m.HandOff | m.Appoint):
                continue
            if reign.match.get(effect.node, 0) < last:
                self.fail(step, "R11 resigns before its target has its whole log")

    # --- the log ------------------------------------------------------------------------------------------

    def check_log(self, step: Step) -> None:
        """R5, R17: what was taken away and what was added, and by whom."""
        before, after, event = step.before, step.after, step.event
        if event == INSTALLED:
            self.check_installed(step)
            return
        if event == FORKED:
            self.check_forked(step)
            return
        if before.installing:
            self.fail(step, "R17 its log changes while a snapshot is switched in")
        if after.base[1] > max(before.base[1], before.commit):
            self.fail(step, "R17 compacted beyond what is committed")
        kept = _common(before, after)
        if kept < min(before.last, max(before.commit, after.base[1])):
            self.fail(step, f"I4 truncated to {kept}, below commit {before.commit}")
        obeyed = (
            step.src is not None and step.src == after.owner and getattr(event, "epoch", -1) == after.sealed
        )
        appends = isinstance(event, m.Append) and obeyed
        pulls = isinstance(event, m.Pulled) and before.role == ADOPTING and event.epoch == before.sealed
        if kept < before.last and not appends and not pulls:
            self.fail(step, "R5 truncated, and no owner said so")
        first = kept + 1
        if appends or pulls:
            self.check_taken(step, event, kept)
            first = max(first, event.prev_index + len(event.entries) + 1)
        # what is left is an entry of its own
        if first > after.last:
            return
        leads = after.owner == self.me and after.role in (ACTIVATING, ACTIVE, RESIGNING, RESIGNED)
        if not leads or after.last > first or after.epoch_at(first) != after.sealed:
            self.fail(step, f"R5 entry {first} comes from nowhere")
        if before.role not in (ACTIVE, SEALING, ADOPTING):
            self.fail(step, f"R7 appends as {before.role}")

    def check_taken(self, step: Step, event: Any, kept: int) -> None:
        """R5: entries stand where and under what epoch they were sent, after a position that was there."""
        before, after, prev = step.before, step.after, event.prev_index
        if kept < before.last and kept < prev:
            self.fail(step, "R5 truncated below what was sent")
        if prev > before.commit and (prev > before.last or before.epoch_at(prev) != event.prev_epoch):
            self.fail(step, "R5 takes entries after a position that it lacks")
        for blob in event.entries:
            index, epoch = entry_position(blob)
            if (
                after.base[1] < index <= after.last
                and index > before.commit
                and after.epoch_at(index) != epoch
            ):
                self.fail(step, f"R5 entry {index} has another epoch than was sent")

    def check_commit(self, step: Step) -> None:
        """R6, I7."""
        before, after, event, reign = step.before, step.after, step.event, self.reign
        if event in (INSTALLED, FORKED):
            return
        if after.commit < before.commit:
            self.fail(step, "I7 the commit index went down")
        if after.commit > after.last:
            self.fail(step, "I3 commits what it does not have")
        if event == LEARNED:
            self.check_learned(step)
            return
        if event == STAGED:
            epoch, index, index_epoch = step.args
            own = (epoch, step.src) == (after.sealed, after.owner)
            if not own or not before.has(index_epoch, index) or after.commit != index:
                self.fail(step, "R17 commits what its log does not share with the snapshot")
            return
        if isinstance(event, m.Append):
            if (event.epoch, step.src) != (after.sealed, after.owner):
                self.fail(step, "R6 commits by one that does not lead")
            prev = event.prev_index
            lacks = prev > before.last or (prev > before.commit and before.epoch_at(prev) != event.prev_epoch)
            if lacks or after.commit > min(event.commit, prev + len(event.entries)):
                self.fail(step, "R6 commits beyond what the leader has committed, or beyond the match")
            return
        if reign is None:
            self.fail(step, "R6 commits by itself")
            return
        having = {node for node, match in reign.match.items() if match >= after.commit}
        if not reign.quorum(having):
            self.fail(step, "R6 commits without a quorum of acknowledgements")
        if after.epoch_at(after.commit) != reign.epoch:
            self.fail(step, "R6 commits an entry of an earlier epoch by counting")

    # --- what is said -----------------------------------------------------------------------------------------

    def check_sent(self, step: Step) -> None:
        after, role = step.after, step.before.role
        for effect in step.effects:
            if isinstance(effect, fx.RoleChanged):
                role = effect.role
            if not isinstance(effect, fx.Send):
                continue
            said = effect.message
            kind = type(said)
            if after.lost:
                self.check_lacking(step, said)
            if kind is m.Append:
                if said.epoch != after.sealed or after.owner != self.me:
                    self.fail(step, "R5 appends under an epoch that it does not own")
                if (
                    said.commit > after.commit
                    or after.epoch_at(max(said.prev_index, after.base[1])) < said.prev_epoch
                ):
                    self.fail(step, "R5 says more than it knows")
            elif kind is m.Sealed:
                self.check_answer(step, effect, said)
            elif kind is m.Appended:
                if not effect.durable or said.epoch != after.sealed or said.match > after.last:
                    self.fail(step, "R5 acknowledges what it does not have")
                pulled = isinstance(step.event, str) and step.before.role == ADOPTING
                if not pulled and (after.owner is None or effect.node != after.owner.node):
                    self.fail(step, "R1 acknowledges to one that does not own the epoch")
                if isinstance(step.event, m.Append) and step.src != after.owner:
                    self.fail(step, "R1 acts on a message of another owner")
            elif kind is m.Heartbeat:
                self.check_beats(step, said, role)
            elif kind is m.Pulled and step.src != after.owner:
                self.fail(step, "R1 gives its log to one that does not own the epoch")

    def check_answer(self, step: Step, effect: fx.Send, said: m.Sealed) -> None:
        """R3: the position behind everything accepted, and every grant given."""
        after, event = step.after, step.event
        if not effect.durable or (said.epoch, step.src) != (after.sealed, after.owner):
            self.fail(step, "R3 answers a SEAL of an epoch that it has not sealed for its owner")
        if (said.last_epoch, said.last_index) != after.position() or said.commit != after.commit:
            self.fail(step, "R3 answers with another position than its log has")
        assert step.src is not None
        if said.remaining_grant_ns < self.owed(step.now, step.src, event.resigned):
            self.fail(step, "R3 leaves out a grant that it gave")
        if step.now < self.quiet_until:
            self.fail(step, "R8 a restarted replica answers before its grants have passed")

    def check_beats(self, step: Step, said: m.Heartbeat, role: str) -> None:
        """R8: a beat says fresh only while its sender may serve linearizable reads."""
        reign = self.reign
        for p, epoch, says, commit in said.beats:
            if p != self.p:
                continue
            if epoch != step.after.sealed or step.after.owner != self.me or commit > step.after.commit:
                self.fail(step, "R8 a beat of an epoch that it does not own, or of what is not committed")
            if says & m.FRESH and reign is not None:
                having = {node for node, until in reign.hold.items() if until > step.now} | {self.me.node}
                if role != ACTIVE or not reign.quorum(having):
                    self.fail(step, "R8 says fresh, and may not read")

    def check_fresh(self, step: Step) -> None:
        """R8: a copy is as new as a beat that says so, of the owner, and holds what that had committed."""
        after, event = step.after, step.event
        if isinstance(event, m.Heartbeat) and step.src == after.owner:
            for p, epoch, says, commit in event.beats:
                told = p == self.p and epoch == after.sealed and says & m.FRESH and commit <= after.commit
                if told and after.fresh <= min(event.echo, step.now):
                    return
        self.fail(step, "R8 takes itself for fresh")

    def check_grants_held(self, after: View) -> None:
        """R8: no more than acknowledged beats give, counted from when they were sent, less the margin."""
        reign = self.reign
        assert reign is not None
        having = {node for node, until in reign.hold.items() if until >= after.read_until} | {self.me.node}
        if not reign.quorum(having):
            raise Violation(f"step: R8 holds grants for longer than they were given: {self.me.node}", self.p)


def _epoch_before(view: View, index: int) -> int:
    """The epoch of the entry before ``index``."""
    return view.epoch_at(index - 1) if index > view.base[1] else view.base[0]


def _common(before: View, after: View) -> int:
    """The last index at which both hold the same, or that one of them has compacted away."""
    low, high = max(before.base[1], after.base[1]), min(before.last, after.last)
    if high <= low or (before.firsts, before.epochs) == (after.firsts, after.epochs):
        return high
    points = {high, *(first - 1 for first in (*before.firsts, *after.firsts))}
    kept = low
    for at in sorted(p for p in points if low < p <= high):
        if before.epoch_at(at) != after.epoch_at(at):
            break
        kept = at
    else:
        return high
    return kept
