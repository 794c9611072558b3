"""The node's dealings with the control plane, none of them on the path of a request.

Registers the node, follows configs and leader keys, runs election transactions (R2), and puts
leader keys back when etcd or the lease returns (R12). Whatever fails here is tried again
later; the data plane does not notice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from metastore import fields, schema
from metastore.clock import now_ns
from metastore.coordination.absent import AbsentCoordinator, AbsentSession, AbsentWatch
from metastore.coordination.interface import (
    KV,
    QUIET_S,
    Change,
    Coordinator,
    Known,
    Put,
    Session,
    Watch,
)
from metastore.coordination.lineage import Follower
from metastore.coordination.waiting import set_within
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.replica import ACTIVE
from metastore.errors import CoordinationError, CoordinationUnknown, StorageError
from metastore.fields import BadRecord
from metastore.following import Following, Seen
from metastore.layout import (
    ConfigRecord,
    Layout,
    Member,
    MoveRecord,
    SplitRecord,
    first_epoch,
    term_of,
)
from metastore.logs import log_event
from metastore.node.control import transactions, view
from metastore.node.control.transactions import Author
from metastore.node.control_report import ONLY_IN_ETCD
from metastore.node.registration import Registration
from metastore.node.replacement import Replacement
from metastore.partition.split import child_config
from metastore.schema import usage_to_json
from metastore.storage.facts import read_fact
from metastore.topology import placement_of

if TYPE_CHECKING:
    from metastore.node.node import Node
    from metastore.partition.partition import Partition

log = logging.getLogger("metastore.control")

FACT_CLUSTER_ID = "etcd_cluster_id"
FACT_REVISION = "etcd_revision"
#: the lineage that is followed, and what it followed upon (R13)
FACT_LINEAGE = "etcd_lineage"
RECONCILE_S = 1.0
USAGE_S = 2.0
#: a record of so many namespaces is written every USAGE_S at most, a larger one as much more seldom: it is written, and read by every
#: node, as a whole (10,000 namespaces: 340 KB, and 46 ms at each reader)
USAGE_NAMESPACES = 1000
ORDER = {"moves": 1, "leader": 2}
#: what a node keeps for a start without etcd
REMEMBERED = frozenset({"nodes", "config", "leader", "namespaces"})
MAX_CONCURRENT_CAMPAIGNS = 16
#: so long a child waits for its parent's entry before it is opened empty (R18)
PARENT_PATIENCE_NS = 2_000_000_000


def _known(plain: Any) -> Known:
    """Raises ValueError."""
    return Known(*_KNOWN(plain))


_ID: Final = fields.whole(high=(1 << 64) - 1)
_KNOWN: Final = fields.row(_ID, fields.whole(), fields.whole(), fields.whole())


def known_etcd(facts: Mapping[str, Any]) -> Known:
    """What the store knows of etcd (R13). Who has gone over to a rebuilt one knows nothing any more of the one before."""
    followed = read_fact(facts, FACT_LINEAGE, _known, None, None)
    revision = read_fact(facts, FACT_REVISION, fields.whole(), 0, 0)
    if followed is None:
        return Known(read_fact(facts, FACT_CLUSTER_ID, fields.maybe(_ID), None, None), revision)
    return followed._replace(revision=max(revision, followed.revision))


def usage_pause_s(namespaces: int) -> float:
    """Seconds from one record of usage to the next, by how many namespaces it is of."""
    return USAGE_S * max(1.0, namespaces / USAGE_NAMESPACES)


def _now_ms() -> int:
    """The time of day, for history."""
    return int(time.time() * 1000)


class Control:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.layout = Layout(node.config.cluster)
        self.coordinator: Coordinator = AbsentCoordinator(Known())
        self.session: Session = AbsentSession()
        self._watch: Watch = AbsentWatch()
        self.records = Following(self.layout, node.topology)
        self.registration = Registration(self)
        self.replacement = Replacement(self)
        self._registered = False
        self._closed = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CAMPAIGNS)
        self._leaders: dict[int, Any] = {}
        self._configs: dict[int, int] = {}
        #: partition -> the cell whose records hold it, of partitions that concern this node
        self._homes: dict[int, str] = {}
        #: partition -> (its move, mod revision of that record)
        self._moves: dict[int, tuple[MoveRecord, int]] = {}
        #: configs of partitions that this node does not hold, for when a move brings them here
        self._elsewhere: dict[int, tuple[str, ConfigRecord, int]] = {}
        #: configs that would be opened here, and overlap others
        self._set_aside: dict[int, tuple[str, ConfigRecord, int]] = {}
        #: nodes of other cells that share a partition with this one, now or soon
        self.related: set[str] = set()
        #: partitions that are to be split
        self._splits: dict[int, SplitRecord] = {}
        #: partitions that were split off, and since when they wait to be opened here (R18)
        self._unopened: dict[int, tuple[str, ConfigRecord, int, int]] = {}
        #: nodes that are to hold nothing
        self.drained: set[str] = set()
        self._ending: set[int] = set()
        #: partition -> the term of its record, as the watch has it
        self._terms: dict[int, int] = {}
        self._remembered: Known | None = None
        self._remember_due = False
        self._published: dict[str, list[int]] = {}
        self._published_at = 0
        #: what was looked at last for that, and never changes
        self._compared: dict[str, list[int]] | None = None
        self.ready = asyncio.Event()
        self.campaigns = 0
        self.elections_won = 0

    def connect(self, coordinator: Coordinator) -> None:
        """Have a lease from here on; nothing is followed yet."""
        self.coordinator = coordinator
        self.session = coordinator.session(self.node.config.lease_ttl_s)
        self.session.on_change = lambda _: self._lease_changed()
        self.session.start()

    def follow(self) -> None:
        """Follow the cluster's records, and keep this node's own there. The node has started."""
        quiet_s = min(QUIET_S, self.node.config.lease_ttl_s / 3)
        self._watch = self.coordinator.watch(
            self.layout.root, self._on_change, quiet_s, self.records.read_ahead
        )
        self._follower = Follower(self.coordinator, self.layout.lineage, self._followed)
        self._spawn(self._wait_ready())
        self._spawn(self._reconcile_forever())
        self._spawn(self._follower.run())

    def _followed(self) -> None:
        """R13: etcd was rebuilt, and is trusted. That is durable as one fact, so that no crash leaves a part of it."""
        self.node.remember_fact(FACT_LINEAGE, list(self.coordinator.known))
        self._registered = False
        self._terms.clear()
        self.wake()

    async def _wait_ready(self) -> None:
        await self._watch.ready.wait()
        self.ready.set()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self.node.halt.ended)

    def wake(self) -> None:
        """Something changed that etcd should hear of soon."""
        self._wake.set()

    def _lease_changed(self) -> None:
        self._registered = False
        self._published, self._compared = {}, None
        self.wake()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._closed:
            self._closed = True
            self._watch.close()
            await self.session.close()
            await self.coordinator.close()

    def _happens(self, event: ev.OfReplica) -> None:
        self.node.core.handle(now_ns(), event)

    # --- what etcd says -------------------------------------------------------------------

    def _on_change(self, revision: int, changes: list[Change]) -> None:
        node = self.node
        number = node.topology.changes.number
        seen = self.records.take(revision, changes)
        # configs before leader keys: a replica must exist before it hears who leads it; moves in
        # between, since they may ask for one
        for found in sorted(seen, key=lambda s: ORDER.get(s.parts[0], 0)):
            try:
                self._act(found)
            except Exception as e:  # the record is in order: what is wrong is this node (R14)
                node.halt.fail_stop(e)
        self._forget_nodes(number)
        self._open_set_aside()
        self._remember_due |= any(found.parts[0] in REMEMBERED for found in seen)
        self.wake()
        node.ticks.run_effects()

    def _forget_nodes(self, number: int) -> None:
        """Nodes that went from the table since that change of it."""
        node = self.node
        changed = node.topology.changes.after(number) or []
        for name in [str(name) for kind, name in changed if kind == "nodes"]:
            if name not in node.topology.nodes:
                self.related.discard(name)
                node.links.forget(name)

    def _act(self, seen: Seen) -> None:
        """Do what a change of a record asks for; the topology has it already."""
        node, (kind, *names), record, new = self.node, seen.parts, seen.record, seen.new
        if kind == "config" and record is not None and new is not None:
            self._config_changed(names[0], record, new.mod_revision)
        if kind == "config":
            self._recorded(names[0], int(names[1]), record is not None)
        if kind == "leader" and names[0] == self._homes.get(int(names[1])):
            self._leader_changed(int(names[1]), new)  # R2 compares what is there, whatever it says
        if seen.bad:
            return
        match kind:
            case "nodes" if record is not None:
                node.meet(record)
            case "moves":
                self._move_changed(int(names[0]), None if new is None else (record, new.mod_revision))
            case "splits":
                self._split_changed(int(names[0]), record)
            case "drained":
                (self.drained.discard if new is None else self.drained.add)(names[0])
            case "features" if record is not None:
                beyond = node.features.learn(record.level)
                if beyond is not None:
                    node.condemn(beyond)
            case "paused":
                node.core.handle(now_ns(), ev.MovesPaused(new is not None))
            case "lineage":
                self._follower.notice()
            case "usage":
                node.quotas.published(names[0], record)

    def _recorded(self, cell: str, p: int, is_well: bool) -> None:
        """Whether etcd has a record of the partition that makes sense: where it has none, nobody can be elected by
        it, and its members claim (R16) as if etcd were away."""
        partition = self.node.partitions.get(p)
        if partition is not None and cell == self._home(p):
            self._happens(ev.RecordSeen(p, is_well))

    def _open_set_aside(self) -> None:
        """Partitions whose records did not fit into the map, and do now."""
        for p, (cell, config, mod_revision) in list(self._set_aside.items()):
            if p not in self.node.topology.aside:
                del self._set_aside[p]
                if p in self.node.topology.partitions:
                    self._config_changed(cell, config, mod_revision)

    def _leader_changed(self, p: int, new: KV | None) -> None:
        partition = self.node.partitions.get(p)
        self._leaders[p] = new
        if partition is not None:
            self._happens(ev.LeaderSeen(p, new.value if new else None))

    def _config_changed(self, cell: str, config: ConfigRecord, mod_revision: int) -> None:
        node, p = self.node, config.partition
        partition = node.partitions.get(p)
        mine = (node.me.node, node.me.store)
        move = self._moves.get(p)
        self._set_aside.pop(p, None)
        aside = p in node.topology.aside
        place = view.place_of(config, move[0] if move else None, mine, partition is not None, aside)
        if place is view.Place.ELSEWHERE:
            self._elsewhere[p] = cell, config, mod_revision
            self._unopened.pop(p, None)
            if partition is not None:
                self._left(partition, config, mod_revision)
            return
        self._elsewhere.pop(p, None)
        since = self._unopened.pop(p)[3] if p in self._unopened else now_ns()
        if place is view.Place.ASIDE:
            self._set_aside[p] = cell, config, mod_revision
            return
        if partition is None and config.parent is not None:
            self._entry_committed(config.parent)
            if self._waits_for_parent(config, since):
                self._unopened[p] = cell, config, mod_revision, since
                return
        if self._homes.get(p) != cell:
            self._homes[p] = cell
            self._leaders.pop(p, None)
        if partition is None:
            partition = node.open_partition(config)
        self._relate(config.members())
        partition.split.wanted = self._splits.get(p)
        self._happens(ev.HomeSeen(p, cell))
        self._happens(ev.MoveWanted(p, move[0] if move else None))
        if mod_revision:
            self._configs[p] = mod_revision
            self._terms[p] = term_of(config.epoch)
        self._happens(ev.ConfigSeen(config.partition, config, mod_revision))
        partition.split.narrow()

    def _waits_for_parent(self, config: ConfigRecord, since: int) -> bool:
        """R18: whether it was split off what is here, and will be here as soon as the entry that did it is applied and
        durable. That may never be: then it is opened empty, and gets what it has to hold from other replicas."""
        child, store = config.partition, self.node.store
        if store.is_splitting(child):
            return True
        if config.parent is None or (child in store.partitions and not store.partitions[child].dropped):
            return False
        parent = self.node.partitions.get(config.parent[0])
        if parent is None or any(split.child == child for split in parent.machine.splits):
            return False
        return parent.replica.is_member() and now_ns() - since < PARENT_PATIENCE_NS

    def _entry_committed(self, parent: tuple[int, int, int]) -> None:
        """R18: who knows what an entry split off knows that the entry is committed. It is applied when the node settles."""
        partition = self.node.partitions.get(parent[0])
        if partition is not None:
            self._happens(ev.EntryCommitted(*parent))

    def sought(self, effect: fx.Sought) -> None:
        """R18: a member of what was split off a partition of this node's has begun to lead it, and etcd may not know
        yet."""
        node, p, config = self.node, effect.p, effect.config
        parent = node.partitions.get(config.parent[0]) if config.parent else None
        mine = (node.me.node, node.me.store) in config.members()
        info = node.store.partitions.get(p)
        is_here = p in node.partitions or p in self._unopened or node.store.is_splitting(p)
        has_left = p in self._elsewhere or (info is not None and info.dropped)
        if parent is None or not mine or is_here or has_left:
            return
        self._config_changed(self._home(parent.p), config, 0)

    def _open_waiting(self) -> None:
        """Open what had to wait and need not any more."""
        for cell, config, mod_revision, since in list(self._unopened.values()):
            if not self._waits_for_parent(config, since):
                self._config_changed(cell, config, mod_revision)
                self.wake()

    def open_now(self, child: int) -> None:
        """R18: the entry that split it off will not come here any more."""
        if child in self._unopened:
            self._unopened[child] = (*self._unopened[child][:3], 0)
            self._open_waiting()

    def open_child(self, parent: Partition, child: int) -> None:
        """R18: what was split off ``parent`` is durable here as ``child``. etcd may not know of it yet: what it
        begins with follows from the entry that made it."""
        node, split = self.node, next(s for s in parent.machine.splits if s.child == child)
        config = child_config(parent.p, split)
        partition, home = node.partitions.get(child), self._home(parent.p)
        node.topology.learn(placement_of(home, config))
        self._remember_due = True
        if partition is not None:
            partition.take_split()
        elif child in self._unopened:
            self._open_waiting()
        elif child in self._elsewhere:  # etcd's record names this store no more
            node.store.drop_partition(child)
        else:
            self._homes[child] = home
            self._relate(config.members())
            partition = node.open_partition(config)
            self._happens(ev.HomeSeen(child, home))
            self._happens(ev.SplitOff(child, parent.p))

    def misses(self, p: int) -> bool:
        """Whether this store may be a member of ``p`` and has no durable copy of it (R18)."""
        info = self.node.store.partitions.get(p)
        if p in self._elsewhere or (info is not None and info.dropped) or self.node.store.holds(p):
            return False
        placement = self.node.topology.partitions.get(p)
        return placement is None or self.node.me.node in placement.replicas

    def _split_changed(self, p: int, split: SplitRecord | None) -> None:
        if split is None:
            self._splits.pop(p, None)
        else:
            self._splits[p] = split
        partition = self.node.partitions.get(p)
        if partition is not None:
            partition.split.wanted = split

    def _left(self, partition: Partition, config: ConfigRecord, mod_revision: int) -> None:
        """R10: the record names this store no more, and stands in etcd: that is the confirmation."""
        self._happens(ev.ConfigSeen(config.partition, config, mod_revision))
        self.node.ticks.run_effects()
        self._drop_what_left()

    def _drop_what_left(self) -> None:
        """R10: partitions whose record, as etcd has it, names this store neither as a member nor as
        somebody to join."""
        node = self.node
        mine = (node.me.node, node.me.store)
        for p, partition in [
            (p, partition) for p, partition in node.partitions.items() if p in self._elsewhere
        ]:
            _, config, mod_revision = self._elsewhere[p]
            replica = partition.replica
            copy = view.Copy(replica.sealed_epoch, replica.config_mod_revision, replica.installing)
            if view.may_be_dropped(config, mod_revision, mine, copy) and not self._is_needed(p):
                node.drop_partition(p)
                self._homes.pop(p, None)
                self._leaders.pop(p, None)

    def _is_needed(self, p: int) -> bool:
        """R18: whether what was split off ``p`` has here only the rows and the log of ``p`` as yet."""
        if self.node.store.pending_splits(p):
            return True
        children = [q.id for q in self.node.topology.partitions.values() if q.parent and q.parent[0] == p]
        return any(self.misses(child) for child in children)

    def _move_changed(self, p: int, move: tuple[MoveRecord, int] | None) -> None:
        node = self.node
        mine = (node.me.node, node.me.store)
        if move is None:
            self._moves.pop(p, None)
        else:
            self._moves[p] = move
        partition = node.partitions.get(p)
        if partition is not None:
            self._happens(ev.MoveWanted(p, move[0] if move else None))
            if move is not None:
                self._relate(move[0].target)
            config = partition.replica.config
            if config is not None and view.is_withdrawn(config, move[0] if move else None, mine):
                self._elsewhere[p] = self._home(p), config, partition.replica.config_mod_revision
                self._drop_what_left()
        elif move is not None and p in self._elsewhere:
            self._config_changed(*self._elsewhere[p])

    def _home(self, p: int) -> str:
        return self._homes.get(p, self.node.config.cell)

    def is_splitting(self, p: int) -> bool:
        """Whether the partition is to be split."""
        return p in self._splits

    def records_seen(self) -> tuple[int, list[tuple[str, str]]] | None:
        """Records that only etcd has (key below the cluster's root, value), as the watch has them, and etcd's revision then;
        None = it has not delivered any yet."""
        if not self._watch.ready.is_set():
            return None
        root, kinds = len(self.layout.root), ONLY_IN_ETCD
        found = [
            (key[root:], kv.value.decode("utf-8", "replace"))
            for key, kv in sorted(self._watch.kvs.items())
            if self.layout.parse(key)[0] in kinds and key.isprintable()
        ]
        return self._watch.revision, found

    @property
    def read_at(self) -> int:
        """The revision at which all of etcd's records were read last."""
        return self._watch.read_at

    def kv(self, key: str) -> KV | None:
        """A record as the watch has it."""
        found: KV | None = self._watch.kvs.get(key)
        return found

    @property
    def moves(self) -> Mapping[int, tuple[MoveRecord, int]]:
        """Partition -> (its move, mod revision of that record), as the watch has them."""
        return self._moves

    def _relate(self, members: tuple[Member, ...]) -> None:
        """Connect to these nodes, whatever their cell."""
        self.related |= {name for name, _ in members}
        for name, _ in members:
            record = self.node.topology.nodes.get(name)
            if record is not None:
                self.node.meet(record)

    def leader_keys_read(self) -> None:
        """The first content of the watch has been delivered: an absent leader key is absent."""
        for p, partition in self.node.partitions.items():
            told = partition.replica.leader_value_known and partition.replica.leader_value is None
            if p not in self._leaders and not told:
                self._happens(ev.LeaderSeen(p, None))

    # --- R2 ---------------------------------------------------------------------------------

    def campaign(self, effect: fx.Campaign) -> None:
        self.campaigns += 1
        self._spawn(self._campaign(effect))

    async def _campaign(self, effect: fx.Campaign) -> None:
        node, p = self.node, effect.p
        won: tuple[ConfigRecord, int] | None = None
        try:
            async with self._slots:
                won = await self._elect(effect)
        except CoordinationError as e:
            log.debug("campaign for partition %d: %s", p, e)
        except (StorageError, AssertionError):
            raise
        except Exception:
            log.exception("the campaign for partition %d failed", p)
        partition = node.partitions.get(p)
        if partition is None:
            return
        if won:
            self.elections_won += 1
            fields = {"node": node.config.node, "partition": p, "epoch": effect.new.epoch}
            log_event(log, f"elected: {effect.reason}", **fields)
            self._happens(ev.CampaignEnded(p, *won))
        else:
            self._happens(ev.CampaignEnded(p, None, 0))
        node.ticks.run_effects()

    async def _elect(self, effect: fx.Campaign) -> tuple[ConfigRecord, int] | None:
        """The election transaction; who commits it owns the term (R2)."""
        me = self._author()
        if me is None:
            return None
        made = transactions.election(self.layout, self._home(effect.p), me, effect, _now_ms())
        config, leader = made.otherwise
        try:
            result = await self.coordinator.txn(*made)
        except CoordinationUnknown:
            # decide by what is there, never by the lost answer
            found = await self.coordinator.get(config.key), await self.coordinator.get(leader.key)
            at = transactions.election_found(me, effect, *found)
            return (effect.new, at) if at else None
        if result.succeeded:
            return effect.new, result.revision
        self._catch_up(effect.p, *result.kvs)
        return None

    def _author(self) -> Author | None:
        """This process with its lease; None = it has none."""
        session, me = self.session, self.node.me
        return (
            Author(me.node, me.incarnation, session.lease_id) if session.alive and session.lease_id else None
        )

    def _catch_up(self, p: int, config: KV | None, leader: KV | None) -> None:
        """What the transaction found instead: the watch may be behind, or cut off from news."""
        partition = self.node.partitions.get(p)
        if partition is None:
            return
        record = self._config_in(config)
        if config is not None and record is not None:
            self._configs[p] = max(config.mod_revision, self._configs.get(p, 0))
            self._happens(ev.ConfigSeen(p, record, config.mod_revision))
        self._leaders[p] = leader
        self._happens(ev.LeaderSeen(p, leader.value if leader else None))

    def _config_in(self, kv: KV | None) -> ConfigRecord | None:
        """A partition's record as a reading found it; None = there is none that makes sense."""
        if kv is None:
            return None
        try:
            return schema.read_record(self.layout.parse(kv.key), kv.value, ConfigRecord)
        except BadRecord as e:
            self.records.note(kv.key, e)
            return None

    # --- R10 --------------------------------------------------------------------------------

    def change_config(self, effect: fx.ChangeConfig) -> None:
        self._spawn(self._change(effect))

    async def _change(self, effect: fx.ChangeConfig) -> None:
        node, p = self.node, effect.p
        done = 0
        try:
            done = await self._swap(effect)
        except CoordinationError as e:
            log.debug("change of partition %d: %s", p, e)
        partition = node.partitions.get(p)
        if partition is None:
            return
        fields = {"node": node.config.node, "partition": p, "epoch": effect.new.epoch}
        if done:
            log_event(log, f"membership: {effect.reason}", **fields)
            self._configs[p] = max(done, self._configs.get(p, 0))
        new = effect.new if done else None
        self._happens(ev.ChangeEnded(p, new, done, effect.reason))
        node.ticks.run_effects()

    async def _swap(self, effect: fx.ChangeConfig) -> int:
        """The compare-and-swap of ``config(p)``; the revision that it was made at, 0 = it was not."""
        home, me = self._home(effect.p), self._author()
        if me is None and effect.new.leader == self.node.me.node:
            return 0
        move = self._moves.get(effect.p)
        made = transactions.change(
            self.layout,
            home,
            me or Author(self.node.me.node, self.node.me.incarnation, 0),
            effect,
            move[0] if move else None,
            self._led_at(effect.child) if me is not None else None,
            _now_ms(),
        )
        try:
            result = await self.coordinator.txn(*made)
            return result.revision if result.succeeded else 0
        except CoordinationUnknown:
            # decide by what is there, never by the lost answer
            found = await self.coordinator.get(transactions.changed_key(self.layout, home, effect))
            return transactions.change_found(effect, found)

    def _led_at(self, child: ConfigRecord | None) -> int | None:
        """The epoch at which a child is led here already."""
        partition = self.node.partitions.get(child.partition) if child is not None else None
        return partition.replica.sealed_epoch if partition is not None and partition.role == ACTIVE else None

    def move_ended(self, effect: fx.MoveEnded) -> None:
        self._spawn(self._end_move(effect))

    async def _end_move(self, effect: fx.MoveEnded) -> None:
        found = self._moves.get(effect.p)
        if found is None or effect.p in self._ending:
            return
        self._ending.add(effect.p)
        try:
            made = transactions.end_of_move(self.layout, effect.p, found[1])
            await self.coordinator.txn(*made)
            fields = {"node": self.node.config.node, "partition": effect.p}
            log_event(log, f"move {effect.how}", **fields)
        except CoordinationError as e:
            log.debug("end of the move of partition %d: %s", effect.p, e)
        finally:
            self._ending.discard(effect.p)

    # --- registration, R12, durable facts ------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            await set_within(self._wake, RECONCILE_S)
            self._wake.clear()
            try:
                await self._reconcile()
            except CoordinationError as e:
                log.debug("reconcile: %s", e)
            except (StorageError, AssertionError):
                raise  # what is broken is this node (R14)
            except Exception:
                log.exception("reconcile failed; it will be tried again")
            await asyncio.sleep(0.02)

    async def _reconcile(self) -> None:
        if self.ready.is_set():
            self.leader_keys_read()
            self._drop_what_left()
            self._open_waiting()
            self._remember()
        usage = self.node.quotas.recount()
        session = self.session
        if not session.alive or not session.lease_id:
            return
        if not self._registered:
            # R13: what is not registered changes nothing in etcd
            if await self.registration.register(session) != "done":
                return
            self._registered = True
        if not await self.registration.tell_mark():
            self._registered = False
            return
        await self._publish(usage, session)
        if self.ready.is_set():
            for p, partition in list(self.node.partitions.items()):
                await self._compare_terms(p, partition)
                replica = partition.replica
                config = replica.config
                if (
                    replica.role == "active"
                    and config is not None
                    and config.leader == self.node.me.node
                    and term_of(config.epoch) == term_of(replica.sealed_epoch)
                    and p in self._configs
                ):
                    await self._put_back(p, replica.sealed_epoch)
            await self.replacement.look()

    async def _compare_terms(self, p: int, partition: Partition) -> None:
        """R13: a term sealed here was etcd's before. The watch may be behind it, a fresh reading
        cannot; one that is says that etcd was restored from a backup."""
        sealed = term_of(partition.replica.sealed_epoch)
        if self._terms.get(p, sealed) >= sealed:
            return
        found = await self.coordinator.get(self.layout.config(self._home(p), p))
        record = self._config_in(found)
        if record is not None:
            term = term_of(record.epoch)
            if term < sealed:
                self.coordinator.distrust(f"etcd has partition {p} at term {term}, and it was at {sealed}")

    async def _publish(self, usage: dict[str, list[int]], session: Session) -> None:
        """What this node leads of namespaces with a quota, when that changed by over a hundredth."""
        now = now_ns()
        if now - self._published_at < usage_pause_s(len(usage)) * 1e9 or usage is self._compared:
            return
        if not view.differs(usage, self._published):
            self._compared = usage
            return
        key = self.layout.usage(self.node.config.node)
        await self.coordinator.txn([], [Put(key, usage_to_json(usage), session.lease_id)])
        self._published, self._published_at = {ns: list(sums) for ns, sums in usage.items()}, now

    async def _put_back(self, p: int, epoch: int) -> None:
        """R12: ``leader(p)`` at our own epoch and on the present lease, if config still names us."""
        me, seen = self._author(), self._leaders.get(p)
        if me is None or not transactions.is_to_be_put_back(me, epoch, seen):
            return
        cell, replica = self._home(p), self.node.partitions[p].replica
        term, config = replica.term, replica.config
        began = None
        if epoch != first_epoch(term_of(epoch)) and term is not None and config is not None:
            began_ms = _now_ms() - (now_ns() - term.started_ns) // 1_000_000
            kind = "restart" if "R12" in term.reason else "claim"
            of = replace(config, epoch=epoch)
            began = transactions.event(self.layout, of, cell, kind, term.reason, began_ms)
        known = self._configs.get(p, 0)
        made = transactions.put_back(self.layout, cell, me, p, epoch, seen, known, began)
        await self.coordinator.txn(*made)

    def _remember(self) -> None:
        """Keep etcd's identity (R13) and the topology durable, at most once a second."""
        node, coordinator = self.node, self.coordinator
        if self._remember_due:
            self._remember_due = False
            node.remember_topology()
        seen = coordinator.known
        if seen != self._remembered and seen.cluster_id is not None:
            self._remembered = seen
            node.remember_fact(FACT_CLUSTER_ID, seen.cluster_id)
            node.remember_fact(FACT_REVISION, seen.revision)

    def knows_all_nodes(self) -> bool:
        """Whether every node that ever registered is in the topology: etcd tells, or told lately."""
        return self.ready.is_set() and self.can_elect()

    def can_elect(self) -> bool:
        """Whether an election could be run from here now; not before etcd has this process registered (R13), and
        not while it is full.
        A watch that heard nothing for as long as a lease lives counts as etcd away (R9, R16): by the lease, nobody
        else may take over, and without the watch this node knows of nothing to take over."""
        return (
            self._registered
            and self.coordinator.connected
            and self.coordinator.takes_writes
            and self.session.alive
            and self._watch.silent_s < self.node.config.lease_ttl_s
        )

    def status(self) -> dict[str, Any]:
        return {
            "connected": self.coordinator.connected,
            "trouble": self.coordinator.trouble,
            "untrusted": self.coordinator.untrusted,
            "watch_silent_s": round(self._watch.silent_s, 3),
            "lease": bool(self.session.alive and self.session.lease_id),
            "lease_margin_s": round(self.session.margin_s, 3),
            "revision": self.coordinator.revision,
            "campaigns": self.campaigns,
            "elections_won": self.elections_won,
            "records": self.records.status(),
        }
