"""Which partitions a node has, as etcd's records ask for it: opened, moved, split off, dropped.

What a record asks for is decided in ``view``; here it is done, in the order in which records have to be met: a partition's own before its
leader key. etcd's delivery, and what is sent to etcd, are ``agent``'s and ``record_changes``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from metastore.clock import now_ns
from metastore.coordination.interface import KV
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.layout import ConfigRecord, Member, MoveRecord, NodeRecord, SplitRecord, term_of
from metastore.node.control import view
from metastore.node.ports import HasCore, HasPartitions, HasProcess, HasStore, HasTicks, HasTopology
from metastore.partition.partition import Partition
from metastore.partition.split import child_config
from metastore.topology import placement_of


class Here(HasCore, HasPartitions, HasProcess, HasStore, HasTicks, HasTopology, Protocol):
    """What this needs of the node."""

    def open_partition(self, config: ConfigRecord) -> Partition:
        """A replica, as the record says and the store has it."""

    def drop_partition(self, p: int) -> None:
        """The replica and its data go, but for the epoch it has sealed (R10)."""

    def meet(self, record: NodeRecord) -> None:
        """Know a node's address, and connect if it shares something with this one."""


class Assignment:
    """See the module. ``cell``: this node's; ``wake``: etcd should hear of something soon; ``on_learned``: the topology has become
    another, by what this node knows itself."""

    def __init__(
        self, node: Here, cell: str, wake: Callable[[], None], on_learned: Callable[[], None]
    ) -> None:
        self.node, self._cell = node, cell
        self._wake, self._on_learned = wake, on_learned
        #: partition -> its leader key, as the watch has it
        self.leaders: dict[int, KV | None] = {}
        #: partition -> revision of its record, as it is known here
        self.revisions: dict[int, int] = {}
        #: partition -> the term of its record, as the watch has it
        self.terms: dict[int, int] = {}
        #: partition -> the cell whose records hold it, of partitions that concern this node
        self.homes: dict[int, str] = {}
        #: partition -> (its move, mod revision of that record), as the watch has them
        self.moves: dict[int, tuple[MoveRecord, int]] = {}
        #: partitions that are to be split
        self.splits: dict[int, SplitRecord] = {}
        #: configs of partitions that this node does not hold, for when a move brings them here
        self.elsewhere: dict[int, tuple[str, ConfigRecord, int]] = {}
        #: configs that would be opened here, and overlap others
        self._set_aside: dict[int, tuple[str, ConfigRecord, int]] = {}
        #: partitions that were split off, and since when they wait to be opened here (R18)
        self.unopened: dict[int, tuple[str, ConfigRecord, int, int]] = {}
        #: nodes of other cells that share a partition with this one, now or soon
        self.related: set[str] = set()

    def _happens(self, event: ev.OfReplica) -> None:
        self.node.core.handle(now_ns(), event)

    def recorded(self, cell: str, p: int, is_well: bool) -> None:
        """Whether etcd has a record of the partition that makes sense: where it has none, nobody can be elected by
        it, and its members claim (R16) as if etcd were away."""
        partition = self.node.partitions.get(p)
        if partition is not None and cell == self.home(p):
            self._happens(ev.RecordSeen(p, is_well))

    def open_set_aside(self) -> None:
        """Partitions whose records did not fit into the map, and do now."""
        for p, (cell, config, mod_revision) in list(self._set_aside.items()):
            if p not in self.node.topology.aside:
                del self._set_aside[p]
                if p in self.node.topology.partitions:
                    self.config_changed(cell, config, mod_revision)

    def leader_changed(self, p: int, new: KV | None) -> None:
        partition = self.node.partitions.get(p)
        self.leaders[p] = new
        if partition is not None:
            self._happens(ev.LeaderSeen(p, new.value if new else None))

    def config_changed(self, cell: str, config: ConfigRecord, mod_revision: int) -> None:
        node, p = self.node, config.partition
        partition = node.partitions.get(p)
        mine = (node.me.node, node.me.store)
        move = self.moves.get(p)
        self._set_aside.pop(p, None)
        aside = p in node.topology.aside
        place = view.place_of(config, move[0] if move else None, mine, partition is not None, aside)
        if place is view.Place.ELSEWHERE:
            self.elsewhere[p] = cell, config, mod_revision
            self.unopened.pop(p, None)
            if partition is not None:
                self._left(partition, config, mod_revision)
            return
        self.elsewhere.pop(p, None)
        since = self.unopened.pop(p)[3] if p in self.unopened else now_ns()
        if place is view.Place.ASIDE:
            self._set_aside[p] = cell, config, mod_revision
            return
        if partition is None and config.parent is not None:
            self._entry_committed(config.parent)
            if self._waits_for_parent(config, since):
                self.unopened[p] = cell, config, mod_revision, since
                return
        if self.homes.get(p) != cell:
            self.homes[p] = cell
            self.leaders.pop(p, None)
        if partition is None:
            partition = node.open_partition(config)
        self._relate(config.members())
        partition.split.wanted = self.splits.get(p)
        self._happens(ev.HomeSeen(p, cell))
        self._happens(ev.MoveWanted(p, move[0] if move else None))
        if mod_revision:
            self.revisions[p] = mod_revision
            self.terms[p] = term_of(config.epoch)
        self._happens(ev.ConfigSeen(config.partition, config, mod_revision))
        partition.split.narrow()

    def _waits_for_parent(self, config: ConfigRecord, since: int) -> bool:
        """R18: whether it is to be opened later, as what was split off a partition here."""
        child, store = config.partition, self.node.store
        held = child in store.partitions and not store.partitions[child].dropped
        partition = self.node.partitions.get(config.parent[0]) if config.parent is not None else None
        parent = None
        if partition is not None:
            parted = any(split.child == child for split in partition.machine.splits)
            parent = view.Parent(partition.replica.is_member(), parted)
        return view.waits_for_parent(store.is_splitting(child), held, parent, now_ns() - since)

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
        is_here = p in node.partitions or p in self.unopened or node.store.is_splitting(p)
        has_left = p in self.elsewhere or (info is not None and info.dropped)
        if parent is None or not mine or is_here or has_left:
            return
        self.config_changed(self.home(parent.p), config, 0)

    def open_waiting(self) -> None:
        """Open what had to wait and need not any more."""
        for cell, config, mod_revision, since in list(self.unopened.values()):
            if not self._waits_for_parent(config, since):
                self.config_changed(cell, config, mod_revision)
                self._wake()

    def open_now(self, child: int) -> None:
        """R18: the entry that split it off will not come here any more."""
        if child in self.unopened:
            self.unopened[child] = (*self.unopened[child][:3], 0)
            self.open_waiting()

    def open_child(self, parent: Partition, child: int) -> None:
        """R18: what was split off ``parent`` is durable here as ``child``. etcd may not know of it yet: what it
        begins with follows from the entry that made it."""
        node, split = self.node, next(s for s in parent.machine.splits if s.child == child)
        config = child_config(parent.p, split)
        partition, home = node.partitions.get(child), self.home(parent.p)
        node.topology.learn(placement_of(home, config))
        self._on_learned()
        if partition is not None:
            partition.take_split()
        elif child in self.unopened:
            self.open_waiting()
        elif child in self.elsewhere:  # etcd's record names this store no more
            node.store.drop_partition(child)
        else:
            self.homes[child] = home
            self._relate(config.members())
            partition = node.open_partition(config)
            self._happens(ev.HomeSeen(child, home))
            self._happens(ev.SplitOff(child, parent.p))

    def misses(self, p: int) -> bool:
        """Whether this store may be a member of ``p`` and has no durable copy of it (R18)."""
        info, placement = self.node.store.partitions.get(p), self.node.topology.partitions.get(p)
        gone = p in self.elsewhere or (info is not None and info.dropped)
        replicas = placement.replicas if placement is not None else None
        return view.is_missing(self.node.me.node, replicas, gone, self.node.store.holds(p))

    def split_changed(self, p: int, split: SplitRecord | None) -> None:
        if split is None:
            self.splits.pop(p, None)
        else:
            self.splits[p] = split
        partition = self.node.partitions.get(p)
        if partition is not None:
            partition.split.wanted = split

    def _left(self, partition: Partition, config: ConfigRecord, mod_revision: int) -> None:
        """R10: the record names this store no more, and stands in etcd: that is the confirmation."""
        self._happens(ev.ConfigSeen(config.partition, config, mod_revision))
        self.node.ticks.run_effects()
        self.drop_what_left()

    def drop_what_left(self) -> None:
        """R10: partitions whose record, as etcd has it, names this store neither as a member nor as
        somebody to join."""
        node = self.node
        mine = (node.me.node, node.me.store)
        for p, partition in [
            (p, partition) for p, partition in node.partitions.items() if p in self.elsewhere
        ]:
            _, config, mod_revision = self.elsewhere[p]
            replica = partition.replica
            copy = view.Copy(replica.sealed_epoch, replica.config_mod_revision, replica.installing)
            if view.may_be_dropped(config, mod_revision, mine, copy) and not self._is_needed(p):
                node.drop_partition(p)
                self.homes.pop(p, None)
                self.leaders.pop(p, None)

    def _is_needed(self, p: int) -> bool:
        """R18: whether what was split off ``p`` has here only the rows and the log of ``p`` as yet."""
        if self.node.store.pending_splits(p):
            return True
        children = [q.id for q in self.node.topology.partitions.values() if q.parent and q.parent[0] == p]
        return any(self.misses(child) for child in children)

    def move_changed(self, p: int, move: tuple[MoveRecord, int] | None) -> None:
        node = self.node
        mine = (node.me.node, node.me.store)
        if move is None:
            self.moves.pop(p, None)
        else:
            self.moves[p] = move
        partition = node.partitions.get(p)
        if partition is not None:
            self._happens(ev.MoveWanted(p, move[0] if move else None))
            if move is not None:
                self._relate(move[0].target)
            config = partition.replica.config
            if config is not None and view.is_withdrawn(config, move[0] if move else None, mine):
                self.elsewhere[p] = self.home(p), config, partition.replica.config_mod_revision
                self.drop_what_left()
        elif move is not None and p in self.elsewhere:
            self.config_changed(*self.elsewhere[p])

    def home(self, p: int) -> str:
        return self.homes.get(p, self._cell)

    def is_splitting(self, p: int) -> bool:
        """Whether the partition is to be split."""
        return p in self.splits

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
            if p not in self.leaders and not told:
                self._happens(ev.LeaderSeen(p, None))
