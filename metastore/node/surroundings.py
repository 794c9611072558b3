"""What the partitions of a node ask about it and about the cluster (partition.ports)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from metastore.errors import CorruptState, MetastoreError, Moved, RottenEntry, Unavailable
from metastore.node.ports import HasIdentity, HasLinks, HasPartitions, HasStore, HasTopology, Stops
from metastore.partition.log import PartitionLog
from metastore.topology import Placement


class Elections(Protocol):
    def can_elect(self) -> bool:
        """Whether etcd answers and this node's lease is alive, as far as is known."""


class Rot(Protocol):
    """R14: told of what is not as it was written."""

    def found(self, p: int, error: CorruptState, /) -> None:
        """In the state of a partition."""

    def lost(self, error: RottenEntry, /) -> None:
        """In the log."""


class Here(HasPartitions, HasIdentity, HasLinks, HasStore, HasTopology, Stops, Protocol):
    """What this needs of the node."""

    @property
    def control(self) -> Elections: ...
    @property
    def rebuild(self) -> Rot: ...
    @property
    def core_started(self) -> bool:
        """Whether the replicas are loaded, and ticks come."""


class NodeSurroundings:
    """See the module."""

    def __init__(self, node: Here) -> None:
        self._node = node
        self.tight = False

    @property
    def stopping(self) -> bool:
        return self._node.stopping

    def can_elect(self) -> bool:
        return self._node.control.can_elect()

    def connected(self) -> Collection[str]:
        return self._node.links.connected()

    def away_for_s(self, node: str) -> float:
        return self._node.links.away_for_s(node)

    def address_of(self, node: str | None) -> str | None:
        record = self._node.topology.nodes.get(node) if node else None
        return record.rpc if record else None

    def family(self, p: int) -> list[Placement]:
        return self._node.topology.family(p)

    def whereabouts(self, p: int) -> MetastoreError:
        """Where it is, as far as is known here: who has just moved away knows before others ask around."""
        node = self._node
        if node.identity.refused:
            return Moved(f"this node serves nothing: {node.identity.why}", partition=p)
        if not node.core_started:
            return Unavailable("this node is starting", retry_after_s=0.2, partition=p)
        if node.store.pending_splits(p):
            return Unavailable(f"partition {p} is being opened here", retry_after_s=0.05, partition=p)
        placement = node.topology.partitions.get(p)
        where = {"leader": placement.leader, "epoch": placement.epoch} if placement is not None else {}
        cell = node.topology.cell_of(p)
        return Moved(f"this node holds no replica of partition {p}", partition=p, cell=cell, **where)

    def room_text(self) -> str:
        return self._node.store.space.text()

    def log_of(self, p: int) -> PartitionLog | None:
        partition = self._node.partitions.get(p)
        return None if partition is None else partition.log

    def rotten(self, p: int, error: CorruptState) -> None:
        self._node.rebuild.found(p, error)

    def lost(self, error: RottenEntry) -> None:
        self._node.rebuild.lost(error)
