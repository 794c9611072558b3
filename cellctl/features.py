"""``cellctl features``: which feature level the cluster has, and raising it once every node supports the next one."""

from __future__ import annotations

import click

from cellctl.connect import Where, cluster_options
from cellctl.moving import yes_option
from cellctl.output import note, output_option, print_data, print_table
from cellctl.rebalance import operate
from cellctl.records import Records, check_level


@click.group()
def features() -> None:
    """The feature level: what may be written that earlier builds cannot read."""


@features.command("show")
@cluster_options
@output_option
def show(where: Where, output: str) -> None:
    """The cluster's level, and up to which each node's build supports. Example: cellctl features show"""
    records = operate(where, lambda o: o.records())
    if output != "table":
        nodes = {name: node.level for name, node in sorted(records.nodes.items())}
        print_data(output, {"level": records.level, "supported": records.supported(), "nodes": nodes})
        return
    show_levels(records)
    note(f"the cluster is at feature level {records.level}; every node supports {records.supported()}")


def show_levels(records: Records) -> None:
    """A row of each node."""
    rows = [(name, node.cell, node.level) for name, node in sorted(records.nodes.items())]
    print_table(("node", "cell", "supports up to"), rows)


@features.command("raise")
@cluster_options
@click.option("--to", "level", type=int, default=None, help="Else the highest that every node supports.")
@click.option("--dry-run", is_flag=True, help="Show what each node supports, and what would be done.")
@yes_option
def raise_(where: Where, level: int | None, dry_run: bool, yes: bool) -> None:
    """Let the cluster write what came with a feature level. That is not taken back: builds that do not support the level
    cannot be used any more.

    Example: cellctl features raise --dry-run
    """
    records = operate(where, lambda o: o.records())
    wanted = records.supported() if level is None else level
    if dry_run:
        show_levels(records)
    if level is None and wanted <= records.level:
        note(
            f"nothing to do: the cluster is at feature level {records.level}, and not every node supports a higher one"
        )
        return
    check_level(records, wanted)
    if dry_run:
        note(
            f"the cluster would be raised from feature level {records.level} to {wanted}; no build below that could be used again"
        )
        return
    if not yes:
        click.confirm(
            f"Raise the cluster from feature level {records.level} to {wanted}? No build below that can be used again",
            abort=True,
        )
    operate(where, lambda o: o.raise_level(wanted))
    note(f"the cluster is at feature level {wanted}")
