"""New histories (R19): ``cellctl partition new-generation``, and what ``snapshot restore`` does before it writes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from cellctl.connect import Where, topology, unknown_partition, waiting_options
from cellctl.moving import yes_option
from cellctl.operate import Operator
from cellctl.output import note
from cellctl.rebalance import operate
from cellctl.status import node_views, partition_rows
from metastore.errors import InvalidRequest, Unavailable
from metastore.history import MAX_GENERATIONS, generation_of

POLL_S = 0.2


def known_generations(where: Where) -> dict[int, int]:
    """Partition -> the generation that its record and its replicas know of, the higher one."""
    table = topology(where)
    records = operate(where, lambda o: o.records())
    found = {p: config.generation for p, (_, config) in records.configs.items()}
    for view in node_views(table).values():
        for part in view["partitions"] if view else []:
            found[part["id"]] = max(found.get(part["id"], 0), generation_of(part["version"]))
    return found


def check_generation(generation: int) -> int:
    """Raises InvalidRequest."""
    if not 0 < generation < MAX_GENERATIONS:
        raise InvalidRequest(
            f"generation {generation} is not within 1 and {MAX_GENERATIONS - 1}: a partition's history can be changed so "
            "often and no more; to begin anew, export the records into a new cluster"
        )
    return generation


def begin_generation(where: Where, partitions: Sequence[int], generation: int, cause: str) -> None:
    """Have these partitions go on in ``generation``, and wait until all of them do. Raises InvalidRequest,
    Unavailable."""
    check_generation(generation)

    async def begin(operator: Operator) -> None:
        await operator.begin_generation(partitions, generation, cause)

    operate(where, begin)
    deadline = time.monotonic() + where.timeout_s
    while True:
        table = topology(where)
        rows = {row["id"]: row for row in partition_rows(table, node_views(table))}
        left = [
            p
            for p in partitions
            if p not in rows
            or rows[p]["health"] not in ("ok", "degraded")
            or generation_of(rows[p]["version"]) < generation
        ]
        if not left:
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"partitions {', '.join(map(str, left[:10]))} have not begun generation {generation} yet; see: cellctl status"
            )
        time.sleep(POLL_S)


@click.command("new-generation")
@waiting_options
@yes_option
@click.argument("numbers", type=int, nargs=-1)
def new_generation(where: Where, yes: bool, numbers: tuple[int, ...]) -> None:
    """Have partitions, or all, refuse every version of before: ETags, resume tokens, lock tokens. Records stay.

    Example: cellctl partition new-generation 3
    """
    table = topology(where)
    for number in numbers:
        if number not in table.partitions:
            raise unknown_partition(number, table)
    wanted = sorted(set(numbers)) or sorted(table.partitions)
    known = known_generations(where)
    generation = check_generation(max(max(known.values()), max(known[p] for p in wanted) + 1))
    what = f"partitions {', '.join(map(str, wanted))}" if numbers else f"all {len(wanted)} partitions"
    if not yes:
        click.confirm(
            f"{what}: watches end, locks are lost, conditions on versions read before fail; go on?",
            abort=True,
        )
    begin_generation(where, wanted, generation, "cellctl partition new-generation")
    note(f"{what} are in generation {generation}")
