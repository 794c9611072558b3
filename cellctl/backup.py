"""``cellctl snapshot save|show|restore``: everything in one file (cellctl.snapshot_file).

Each partition is as of one moment, with every write that was answered before ``save`` asked for it; the
partitions are of moments of their own. Restored records are written anew by their keys, so that the cluster
may have any shape. Their versions, what is left of TTLs and the fencing tokens seen belong to the old one; so that none of the
old versions is taken for one of the new, all partitions begin a generation above that of the file first (R19).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from cellctl.connect import Where, make_client, topology, unknown, waiting_options
from cellctl.generations import begin_generation, check_generation, known_generations
from cellctl.http_client import answer_of
from cellctl.jsonl import write
from cellctl.leaders import node_url
from cellctl.namespace import with_admin
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.rebalance import operate
from cellctl.snapshot_file import MAGIC, read_frames, sent_frames, write_frame
from cellctl.status import node_statuses, partition_rows
from metastore.admin.namespaces import RESERVED, NamespaceAdmin
from metastore.client import AsyncClient, AsyncNamespace
from metastore.client.codecs import BYTES
from metastore.errors import ConditionFailed, InvalidRequest, MetastoreError, Unavailable
from metastore.history import generation_of
from metastore.keys import split_storage_key
from metastore.namespaces import Policy, policy_from_plain
from metastore.records import unpack_record
from metastore.topology import TopologyTable

TRIES: Final = 20
RETRY_S: Final = 0.5
LOOK_S: Final = 30.0


# --- save -------------------------------------------------------------------------------------------


def partition_frames(url: str, timeout_s: float) -> Iterator[tuple[str, Any]]:
    """What a leader sends of a partition. Raises InvalidRequest, Unavailable when it does not send all of it."""
    with answer_of(url, timeout_s) as response:
        yield from sent_frames(response, url)


def save_partition(out: BinaryIO, table: TopologyTable, leader: str, p: int, timeout_s: float) -> int:
    """How many records. Raises MetastoreError; ``out`` is then as it was."""
    at = out.tell()
    try:
        records = 0
        for kind, value in partition_frames(
            f"{node_url(table, leader)}/v1/partitions/{p}/snapshot", timeout_s
        ):
            if kind == "rows":
                write_frame(out, "rows", value)
                records += len(value)
            elif kind == "done":
                if value["records"] != records:
                    raise Unavailable(
                        f"partition {p}: {records} of {value['records']} records arrived; export again"
                    )
                write_frame(out, "done", {"partition": p, "records": records})
            else:
                write_frame(out, "part", value)
        return records
    except MetastoreError:
        out.seek(at)
        out.truncate()
        raise


@click.group()
def snapshot() -> None:
    """Everything in one file, and back."""


@snapshot.command()
@waiting_options
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
def save(where: Where, path: Path) -> None:
    """Save all records and policies to a file. Example: cellctl snapshot save monday.snapshot"""
    table = topology(where)
    deadline = time.monotonic() + where.timeout_s
    fresh = path.with_name(path.name + ".part")
    total = 0
    with fresh.open("wb+") as out:
        out.write(MAGIC)
        namespaces = [[name, policy.to_plain()] for name, policy in sorted(table.namespaces.items())]
        head = {
            "cluster": table.cluster,
            "at_ms": time.time_ns() // 1_000_000,
            "partitions": len(table.partitions),
            "namespaces": namespaces,
        }
        write_frame(out, "head", head)
        ranges = {p.id: (p.lo, p.hi) for p in table.in_order()}
        with click.progressbar(table.in_order(), label="partitions", file=sys.stderr) as bar:
            for placement in bar:
                total += _save_one(where, out, placement.id, deadline)
        if {p.id: (p.lo, p.hi) for p in topology(where).in_order()} != ranges:
            raise Unavailable("a partition was split during the export; try again", retry_after_s=1)
        write_frame(out, "end", {"partitions": len(ranges), "records": total})
        out.flush()
    fresh.replace(path)
    note(f"{total} records of {len(ranges)} partitions, {path.stat().st_size} bytes")


def _save_one(where: Where, out: BinaryIO, p: int, deadline: float) -> int:
    """From its present leader; again while that changes."""
    for attempt in range(TRIES):
        try:
            table = topology(where)
            leader = table.partitions[p].leader
            if attempt:  # its table may be behind: ask the nodes themselves
                leader = next(
                    r["leader"] for r in partition_rows(table, node_statuses(table)) if r["id"] == p
                )
            if leader is None:
                raise Unavailable(f"partition {p} has no leader")
            return save_partition(out, table, leader, p, max(1.0, deadline - time.monotonic()))
        except MetastoreError:
            if attempt == TRIES - 1 or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
    raise AssertionError


# --- looking at it, and back ------------------------------------------------------------------------


def survey(path: Path) -> dict[str, Any]:
    """What a file holds; every frame of it is checked. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    held: dict[str, list[int]] = {}
    records = parts = generation = 0
    with path.open("rb") as source:
        for kind, value in read_frames(source, path):
            if kind == "head":
                found = value
            elif kind == "rows":
                records += len(value)
                for storage_key, packed in value:
                    sums = held.setdefault(split_storage_key(storage_key)[0], [0, 0])
                    sums[0] += 1
                    sums[1] += len(packed)
            elif kind == "part":
                generation = max(generation, generation_of(value.get("version", 0)))
            elif kind == "done":
                parts += 1
            elif kind == "end" and (value["records"], value["partitions"]) != (records, parts):
                raise InvalidRequest(
                    f"{path} is incomplete: it holds {records} records of {parts} partitions, and its end says {value}"
                )
    if found["partitions"] != parts:
        raise InvalidRequest(f"{path} is incomplete: it holds {parts} of {found['partitions']} partitions")
    names = sorted({*held, *(name for name, _ in found["namespaces"])} - {RESERVED})
    policies = dict(found["namespaces"])
    found["generation"] = generation
    found["namespaces"] = {
        name: {
            "records": held.get(name, [0, 0])[0],
            "bytes": held.get(name, [0, 0])[1],
            "policy": policies.get(name),
        }
        for name in names
    }
    return found


path_argument = click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@snapshot.command()
@output_option
@path_argument
def show(output: str, path: Path) -> None:
    """What a file holds, every byte checked. Example: cellctl snapshot show monday.snapshot"""
    found = survey(path)
    if output != "table":
        print_data(output, found)
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["at_ms"] / 1000))
    say(f"cluster {found['cluster']}, {found['partitions']} partitions, saved {at}\n")
    print_table(
        ("namespace", "records", "bytes", "policy"),
        [
            (name, row["records"], row["bytes"], "own" if row["policy"] else "default")
            for name, row in found["namespaces"].items()
        ],
    )


@snapshot.command()
@waiting_options
@click.option("--namespace", "-n", "only", multiple=True, help="Only this one; may be given again.")
@click.option("--merge", is_flag=True, help="Also into namespaces that hold records; those of the file win.")
@click.option("--only-absent", is_flag=True, help="As --merge, and what is there wins.")
@click.option(
    "--generation", type=int, help="Begin this one, if the lost cluster may have been in the next already."
)
@click.option(
    "--same-history",
    is_flag=True,
    help="The file was saved from this cluster, which has lost nothing: versions of before stay good.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 2048), default=256, show_default=True, help="Writes in flight."
)
@path_argument
def restore(
    where: Where,
    only: tuple[str, ...],
    merge: bool,
    only_absent: bool,
    generation: int | None,
    same_history: bool,
    concurrency: int,
    path: Path,
) -> None:
    """Write a file's policies and records to a cluster of any shape. It may be run again after a failure,
    with --merge. Example: cellctl snapshot restore monday.snapshot

    All partitions of the cluster begin a new generation of versions: ETags, resume tokens and lock tokens of the saved
    cluster, and of this one so far, are refused.
    """
    if generation is not None:
        check_generation(generation)
    topology(where)  # what is told of no cluster should not be told after the whole file was read
    found = survey(path)  # the whole file is checked before anything is written
    held = found["namespaces"]
    for name in only:
        if name not in held:
            raise unknown("namespace", name, held)
    wanted = {name: row for name, row in held.items() if not only or name in only}
    policies = {name: policy_from_plain(row["policy"]) for name, row in wanted.items() if row["policy"]}

    async def prepare(admin: NamespaceAdmin, until: float) -> None:
        if not (merge or only_absent):
            await _refuse_full(admin, wanted)
        for name, policy in policies.items():
            await _have_policy(admin, name, policy, until, replace=not only_absent)

    following = None if same_history else _next_generation(where, found["generation"], generation)
    asyncio.run(with_admin(where, prepare))
    if following is not None:
        records = operate(where, lambda o: o.records())
        begin_generation(where, records.configs, following, "cellctl snapshot restore", records)
    sys.exit(asyncio.run(_restore(where, path, set(wanted), only_absent, concurrency)))


def _next_generation(where: Where, saved: int, wanted: int | None) -> int:
    """One that neither the file nor this cluster has had. Raises InvalidRequest."""
    known = known_generations(where, operate(where, lambda o: o.records()))
    least = max(saved, *known.values()) + 1
    if wanted is not None and wanted < least:
        raise InvalidRequest(
            f"--generation {wanted} is too low: the file and the cluster have used generations up to {least - 1}; give {least} or more"
        )
    return check_generation(wanted or least)


async def _refuse_full(admin: NamespaceAdmin, names: Iterable[str]) -> None:
    for name in names:
        async for key, _ in AsyncNamespace(admin.dispatcher, name, LOOK_S, BYTES).scan(page=1):
            raise InvalidRequest(
                f"namespace {name} already holds records here, {key!r} for one; to import beside them, give --merge"
            )


async def _have_policy(
    admin: NamespaceAdmin, name: str, policy: Policy, until: float, *, replace: bool
) -> None:
    found = await admin.get(name)
    members = policy.to_plain()
    del members["ready"]
    if found is None or replace:
        await admin.put(name, members, until)


async def _restore(where: Where, path: Path, names: set[str], only_absent: bool, concurrency: int) -> int:
    done = kept = 0
    began = time.monotonic()
    problems: list[str] = []

    def records() -> Iterator[tuple[bytes, bytes]]:
        with path.open("rb") as source:
            for kind, value in read_frames(source, path):
                if kind == "rows":
                    yield from value

    rows = records()

    async def worker(client: AsyncClient) -> None:
        nonlocal done, kept
        for storage_key, packed in rows:
            name, key = split_storage_key(storage_key)
            if name not in names:
                continue
            try:
                await write(client, name, key, unpack_record(packed), only_absent)
                done += 1
            except ConditionFailed:
                kept += 1
            except MetastoreError as e:
                problems.append(f"{name}/{key}: {e.message}")
                if len(problems) > 1000:
                    return

    async with make_client(where) as client:
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
    took = time.monotonic() - began
    note(f"{done} records in {took:.1f} s ({done / max(took, 1e-9):,.0f} per second)")
    if kept:
        note(f"{kept} were there already and are as they were")
    for problem in problems[:10]:
        note(f"failed: {problem}")
    if problems:
        note(f"{len(problems)} failed; run it again with --merge" + " or more" * (len(problems) > 1000))
    return 2 if problems else 0
