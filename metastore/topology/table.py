"""The topology table: partition -> cell, replicas, leader, epoch. Does no I/O.

Right nowhere but in etcd and at the replicas: what is here is a guess that costs one hop when
wrong. Sources in order of trust: a hint from a replica with a higher epoch, the etcd watch, a
snapshot. A partition's epoch does not go down here (I7), but where it proved wrong (``served``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from metastore import fields, schema
from metastore.changes import MAX_CHANGES, Changes, RowKey
from metastore.errors import Unavailable
from metastore.fields import BadRecord
from metastore.keys import PARENT, PartitionMap, PartitionRange
from metastore.layout import MAX_PARTITION, ConfigRecord, LeaderRecord, NodeRecord
from metastore.namespaces import DEFAULT, Policy
from metastore.schema import Parts
from metastore.topology import ancestry, plain
from metastore.topology.fitting import fitting
from metastore.topology.hints import is_beyond
from metastore.topology.placements import (
    Placement,
    placement_from_plain,
    placement_of,
    same_range,
)


class TopologyTable:
    """See the module."""

    def __init__(self, cluster: str = "") -> None:
        self.cluster = cluster
        self.revision = 0
        self.nodes: dict[str, NodeRecord] = {}
        self.partitions: dict[int, Placement] = {}
        self.namespaces: dict[str, Policy] = {}
        #: keys (below the cluster's root) of records that are not valid: what is here of them is older
        self.unreadable: set[str] = set()
        #: rows that made no sense when this table was read (from_wire), by key
        self.left_out: list[str] = []
        #: partitions whose records, as etcd has them, fit into no map: not in ``partitions``, or otherwise
        self.aside: dict[int, Placement] = {}
        self._rules: dict[str, int] = {}
        self._map: PartitionMap | None = None
        #: partition -> the highest epoch that etcd, a table, or this node's own replica told
        self._given: dict[int, int] = {}
        #: what etcd says of each partition; and what replicas say of those that it does not know
        self._records: dict[int, Placement] = {}
        self._learned: dict[int, Placement] = {}
        #: nodes that etcd has no record of any more, while a partition names them
        self._gone: set[str] = set()
        #: whether a partition has come, gone, or has another range, since ``partitions`` was made
        self._unsettled = False
        self.changes = Changes()
        #: etcd's records were all read, and what is applied from then on is what has changed
        self._following = False
        #: namespaces that have a quota
        self.limited: dict[str, Policy] = {}
        #: how many partitions each node leads, as far as is known here
        self.led: Counter[str] = Counter()
        #: of a table that somebody told: all of it (None), or what has changed after that revision, and what is gone
        self.since: int | None = None
        self.removed: list[RowKey] = []

    # --- asking ---------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every key has a partition."""
        if self._map is None and self.partitions:
            try:
                self._map = PartitionMap(PartitionRange(p.id, p.lo, p.hi) for p in self.partitions.values())
            except ValueError:
                return False
        return self._map is not None

    def map(self) -> PartitionMap:
        """Raises Unavailable while the table is not complete."""
        if not self.complete or self._map is None:
            raise Unavailable("the topology is not known yet", retry_after_s=1)
        return self._map

    def route(self, storage_key: bytes) -> Placement:
        """The partition of a storage key. Raises Unavailable while the table is not complete."""
        if self._map is None:
            self.map()
        assert self._map is not None
        return self.partitions[self._map.of(storage_key)]

    def in_order(self) -> list[Placement]:
        return [self.partitions[r.id] for r in self.map().in_order()]

    def cell_of(self, partition: int) -> str | None:
        placement = self.partitions.get(partition)
        return placement.cell if placement else None

    def split_off(self, ancestor: int, partition: int) -> int | None:
        """The entry of ``ancestor`` at which what is ``partition`` now was split off it; None when it was not."""
        return ancestry.split_off(self.partitions, ancestor, partition)

    def missing(self, placement: Placement) -> tuple[str, ...]:
        """Replicas whose node is registered with another store than the member's: they are lost (R13)."""
        found = []
        for node, store in zip(placement.replicas, placement.stores, strict=False):
            record = self.nodes.get(node)
            if record is not None and record.store_id != store:
                found.append(node)
        return tuple(found)

    def lineage(self, placement: Placement) -> list[int]:
        """The partition, and those that it was split off."""
        return ancestry.lineage(self.partitions, placement)

    def address(self, node: str | None) -> str | None:
        record = self.nodes.get(node) if node else None
        return record.rpc if record else None

    def policy(self, namespace: str) -> Policy:
        return self.namespaces.get(namespace, DEFAULT)

    def rule(self, namespace: str) -> int:
        """The routing rule of a namespace (metastore.keys)."""
        return self._rules.get(namespace, PARENT)

    # --- learning -------------------------------------------------------------------------

    def is_beyond(self, partition: int, epoch: int) -> bool:
        """Whether an epoch is higher than a replica's word is believed (``hints``)."""
        known = self.partitions.get(partition)
        given = self._given.get(partition, known.epoch if known else 0)
        return is_beyond(epoch, given)

    def apply_hint(self, partition: int, leader: str | None, epoch: int) -> bool:
        """A replica's word: taken when its epoch is higher, within bounds. Whether it was."""
        known = self.partitions.get(partition)
        if known is None or epoch <= known.epoch or leader is None or self.is_beyond(partition, epoch):
            return False
        self._given.setdefault(partition, known.epoch)
        self._place(replace(known, leader=leader, epoch=epoch))
        return True

    def know_leader(self, partition: int, leader: str, epoch: int, *, hint: bool = True) -> None:
        """Etcd's word (no ``hint``), or that of a replica in this process: no bound holds for it."""
        known = self.partitions.get(partition)
        self._give(partition, epoch)
        if known is not None and epoch > known.epoch:
            self._place(replace(known, leader=leader, epoch=epoch), hint=hint)

    def _place(self, placement: Placement, *, hint: bool = True) -> None:
        """A partition that has the range that it had."""
        self._count(self.partitions.get(placement.id), placement)
        self.partitions[placement.id] = placement
        self.changes.note(("partitions", placement.id), self.revision, hint)

    def _count(self, old: Placement | None, new: Placement | None) -> None:
        if old is not None and old.leader is not None:
            self.led[old.leader] -= 1
        if new is not None and new.leader is not None:
            self.led[new.leader] += 1

    def _give(self, partition: int, epoch: int) -> None:
        if epoch > self._given.get(partition, -1):
            self._given[partition] = epoch

    def served(self, wrong: Placement, node: str, epoch: int) -> None:
        """``node`` has served what only a leader serves, after the leader of ``wrong``, our word of the partition, would
        or could not: that one does not lead, and if its epoch is one at all, it is not active. ``epoch``: what
        replicas said of ``node``'s, 0 = nothing; any further word is believed over that."""
        known = self.partitions.get(wrong.id)
        if known is None or known.leader != wrong.leader or known.epoch != wrong.epoch:
            return  # there has been news meanwhile
        self._place(replace(known, leader=node, epoch=epoch))
        for told in (self._records, self._learned):
            if wrong.id in told:
                told[wrong.id] = replace(told[wrong.id], leader=node, epoch=epoch)
        self._given[wrong.id] = min(epoch, self._given.get(wrong.id, epoch))

    def apply_kv(self, parts: Parts, value: bytes | None, revision: int) -> None:
        """One record of etcd, None = deleted. Raises BadRecord, and keeps what was known."""
        try:
            record = None if value is None else schema.read(parts, value)
        except BadRecord:
            self.note_unreadable(self.unreadable | {"/".join(parts)})
            raise
        self.apply([(parts, record)], revision)

    def apply(self, records: Iterable[tuple[Parts, Any]], revision: int) -> None:
        """Records of etcd as metastore.schema reads them, None = deleted, in their order. The revision is etcd's when they
        were there, and of all that was applied before."""
        self.revision = max(self.revision, revision)
        # a record that is again what it is here: others may have it as it was in between
        followed = self._following
        for parts, record in records:
            if self.unreadable and "/".join(parts) in self.unreadable:
                self.note_unreadable(self.unreadable - {"/".join(parts)})
            match record:
                case NodeRecord():
                    self._set_node(record, followed)
                case ConfigRecord():
                    self._set_record(placement_of(parts[1], record))
                    if followed:
                        self._note_leader(record.partition, record.epoch)
                case LeaderRecord():
                    self.know_leader(int(parts[2]), record.node, record.epoch, hint=False)
                    if followed:
                        self._note_leader(int(parts[2]), record.epoch)
                case Policy():
                    self._set_policy(parts[1], record, followed)
                case None:
                    self._removed(parts)
                    if followed:
                        self._note_removed(parts)
        self._settle()

    def note_unreadable(self, keys: set[str]) -> None:
        """These are the keys that are not valid now."""
        if keys != self.unreadable:
            self.unreadable = keys
            self.changes.note(("unreadable", ""), self.revision)

    def _set_node(self, record: NodeRecord, told: bool = False) -> None:
        """``told``: it is news for others even when it is none here."""
        self._gone.discard(record.node)
        if told or self.nodes.get(record.node) != record:
            self.nodes[record.node] = record
            self.changes.note(("nodes", record.node), self.revision)

    def _note_leader(self, p: int, epoch: int) -> None:
        """etcd has told of a partition; what a replica knows better stays a replica's word."""
        known = self.partitions.get(p)
        self.changes.note(("partitions", p), self.revision, known is not None and known.epoch > epoch)

    def _note_removed(self, parts: Parts) -> None:
        """Others may have had it, where it came and went between two looks of ours."""
        if parts[0] == "config" and is_config(parts):
            self.changes.note(("partitions", int(parts[2])), self.revision)
        elif parts[0] in ("nodes", "namespaces"):
            self.changes.note((parts[0], parts[1]), self.revision)

    def _removed(self, parts: Parts) -> None:
        if parts[0] == "nodes" and parts[1] in self.nodes:
            self._gone.add(parts[1])
        elif parts[0] == "namespaces":
            self._set_policy(parts[1], None)
        elif parts[0] == "config" and parts[2].isdigit():
            known = self._records.get(int(parts[2]))
            if known is not None and known.cell == parts[1]:  # else it has moved, and this was its old home's
                del self._records[known.id]
                self._unsettled = True

    def doubt(self) -> None:
        """What is here may be of an etcd that is to be believed no more (R13): any table that a node tells from now on counts for
        more, whatever its revision. It serves until then."""
        self.revision = 0
        self._following = False
        self.changes.told_from = None

    def begin(self, present: Collection[Parts], revision: int) -> None:
        """``present``: the keys of all records that etcd has at this revision. What is not among them was removed
        while nobody here followed etcd."""
        self.revision = revision
        here = set(present)
        known: list[Parts] = [("nodes", name) for name in self.nodes]
        known += [("namespaces", name) for name in self.namespaces]
        homes = {(parts[1], int(parts[2])) for parts in here if parts[0] == "config" and is_config(parts)}
        for parts in known:
            if parts not in here:
                self._removed(parts)
        for placement in list(self._records.values()):
            if (placement.cell, placement.id) not in homes:
                del self._records[placement.id]
                self._unsettled = True
        self.note_unreadable(self.unreadable & {"/".join(parts) for parts in here})
        self._settle()
        self.changes.begin(revision)
        self._following = True

    def _set_policy(self, namespace: str, policy: Policy | None, told: bool = False) -> None:
        """``told``: as in ``_set_node``."""
        if not told and self.namespaces.get(namespace) == policy:
            return
        self.changes.note(("namespaces", namespace), self.revision)
        if policy is None:
            self.namespaces.pop(namespace, None)
            self._rules.pop(namespace, None)
            self.limited.pop(namespace, None)
            return
        self.namespaces[namespace] = policy
        self._rules[namespace] = policy.rule
        if policy.has_quota:
            self.limited[namespace] = policy
        else:
            self.limited.pop(namespace, None)

    def _set_record(self, placement: Placement) -> None:
        """etcd's word of a partition; what is known of its leader with a higher epoch stays."""
        p, known = placement.id, self.partitions.get(placement.id)
        self._give(p, placement.epoch)
        if known is not None and known.epoch >= placement.epoch:
            if known == placement and p in self._records and p not in self.aside:
                return
            placement = replace(placement, leader=known.leader, epoch=known.epoch)
        self._records[p] = placement
        if self._learned.pop(p, None) is None and p not in self.aside and same_range(known, placement):
            self._place(placement, hint=False)
        else:
            self._unsettled = True

    # --- the map --------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Make ``partitions`` of what is known, where a range is another than before."""
        if self._unsettled:
            self._unsettled = False
            settled = fitting(
                {**self._learned, **self._records}, self._learned, self.partitions, self.complete
            )
            for p, placement in settled.items():
                known = self.partitions.get(p)
                if known is not None and known.epoch > placement.epoch:
                    settled[p] = replace(placement, leader=known.leader, epoch=known.epoch)
            self.aside = {p: q for p, q in self._records.items() if not same_range(settled.get(p), q)}
            for p in self.partitions.keys() | settled.keys():
                old, new = self.partitions.get(p), settled.get(p)
                if old != new:
                    self._count(old, new)
                    self.changes.note(("partitions", p), self.revision, p in self._learned)
            self.partitions, self._map = settled, None
        self._forget_nodes()

    def _forget_nodes(self) -> None:
        """Let go of nodes that were removed, once no partition names them."""
        if self._gone:
            named = {node for q in self.partitions.values() for node in q.replicas}
            for node in self._gone - named:
                if self.nodes.pop(node, None) is not None:
                    self.changes.note(("nodes", node), self.revision)
            self._gone &= named

    # --- what replicas and other tables say -----------------------------------------------------------

    def family(self, partition: int) -> list[Placement]:
        """A partition and all that was split off it, and off that."""
        return [q for q in self.partitions.values() if partition in self.lineage(q)]

    def learn(self, placement: Placement) -> bool:
        """A replica's word of what was split off its partition. Whether it is news."""
        return self._learn([placement])

    def _learn(self, placements: list[Placement]) -> bool:
        new = {q.id: q for q in placements if q.id not in self.partitions}
        if new:
            self._learned.update(new)
            self._unsettled = True
            self._settle()
        for q in new.values():
            self._give(q.id, q.epoch)
        hints = [self.apply_hint(q.id, q.leader, q.epoch) for q in placements if q.id not in new]
        return bool(new) or any(hints)

    def learn_plain(self, raw: Any) -> bool:
        """``learn`` a node's word of a partition's ``family``: all of it, since a part would leave a gap. Whether there
        is news, and every key has a partition still."""
        try:
            family = fields.several(placement_from_plain, 0, MAX_PARTITION)(raw)
        except (ValueError, BadRecord, RecursionError):
            return False
        before, near = dict(self._learned), [q for q in family if not self._is_far(q)]
        news = self._learn(near)
        if any(q.id not in self.partitions for q in near):
            # it is not how a partition can have been split: what was known is kept
            self._learned, self._unsettled = before, True
            self._settle()
            return False
        return news and self.complete

    def _is_far(self, placement: Placement) -> bool:
        """Whether what was split off a partition has an epoch that it cannot have got there."""
        of = placement.id if placement.id in self.partitions or not placement.parent else placement.parent[0]
        return self.is_beyond(of, placement.epoch)

    def merge(self, other: TopologyTable) -> None:
        """Take what ``other`` knows better: newer records, what was removed since, and any higher epoch."""
        self.cluster = self.cluster or other.cluster
        if other.since is not None and other.since > self.revision:
            return  # what has changed in between is not known: the next question will tell
        if other.revision >= self.revision:
            later, self.revision = other.revision > self.revision, other.revision
            if other.since is not None:
                self._take_changes(other, removed=later)
            else:
                self._take(other, removed=later)
        for placement in other.partitions.values():
            if placement.leader is not None:
                self.know_leader(placement.id, placement.leader, placement.epoch)
        unknown = [q for q in other._learned.values() if q.id not in self.partitions]
        if unknown:
            self._learn(unknown)

    def _take(self, other: TopologyTable, removed: bool) -> None:
        """The records of a table that is not older; with ``removed`` of a later revision. What that one could not read
        it may lack."""
        if removed:
            for name in self.nodes.keys() - other.nodes.keys():
                if f"nodes/{name}" not in other.unreadable:
                    self._gone.add(name)
            for name in self.namespaces.keys() - other.namespaces.keys():
                if f"namespaces/{name}" not in other.unreadable:
                    self._set_policy(name, None)
            unread = {key.rpartition("/")[2] for key in other.unreadable if key.startswith("config/")}
            for p in self._records.keys() - other._records.keys() if other.complete else ():
                if f"{p:05d}" not in unread:
                    del self._records[p]
                    self._unsettled = True
            self.note_unreadable(set(other.unreadable))
        self._take_rows(other)

    def _take_changes(self, other: TopologyTable, removed: bool) -> None:
        """As ``_take``, of a table that has only what is other since."""
        if removed:
            for kind, name in other.removed:
                if kind == "nodes" and name in self.nodes:
                    self._gone.add(str(name))
                elif kind == "namespaces" and name in self.namespaces:
                    self._set_policy(str(name), None)
                elif kind == "partitions" and self._records.pop(int(name), None) is not None:
                    self._unsettled = True
            self.note_unreadable(set(other.unreadable))
        self._take_rows(other)

    def _take_rows(self, other: TopologyTable) -> None:
        for record in other.nodes.values():
            self._set_node(record)
        for name, policy in other.namespaces.items():
            self._set_policy(name, policy)
        for placement in other._records.values():
            self._set_record(placement)
        self._settle()

    # --- as plain data --------------------------------------------------------------------

    def to_wire(self, since: int | None = None) -> dict[str, Any]:
        """Plain maps and lists, for msgpack and JSON; points as hexadecimal text. What earlier versions do not know is there
        only when there is something to say. ``since``: only what a table of that revision may lack, and what is gone; all of it
        where that is not known."""
        told = None if since is None else self.told_since(since)
        if told is not None:
            return told
        return plain.whole(self.head(), self.nodes, self.namespaces, self.partitions)

    def told_since(self, revision: int, limit: int = MAX_CHANGES) -> dict[str, Any] | None:
        """``to_wire`` with ``since``; None where that is not known, or would be more than ``limit`` rows."""
        rows = self.changes.since(revision, limit) if self.complete else None
        return None if rows is None else {**self.head(), **plain.changed(rows, self.row), "since": revision}

    def row(self, row: RowKey) -> Any:
        """A row as plain data; None = it is gone."""
        return plain.row(row, self.nodes, self.namespaces, self.partitions)

    def rows(self) -> list[RowKey]:
        """All there are."""
        nodes: list[RowKey] = [("nodes", name) for name in self.nodes]
        namespaces: list[RowKey] = [("namespaces", name) for name in self.namespaces]
        return [*nodes, *namespaces, *(("partitions", p) for p in self.partitions)]

    def head(self) -> dict[str, Any]:
        """What is of the table as a whole."""
        learned = sorted(self._learned.keys() & self.partitions.keys())
        return plain.head_of(self.cluster, self.revision, learned, self.unreadable)

    @classmethod
    def from_wire(cls, raw: Any) -> TopologyTable:
        """A table that somebody else has, or that was kept. A row that is not valid is left out, and is among what is
        ``unreadable``; what is of a later version is passed over. Raises InvalidRequest when ``raw`` is not a table."""
        told = plain.read(raw)
        table = cls(told.cluster)
        table.revision, table.unreadable, table.left_out = told.revision, told.unreadable, told.left_out
        table.since, table.removed = told.since, told.removed
        table.nodes = {record.node: record for record in told.nodes}
        for name, policy in told.namespaces:
            table._set_policy(name, policy)
        for placement in told.partitions:
            into = table._learned if placement.id in told.learned else table._records
            into[placement.id] = placement
        table._unsettled = True
        table._settle()
        return table


def is_config(parts: Parts) -> bool:
    """Whether a key of etcd is that of a partition's record."""
    return parts[0] == "config" and len(parts) == 3 and parts[2].isascii() and parts[2].isdigit()
