"""A member whose node came back with another store is replaced by that store, by itself (R10, R13).

Once etcd has another store registered under a member's name, by compare-and-swap and after the old process
was gone, the member's own store is lost for good: it is refused if it ever comes back. So the leader asks
for a move that names the new store instead, a few at a time, and not while changes are paused.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, Protocol

from metastore.coordination.interface import Compare, Put
from metastore.errors import CoordinationUnknown
from metastore.layout import Member, MoveRecord, NodeRecord
from metastore.logs import log_event
from metastore.node.control.assignment import Assignment
from metastore.node.control.link import Link
from metastore.node.ports import HasConfig, HasCore, HasPartitions, HasTopology
from metastore.partition.partition import Partition

log = logging.getLogger("metastore.replacing")

CAUSE: Final = "came back with another store"


def renewed(members: tuple[Member, ...], nodes: dict[str, NodeRecord]) -> tuple[Member, ...]:
    """The members, each with the store that its node has now. Pure."""
    return tuple((node, nodes[node].store_id if node in nodes else store) for node, store in members)


class Here(HasConfig, HasCore, HasPartitions, HasTopology, Protocol):
    """What this needs of the node."""


class Replacement:
    """See the module."""

    def __init__(self, node: Here, link: Link, assignment: Assignment) -> None:
        self.node, self._link, self._assignment = node, link, assignment

    async def look(self) -> None:
        """Ask for what is missing of the partitions led here. Raises CoordinationError."""
        node, assignment = self.node, self._assignment
        if node.core.ctx.moves_paused:
            return
        under_way = sum(
            1
            for p in assignment.moves
            if p in node.partitions and node.partitions[p].replica.term is not None
        )
        for p, partition in sorted(node.partitions.items()):
            known = assignment.moves.get(p)
            if self._lacks(partition, known[0] if known else None) and not assignment.is_splitting(p):
                if known is None and under_way >= node.config.max_moves:
                    return  # their turn comes
                under_way += known is None
                await self._ask(p, partition, known)

    def _lacks(self, partition: Partition, move: MoveRecord | None) -> bool:
        """Whether a member, or one that is to become one, names a store that its node has not any more."""
        replica, config = partition.replica, partition.replica.config
        if replica.role != "active" or config is None or config.joint is not None:
            return False
        if not replica.config_mod_revision:
            return False  # etcd has yet to show its record
        members = move.target if move is not None and not move.cancel else config.replicas
        if move is not None and move.cancel:
            return False
        return renewed(members, self.node.topology.nodes) != members

    async def _ask(self, p: int, partition: Partition, known: tuple[MoveRecord, int] | None) -> None:
        node, link = self.node, self._link
        config, nodes = partition.replica.config, node.topology.nodes
        assert config is not None
        old = known[0].target if known is not None else config.replicas
        target = renewed(old, nodes)
        changed = [name for (name, store), (_, was) in zip(target, old, strict=True) if store != was]
        cause = f"{', '.join(changed)} {CAUSE}"
        if known is not None:
            move = replace(known[0], target=target, cause=known[0].cause or cause)
        else:
            move = MoveRecord(p, self._assignment.home(p), target, cause=cause)
        key = link.layout.move(p)
        same = Compare.absent(key) if known is None else Compare.mod_revision_is(key, known[1])
        compares = [
            same,
            Compare.mod_revision_is(
                link.layout.config(self._assignment.home(p), p), partition.replica.config_mod_revision
            ),
        ]
        for name in changed:
            record = link.kv(link.layout.node(name))
            if record is None:
                return
            compares.append(Compare.mod_revision_is(record.key, record.mod_revision))
        try:
            result = await link.coordinator.txn(compares, [Put(key, move.to_json())])
        except CoordinationUnknown:
            return  # the watch tells what became of it
        if result.succeeded:
            fields = {"node": node.config.node, "partition": p, "epoch": config.epoch}
            log_event(log, f"{cause}: it is to be filled", **fields)
