"""``cellctl partition show|move`` and ``node replace``: moves asked for by hand (R10)."""

from __future__ import annotations

import sys
import time

import click

from cellctl.connect import Where, cluster_options, topology, unknown_partition, waiting_options
from cellctl.operate import Operator
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.rebalance import operate, wait_until_done
from cellctl.status import node_statuses, partition_rows
from metastore.errors import InvalidRequest

SPLIT_POLL_S = 0.1

wait_option = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Return when it is done."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@cluster_options
@output_option
@click.argument("number", type=int)
def show(where: Where, output: str, number: int) -> None:
    """One partition: each replica's role, epoch, log and records. Example: cellctl partition show 3"""
    table = topology(where)
    statuses = node_statuses(table)
    found = [row for row in partition_rows(table, statuses) if row["id"] == number]
    if not found:
        raise unknown_partition(number, table.partitions)
    row = found[0]
    replicas = []
    for name in row["replicas"]:
        view = statuses.get(name)
        mine = [p for p in view["partitions"] if p["id"] == number] if view else []
        replicas.append(
            {"node": name, "state": "away" if view is None else "up", **(mine[0] if mine else {})}
        )
    if output != "table":
        print_data(output, row | {"replicas": replicas})
        return
    columns = (
        "node",
        "state",
        "role",
        "epoch",
        "last_index",
        "commit_index",
        "applied_index",
        "records",
        "bytes",
    )
    print_table(columns, [[r.get(c) for c in columns] for r in replicas])
    say(f"\ncell {row['cell']}, led by {row['leader'] or 'nobody'}, {row['health']}")


@click.command()
@waiting_options
@click.option("--to", required=True, help="The nodes that are to hold it, separated by commas.")
@wait_option
@yes_option
@click.argument("number", type=int)
def move(
    where: Where,
    to: str,
    wait: bool,
    yes: bool,
    number: int,
) -> None:
    """Have a partition's replicas be elsewhere, in its cell or another one.

    Example: cellctl partition move 3 --to c2n1,c2n2,c2n3
    """
    nodes = [name.strip() for name in to.split(",") if name.strip()]
    if not yes:
        click.confirm(f"move partition {number} to {', '.join(nodes)}?", abort=True)

    async def ask(operator: Operator) -> None:
        records = await operator.records()
        cells = {records.nodes[n].cell for n in nodes if n in records.nodes}
        if len(cells) > 1:
            raise InvalidRequest(
                f"{', '.join(nodes)} are in cells {', '.join(sorted(cells))}; the replicas of a partition have to be in one cell"
            )
        await operator.request_move(number, cells.pop() if cells else "", nodes, "cellctl partition move")

    operate(where, ask)
    note(f"partition {number} moves; see: cellctl rebalance status")
    if wait:
        sys.exit(wait_until_done(where, {number}))


@click.command()
@waiting_options
@click.option("--at", default=None, help="The point to split at, 16 hexadecimal digits; else the middle.")
@wait_option
@yes_option
@click.argument("number", type=int)
def split(where: Where, at: str | None, wait: bool, yes: bool, number: int) -> None:
    """Make two of a partition, live; both stay where it is. Example: cellctl partition split 3"""
    try:
        point = None if at is None else int(at, 16)
    except ValueError:
        raise InvalidRequest(f"--at {at!r} is not a hexadecimal number") from None
    if not yes:
        click.confirm(f"split partition {number}? There is no way back", abort=True)
    wanted = operate(where, lambda o: o.request_split(number, point, "cellctl partition split"))
    note(f"partition {number} is to be split at {wanted.at:016x}; the upper part will be {wanted.child}")
    if not wait:
        return
    deadline = time.monotonic() + where.timeout_s
    while True:
        table = topology(where)
        rows = {row["id"]: row for row in partition_rows(table, node_statuses(table))}
        if wanted.child in rows and all(rows[p]["leader"] for p in (number, wanted.child)):
            note(f"done: {wanted.child} is led by {rows[wanted.child]['leader']}")
            return
        if time.monotonic() > deadline:
            note("it is not done yet; the cluster continues with it")
            sys.exit(1)
        time.sleep(SPLIT_POLL_S)


@click.command()
@waiting_options
@wait_option
@yes_option
@click.argument("old")
@click.argument("new")
def replace(
    where: Where,
    wait: bool,
    yes: bool,
    old: str,
    new: str,
) -> None:
    """Everything that OLD holds is to be held by NEW, of the same cell; OLD is drained and may be dead. What OLD is given
    meanwhile, or gets back, is asked for too, once that has ended.

    With the same name twice: what the node held with the store that it had is to be held by the one that it has
    now. That happens by itself too, a few partitions at a time.

    Example: cellctl node replace c1n2 c1n4
    """
    if not yes:
        click.confirm(f"move all replicas of {old} to {new}?", abort=True)
    deadline = time.monotonic() + where.timeout_s
    asked: set[int] = set()
    while True:
        found = operate(where, lambda o: o.replace_node(old, new, f"node replace {old} {new}"))
        under_way = found.moving | found.busy
        if old == new and not (asked or under_way or found.stuck):
            raise InvalidRequest(
                f"{old} has the store that the records of its partitions name: there is nothing to replace"
            )
        if found.moving - asked or not asked:
            note(f"{len(found.moving - asked)} partitions move from {old} to {new}")
        asked |= found.moving
        if not wait or not under_way or time.monotonic() > deadline:
            break
        if code := wait_until_done(where, under_way, deadline):
            sys.exit(code)
    for p in sorted(found.busy):
        note(f"partition {p} moves to {old}, or back; when that has ended, do the same again")
    for p, why in sorted(found.stuck.items()):
        note(f"partition {p} stays on {old}: {why}")
    if found.busy or found.stuck:
        sys.exit(1)
