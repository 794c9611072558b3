"""``cellctl rebalance``, ``cell``, ``node``, ``pause`` and ``resume``: a cluster's shape, changed live."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from cellctl.connect import cluster_options, etcd_endpoints, topology
from cellctl.operate import Operator, Records
from cellctl.output import note, output_option, print_json, print_table
from cellctl.plan import Balance, By, Plan, make_plan, moves_from_plain, to_plain
from cellctl.status import node_views
from metastore.coordination.etcd import EtcdCoordinator
from metastore.errors import InvalidRequest

T = TypeVar("T")
POLL_S = 0.5


def etcd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--router``, ``--data`` and ``--etcd``."""
    command = click.option(
        "--etcd", envvar="METASTORE_ETCD", default=None, help="host:port of etcd, separated by commas."
    )(command)
    return cluster_options(command)


def operate(
    router: str | None, data: Path | None, etcd: str | None, work: Callable[[Operator], Awaitable[T]]
) -> T:
    """Run ``work`` against the cluster's etcd."""

    async def run() -> T:
        coordinator = EtcdCoordinator(etcd_endpoints(router, data, etcd))
        try:
            return await work(Operator(coordinator, topology(router, data).cluster))
        finally:
            await coordinator.close()

    return asyncio.run(run())


def measured(router: str | None, data: Path | None) -> dict[int, tuple[int, float]]:
    """Partition -> (bytes, operations per second), from the leaders."""
    found: dict[int, tuple[int, float]] = {}
    for view in node_views(topology(router, data)).values():
        for part in view["partitions"] if view else []:
            if part["role"] == "active":
                found[part["id"]] = int(part["bytes"]), float(part.get("operations", 0.0))
    return found


@click.group()
def rebalance() -> None:
    """Plan moves of partitions, have them carried out, look on, go back."""


def _balance_rows(before: Balance, after: Balance) -> list[tuple[Any, ...]]:
    names = sorted(set(before.cells) | set(after.cells))
    return [(c, before.cells.get(c, 0), after.cells.get(c, 0)) for c in names]


def show_plan(plan: Plan) -> None:
    """What moves, how much, and the balance before and after."""
    columns = ("partition", "from", "to", "bytes to copy", "why")
    rows = [
        (
            m.partition,
            f"{m.from_cell} {','.join(m.from_replicas)}",
            f"{m.to_cell} {','.join(n for n, _ in m.target)}",
            m.bytes,
            m.why,
        )
        for m in plan.moves
    ]
    if rows:
        print_table(columns, rows)
        click.echo()
    print_table(("cell", "partitions now", "then"), _balance_rows(plan.before, plan.after))
    click.echo(
        f"\nfullest cell against its share: {plan.before.cell_spread:.3f} now, {plan.after.cell_spread:.3f} then; "
        f"replicas in zones apart: {plan.before.dispersion:.0%} now, {plan.after.dispersion:.0%} then"
    )
    for warning in plan.warnings:
        note(f"warning: {warning}")


@rebalance.command("plan")
@etcd_options
@output_option
@click.option(
    "--by", type=click.Choice(["partitions", "bytes", "operations"]), default="partitions", show_default=True
)
@click.option(
    "--threshold", type=float, default=0.02, show_default=True, help="Unevenness that is left alone."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Breaks ties; the same seed, the same plan."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=None, help="File for the plan."
)
def plan_(
    router: str | None,
    data: Path | None,
    etcd: str | None,
    output: str,
    by: By,
    threshold: float,
    seed: int,
    out: Path | None,
) -> None:
    """What would be moved, and why. Example: cellctl rebalance plan --out plan.json"""
    records = operate(router, data, etcd, lambda o: o.records())
    plan = make_plan(records.view(measured(router, data)), by=by, threshold=threshold, seed=seed)
    if out is not None:
        out.write_bytes(orjson.dumps(to_plain(plan), option=orjson.OPT_INDENT_2) + b"\n")
    if output == "json":
        print_json(to_plain(plan))
    else:
        show_plan(plan)
        if out is not None and plan.moves:
            note(f"to carry it out: cellctl rebalance apply {out}")
    if not plan.moves:
        note("nothing to do: the cluster is even")
        sys.exit(1)


@rebalance.command("apply")
@etcd_options
@click.argument("plan_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would be asked for.")
@click.option("--wait/--no-wait", default=True, help="Return when all is done.", show_default=True)
@click.option(
    "--timeout", "timeout_s", type=float, default=3600.0, show_default=True, help="Seconds to wait."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(
    router: str | None,
    data: Path | None,
    etcd: str | None,
    plan_file: Path,
    dry_run: bool,
    wait: bool,
    timeout_s: float,
    yes: bool,
) -> None:
    """Have a plan carried out, by the cluster itself. Example: cellctl rebalance apply plan.json --yes"""
    try:
        moves = moves_from_plain(orjson.loads(plan_file.read_bytes()))
    except orjson.JSONDecodeError as e:
        raise InvalidRequest(f"{plan_file} is no plan: {e}") from None
    if dry_run or not moves:
        note(f"{len(moves)} moves would be asked for")
        sys.exit(0 if moves else 1)
    if not yes:
        click.confirm(f"move {len(moves)} partitions?", abort=True)
    asked, changed = operate(router, data, etcd, lambda o: o.apply(moves, f"plan {plan_file.name}"))
    if changed:
        note(f"left alone, since they changed after the plan was made: {', '.join(map(str, changed))}")
    note(f"asked for {len(asked)} moves")
    if wait and asked:
        sys.exit(wait_until_done(router, data, etcd, set(asked), timeout_s))
    sys.exit(1 if changed else 0)


def wait_until_done(
    router: str | None, data: Path | None, etcd: str | None, partitions: set[int], timeout_s: float
) -> int:
    """Exit code: 0 all done, 1 not in time (the cluster goes on)."""
    deadline = time.monotonic() + timeout_s
    left = partitions
    with click.progressbar(length=len(partitions), label="moved", file=sys.stderr) as bar:
        while True:
            records = operate(router, data, etcd, lambda o: o.records())
            now = partitions & set(records.moves)
            bar.update(len(left) - len(now))
            left = now
            if not left:
                return 0
            if time.monotonic() > deadline:
                note(f"{len(left)} moves are still under way; the cluster goes on with them")
                return 1
            time.sleep(POLL_S)


def move_rows(records: Records, views: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """One row a move: where it stands, as its leader says."""
    rows = []
    for p, (move, _) in sorted(records.moves.items()):
        cell, config = records.configs[p]
        state, learners = "waiting for a leader", {}
        for view in views.values():
            for part in view["partitions"] if view else []:
                if part["id"] == p and part["role"] in ("active", "resigning", "resigned"):
                    state, learners = part["move"], part["learners"]
        if move.cancel:
            state = f"going back ({state})"
        elif records.paused:
            state = f"paused ({state})"
        rows.append(
            {
                "partition": p,
                "from": f"{cell} {','.join(n for n, _ in config.replicas)}",
                "to": f"{move.cell} {','.join(n for n, _ in move.target)}",
                "state": state,
                "lag": sum(x["lag"] for x in learners.values()),
                "sent_bytes": sum(x.get("sent_bytes", 0) for x in learners.values()),
                "total_bytes": sum(x.get("total_bytes", 0) for x in learners.values()),
                "cause": move.cause,
            }
        )
    return rows


@rebalance.command("status")
@etcd_options
@output_option
def status(router: str | None, data: Path | None, etcd: str | None, output: str) -> None:
    """Moves under way. Example: cellctl rebalance status"""
    records = operate(router, data, etcd, lambda o: o.records())
    rows = move_rows(records, node_views(topology(router, data)))
    if output == "json":
        print_json(rows)
    elif rows:
        columns = ("partition", "from", "to", "state", "lag", "sent_bytes", "total_bytes", "cause")
        print_table(columns, [[row[c] for c in columns] for row in rows])
    else:
        note("no move is under way")
    sys.exit(0 if rows else 1)


@rebalance.command("cancel")
@etcd_options
@click.argument("partitions", type=int, nargs=-1)
def cancel(router: str | None, data: Path | None, etcd: str | None, partitions: tuple[int, ...]) -> None:
    """Have moves go back, all or those of some partitions. Example: cellctl rebalance cancel"""
    done = operate(router, data, etcd, lambda o: o.cancel(partitions or None))
    note(f"going back: {', '.join(map(str, done))}" if done else "no move to go back from")
    sys.exit(0 if done else 1)


def _pausing(name: str, paused: bool, text: str) -> click.Command:
    @click.command(name, help=f"{text} Example: cellctl {name}")
    @etcd_options
    def command(router: str | None, data: Path | None, etcd: str | None) -> None:
        operate(router, data, etcd, lambda o: o.set_paused(paused))
        note("moves are paused" if paused else "moves go on")

    return command


pause = _pausing("pause", True, "No membership change goes on until `cellctl resume`.")
resume = _pausing("resume", False, "Membership changes go on.")


# --- cells and nodes ------------------------------------------------------------------------------


@click.group()
def cell() -> None:
    """Cells: weight, drain, remove."""


@cell.command("list")
@etcd_options
@output_option
def cell_list(router: str | None, data: Path | None, etcd: str | None, output: str) -> None:
    """Every cell. Example: cellctl cell list"""
    records = operate(router, data, etcd, lambda o: o.records())
    rows = []
    for c in records.view().cells:
        nodes = [n for n in records.nodes.values() if n.cell == c.name]
        rows.append(
            {
                "cell": c.name,
                "weight": c.weight,
                "state": "draining" if c.draining else "active",
                "nodes": len(nodes),
                "up": sum(n.node in records.present for n in nodes),
                "partitions": sum(home == c.name for home, _ in records.configs.values()),
            }
        )
    if output == "json":
        print_json(rows)
    else:
        print_table(tuple(rows[0]) if rows else ("cell",), [tuple(r.values()) for r in rows])


@cell.command("set-weight")
@etcd_options
@click.argument("name")
@click.argument("weight", type=float)
def set_weight(router: str | None, data: Path | None, etcd: str | None, name: str, weight: float) -> None:
    """A cell's share of the partitions, against 1. Example: cellctl cell set-weight c2 2"""
    operate(router, data, etcd, lambda o: o.set_cell(name, weight=weight))
    note(f"cell {name} has weight {weight}; see: cellctl rebalance plan")


@cell.command("drain")
@etcd_options
@click.argument("name")
@click.option("--undo", is_flag=True, help="It may hold partitions again.")
def cell_drain(router: str | None, data: Path | None, etcd: str | None, name: str, undo: bool) -> None:
    """A cell is to hold nothing. Example: cellctl cell drain c2"""
    operate(router, data, etcd, lambda o: o.set_cell(name, draining=not undo))
    note(f"cell {name} is {'active' if undo else 'draining'}; see: cellctl rebalance plan")


@cell.command("remove")
@etcd_options
@click.argument("name")
def cell_remove(router: str | None, data: Path | None, etcd: str | None, name: str) -> None:
    """Forget a cell that holds nothing, and its nodes. Example: cellctl cell remove c2"""
    operate(router, data, etcd, lambda o: o.remove_cell(name))
    note(f"cell {name} is forgotten; its nodes may be stopped")


@click.group()
def node() -> None:
    """Nodes: drain, remove."""


@node.command("list")
@etcd_options
@output_option
def node_list(router: str | None, data: Path | None, etcd: str | None, output: str) -> None:
    """Every node. Example: cellctl node list"""
    records = operate(router, data, etcd, lambda o: o.records())
    held: dict[str, int] = dict.fromkeys(records.nodes, 0)
    for _, config in records.configs.values():
        for name, _ in config.members():
            held[name] = held.get(name, 0) + 1
    rows = [
        {
            "node": n.node,
            "cell": n.cell,
            "zone": n.zone,
            "address": n.rpc,
            "state": "draining"
            if n.node in records.drained
            else "up"
            if n.node in records.present
            else "away",
            "replicas": held[n.node],
        }
        for n in sorted(records.nodes.values(), key=lambda n: (n.cell, n.node))
    ]
    if output == "json":
        print_json(rows)
    else:
        print_table(tuple(rows[0]) if rows else ("node",), [tuple(r.values()) for r in rows])


@node.command("drain")
@etcd_options
@click.argument("name")
@click.option("--undo", is_flag=True, help="It may hold replicas again.")
def node_drain(router: str | None, data: Path | None, etcd: str | None, name: str, undo: bool) -> None:
    """A node is to hold nothing. Example: cellctl node drain c1n2"""
    operate(router, data, etcd, lambda o: o.set_drained(name, not undo))
    note(f"node {name} is {'active' if undo else 'draining'}; see: cellctl rebalance plan")


@node.command("remove")
@etcd_options
@click.argument("name")
def node_remove(router: str | None, data: Path | None, etcd: str | None, name: str) -> None:
    """Forget a node that holds nothing. Example: cellctl node remove c1n2"""
    operate(router, data, etcd, lambda o: o.remove_node(name))
    note(f"node {name} is forgotten; it may be stopped")
