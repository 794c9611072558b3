"""The cluster's records as of one revision, and what may be asked for by them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cellctl.connect import unknown
from cellctl.plan import MAX_REPLICAS, CellView, ClusterView, NodeView, PartitionView, PlannedMove
from metastore.covering import Piece, finest
from metastore.errors import InvalidRequest, NotFound
from metastore.layout import FIRST_LEVEL, CellRecord, ConfigRecord, Member, MoveRecord, NodeRecord


@dataclass(frozen=True, slots=True)
class Records:
    """The cluster's records as of one revision."""

    revision: int
    cells: dict[str, CellRecord]
    nodes: dict[str, NodeRecord]
    drained: frozenset[str]
    present: frozenset[str]
    #: partition -> (cell, config)
    configs: dict[int, tuple[str, ConfigRecord]]
    #: partition -> (move, mod revision)
    moves: dict[int, tuple[MoveRecord, int]]
    paused: bool
    #: keys of records that are not valid, as they can be printed -> why; they are in nothing above
    bad: Mapping[str, str] = field(default_factory=dict)
    #: the cluster's feature level
    level: int = FIRST_LEVEL
    #: key -> mod revision
    mods: Mapping[str, int] = field(default_factory=dict)

    def supported(self) -> int:
        """The highest feature level that every registered node supports."""
        return min((node.level for node in self.nodes.values()), default=FIRST_LEVEL)

    def misfits(self) -> list[int]:
        """Partitions whose ranges overlap others'; nodes and routers go by the other ones. Empty where nothing covers all keys."""
        pieces = [Piece(p, c.lo, c.hi) for p, (_, c) in self.configs.items()]
        found = finest(pieces, 1 << 64)
        fitting = self.configs.keys() if found is None else {piece.id for piece in found}
        return sorted(self.configs.keys() - fitting)

    def gaps(self) -> list[tuple[int, int]]:
        """Ranges of points that no partition's record covers."""
        found, at = [], 0
        for lo, hi in sorted((c.lo, c.hi) for _, c in self.configs.values()):
            if lo > at:
                found.append((at, lo))
            at = max(at, hi)
        return found + ([(at, 1 << 64)] if at < 1 << 64 else [])

    def missing_nodes(self) -> dict[str, list[int]]:
        """Nodes that partitions name and that have no record -> those partitions."""
        found: dict[str, list[int]] = {}
        for p, (_, config) in sorted(self.configs.items()):
            for name, _ in config.members():
                if name not in self.nodes:
                    found.setdefault(name, []).append(p)
        return found

    def config(self, partition: int) -> tuple[str, ConfigRecord]:
        """A partition's cell and record. Raises NotFound, and InvalidRequest when its record is not valid."""
        found = self.configs.get(partition)
        if found is not None:
            return found
        for key, why in self.bad.items():
            if "/config/" in key and key.endswith(f"/{partition:05d}"):
                raise InvalidRequest(f"the record {key} in etcd is not valid ({why}); repair it first")
        raise NotFound(f"there is no partition {partition}; see: cellctl partition list")

    def check_configs(self) -> None:
        """Raises InvalidRequest when a partition's record is not valid: who holds it is not known then."""
        for key in self.bad:
            if "/config/" in key:
                raise InvalidRequest(
                    f"the record {key} in etcd is not valid, so what it names is not known; repair or remove it first"
                )

    def held(self, config: ConfigRecord) -> tuple[str, ...]:
        """The replicas whose nodes have the member's very store still: health counts stores, not names (R13)."""
        return tuple(n for n, s in config.replicas if n not in self.nodes or self.nodes[n].store_id == s)

    def check_leadable(self, partition: int) -> None:
        """Raises InvalidRequest when nobody could carry an order about the partition out: its replicas have no
        majority that runs, with the stores that its record names."""
        _, config = self.configs[partition]
        for members in (config.replicas, config.joint or config.replicas):
            gone = [n for n, s in members if n in self.nodes and self.nodes[n].store_id != s]
            away = [n for n, _ in members if n not in self.present and n not in gone]
            if 2 * (len(members) - len(gone) - len(away)) <= len(members):
                raise InvalidRequest(
                    f"partition {partition} has no majority that could carry this out: "
                    f"not running: {names_of(away)}; with another store than before: {names_of(gone)}. Start the nodes; "
                    f"when a majority is lost for good: cellctl failover --force {partition}"
                )

    def stores(self, cell: str, nodes: Iterable[str]) -> tuple[Member, ...]:
        """Nodes of a cell with the stores that they have now. Raises NotFound, InvalidRequest."""
        found = []
        for name in nodes:
            record = self.nodes.get(name)
            if record is None:
                raise unknown("node", name, self.nodes)
            if record.cell != cell:
                raise InvalidRequest(
                    f"node {name} is of cell {record.cell}, not {cell}; replicas share one cell"
                )
            found.append((name, record.store_id))
        return tuple(found)

    def check_can_move(self, move: MoveRecord) -> None:
        """Raises InvalidRequest when a move could not be carried out."""
        replicas = self.configs[move.partition][1].replicas
        self.check_running(n for n, s in move.target if (n, s) not in replicas)
        self.check_leadable(move.partition)

    def check_running(self, nodes: Iterable[str]) -> None:
        """Raises InvalidRequest when one of the nodes that are to get replicas does not run."""
        away = [n for n in nodes if n not in self.present]
        if away:
            raise InvalidRequest(
                f"{names_of(away)} is not running, so no copy can be made there: start it, or name another node"
            )

    def view(self, load: Mapping[int, tuple[int, float]] | None = None) -> ClusterView:
        """What plans are made from; ``load``: partition -> (bytes, operations per second)."""
        nodes = tuple(
            NodeView(n.node, n.cell, n.store_id, n.zone, n.node in self.drained or n.node not in self.present)
            for n in self.nodes.values()
        )
        names = {n.cell for n in self.nodes.values()} | {cell for cell, _ in self.configs.values()}
        cells = tuple(
            CellView(c, self.cells.get(c, CellRecord()).weight, self.cells.get(c, CellRecord()).draining)
            for c in sorted(names | set(self.cells))
        )
        partitions = tuple(
            PartitionView(p, cell, self.held(config), *(load or {}).get(p, (0, 0.0)))
            for p, (cell, config) in sorted(self.configs.items())
        )
        return ClusterView(cells, nodes, partitions, MAX_REPLICAS)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What of a node's partitions is to be another's. ``moves``: asked for now. ``moving``: these, and those that leave it
    already. ``busy``: those that come to it, or come back: to be asked for when that has ended. ``stuck``: those that cannot be
    asked for, and why."""

    moves: list[MoveRecord] = field(default_factory=list)
    moving: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    stuck: dict[int, str] = field(default_factory=dict)


def replacement(records: Records, old: str, new: str, cause: str) -> Replaced:
    """By the records as they are. Raises NotFound, InvalidRequest."""
    for name in (old, new):
        if name not in records.nodes:
            raise unknown("node", name, records.nodes)
    if records.nodes[old].cell != records.nodes[new].cell:
        raise InvalidRequest(
            f"{old} is of cell {records.nodes[old].cell} and {new} of {records.nodes[new].cell}; "
            "between cells use: cellctl rebalance plan"
        )
    records.check_configs()
    mine = (new, records.nodes[new].store_id)
    found = Replaced()
    for p, (cell, config) in sorted(records.configs.items()):
        known = records.moves.get(p)
        move = known[0] if known is not None and not known[0].cancel else None
        members = move.target if move is not None else config.replicas
        names = [node for node, _ in members]
        if old not in names or (old == new and mine in members):
            if move is not None and old in dict(config.replicas):
                found.moving.add(p)
        elif known is not None:
            # a member whose store is lost: the leader has the move name the one that it has now, unless it goes back
            (found.moving if old == new and move is not None else found.busy).add(p)
        elif old != new and new in names:
            found.stuck[p] = f"{new} holds it already; a plan finds another node: cellctl rebalance plan"
        else:
            try:
                target = records.stores(cell, [new if node == old else node for node in names])
                wanted = MoveRecord(p, cell, target, cause=cause)
                records.check_can_move(wanted)
                found.moves.append(wanted)
            except (InvalidRequest, NotFound) as e:
                found.stuck[p] = e.message
    return found


def check_level(records: Records, level: int) -> None:
    """Whether the cluster can be raised to a feature level. Raises InvalidRequest, with who is in the way."""
    if level <= records.level:
        raise InvalidRequest(
            f"the cluster is at feature level {records.level} already; a level is not lowered"
        )
    unread = [key for key in records.bad if "/nodes/" in key or key.endswith("/features")]
    if unread:
        raise InvalidRequest(
            f"the record {', '.join(sorted(unread))} in etcd is not valid: see cellctl doctor; repair or remove it first"
        )
    older = sorted(name for name, node in records.nodes.items() if node.level < level)
    if older:
        told = ", ".join(f"{name} (up to {records.nodes[name].level})" for name in older)
        raise InvalidRequest(
            f"these nodes do not support feature level {level}: {told}; upgrade them first, or remove those that are gone for "
            "good (cellctl node remove)"
        )


def is_as_planned(records: Records, move: PlannedMove) -> bool:
    """Whether the partition is where it was when the plan was made, and moves nowhere else."""
    at, known = records.configs.get(move.partition), records.moves.get(move.partition)
    if at is None or at[0] != move.from_cell or set(records.held(at[1])) != set(move.from_replicas):
        return False
    return known is None or known[0].target == move.target


def check_no_target(records: Records, what: str, nodes: set[str]) -> None:
    """Raises InvalidRequest when partitions move to one of the nodes."""
    coming = sorted(p for p, (move, _) in records.moves.items() if nodes & dict(move.target).keys())
    if coming:
        raise InvalidRequest(
            f"partitions {', '.join(map(str, coming[:10]))} move to {what}; wait, or: cellctl rebalance cancel"
        )


def names_of(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
