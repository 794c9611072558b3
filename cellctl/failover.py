"""``cellctl failover --force``: a partition whose quorum is lost for good goes on with what is left of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from cellctl.connect import Where, cluster_options, topology, unknown_partition
from cellctl.generations import check_generation
from cellctl.moving import yes_option
from cellctl.operate import Operator
from cellctl.output import note, output_option, print_data
from cellctl.rebalance import operate
from cellctl.status import node_statuses
from metastore.coordination.interface import Compare, Delete, Op, Put
from metastore.errors import InvalidRequest, Unavailable
from metastore.history import generation_of
from metastore.layout import ConfigRecord, HistoryRecord, first_epoch, term_of
from metastore.logs import epoch_text

POLL_S = 0.1


def survivors(
    p: int, members: tuple[tuple[str, str], ...], statuses: dict[str, dict[str, Any] | None]
) -> dict[str, dict[str, Any]]:
    """Member -> what it says of its replica, of those that answer with the store they are named by."""
    found: dict[str, dict[str, Any]] = {}
    for name, store in members:
        view = statuses.get(name)
        if view is not None and view["store_id"] == store:
            for part in view["partitions"]:
                if part["id"] == p:
                    found[name] = part
    return found


def longest(parts: dict[str, dict[str, Any]]) -> str:
    """Whose log is to be gone on with (R3's order); of equals the first by name. A damaged copy (R14) is the last choice."""
    return min(
        parts,
        key=lambda n: (bool(parts[n]["damaged"]), -parts[n]["last_epoch"], -parts[n]["last_index"], n),
    )


def split_off(
    p: int, configs: Mapping[int, tuple[str, ConfigRecord]], statuses: dict[str, dict[str, Any] | None]
) -> dict[int, tuple[int, int]]:
    """Child -> (epoch, index) of the entry of partition ``p`` that split it off (R18): by etcd's records, and by what any
    node says that has a copy of a child which etcd does not know yet."""
    parents = {
        part["id"]: part["parent"]
        for view in statuses.values()
        for part in (view["partitions"] if view else [])
        if part["parent"] is not None
    }
    parents |= {child: config.parent for child, (_, config) in configs.items() if config.parent is not None}
    return {child: (epoch, index) for child, (parent, epoch, index) in parents.items() if parent == p}


def check_target(
    p: int,
    config: ConfigRecord,
    target: str,
    parts: dict[str, dict[str, Any]],
    children: Mapping[int, tuple[int, int]],
) -> None:
    """Raises InvalidRequest when ``target`` cannot go on alone. An entry that split the partition is not undone (R18): routers,
    clients and nodes have parted with what is above the point for good, and the child may have acknowledged writes since.
    A log that ends before it would go on with rows that are the child's; one that has it carries it out. Nor does a
    child go on from a replica that has nothing of what it began with."""
    position = _position(parts[target])
    at = f"{target}'s log ends at entry {position[1]} of epoch {epoch_text(position[0])}"
    lost = ", ".join(sorted(n for n, _ in config.members() if n not in parts)) or "the others"
    way_out = (
        f"start one of the nodes that have it ({lost} may), or restore a snapshot into a new cluster: "
        "cellctl snapshot restore"
    )
    if parts[target]["damaged"]:
        raise InvalidRequest(
            f"partition {p}: the copy on {target} is damaged ({parts[target]['damaged']}), and can be rebuilt only from "
            f"another one; {way_out}"
        )
    if config.parent is not None and position < config.parent[1:]:
        raise InvalidRequest(
            f"partition {p} was split off partition {config.parent[0]}, and {target} has nothing of what it began with: "
            f"{at}, before entry {config.parent[2]} of epoch {epoch_text(config.parent[1])}; {way_out}"
        )
    for child, entry in sorted(children.items()):
        if position < entry:
            raise InvalidRequest(
                f"partition {p} was split at entry {entry[1]} of epoch {epoch_text(entry[0])}, and {at}, before that: "
                f"what lies above the point is partition {child}'s now, and a split is not undone; {way_out}"
            )


@click.command()
@cluster_options
@output_option
@click.option("--force", is_flag=True, help="Required: acknowledged writes may be lost.")
@click.option("--to", default="", help="The next leader; else whose log is longest.")
@yes_option
@click.argument("number", type=int)
def failover(where: Where, output: str, force: bool, to: str, yes: bool, number: int) -> None:
    """Go on with one replica of a partition whose majority is lost for good. Says what may be lost, and asks.

    Example: cellctl failover --force 3
    """
    table = topology(where)
    if number not in table.partitions:
        raise unknown_partition(number, table.partitions)
    records = operate(where, lambda o: o.records())
    if number not in records.configs and not records.bad:
        raise Unavailable(f"etcd has no record of partition {number} yet: it is being split off; look again")
    cell, config = records.config(number)
    statuses = node_statuses(table)
    parts = survivors(number, config.members(), statuses)
    lost = [name for name, _ in config.members() if name not in parts]
    if any(part["role"] == "active" and part["health"] == "ok" for part in parts.values()):
        raise InvalidRequest(
            f"partition {number} has a leader that serves; to change it: cellctl switchover {number}"
        )
    if not parts:
        raise Unavailable(
            f"partition {number}: none of {', '.join(lost)} answers; its records are on their disks: start one of "
            "them, or restore a snapshot"
        )
    if 2 * len(parts) > len(config.replicas) and config.joint is None:
        raise InvalidRequest(
            f"partition {number}: {', '.join(sorted(parts))} are a majority and elect a leader by themselves, without "
            f"any loss; see: cellctl history {number}"
        )
    target = to or longest(parts)
    if target not in parts:
        raise InvalidRequest(
            f"{target} holds no replica that answers; those that do: {', '.join(sorted(parts))}"
        )
    best = longest(parts)
    check_target(number, config, target, parts, split_off(number, records.configs, statuses))
    note(
        f"partition {number} would continue with {target} alone, whose log ends at entry {parts[target]['last_index']} of epoch "
        f"{epoch_text(parts[target]['last_epoch'])}.\n"
        f"Acknowledged writes that only {', '.join(lost)} hold would be lost: up to the last ones before these were. "
        + (
            f"{best} has more than {target}.\n"
            if best != target and _position(parts[best]) > _position(parts[target])
            else "\n"
        )
        + f"What {', '.join(lost)} hold of it is deleted when they come back. It begins a new generation of versions: ETags, "
        "resume tokens and lock tokens of before are refused (history_changed)."
    )
    generation = check_generation(
        1 + max(config.generation, *(generation_of(p["version"]) for p in parts.values()))
    )
    if not force:
        raise InvalidRequest("nothing was done; to go on with that loss, give --force")
    if not yes:
        click.confirm("go on?", abort=True)

    async def forced(operator: Operator) -> int:
        layout = operator.layout
        key = layout.config(cell, number)
        known = await operator.etcd.get(key)
        changed = Unavailable(f"partition {number} has changed meanwhile; look again")
        if known is None or ConfigRecord.from_json(known.value) != config:
            raise changed
        member = next(m for m in config.members() if m[0] == target)
        epoch = first_epoch(term_of(config.epoch) + 1)
        new = replace(
            config, epoch=epoch, leader=target, replicas=(member,), joint=None, generation=generation
        )
        cause = f"cellctl failover --force, without {', '.join(lost)}"
        event = HistoryRecord(
            number, epoch, cell, target, (target,), "forced", cause, int(time.time() * 1000)
        )
        ops: list[Op] = [
            Put(key, new.to_json()),
            Delete(layout.leader(cell, number)),
            Delete(layout.move(number)),
            Put(layout.history(number, epoch), event.to_json()),
        ]
        if not (await operator.etcd.txn([Compare.mod_revision_is(key, known.mod_revision)], ops)).succeeded:
            raise changed
        return epoch

    epoch = operate(where, forced)
    deadline = time.monotonic() + where.timeout_s
    while True:
        view = node_statuses(table).get(target)
        mine = [part for part in view["partitions"] if part["id"] == number] if view else []
        if mine and mine[0]["role"] == "active" and mine[0]["epoch"] >= epoch:
            break
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{target} is named leader of partition {number} in etcd and does not serve yet; see its log"
            )
        time.sleep(POLL_S)
    if output != "table":
        print_data(
            output, {"partition": number, "leader": target, "epoch": mine[0]["epoch"], "without": lost}
        )
    note(
        f"partition {number} is led by {target} alone; next: cellctl partition move {number} --to three nodes"
    )
    note(
        f"locks in other partitions whose tokens fence writes here are refused until theirs begin generation {generation} "
        "too: cellctl partition new-generation PARTITIONS"
    )
    sys.exit(0)


def _position(part: dict[str, Any]) -> tuple[int, int]:
    return part["last_epoch"], part["last_index"]
