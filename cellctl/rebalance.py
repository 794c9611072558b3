"""``cellctl rebalance``, ``cell``, ``node``, ``pause`` and ``resume``: a cluster's shape, changed live."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from cellctl.connect import (
    Where,
    cluster_options,
    etcd_endpoints,
    topology,
    unknown,
    waiting_options,
    with_etcd,
)
from cellctl.operate import Operator
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.plan import Balance, By, Plan, make_plan, moves_from_plain, to_plain
from cellctl.records import Records
from cellctl.status import node_statuses
from metastore.config import NodeConfig
from metastore.decoding import Undecodable, read_json_file
from metastore.errors import CoordinationUnavailable, InvalidRequest

T = TypeVar("T")
POLL_S = 0.5


def operate(where: Where, work: Callable[[Operator], Awaitable[T]]) -> T:
    """Run ``work`` against the cluster's records."""
    return with_etcd(where, lambda etcd, cluster: work(Operator(etcd, cluster)))


def measured(where: Where) -> dict[int, tuple[int, float]]:
    """Partition -> (bytes, operations per second), from the leaders."""
    found: dict[int, tuple[int, float]] = {}
    for view in node_statuses(topology(where)).values():
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
        say()
    print_table(("cell", "partitions now", "then"), _balance_rows(plan.before, plan.after))
    say(
        f"\nfullest cell against its share: {plan.before.cell_spread:.3f} now, {plan.after.cell_spread:.3f} then; "
        f"replicas in zones apart: {plan.before.dispersion:.0%} now, {plan.after.dispersion:.0%} then"
    )
    for warning in plan.warnings:
        note(f"warning: {warning}")


@rebalance.command("plan")
@cluster_options
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
    where: Where,
    output: str,
    by: By,
    threshold: float,
    seed: int,
    out: Path | None,
) -> None:
    """What would be moved, and why. Example: cellctl rebalance plan --out plan.json"""
    records = operate(where, lambda o: o.records())
    plan = make_plan(records.view(measured(where)), by=by, threshold=threshold, seed=seed)
    if out is not None:
        out.write_bytes(orjson.dumps(to_plain(plan), option=orjson.OPT_INDENT_2) + b"\n")
    if output != "table":
        print_data(output, to_plain(plan))
    else:
        show_plan(plan)
        if out is not None and plan.moves:
            note(f"to carry it out: cellctl rebalance apply {out}")
    if not plan.moves:
        note("nothing to do: the cluster is even")
        sys.exit(1)


@rebalance.command("apply")
@waiting_options
@click.argument("plan_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only show what would be asked for.")
@click.option("--wait/--no-wait", default=True, help="Return when all is done.", show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(
    where: Where,
    plan_file: Path,
    dry_run: bool,
    wait: bool,
    yes: bool,
) -> None:
    """Have a plan carried out, by the cluster itself. Example: cellctl rebalance apply plan.json --yes"""
    try:
        moves = moves_from_plain(read_json_file(plan_file))
    except Undecodable as e:
        raise InvalidRequest(f"{plan_file} is not a plan: {e}") from None
    if dry_run or not moves:
        note(f"{len(moves)} moves would be asked for")
        sys.exit(0 if moves else 1)
    if not yes:
        click.confirm(f"move {len(moves)} partitions?", abort=True)
    asked, changed = operate(where, lambda o: o.apply(moves, f"plan {plan_file.name}"))
    if changed:
        note(f"left alone, since they changed after the plan was made: {', '.join(map(str, changed))}")
    note(f"asked for {len(asked)} moves")
    if wait and asked:
        sys.exit(wait_until_done(where, set(asked)))
    sys.exit(1 if changed else 0)


def wait_until_done(where: Where, partitions: set[int], deadline: float | None = None) -> int:
    """Exit code: 0 all done, 1 not in time (the cluster goes on). ``deadline``: of the monotonic clock, else --timeout from
    now. An etcd that does not answer for a while is waited for."""
    deadline = time.monotonic() + where.timeout_s if deadline is None else deadline
    left = partitions
    with click.progressbar(length=len(partitions), label="moved", file=sys.stderr) as bar:
        while True:
            with contextlib.suppress(CoordinationUnavailable):
                records = operate(where, lambda o: o.records())
                now = partitions & set(records.moves)
                bar.update(len(left) - len(now))
                left = now
            if not left:
                return 0
            if time.monotonic() > deadline:
                note(f"{len(left)} moves are still under way; the cluster continues with them")
                return 1
            time.sleep(POLL_S)


def left_s(learners: Iterable[dict[str, int]]) -> int | None:
    """Until the last snapshot has arrived, at the rate so far; None = not known, or none is on its way."""
    left = [
        (x["total_bytes"] - x["sent_bytes"]) * x["ms"] / x["sent_bytes"] / 1000
        for x in learners
        if x.get("sent_bytes") and x["total_bytes"] >= x["sent_bytes"]
    ]
    return round(max(left)) if left else None


def move_rows(records: Records, statuses: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """One row a move: where it stands, as its leader says."""
    rows = []
    for p, (move, _) in sorted(records.moves.items()):
        cell, config = records.configs[p]
        state, learners = "waiting for a leader", {}
        for view in statuses.values():
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
                "left_s": left_s(learners.values()),
                "cause": move.cause,
            }
        )
    return rows


@rebalance.command("status")
@cluster_options
@output_option
@click.option("--watch", "-w", is_flag=True, help="Again every second, until none is left.")
def status(where: Where, output: str, watch: bool) -> None:
    """Moves under way: how far, and how long still. Exit code 1 when there are none.

    Example: cellctl rebalance status --watch
    """
    while True:
        records = operate(where, lambda o: o.records())
        rows = move_rows(records, node_statuses(topology(where)))
        if not watch or not rows:
            break
        if sys.stdout.isatty():
            click.clear()
        show_moves(rows, output)
        time.sleep(1)
    show_moves(rows, output)
    sys.exit(0 if rows else 1)


def show_moves(rows: list[dict[str, Any]], output: str) -> None:
    if output != "table":
        print_data(output, rows)
    elif rows:
        columns = ("partition", "from", "to", "state", "lag", "sent_bytes", "total_bytes", "left_s", "cause")
        print_table(columns, [[row[c] for c in columns] for row in rows])
    else:
        note("no move is under way")


@rebalance.command("cancel")
@cluster_options
@click.argument("partitions", type=int, nargs=-1)
def cancel(where: Where, partitions: tuple[int, ...]) -> None:
    """Have moves go back, all or those of some partitions. Example: cellctl rebalance cancel"""
    done = operate(where, lambda o: o.cancel(partitions or None))
    note(f"going back: {', '.join(map(str, done))}" if done else "no move to go back from")
    sys.exit(0 if done else 1)


def _pausing(name: str, paused: bool, text: str) -> click.Command:
    @click.command(name, help=f"{text} Example: cellctl {name}")
    @cluster_options
    def command(where: Where) -> None:
        operate(where, lambda o: o.set_paused(paused))
        note("moves are paused" if paused else "moves continue")

    return command


pause = _pausing("pause", True, "No automatic change continues until `cellctl resume`.")
resume = _pausing("resume", False, "Automatic changes continue.")
rebalance.add_command(pause)
rebalance.add_command(resume)


# --- cells and nodes ------------------------------------------------------------------------------


@click.group()
def cell() -> None:
    """Cells: add, look at, weight, drain, remove."""


@cell.command("list")
@cluster_options
@output_option
def cell_list(where: Where, output: str) -> None:
    """Every cell. Example: cellctl cell list"""
    records = operate(where, lambda o: o.records())
    rows = [cell_row(records, c.name) for c in records.view().cells]
    if output != "table":
        print_data(output, rows)
    else:
        print_table(tuple(rows[0]) if rows else ("cell",), [tuple(r.values()) for r in rows])


def cell_row(records: Records, name: str) -> dict[str, Any]:
    """One cell at a glance."""
    view = next(c for c in records.view().cells if c.name == name)
    nodes = [n for n in records.nodes.values() if n.cell == name]
    return {
        "cell": name,
        "weight": view.weight,
        "state": "draining" if view.draining else "active",
        "nodes": len(nodes),
        "up": sum(n.node in records.present for n in nodes),
        "partitions": sum(home == name for home, _ in records.configs.values()),
    }


@cell.command("show")
@cluster_options
@output_option
@click.argument("name")
def cell_show(where: Where, output: str, name: str) -> None:
    """One cell: its nodes and what they hold. Example: cellctl cell show c1"""
    records = operate(where, lambda o: o.records())
    known = [c.name for c in records.view().cells]
    if name not in known:
        raise unknown("cell", name, known)
    row, nodes = cell_row(records, name), [n for n in node_rows(records) if n["cell"] == name]
    if output != "table":
        print_data(output, row | {"members": nodes})
        return
    print_table(tuple(row), [tuple(row.values())])
    if nodes:
        say()
        print_table(tuple(nodes[0]), [tuple(n.values()) for n in nodes])


@cell.command("add")
@cluster_options
@click.option("--weight", type=float, default=1.0, show_default=True, help="Its share, against 1.")
@click.argument("name")
def cell_add(where: Where, weight: float, name: str) -> None:
    """Make a cell known before its nodes are; with --weight 0 plans leave it out.

    A cell whose nodes just start is known too, with weight 1. Example: cellctl cell add c3 --weight 0
    """
    operate(where, lambda o: o.add_cell(name, weight))
    note(f"cell {name} is known; next: cellctl node add NAME --cell {name} …, then cellctl rebalance plan")


@cell.command("set-weight")
@cluster_options
@click.argument("name")
@click.argument("weight", type=float)
def set_weight(where: Where, name: str, weight: float) -> None:
    """A cell's share of the partitions, against 1. Example: cellctl cell set-weight c2 2"""
    operate(where, lambda o: o.set_cell(name, weight=weight))
    note(f"cell {name} has weight {weight}; see: cellctl rebalance plan")


@cell.command("drain")
@cluster_options
@click.argument("name")
@click.option("--undo", is_flag=True, help="It may hold partitions again.")
def cell_drain(where: Where, name: str, undo: bool) -> None:
    """A cell is to hold nothing. Example: cellctl cell drain c2"""
    operate(where, lambda o: o.set_cell(name, draining=not undo))
    note(f"cell {name} is {'active' if undo else 'draining'}; see: cellctl rebalance plan")


@cell.command("remove")
@cluster_options
@click.argument("name")
def cell_remove(where: Where, name: str) -> None:
    """Forget a cell that holds nothing, and its nodes. Example: cellctl cell remove c2"""
    operate(where, lambda o: o.remove_cell(name))
    note(f"cell {name} is forgotten; its nodes may be stopped")


@click.group()
def node() -> None:
    """Nodes: add, look at, drain, replace, remove."""


def node_rows(records: Records) -> list[dict[str, Any]]:
    """One row a node."""
    held: dict[str, int] = dict.fromkeys(records.nodes, 0)
    for _, config in records.configs.values():
        for name, _ in config.members():
            held[name] = held.get(name, 0) + 1
    return [
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


@node.command("list")
@cluster_options
@output_option
def node_list(where: Where, output: str) -> None:
    """Every node. Example: cellctl node list"""
    rows = node_rows(operate(where, lambda o: o.records()))
    if output != "table":
        print_data(output, rows)
    else:
        print_table(tuple(rows[0]) if rows else ("node",), [tuple(r.values()) for r in rows])


@node.command("add")
@cluster_options
@click.option("--cell", "cell_name", required=True, help="Its cell.")
@click.option("--rpc", required=True, help="host:port for clients and peers, as they reach it.")
@click.option("--http", required=True, help="host:port of its own HTTP.")
@click.option("--data-dir", required=True, help="Its data folder, on the node.")
@click.option("--zone", default="", help="Its failure zone.")
@click.argument("name")
def node_add(where: Where, cell_name: str, rpc: str, http: str, data_dir: str, zone: str, name: str) -> None:
    """Print the configuration file of one more node, with the settings that its cell shares. Once it runs
    (metastore-node --config FILE) it registers itself, empty.

    Example: cellctl node add c1n4 --cell c1 --rpc 10.0.0.4:7100 --http 10.0.0.4:7101 --data-dir /var/lib/metastore > c1n4.toml
    """
    table = topology(where)
    if name in table.nodes:
        raise InvalidRequest(f"node {name} is there already, of cell {table.nodes[name].cell}")
    taken = {r.rpc: n for n, r in table.nodes.items()} | {r.http: n for n, r in table.nodes.items()}
    for address in (rpc, http):
        if address in taken:
            raise InvalidRequest(f"{address} is the address of node {taken[address]}")
    statuses = [v for v in node_statuses(table).values() if v is not None and v["cell"] == cell_name]
    shared = statuses[0]["settings"] if statuses else {}
    config = NodeConfig(
        cluster=table.cluster,
        cell=cell_name,
        node=name,
        data_dir=data_dir,
        rpc=rpc,
        http=http,
        etcd=etcd_endpoints(where),
        zone=zone,
        **shared,
    )
    names = ("cluster", "cell", "node", "data_dir", "rpc", "http", "etcd", "zone", *shared)
    say("[node]")
    for key in names:
        say(f"{key} = {orjson.dumps(getattr(config, key)).decode()}")
    note("next: metastore-node --config FILE on the node; then: cellctl rebalance plan --out plan.json")


@node.command("drain")
@cluster_options
@click.argument("name")
@click.option("--undo", is_flag=True, help="It may hold replicas again.")
def node_drain(where: Where, name: str, undo: bool) -> None:
    """A node is to hold nothing. Example: cellctl node drain c1n2"""
    operate(where, lambda o: o.set_drained(name, not undo))
    note(f"node {name} is {'active' if undo else 'draining'}; see: cellctl rebalance plan")


@node.command("remove")
@cluster_options
@click.argument("name")
def node_remove(where: Where, name: str) -> None:
    """Forget a node that holds nothing. Example: cellctl node remove c1n2"""
    operate(where, lambda o: o.remove_node(name))
    note(f"node {name} is forgotten; it may be stopped")
