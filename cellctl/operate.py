"""What an operator's commands do to the cluster's records in etcd. No output, no prompts.

Everything long runs in the cluster: a command writes what is wanted (a MoveRecord, a cell's weight),
each by one compare-and-swap, and the leaders carry it out; a command that is killed leaves nothing
half done.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from cellctl.connect import unknown
from cellctl.plan import PlannedMove
from cellctl.records import (
    Records,
    Replaced,
    check_level,
    check_no_target,
    is_as_planned,
    names_of,
    replacement,
)
from metastore import schema
from metastore.coordination.interface import KV, Compare, Coordinator, Delete, Op, Put
from metastore.errors import InvalidRequest, Unavailable
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


class Operator:
    """One cluster's records, and changes to them."""

    def __init__(self, coordinator: Coordinator, cluster: str) -> None:
        self._swaps = asyncio.Semaphore(MAX_SWAPS)
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
            revision, cells, nodes, frozenset(drained), frozenset(present), configs, moves, paused, bad, level,
            {kv.key: kv.mod_revision for kv in kvs},
        )  # fmt: skip

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
        """Forget an empty cell and its nodes. Raises InvalidRequest while it holds anything, or is to."""

        def forget(records: Records) -> list[Op]:
            held = [p for p, (c, _) in records.configs.items() if c == cell]
            if held:
                raise InvalidRequest(f"cell {cell} holds {len(held)} partitions; drain it first")
            nodes = [n.node for n in records.nodes.values() if n.cell == cell]
            check_no_target(records, f"cell {cell}", set(nodes))
            layout = self.layout
            keys = [key for node in nodes for key in (layout.node(node), layout.mark(node))]
            return [Delete(key) for key in (layout.cell(cell), *keys)]

        await self._forget(forget)

    async def set_drained(self, node: str, drained: bool) -> None:
        """Raises NotFound."""
        records = await self.records()
        if node not in records.nodes:
            raise unknown("node", node, records.nodes)
        key = self.layout.drained(node)
        await self.etcd.txn([], [Put(key, schema.Mark().to_bytes()) if drained else Delete(key)])

    async def remove_node(self, node: str) -> None:
        """Forget a node that holds nothing. Raises InvalidRequest while it does, or is to."""

        def forget(records: Records) -> list[Op]:
            held = [p for p, (_, c) in records.configs.items() if node in {n for n, _ in c.members()}]
            if held:
                raise InvalidRequest(f"node {node} holds replicas of {len(held)} partitions; drain it first")
            check_no_target(records, f"node {node}", {node})
            keys = (self.layout.node(node), self.layout.mark(node), self.layout.drained(node))
            return [Delete(key) for key in keys]

        await self._forget(forget)

    async def _forget(self, forget: Callable[[Records], list[Op]]) -> None:
        """What goes by the records as they are when it goes: nothing that was given something to hold just now."""
        for _ in range(SWAP_TRIES):
            records = await self.records()
            records.check_configs()
            ops = forget(records)
            if (await self.etcd.txn(self._as_in(records, "config/", "moves/", "nodes/"), ops)).succeeded:
                return
        raise Unavailable("partitions were changed by others during each attempt; try again", retry_after_s=1)

    def _as_in(self, records: Records, *names: str) -> list[Compare]:
        """That nothing whose key begins with one of these, below the root, was made or changed since ``records`` were read."""
        return [Compare.unchanged_since(self.layout.root + name, records.revision) for name in names]

    # --- moves --------------------------------------------------------------------------------

    async def request_move(self, partition: int, cell: str, nodes: Sequence[str], cause: str) -> MoveRecord:
        """Ask for a partition's replicas to be ``nodes``. Raises NotFound, InvalidRequest, Unavailable."""
        if not 1 <= len(nodes) <= 7 or len(set(nodes)) != len(nodes):
            raise InvalidRequest(f"{len(nodes)} nodes: name 1 to 7, each once")
        for _ in range(SWAP_TRIES):
            records = await self.records()
            records.config(partition)
            move = MoveRecord(partition, cell, records.stores(cell, nodes), cause=cause)
            records.check_can_move(move)
            if await self._request(records, move):
                return move
        raise Unavailable(
            f"partition {partition} was changed by others during each attempt; try again", retry_after_s=1
        )

    async def apply(self, moves: Sequence[PlannedMove], cause: str) -> tuple[list[int], list[int]]:
        """Ask for all moves of a plan; the partitions asked for, and those that have changed since
        the plan was made, which are left alone. Raises InvalidRequest, before anything was asked for, when
        one cannot be carried out."""
        records = await self.records()
        for m in moves:  # all of them first
            if is_as_planned(records, m) and m.partition not in records.moves:
                records.check_can_move(MoveRecord(m.partition, m.to_cell, m.target, cause=cause))
        asked, changed = [], []
        for m in moves:
            move = MoveRecord(m.partition, m.to_cell, m.target, cause=cause)
            for _ in range(SWAP_TRIES):
                if not is_as_planned(records, m):
                    changed.append(m.partition)
                    break
                if m.partition in records.moves or await self._request(records, move):
                    asked.append(m.partition)
                    break
                records = await self.records()
            else:
                changed.append(m.partition)
        return asked, changed

    async def replace_node(self, old: str, new: str, cause: str) -> Replaced:
        """Ask for all that ``old`` holds to be held by ``new``, of the same cell, and drain ``old``; the same name twice: by
        the store that the node has now. Each partition is asked for by what its record says in that very moment, so what
        others change meanwhile is neither lost nor undone. Raises NotFound, InvalidRequest, Unavailable."""
        moving: set[int] = set()
        for _ in range(SWAP_TRIES):
            records = await self.records()
            found = replacement(records, old, new, cause)
            if old != new:
                records.check_running([new])
                if old not in records.drained:  # so that no plan gives it anything meanwhile
                    await self.set_drained(old, True)
            asked = await asyncio.gather(*(self._request(records, move) for move in found.moves))
            moving |= {move.partition for move, done in zip(found.moves, asked, strict=True) if done}
            if all(asked):
                return replace(found, moving=found.moving | moving)
        raise Unavailable(
            "partitions were changed by others during each attempt; run the same command again",
            retry_after_s=1,
        )

    async def _request(self, records: Records, move: MoveRecord) -> bool:
        """Ask for a move, provided that the partition and the nodes are as ``records`` have them; False = they are not. Raises
        InvalidRequest when another move of it is under way."""
        known = records.moves.get(move.partition)
        if known is not None and known[0].target == move.target and not known[0].cancel:
            return True
        if known is not None:
            raise InvalidRequest(
                f"partition {move.partition} is moving to {names_of(n for n, _ in known[0].target)} already; cancel that first: cellctl rebalance cancel {move.partition}"
            )
        key, layout = self.layout.move(move.partition), self.layout
        config = layout.config(records.configs[move.partition][0], move.partition)
        same = [config, *(layout.node(node) for node, _ in move.target)]
        if any(k not in records.mods for k in same):
            return False
        compares = [Compare.absent(key), *(Compare.mod_revision_is(k, records.mods[k]) for k in same)]
        async with self._swaps:
            return (await self.etcd.txn(compares, [Put(key, move.to_json())])).succeeded

    async def request_split(self, partition: int, at: int | None, cause: str) -> SplitRecord:
        """Ask for a partition to be two from the point ``at`` on, None = the middle of its range. Raises
        NotFound, InvalidRequest, Unavailable."""
        records = await self.records()
        _, config = records.config(partition)
        point = (config.lo + config.hi) // 2 if at is None else at
        if not config.lo < point < config.hi:
            raise InvalidRequest(
                f"point {point:016x} is not inside partition {partition}, which reaches from {config.lo:016x} to {config.hi:016x}"
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
            raise InvalidRequest(
                f"the cluster has used {child} partition numbers, the limit is {MAX_PARTITIONS}: no partition can be split any more"
            )
        split = SplitRecord(partition, child, point, cause)
        same = (
            Compare.absent(counter) if known is None else Compare.mod_revision_is(counter, known.mod_revision)
        )
        ops = [Put(counter, schema.next_partition_to_bytes(child + 1)), Put(key, split.to_json())]
        unasked = [Compare.absent(one) for one in (key, self.layout.move(partition))]
        if not (await self.etcd.txn([same, *unasked], ops)).succeeded:
            raise Unavailable(
                f"partition {partition} is being split or moved already, or another was split just now; see: cellctl rebalance status"
            )
        return split

    # --- histories ----------------------------------------------------------------------------

    async def begin_generation(self, partitions: Sequence[int], generation: int, cause: str) -> None:
        """Have each of these partitions begin its next term in ``generation`` (R19), under its present leader. Where
        something fails the others may have been done. Raises Unavailable."""
        records = await self.records()

        async def one(p: int) -> None:
            async with self._swaps:
                if p not in records.configs:
                    raise Unavailable(
                        f"etcd has no record of partition {p}; see: cellctl partition list", retry_after_s=1
                    )
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
        raise Unavailable(
            f"partition {p} was changed by others during each attempt; try again", retry_after_s=1
        )

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
        await self.etcd.txn([], [Put(key, schema.Mark().to_bytes()) if paused else Delete(key)])

    async def raise_level(self, level: int) -> None:
        """Let the cluster have feature level ``level``, which never falls again. A node that is registered at the same moment
        is either seen here, or sees the level: both compare what they have read. Raises
        InvalidRequest, and Unavailable when nodes are registered all the time."""
        key = self.layout.features
        for _ in range(SWAP_TRIES):
            records = await self.records()
            check_level(records, level)
            unchanged = self._as_in(records, "features", "nodes/")
            if (await self.etcd.txn(unchanged, [Put(key, FeaturesRecord(level).to_json())])).succeeded:
                return
        raise Unavailable("nodes were registered during each attempt; try again", retry_after_s=1)

    async def _swap(self, key: str, known: KV | None, value: bytes) -> None:
        compare = Compare.absent(key) if known is None else Compare.mod_revision_is(key, known.mod_revision)
        if not (await self.etcd.txn([compare], [Put(key, value)])).succeeded:
            raise Unavailable(f"the record {key} in etcd was changed by another process just now; try again")
