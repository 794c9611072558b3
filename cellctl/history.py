"""``cellctl history``: every election and every step of a move, with its cause."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict
from typing import Any

import click

from cellctl.connect import Where, cluster_options, topology, unknown_partition, with_etcd
from cellctl.output import output_option, print_data, print_table
from metastore.coordination.interface import Coordinator
from metastore.fields import BadRecord
from metastore.layout import HistoryRecord, Layout
from metastore.logs import epoch_text


def read_history(where: Where) -> list[HistoryRecord]:
    """The oldest first; of one moment by partition and epoch; without records that are not valid. Raises
    CoordinationUnavailable."""

    async def work(etcd: Coordinator, cluster: str) -> list[HistoryRecord]:
        _, kvs = await etcd.range(Layout(cluster).history_root)
        found = []
        for kv in kvs:
            with contextlib.suppress(BadRecord):
                found.append(HistoryRecord.from_json(kv.value))
        return found

    return sorted(with_etcd(where, work), key=lambda e: (e.at_ms, e.partition, e.epoch))


def plain(event: HistoryRecord) -> dict[str, Any]:
    return asdict(event) | {"replicas": list(event.replicas)}


def clock(at_ms: int) -> str:
    """Local time, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000)) + f".{at_ms % 1000:03d}"


@click.command()
@cluster_options
@output_option
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="The last so many of all."
)
@click.argument("partitions", type=int, nargs=-1)
def history(where: Where, output: str, limit: int, partitions: tuple[int, ...]) -> None:
    """Every election and move, the last one last, with its cause; of each partition the last 32 terms.

    Example: cellctl history 3
    """
    table = topology(where)
    for p in partitions:
        if p not in table.partitions:
            raise unknown_partition(p, table.partitions)
    events = [e for e in read_history(where) if not partitions or e.partition in partitions][-limit:]
    if output != "table":
        print_data(output, [plain(e) for e in events])
    else:
        print_table(
            ("when", "partition", "epoch", "what", "leader", "replicas", "cause"),
            [
                (
                    clock(e.at_ms),
                    e.partition,
                    epoch_text(e.epoch),
                    e.kind,
                    e.leader,
                    f"{e.cell} {','.join(e.replicas)}",
                    e.cause,
                )
                for e in events
            ],
        )
    sys.exit(0 if events else 1)
