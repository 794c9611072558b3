"""The order in which a node works: what is to be done, and when, tick by tick of the event loop.

One tick: let partitions propose if the log is free, carry out the effects, write once per connection, let the log sync, and
then apply what is committed. While the log syncs the next tick gathers. Effects are also carried out right after each event
that made them (``drain_effects``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack

from metastore.clock import now_ns
from metastore.core import effects as fx
from metastore.core.events import QuorumAsked, Stalled, Tick
from metastore.core.messages import FULL, LOW, ROOM, Appended, Process, Sealed
from metastore.core.node import NodeCore
from metastore.core.settings import MS
from metastore.node.admission import Admission
from metastore.node.halt import Halt
from metastore.node.identity import Identity
from metastore.node.peers import PeerLinks
from metastore.node.surroundings import NodeSurroundings
from metastore.partition.partition import Partition
from metastore.partition.ports import Memory
from metastore.storage.records import ConfigEntry, SealEntry
from metastore.storage.store import Store

log = logging.getLogger("metastore.node")

STALL_NS: Final = 500 * MS
QUORUM_ASKED: Final = QuorumAsked()
#: effects that have nothing to do with the state: what is committed before them may be applied after them
STATELESS: Final = frozenset({fx.Send, fx.PersistEntries, fx.Committed})


class Client(Protocol):
    """A client's connection, as far as a tick goes."""

    def resume(self) -> None:
        """Go on with frames that an earlier tick had no time for."""

    def flush(self) -> None:
        """Write the answers that wait."""


class TickLoop:
    """See the module. Everything runs on one event loop. ``partitions``: the partitions here, kept by the node."""

    def __init__(
        self,
        core: NodeCore,
        store: Store,
        links: PeerLinks,
        admission: Admission,
        identity: Identity,
        around: NodeSurroundings,
        halt: Halt,
        partitions: dict[int, Partition],
    ) -> None:
        self.core, self.store, self.links = core, store, links
        self.admission, self.identity, self.around, self.halt = admission, identity, around, halt
        self.partitions = partitions
        #: the core's door (partition.ports.Agenda)
        self.handle = core.handle
        self.memory: Memory = admission
        #: the loop runs; before that there is nothing but refusals to send
        self.started = False
        #: time spent in this tick on what clients ask, and on listings, which cost most for their size
        self.client_ns = 0
        self.listing_ns = 0
        #: clients with frames that no tick had time for yet, and those with answers to be written
        self.deferred: list[Client] = []
        self.answering: list[Client] = []
        #: what is done between the core's own tick and its effects, in this order
        self.steps: list[Callable[[int], None]] = []
        #: is told up to where the log is durable
        self.kept: Callable[[int], None] = lambda seq: None
        #: what is done once, as soon as no effects are being carried out
        self.afterwards: Callable[[], None] | None = None
        self.stalls = 0
        self.worst_stall_ns = 0
        #: partitions where operations wait for a quorum
        self.confirming: dict[int, None] = {}
        #: partitions that have something to propose, and those that have watches to feed
        self._proposing: dict[int, None] = {}
        self._feeding: dict[int, None] = {}
        self._quorum_asked = False
        #: what waits to leave until the log is durable up to a number: (number, node, message)
        self._held: deque[tuple[int, str, Any]] = deque()
        #: messages to this process itself
        self._inbox: deque[tuple[Process, Any]] = deque()
        #: entries that are committed and not applied yet
        self._committed: list[fx.Committed] = []
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop
        #: what carries out each kind of effect; the node adds those that need more than is known here
        self.runners: dict[type[Any], Callable[[Any], object]] = self._own_runners()

    def use(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that everything runs on; ticks come once ``started`` is set."""
        self._loop = loop

    # --- what is to be done (partition.ports.Agenda) --------------------------------------------

    def wake(self) -> None:
        """There is something to do: a tick comes."""
        if not self.started:
            self.client_ns = 0
            self._answer_committed()  # there are no ticks yet, and nothing but refusals to send
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def propose(self, p: int) -> None:
        """Let a partition propose once the log is free."""
        self._proposing[p] = None

    def confirm(self, p: int) -> int:
        """Send heartbeats at the end of this tick: operations wait for their answers (R8)."""
        self.confirming[p] = None
        self._quorum_asked = True
        self.wake()
        return self.core.last_number

    def feed(self, p: int) -> None:
        """Feed a partition's watches that are behind, between ticks."""
        if not self._feeding:
            self._loop.call_soon(self._feed)
        self._feeding[p] = None

    def forget(self, p: int) -> None:
        """The partition leaves: it has nothing left to propose or to answer."""
        self._proposing.pop(p, None)
        self.confirming.pop(p, None)

    def forget_all(self) -> None:
        """The node takes part in nothing any more (R13): nothing is carried out, and what is answered is sent."""
        self.core.take()
        for queue in (self._committed, self._held, self._inbox):
            queue.clear()
        self._proposing.clear()
        self.confirming.clear()
        self._flush_answers()

    # --- a tick ---------------------------------------------------------------------------------

    def run_effects(self) -> None:
        """Carry out what the core asked for. Called right after every event given to it: nobody
        may meet a replica that is ahead of its state, such as a new leader whose adopted entries
        are committed and not yet applied (R8). Sending and syncing are left to the tick, but for what
        others wait for while this node is busy applying."""
        if self.halt.failure is None and not self.identity.refused:
            try:
                self.drain_effects()
                if self._committed:
                    self.store.start_sync()
                    self._answer_committed()
                    self._apply_committed()
                if self.afterwards is not None:
                    afterwards, self.afterwards = self.afterwards, None
                    afterwards()
            except Exception as e:
                self.halt.fail_stop(e)
            self.wake()

    def _tick(self) -> None:
        self._scheduled = False
        self.client_ns = self.listing_ns = 0
        if self.halt.failure is not None:
            return
        if self.deferred:
            self._loop.call_soon(self._resume_deferred)
        if self.identity.refused:
            self._flush_answers()
            self.store.start_sync()
            return
        try:
            if self._proposing and not self.store.syncing:
                proposing, self._proposing = self._proposing, {}
                now = now_ns()
                for p in proposing:
                    self.partitions[p].propose_pending(now)
            if self._quorum_asked:
                self._quorum_asked = False
                self.core.handle(now_ns(), QUORUM_ASKED)
            if self.core.effects or self._inbox:
                self.drain_effects()
            self.links.flush()
            if self.answering or self._committed:
                self._answer_committed()
            self.store.start_sync()
            if self._committed:
                self._apply_committed()
        except Exception as e:
            self.halt.fail_stop(e)

    def on_durable(self, seq: int) -> None:
        """The log is durable up to ``seq``: what waited for that leaves."""
        if self.halt.failure is not None:
            return
        self.kept(seq)
        held = self._held
        while held and held[0][0] <= seq:
            _, node, message = held.popleft()
            self._route(node, message)
        # in this same call: the answer to a write should not wait for another pass of the loop
        self._scheduled = True
        self._tick()

    def confirm_waiting(self, now: int) -> None:
        """Answers of peers may have confirmed what waits for a quorum."""
        confirming, self.confirming = self.confirming, {}
        for p in confirming:
            if self.partitions[p].confirm_waiting(now):
                self.confirming[p] = None

    def _feed(self) -> None:
        feeding, self._feeding = self._feeding, {}
        try:
            for p in feeding:
                partition = self.partitions.get(p)
                if self.halt.failure is None and partition is not None and partition.watches.pump():
                    self.feed(p)
        except Exception as e:
            self.halt.fail_stop(e)

    def _resume_deferred(self) -> None:
        deferred, self.deferred = self.deferred, []
        for connection in deferred:
            connection.resume()

    def _answer_committed(self) -> None:
        """Answer the operations that wait for what is committed, and all other answers there are. That comes before
        applying: what an answer says is known since the entry was resolved, and nothing that it
        leads to can come in between."""
        for p, upto in self._committed:
            self.partitions[p].waiters.answer(upto)
        self._flush_answers()

    def _flush_answers(self) -> None:
        answering, self.answering = self.answering, []
        for client in answering:
            client.flush()

    def _apply_committed(self) -> None:
        committed = self._committed[:]
        self._committed.clear()
        for p, upto in committed:
            self.partitions[p].apply_to(upto)

    # --- effects --------------------------------------------------------------------------------

    def drain_effects(self) -> None:
        """Carry out effects until there are none; messages to this process itself come back. What is committed
        is left to ``_apply_committed``, to be called before anybody else has a turn; here it is done first
        when an effect might look at the state."""
        core, inbox, run = self.core, self._inbox, self.runners
        while core.effects or inbox:
            if core.effects:
                for effect in core.take():
                    kind = type(effect)
                    if self._committed and kind not in STATELESS:
                        self._apply_committed()
                    run[kind](effect)
            if inbox:
                src, message = inbox.popleft()
                core.handle(now_ns(), message, src)

    def _own_runners(self) -> dict[type[Any], Callable[[Any], object]]:
        store = self.store

        def seal(effect: fx.PersistSeal) -> None:
            owner: bytes = msgpack.packb(list(effect.owner))
            store.append(SealEntry(effect.p, effect.epoch, owner, effect.config))

        return {
            fx.Send: self._send,
            fx.PersistEntries: self._persist_entries,
            fx.Committed: self._committed.append,
            fx.PersistTruncate: lambda e: store.truncate(e.p, e.epoch, e.keep_index),
            fx.PersistSeal: seal,
            fx.PersistConfig: lambda e: store.append(ConfigEntry(e.p, e.config)),
        }

    def _send(self, effect: fx.Send) -> None:
        log = self.store.log
        if effect.durable and log.last_seq > log.durable_seq:
            self._held.append((log.last_seq, effect.node, effect.message))
        else:
            self._route(effect.node, effect.message)

    def _route(self, node: str, message: Any) -> None:
        if node == self.core.me.node:
            self._inbox.append((self.core.me, message))
        else:
            self.links.queue(node, message)

    def _persist_entries(self, effect: fx.PersistEntries) -> None:
        p, blobs, commit, epoch, entries = effect
        self.store.append_entries(p, epoch, commit, blobs)
        if entries is not None:
            self.partitions[p].applying.stage(blobs, entries)

    def hold_back(self, p: int) -> None:
        """R14: what waits to leave and says what the log of a partition has is not true any more."""
        self._held = deque(
            held for held in self._held if not (isinstance(held[2], Appended | Sealed) and held[2].p == p)
        )

    def reconnected(self, node: str) -> None:
        """What was owed to an earlier connection, or run, of a peer means nothing to this one."""
        self._held = deque(held for held in self._held if held[1] != node)

    # --- time -----------------------------------------------------------------------------------

    async def keep_time(self, every_ns: int) -> None:
        """Let time pass for everything here, for ever."""
        due = now_ns() + every_ns
        while True:
            await asyncio.sleep(max(0.0, (due - now_ns()) / 1e9))
            now = now_ns()
            if now - due > STALL_NS:
                self._stalled(now, now - due)
            due = now + every_ns
            self._pass_time(now)

    def _stalled(self, now: int, duration: int) -> None:
        self.stalls += 1
        self.worst_stall_ns = max(self.worst_stall_ns, duration)
        log.warning("the event loop was blocked for %d ms", duration // MS, extra={"node": self.core.me.node})
        # What the peers sent meanwhile is in the sockets: hear it before deciding that
        # they are silent (R9). Grants are checked against the clock anyway (R8).
        self.core.handle(now, Stalled())
        for partition in self.partitions.values():
            # those who would have touched their records may have been unable to
            partition.deadlines.add_time(duration)

    def _pass_time(self, now: int) -> None:
        core = self.core
        stuck = self.store.syncing_for_s() * 1e9 > core.ctx.settings.suspect_after_ns
        core.handle(now, Tick(self.around.can_elect(), stuck, self.room()))
        self.note_room()
        for step in self.steps:
            step(now)
        self.run_effects()
        if self.confirming:
            self.confirm_waiting(now)
        for partition in self.partitions.values():
            partition.sweep(now)
        self.admission.sweep(now)

    def note_room(self) -> None:
        """The partitions know whether some disk is short of room, as the core has heard of it."""
        ctx = self.core.ctx
        self.around.tight = bool(ctx.room or ctx.peer_room)

    def room(self) -> int:
        """How much room the disk has, as the core, and by it the peers, are told."""
        space = self.store.space
        return FULL if space.full else LOW if space.low else ROOM
