"""What the owner of an epoch does: seal, adopt, activate, append, commit, hand off. Pure.

R3, R4, R6, R8 (grants held), R11 and the sending side of R5 and R17.
"""

from __future__ import annotations

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.adoption import Adoption
from metastore.core.configs import pack_config
from metastore.core.context import Context
from metastore.core.entry import HEAD, MAX_ENTRY_BYTES, pack_entry
from metastore.core.events import Restored
from metastore.core.messages import Process
from metastore.core.quorum import is_quorum
from metastore.core.replica import (
    ACTIVATING,
    ACTIVE,
    ADOPTING,
    LEADING_ROLES,
    RESIGNED,
    RESIGNING,
    SEALING,
    InvariantBroken,
    Replica,
)
from metastore.core.term import Progress, SealAnswer, Term
from metastore.errors import ProtocolError
from metastore.history import pack_mark
from metastore.layout import ConfigRecord


class LeadingReplica(Replica):
    """Adds leadership to Replica. ``adoption``: the part of it that takes another replica's log over (R3)."""

    adoption: Adoption

    def __init__(self, p: int, ctx: Context, restored: Restored, now: int) -> None:
        super().__init__(p, ctx, restored, now)
        self.make_parts()

    def make_parts(self) -> None:
        """The parts that a replica has: they keep no state of their own."""
        self.adoption = Adoption(self, self.adopted)

    # --- becoming active: R1 (owner's side), R3, R4 -------------------------------------

    def begin_term(
        self, now: int, epoch: int, config: ConfigRecord, reason: str, resigned_epoch: int = 0
    ) -> None:
        """Start reigning. Sealed epoch, owner and config become durable in one record before
        the first message leaves, which the ``durable`` sends see to (R1)."""
        packed = pack_config(config)
        self.seal(now, epoch, self.ctx.me, packed, handed_over=bool(resigned_epoch))
        self.term = Term(epoch, config, self.ctx.me.node, now, resigned_epoch, reason)
        self.campaigning_since_ns = 0
        self.set_role(SEALING, reason)
        for node in self.term.progress:
            self.send_seal(now, node)

    def send_seal(self, now: int, node: str) -> None:
        term = self.term
        assert term is not None
        term.progress[node].last_seal_ns = now
        self.send(
            node, m.Seal(self.p, term.epoch, pack_config(term.config), term.resigned_epoch), durable=True
        )

    def my_term(self, src: Process, epoch: int) -> Term | None:
        """The current term if this answer belongs to it and comes from a member's own store."""
        term = self.term
        if term is None or epoch != term.epoch:
            return None
        if (src.node, src.store) in term.members or term.learners.get(src.node) == src.store:
            return term
        return None

    def on_sealed(self, now: int, src: Process, msg: m.Sealed) -> None:
        term = self.my_term(src, msg.epoch)
        if term is None:
            return
        if msg.last_epoch > msg.epoch or msg.commit > msg.last_index:
            raise ProtocolError(f"partition {self.p}: {src.node} sealed a log that cannot be: {msg}")
        progress = term.progress[src.node]
        if msg.last_index < progress.acked:
            self.recall(now, src, progress, f"its log ends at {msg.last_index}")
            return
        newly = not progress.sealed
        progress.sealed = True
        counts = src.node not in term.learners
        if counts and self.role in (SEALING, ADOPTING, ACTIVATING) and src.node not in term.answers:
            term.answers[src.node] = SealAnswer(
                msg.last_epoch, msg.last_index, msg.commit, msg.remaining_grant_ns, now
            )
        if self.role == SEALING:
            if term.sealed_quorum():
                self.adoption.begin(now, term)
        elif self.role != ADOPTING and newly and src.node != self.ctx.me.node:
            self.start_replication(now, src.node, (msg.last_epoch, msg.last_index))
        self.try_activate(now)

    def on_pulled(self, now: int, src: Process, msg: m.Pulled) -> None:
        term = self.my_term(src, msg.epoch)
        if term is not None:
            self.adoption.on_pulled(now, term, src, msg)

    def on_pull_missed(self, now: int, src: Process, msg: m.PullMissed) -> None:
        term = self.my_term(src, msg.epoch)
        if term is not None:
            self.adoption.on_pull_missed(now, term, src, msg)

    def adopted(self, now: int, term: Term) -> None:
        """R3: append the no-op of this epoch and replicate. Where the history was changed it marks the generation (R19):
        nothing is read or proposed before it is committed."""
        self.set_role(ACTIVATING, "log adopted")
        term.pull_from = None
        mark = pack_mark(term.config.generation)
        term.noop_index = self.append_own(pack_entry(self.log.last_index + 1, term.epoch, mark))
        for node in term.others():
            if term.progress[node].sealed:
                a = term.answers.get(node)
                position = (a.last_epoch, a.last_index) if a else self.log.last_position()
                self.start_replication(now, node, position)

    def try_activate(self, now: int) -> None:
        """R4."""
        term = self.term
        if (
            term is not None
            and self.role == ACTIVATING
            and self.commit_index >= term.noop_index
            and term.grants_passed(now, self.ctx.settings)
        ):
            term.answers.clear()
            term.last_quorum_ns = now
            self.set_role(ACTIVE, "activated")

    # --- R5, sending side, and R6 -----------------------------------------------------

    def append_own(self, blob: bytes) -> int:
        index = self.log.last_index + 1
        self.log.append(index, self.sealed_epoch)
        self.emit(fx.PersistEntries(self.p, [blob], self.commit_index, self.sealed_epoch))
        # comes back when durable: the leader counts its own copy only then (R6)
        self.send(self.ctx.me.node, m.Appended(self.p, self.sealed_epoch, index), durable=True)
        return index

    def propose(self, now: int, payload: bytes) -> int:
        """Append one entry and send it on; returns its index. Only for an active leader."""
        term = self.term
        if term is None or self.role != ACTIVE:
            raise InvariantBroken(f"R4: partition {self.p} proposes as {self.role}")
        if len(payload) + HEAD.size > MAX_ENTRY_BYTES:
            raise ValueError(f"entry of {len(payload)} bytes is over the limit of {MAX_ENTRY_BYTES}")
        prev = self.log.last_position()
        blob = pack_entry(prev[1] + 1, term.epoch, payload)
        index = self.append_own(blob)
        append = None
        window = self.ctx.settings.max_inflight_entries
        for node in term.others():
            pr = term.progress[node]
            if pr.sealed and not pr.probing and pr.next == index and index - pr.match <= window:
                if append is None:
                    append = m.Append(self.p, term.epoch, *prev, self.commit_index, [blob])
                self.send(node, append)
                pr.next, pr.last_send_ns, pr.sent_commit = index + 1, now, self.commit_index
        return index

    def start_replication(self, now: int, node: str, position: tuple[int, int]) -> None:
        term = self.term
        assert term is not None
        pr = term.progress[node]
        pr.match, pr.probing, pr.snapshotting_since_ns = 0, True, 0
        pr.next = self.next_after(position)
        pr.last_ack_ns = now
        self.send_entries(now, node, pr)

    def next_after(self, position: tuple[int, int]) -> int:
        """The entry to send next to a log that ends at ``position``; at or below our base when it
        ends before that, which asks for a snapshot (R17)."""
        epoch, index = position
        log = self.log
        if index < log.base_index:
            return index + 1
        ours = log.position_at_or_below(epoch, index)
        # nothing of ours is old enough: their log leaves ours at or before our base
        return ours[1] + 1 if ours[0] <= epoch else log.base_index

    def send_entries(self, now: int, node: str, pr: Progress) -> None:
        """Send what ``node`` still needs: one message while probing, a window of them after."""
        term, log, settings = self.term, self.log, self.ctx.settings
        assert term is not None
        if not pr.sealed or pr.snapshotting_since_ns or self.installing:
            return
        while True:
            if pr.next <= log.base_index:
                pr.snapshotting_since_ns = now
                self.emit(fx.StartSnapshot(self.p, node, term.epoch))
                return
            prev_index = pr.next - 1
            blobs: list[bytes] | None = []
            if pr.next <= log.last_index:
                blobs = self.read_log(pr.next)
            if blobs is None:
                pr.snapshotting_since_ns, pr.gap = now, pr.next
                self.emit(fx.StartSnapshot(self.p, node, term.epoch))
                return
            self.send(
                node,
                m.Append(self.p, term.epoch, log.epoch_at(prev_index), prev_index, self.commit_index, blobs),
            )
            # R6: an Append says what is committed only as far as it reaches
            pr.last_send_ns, pr.sent_commit = now, min(self.commit_index, prev_index + len(blobs))
            if pr.probing:
                return
            pr.next += len(blobs)
            if pr.next > log.last_index or pr.next - pr.match > settings.max_inflight_entries:
                return

    def on_snapshot_progress(self, now: int, node: str) -> None:
        """A snapshot to ``node`` moves on: give it more time (R17)."""
        pr = self.term.progress.get(node) if self.term is not None else None
        if pr is not None and pr.snapshotting_since_ns:
            pr.snapshotting_since_ns = now

    def on_snapshot_refused(self, now: int, node: str) -> None:
        """``node`` does not accept a snapshot now: ask again in a while (R17)."""
        settings = self.ctx.settings
        self.on_snapshot_progress(now - settings.snapshot_timeout_ns + settings.suspect_after_ns, node)

    def on_appended(self, now: int, src: Process, msg: m.Appended) -> None:
        term = self.my_term(src, msg.epoch)
        if term is None or not term.noop_index or msg.match > self.log.last_index:
            return
        pr = term.progress[src.node]
        pr.last_ack_ns = now
        if msg.match > pr.match:
            pr.match = msg.match
            if msg.match > pr.acked:
                pr.acked, pr.acked_by = msg.match, src.incarnation
            if msg.match > self.commit_index:  # else no quorum can have come to more by it
                self.maybe_commit(now, term)
        if src.node == self.ctx.me.node:
            return
        if pr.snapshotting_since_ns and msg.match >= max(self.log.base_index, pr.gap):
            # who had it all already says so, and has not heard by it what is committed
            pr.snapshotting_since_ns = pr.sent_commit = 0
            pr.probing, pr.next = False, msg.match + 1
        if pr.probing and msg.match >= pr.next - 1:
            pr.probing = False
            pr.next = max(pr.next, msg.match + 1)
        if not pr.probing and pr.next <= self.log.last_index:
            self.send_entries(now, src.node, pr)
        if term.handoff_to is not None:
            self.continue_handoff(now)

    def maybe_commit(self, now: int, term: Term) -> None:
        """R6: a quorum under this epoch, and the entry itself of this epoch."""
        index = term.committed_index()
        if index > self.commit_index and self.log.epoch_at(index) == term.epoch:
            self.advance_commit(index)
            self.try_activate(now)

    def on_missed(self, now: int, src: Process, msg: m.Missed) -> None:
        term = self.my_term(src, msg.epoch)
        if term is None or not term.noop_index:
            return
        pr = term.progress[src.node]
        if msg.hint_index < pr.acked:
            # late, and the follower has acknowledged more since; or it has lost what it acknowledged (R13)
            self.recall(now, src, pr, f"its log ends at {msg.hint_index}")
            return
        pr.last_ack_ns, pr.probing = now, True
        pr.next = max(self.next_after((msg.hint_epoch, msg.hint_index)), pr.match + 1)
        self.send_entries(now, src.node, pr)

    def on_refused(self, now: int, src: Process, msg: m.Refused) -> None:
        term = self.my_term(src, msg.epoch)
        if term is None:
            return
        if msg.sealed > term.epoch or (msg.sealed == term.epoch and self.role == SEALING):
            self.step_down(f"{src.node} has sealed epoch {msg.sealed >> 16}.{msg.sealed & 0xFFFF}")
            return
        if msg.sealed == term.epoch and self.role == ADOPTING and src.node == term.pull_from:
            self.adoption.stop(term)
            return
        if msg.sealed == term.epoch:
            self.on_rival_election(now, src)
            return
        pr = term.progress[src.node]
        if pr.sealed:
            self.recall(now, src, pr, f"it has sealed {msg.sealed >> 16}.{msg.sealed & 0xFFFF} only")
        pr.sealed = False
        if now - pr.last_seal_ns >= self.ctx.settings.retry_ns:
            self.send_seal(now, src.node)

    def recall(self, now: int, src: Process, pr: Progress, has: str) -> None:
        """R13: a member seems to have less than its store acknowledged. A process loses nothing while it runs, so
        from the one that acknowledged this is a late message; another one is told, and until it has acknowledged
        that itself it counts in no quorum."""
        term = self.term
        assert term is not None
        if src.node in term.learners or src.incarnation == pr.acked_by or not pr.acked:
            return
        if now - pr.last_recall_ns < self.ctx.settings.retry_ns:
            return
        pr.match, pr.next, pr.probing, pr.last_recall_ns = 0, pr.acked + 1, True, now
        self.send(src.node, m.Recall(self.p, term.epoch, pr.acked, pr.acked_by))
        self.emit(
            fx.Lacking(self.p, src.node, f"partition {self.p}: entry {pr.acked} was acknowledged, and {has}")
        )
        self.send_entries(now, src.node, pr)

    def on_rival_election(self, now: int, src: Process) -> None:
        """``src`` has promised this epoch to a rival that got no quorum (R16), and can follow
        nobody in it. Once everything is settled here, the next restart takes it along."""
        term = self.term
        assert term is not None
        term.progress[src.node].sealed = False
        settled = self.role == ACTIVE and self.commit_index == self.log.last_index
        if settled and term.epoch & 0xFFFF != 0xFFFF:
            self.begin_term(
                now,
                term.epoch + 1,
                term.config,
                f"{src.node} sealed {term.epoch >> 16}.{term.epoch & 0xFFFF} for a rival",
            )

    # --- R8, holding side ---------------------------------------------------------------

    def on_grant(self, src: Process, epoch: int, number: int, sent_ns: int, grant_ns: int) -> None:
        """An acknowledgement of heartbeat ``number``, sent at ``sent_ns``, covers this epoch."""
        term = self.my_term(src, epoch)
        if term is None:
            return
        node = src.node
        until = sent_ns + self.ctx.settings.shrunk(grant_ns)
        term.hold_until[node] = max(term.hold_until.get(node, 0), until)
        term.acked[node] = max(term.acked.get(node, 0), number)
        term.acked_at_ns[node] = max(term.acked_at_ns.get(node, 0), sent_ns)
        term.count_grants()

    def can_read(self, now: int) -> bool:
        """R8: an active leader that holds a quorum's unexpired grants."""
        return self.role == ACTIVE and self.term is not None and now < self.term.read_until_ns

    def age_ns(self, now: int) -> int | None:
        """R8, stale reads: everything acknowledged longer ago than this is in what is committed here, whichever
        clock counts; None when no such time is known. 0 only at an active leader that holds its grants."""
        if self.can_read(now):
            return 0
        complete, term = self.fresh_ns, self.term
        if term is not None and self.role in (ACTIVE, RESIGNING):
            # till a quorum took this heartbeat nobody else was active, and all of earlier terms is here (I3)
            complete = max(complete, min(term.quorum_acked_at_ns(), now))
        return self.ctx.settings.stretched(now - complete) if complete else None

    def confirmed_since(self, mark: int) -> bool:
        """R8: a quorum has acknowledged heartbeats sent after the one named ``mark``
        (NodeCore.last_sent when the read arrived)."""
        return self.role == ACTIVE and self.term is not None and self.term.quorum_acked() > mark

    def is_healthy(self, now: int) -> bool:
        """Whether this leader, or leader to be, gets on; said in its heartbeats (R9). Liveness: who gets on
        may have lost its term to somebody else long ago."""
        term = self.term
        if term is None or self.role not in LEADING_ROLES or self.ctx.stuck:
            return False
        if self.role in (ACTIVE, RESIGNING):
            return self.has_quorum(now)
        return now - term.started_ns < self.ctx.settings.activation_patience_ns

    def has_quorum(self, now: int) -> bool:
        """Whether a quorum answered lately; without one new writes are refused at once."""
        term = self.term
        if term is None:
            return False
        heard = max(term.last_quorum_ns, term.quorum_acked_at_ns())
        return now - heard < 2 * self.ctx.settings.suspect_after_ns

    def short_of_room(self, level: int) -> list[str]:
        """Whose disks, being at ``level`` (LOW or FULL) or worse, keep this leader from adding data (LOW), or from
        logging anything at all (FULL): its own, or those without which there is no quorum."""
        term, ctx = self.term, self.ctx
        if term is None or not (ctx.room or ctx.peer_room):
            return []
        members = {node for node, _ in term.members}
        short = {node for node in members if ctx.peer_room.get(node, m.ROOM) >= level}
        mine = ctx.room >= level
        if mine:
            short.add(ctx.me.node)
        return sorted(short) if mine or not is_quorum(term.config, members - short) else []

    # --- R11 ------------------------------------------------------------------------------

    def can_transfer(self, to: str) -> bool:
        """Whether leadership can be handed to ``to`` now."""
        term = self.term
        if self.role != ACTIVE or term is None or to not in term.others() or not term.progress[to].sealed:
            return False
        return to not in term.learners

    def transfer(self, now: int, to: str) -> bool:
        """Begin to hand leadership to ``to``; False when that is not possible now."""
        term = self.term
        if term is None or not self.can_transfer(to):
            return False
        term.handoff_to, term.handoff_since_ns = to, now
        self.set_role(RESIGNING, f"hands over to {to}")
        self.continue_handoff(now)
        return True

    def continue_handoff(self, now: int) -> None:
        """R11: once the follower has the whole log, stop for good under this epoch."""
        term = self.term
        if term is None or self.role != RESIGNING or term.handoff_to is None:
            return
        last = self.log.last_index
        if term.progress[term.handoff_to].match == last and self.commit_index == last:
            term.handoff_since_ns = now
            self.set_role(RESIGNED, f"resigned for {term.handoff_to}")
            self.resigned(now, term)

    def resigned(self, now: int, term: Term) -> None:
        """R11: the follower may take over; nothing is read or proposed here any more."""
        assert term.handoff_to is not None
        self.send(term.handoff_to, m.HandOff(self.p, term.epoch))

    # --- R14 ------------------------------------------------------------------------------

    def on_rebuild(self, now: int, src: Process, msg: m.Rebuild) -> None:
        """A replica whose state is damaged needs a snapshot; its log goes on meanwhile as it does."""
        if self.my_term(src, msg.epoch) is not None and self.role in LEADING_ROLES and not self.damaged:
            self.emit(fx.StartSnapshot(self.p, src.node, msg.epoch))

    # --- time ---------------------------------------------------------------------------

    def tick_leading(self, now: int) -> None:
        term, settings = self.term, self.ctx.settings
        if term is None or self.role == RESIGNED:
            return
        for node, pr in term.progress.items():
            if not pr.sealed and now - pr.last_seal_ns >= settings.seal_retry_ns:
                self.send_seal(now, node)
        if self.role == ADOPTING:
            self.adoption.tick(now, term)
        elif self.role == RESIGNING and now - term.handoff_since_ns > settings.handoff_timeout_ns:
            term.handoff_to = None
            self.set_role(ACTIVE, "hand-off timed out before resigning")
        elif self.role == SEALING and term.sealed_quorum():
            self.adoption.begin(now, term)  # its own copy has come to be what the partition began with (R18)
        self.try_activate(now)
        if term.noop_index and self.role in LEADING_ROLES:
            for node in term.others():
                self.tick_progress(now, node, term.progress[node])

    def tick_progress(self, now: int, node: str, pr: Progress) -> None:
        settings = self.ctx.settings
        if not pr.sealed:
            return
        if pr.snapshotting_since_ns:
            if now - pr.snapshotting_since_ns > settings.snapshot_timeout_ns:
                pr.snapshotting_since_ns, pr.probing = 0, True
                self.send_entries(now, node, pr)
            return
        waiting = pr.probing or pr.match < pr.next - 1
        if waiting:
            if now - max(pr.last_ack_ns, pr.last_send_ns) >= settings.retry_ns:
                pr.probing = True
                if pr.match:
                    pr.next = pr.match + 1
                self.send_entries(now, node, pr)
        elif pr.next <= self.log.last_index or pr.sent_commit < self.commit_index:
            self.send_entries(now, node, pr)

    def peer_is_back(self, now: int, node: str) -> None:
        """A connection to ``node`` opened: what was in flight before it is lost."""
        term = self.term
        if term is None or node not in term.progress or node == self.ctx.me.node:
            return
        pr = term.progress[node]
        if not pr.sealed:
            self.send_seal(now, node)
        elif term.noop_index:
            pr.probing, pr.snapshotting_since_ns, pr.sent_commit = True, 0, 0
            if pr.match:
                pr.next = pr.match + 1
            self.send_entries(now, node, pr)
