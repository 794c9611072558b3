"""The core of a node: all its replicas, and what they share per peer (heartbeats, grants). Pure.

Every method is one event with ``now`` in ns; the effects gather in ``effects`` until the
driver takes them with ``take()``. No clock, socket or randomness of its own (R15, style).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.electing import PartitionReplica
from metastore.core.entry import MAX_READ_ENTRIES, entry_position
from metastore.core.messages import Process
from metastore.core.replica import LEADING_ROLES, Context, ReadLog, Restored, read_config
from metastore.core.settings import CoreSettings

MAX_OUTSTANDING_HEARTBEATS = 64


class NodeCore:
    """See the module."""

    def __init__(
        self,
        me: Process,
        settings: CoreSettings,
        random: Random,
        read_log: ReadLog,
        now: int,
        largest_grant_given_ns: int,
        read_payload: Callable[[memoryview], Any] | None = None,
    ) -> None:
        """``largest_grant_given_ns``: durable, of all earlier runs on this store (R8)."""
        self.effects: list[fx.Effect] = []
        wait = settings.stretched(largest_grant_given_ns) if largest_grant_given_ns else 0
        self._read_store = read_log
        self.emit = self.effects.append
        self.ctx = Context(me, settings, random, self._read_log, self.emit, now + wait)
        self.ctx.read_payload = read_payload
        self.me = me
        self.replicas: dict[int, PartitionReplica] = {}
        self.last_heartbeat_ns = 0
        #: the number of the newest heartbeat sent: what a read that arrives now waits beyond. It begins
        #: anywhere, so that no answer owed to an earlier run is taken for one to this (R8)
        self.last_number = random.getrandbits(60)
        #: peer -> {number: (sent_ns, beats)}: what an acknowledgement will cover (R8)
        self._beats: dict[str, dict[int, tuple[int, list[m.Beat]]]] = {}
        #: peer -> its own clock when it sent the last acknowledgement heard: its copy is as fresh as that
        self._echoes: dict[str, int] = {}
        self._handlers: dict[type[Any], Callable[[PartitionReplica, int, Process, Any], None]] = {
            m.Append: PartitionReplica.on_append,
            m.Appended: PartitionReplica.on_appended,
            m.Missed: PartitionReplica.on_missed,
            m.Seal: PartitionReplica.on_seal,
            m.Sealed: PartitionReplica.on_sealed,
            m.Refused: PartitionReplica.on_refused,
            m.Pull: PartitionReplica.on_pull,
            m.Pulled: PartitionReplica.on_pulled,
            m.PullMissed: PartitionReplica.on_pull_missed,
            m.PreVote: PartitionReplica.on_prevote,
            m.PreVoteReply: PartitionReplica.on_prevote_reply,
            m.HandOff: PartitionReplica.on_handoff,
            m.Appoint: PartitionReplica.on_appoint,
            m.Appointed: PartitionReplica.on_appointed,
            m.Recall: PartitionReplica.on_recall,
            m.Rebuild: PartitionReplica.on_rebuild,
        }

    def take(self) -> list[fx.Effect]:
        """The effects since the last call, in order."""
        taken = self.effects[:]
        self.effects.clear()
        return taken

    def _read_log(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        """The log as the core sees it: the store up to where effects that nobody took yet have
        changed it (the store still has what a truncation among them takes back), then those."""
        changed: int | None = None
        fresh: dict[int, bytes] = {}
        for effect in self.effects:
            if type(effect) is fx.PersistEntries and effect.p == p:
                index = entry_position(effect.blobs[0])[0]
                changed = index if changed is None else changed
                fresh.update(enumerate(effect.blobs, index))
            elif type(effect) is fx.PersistTruncate and effect.p == p:
                keep = effect.keep_index
                changed = keep + 1 if changed is None else min(changed, keep + 1)
                fresh = {i: blob for i, blob in fresh.items() if i <= keep}
        if changed is None:
            return self._read_store(p, first, max_bytes)
        if first < changed:
            return self._read_store(p, first, max_bytes)[: changed - first]
        blobs: list[bytes] = []
        while first in fresh and max_bytes > 0 and len(blobs) < MAX_READ_ENTRIES:
            blobs.append(fresh[first])
            max_bytes -= len(fresh[first])
            first += 1
        return blobs

    # --- replicas -------------------------------------------------------------------------

    def add_replica(self, now: int, p: int, restored: Restored) -> PartitionReplica:
        replica = PartitionReplica(p, self.ctx, restored, now)
        self.replicas[p] = replica
        return replica

    def remove_replica(self, p: int) -> None:
        """R10: it is no member any more, and its data goes."""
        del self.replicas[p]
        self.ctx.moving.discard(p)

    def resume_all(self, now: int) -> None:
        """R12, at start, when etcd has not said otherwise in time."""
        for replica in self.replicas.values():
            replica.resume(now)
            if not replica.sealed_epoch and replica.config is not None and replica.config.parent is not None:
                # it was split off here, and its first term, which follows from the entry, has not begun (R18)
                replica.follow_config(now, "split off before the restart")

    def log_compacted(self, p: int, index: int) -> None:
        """The store removed log up to ``index``: who needs it gets a snapshot (R17)."""
        replica = self.replicas.get(p)
        if replica is not None and not replica.installing:
            replica.log.compact(index)

    # --- events ---------------------------------------------------------------------------

    def receive(self, now: int, src: Process, message: Any) -> None:
        """A message from a process; unknown partitions are not answered (R13)."""
        kind = type(message)
        handler = self._handlers.get(kind)
        if handler is not None:
            replica = self.replicas.get(message.p)
            if replica is not None:
                handler(replica, now, src, message)
            elif kind is m.Seal:
                self.emit(fx.Sought(message.p, read_config(message.config, message.p)))
        elif kind is m.Heartbeat:
            self._on_heartbeat(now, src, message)
        elif kind is m.HeartbeatAck:
            self._on_heartbeat_ack(now, src, message)
        else:
            raise AssertionError(f"no replica takes a {kind.__name__}")

    def peer_up(self, now: int, node: str) -> None:
        """A connection to ``node`` is open (again)."""
        self.ctx.down.discard(node)
        self._beats.pop(node, None)
        self._echoes.pop(node, None)
        for replica in self.replicas.values():
            replica.peer_is_back(now, node)
            if replica.resuming:  # somebody to ask
                replica.prevote_sent_ns = 0
                replica.tick_electing(now)

    def peer_down(self, now: int, node: str) -> None:
        """The connection was reset or refused: the process is lost at once (R9)."""
        if node not in self.ctx.down:
            self.ctx.down.add(node)
            for replica in self.replicas.values():
                if replica.leader_node == node:
                    replica.tick_electing(now)

    def snapshot_progress(self, now: int, p: int, node: str) -> None:
        """A snapshot to ``node`` moves on: give it more time (R17)."""
        replica = self.replicas.get(p)
        term = replica.term if replica else None
        if term is not None and node in term.progress and term.progress[node].snapshotting_since_ns:
            term.progress[node].snapshotting_since_ns = now

    def snapshot_refused(self, now: int, p: int, node: str) -> None:
        """``node`` does not take a snapshot now: ask again in a while (R17)."""
        settings = self.ctx.settings
        self.snapshot_progress(now - settings.snapshot_timeout_ns + settings.suspect_after_ns, p, node)

    def tick(self, now: int, can_elect: bool) -> None:
        """``can_elect``: etcd answers and this node's lease is alive, as far as is known."""
        self.ctx.can_elect = can_elect
        if now - self.last_heartbeat_ns >= self.ctx.settings.heartbeat_ns:
            self.heartbeat(now)
        for replica in self.replicas.values():
            if replica.term is not None:
                replica.tick_leading(now)
            if replica.term is not None or replica.p in self.ctx.moving:
                replica.tick_changing(now)
            replica.tick_electing(now)

    # --- heartbeats and grants, per node pair (R8) ---------------------------------------

    def heartbeat(self, now: int) -> None:
        """One message to each peer for all partitions led there. Also called when a read
        arrives without enough grants: only answers to messages sent after it count."""
        self.last_number += 1
        self.last_heartbeat_ns = now
        by_peer: dict[str, list[m.Beat]] = {}
        for replica in self.replicas.values():
            term = replica.term
            if term is not None and replica.role in LEADING_ROLES:
                says = (m.HEALTHY if replica.is_healthy(now) else 0) | (
                    m.FRESH if replica.can_read(now) else 0
                )
                beat = (replica.p, term.epoch, says, replica.commit_index)
                for node in term.others():
                    by_peer.setdefault(node, []).append(beat)
        for node, beats in by_peer.items():
            outstanding = self._beats.setdefault(node, {})
            if len(outstanding) >= MAX_OUTSTANDING_HEARTBEATS:
                del outstanding[next(iter(outstanding))]
            outstanding[self.last_number] = (now, beats)
            self.emit(fx.Send(node, m.Heartbeat(self.last_number, self._echoes.get(node, 0), beats)))

    def _on_heartbeat(self, now: int, src: Process, msg: m.Heartbeat) -> None:
        grant_ns = self.ctx.settings.grant_ns
        refused = []
        for p, epoch, says, commit in msg.beats:
            replica = self.replicas.get(p)
            if replica is None:
                refused.append((p, 0))
            elif not replica.grant(now, src, epoch, says, commit, msg.echo, grant_ns):
                refused.append((p, replica.sealed_epoch))
        # the seal under which a grant is given may still be on its way to disk: the answer
        # waits for it (R1)
        self.emit(fx.Send(src.node, m.HeartbeatAck(msg.number, now, grant_ns, refused, self.ctx.room), True))

    def _on_heartbeat_ack(self, now: int, src: Process, msg: m.HeartbeatAck) -> None:
        sent = self._beats.get(src.node, {}).pop(msg.number, None)
        if sent is None:
            return
        sent_ns, beats = sent
        if msg.room:
            self.ctx.peer_room[src.node] = msg.room
        elif self.ctx.peer_room:
            self.ctx.peer_room.pop(src.node, None)
        self._echoes[src.node] = max(msg.clock, self._echoes.get(src.node, 0))
        refused: dict[int, int] = dict(msg.refused)
        for p, epoch, *_ in beats:
            replica = self.replicas.get(p)
            if replica is None:
                continue
            sealed = refused.get(p)
            if sealed is None:
                replica.on_grant(src, epoch, msg.number, sent_ns, msg.grant_ns)
            elif sealed:
                replica.on_refused(now, src, m.Refused(p, epoch, sealed))
