"""The node: starts and stops, owns its parts, and lets peers in. In which order it works is ``tick_loop``'s."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from random import Random
from typing import Any

from metastore import fields
from metastore.clock import now_ns
from metastore.config import MAX_GRANT_MS, NodeConfig
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.configs import UNREADABLE, pack_config, unpack_config
from metastore.core.messages import (
    Lineage,
    Process,
    Seen,
    SnapshotAck,
    SnapshotBegin,
    SnapshotChunk,
)
from metastore.core.node import NodeCore
from metastore.core.payloads import read_payload
from metastore.core.settings import MS, CoreSettings
from metastore.decoding import unpack_own
from metastore.errors import ProtocolError
from metastore.layout import ConfigRecord, NodeRecord
from metastore.logs import log_event
from metastore.node import features
from metastore.node.admission import Admission
from metastore.node.collector import Collector
from metastore.node.control.agent import Control
from metastore.node.features import Features
from metastore.node.halt import Halt
from metastore.node.identity import (
    FACT_GENERATIONS,
    FACT_REFUSED,
    WAY_OUT,
    Identity,
    PeerRefusal,
    Verdict,
    judge_peer,
)
from metastore.node.leader_balancer import LeaderBalancer
from metastore.node.peers import PeerLinks
from metastore.node.pins import Pins
from metastore.node.quotas import Quotas
from metastore.node.rebuild import Rebuild
from metastore.node.slice import StoreSlice
from metastore.node.snapshots import Snapshots
from metastore.node.status import StatusPages
from metastore.node.stored_topology import StoredTopology
from metastore.node.surroundings import NodeSurroundings
from metastore.node.tick_loop import TickLoop
from metastore.partition.partition import Partition
from metastore.partition.policies import Policies
from metastore.storage.facts import read_fact
from metastore.storage.records import ConfigEntry, Fact
from metastore.storage.store import Store

log = logging.getLogger("metastore.node")

FACT_LARGEST_GRANT = "largest_grant_ns"
#: how often what peers told of their marks is made durable (R13)
KEEP_MARKS_NS = 10_000 * MS


def core_settings(config: NodeConfig) -> CoreSettings:
    """The core's view of the node's configuration."""
    return CoreSettings(
        heartbeat_ns=config.heartbeat_ms * MS,
        grant_ns=config.grant_ms * MS,
        suspect_after_ns=config.suspect_after_ms * MS,
        election_stagger_ns=config.settle_ms * MS,
        clock_rate_error_ppm=config.clock_rate_error_ppm,
        claim_without_etcd=config.claim_without_etcd,
        max_moves=config.max_moves,
    )


class Node:
    """See the module. Everything runs on one event loop."""

    def __init__(self, config: NodeConfig, store: Store, incarnation: str) -> None:
        self.config = config
        self.store = store
        self.me = Process(config.node, store.store_id, incarnation)
        self.settings = core_settings(config)
        self.partitions: dict[int, Partition] = {}
        self.pins = Pins(config)
        self.surroundings = NodeSurroundings(self)
        self.admission = Admission(
            config.max_connections, int(config.client_patience_s * 1e9), config.client_memory_mib << 20
        )
        self.status_pages = StatusPages(self)
        self.stopping = False
        self.halt = Halt(config.node)
        # where it cannot be read, the largest that there can have been (R8)
        largest = read_fact(store.facts, FACT_LARGEST_GRANT, fields.whole(), 0, MAX_GRANT_MS * MS)
        self.core = NodeCore(
            self.me,
            self.settings,
            Random(random.random()),
            store.read_entries,
            now_ns(),
            largest,
            read_payload,
        )
        self.identity = Identity(store, self.me)
        self.features = Features(store, features.LEVEL)
        beyond = self.features.verdict()
        if beyond is not None and not self.identity.refused:
            self.identity.refuse(beyond.why, beyond.do)
        self.links = PeerLinks(
            config.cluster,
            self.me,
            store.lineage,
            self.on_peer_messages,
            self.on_peer_up,
            self.on_peer_down,
        )
        self.ticks = TickLoop(
            self.core,
            store,
            self.links,
            self.admission,
            self.identity,
            self.surroundings,
            self.halt,
            self.partitions,
        )
        self.links.refusal = self.why_no_peer
        self.links.on_lineage = self.on_peer_lineage
        self.links.on_accused = self.on_accused
        self.links.mark = lambda: store.mark
        self.links.on_mark = self.on_peer_mark
        self.links.levels = lambda: self.features.levels
        self.links.on_level = self.features.learn
        self.features.on_raised = self.links.raised
        self._know_lineage()
        self.snapshots = Snapshots(self)
        self.links.on_dropped = self.snapshots.dropped
        self.rebuild = Rebuild(self)
        self.stored_topology = StoredTopology(store, config.cluster)
        self.topology = self.stored_topology.table
        self.quotas = Quotas(self)
        self.control = Control(self)
        self.policies = Policies(self.topology, self.control.layout.root, self.quotas.full)
        self.leader_balancer = LeaderBalancer(self)
        self.collector = Collector()
        self._largest_grant_ns = largest
        self._marks_kept_ns = 0
        self.ticks.kept = self.stored_topology.durable
        self.ticks.steps += [self.leader_balancer.tick, self.rebuild.tick]
        self.ticks.runners |= self._effect_runners()
        self._shutting_out: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._tasks: list[asyncio.Task[None]] = []

    # --- start and stop ---------------------------------------------------------------------

    def begin_run(self) -> None:
        """R13: this process is one that ran on the store, durably, from here on. To be called before ``start`` and before its
        first message, and not before its addresses are bound: a process that cannot listen is none. Raises StorageError."""
        self.store.raise_generation(self.me.incarnation)
        self._know_lineage()

    def _know_lineage(self) -> None:
        self.links.lineage = lineage = self.store.lineage
        self.core.handle(now_ns(), ev.LineageKnown(tuple(run.incarnation for run in lineage.runs)))

    def start(self) -> None:
        """Load the replicas from the store and begin to tick. The loop is running."""
        self._loop = asyncio.get_running_loop()
        self.ticks.use(self._loop)
        self.store.start(self._loop, self.ticks.on_durable, self.halt.fail)
        self.store.retention.on_compacted = self._compacted
        self.store.damage.on_rotten = self.rebuild.found
        self.store.damage.is_rebuilding = lambda: bool(self.rebuild.why)
        self.store.checkpoints.on_split = self.on_split_off
        if self.settings.grant_ns > self._largest_grant_ns:
            # durable before the first grant leaves: heartbeat answers wait for the log (R8)
            self.store.append(Fact(FACT_LARGEST_GRANT, self.settings.grant_ns))
        now = now_ns()
        for p, info in sorted(self.store.partitions.items()):
            # what an entry applied just now has split off is opened when it is durable (R18)
            if not info.dropped and not self.store.is_splitting(p):
                owner = Process(*unpack_own(info.owner)) if info.owner else None
                config = self._kept_config(p)
                if config is not None:
                    restored = ev.Restored(
                        info.log.copy(), info.sealed_epoch, owner, config, info.commit_index
                    )
                    self._add_partition(now, p, restored)
        for record in self.topology.nodes.values():
            self.meet(record)
        self.links.not_yet = ""
        self.ticks.started = True
        ticking = self._loop.create_task(self.ticks.keep_time(self.config.tick_ms * MS))
        ticking.add_done_callback(self.halt.ended)
        self._tasks.append(ticking)
        self.ticks.run_effects()

    def remember_topology(self) -> None:
        """Keep what has changed of the table, for a start without etcd, ours and others' (R12, design: router)."""
        self.stored_topology.keep()
        self.ticks.wake()

    def remember_fact(self, key: str, value: Any) -> None:
        self.store.append(Fact(key, value))
        self.ticks.wake()

    def _kept_config(self, p: int) -> ConfigRecord | None:
        """The partition's record as this node has kept it. One that is not valid counts as none: the replica is opened
        when etcd tells it anew."""
        raw = self.store.partitions[p].config
        try:
            return unpack_config(raw) if raw is not None else None
        except UNREADABLE as e:
            log.error(
                "the record that this node kept of partition %d cannot be used and is dropped: %s", p, e
            )
            return None

    def _compacted(self, p: int, index: int) -> None:
        if p in self.partitions:
            self.core.handle(now_ns(), ev.Compacted(p, index))

    def _add_partition(self, now: int, p: int, restored: ev.Restored) -> Partition:
        assert restored.config is not None
        self.core.handle(now, ev.Opened(p, restored))
        replica = self.core.replicas[p]
        slice_, limit = StoreSlice(self.store, p), self.config.max_pending_writes
        partition = Partition(replica, slice_, self.ticks, self.surroundings, self.policies, limit)
        self.partitions[p] = partition
        self.store.set_metadata_source(p, partition.machine.metadata)
        partition.load()
        partition.apply_to(restored.commit_index)
        return partition

    def open_partition(self, config: ConfigRecord) -> Partition:
        """A replica for a partition this store has never held: empty, and it says so (R13). Or with what it
        was split off with (R18)."""
        p = config.partition
        self.store.add_partition(p)
        info = self.store.partitions[p]
        owner = Process(*unpack_own(info.owner)) if info.owner else None
        known = self._kept_config(p)
        if known is not None and known.epoch > config.epoch:
            config = known
        elif known != config:  # a start without etcd finds it
            self.store.append(ConfigEntry(p, pack_config(config)))
        restored = ev.Restored(
            info.log.copy(), info.sealed_epoch, owner, config, info.commit_index, info.sealed_epoch
        )
        return self._add_partition(now_ns(), p, restored)

    def on_split_off(self, child: int, parent: int) -> None:
        """R18: what was split off ``parent`` is durable here: it can be opened, and etcd told."""
        if self.stopping or self.identity.refused:
            return
        partition = self.partitions[parent]
        self.control.open_child(partition, child)
        partition.split.tell_split()
        self.ticks.run_effects()
        partition.serve_waiting()  # those who came for what lies above learn where it is

    def drop_partition(self, p: int) -> None:
        """R10: etcd's record names this store no more; its copy goes, but for the epoch it has sealed."""
        partition = self.partitions.pop(p)
        partition.retire()
        self.ticks.forget(p)
        self.core.handle(now_ns(), ev.Dropped(p))
        self.snapshots.discard(p)
        self.store.drop_partition(p)
        fields = {"node": self.config.node, "partition": p, "epoch": partition.replica.sealed_epoch}
        log_event(log, "dropped: no member any more", **fields)
        self.ticks.wake()

    async def stop(self, hand_over: bool) -> None:
        """Stop serving; with ``hand_over`` leaders first go to other nodes (R11), within 1.5 s."""
        self.stopping = True
        if hand_over and not self.halt.failed.is_set():
            await self._hand_over_all()
        if self._shutting_out is not None:
            await asyncio.gather(self._shutting_out, return_exceptions=True)
        await self._take_no_part()
        for client in [*self.admission.clients, *self.admission.before_hello]:
            client.close()
        await self.store.close()

    async def _take_no_part(self) -> None:
        """End whatever this node does with others."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.control.close()
        await self.links.close()
        await self.snapshots.close()

    # --- R13 --------------------------------------------------------------------------------

    def condemn(self, verdict: Verdict) -> None:
        """This store is not what its name says: from here on the node takes part in nothing, serves nothing, and
        says so (log, /readyz, /v1/status). Its data stays as it is. Not to be called while effects are carried
        out: the process that serves clients next must meet no replica."""
        if self.identity.refused:
            return
        self.identity.refuse(verdict.why, verdict.do)
        fields = {"node": self.config.node}
        log.critical("this node serves nothing: %s; %s", verdict.why, verdict.do, extra=fields)
        if verdict.lasting:
            self.store.keep_fact(FACT_REFUSED, [verdict.why, verdict.do])
        partitions = list(self.partitions.values())
        self.partitions.clear()
        self.core.handle(now_ns(), ev.StoreRefused())
        for partition in partitions:
            partition.retire()
        self.ticks.forget_all()
        if self.core_started:
            self._shutting_out = self._loop.create_task(self._take_no_part())

    def on_accused(self, by: str, why: str, seen: Seen | None) -> None:
        """A peer does not let this process in. What it has ``seen`` of this store is compared with the store's own lineage:
        what contradicts that is so whatever etcd says, and for good. Anything else may be out of date: the peer
        goes on to refuse this node until it knows better, and this node goes on to try."""
        text = f"{by} says: {why}"
        if seen is not None and self.store.lineage.contradicts(seen):
            self.condemn(Verdict("refused", text, WAY_OUT, True))
        elif self.identity.accuse(by, text):
            log.error("a peer does not let this node in: %s", text, extra={"node": self.config.node})

    def on_peer_lineage(self, peer: Process, lineage: Lineage) -> None:
        """Durable before anything that is acknowledged to that process from here on: the log is in order."""
        self.identity.lacking.pop(peer.node, None)
        self.identity.accuse(peer.node, "")
        found = self.identity.remember(peer, lineage.generation, self.topology.nodes)
        if found is not None:
            self.remember_fact(FACT_GENERATIONS, found)

    def on_peer_mark(self, peer: Process, mark: int) -> None:
        """In memory at once, and durable now and then: a copy that is put back meets some peer that did not restart since, or
        is older than what is kept here."""
        if self.identity.note_mark(peer, mark) and now_ns() - self._marks_kept_ns >= KEEP_MARKS_NS:
            self._marks_kept_ns = now_ns()
            self.remember_fact(FACT_GENERATIONS, self.identity.memory())

    def _lacking(self, effect: fx.Lacking) -> None:
        known = self.identity.lacking.get(effect.node)
        self.identity.lacking[effect.node] = effect.what
        if known is None:
            fields = {"node": self.config.node, "partition": effect.p}
            log.error("%s has less than it acknowledged: %s", effect.node, effect.what, extra=fields)

    def _is_condemned(self, effect: fx.Condemned) -> None:
        verdict = Verdict("refused", f"{effect.why}: this folder is an old copy", WAY_OUT, True)
        self.ticks.afterwards = lambda: self.condemn(verdict)

    async def _hand_over_all(self) -> None:
        deadline = now_ns() + 1500 * MS
        while now_ns() < deadline:
            leading = [h.replica for h in self.partitions.values() if h.replica.term is not None]
            leading = [r for r in leading if r.role in ("active", "resigning", "resigned")]
            if not leading:
                return
            for r in leading:
                if r.role == "active":
                    up = [
                        n for n in self.links.connected() if r.term and dict(r.term.config.members()).get(n)
                    ]
                    if not up:
                        return
                    up = self.core.ctx.lapses.steady(now_ns(), up)
                    self.core.handle(now_ns(), ev.TransferWanted(r.p, up[r.p % len(up)]))
            self.ticks.run_effects()
            await asyncio.sleep(0.02)

    @property
    def core_started(self) -> bool:
        """Whether the replicas are loaded, and ticks come."""
        return self.ticks.started

    @property
    def failure(self) -> BaseException | None:
        """R14: why this node has stopped."""
        return self.halt.failure

    def watch_count(self) -> int:
        return sum(partition.watches.count for partition in self.partitions.values())

    def _effect_runners(self) -> dict[type[Any], Callable[[Any], object]]:
        """What carries out each kind of effect that is not the store's."""
        control, snapshots = self.control, self.snapshots
        return {
            fx.RoleChanged: lambda e: self._role_changed(e),
            fx.Campaign: control.campaign,
            fx.ChangeConfig: control.change_config,
            fx.MoveEnded: control.move_ended,
            fx.Sought: lambda e: self._loop.call_soon(self._sought, e),
            fx.Lacking: self._lacking,
            fx.Condemned: self._is_condemned,
            fx.Rotten: lambda e: self.rebuild.lost(e.error),
            fx.StartSnapshot: lambda e: snapshots.start(e.p, e.node, e.epoch),
            fx.InstallSnapshot: lambda e: snapshots.install(e.p, e.at_index, e.at_epoch, e.keep_log),
            fx.DiscardSnapshot: lambda e: snapshots.discard(e.p),
        }

    def _sought(self, effect: fx.Sought) -> None:
        """Not at once: opening a partition has effects of its own, and others are being carried out."""
        if self.halt.failure is None and not self.stopping:
            try:
                self.control.sought(effect)
            except Exception as e:
                self.halt.fail_stop(e)
            self.ticks.run_effects()

    def _role_changed(self, effect: fx.RoleChanged) -> None:
        self.partitions[effect.p].on_role(effect.role, effect.was)
        fields = {"node": self.config.node, "partition": effect.p, "epoch": effect.epoch}
        log_event(log, f"{effect.role}: {effect.reason}", **fields)
        if effect.role == "active":
            self.control.wake()

    # --- peers -----------------------------------------------------------------------------

    def why_no_peer(self, peer: Process, lineage: Lineage, rival: Process | None) -> PeerRefusal | None:
        """Why a process that calls itself ``peer`` is none of ours; None when it may be one (R13).

        A node that joined while etcd was away from here is not in the table: then, and only then,
        an unknown name passes. Nodes of other cells may come: a partition may move there (R10)."""
        record, certain = self.topology.nodes.get(peer.node), self.control.knows_all_nodes()
        if record is None and certain:
            return PeerRefusal("no such node is registered")
        if record is not None and record.store_id != peer.store:
            return PeerRefusal(f"its store is {record.store_id}")
        told = (lineage.generation, peer.incarnation)
        current = certain and record is not None and told == (record.generation, record.incarnation)
        return judge_peer(peer, lineage, self.identity.known(peer.node, record), current, rival)

    def on_peer_messages(self, src: Process, messages: list[Any]) -> None:
        if self.halt.failure is not None or self.identity.refused:
            return
        now = now_ns()
        core = self.core
        try:
            for message in messages:
                if isinstance(message, SnapshotBegin | SnapshotChunk | SnapshotAck):
                    self.snapshots.receive(src, message)
                else:
                    core.handle(now, message, src)
        except ProtocolError:
            raise  # the message made no sense and changed nothing: it costs its sender the connection
        except Exception as e:
            self.halt.fail_stop(e)
        finally:  # what came before a message that is not valid stands
            self.ticks.run_effects()
            if self.ticks.confirming:
                self.ticks.confirm_waiting(now_ns())

    def on_peer_up(self, node: str) -> None:
        if self.identity.refused:
            return
        self.ticks.reconnected(node)
        self.snapshots.connection_changed(node)
        self.core.handle(now_ns(), ev.PeerUp(node))
        self.ticks.run_effects()

    def on_peer_down(self, node: str) -> None:
        if self.identity.refused:
            return
        self.core.handle(now_ns(), ev.PeerDown(node))
        self.snapshots.connection_changed(node)
        self.ticks.run_effects()

    def meet(self, record: NodeRecord) -> None:
        """Know a node's address; connect when it is of this cell, or shares a partition."""
        if self.identity.vouch(record):
            self.remember_fact(FACT_GENERATIONS, self.identity.memory())
        near = record.cell == self.config.cell or record.node in self.control.related
        if near and record.node != self.config.node:
            self.links.set_peer(record.node, record.store_id, record.rpc)

    # --- views -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The node's own view, for tools; of this moment or the one before."""
        return self.status_pages.status()
