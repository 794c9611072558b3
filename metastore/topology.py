"""The topology table: partition -> cell, replicas, leader, epoch. Does no I/O.

Right nowhere but in etcd and at the replicas: what is here is a guess that costs one hop when
wrong. Sources in order of trust: a hint from a replica with a higher epoch, the etcd watch, a
snapshot. A partition's epoch does not go down here (I7), but where it proved wrong (``served``).

How far a replica's word is believed: epochs come from etcd, which hands out terms one by one, and within a term from
replicas that a quorum of its config has let go on. What etcd, or a whole table, has told is older than the
present by what it takes to ask around again (some seconds), in which a partition goes through a few terms: an election is
one, a move two to four, and elections that repeat are damped (R9). So a hint is believed up to MAX_TERMS_AHEAD terms
beyond that. One that is further ahead is nobody's epoch, or this table is so old that it has to be asked for anew,
which is what happens: no answer of a single node takes the table further away from what it can come back from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from metastore.errors import InvalidRequest, Unavailable
from metastore.keys import PARENT, PartitionMap, PartitionRange
from metastore.layout import ConfigRecord, LeaderRecord, NodeRecord, node_record_from_json, term_of
from metastore.namespaces import DEFAULT, Policy, policy_from_json, policy_from_plain

#: how many terms beyond what etcd or a table told a hint may be
MAX_TERMS_AHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one partition is. ``replicas``: node names in order of preference."""

    id: int
    lo: int
    hi: int
    cell: str
    replicas: tuple[str, ...]
    leader: str | None = None
    epoch: int = 0
    #: (partition, entry) that it was split off, None = it has been there from the start
    parent: tuple[int, int] | None = None
    #: the store of each replica (R13), in the order of ``replicas``; empty = not known
    stores: tuple[str, ...] = ()


def placement_of(cell: str, config: ConfigRecord) -> Placement:
    """What a record of etcd says."""
    replicas = tuple(node for node, _ in config.members())
    stores = tuple(store for _, store in config.members())
    parent = config.parent and (config.parent[0], config.parent[2])
    return Placement(
        config.partition, config.lo, config.hi, cell, replicas, config.leader, config.epoch, parent, stores
    )


def placement_to_plain(p: Placement) -> dict[str, Any]:
    """For msgpack and JSON; points as hexadecimal text."""
    return {
        "id": p.id,
        "lo": f"{p.lo:016x}",
        "hi": f"{p.hi:016x}",
        "cell": p.cell,
        "replicas": list(p.replicas),
        "leader": p.leader,
        "epoch": p.epoch,
        "parent": list(p.parent) if p.parent else None,
        "stores": list(p.stores),
    }


def placement_from_plain(p: Any) -> Placement:
    """Raises LookupError, TypeError, ValueError or AttributeError when it is none."""
    placement = Placement(
        _number(p["id"]),
        int(p["lo"], 16),
        int(p["hi"], 16),
        _text(p["cell"]),
        tuple(map(_text, p["replicas"])),
        None if p["leader"] is None else _text(p["leader"]),
        _number(p["epoch"]),
        (_number(p["parent"][0]), _number(p["parent"][1])) if p.get("parent") else None,
        tuple(map(_text, p.get("stores", ()))),
    )
    if not 0 <= placement.lo < placement.hi <= 1 << 64:
        raise ValueError(f"partition {placement.id} from {placement.lo} to {placement.hi}")
    return placement


class TopologyTable:
    """See the module."""

    def __init__(self, cluster: str = "") -> None:
        self.cluster = cluster
        self.revision = 0
        self.nodes: dict[str, NodeRecord] = {}
        self.partitions: dict[int, Placement] = {}
        self.namespaces: dict[str, Policy] = {}
        self._rules: dict[str, int] = {}
        self._map: PartitionMap | None = None
        #: partition -> where what was split off it begins
        self._ends: dict[int, int] = {}
        #: partition -> the highest epoch that etcd, a table, or this node's own replica told
        self._given: dict[int, int] = {}

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

    def route(self, lkey: bytes) -> Placement:
        """The partition of a storage key. Raises Unavailable while the table is not complete."""
        if self._map is None:
            self.map()
        assert self._map is not None
        return self.partitions[self._map.of(lkey)]

    def in_order(self) -> list[Placement]:
        return [self.partitions[r.id] for r in self.map().in_order()]

    def cell_of(self, partition: int) -> str | None:
        placement = self.partitions.get(partition)
        return placement.cell if placement else None

    def split_off(self, ancestor: int, partition: int) -> int | None:
        """The entry of ``ancestor`` at which what is ``partition`` now was split off it; None when it was not."""
        at: int | None = None
        for _ in self.partitions:
            if partition == ancestor:
                return at
            placement = self.partitions.get(partition)
            if placement is None or placement.parent is None:
                return None
            partition, index = placement.parent
            at = index if at is None else min(at, index)
        return at if partition == ancestor else None

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
        found = [placement.id]
        while placement.parent is not None and placement.parent[0] in self.partitions:
            placement = self.partitions[placement.parent[0]]
            if placement.id in found:
                break  # no record of ours says so
            found.append(placement.id)
        return found

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
        """Whether an epoch is higher than a replica's word is believed (see the module)."""
        known = self.partitions.get(partition)
        given = self._given.get(partition, known.epoch if known else 0)
        return term_of(epoch) > term_of(given) + MAX_TERMS_AHEAD

    def apply_hint(self, partition: int, leader: str | None, epoch: int) -> bool:
        """A replica's word: taken when its epoch is higher, within bounds. Whether it was."""
        known = self.partitions.get(partition)
        if known is None or epoch <= known.epoch or leader is None or self.is_beyond(partition, epoch):
            return False
        self._given.setdefault(partition, known.epoch)
        self.partitions[partition] = replace(known, leader=leader, epoch=epoch)
        return True

    def know_leader(self, partition: int, leader: str, epoch: int) -> None:
        """Etcd's word, or that of a replica in this very process: no bound holds for it."""
        known = self.partitions.get(partition)
        self._give(partition, epoch)
        if known is not None and epoch > known.epoch:
            self.partitions[partition] = replace(known, leader=leader, epoch=epoch)

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
        self.partitions[wrong.id] = replace(known, leader=node, epoch=epoch)
        self._given[wrong.id] = min(epoch, self._given.get(wrong.id, epoch))

    def apply_kv(self, parts: tuple[str, ...], value: bytes | None, revision: int) -> None:
        """One record of etcd (metastore.layout), None = deleted. Raises InvalidRequest."""
        self.revision = max(self.revision, revision)
        if parts[0] == "nodes" and value is not None:
            record = node_record_from_json(value)
            self.nodes[record.node] = record
        elif parts[0] == "config" and value is not None:
            self._apply_config(parts[1], ConfigRecord.from_json(value))
        elif parts[0] == "leader" and value is not None:
            leader = LeaderRecord.from_json(value)
            self.know_leader(int(parts[2]), leader.node, leader.epoch)
        elif parts[0] == "namespaces":
            self._set_policy(parts[1], None if value is None else policy_from_json(value))

    def _set_policy(self, namespace: str, policy: Policy | None) -> None:
        if policy is None:
            self.namespaces.pop(namespace, None)
            self._rules.pop(namespace, None)
        else:
            self.namespaces[namespace] = policy
            self._rules[namespace] = policy.rule

    def keep_namespaces(self, present: set[str]) -> None:
        """Forget policies that etcd does not have any more."""
        for name in [n for n in self.namespaces if n not in present]:
            self._set_policy(name, None)

    def _apply_config(self, cell: str, config: ConfigRecord) -> None:
        known, placement = self.partitions.get(config.partition), placement_of(cell, config)
        self._give(placement.id, placement.epoch)
        if known is not None and known.epoch >= placement.epoch:
            placement = replace(placement, leader=known.leader, epoch=known.epoch)
        self._put(placement)

    def _put(self, placement: Placement) -> None:
        """A partition that was split ends where what was split off it begins, whatever an older word says (R18)."""
        end = self._ends.get(placement.id, placement.hi)
        if end < placement.hi:
            placement = replace(placement, hi=end)
        known = self.partitions.get(placement.id)
        if known is None or (known.lo, known.hi) != (placement.lo, placement.hi):
            self._map = None
        self.partitions[placement.id] = placement
        if placement.parent is None:
            return
        ancestor = placement.parent[0]
        if placement.lo < self._ends.get(ancestor, 1 << 64):
            self._ends[ancestor] = placement.lo
            parent = self.partitions.get(ancestor)
            if parent is not None:
                self._put(parent)

    def family(self, partition: int) -> list[Placement]:
        """A partition and all that was split off it, and off that."""
        return [q for q in self.partitions.values() if partition in self.lineage(q)]

    def learn(self, placement: Placement) -> bool:
        """A replica's word of what was split off its partition. Whether it is news."""
        if placement.id in self.partitions:
            return self.apply_hint(placement.id, placement.leader, placement.epoch)
        self._give(placement.id, placement.epoch)
        self._put(placement)
        return True

    def learn_plain(self, raw: Any) -> bool:
        """``learn`` a node's word of a partition's ``family``: all of it, since a part would leave a gap. Whether there
        is news, and every key has a partition still."""
        try:
            family = [placement_from_plain(p) for p in raw]
        except (LookupError, TypeError, ValueError, AttributeError):
            return False
        before = dict(self.partitions), dict(self._ends), dict(self._given)
        news = [self.learn(placement) for placement in family if not self._is_far(placement)]
        if not self.complete:  # it is not how a partition can have been split: what was known is kept
            self.partitions, self._ends, self._given = before
            self._map = None
            return False
        return any(news)

    def _is_far(self, placement: Placement) -> bool:
        """Whether what was split off a partition has an epoch that it cannot have got there."""
        of = placement.id if placement.id in self.partitions or not placement.parent else placement.parent[0]
        return self.is_beyond(of, placement.epoch)

    def merge(self, other: TopologyTable) -> None:
        """Take what ``other`` knows better: newer records, and any higher epoch."""
        self.cluster = self.cluster or other.cluster
        newer = other.revision >= self.revision
        for name, record in other.nodes.items():
            if newer or name not in self.nodes:
                self.nodes[name] = record
        for p, theirs in other.partitions.items():
            ours = self.partitions.get(p)
            self._give(p, theirs.epoch)
            if ours is None or (newer and theirs != ours):
                if ours is not None and ours.epoch > theirs.epoch:
                    theirs = replace(theirs, leader=ours.leader, epoch=ours.epoch)
                self._put(theirs)
            elif theirs.epoch > ours.epoch:
                self.partitions[p] = replace(ours, leader=theirs.leader, epoch=theirs.epoch)
        if newer:
            for name in list(self.namespaces):
                if name not in other.namespaces:
                    self._set_policy(name, None)
            for name, policy in other.namespaces.items():
                self._set_policy(name, policy)
        self.revision = max(self.revision, other.revision)

    # --- as plain data --------------------------------------------------------------------

    def to_wire(self) -> dict[str, Any]:
        """Plain maps and lists, for msgpack and JSON; points as hexadecimal text."""
        return {
            "cluster": self.cluster,
            "revision": self.revision,
            "nodes": [asdict(n) for n in self.nodes.values()],
            "namespaces": [[name, policy.to_plain()] for name, policy in sorted(self.namespaces.items())],
            "partitions": [
                placement_to_plain(p) for p in sorted(self.partitions.values(), key=lambda p: p.id)
            ],
        }

    @classmethod
    def from_wire(cls, raw: Any) -> TopologyTable:
        """Raises InvalidRequest when ``raw`` is not a table."""
        try:
            table = cls(_text(raw["cluster"]))
            table.revision = _number(raw["revision"])
            for n in raw["nodes"]:
                record = NodeRecord.from_plain(n)
                table.nodes[record.node] = record
            for name, policy in raw["namespaces"]:
                table._set_policy(_text(name), policy_from_plain(policy))
            for p in raw["partitions"]:
                table._put(placement_from_plain(p))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise InvalidRequest(f"not a topology table: {type(e).__name__}: {e}"[:300]) from None
        return table


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r:.60} is no number")
    return value
