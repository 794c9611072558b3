"""How even plans are, and how little they move: ``python -m bench.plans``. Pure arithmetic, 8192 partitions.

N cells of three nodes get one more; shown are the share of partitions that moves against the ideal 1/(N+1), and
the fullest cell and node against the mean, after it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from bench.measure import show
from cellctl.plan import CellView, make_plan
from tests.unit.cellctl.test_plan import between_cells, cluster, nodes_of

PARTITIONS = 8192


def main() -> None:
    rows = []
    for cells in (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63):
        view = cluster(cells, PARTITIONS)
        new = replace(view, cells=(*view.cells, CellView("new")), nodes=(*view.nodes, *nodes_of("new")))
        began = time.perf_counter()
        plan = make_plan(new)
        took = time.perf_counter() - began
        mean = PARTITIONS / (cells + 1)
        counts = list(plan.after.cells.values())
        rows.append(
            [
                f"{cells} -> {cells + 1}",
                f"{between_cells(plan) / PARTITIONS:.4f}",
                f"{1 / (cells + 1):.4f}",
                f"{max(counts) / mean:.4f}",
                f"{plan.after.node_spread:.4f}",
                f"{took:.2f}",
            ]
        )
    show(
        ["cells", "moved", "ideal", "fullest cell / mean", "fullest node / mean of its cell", "s to plan"],
        rows,
    )


if __name__ == "__main__":
    main()
