"""New histories (R19): ``cellctl partition new-generation``, and what ``snapshot restore`` does before it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

import click

from cellctl.connect import Where, topology, unknown_partition, waiting_options
from cellctl.moving import yes_option
from cellctl.operate import Operator
from cellctl.output import note
from cellctl.rebalance import operate
from cellctl.records import Records
from cellctl.status import node_statuses, partition_rows
from metastore.errors import InvalidRequest, Unavailable
from metastore.history import MAX_GENERATIONS, generation_of
from metastore.layout import ConfigRecord

POLL_S = 0.2


def known_generations(where: Where, records: Records) -> dict[int, int]:
    """Partition -> the generation that its record and its replicas know of, the higher one."""
    found = {p: config.generation for p, (_, config) in records.configs.items()}
    for view in node_statuses(topology(where)).values():
        for part in view["partitions"] if view else []:
            found[part["id"]] = max(found.get(part["id"], 0), generation_of(part["version"]))
    return found


def check_generation(generation: int) -> int:
    """Raises InvalidRequest."""
    if not 0 < generation < MAX_GENERATIONS:
        raise InvalidRequest(
            f"generation {generation} is not within 1 and {MAX_GENERATIONS - 1}: a partition's history can be changed that "
            "often; to go on, export the records into a new cluster"
        )
    return generation


def with_children(
    named: Collection[int], before: Collection[int], configs: Mapping[int, tuple[str, ConfigRecord]]
) -> frozenset[int]:
    """The partitions ``named``, and all that was split off them, and off that, since there were those of ``before``. A
    partition that is named is there, as all are: no record of one ever goes."""
    found = set(named)
    grown = True
    while grown:
        fresh = {
            p
            for p, (_, config) in configs.items()
            if p not in found and p not in before and config.parent is not None and config.parent[0] in found
        }
        found |= fresh
        grown = bool(fresh)
    return frozenset(found)


def until_unchanged(
    read: Callable[[], frozenset[int]], carry_out: Callable[[frozenset[int]], None]
) -> frozenset[int]:
    """Carry something out for a set of partitions that may grow meanwhile: again and again, until a whole pass leaves the
    set as it found it, which is returned. ``carry_out`` passes over those that have it already."""
    partitions = read()
    while True:
        carry_out(partitions)
        found = read()
        if found == partitions:
            return found
        partitions = found


def begin_generation(
    where: Where, named: Collection[int], generation: int, cause: str, records: Records
) -> frozenset[int]:
    """Have the partitions ``named``, of ``records``, go on in ``generation``, and what is split off them meanwhile; wait until
    all of them do, and say which. Raises InvalidRequest, Unavailable."""
    check_generation(generation)
    deadline = time.monotonic() + where.timeout_s

    def read() -> frozenset[int]:
        return with_children(named, records.configs, operate(where, lambda o: o.records()).configs)

    def carry_out(partitions: frozenset[int]) -> None:
        async def begin(operator: Operator) -> None:
            await operator.begin_generation(sorted(partitions), generation, cause)

        operate(where, begin)
        while left := _not_yet(where, partitions, generation):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"partitions {', '.join(map(str, left[:10]))} have not begun generation {generation} yet; see: "
                    "cellctl status"
                )
            time.sleep(POLL_S)

    return until_unchanged(read, carry_out)


def _not_yet(where: Where, partitions: frozenset[int], generation: int) -> list[int]:
    """Those that have not begun it, or whose leader knows of a child that etcd does not know yet: what was split off
    before the leader began the generation is not in it, and is found in etcd once the leader knows of no such child."""
    table = topology(where)
    rows = {row["id"]: row for row in partition_rows(table, node_statuses(table))}
    return [
        p
        for p in sorted(partitions)
        if p not in rows
        or rows[p]["health"] not in ("ok", "degraded")
        or generation_of(rows[p]["version"]) < generation
        or rows[p]["unrecorded"] is not None
    ]


@click.command("new-generation")
@waiting_options
@yes_option
@click.argument("numbers", type=int, nargs=-1)
def new_generation(where: Where, yes: bool, numbers: tuple[int, ...]) -> None:
    """Have partitions, or all, refuse every version of before: ETags, resume tokens, lock tokens. Records stay. What is
    split off them meanwhile does the same.

    Example: cellctl partition new-generation 3
    """
    records = operate(where, lambda o: o.records())
    for number in numbers:
        if number not in records.configs:
            raise unknown_partition(number, records.configs)
    wanted = sorted(set(numbers)) or sorted(records.configs)
    known = known_generations(where, records)
    generation = check_generation(max(max(known.values()), max(known[p] for p in wanted) + 1))
    what = f"partitions {', '.join(map(str, wanted))}" if numbers else f"all {len(wanted)} partitions"
    if not yes:
        click.confirm(
            f"{what}: watches end, locks are lost, conditions on versions read before fail; go on?",
            abort=True,
        )
    done = begin_generation(where, wanted, generation, "cellctl partition new-generation", records)
    if more := sorted(done.difference(wanted)):
        what += f", and {', '.join(map(str, more))}, split off meanwhile,"
    note(f"{what} are in generation {generation}")
