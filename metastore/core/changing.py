"""Membership change: a partition's replicas become others, by way of both sets at once (R10). Pure.

    learning   the new members get the log, and count in no quorum
    joint      the next term's config has ``joint``: quorums of both sets. It begins at once, since the
               grants given were to this process, and activates under R3 and R4
    final      the term after that has the new set alone, and a leader out of it

A new store under the name of a member comes in two such steps: first the old store leaves, then it joins (R13).

What is wanted is a MoveRecord in etcd, given to every replica; the leader carries it on from
where ``config(p)`` stands. Each step is one compare-and-swap of the record that made the leader's own
term, so a late or doubtful one does no harm. Cancelled before the joint term, nothing has happened;
under it, one more term goes back to the old set.
"""

from __future__ import annotations

import dataclasses

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config, read_config
from metastore.core.leading import LeadingReplica
from metastore.core.messages import Process
from metastore.core.replica import ACTIVE, MAX_TERMS_MISSED, RESIGNED, RESIGNING
from metastore.core.settings import MS
from metastore.core.term import Term
from metastore.errors import ProtocolError
from metastore.layout import ConfigRecord, Member, MoveRecord, first_epoch, term_of

#: how far behind a learner may be when it joins: R10's "one round"
MAX_LEARNER_LAG = 64
CHANGE_RETRY_NS = 500 * MS
CHANGE_TIMEOUT_NS = 10_000 * MS


def next_set(replicas: tuple[Member, ...], target: tuple[Member, ...]) -> tuple[Member, ...]:
    """The set that the next joint term goes to, on the way from ``replicas`` to ``target``: the latter, or, while
    it has another store under a member's name, the present one without that member. A quorum is counted by
    names, so no term may have two stores of one name: what the new one says must never count for the old (R13)."""
    wanted = dict(target)
    kept = tuple(member for member in replicas if wanted.get(member[0], member[1]) == member[1])
    if len(kept) == len(replicas):
        return target
    names = dict(replicas)
    return kept or tuple(member for member in target if member[0] not in names) or replicas


class ChangingReplica(LeadingReplica):
    """Adds membership change to LeadingReplica."""

    #: the epoch whose leader has resigned in this replica's favour (R11), 0 = none
    resigned_epoch = 0
    #: what etcd wants of this partition's membership, None = nothing
    move: MoveRecord | None = None
    #: R18: the first config of what was split off here, while etcd's record does not say so yet
    split: ConfigRecord | None = None
    #: whether that is durable here: etcd is told no sooner
    split_durable = False
    #: the point at which a proposed entry, that is not applied yet, splits it
    parting: int | None = None
    #: the cell whose records hold this partition
    home: str = ""
    #: when a ChangeConfig was sent out that has no answer yet
    changing_since_ns = 0
    change_again_ns = 0

    # --- what is wanted -----------------------------------------------------------------------

    def on_home(self, cell: str) -> None:
        """The cell whose records hold this partition."""
        self.home = cell

    def on_move(self, move: MoveRecord | None) -> None:
        """What etcd wants of this partition's membership."""
        self.move = move

    def on_parting(self, at: int | None) -> None:
        """R18: an entry that splits the partition at a point is proposed; None = none is, or it is forgotten."""
        self.parting = at

    def on_split_applied(self, child: ConfigRecord, durable: bool) -> None:
        """R18: etcd is to get a record of ``child`` from the leader, once that is durable here."""
        self.split, self.split_durable = child, durable

    # --- what the leader does -----------------------------------------------------------------

    def owns_record(self, term: Term) -> bool:
        """Whether ``config(p)``, as last seen, is the record that made this term."""
        config = self.config
        return (
            config is not None
            and bool(self.config_mod_revision)
            and config.leader == self.ctx.me.node
            and term_of(config.epoch) == term_of(term.epoch)
        )

    def tick_changing(self, now: int) -> None:
        """Carry the partition's move on, if this replica leads and etcd can be asked."""
        term, move = self.term, self.move
        if self.p in self.ctx.moving and (term is None or move is None or move.cancel):
            self.ctx.moving.discard(self.p)
        if term is None or (
            move is None and self.split is None and not term.learners and term.config.joint is None
        ):
            return
        if self.changing_since_ns:
            if now - self.changing_since_ns < CHANGE_TIMEOUT_NS:
                return
            self.changing_since_ns = 0
        if not self.ctx.can_elect or not self.owns_record(term) or now < self.change_again_ns:
            return
        if (self.split is not None or self.parting is not None) and self.role == ACTIVE:
            # before anything else: who is removed by a change has to know first what it is a member of (R18)
            if self.split is not None:
                self.record_split(now, term, self.split)
            return
        if self.ctx.moves_paused and self.role == ACTIVE:
            return
        if self.role == RESIGNED:
            if now - term.handoff_since_ns > self.ctx.settings.retry_ns:
                self.appoint(now, term)  # the target has not said that it knows; it may have to wait
        elif term.config.joint is not None:
            self.leave_joint(now, term, term.config.joint)
        elif self.role != ACTIVE:
            return
        elif move is None:
            self.stop_learning(term)
        elif move.cancel:
            self.stop_learning(term)
            self.emit(fx.MoveEnded(self.p, "cancelled"))
        elif move.cell == self.home and set(move.target) == set(term.config.replicas):
            self.stop_learning(term)
            self.emit(fx.MoveEnded(self.p, "done"))
        else:
            self.learn_and_join(now, term, move)

    # --- R18 ----------------------------------------------------------------------------------

    def record_split(self, now: int, term: Term, child: ConfigRecord) -> None:
        """The entry that splits the partition is applied: one swap tells etcd. This one goes on, in its next
        term, without what is above the point; the child's record is what the entry made it, by whichever leader it is written."""
        if child.lo >= term.config.hi:
            self.split = None  # an earlier leader did it
        elif self.split_durable:
            new = dataclasses.replace(
                term.config, epoch=self.next_term(), leader=self.ctx.me.node, hi=child.lo
            )
            self.change(now, new, None, f"splits off {child.partition}", child)

    @staticmethod
    def stop_learning(term: Term) -> None:
        for node in list(term.learners):
            term.unlearn(node)

    def learn_and_join(self, now: int, term: Term, move: MoveRecord) -> None:
        target = next_set(term.config.replicas, move.target)
        if set(target) == set(term.config.replicas):
            return  # its only member under another store: there is nowhere to go on from
        wanted = {node: store for node, store in target if (node, store) not in term.config.replicas}
        for node in [n for n, store in term.learners.items() if wanted.get(n) != store]:
            term.unlearn(node)
        if not self.ctx.down.isdisjoint(wanted):
            self.ctx.moving.discard(self.p)  # who waits for the dead takes nobody's turn
        elif wanted and self.p not in self.ctx.moving:
            if len(self.ctx.moving) >= self.ctx.settings.max_moves:
                return  # its turn comes
            self.ctx.moving.add(self.p)
        for node, store in wanted.items():
            if node not in term.learners:
                term.learn(node, store)
                self.send_seal(now, node)
        if all(self.has_caught_up(term, node) for node in wanted):
            joint = dataclasses.replace(
                term.config, epoch=self.next_term(), leader=self.ctx.me.node, joint=target
            )
            self.change(now, joint, None, f"joins {', '.join(sorted(wanted)) or 'nobody new'}")

    def has_caught_up(self, term: Term, node: str) -> bool:
        pr = term.progress[node]
        behind = self.log.last_index - pr.match
        return pr.sealed and bool(pr.match) and not pr.snapshotting_since_ns and behind <= MAX_LEARNER_LAG

    def next_members(self, term: Term) -> tuple[tuple[Member, ...], str | None]:
        """Who the members are after the joint term, and the cell that the record goes to, None = it
        stays: the new ones as wanted, or the old ones when that is not wanted any more."""
        move, joint = self.move, term.config.joint
        assert joint is not None
        if move is None or move.cancel or set(next_set(term.config.replicas, move.target)) != set(joint):
            return term.config.replicas, None
        last = set(move.target) == set(joint)
        return joint, move.cell if last and move.cell != self.home else None

    def leave_joint(self, now: int, term: Term, joint: tuple[Member, ...]) -> None:
        """Fully activated under both sets: on to the new one, or back to the old. Going back needs no
        more than the ownership of the joint term (R10), so dead newcomers do not stop it."""
        members, cell = self.next_members(term)
        back = members is term.config.replicas
        if self.role != ACTIVE:
            stuck = now - term.started_ns > 2 * self.ctx.settings.activation_patience_ns
            if stuck and self.role != RESIGNING:
                members, cell, back = term.config.replicas, None, True
            if not back or self.role == RESIGNING:
                return
        names = [node for node, _ in members]
        if (self.ctx.me.node, self.ctx.me.store) in members and cell is None:
            to: str | None = self.ctx.me.node
        elif self.role != ACTIVE:
            to = next((n for n in names if n not in self.ctx.down), None)
        else:
            # somebody else leads from here: hand over first, so that there are no grants to wait for (R11)
            to = None
            target = self.successor(now, term, members)
            self.change_again_ns = now + CHANGE_RETRY_NS
            if target is not None:
                self.transfer(now, target)
        if to is not None:
            final = dataclasses.replace(
                term.config, epoch=self.next_term(), leader=to, replicas=members, joint=None
            )
            self.change(now, final, None, "goes back to the old replicas" if back else "has its new replicas")

    def successor(self, now: int, term: Term, members: tuple[Member, ...]) -> str | None:
        """The first of ``members`` that has nearly everything."""
        for node in self.ctx.lapses.steady(now, [node for node, _ in members]):
            pr = term.progress.get(node)
            up = pr is not None and pr.sealed and node not in self.ctx.down and node != self.ctx.me.node
            if pr is not None and up and self.log.last_index - pr.match <= MAX_LEARNER_LAG:
                return node
        return None

    def resigned(self, now: int, term: Term) -> None:
        if term.config.joint is not None and term.handoff_to in dict(self.next_members(term)[0]):
            # true whatever becomes of the swap: nothing is read or proposed under this epoch any more
            self.send(term.handoff_to, m.Appoint(self.p, term.epoch, b"", 0))
        else:
            super().resigned(now, term)

    def appoint(self, now: int, term: Term) -> None:
        """R10's last step by a leader that leaves: the next term's owner is the one it handed over to."""
        to = term.handoff_to
        if to is None or term.config.joint is None:
            return
        members, cell = self.next_members(term)
        if to in dict(members):
            final = dataclasses.replace(
                term.config, epoch=self.next_term(), leader=to, replicas=members, joint=None
            )
            self.change(now, final, cell, f"appoints {to}")

    def next_term(self) -> int:
        assert self.config is not None
        return first_epoch(term_of(self.config.epoch) + 1)

    def change(
        self,
        now: int,
        new: ConfigRecord,
        cell: str | None,
        reason: str,
        child: ConfigRecord | None = None,
    ) -> None:
        self.changing_since_ns, self.change_again_ns = now, now + CHANGE_RETRY_NS
        self.emit(fx.ChangeConfig(self.p, self.config_mod_revision, new, cell, reason, child))

    def on_change_done(self, now: int, new: ConfigRecord | None, mod_revision: int, reason: str) -> None:
        """The swap ended: ``new`` is the record now, None = it is not, and this changed nothing."""
        self.changing_since_ns = 0
        term = self.term
        if new is None or term is None or new.epoch <= self.sealed_epoch:
            return
        if self.config is not None and self.config.epoch > new.epoch:
            return
        self.change_again_ns = 0
        self.config, self.config_mod_revision = new, mod_revision
        if new.leader == self.ctx.me.node:
            self.begin_term(now, new.epoch, new, reason)
        elif new.leader is not None:
            self.emit(fx.PersistConfig(self.p, pack_config(new)))  # etcd's watch tells nothing that is newer
            if self.role == RESIGNED:
                self.send(new.leader, m.Appoint(self.p, term.epoch, pack_config(new), mod_revision))
            else:
                self.step_down(f"{new.leader} is appointed")

    # --- the one who is appointed ---------------------------------------------------------------

    def on_appoint(self, now: int, src: Process, msg: m.Appoint) -> None:
        """R10, R11: what etcd says will come too, but without knowing that there is nothing to wait for."""
        if not self.obeys(now, src, msg.epoch) or self.installing:
            return
        config = self.read_appointment(msg) if msg.config else None
        self.resigned_epoch = msg.epoch
        if config is not None:
            self.on_config(now, config, msg.mod_revision)
        else:
            self.send(src.node, m.Appointed(self.p, msg.epoch))

    def read_appointment(self, msg: m.Appoint) -> ConfigRecord:
        """The record that names this store owner of a later term. Raises ProtocolError."""
        config, me = read_config(msg.config, self.p), self.ctx.me
        ahead = term_of(config.epoch) - term_of(msg.epoch)
        if config.leader != me.node or (me.node, me.store) not in config.members():
            raise ProtocolError(f"partition {self.p}: appointed by a config that {config.leader} is to lead")
        if not 0 < ahead <= MAX_TERMS_MISSED:
            raise ProtocolError(f"partition {self.p}: epoch {msg.epoch} appoints to {config.epoch}")
        return config

    def on_appointed(self, now: int, src: Process, msg: m.Appointed) -> None:
        """The target knows that there will be no grants to wait for: etcd may name it now."""
        term = self.my_term(src, msg.epoch)
        if term is None or self.role != RESIGNED or src.node != term.handoff_to or self.changing_since_ns:
            return
        if self.ctx.can_elect and self.owns_record(term):
            self.appoint(now, term)

    def on_config(self, now: int, config: ConfigRecord, mod_revision: int) -> None:
        raise NotImplementedError

    # --- what others may ask ---------------------------------------------------------------------

    def move_state(self) -> str:
        """Where this leader is with its partition's move, for people."""
        term = self.term
        if term is None or self.move is None:
            return "none"
        if self.p not in self.ctx.moving and len(self.ctx.moving) >= self.ctx.settings.max_moves:
            return "waiting its turn"
        if self.role in (RESIGNING, RESIGNED):
            return "handing over"
        return "joint" if term.config.joint is not None else "learning"
