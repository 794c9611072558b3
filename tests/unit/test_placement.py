"""Placement: even, spread over zones, stable when cells come."""

from __future__ import annotations

import itertools

import pytest

from metastore.errors import InvalidRequest
from metastore.layout import NodeRecord
from metastore.placement import place_cells, place_replicas, plan_initial


def nodes(cell: str, count: int, zones: int = 0) -> list[NodeRecord]:
    return [
        NodeRecord(
            f"{cell}n{i}",
            cell,
            f"s-{cell}{i}",
            f"h:{i + 1}",
            f"h:{i + 100}",
            f"z{i % zones}" if zones else "",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 8])
def test_no_cell_holds_more_than_its_share(cells: int) -> None:
    names = [f"c{i}" for i in range(cells)]
    placed = place_cells(names, 64)
    loads = [list(placed.values()).count(c) for c in names]
    assert sum(loads) == 64
    assert max(loads) <= -(-64 // cells)


def test_a_new_cell_moves_little_between_the_old_ones() -> None:
    before, after = place_cells(["c1", "c2", "c3"], 256), place_cells(["c1", "c2", "c3", "c4"], 256)
    moved = [p for p in before if before[p] != after[p] and after[p] != "c4"]
    assert len(moved) < 256 // 4


def test_golden_placement() -> None:
    """What a cluster was made with can be told again."""
    assert "".join(place_cells(["c1", "c2"], 16)[p][1] for p in range(16)) == "2221112212221111"


def test_replicas_spread_over_zones_and_first_choices_over_nodes() -> None:
    six = nodes("c1", 6, zones=3)
    firsts = []
    for turn in range(12):
        chosen = place_replicas(six, 3, turn)
        assert len({n.zone for n in chosen}) == 3
        firsts.append(chosen[0].node)
    assert all(firsts.count(n.node) == 2 for n in six)


def test_the_leaders_of_a_dead_node_go_to_different_nodes() -> None:
    seconds = {place_replicas(nodes("c1", 3), 3, turn)[1].node for turn in range(0, 6, 3)}
    assert len(seconds) == 2


def test_a_plan_covers_the_ring_once() -> None:
    plan = plan_initial({"c1": nodes("c1", 3), "c2": nodes("c2", 5)}, 32)
    configs = sorted((c for cs in plan.values() for c in cs), key=lambda c: c.lo)
    assert [c.partition for c in configs] == list(range(32))
    assert configs[0].lo == 0
    assert configs[-1].hi == 1 << 64
    assert all(a.hi == b.lo for a, b in itertools.pairwise(configs))
    assert all(len(c.replicas) == 3 and c.epoch == 0 and c.leader is None for c in configs)


def test_nowhere_to_place() -> None:
    with pytest.raises(InvalidRequest):
        place_cells([], 4)
    with pytest.raises(InvalidRequest):
        place_replicas([], 3, 0)
