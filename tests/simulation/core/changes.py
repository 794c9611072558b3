"""What the rules allow of whatever changes records, replicas and ranges: R2, R10, R17, R18, and R14 of copies that lack
something. The part of ``Rules`` that looks at what a step asks of etcd, of snapshots and of the store."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config, unpack_config
from metastore.core.entry import entry_payload, entry_position
from metastore.core.messages import Process
from metastore.core.payloads import read_payload
from metastore.core.replica import ACTIVE, ADOPTING, RESIGNED
from metastore.core.rows import SPLIT, SplitOff
from metastore.layout import ConfigRecord
from metastore.operations import ADD, DELETE, EXPIRE, PUT, TXN
from tests.simulation.core.steps import (
    CAMPAIGNED,
    CHANGED,
    RECORD,
    STAGED,
    Partings,
    Reign,
    Step,
    child_of,
)
from tests.simulation.violation import Violation

#: R10's "one round": so many entries may be lacking to who joins
ROUND = 64


class Changes:
    """See the module. ``p``: the partition; ``partings``: what is known of splits, None = nothing is split."""

    def __init__(self, me: Process, p: int, partings: Partings | None) -> None:
        self.me, self.p, self.partings = me, p, partings
        self.reign: Reign | None = None
        #: R17: (index, epoch, whether the log is kept) of the snapshot that is to be switched in
        self.staged: tuple[int, int, bool] | None = None

    def fail(self, step: Step, rule: str) -> NoReturn:
        event = step.event if isinstance(step.event, str) else type(step.event).__name__
        raise Violation(
            f"step: {rule}: {self.me.node} at {event}, as {step.before.role} of {step.before.sealed:x}",
            self.p,
        )

    def check_asked(self, step: Step) -> None:
        """What is asked of etcd, of snapshots, and what is proposed."""
        for effect in step.effects:
            kind = type(effect)
            if kind is fx.Campaign:
                self.check_campaign(step, effect)  # type: ignore[arg-type]
            elif kind is fx.ChangeConfig:
                self.check_change(step, effect)  # type: ignore[arg-type]
            elif kind is fx.StartSnapshot:
                self.check_sending(step, effect)  # type: ignore[arg-type]
            elif kind is fx.InstallSnapshot:
                self.check_install(step, effect)  # type: ignore[arg-type]
            elif kind is fx.PersistEntries and self.partings is not None and step.after.role == ACTIVE:
                self.check_proposed(step, self.partings, effect.blobs)  # type: ignore[union-attr]

    # --- R2: what is known of etcd's record ------------------------------------------------------

    def check_record(self, step: Step) -> None:
        """A record is one that somebody told, none is forgotten for an older one, and it is durable."""
        before, after, event = step.before.config, step.after.config, step.event
        told: ConfigRecord | None = None
        if event in (RECORD, CAMPAIGNED, CHANGED):
            told = step.args[0]
        elif isinstance(event, m.Seal | m.Appoint) and event.config:
            told = unpack_config(event.config)
        if after is None or after != told:
            self.fail(step, "R2 knows a record that nobody told it")
        if before is not None and after.epoch < before.epoch:
            self.fail(step, "I7 an older record takes the place of a newer one")
        kept = [e.config for e in step.effects if isinstance(e, fx.PersistConfig | fx.PersistSeal)]
        if pack_config(after) not in kept:
            self.fail(step, "R1 a record is not made durable")

    def check_begun(self, step: Step, config: ConfigRecord, fresh: bool) -> None:
        """A term begins under a record, by a member of it; a new one by whom it names."""
        known = [step.before.config, step.after.config, None if self.reign is None else self.reign.config]
        if config not in known:
            self.fail(step, "R2 begins a term under a record that it does not know")
        if (self.me.node, self.me.store) not in config.members():
            self.fail(step, "R13 begins a term for a store that is no member")
        if fresh and config.leader != self.me.node:
            self.fail(step, "R2 begins a term that is another's")

    def check_campaign(self, step: Step, effect: fx.Campaign) -> None:
        config, after = step.after.config, step.after
        if config is None or not after.mod or effect.expect_mod_revision != after.mod:
            self.fail(step, "R2 campaigns against another record than it knows")
        wanted = dataclasses.replace(config, epoch=_next_term(config), leader=self.me.node)
        if effect.new != wanted:
            self.fail(step, "R2 campaigns for more than the next term")
        if (self.me.node, self.me.store) not in config.members():
            self.fail(step, "R13 campaigns for a store that is no member")
        if after.damaged or after.installing:
            self.fail(step, "R14 campaigns with a copy that is damaged, or about to be another")

    # --- R10 ---------------------------------------------------------------------------------------

    def check_change(self, step: Step, effect: fx.ChangeConfig) -> None:
        after, reign, new = step.after, self.reign, effect.new
        config = after.config
        if reign is None or config is None or after.owner != self.me:
            self.fail(step, "R10 changes the record of a term that it does not own")
        made = config.leader == self.me.node and config.epoch >> 16 == reign.epoch >> 16
        if not made or not after.mod or effect.expect_mod_revision != after.mod:
            self.fail(step, "R10 compares another record than the one that made its term")
        if new.epoch != _next_term(config):
            self.fail(step, "R10 changes to another than the next term")
        names = [node for node, _ in new.members()]
        if len(set(names)) != len(names):
            self.fail(step, "R13 two stores of one name count in one term")
        same = dataclasses.replace(
            new, epoch=0, leader=None, replicas=(), joint=None, hi=config.hi if effect.child else new.hi
        )
        if same != dataclasses.replace(config, epoch=0, leader=None, replicas=(), joint=None):
            self.fail(step, "R10 changes more than its replicas")
        if effect.child is not None:
            self.check_recorded(step, new, config, effect.child)
        elif reign.config.joint is None:
            self.check_joining(step, reign, new)
        else:
            self.check_leaving(step, reign, effect)

    def check_joining(self, step: Step, reign: Reign, new: ConfigRecord) -> None:
        """Learners have nearly everything, and what was split off is on record."""
        after = step.after
        if after.role != ACTIVE:
            self.fail(step, "R10 changes its members, and is not active")
        if new.joint is None or new.replicas != reign.config.replicas or new.leader != self.me.node:
            self.fail(step, "R10 leaves its replicas without a joint term")
        for member in set(new.joint) - set(new.replicas):
            if reign.learned.get(member, 0) < max(1, after.last - ROUND):
                self.fail(step, "R10 a member joins that is not within a round of the log")
        if self.partings is not None:
            for split in self.partings.in_log(self.p, after):
                if int.from_bytes(split.at, "big") < new.hi:
                    self.fail(step, "R18 members change before etcd knows of the split")

    def check_leaving(self, step: Step, reign: Reign, effect: fx.ChangeConfig) -> None:
        """On to the new replicas once all is activated; back to the old ones whenever it owns the term."""
        new, old, role = effect.new, reign.config, step.after.role
        if new.joint is not None or new.replicas not in (old.joint, old.replicas):
            self.fail(step, "R10 leaves a joint term for neither of its sets")
        on = new.replicas == old.joint
        if on and not reign.activated:
            self.fail(step, "R10 leaves a joint term that is not activated")
        if effect.cell is not None and not on:
            self.fail(step, "R10 goes to another cell with its old replicas")
        if new.leader not in dict(new.replicas):
            self.fail(step, "R10 names a leader that is none of the replicas")
        if reign.activated and new.leader != self.me.node:
            if role != RESIGNED:
                self.fail(step, "R11 appoints another, and has not resigned")
            if reign.match.get(str(new.leader), 0) < step.after.last:
                self.fail(step, "R11 appoints one that has not its whole log")

    # --- R17 ---------------------------------------------------------------------------------------

    def check_sending(self, step: Step, effect: fx.StartSnapshot) -> None:
        after = step.after
        leads = self.reign is not None and after.owner == self.me
        src = step.src
        pulled = (
            isinstance(step.event, m.Pull)
            and src is not None
            and src == after.owner
            and effect.node == src.node
        )
        if effect.epoch != after.sealed or not (leads or pulled):
            self.fail(step, "R17 sends a snapshot under an epoch that it does not own")
        if after.damaged and leads:
            self.fail(step, "R14 sends a snapshot of a copy that is damaged")

    def check_install(self, step: Step, effect: fx.InstallSnapshot) -> None:
        """Under R1, never below what is committed, and never in the place of a log that holds what it stands for."""
        before, src, index = step.before, step.src, effect.at_index
        if step.event != STAGED or step.args != (before.sealed, index, effect.at_epoch):
            self.fail(step, "R17 switches in what is not staged under its epoch")
        adopts = before.role == ADOPTING and self.reign is not None and src is not None
        if src != before.owner and not (adopts and src.node in self.reign.answers):  # type: ignore[union-attr]
            self.fail(step, "R1 switches in a snapshot of one that does not own the epoch")
        whole = before.has(effect.at_epoch, index)
        if effect.keep_log:
            if not (before.damaged and whole and index >= before.lost):
                self.fail(step, "R14 replaces the state alone, and the log is another")
        elif index <= before.commit:
            self.fail(step, "R17 a snapshot below what is committed is switched in")
        elif whole:
            self.fail(step, "R17 throws away a log that has what the snapshot stands for")
        self.staged = index, effect.at_epoch, effect.keep_log

    def check_installed(self, step: Step) -> None:
        """What is there now is the snapshot that was staged, and nothing that a child needs has gone with the rows."""
        after, staged, self.staged = step.after, self.staged, None
        if after.last != after.base[1] or after.commit != after.last or after.commit < step.before.commit:
            self.fail(step, "R17 a snapshot below what was committed")
        if staged is not None and staged != (after.base[1], after.base[0], False):
            self.fail(step, "R17 another snapshot than was staged is switched in")
        self.keeps_children(step, after.last)

    def keeps_children(self, step: Step, upto: int) -> None:
        """R17, R18: what was split off, and was here as rows of the parent only, is here, durable, as the child."""
        if self.partings is not None:
            store = self.me.node, self.me.store
            needed = self.partings.needed(self.p, store, upto, step.held)
            if needed:
                self.fail(step, f"R18 the only rows of child {needed[0]} here go with its parent's")

    # --- R18 ---------------------------------------------------------------------------------------

    def check_proposed(self, step: Step, partings: Partings, blobs: list[bytes]) -> None:
        """A split is proposed by whom etcd's record made leader; nothing at or above the point is, after it."""
        at = min([split.at for split in partings.in_log(self.p, step.before)], default=None)
        for blob in blobs:
            payload = entry_payload(blob)
            if not payload:
                continue
            for row in read_payload(payload)[2]:
                if row[0] == SPLIT:
                    _, child, point, last, epoch, _, members = row
                    pairs = tuple((node, store) for node, store in members)
                    split = SplitOff(child, point, last, epoch, entry_position(blob)[0], pairs)
                    self.check_split(step, split)
                    partings.note(self.p, split)
                    at = point if at is None else min(at, point)
                elif at is not None and any(key >= at for key in _keys(row)):
                    self.fail(step, "R18 proposes what lies above the point after it has parted with it")

    def check_split(self, step: Step, split: SplitOff) -> None:
        reign, config = self.reign, step.after.config
        assert reign is not None
        assert config is not None
        if config.leader != self.me.node or config.epoch >> 16 != reign.epoch >> 16 or not step.after.mod:
            self.fail(step, "R18 splits in a term that etcd's record did not make")
        if reign.config.joint is not None:
            self.fail(step, "R18 splits while its members change")
        lo, at = config.lo, int.from_bytes(split.at, "big")
        if not lo < at <= split.last == config.hi - 1 or split.epoch != step.after.sealed:
            self.fail(step, "R18 splits off what is not its own")
        if set(split.members) != set(reign.config.replicas) or split.members[0][0] != self.me.node:
            self.fail(step, "R18 the child has other replicas, or another first leader")

    def check_recorded(
        self, step: Step, new: ConfigRecord, config: ConfigRecord, child: ConfigRecord
    ) -> None:
        """One swap narrows the parent's record and makes the child's, which follows from the entry alone; not before
        the entry is committed, and the child is durable here."""
        partings, after = self.partings, step.after
        if after.role != ACTIVE:
            self.fail(step, "R18 records a split, and is not active")
        found = [s for s in partings.in_log(self.p, after) if s.child == child.partition] if partings else []
        if not found or found[-1].entry > after.commit:
            self.fail(step, "R18 records a split that is not committed")
        if child != child_of(self.p, found[-1]):
            self.fail(step, "R18 the child's record is not what its entry made")
        if new.hi != child.lo or new.joint is not None or new.replicas != config.replicas:
            self.fail(step, "R18 the parent's record is not narrowed to the point, and to nothing else")
        if child.partition not in step.held:
            self.fail(step, "R18 etcd is told of a child that is not durable here")

    def check_forked(self, step: Step) -> None:
        """An empty replica has become the fork, at the very entry that split it off."""
        before, after, config = step.before, step.after, step.after.config
        if before.last or before.commit or before.installing:
            self.fail(step, "R18 what was split off takes the place of what is not empty")
        assert config is not None
        if config.parent is None or config.parent[1:] != after.base or after.last != after.base[1]:
            self.fail(step, "R18 becomes what another entry split off")
        if (*config.parent,) not in (self.partings.committed if self.partings else ()):
            self.fail(step, "R18 becomes what an entry split off that is not committed")

    def check_origin(self, step: Step, own: tuple[int, int]) -> None:
        """R3 of a child: one of the quorum has what it began with, and so has who begins."""
        parent = None if self.reign is None else self.reign.config.parent
        if parent is not None and own < parent[1:]:
            self.fail(step, "R18 a child begins without what it was split off with")

    def check_learned(self, step: Step) -> None:
        """Who knows the child knows that the entry is committed."""
        before, after, (epoch, index) = step.before, step.after, step.args
        known = self.partings is not None and (self.p, epoch, index) in self.partings.committed
        if not known or not before.has(epoch, index) or after.commit != index:
            self.fail(step, "R18 commits by an entry that is not known to have split it")

    # --- R14 ---------------------------------------------------------------------------------------

    def check_lacking(self, step: Step, said: object) -> None:
        """Who lacks an entry that it has acknowledged counts in no quorum, and acknowledges nothing beyond."""
        lost = step.after.lost
        beyond = isinstance(said, m.Appended) and said.match >= lost
        if lost and (beyond or isinstance(said, m.Sealed | m.Pulled)):
            self.fail(step, "R14 says what its log lacks")


def _next_term(config: ConfigRecord) -> int:
    return ((config.epoch >> 16) + 1) << 16


def _keys(row: list[object]) -> list[bytes]:
    """The keys that a row of an entry's effects changes."""
    kind = row[0]
    if kind in (PUT, ADD, DELETE, EXPIRE):
        return [row[1]]  # type: ignore[list-item]
    if kind == TXN:
        return [key for part in row[4] for key in _keys(part)]  # type: ignore[attr-defined]
    return []
