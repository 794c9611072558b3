"""The core of a node: all its replicas, and what they share per peer (heartbeats, grants). Pure.

There is one door, ``handle``: all that happens comes in as an event with ``now`` in ns; the effects gather in ``effects``
until the driver takes them with ``take()``. No clock, socket or randomness of its own (R15, style).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import messages as m
from metastore.core.checkpoint import replica_state, restore_shared, restored_replica, shared_state
from metastore.core.configs import read_config
from metastore.core.context import Context, ReadLog
from metastore.core.dispatch import event_handlers, message_handlers
from metastore.core.electing import PartitionReplica
from metastore.core.entry import MAX_READ_ENTRIES, entry_position
from metastore.core.journal import Journal, LogRead
from metastore.core.messages import Process
from metastore.core.replica import LEADING_ROLES
from metastore.core.settings import CoreSettings
from metastore.core.views import ContextView, ReplicaView
from metastore.errors import RottenEntry

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
        self._ctx = Context(me, settings, random, self._note_read, self.emit, now + wait)
        self._ctx.read_payload = read_payload
        self.me = me
        self._replicas: dict[int, PartitionReplica] = {}
        #: what others see of both
        self.ctx: ContextView = self._ctx
        self.replicas: Mapping[int, ReplicaView] = self._replicas
        self.last_heartbeat_ns = 0
        #: the number of the newest heartbeat sent: what a read that arrives now waits beyond. It begins
        #: anywhere, so that no answer owed to an earlier run is taken for one to this (R8)
        self.last_number = random.getrandbits(60)
        #: peer -> {number: (sent_ns, beats)}: what an acknowledgement will cover (R8)
        self._beats: dict[str, dict[int, tuple[int, list[m.Beat]]]] = {}
        #: peer -> its own clock when it sent the last acknowledgement heard: its copy is as fresh as that
        self._echoes: dict[str, int] = {}
        self._messages = message_handlers()
        self._events = event_handlers()
        self._of_all: dict[type[Any], Callable[[int, Any], None]] = {
            ev.Tick: self._tick,
            ev.QuorumAsked: self._quorum_asked,
            ev.LineageKnown: self._lineage_known,
            ev.Resumed: self._resumed,
            ev.Stalled: self._stalled,
            ev.MovesPaused: self._moves_paused,
            ev.PeerUp: self._peer_up,
            ev.PeerDown: self._peer_down,
            ev.StoreRefused: self._store_refused,
            ev.Opened: self._opened,
            ev.Dropped: self._dropped,
        }
        #: what came in and went out lately
        self.journal = Journal(self.checkpoint)
        self.journal.begin()

    # --- where a journal begins -----------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        """The core as it is between two events; nothing in it changes when the core goes on."""
        return {
            **shared_state(self._ctx),
            "last_heartbeat_ns": self.last_heartbeat_ns,
            "last_number": self.last_number,
            "beats": {peer: dict(sent) for peer, sent in self._beats.items()},
            "echoes": dict(self._echoes),
            "effects": list(self.effects),
            "replicas": {p: replica_state(replica) for p, replica in self._replicas.items()},
        }

    @classmethod
    def restored(
        cls, checkpoint: dict[str, Any], read_log: ReadLog, read_payload: Callable[[memoryview], Any]
    ) -> NodeCore:
        """A core that goes on from a checkpoint. ``read_log`` has the answers that were given then, effects that nobody has taken
        among them. Raises KeyError, TypeError or ValueError when it is no checkpoint of this build."""
        reads = read_payload if checkpoint["reads_payloads"] else None
        core = cls(checkpoint["me"], checkpoint["settings"], Random(0), read_log, 0, 0, reads)
        core._ctx.read_log = read_log
        restore_shared(core._ctx, checkpoint)
        core.last_heartbeat_ns, core.last_number = checkpoint["last_heartbeat_ns"], checkpoint["last_number"]
        core._beats.update({peer: dict(sent) for peer, sent in checkpoint["beats"].items()})
        core._echoes.update(checkpoint["echoes"])
        core.effects += checkpoint["effects"]
        for p, state in checkpoint["replicas"].items():
            core._replicas[p] = restored_replica(core._ctx, state)
        return core

    # --- the door -------------------------------------------------------------------------

    def handle(self, now: int, event: Any, src: Process | None = None) -> None:
        """``event`` has happened at ``now``: one of ``core.events``, or a message of ``core.messages`` from ``src``. What is to be
        done about it is appended to ``effects``.

        A message about a partition that is not here is not answered (R13). Raises ProtocolError when a message is not valid (it
        has changed nothing then), InvariantBroken (R14), KeyError for an event of a replica that is not here."""
        self.journal.note((now, event, src))
        kind = type(event)
        on_message = self._messages.get(kind)
        if on_message is not None:
            assert src is not None
            replica = self._replicas.get(event.p)
            if replica is not None:
                on_message(replica, now, src, event)
            elif kind is m.Seal:
                self.emit(fx.Sought(event.p, read_config(event.config, event.p)))
            return
        on_event = self._events.get(kind)
        if on_event is not None:
            on_event(self._replicas[event.p], now, event)
        elif kind in self._of_all:
            self._of_all[kind](now, event)
        elif kind is m.Heartbeat and src is not None:
            self._on_heartbeat(now, src, event)
        elif kind is m.HeartbeatAck and src is not None:
            self._on_heartbeat_ack(now, src, event)
        else:
            raise AssertionError(f"the core knows no {kind.__name__}")

    def take(self) -> list[fx.Effect]:
        """The effects since the last call, in order."""
        taken = self.effects[:]
        if taken:
            self.effects.clear()
            self.journal.note(taken[:])  # its own: what is decoded goes from there
        return taken

    def _note_read(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        try:
            blobs = self._read_log(p, first, max_bytes)
        except RottenEntry as e:
            self.journal.note(LogRead(p, first, [], e))
            raise
        self.journal.note(LogRead(p, first, blobs, None))
        return blobs

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

    def _opened(self, now: int, event: ev.Opened) -> None:
        self._replicas[event.p] = PartitionReplica(event.p, self._ctx, event.restored, now)

    def _dropped(self, now: int, event: ev.Dropped) -> None:
        del self._replicas[event.p]
        self._ctx.moving.discard(event.p)

    def _store_refused(self, now: int, event: ev.StoreRefused) -> None:
        for replica in self._replicas.values():
            if replica.term is not None:
                replica.step_down("its store is refused (R13)")
        self._replicas.clear()

    def _resumed(self, now: int, event: ev.Resumed) -> None:
        for replica in self._replicas.values():
            replica.resume(now)
            if not replica.sealed_epoch and replica.config is not None and replica.config.parent is not None:
                # it was split off here, and its first term, which follows from the entry, has not begun (R18)
                replica.follow_config(now, "split off before the restart")

    # --- what they share ------------------------------------------------------------------

    def _lineage_known(self, now: int, event: ev.LineageKnown) -> None:
        self._ctx.runs = event.runs

    def _moves_paused(self, now: int, event: ev.MovesPaused) -> None:
        self._ctx.moves_paused = event.paused

    def _stalled(self, now: int, event: ev.Stalled) -> None:
        for replica in self._replicas.values():
            replica.heard(now)

    def _peer_up(self, now: int, event: ev.PeerUp) -> None:
        node = event.node
        self._ctx.down.discard(node)
        self._beats.pop(node, None)
        self._echoes.pop(node, None)
        for replica in self._replicas.values():
            replica.peer_is_back(now, node)
            if replica.resuming:  # somebody to ask
                replica.prevote_sent_ns = 0
                replica.tick_electing(now)

    def _peer_down(self, now: int, event: ev.PeerDown) -> None:
        if event.node not in self._ctx.down:
            self._ctx.down.add(event.node)
            for replica in self._replicas.values():
                if replica.leader_node == event.node:
                    replica.tick_electing(now)

    def _tick(self, now: int, event: ev.Tick) -> None:
        ctx = self._ctx
        ctx.can_elect, ctx.stuck, ctx.room = event
        if now - self.last_heartbeat_ns >= ctx.settings.heartbeat_ns:
            self._quorum_asked(now)
        for replica in self._replicas.values():
            if replica.term is not None:
                replica.tick_leading(now)
            if replica.term is not None or replica.p in ctx.moving:
                replica.tick_changing(now)
            replica.tick_electing(now)
        self.journal.look(len(self._replicas))

    # --- heartbeats and grants, per node pair (R8) ---------------------------------------

    def _quorum_asked(self, now: int, event: ev.QuorumAsked | None = None) -> None:
        """One message to each peer for all partitions led there; not only in time, but also when a read
        arrives without enough grants: only answers to messages sent after it count."""
        self.last_number += 1
        self.last_heartbeat_ns = now
        by_peer: dict[str, list[m.Beat]] = {}
        for replica in self._replicas.values():
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
        grant_ns = self._ctx.settings.grant_ns
        refused = []
        for p, epoch, says, commit in msg.beats:
            replica = self._replicas.get(p)
            if replica is None:
                refused.append((p, 0))
            elif not replica.grant(now, src, epoch, says, commit, msg.echo, grant_ns):
                refused.append((p, replica.sealed_epoch))
        # the seal under which a grant is given may still be on its way to disk: the answer
        # waits for it (R1)
        self.emit(fx.Send(src.node, m.HeartbeatAck(msg.number, now, grant_ns, refused, self._ctx.room), True))

    def _on_heartbeat_ack(self, now: int, src: Process, msg: m.HeartbeatAck) -> None:
        sent = self._beats.get(src.node, {}).pop(msg.number, None)
        if sent is None:
            return
        sent_ns, beats = sent
        if msg.room:
            self._ctx.peer_room[src.node] = msg.room
        elif self._ctx.peer_room:
            self._ctx.peer_room.pop(src.node, None)
        self._echoes[src.node] = max(msg.clock, self._echoes.get(src.node, 0))
        refused: dict[int, int] = dict(msg.refused)
        for p, epoch, *_ in beats:
            replica = self._replicas.get(p)
            if replica is None:
                continue
            sealed = refused.get(p)
            if sealed is None:
                replica.on_grant(src, epoch, msg.number, sent_ns, msg.grant_ns)
            elif sealed:
                replica.on_refused(now, src, m.Refused(p, epoch, sealed))
