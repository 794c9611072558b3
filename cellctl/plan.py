"""Rebalance plans: which partitions go where, with the fewest moves. Pure; apart from what carries
them out.

Cells first: each is to hold its share of the partitions by weight (or of their bytes or operations),
and what is beyond that goes, each partition to the cell that the ring prefers for it among those that lack
some. Where all is within the threshold nothing moves. Then nodes within each cell: replicas leave
draining nodes, are as many as they should be, spread over zones, and are even over the nodes.
Nothing hangs on the order of anything given: the same view and seed make the same plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metastore.errors import InvalidRequest
from metastore.layout import Member
from metastore.placement import preference

By = Literal["partitions", "bytes", "operations"]
THRESHOLD = 0.02
MAX_REPLICAS = 3
PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CellView:
    """``weight``: its share against the others'; ``draining``: it is to hold nothing."""

    name: str
    weight: float = 1.0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """``store``: its store_id (R13)."""

    name: str
    cell: str
    store: str
    zone: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class PartitionView:
    """``replicas``: node names in order of preference. ``operations``: per second."""

    id: int
    cell: str
    replicas: tuple[str, ...]
    bytes: int = 0
    operations: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What a plan is made from."""

    cells: tuple[CellView, ...]
    nodes: tuple[NodeView, ...]
    partitions: tuple[PartitionView, ...]
    replicas: int = MAX_REPLICAS


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One partition's change: as it stands, and as it is to be."""

    partition: int
    from_cell: str
    from_replicas: tuple[str, ...]
    to_cell: str
    target: tuple[Member, ...]
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Balance:
    """``cells``, ``nodes``: partitions and replicas each holds. ``cell_spread``: the fullest cell's load
    against what its weight gives it, 1.0 = even. ``dispersion``: the share of partitions whose
    replicas are in as many zones as they can be."""

    cells: dict[str, int]
    nodes: dict[str, int]
    cell_spread: float
    node_spread: float
    dispersion: float


@dataclass(frozen=True, slots=True)
class Plan:
    """``warnings``: what cannot be had with the cells and nodes there are."""

    moves: tuple[PlannedMove, ...]
    before: Balance
    after: Balance
    warnings: tuple[str, ...]
    seed: int = 0

    @property
    def bytes(self) -> int:
        return sum(m.bytes for m in self.moves)


@dataclass(slots=True)
class _State:
    """The view as the plan changes it."""

    view: ClusterView
    seed: int
    cells: dict[str, CellView]
    nodes: dict[str, NodeView]
    now: dict[int, PartitionView]
    why: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def usable(self, cell: str) -> list[NodeView]:
        return [n for n in self.nodes.values() if n.cell == cell and not n.draining]

    def chance(self, *parts: object) -> bytes:
        """A number that depends on nothing but the seed and ``parts``: it breaks ties."""
        return hashlib.blake2b(repr((self.seed, *parts)).encode(), digest_size=8).digest()

    def held(self) -> dict[str, int]:
        """Replicas per node."""
        count = dict.fromkeys(self.nodes, 0)
        for p in self.now.values():
            for node in p.replicas:
                if node in count:
                    count[node] += 1
        return count


def make_plan(
    view: ClusterView, *, by: By = "partitions", threshold: float = THRESHOLD, seed: int = 0
) -> Plan:
    """Raises InvalidRequest when nothing could hold the partitions."""
    state = _State(
        view,
        seed,
        {c.name: c for c in sorted(view.cells, key=lambda c: c.name)},
        {n.name: n for n in sorted(view.nodes, key=lambda n: n.name)},
        {p.id: p for p in sorted(view.partitions, key=lambda p: p.id)},
    )
    open_cells = [c for c in state.cells.values() if not c.draining and c.weight > 0 and state.usable(c.name)]
    if not open_cells and state.now:
        raise InvalidRequest("no cell can hold partitions: each is draining, has weight 0, or has no nodes")
    before = balance(view)
    _over_cells(state, open_cells, by, threshold)
    for cell in state.cells.values():
        _over_nodes(state, cell.name)
    changed = [p for p in view.partitions if state.now[p.id] != p]
    moves = tuple(
        PlannedMove(
            old.id,
            old.cell,
            old.replicas,
            state.now[old.id].cell,
            tuple((n, state.nodes[n].store) for n in state.now[old.id].replicas),
            old.bytes * len(set(state.now[old.id].replicas) - set(old.replicas)),
            state.why[old.id],
        )
        for old in sorted(changed, key=lambda p: p.id)
        if set(old.replicas) != set(state.now[old.id].replicas) or old.cell != state.now[old.id].cell
    )
    after = balance(replace(view, partitions=tuple(state.now.values())))
    return Plan(moves, before, after, tuple(dict.fromkeys(state.warnings)), seed)


# --- over cells -----------------------------------------------------------------------------------


def load_of(p: PartitionView, by: By) -> float:
    return 1.0 if by == "partitions" else float(p.bytes if by == "bytes" else p.operations)


def _over_cells(state: _State, open_cells: list[CellView], by: By, threshold: float) -> None:
    total = sum(load_of(p, by) for p in state.now.values())
    weights = math.fsum(c.weight for c in open_cells)
    if not total:
        by, total = "partitions", float(len(state.now))
    share = {c.name: total * c.weight / weights for c in open_cells}
    load = dict.fromkeys(state.cells, 0.0)
    for p in state.now.values():
        load[p.cell] = load.get(p.cell, 0.0) + load_of(p, by)
    homeless = [p for p in state.now.values() if p.cell not in share]
    even = all(load[c] <= share[c] * (1 + threshold) for c in share)
    if even and not homeless:
        return
    quota = _whole_shares(share, load) if by == "partitions" else share
    for p in sorted(homeless, key=lambda p: (-load_of(p, by), state.chance(p.id))):
        _give(state, p, _cell_for(p, quota, load), by, load, f"{p.cell} is to hold nothing")
    if by == "partitions":
        _spill_by_count(state, quota, load)
    else:
        _spill_by_load(state, share, load, by, threshold)


def _whole_shares(share: dict[str, float], load: dict[str, float]) -> dict[str, float]:
    """Shares as whole numbers; what is left over goes to who holds most already: fewest moves."""
    whole = {c: float(int(s)) for c, s in share.items()}
    left = round(sum(share.values()) - sum(whole.values()))
    order = sorted(share, key=lambda c: (whole[c] - load[c], whole[c] - share[c], c))
    for cell in order[:left]:
        whole[cell] += 1
    return whole


def _cell_for(p: PartitionView, quota: dict[str, float], load: dict[str, float]) -> str:
    """The first cell in the ring's order that lacks some, else the emptiest."""
    order = preference(sorted(quota), p.id)
    lacking = [c for c in order if load[c] < quota[c]]
    return lacking[0] if lacking else min(order, key=lambda c: (load[c] / quota[c] if quota[c] else 1e9, c))


def _give(state: _State, p: PartitionView, cell: str, by: By, load: dict[str, float], why: str) -> None:
    load[p.cell] -= load_of(p, by)
    load[cell] += load_of(p, by)
    state.now[p.id] = replace(p, cell=cell, replicas=())
    state.why[p.id] = why


def _spill_by_count(state: _State, quota: dict[str, float], load: dict[str, float]) -> None:
    """Each cell over its quota gives; of its partitions those that the ring places best elsewhere."""
    wishes: list[tuple[int, bytes, int, str]] = []
    rich = {c for c in quota if load[c] > quota[c]}
    poor = {c for c in quota if load[c] < quota[c]}
    for p in state.now.values():
        if p.cell in rich:
            for rank, cell in enumerate(preference(sorted(quota), p.id)):
                if cell in poor:
                    wishes.append((rank, state.chance(p.id, cell), p.id, cell))
    for _, _, number, cell in sorted(wishes):
        p = state.now[number]
        if p.cell in rich and load[p.cell] > quota[p.cell] and load[cell] < quota[cell]:
            _give(state, p, cell, "partitions", load, f"{p.cell} holds more than its share")


def _spill_by_load(
    state: _State, share: dict[str, float], load: dict[str, float], by: By, threshold: float
) -> None:
    """From the fullest cell to the emptiest, the partition that fits best, while that helps."""
    for _ in range(len(state.now)):
        fullest = max(share, key=lambda c: (load[c] / share[c], c))
        emptiest = min(share, key=lambda c: (load[c] / share[c], c))
        if load[fullest] <= share[fullest] * (1 + threshold):
            return
        excess = min(load[fullest] - share[fullest], share[emptiest] - load[emptiest])
        mine = [p for p in state.now.values() if p.cell == fullest and 0 < load_of(p, by) < 2 * excess]
        if not mine:
            state.warnings.append(
                f"cell {fullest} stays over its share of {by}: no single partition is small enough to even it "
                "out; split its largest"
            )
            return
        best = min(mine, key=lambda p: (abs(load_of(p, by) - excess), state.chance(p.id)))
        _give(state, best, emptiest, by, load, f"{fullest} has more than its share of {by}")


# --- over nodes -----------------------------------------------------------------------------------


def _over_nodes(state: _State, cell: str) -> None:
    usable = state.usable(cell)
    mine = [p for p in state.now.values() if p.cell == cell]
    if not mine:
        return
    wanted = min(state.view.replicas, len(usable))
    if wanted < state.view.replicas:
        state.warnings.append(
            f"cell {cell} has {len(usable)} usable nodes for {state.view.replicas} replicas"
        )
    names = {n.name for n in usable}
    held = state.held()
    for p in mine:
        kept = [n for n in p.replicas if n in names][:wanted]
        chosen = list(kept)
        while len(chosen) < wanted:
            chosen.append(_best_node(state, usable, chosen, held, p.id))
            held[chosen[-1]] += 1
        for node in set(p.replicas) - set(chosen):
            if node in held:
                held[node] -= 1
        if set(chosen) != set(p.replicas):
            why = (
                "is placed" if not p.replicas else "leaves nodes that are draining or gone, or lacks replicas"
            )
            state.why.setdefault(p.id, f"partition {p.id} {why}")
            state.now[p.id] = replace(p, replicas=tuple(chosen))
    _even_out(state, usable, cell, held)


def _zones(state: _State, nodes: Iterable[str]) -> set[str]:
    return {state.nodes[n].zone or n for n in nodes}


def _best_node(
    state: _State, usable: list[NodeView], chosen: list[str], held: dict[str, int], partition: int
) -> str:
    """Another zone before an emptier node."""
    zones = _zones(state, chosen)
    left = [n for n in usable if n.name not in chosen]
    best = min(
        left, key=lambda n: ((n.zone or n.name) in zones, held[n.name], state.chance(partition, n.name))
    )
    return best.name


def _even_out(state: _State, usable: list[NodeView], cell: str, held: dict[str, int]) -> None:
    """From the fullest node to the emptiest, while they differ by more than one and zones stay apart."""
    names = [n.name for n in usable]
    stuck: set[tuple[str, str]] = set()
    for _ in range(len(state.now) * 4):
        pairs = [
            (held[a] - held[b], a, b)
            for a in names
            for b in names
            if held[a] - held[b] > 1 and (a, b) not in stuck
        ]
        if not pairs:
            return
        _, full, empty = max(pairs)
        for p in sorted(
            (p for p in state.now.values() if p.cell == cell), key=lambda p: (p.id not in state.why, p.id)
        ):
            if full not in p.replicas or empty in p.replicas:
                continue
            after = tuple(empty if n == full else n for n in p.replicas)
            if len(_zones(state, after)) < len(_zones(state, p.replicas)):
                continue
            state.now[p.id] = replace(p, replicas=after)
            state.why.setdefault(p.id, f"node {full} holds more replicas than {empty}")
            held[full] -= 1
            held[empty] += 1
            break
        else:
            stuck.add((full, empty))


# --- looking at it --------------------------------------------------------------------------------


def balance(view: ClusterView) -> Balance:
    cells = {c.name: 0 for c in view.cells}
    nodes = {n.name: 0 for n in view.nodes}
    zone_of = {n.name: n.zone or n.name for n in view.nodes}
    usable: dict[str, set[str]] = {}
    for n in view.nodes:
        if not n.draining:
            usable.setdefault(n.cell, set()).add(n.zone or n.name)
    apart = 0
    for p in view.partitions:
        cells[p.cell] = cells.get(p.cell, 0) + 1
        for node in p.replicas:
            nodes[node] = nodes.get(node, 0) + 1
        zones = {zone_of.get(n, n) for n in p.replicas}
        apart += len(zones) >= min(view.replicas, len(usable.get(p.cell, ())))
    weights = {c.name: 0.0 if c.draining else c.weight for c in view.cells}
    total, sum_weights = len(view.partitions), math.fsum(weights.values())
    spread = [
        cells[c] * sum_weights / (total * w) if w else (float("inf") if cells[c] else 1.0)
        for c, w in weights.items()
        if total
    ]
    node_spread = 1.0
    for cell in cells:
        counts = [nodes[n.name] for n in view.nodes if n.cell == cell and not n.draining]
        if counts and sum(counts):
            node_spread = max(node_spread, max(counts) * len(counts) / sum(counts))
    return Balance(cells, nodes, max(spread, default=1.0), node_spread, apart / total if total else 1.0)


# --- as a file --------------------------------------------------------------------------------------


def to_plain(plan: Plan) -> dict[str, Any]:
    """Plain data for a plan file."""
    return {
        "format": PLAN_FORMAT,
        "seed": plan.seed,
        "moves": [
            {
                "partition": m.partition,
                "from": {"cell": m.from_cell, "replicas": list(m.from_replicas)},
                "to": {"cell": m.to_cell, "replicas": [list(member) for member in m.target]},
                "bytes": m.bytes,
                "why": m.why,
            }
            for m in plan.moves
        ],
        "warnings": list(plan.warnings),
    }


def moves_from_plain(plain: Any) -> list[PlannedMove]:
    """The moves of a plan file. Raises InvalidRequest."""
    try:
        if plain["format"] != PLAN_FORMAT:
            raise InvalidRequest(
                f"the plan has format {plain['format']!r:.20}; this version reads {PLAN_FORMAT}: make a new plan"
            )
        return [
            PlannedMove(
                int(m["partition"]),
                str(m["from"]["cell"]),
                tuple(str(n) for n in m["from"]["replicas"]),
                str(m["to"]["cell"]),
                tuple((str(n), str(s)) for n, s in m["to"]["replicas"]),
                int(m["bytes"]),
                str(m["why"]),
            )
            for m in plain["moves"]
        ]
    except (KeyError, TypeError, ValueError) as e:
        raise InvalidRequest(f"not a plan: {type(e).__name__}: {e}") from None
