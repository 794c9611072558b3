"""When a replica tries to become the owner of a new epoch: R2, R9, R11, R12, R16. Pure.

Only liveness depends on this module: of the candidates etcd's transaction elects one (R2); a candidate
without etcd owns the epoch once a quorum has sealed it, and no earlier (R16).
"""

from __future__ import annotations

import dataclasses

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.changing import ChangingReplica
from metastore.core.configs import pack_config
from metastore.core.messages import Process
from metastore.core.quorum import is_quorum
from metastore.core.replica import ACTIVE, LEADING_ROLES, RESIGNED
from metastore.layout import ConfigRecord, first_epoch, term_of

MAX_RESTART = 0xFFFF
CAMPAIGN_TIMEOUT_FACTOR = 20
#: so many settle times later than the last of the others one campaigns that lost leaders by silence
LAPSED_RANKS = 1


class PartitionReplica(ChangingReplica):
    """The whole state machine of one replica."""

    config_changed_ns = 0

    # --- what the control plane says ------------------------------------------------------

    def on_config(self, now: int, config: ConfigRecord, mod_revision: int) -> None:
        """A newer ``config(p)`` from etcd. Made durable; may name this process owner of a term."""
        if mod_revision <= self.config_mod_revision:
            return
        known = self.config
        if known is not None and config.epoch < known.epoch:
            return  # R13: etcd went back; its adapter refuses to be trusted until mended
        self.config_mod_revision = mod_revision
        if term_of(config.epoch) > term_of(self.sealed_epoch):
            self.resuming = False  # another term has begun: there is nothing to go on in
        if known != config:
            self.config, self.config_changed_ns = config, now
            self.emit(fx.PersistConfig(self.p, pack_config(config)))
        self.follow_config(now, "named owner by etcd")

    def follow_config(self, now: int, reason: str) -> None:
        """Begin the term that the config names this node owner of, or go on in it (R1, R12)."""
        config = self.config
        if config is not None and config.leader == self.ctx.me.node and self.is_member():
            if term_of(config.epoch) > term_of(self.sealed_epoch):
                self.begin_term(now, config.epoch, config, reason, self.resigned_epoch)
            elif self.term is None:
                self.resume(now)

    def on_leader_value(self, value: bytes | None) -> None:
        """``leader(p)`` as etcd has it now; None = gone (resigned or the lease expired)."""
        self.leader_value, self.leader_value_known = value, True

    def on_record(self, is_sound: bool) -> None:
        """Whether etcd has a record of the partition that makes sense."""
        self.unrecorded = not is_sound

    # --- R12 --------------------------------------------------------------------------

    def resume(self, now: int) -> None:
        """A restarted owner of the newest epoch it knows goes on as ``restart + 1``: at once, or,
        where others may have claimed the term meanwhile (R16), once a majority misses it too."""
        owner, config = self.owner, self.config
        if owner is None or config is None or self.term is not None or not self.is_member() or self.damaged:
            return
        if (owner.node, owner.store) != self.ctx.me[:2] or owner.incarnation == self.ctx.me.incarnation:
            return
        if term_of(config.epoch) != term_of(self.sealed_epoch):
            return
        if self.ctx.settings.claim_without_etcd:
            self.resuming = True
            self.tick_electing(now)
        else:
            self.elect_without_etcd(now, "restarted owner goes on (R12)")

    # --- R16 --------------------------------------------------------------------------

    def can_elect_without_etcd(self) -> bool:
        """Whether the next restart of the newest term known may be claimed without etcd."""
        owned = self.resuming or self.ctx.settings.claim_without_etcd
        without = self.unrecorded or not self.ctx.can_elect
        return owned and without and self.newest_epoch() & MAX_RESTART != MAX_RESTART

    def newest_epoch(self) -> int:
        return max(self.sealed_epoch, self.config.epoch if self.config else 0)

    def elect_without_etcd(self, now: int, reason: str) -> None:
        """Seal ``restart + 1`` of the newest term known, whose config etcd made: its quorum is
        what makes this process the owner; nothing is appended before it has sealed too."""
        epoch, config = self.newest_epoch(), self.config
        self.resuming = False
        if config is None or epoch & MAX_RESTART == MAX_RESTART or not term_of(epoch):
            return
        if term_of(config.epoch) == term_of(epoch):
            self.begin_term(now, epoch + 1, config, reason)

    def seek_record(self, now: int) -> None:
        """An owner by claim, which etcd's record does not name, has it name it when etcd is back:
        by an election (R2), which changes the term and not the leader. So too when the record was rebuilt (R13) in a
        later term, which is nobody's, before it had claimed."""
        config = self.config
        if (
            self.role == ACTIVE
            and config is not None
            and config.leader != self.ctx.me.node
            and (term_of(config.epoch) == term_of(self.sealed_epoch) or config.leader is None)
            and self.ctx.can_elect
            and not self.unrecorded
            and self.config_mod_revision
            and self.leader_value_known
            and now >= self.campaign_at_ns
        ):
            self.campaign(now, "leads by claim; has it recorded (R16)")

    # --- R9 -----------------------------------------------------------------------------

    def leader_is_lost(self, now: int) -> bool:
        """Nobody known to lead: never elected, connection reset, or silent for too long."""
        if self.role in LEADING_ROLES:
            return False
        config, patience = self.config, self.ctx.settings.suspect_after_ns
        if config is not None and config.leader and term_of(config.epoch) > term_of(self.sealed_epoch):
            # somebody won a newer term and is about to seal: give it the time to
            if config.leader == self.ctx.me.node or config.leader in self.ctx.down:
                return True
            return now - self.config_changed_ns > patience
        if self.owner is None:
            return True
        if self.owner.node == self.ctx.me.node:
            return self.role != RESIGNED or self.handoff_is_over(now)
        if self.owner.node in self.ctx.down:
            return True
        return now - self.contact_ns > patience

    def handoff_is_over(self, now: int) -> bool:
        term = self.term
        return term is None or now - term.handoff_since_ns > self.ctx.settings.handoff_timeout_ns

    def tick_electing(self, now: int) -> None:
        by_etcd = bool(self.config_mod_revision and self.leader_value_known and not self.unrecorded)
        if self.role == ACTIVE:
            self.seek_record(now)
        if (
            not (by_etcd or self.resuming or self.can_elect_without_etcd())
            or not self.is_member()
            or self.installing
            or self.damaged
            or self.ctx.stuck
            or not self.leader_is_lost(now)
        ):
            self.lost_since_ns = 0
            return
        settings = self.ctx.settings
        if self.lost_since_ns == 0:
            self.lost_since_ns = now
            self.campaign_at_ns = now + (0 if self.resuming else self.election_delay_ns(now))
            self.prevotes, self.prevote_sent_ns = set(), 0
        if self.campaigning_since_ns:
            if now - self.campaigning_since_ns < CAMPAIGN_TIMEOUT_FACTOR * settings.campaign_retry_ns:
                return
            self.campaigning_since_ns = 0
        if now < self.campaign_at_ns:
            return
        if by_etcd and self.leader_value is None and self.ctx.can_elect and not self.resuming:
            named = self.config is not None and self.config.leader
            self.campaign(now, "leader key is gone" if named else "first election")
        elif now - self.prevote_sent_ns >= settings.prevote_timeout_ns:
            self.start_prevote(now)

    def election_delay_ns(self, now: int) -> int:
        """Settle time by replica order, jitter, and flap damping (R9): of the partition, and of this node, which for
        a while after it lost leaders by silence lets those go first that did not, if there are any."""
        config, settings = self.config, self.ctx.settings
        assert config is not None
        lost = self.leader_node
        order = [node for node, _ in config.members() if node != lost]
        rank = order.index(self.ctx.me.node) if self.ctx.me.node in order else len(order)
        step = settings.election_stagger_ns * (4 if config.leader is None else 1)
        delay = rank * step + self.ctx.random.randrange(settings.election_stagger_ns // 2 + 1)
        up = [node for node in order if node not in self.ctx.down]
        if self.ctx.me.node not in self.ctx.lapses.steady(now, up):
            delay += settings.election_stagger_ns * (LAPSED_RANKS + len(order))
        recent = [t for t in self.elections_ns if now - t < settings.damping_window_ns]
        excess = len(recent) - settings.damping_free_elections
        if excess > 0:
            delay += min(settings.election_stagger_ns << min(excess, 20), settings.damping_max_ns)
        return delay

    def start_prevote(self, now: int) -> None:
        assert self.config is not None
        self.prevote_round += 1
        self.prevote_sent_ns = now
        self.prevotes = {self.ctx.me.node}
        for node, _ in self.config.members():
            if node != self.ctx.me.node:
                self.send(node, m.PreVote(self.p, self.sealed_epoch, self.prevote_round))
        self.count_prevotes(now)

    def on_prevote(self, now: int, src: Process, msg: m.PreVote) -> None:
        owner = self.owner
        # asked by another run of the very process that led: that one is gone
        anew = owner is not None and src[:2] == owner[:2] and src != owner and src != self.ctx.me
        # one that leads and hears no quorum, or was promised to a rival's followers (R16), vetoes nobody
        ailing = self.role in LEADING_ROLES and not self.is_healthy(now)
        lost = (anew or ailing or self.leader_is_lost(now)) and not self.installing
        self.send(src.node, m.PreVoteReply(self.p, msg.epoch, msg.round, lost))

    def on_prevote_reply(self, now: int, src: Process, msg: m.PreVoteReply) -> None:
        config = self.config
        if config is None or (src.node, src.store) not in config.members():
            return  # R13: another store says nothing for the member
        if msg.round == self.prevote_round and msg.epoch == self.sealed_epoch and msg.lost:
            self.prevotes.add(src.node)
            self.count_prevotes(now)

    def count_prevotes(self, now: int) -> None:
        if (
            self.config is not None
            and self.lost_since_ns
            and not self.campaigning_since_ns
            and self.leader_is_lost(now)
            and is_quorum(self.config, self.prevotes)
        ):
            self.prevotes = set()
            if self.resuming:
                self.elect_without_etcd(now, "restarted owner goes on (R12)")
            elif self.can_elect_without_etcd():
                away = "has no record of the partition" if self.unrecorded else "is away"
                self.elect_without_etcd(now, f"a majority has lost the leader, and etcd {away} (R16)")
            elif self.config_mod_revision and self.leader_value_known:
                self.campaign(now, "a majority has lost the leader")

    # --- R2 -----------------------------------------------------------------------------

    def campaign(self, now: int, reason: str, resigned_epoch: int = 0) -> None:
        config = self.config
        if config is None or not self.config_mod_revision or self.campaigning_since_ns:
            return
        if term_of(self.sealed_epoch) > term_of(config.epoch):
            return  # etcd has yet to show the term that is sealed here; or it went back (R13)
        self.campaigning_since_ns = now
        self.resigned_epoch = resigned_epoch
        new = dataclasses.replace(
            config, epoch=first_epoch(term_of(config.epoch) + 1), leader=self.ctx.me.node
        )
        handed_over = bool(resigned_epoch)
        self.emit(fx.Campaign(self.p, self.config_mod_revision, new, self.leader_value, reason, handed_over))

    def on_campaign_done(self, now: int, won: ConfigRecord | None, mod_revision: int) -> None:
        """The election transaction ended: ``won`` is the new config, None = lost or no etcd."""
        self.campaigning_since_ns = 0
        settings = self.ctx.settings
        superseded = won is not None and self.config is not None and self.config.epoch > won.epoch
        if won is None or superseded or self.sealed_epoch >= won.epoch:
            jitter = self.ctx.random.randrange(settings.campaign_retry_ns // 2 + 1)
            self.campaign_at_ns = now + settings.campaign_retry_ns // 2 + jitter
            self.prevotes = set()
            return
        self.config, self.config_mod_revision = won, mod_revision
        self.begin_term(now, won.epoch, won, "won the election", self.resigned_epoch)

    def on_handoff(self, now: int, src: Process, msg: m.HandOff) -> None:
        """R11: the leader resigned in our favour: campaign at once."""
        able = self.is_member() and not self.installing and not self.damaged
        if self.obeys(now, src, msg.epoch) and able:
            self.campaign(now, f"handed over by {src.node}", msg.epoch)
