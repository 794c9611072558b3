"""What an operator's commands do to the cluster's records in etcd. No output, no prompts.

Everything long runs in the cluster: a command writes what is wanted (a MoveRecord, a cell's weight),
each by one compare-and-swap, and the leaders carry it out; a command that is killed leaves nothing
half done.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cellctl.connect import unknown
from cellctl.plan import MAX_REPLICAS, CellView, ClusterView, NodeView, PartitionView, PlannedMove
from metastore import schema
from metastore.coordination.interface import KV, Compare, Coordinator, Delete, Op, Put
from metastore.covering import Piece, finest
from metastore.errors import InvalidRequest, NotFound, Unavailable
from metastore.fields import BadRecord
from metastore.keys import MAX_PARTITIONS
from metastore.layout import (
    FIRST_LEVEL,
    CellRecord,
    ConfigRecord,
    FeaturesRecord,
    HistoryRecord,
    Layout,
    MoveRecord,
    NodeRecord,
    SplitRecord,
    first_epoch,
    term_of,
)

#: swaps of records under way at once, and how often one is tried
MAX_SWAPS: Final = 32
SWAP_TRIES: Final = 10
NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")


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
    #: keys of records that make no sense, as they can be printed -> why; they are in nothing above
    bad: Mapping[str, str] = field(default_factory=dict)
    #: the cluster's feature level
    level: int = FIRST_LEVEL

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
        """A partition's cell and record. Raises NotFound, and InvalidRequest when its record makes no sense."""
        found = self.configs.get(partition)
        if found is not None:
            return found
        for key, why in self.bad.items():
            if "/config/" in key and key.endswith(f"/{partition:05d}"):
                raise InvalidRequest(f"the record {key} in etcd makes no sense ({why}); mend it first")
        raise NotFound(f"there is no partition {partition}")

    def check_configs(self) -> None:
        """Raises InvalidRequest when a partition's record makes no sense: who holds it is not known then."""
        for key in self.bad:
            if "/config/" in key:
                raise InvalidRequest(
                    f"the record {key} in etcd makes no sense, and what it names is not known; mend or remove it first"
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
                    f"not running: {_names(away)}; with another store than before: {_names(gone)}. Start the nodes; "
                    f"when a majority is lost for good: cellctl failover --force {partition}"
                )

    def check_running(self, nodes: Iterable[str]) -> None:
        """Raises InvalidRequest when one of the nodes that are to get replicas does not run."""
        away = [n for n in nodes if n not in self.present]
        if away:
            raise InvalidRequest(
                f"{_names(away)} is not running, so nothing can be brought there: start it, or name another node"
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


class Operator:
    """One cluster's records, and changes to them."""

    def __init__(self, coordinator: Coordinator, cluster: str) -> None:
        self.etcd = coordinator
        self.layout = Layout(cluster)

    async def records(self) -> Records:
        """Raises CoordinationUnavailable; Unavailable when there is no such cluster."""
        revision, kvs = await self.etcd.range(self.layout.root)
        cells: dict[str, CellRecord] = {}
        nodes: dict[str, NodeRecord] = {}
        configs: dict[int, tuple[str, ConfigRecord]] = {}
        moves: dict[int, tuple[MoveRecord, int]] = {}
        drained, present = set(), set()
        paused, level = False, FIRST_LEVEL
        bad: dict[str, str] = {}
        for kv in kvs:
            parts = self.layout.parse(kv.key)
            try:
                record = schema.read(parts, kv.value)
            except BadRecord as e:
                bad[schema.shown(kv.key)] = e.message
                continue
            match record:
                case CellRecord():
                    cells[parts[1]] = record
                case NodeRecord():
                    nodes[parts[1]] = record
                case ConfigRecord():
                    configs[record.partition] = parts[1], record
                case MoveRecord():
                    moves[record.partition] = record, kv.mod_revision
                case FeaturesRecord():
                    level = record.level
                case schema.Presence():
                    present.add(parts[1])
                case schema.Mark() if parts[0] == "drained":
                    drained.add(parts[1])
                case schema.Mark():
                    paused = True
        if not configs:
            raise Unavailable(f"etcd has no cluster called {self.layout.cluster!r}")
        return Records(
            revision, cells, nodes, frozenset(drained), frozenset(present), configs, moves, paused, bad, level
        )

    # --- cells and nodes ----------------------------------------------------------------------

    async def set_cell(
        self, cell: str, *, weight: float | None = None, draining: bool | None = None
    ) -> CellRecord:
        """Raises NotFound, InvalidRequest."""
        if weight is not None and not 0 <= weight <= 1000:
            raise InvalidRequest(f"weight {weight} is not within 0 and 1000")
        records = await self.records()
        if cell not in {c.name for c in records.view().cells}:
            raise unknown("cell", cell, [c.name for c in records.view().cells])
        known = await self.etcd.get(self.layout.cell(cell))
        old = CellRecord.from_json(known.value) if known else CellRecord()
        new = replace(
            old,
            weight=old.weight if weight is None else weight,
            draining=old.draining if draining is None else draining,
        )
        await self._swap(self.layout.cell(cell), known, new.to_json())
        return new

    async def add_cell(self, cell: str, weight: float) -> None:
        """Raises InvalidRequest when it is there, or cannot be a name."""
        if not NAME.fullmatch(cell):
            raise InvalidRequest(f"cell name {cell!r:.80}: use 1 to 63 of a-z 0-9 - _ ., a letter first")
        if not 0 <= weight <= 1000:
            raise InvalidRequest(f"weight {weight} is not within 0 and 1000")
        if cell in {c.name for c in (await self.records()).view().cells}:
            raise InvalidRequest(f"cell {cell} is there already; see: cellctl cell show {cell}")
        await self._swap(self.layout.cell(cell), None, CellRecord(weight).to_json())

    async def remove_cell(self, cell: str) -> None:
        """Forget an empty cell and its nodes. Raises InvalidRequest while it holds anything."""
        records = await self.records()
        records.check_configs()
        held = [p for p, (c, _) in records.configs.items() if c == cell]
        if held:
            raise InvalidRequest(f"cell {cell} holds {len(held)} partitions; drain it first")
        ops = [Delete(self.layout.cell(cell))]
        layout, gone = self.layout, [n.node for n in records.nodes.values() if n.cell == cell]
        ops += [Delete(key) for node in gone for key in (layout.node(node), layout.mark(node))]
        await self.etcd.txn([], ops)

    async def set_drained(self, node: str, drained: bool) -> None:
        """Raises NotFound."""
        records = await self.records()
        if node not in records.nodes:
            raise unknown("node", node, records.nodes)
        key = self.layout.drained(node)
        await self.etcd.txn([], [Put(key, b"{}") if drained else Delete(key)])

    async def remove_node(self, node: str) -> None:
        """Forget a node that holds nothing. Raises InvalidRequest while it does."""
        records = await self.records()
        records.check_configs()
        held = [p for p, (_, c) in records.configs.items() if node in {n for n, _ in c.members()}]
        if held:
            raise InvalidRequest(f"node {node} holds replicas of {len(held)} partitions; drain it first")
        keys = (self.layout.node(node), self.layout.mark(node), self.layout.drained(node))
        await self.etcd.txn([], [Delete(key) for key in keys])

    # --- moves --------------------------------------------------------------------------------

    async def request_move(self, partition: int, cell: str, nodes: Sequence[str], cause: str) -> MoveRecord:
        """Ask for a partition's replicas to be ``nodes``. Raises NotFound, InvalidRequest."""
        records = await self.records()
        records.config(partition)
        if not 1 <= len(nodes) <= 7 or len(set(nodes)) != len(nodes):
            raise InvalidRequest(f"{len(nodes)} nodes: name 1 to 7, each once")
        target = []
        for name in nodes:
            record = records.nodes.get(name)
            if record is None:
                raise unknown("node", name, records.nodes)
            if record.cell != cell:
                raise InvalidRequest(
                    f"node {name} is of cell {record.cell}, not {cell}; replicas share one cell"
                )
            target.append((name, record.store_id))
        records.check_running(n for n, s in target if (n, s) not in records.configs[partition][1].replicas)
        records.check_leadable(partition)
        move = MoveRecord(partition, cell, tuple(target), cause=cause)
        await self._request(records, move)
        return move

    async def apply(self, moves: Sequence[PlannedMove], cause: str) -> tuple[list[int], list[int]]:
        """Ask for all moves of a plan; the partitions asked for, and those that have changed since
        the plan was made, which are left alone. Raises InvalidRequest, before anything was asked for, when
        one cannot be carried out."""
        records = await self.records()
        asked, changed, wanted = [], [], []
        for m in moves:
            at = records.configs.get(m.partition)
            replicas = set() if at is None else set(records.held(at[1]))
            if at is None or at[0] != m.from_cell or replicas != set(m.from_replicas):
                changed.append(m.partition)
                continue
            known = records.moves.get(m.partition)
            if known is not None and known[0].target != m.target:
                changed.append(m.partition)
                continue
            if known is None:
                records.check_running(n for n, s in m.target if (n, s) not in at[1].replicas)
                records.check_leadable(m.partition)
                wanted.append(MoveRecord(m.partition, m.to_cell, m.target, cause=cause))
            asked.append(m.partition)
        for move in wanted:
            await self._request(records, move)
        return asked, changed

    async def _request(self, records: Records, move: MoveRecord) -> None:
        known = records.moves.get(move.partition)
        if known is not None and known[0].target == move.target and not known[0].cancel:
            return
        if known is not None:
            raise InvalidRequest(
                f"partition {move.partition} is moving to {_names(n for n, _ in known[0].target)} already; cancel that first"
            )
        key = self.layout.move(move.partition)
        result = await self.etcd.txn([Compare.absent(key)], [Put(key, move.to_json())])
        if not result.succeeded:
            raise Unavailable(f"partition {move.partition}: somebody asked for a move just now; look again")

    async def request_split(self, partition: int, at: int | None, cause: str) -> SplitRecord:
        """Ask for a partition to be two from the point ``at`` on, None = the middle of its range. Raises
        NotFound, InvalidRequest, Unavailable."""
        records = await self.records()
        _, config = records.config(partition)
        point = (config.lo + config.hi) // 2 if at is None else at
        if not config.lo < point < config.hi:
            raise InvalidRequest(
                f"partition {partition} reaches from {config.lo:016x} to {config.hi:016x}; {point:016x} is not inside"
            )
        if partition in records.moves:
            raise InvalidRequest(
                f"partition {partition} is moving; wait, or: cellctl rebalance cancel {partition}"
            )
        records.check_leadable(partition)
        key, counter = self.layout.split(partition), self.layout.next_partition
        known = await self.etcd.get(counter)
        told = schema.read(self.layout.parse(counter), known.value) if known is not None else 0
        child = max(told, max(records.configs) + 1)
        if child >= MAX_PARTITIONS:
            raise InvalidRequest(f"there have been {child} partitions; {MAX_PARTITIONS} is the most")
        split = SplitRecord(partition, child, point, cause)
        same = (
            Compare.absent(counter) if known is None else Compare.mod_revision_is(counter, known.mod_revision)
        )
        ops = [Put(counter, b"%d" % (child + 1)), Put(key, split.to_json())]
        if not (await self.etcd.txn([same, Compare.absent(key)], ops)).succeeded:
            raise Unavailable(
                f"partition {partition} is being split already, or another was just now; look again"
            )
        return split

    # --- histories ----------------------------------------------------------------------------

    async def begin_generation(self, partitions: Sequence[int], generation: int, cause: str) -> None:
        """Have each of these partitions begin its next term in ``generation`` (R19), under whoever leads it. Where
        something fails the others may have been done. Raises Unavailable."""
        records = await self.records()
        slots = asyncio.Semaphore(MAX_SWAPS)

        async def one(p: int) -> None:
            async with slots:
                if p not in records.configs:
                    raise Unavailable(f"etcd has no record of partition {p}; look again", retry_after_s=1)
                await self._begin_generation(records.configs[p][0], p, generation, cause)

        await asyncio.gather(*map(one, partitions))

    async def _begin_generation(self, cell: str, p: int, generation: int, cause: str) -> None:
        key = self.layout.config(cell, p)
        for _ in range(SWAP_TRIES):
            known = await self.etcd.get(key)
            if known is None:
                break
            config = ConfigRecord.from_json(known.value)
            if config.generation >= generation:
                return
            if config.joint is not None:
                raise Unavailable(
                    f"partition {p} is moving; wait, or: cellctl rebalance cancel {p}", retry_after_s=1
                )
            epoch = first_epoch(term_of(config.epoch) + 1)
            new = replace(config, epoch=epoch, generation=generation)
            names = tuple(node for node, _ in config.replicas)
            at_ms = int(time.time() * 1000)
            event = HistoryRecord(p, epoch, cell, config.leader, names, "generation", cause, at_ms)
            ops: list[Op] = [
                Put(key, new.to_json()),
                Delete(self.layout.leader(cell, p)),
                Put(self.layout.history(p, epoch), event.to_json()),
            ]
            if (await self.etcd.txn([Compare.mod_revision_is(key, known.mod_revision)], ops)).succeeded:
                return
        raise Unavailable(f"partition {p} changes all the time; look again", retry_after_s=1)

    async def cancel(self, partitions: Sequence[int] | None = None) -> list[int]:
        """Have moves go back, all of them or some; which."""
        cancelled = []
        for p, (move, mod_revision) in sorted((await self.records()).moves.items()):
            if (partitions is None or p in partitions) and not move.cancel:
                key = self.layout.move(p)
                wanted = replace(move, cancel=True).to_json()
                if (
                    await self.etcd.txn([Compare.mod_revision_is(key, mod_revision)], [Put(key, wanted)])
                ).succeeded:
                    cancelled.append(p)
        return cancelled

    async def set_paused(self, paused: bool) -> None:
        """No move goes on while it is so; those that hand over just now end that."""
        key = self.layout.paused
        await self.etcd.txn([], [Put(key, b"{}") if paused else Delete(key)])

    async def raise_level(self, level: int) -> None:
        """Let the cluster have feature level ``level``, which never falls again. A node that is registered at the same moment
        compares the level it has read; one that does not support it is told, and takes part in nothing. Raises
        InvalidRequest, and Unavailable when somebody else changed it."""
        known = await self.etcd.get(self.layout.features)
        records = await self.records()
        check_level(records, level)
        await self._swap(self.layout.features, known, FeaturesRecord(level).to_json())

    async def _swap(self, key: str, known: KV | None, value: bytes) -> None:
        compare = Compare.absent(key) if known is None else Compare.mod_revision_is(key, known.mod_revision)
        if not (await self.etcd.txn([compare], [Put(key, value)])).succeeded:
            raise Unavailable(f"{key} was changed by somebody else just now; try again")


def check_level(records: Records, level: int) -> None:
    """Whether the cluster can be raised to a feature level. Raises InvalidRequest, with who is in the way."""
    if level <= records.level:
        raise InvalidRequest(
            f"the cluster is at feature level {records.level} already; a level is not lowered"
        )
    unread = [key for key in records.bad if "/nodes/" in key or key.endswith("/features")]
    if unread:
        raise InvalidRequest(
            f"{', '.join(sorted(unread))} makes no sense: see cellctl doctor; mend or remove it first"
        )
    older = sorted(name for name, node in records.nodes.items() if node.level < level)
    if older:
        told = ", ".join(f"{name} (up to {records.nodes[name].level})" for name in older)
        raise InvalidRequest(
            f"these nodes do not support feature level {level}: {told}; upgrade them first, or remove those that are gone for "
            "good (cellctl node remove)"
        )


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
