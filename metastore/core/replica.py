"""The replica: one node's copy of one partition as a pure state machine.

Events come in through the door of ``core.node`` with ``now`` (ns on a clock that never jumps, R15), effects go
out through ``self.emit``. This module holds what every replica does (R1, R3 as the answering
side, R5 as the receiving side, R8 grants given, R17 installs); ``leading`` what the owner of an
epoch does; ``electing`` when it tries to become one.

Roles:   follower -> sealing -> adopting -> activating -> active -> resigned
         (any) -> follower, when a higher epoch is sealed
"""

from __future__ import annotations

from typing import Any, Final

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config, read_config, unpack_config
from metastore.core.context import Context
from metastore.core.entry import HEAD, Checked, check_entries
from metastore.core.events import Restored
from metastore.core.messages import Process
from metastore.core.term import Term
from metastore.errors import ProtocolError, RottenEntry
from metastore.history import is_mark
from metastore.layout import term_of

FOLLOWER: Final = "follower"
SEALING: Final = "sealing"
ADOPTING: Final = "adopting"
ACTIVATING: Final = "activating"
ACTIVE: Final = "active"
RESIGNING: Final = "resigning"
RESIGNED: Final = "resigned"

LEADING_ROLES: Final = frozenset({SEALING, ADOPTING, ACTIVATING, ACTIVE, RESIGNING})

#: terms that may have gone by without this replica: beyond that an epoch is not credible
MAX_TERMS_MISSED: Final = 1 << 32


def holds_data(blob: bytes) -> bool:
    """Whether an entry is more than what a leader begins its term with: the no-op, or the mark of a generation (R19)."""
    return len(blob) > HEAD.size and not is_mark(blob[HEAD.size :])


class InvariantBroken(AssertionError):
    """A safety invariant (I1..I8) does not hold: the partition stops here (R14)."""


class Replica:
    """See the module. Others read its attributes; only its own methods change them, at an event."""

    def __init__(self, p: int, ctx: Context, restored: Restored, now: int) -> None:
        self.p = p
        self.ctx = ctx
        self.log = restored.log.copy()
        self.sealed_epoch = restored.sealed_epoch
        self.owner = restored.owner
        self.commit_index = restored.commit_index
        self.config = restored.config
        self.config_mod_revision = 0
        self.leader_value: bytes | None = None
        self.leader_value_known = False
        #: etcd has no record of the partition that makes sense: nobody can be elected by it
        self.unrecorded = False
        self.role = FOLLOWER
        self.term: Term | None = None
        self.installing = False
        self.emptied_epoch = restored.emptied_epoch
        #: the state here is damaged (R14), the log is not: nothing is served, led or sent from it until a snapshot
        #: has taken its place
        self.damaged = False
        #: R14: the first entry that this log turned out to lack, 0 = none. It answers no SEAL and acknowledges nothing
        #: while one is lacking: what that says is that everything up to there is here
        self.lost_index = 0
        self.rebuild_asked_ns = 0
        self.contact_ns = now
        self.leader_commit = 0
        #: R8: the last moment as of which a leader is known to have had no more than this copy has (0: none is
        #: known); what was acknowledged before it is here
        self.fresh_ns = 0
        #: R3/R8: process -> (epoch, until) of read grants given
        self.grants: dict[Process, tuple[int, int]] = {}
        #: an epoch that was resigned, and who owned it, as this replica knows (R11)
        self.resigner: tuple[int, Process] | None = None
        # election bookkeeping (electing.py)
        self.lost_since_ns = 0
        self.campaign_at_ns = 0
        self.campaigning_since_ns = 0
        self.prevote_round = 0
        self.prevote_sent_ns = 0
        self.prevotes: set[str] = set()
        self.elections_ns: list[int] = []
        #: an earlier run of this process owned the newest epoch in its store (R12)
        self.resuming = False

    # --- small helpers --------------------------------------------------------------

    def emit(self, effect: fx.Effect) -> None:
        self.ctx.emit(effect)

    def send(self, node: str, message: Any, *, durable: bool = False) -> None:
        self.ctx.emit(fx.Send(node, message, durable))

    def set_role(self, role: str, reason: str) -> None:
        was, self.role = self.role, role
        self.emit(fx.RoleChanged(self.p, role, was, self.sealed_epoch, reason))

    def is_member(self) -> bool:
        me = self.ctx.me
        return self.config is not None and (me.node, me.store) in self.config.members()

    @property
    def leader_node(self) -> str | None:
        """Who owns the newest epoch sealed here."""
        return self.owner.node if self.owner else None

    def heard(self, now: int) -> None:
        """The leader is alive (R9)."""
        self.contact_ns, self.lost_since_ns = now, 0

    # --- R1 ---------------------------------------------------------------------------

    def seal(self, now: int, epoch: int, owner: Process, config: bytes, handed_over: bool) -> None:
        """Raise ``sealed_epoch``; the effect makes it durable before any answer leaves (R1). A term that
        was handed over (R11) is no flapping."""
        if epoch <= self.sealed_epoch:
            raise InvariantBroken(f"I7: partition {self.p} would lower {self.sealed_epoch} to {epoch}")
        deposed = self.owner if self.leader_is_silent(now) else None
        if self.term is not None:
            self.step_down(f"epoch {epoch >> 16}.{epoch & 0xFFFF} of {owner.node} is sealed")
        self.sealed_epoch, self.owner, self.resuming = epoch, owner, False
        self.emit(fx.PersistSeal(self.p, epoch, owner, config))
        known = self.config
        if known is None or (epoch >> 16) >= (known.epoch >> 16):
            incoming = unpack_config(config)
            if known is None or incoming.epoch > known.epoch:
                self.config, self.config_mod_revision = incoming, 0
        if known is not None and self.config is known:  # the record above has made an older one durable
            self.emit(fx.PersistConfig(self.p, pack_config(known)))
        self.heard(now)
        if not handed_over:
            self.elections_ns = [*self.elections_ns[-31:], now]
            self.note_lapse(now, deposed, owner)

    def leader_is_silent(self, now: int) -> bool:
        """Whether the owner of the newest epoch has not been heard of, or, if it is this one, has heard of no quorum, for as
        long as it takes to be suspected."""
        term = self.term
        heard = self.contact_ns if term is None else max(term.last_quorum_ns, term.quorum_acked_at_ns())
        return now - heard >= self.ctx.settings.suspect_after_ns

    def note_lapse(self, now: int, deposed: Process | None, owner: Process) -> None:
        """R9: another node has taken the place of ``deposed``, which was silent. Who has died, or was started anew, has
        not lapsed."""
        if deposed is None or deposed.node == owner.node or deposed.node in self.ctx.down:
            return
        if deposed.node != self.ctx.me.node or deposed == self.ctx.me:
            self.ctx.lapses.note(now, deposed.node)

    def step_down(self, reason: str) -> None:
        self.term = None
        self.set_role(FOLLOWER, reason)

    def obeys(self, now: int, src: Process, epoch: int) -> bool:
        """R1 for a message that needs exactly this epoch sealed; answers a Refused otherwise."""
        if epoch == self.sealed_epoch and src == self.owner:
            return True
        self.send(src.node, m.Refused(self.p, epoch, self.sealed_epoch), durable=True)
        return False

    # --- R3, answering side -----------------------------------------------------------

    def on_seal(self, now: int, src: Process, msg: m.Seal) -> None:
        if now < self.ctx.seal_not_before_ns or self.installing:
            return  # R8: a restarted replica has forgotten its grants. The owner asks again.
        if msg.epoch < self.sealed_epoch or (msg.epoch == self.sealed_epoch and src != self.owner):
            self.send(src.node, m.Refused(self.p, msg.epoch, self.sealed_epoch), durable=True)
            return
        if msg.epoch > self.sealed_epoch:
            self.check_election_without_etcd(src, msg)
            if msg.resigned and msg.resigned == self.sealed_epoch and self.owner is not None:
                self.resigner = msg.resigned, self.owner
            self.seal(now, msg.epoch, src, msg.config, handed_over=bool(msg.resigned))
        if self.lost_index:
            return  # R14: it promises, and counts in no quorum
        last_epoch, last_index = self.log.last_position()
        left = self.remaining_grant_ns(now, src, msg.resigned)
        answer = m.Sealed(self.p, msg.epoch, last_epoch, last_index, self.commit_index, left)
        self.send(src.node, answer, durable=True)

    def check_election_without_etcd(self, src: Process, msg: m.Seal) -> None:
        """What can be known of a claim without etcd: that config and epoch belong together, and
        the owner to the config. Raises ProtocolError before anything has changed: an epoch once
        sealed is never taken back (I7)."""
        config = read_config(msg.config, self.p)
        known = max(self.sealed_epoch, self.config.epoch if self.config else 0)
        if term_of(config.epoch) != term_of(msg.epoch) or config.epoch > msg.epoch:
            raise ProtocolError(f"partition {self.p}: epoch {msg.epoch} with the config of {config.epoch}")
        if (src.node, src.store) not in config.members():
            raise ProtocolError(f"partition {self.p}: {src.node} claims epoch {msg.epoch} of others' config")
        if term_of(msg.epoch) - term_of(known) > MAX_TERMS_MISSED:
            raise ProtocolError(f"partition {self.p}: epoch {msg.epoch} is not credible after {known}")

    def remaining_grant_ns(self, now: int, owner: Process, resigned_epoch: int) -> int:
        """R3: the longest unexpired grant given to any other process, R11's epoch left out, and whatever the
        very process that resigned it was given in earlier epochs: it left those for the one that it resigned."""
        left = 0
        for process, (epoch, until) in list(self.grants.items()):
            if until <= now:
                del self.grants[process]
                continue
            given_up = resigned_epoch and (
                epoch == resigned_epoch
                or (epoch < resigned_epoch and self.resigner == (resigned_epoch, process))
            )
            if process != owner and not given_up:
                left = max(left, until - now)
        return left

    def grant(
        self, now: int, src: Process, epoch: int, says: int, commit: int, echo: int, grant_ns: int
    ) -> bool:
        """R8, giving side: whether a heartbeat of ``epoch`` is covered by the acknowledgement.

        A leader that says it hears no quorum (not HEALTHY) keeps nobody from electing. This copy is as new
        as the heartbeat only if its sender might read then (FRESH) and had committed no more than is committed
        here. ``echo``: a time on this side's clock before the leader said so; the time of receipt is none,
        since a process that slept receives what was said long ago."""
        if epoch != self.sealed_epoch or src != self.owner:
            return False
        if says & m.HEALTHY:
            self.heard(now)
        if says & m.FRESH and commit <= self.commit_index:
            self.fresh_ns = max(self.fresh_ns, min(echo, now))
        if src != self.ctx.me:
            self.grants[src] = (epoch, now + grant_ns)
        return True

    def on_pull(self, now: int, src: Process, msg: m.Pull) -> None:
        """R3: serve the new owner; only a replica sealed at that very epoch may."""
        if not self.obeys(now, src, msg.epoch):
            return
        if self.lost_index:  # the answer to SEAL that brought the owner here holds no more
            self.send(src.node, m.Refused(self.p, msg.epoch, self.sealed_epoch), durable=True)
            return
        prev_epoch, prev_index = msg.prev_epoch, msg.prev_index
        log = self.log
        if prev_index < log.base_index:
            self.emit(fx.StartSnapshot(self.p, src.node, msg.epoch))
            return
        if prev_index > log.last_index or log.epoch_at(prev_index) != prev_epoch:
            hint = log.position_at_or_below(prev_epoch, prev_index)
            if hint[0] > prev_epoch:  # its log leaves ours at or before our base
                self.emit(fx.StartSnapshot(self.p, src.node, msg.epoch))
                return
            self.send(src.node, m.PullMissed(self.p, msg.epoch, *hint), durable=True)
            return
        blobs: list[bytes] | None = []
        if prev_index < log.last_index:
            blobs = self.read_log(prev_index + 1)
        if blobs is None:
            self.emit(fx.StartSnapshot(self.p, src.node, msg.epoch))
            return
        self.send(src.node, m.Pulled(self.p, msg.epoch, prev_epoch, prev_index, blobs), durable=True)

    def read_log(self, first: int) -> list[bytes] | None:
        """What a message takes of the log from entry ``first`` on; None when that entry has rotted (R14): a receiver that needs it
        gets a snapshot, as if the log had been compacted to there, unless the state here lacks it too."""
        try:
            return self.ctx.read_log(self.p, first, self.ctx.settings.max_append_bytes)
        except RottenEntry as e:
            self.emit(fx.Rotten(self.p, e))
            return None

    # --- R5, receiving side -----------------------------------------------------------

    def on_append(self, now: int, src: Process, msg: m.Append) -> None:
        if self.installing or self.lost_index or not self.obeys(now, src, msg.epoch):
            return
        prev_index, log = msg.prev_index, self.log
        read = self.ctx.read_payload
        try:
            checked = check_entries(msg.entries, prev_index + 1, msg.prev_epoch, msg.epoch, read)
        except ValueError as e:
            raise ProtocolError(f"partition {self.p}: entries from {src.node}: {e}") from None
        if msg.commit > self.leader_commit:
            self.leader_commit = msg.commit
        # At or below commit_index all logs are equal (I3): such a prev matches by itself.
        if prev_index > self.commit_index and (
            prev_index > log.last_index or log.epoch_at(prev_index) != msg.prev_epoch
        ):
            hint = log.position_at_or_below(msg.prev_epoch, prev_index)
            self.send(src.node, m.Missed(self.p, msg.epoch, *hint), durable=True)
            return
        match = prev_index + len(checked)
        new = match > log.last_index and any(map(holds_data, msg.entries))
        if new and self.ctx.room == m.FULL:
            return  # as if it had been lost on its way: a replica that lags lives, and one without a disk does not
        commit = min(msg.commit, match)
        self.store_entries(msg.entries, checked, commit)
        self.advance_commit(commit)
        self.send(src.node, m.Appended(self.p, msg.epoch, match), durable=True)

    def store_entries(self, blobs: list[bytes], checked: list[Checked], commit: int) -> None:
        """Append what is new, after removing a conflicting suffix (R5, I4)."""
        log = self.log
        new_from = None
        for offset, (index, epoch, _) in enumerate(checked):
            if index <= self.commit_index:
                continue
            if index <= log.last_index and log.epoch_at(index) == epoch:
                continue
            if epoch < log.epoch_at(index - 1):  # before anything is taken back for it
                raise ProtocolError(f"partition {self.p}: entry {index} of epoch {epoch} cannot follow ours")
            if index <= log.last_index:
                self.truncate(index - 1)
            new_from = offset
            break
        if new_from is None:
            return
        if new_from:
            blobs, checked = blobs[new_from:], checked[new_from:]
        for index, epoch, _ in checked:
            log.append(index, epoch)
        entries = [entry for _, _, entry in checked]
        self.emit(fx.PersistEntries(self.p, blobs, commit, self.sealed_epoch, entries))

    def truncate(self, keep_index: int) -> None:
        if keep_index < self.commit_index:
            raise InvariantBroken(
                f"I4: partition {self.p} would truncate to {keep_index}, below commit {self.commit_index}"
            )
        self.log.truncate(keep_index)
        self.emit(fx.PersistTruncate(self.p, keep_index, self.sealed_epoch))

    def advance_commit(self, index: int) -> None:
        """R6: raise ``commit_index``; it never goes down (I7)."""
        if index > self.commit_index:
            if index > self.log.last_index:
                raise InvariantBroken(
                    f"I3: partition {self.p} would commit {index}, its log ends at {self.log.last_index}"
                )
            self.commit_index = index
            self.emit(fx.Committed(self.p, index))

    # --- R18 ----------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether it has had nothing yet, and nothing is on its way in."""
        return not (self.log.last_index or self.installing)

    def learn_committed(self, epoch: int, index: int) -> None:
        """Somebody has applied entry ``(epoch, index)``: it is committed, and so, where it is in this log, is all up to it
        (I2, I3)."""
        log = self.log
        if not self.installing and log.base_index < index <= log.last_index and log.epoch_at(index) == epoch:
            self.advance_commit(index)

    def take_split(self, now: int, index: int, index_epoch: int) -> None:
        """This empty replica has become what its parent's entry ``(index_epoch, index)`` split off: as if a snapshot at
        that entry had been installed. An answer of its own to SEAL is brought up to date."""
        if not self.is_empty:
            raise InvariantBroken(f"R18: partition {self.p} has entries up to {self.log.last_index} already")
        self.log.reset(index, index_epoch)
        self.commit_index = index
        term = self.term
        if term is not None and self.ctx.me.node in term.answers:
            own = term.answers[self.ctx.me.node]
            term.answers[self.ctx.me.node] = own._replace(last_epoch=index_epoch, last_index=index)

    # --- R13 --------------------------------------------------------------------------

    def on_recall(self, now: int, src: Process, msg: m.Recall) -> None:
        """A leader says what this store has acknowledged to it. What was acknowledged is durable, so a store
        that lacks it has been put back from an old copy: it must make no quorum with what it has left. (Under
        a later epoch a suffix may have been removed by right, R5.) Only of an earlier process on this store can
        anybody know better than this one."""
        config = self.config
        if self.installing or config is None or msg.epoch <= self.emptied_epoch:
            return
        if msg.run not in self.ctx.runs or msg.run == self.ctx.me.incarnation:
            return
        if (src.node, src.store) not in config.members() or not self.is_member():
            return
        if msg.epoch > self.sealed_epoch:
            lacks = 0 < term_of(msg.epoch) - term_of(self.sealed_epoch) <= MAX_TERMS_MISSED
            lacks |= term_of(msg.epoch) == term_of(self.sealed_epoch)
            what = f"epoch {msg.epoch >> 16}.{msg.epoch & 0xFFFF} of {src.node}, which it had sealed"
        else:
            lacks = msg.epoch == self.sealed_epoch and src == self.owner and msg.match > self.log.last_index
            what = f"entry {msg.match}, which it had acknowledged to {src.node}: its log ends at {self.log.last_index}"
        if lacks:
            self.emit(fx.Condemned(self.p, f"partition {self.p} lacks {what}"))

    # --- R17, receiving side ----------------------------------------------------------

    def on_compacted(self, index: int) -> None:
        """The store removed log up to ``index``: who needs it gets a snapshot (R17)."""
        if not self.installing:
            self.log.compact(index)

    def pulls_from(self, src: Process, epoch: int) -> bool:
        """Whether this owner adopts the log of ``src`` (R3)."""
        term = self.term
        return term is not None and term.epoch == epoch and term.pull_from == src.node

    def takes_snapshot(self, src: Process, epoch: int) -> bool:
        """Whether a snapshot from ``src`` could be of use: from the owner, or for adoption."""
        if self.installing or epoch != self.sealed_epoch:
            return False
        return src == self.owner or self.pulls_from(src, epoch)

    def on_snapshot_staged(self, now: int, src: Process, epoch: int, index: int, index_epoch: int) -> None:
        """A whole snapshot is staged: switch it in, or discard it when it is not needed.

        A log that holds the snapshot's position has acknowledged what may lie behind it, so
        it is kept; one that does not conflicts below a committed index and may go whole.
        """
        pulled = self.role == ADOPTING and self.pulls_from(src, epoch)
        if self.installing or (not pulled and not self.obeys(now, src, epoch)):
            self.emit(fx.DiscardSnapshot(self.p))
            return
        log = self.log
        has = index <= self.commit_index or (
            log.base_index <= index <= log.last_index and log.epoch_at(index) == index_epoch
        )
        whole = log.base_index <= index <= log.last_index and log.epoch_at(index) == index_epoch
        if self.damaged and whole and index >= self.lost_index:
            self.advance_commit(index)  # the sender has applied it, and our log is equal up to it (I2)
            self.installing = True
            self.emit(fx.InstallSnapshot(self.p, index, index_epoch, keep_log=True))
            return
        if has:
            self.emit(fx.DiscardSnapshot(self.p))
            if not pulled:
                self.send(src.node, m.Appended(self.p, epoch, min(index, log.last_index)), durable=True)
            return
        self.installing = True
        self.emit(fx.InstallSnapshot(self.p, index, index_epoch))

    def on_snapshot_installed(self, now: int, index: int, index_epoch: int) -> None:
        """The store has switched; from here the log begins after ``index``."""
        if not self.installing or index < self.commit_index:
            raise InvariantBroken(f"R17: partition {self.p}: snapshot at {index} was not asked for")
        self.installing = self.damaged = False
        self.lost_index = 0
        self.log.reset(index, index_epoch)
        self.commit_index = index
        self.heard(now)
        if self.owner is not None and self.owner != self.ctx.me:
            self.send(self.owner.node, m.Appended(self.p, self.sealed_epoch, index), durable=True)

    # --- R14: a damaged state is rebuilt from a healthy replica's -----------------------------

    def lose_state(self) -> None:
        """The state here has turned out to be damaged."""
        self.damaged = True

    def lose_entry(self, index: int) -> None:
        """An entry that the state does not have yet has turned out to be lost, and with it what was promised by
        acknowledging it: leads no more, counts in no quorum, until a snapshot of what is behind it has come."""
        self.damaged = True
        if not self.lost_index or index < self.lost_index:
            self.lost_index = index
        if self.term is not None:
            self.step_down(f"entry {index} of its log has rotted")

    def tick_damaged(self, now: int) -> None:
        """Ask the leader for a snapshot, again and again until one has come."""
        owner = self.owner
        if self.installing or owner is None or owner == self.ctx.me or self.term is not None:
            return
        if now - self.rebuild_asked_ns >= self.ctx.settings.rebuild_retry_ns:
            self.rebuild_asked_ns = now
            self.send(owner.node, m.Rebuild(self.p, self.sealed_epoch))

    def on_rebuilt(self, now: int, done: bool) -> None:
        """The state has been replaced (not ``done``: it could not be, and is as it was); log and position are what they
        were."""
        if not (self.installing and self.damaged):
            raise InvariantBroken(f"R14: partition {self.p} was not being rebuilt")
        self.installing = False
        self.damaged = not done
        if done:
            self.lost_index = 0
        if self.owner is not None and self.owner != self.ctx.me:
            # what came meanwhile was let pass; the last of it may have said no more than what is committed
            position = self.log.last_position()
            self.send(self.owner.node, m.Missed(self.p, self.sealed_epoch, *position), durable=True)
