"""Plans: as few moves as there can be, even afterwards, zones apart, the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellctl.plan import (
    CellView,
    ClusterView,
    NodeView,
    PartitionView,
    Plan,
    make_plan,
    moves_from_plain,
    to_plain,
)
from metastore.errors import InvalidRequest
from metastore.layout import NodeRecord
from metastore.placement import plan_initial

PARTITIONS = 256


def nodes_of(cell: str, count: int = 3) -> tuple[NodeView, ...]:
    return tuple(NodeView(f"{cell}n{i}", cell, f"s-{cell}n{i}", f"z{i % 3}") for i in range(1, count + 1))


def cluster(cells: int, partitions: int = PARTITIONS, nodes: int = 3) -> ClusterView:
    """As ``bootstrap`` would make it."""
    names = [f"c{i}" for i in range(cells)]
    statuses = tuple(n for c in names for n in nodes_of(c, nodes))
    records = {
        c: [NodeRecord(n.name, c, n.store, "", "", n.zone) for n in statuses if n.cell == c] for c in names
    }
    placed = plan_initial(records, partitions)
    parts = [
        PartitionView(config.partition, cell, tuple(n for n, _ in config.replicas), bytes=1000)
        for cell, configs in placed.items()
        for config in configs
    ]
    return ClusterView(tuple(CellView(c) for c in names), statuses, tuple(sorted(parts, key=lambda p: p.id)))


def applied(view: ClusterView, plan: Plan) -> ClusterView:
    to = {m.partition: m for m in plan.moves}
    parts = tuple(
        replace(p, cell=to[p.id].to_cell, replicas=tuple(n for n, _ in to[p.id].target)) if p.id in to else p
        for p in view.partitions
    )
    return replace(view, partitions=parts)


def between_cells(plan: Plan) -> int:
    return sum(m.from_cell != m.to_cell for m in plan.moves)


@pytest.mark.parametrize("cells", [2, 3, 4, 8, 16, 32, 63])
def test_a_new_cell_takes_its_share_and_no_more(cells: int) -> None:
    """The fraction that moves is the ideal one, 1/N, and nothing moves between old cells."""
    view = cluster(cells, 2048)
    new = replace(view, cells=(*view.cells, CellView("new")), nodes=(*view.nodes, *nodes_of("new")))
    plan = make_plan(new)
    share = 2048 / (cells + 1)
    assert math.floor(share) <= between_cells(plan) <= math.ceil(share)
    assert {m.to_cell for m in plan.moves if m.from_cell != m.to_cell} == {"new"}
    counts = plan.after.cells.values()
    assert max(counts) - min(counts) <= 1
    assert plan.after.cell_spread <= max(1.02, math.ceil(share) / share)
    assert plan.after.dispersion == 1.0
    assert not make_plan(applied(new, plan)).moves, "and then there is nothing left to do"


def test_a_draining_cell_ends_empty() -> None:
    view = cluster(4)
    gone = replace(view, cells=(CellView("c0", draining=True), *view.cells[1:]))
    plan = make_plan(gone)
    assert plan.after.cells["c0"] == 0
    assert between_cells(plan) == plan.before.cells["c0"]
    assert max(plan.after.cells[c] for c in ("c1", "c2", "c3")) <= math.ceil(PARTITIONS / 3)


def test_weights() -> None:
    view = cluster(2)
    plan = make_plan(replace(view, cells=(CellView("c0", weight=3), CellView("c1"))))
    assert plan.after.cells == {"c0": 192, "c1": 64}
    assert plan.after.cell_spread == 1.0


def test_what_is_nearly_even_is_left_alone() -> None:
    view = cluster(4, 1024)
    uneven = tuple(replace(p, cell="c1") if p.id == view.partitions[0].id else p for p in view.partitions)
    assert between_cells(make_plan(replace(view, partitions=uneven), threshold=0.02)) == 0


def test_by_bytes() -> None:
    view = cluster(2, 64)
    parts = tuple(replace(p, bytes=100 if p.cell == "c0" else 10) for p in view.partitions)
    heavy = replace(view, partitions=parts)
    plan = make_plan(heavy, by="bytes")
    after = applied(heavy, plan)
    load = {c: sum(p.bytes for p in after.partitions if p.cell == c) for c in ("c0", "c1")}
    assert load["c0"] / sum(load.values()) < 0.53
    one = tuple(replace(p, bytes=10_000 if p.id == 0 else 1) for p in view.partitions)
    assert any("split" in w for w in make_plan(replace(view, partitions=one), by="bytes").warnings)


def test_a_draining_node_is_replaced_and_zones_stay_apart() -> None:
    view = cluster(1, nodes=6)
    nodes = tuple(replace(n, draining=n.name == "c0n1") for n in view.nodes)
    plan = make_plan(replace(view, nodes=nodes))
    after = applied(view, plan)
    assert not any("c0n1" in p.replicas for p in after.partitions)
    assert plan.after.dispersion == 1.0
    assert all(len(set(p.replicas)) == 3 for p in after.partitions)
    for m in plan.moves:
        assert set(m.from_replicas) & {n for n, _ in m.target}, "never all at once"


def test_a_new_node_takes_part() -> None:
    view = cluster(1, nodes=3)
    plan = make_plan(replace(view, nodes=(*view.nodes, NodeView("c0n9", "c0", "s9", "z0"))))
    assert plan.after.nodes["c0n9"] > 0
    assert plan.after.dispersion == 1.0


def test_what_cannot_be_had_is_told() -> None:
    view = cluster(1, nodes=3)
    nodes = tuple(replace(n, draining=n.name != "c0n1") for n in view.nodes)
    assert "1 usable nodes" in make_plan(replace(view, nodes=nodes)).warnings[0]
    with pytest.raises(InvalidRequest, match="no cell"):
        make_plan(replace(view, cells=(CellView("c0", draining=True),)))


def test_a_plan_is_a_file() -> None:
    view = cluster(2)
    plan = make_plan(
        replace(view, cells=(*view.cells, CellView("new")), nodes=(*view.nodes, *nodes_of("new")))
    )
    assert moves_from_plain(to_plain(plan)) == list(plan.moves)
    wrong: tuple[Any, ...] = ({}, [], {"format": 9}, {"format": 1, "moves": [{}]})
    for bad in wrong:
        with pytest.raises(InvalidRequest):
            moves_from_plain(bad)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(0.5, 3), st.booleans(), st.integers(1, 5)), min_size=1, max_size=5),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_any_cluster(old: int, more: list[tuple[float, bool, int]], seed: int, random: object) -> None:
    """Whatever the view: the same plan from any order of it, complete, and nothing to do after it."""
    view = cluster(old, 64)
    cells, nodes = list(view.cells), list(view.nodes)
    for i, (weight, draining, count) in enumerate(more):
        cells.append(CellView(f"m{i}", weight, draining))
        nodes += nodes_of(f"m{i}", count)
    full = replace(view, cells=tuple(cells), nodes=tuple(nodes))
    plan = make_plan(full, seed=seed)
    for given_in in (cells, nodes):
        random.shuffle(given_in)  # type: ignore[attr-defined]
    assert make_plan(replace(full, cells=tuple(cells), nodes=tuple(nodes)), seed=seed) == plan
    after = applied(full, plan)
    by_name = {n.name: n for n in nodes}
    emptied = {c.name for c in cells if c.draining}
    for p in after.partitions:
        assert p.replicas
        assert p.cell not in emptied
        assert all(by_name[n].cell == p.cell for n in p.replicas)
        assert len(set(p.replicas)) == len(p.replicas)
    assert between_cells(make_plan(after, seed=seed)) == 0
