"""``cellctl doctor``: what is wrong or about to be, why that matters, and what to do (``cellctl.findings``)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import asdict

import click

from cellctl.connect import Where, cluster_options, etcd_endpoints, router_url, topology
from cellctl.findings import findings
from cellctl.findings.seen import Seen
from cellctl.history import read_history
from cellctl.http_client import fetch_figure, fetch_json
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.rebalance import operate
from cellctl.records import Records
from cellctl.status import node_statuses, partition_rows
from metastore.coordination.etcd_members import EtcdMember, ask_members
from metastore.errors import MetastoreError
from metastore.layout import HistoryRecord
from metastore.namespaces import MAX_NAMESPACES


def look(where: Where) -> Seen:
    """Ask all nodes. Raises Unavailable when none answers with the topology."""
    table = topology(where)
    before = time.time_ns() // 1_000_000
    statuses = node_statuses(table)
    asked = before, time.time_ns() // 1_000_000
    records: Records | None = None
    events: list[HistoryRecord] | None = None
    try:
        records = operate(where, lambda o: o.records())
        events = read_history(where)
    except MetastoreError as e:
        note(f"etcd: {e.message}")
    members: list[EtcdMember] = []
    with contextlib.suppress(MetastoreError):  # nobody says where it is
        members = asyncio.run(ask_members(etcd_endpoints(where)))
    limit: float | None = None
    try:
        fetch_json(router_url(where) + "/livez", 2.0)
        router_error = ""
        limit = fetch_figure(router_url(where) + "/metrics", "metastore_router_namespaces_limit", 2.0)
    except MetastoreError as e:
        router_error = e.message
    cells = {name: record.cell for name, record in table.nodes.items()}
    rows, namespaces = partition_rows(table, statuses), len(table.namespaces)
    most = MAX_NAMESPACES if limit is None else int(limit)
    return Seen(statuses, cells, rows, asked, records, events, router_error, namespaces, most, members)


@click.command()
@cluster_options
@output_option
def doctor(where: Where, output: str) -> None:
    """Look for what is wrong or about to be. Exit code 1 for warnings, 2 for errors. Example: cellctl doctor"""
    found = findings(look(where))
    if output != "table":
        print_data(output, [asdict(f) for f in found])
    elif found:
        for f in found:
            say(f"{f.level}: {f.about}: {f.what}", fg="red" if f.level == "error" else "yellow")
            say(f"  why  {f.why}\n  do   {f.do}")
    else:
        say("nothing is wrong")
    if found and output == "table":
        print_table(
            ("errors", "warnings"), [tuple(sum(f.level == x for f in found) for x in ("error", "warning"))]
        )
    sys.exit(2 if any(f.level == "error" for f in found) else 1 if found else 0)
