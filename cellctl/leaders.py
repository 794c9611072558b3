"""``cellctl switchover``, ``verify`` and ``topology``: leaders moved on purpose, replicas compared, the whole
picture."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from cellctl.connect import Where, cluster_options, http_url, topology, unknown, unknown_partition
from cellctl.http_client import fetch_json
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.status import node_statuses, partition_rows
from metastore.errors import InvalidRequest, MetastoreError, Unavailable
from metastore.logs import epoch_text
from metastore.topology import TopologyTable

ACTIVE_S = 5.0
#: how often replicas that have applied different entries are asked again
VERIFY_TRIES = 40
VERIFY_PAUSE_S = 0.1


def node_url(table: TopologyTable, node: str) -> str:
    """Of a node's own HTTP port. Raises NotFound."""
    record = table.nodes.get(node)
    if record is None:
        raise unknown("node", node, table.nodes)
    return http_url(record.http)


def hand_over(table: TopologyTable, partition: int, leader: str, to: str) -> dict[str, Any]:
    """Ask ``leader`` to hand over, and wait until the next one is active; with the milliseconds that it
    took. Raises InvalidRequest, Unavailable."""
    began = time.monotonic()
    suffix = f"?to={to}" if to else ""
    url = f"{node_url(table, leader)}/v1/partitions/{partition}/handover{suffix}"
    done: dict[str, Any] = fetch_json(url, 10.0, "POST")
    until = began + ACTIVE_S
    while True:
        view = fetch_json(node_url(table, done["to"]) + "/v1/status", 2.0)
        mine = [p for p in view["partitions"] if p["id"] == partition]
        if mine and mine[0]["role"] == "active":
            return done | {"ms": round((time.monotonic() - began) * 1000, 1)}
        if time.monotonic() > until:
            raise Unavailable(
                f"{done['to']} leads partition {partition} and does not serve yet; see: cellctl status"
            )
        time.sleep(0.002)


@click.command()
@cluster_options
@output_option
@click.option("--node", "-n", default=None, help="All partitions that this node leads.")
@click.option("--to", default="", help="The next leader; default: the replica that lacks least.")
@click.argument("partitions", type=int, nargs=-1)
def switchover(where: Where, output: str, node: str | None, to: str, partitions: tuple[int, ...]) -> None:
    """Hand leadership over, with nothing to wait for but one round (R11); says how long it took.

    Example: cellctl switchover 7 --to c1n2
    """
    if bool(partitions) == bool(node):
        raise InvalidRequest("give partitions, or --node NODE for all partitions that it leads")
    table = topology(where)
    rows = {row["id"]: row for row in partition_rows(table, node_statuses(table))}
    for p in partitions:
        if p not in rows:
            raise unknown_partition(p, table.partitions)
    if node is not None:
        node_url(table, node)
    chosen = partitions or tuple(p for p, row in rows.items() if row["leader"] == node)
    if not chosen:
        note(f"{node} leads nothing")
        sys.exit(1)
    done, failed = [], 0
    for p in chosen:
        try:
            if rows[p]["leader"] is None:
                raise Unavailable(f"partition {p} has no leader")
            if rows[p]["leader"] == to:
                note(f"partition {p}: {to} leads it already")
                continue
            done.append(hand_over(table, p, rows[p]["leader"], to))
        except MetastoreError as e:
            failed += 1
            note(f"partition {p}: {e.message}")
    if output != "table":
        print_data(output, done)
    elif done:
        columns = ("partition", "from", "to", "epoch", "ms")
        shown = [d | {"epoch": epoch_text(d["epoch"])} for d in done]
        print_table(columns, [[d[c] for c in columns] for d in shown])
    sys.exit(2 if failed else 0)


def compare(table: TopologyTable, partition: int, replicas: list[str]) -> dict[str, Any]:
    """Digests of all replicas at one applied index; ``state``: same, differs, behind, or away."""
    found: dict[str, dict[str, Any]] = {}
    away: list[str] = []
    for _ in range(VERIFY_TRIES):
        found, away = {}, []
        for node in replicas:
            try:
                found[node] = fetch_json(f"{node_url(table, node)}/v1/partitions/{partition}/digest", 30.0)
            except MetastoreError:
                away.append(node)
        if len({d["applied"] for d in found.values()}) <= 1:
            break
        time.sleep(VERIFY_PAUSE_S)
    digests = {d["digest"] for d in found.values()}
    if len({d["applied"] for d in found.values()}) > 1:
        state = "behind"
    elif len(digests) > 1:
        state = "differs"
    else:
        state = "away" if away else "same"
    return {
        "partition": partition,
        "state": state,
        "applied": {n: d["applied"] for n, d in found.items()},
        "digests": {n: d["digest"] for n, d in found.items()},
        "away": away,
    }


@click.command()
@cluster_options
@output_option
@click.argument("partitions", type=int, nargs=-1)
def verify(where: Where, output: str, partitions: tuple[int, ...]) -> None:
    """Compare what the replicas of every partition hold, live. Exit code 1 when some could not be compared, 2
    when two differ. Example: cellctl verify
    """
    table = topology(where)
    placements = {placement.id: placement for placement in table.in_order()}
    missing = set(partitions) - set(placements)
    if missing:
        raise unknown_partition(min(missing), table.partitions)
    rows = [compare(table, p, list(placements[p].replicas)) for p in partitions or sorted(placements)]
    states = [row["state"] for row in rows]
    if output != "table":
        print_data(output, rows)
    else:
        shown = [row for row in rows if row["state"] != "same"] if not partitions else rows
        if shown:
            print_table(
                ("partition", "state", "replica", "applied", "digest"),
                [
                    (
                        row["partition"],
                        row["state"],
                        node,
                        row["applied"].get(node),
                        str(row["digests"].get(node, "-")),
                    )
                    for row in shown
                    for node in [*row["digests"], *row["away"]]
                ],
            )
        say(f"{states.count('same')} of {len(rows)} partitions hold the same in all their replicas")
    sys.exit(2 if "differs" in states else 0 if set(states) <= {"same"} else 1)


@click.command("topology")
@cluster_options
@output_option
def topology_(where: Where, output: str) -> None:
    """Cells, their nodes, and what each leads and follows. Example: cellctl topology"""
    table = topology(where)
    rows = partition_rows(table, node_statuses(table))
    cells: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name, record in sorted(table.nodes.items()):
        cells.setdefault(record.cell, {})[name] = {"leads": [], "follows": []}
    for row in rows:
        for node in row["replicas"]:
            part = "leads" if node == row["leader"] else "follows"
            cells.setdefault(row["cell"], {}).setdefault(node, {"leads": [], "follows": []})[part].append(
                row["id"]
            )
    if output != "table":
        print_data(output, {"cluster": table.cluster, "cells": cells})
        return
    for cell, nodes in sorted(cells.items()):
        say(f"cell {cell}")
        for name, held in nodes.items():
            say(f"  {name}  {table.nodes[name].rpc if name in table.nodes else ''}")
            say(f"    leads    {ranges(held['leads']) or '-'}")
            say(f"    follows  {ranges(held['follows']) or '-'}")


def ranges(numbers: list[int]) -> str:
    """``0-3 7 9-12``."""
    found: list[list[int]] = []
    for n in sorted(numbers):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
