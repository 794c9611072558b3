"""``cellctl status`` and ``cellctl partition``: who leads what, how far behind, how healthy."""

from __future__ import annotations

import sys
from typing import Any

import click

from cellctl.connect import Where, ask_each, cluster_options, topology
from cellctl.http_client import fetch_json
from cellctl.output import output_option, print_data, print_table, say
from metastore.errors import MetastoreError
from metastore.keys import storage_key_of
from metastore.logs import epoch_text
from metastore.topology import Placement, TopologyTable


def node_statuses(table: TopologyTable) -> dict[str, dict[str, Any] | None]:
    """Every node's own view, None for those that do not answer."""

    def ask(url: str) -> dict[str, Any] | None:
        try:
            view: dict[str, Any] = fetch_json(f"{url}/v1/status", 2.0)
            return view
        except MetastoreError:
            return None

    return ask_each({name: record.http for name, record in table.nodes.items()}, ask)


def missing_replicas(
    table: TopologyTable, placement: Placement, statuses: dict[str, dict[str, Any] | None]
) -> list[str]:
    """Replicas whose node has another store than the member's, or one that is refused (R13): health counts
    stores, not names."""
    found = set(table.missing(placement))
    for node, store in zip(placement.replicas, placement.stores, strict=False):
        view = statuses.get(node)
        if view is not None and (view["store_id"] != store or view["identity"]["state"] == "refused"):
            found.add(node)
    return sorted(found)


def replica_text(row: dict[str, Any], node: str) -> str:
    """A replica for a table, with what is wrong with it."""
    return f"{node}(down)" if node in row["down"] else f"{node}(missing)" if node in row["missing"] else node


def partition_rows(table: TopologyTable, statuses: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """One row per partition, from the nodes that answer; the highest epoch's word counts."""
    rows = []
    for placement in table.in_order():
        best: dict[str, Any] | None = None
        missing = missing_replicas(table, placement, statuses)
        for node in placement.replicas:
            view = statuses.get(node) if node not in missing else None
            for part in view["partitions"] if view else []:
                if part["id"] == placement.id:
                    rank = (part["epoch"], part["role"] == "active")
                    if best is None or rank > (best["epoch"], best["role"] == "active"):
                        best = part
        active = best is not None and best["role"] == "active"
        lag = dict(best["lag"]) if best and active else {}
        down = [n for n in placement.replicas if statuses.get(n) is None]
        leader = best["leader"] if best else placement.leader
        if best is None or leader in down or not active:
            health = "no leader"
        elif best["health"] != "ok":
            health = best["health"]
        else:
            health = "degraded" if down or missing else "ok"
        rows.append(
            {
                "id": placement.id,
                "cell": placement.cell,
                "leader": leader,
                "epoch": best["epoch"] if best else placement.epoch,
                "replicas": list(placement.replicas),
                "down": down,
                "missing": missing,
                "lag": lag,
                "version": best["version"] if best else None,
                "unrecorded": best["unrecorded"] if best and active else None,
                "health": health,
            }
        )
    return rows


def _print_partitions(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("partition", "cell", "leader", "epoch", "replicas", "lag", "health"),
        [
            (
                row["id"],
                row["cell"],
                row["leader"],
                epoch_text(row["epoch"]),
                " ".join(replica_text(row, n) for n in row["replicas"]),
                " ".join(f"{n}:{v}" for n, v in sorted(row["lag"].items()) if n not in row["down"]),
                row["health"],
            )
            for row in rows
        ],
    )


def etcd_state(etcd: dict[str, Any]) -> str:
    """How a node stands with etcd, in a word; ``cellctl doctor`` says more."""
    if etcd["untrusted"]:
        return "distrusted"
    if not etcd["connected"]:
        return "away"
    return "in trouble" if etcd["trouble"] else "connected"


@click.command()
@cluster_options
@output_option
def status(where: Where, output: str) -> None:
    """Nodes and cells at a glance. Example: cellctl status -o json"""
    table = topology(where)
    statuses = node_statuses(table)
    rows = partition_rows(table, statuses)
    nodes = []
    for name, record in sorted(table.nodes.items()):
        view = statuses[name]
        parts = view["partitions"] if view else []
        nodes.append(
            {
                "node": name,
                "cell": record.cell,
                "rpc": record.rpc,
                "up": view is not None,
                "refused": view["identity"]["why"]
                if view and view["identity"]["state"] == "refused"
                else None,
                "partitions": len(parts),
                "leading": sum(1 for p in parts if p["role"] == "active"),
                "etcd": etcd_state(view["etcd"]) if view else None,
                "stalls": view["stalls"] if view else None,
            }
        )
    healthy = sum(1 for row in rows if row["health"] == "ok")
    if output != "table":
        print_data(output, {"cluster": table.cluster, "nodes": nodes, "partitions": rows})
    else:
        print_table(
            ("node", "cell", "address", "state", "partitions", "leading", "etcd"),
            [
                (
                    n["node"],
                    n["cell"],
                    n["rpc"],
                    "refused" if n["refused"] else "up" if n["up"] else "down",
                    n["partitions"],
                    n["leading"],
                    n["etcd"],
                )
                for n in nodes
            ],
        )
        say(f"\n{healthy} of {len(rows)} partitions healthy" + ("" if healthy == len(rows) else ":"))
        if healthy != len(rows):
            _print_partitions([row for row in rows if row["health"] != "ok"])
        for name, view in statuses.items():
            if view and view["etcd"]["untrusted"]:
                say(
                    f"{name} distrusts etcd, because {view['etcd']['untrusted']}; see: cellctl control rebuild"
                )
        bad = max(
            (view["etcd"].get("records", {}).get("bad_now", 0) for view in statuses.values() if view),
            default=0,
        )
        if bad:
            say(f"{bad} records in etcd are not valid; cellctl doctor names them")
        for n in nodes:
            if n["refused"]:
                say(f"{n['node']} serves nothing: {n['refused']}")
    sys.exit(0 if healthy == len(rows) and all(n["up"] and not n["refused"] for n in nodes) else 1)


@click.group()
def partition() -> None:
    """Partitions: where they are and who leads them."""


@partition.command("list")
@cluster_options
@output_option
def list_(where: Where, output: str) -> None:
    """Every partition. Example: cellctl partition list"""
    table = topology(where)
    rows = partition_rows(table, node_statuses(table))
    if output != "table":
        print_data(output, rows)
    else:
        _print_partitions(rows)


@partition.command()
@cluster_options
@output_option
@click.option("--namespace", "-n", default="default", show_default=True, help="Namespace of the key.")
@click.argument("key")
def locate(where: Where, output: str, namespace: str, key: str) -> None:
    """Where a key lives. Example: cellctl partition locate -n files usr/share/doc/bash"""
    table = topology(where)
    placement = table.route(storage_key_of(namespace, key))
    rows = [row for row in partition_rows(table, node_statuses(table)) if row["id"] == placement.id]
    if output != "table":
        print_data(output, rows[0])
    else:
        _print_partitions(rows)
