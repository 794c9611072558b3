"""``cellctl control``: etcd's records, rebuilt from the stores when etcd has lost them, and kept in a file."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import orjson

from cellctl.connect import Where, ask_each, cluster_options, topology, with_etcd
from cellctl.dev_files import write_atomically
from cellctl.http_client import fetch_json
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.rebuild import Etcd, Rebuild, Step, compute
from cellctl.reports import Report, report_from_plain
from metastore.coordination.interface import Coordinator, Put
from metastore.decoding import MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES, Undecodable, load_json, read_file
from metastore.errors import CoordinationUnknown, InvalidRequest, MetastoreError, Unavailable
from metastore.layout import Layout
from metastore.logs import epoch_text

FORMAT: Final = 1
MAX_STEPS: Final = 32
POLL_S: Final = 0.2
TRUST_S: Final = 30.0
Ask = Callable[[], list[Report]]


# --- what is done, without a word ------------------------------------------------------------------------------


async def read_etcd(coordinator: Coordinator, layout: Layout) -> Etcd:
    """Raises CoordinationUnavailable."""
    seen = await coordinator.peek(layout.lineage)
    _, kvs = await coordinator.range(layout.root)
    _, past = await coordinator.range(layout.history_root)
    return Etcd(seen.cluster_id, seen.revision, {kv.key: kv for kv in kvs}, frozenset(kv.key for kv in past))


async def carry_out(coordinator: Coordinator, rebuild: Rebuild) -> None:
    """Everything, and the lineage only after all the rest. Raises Unavailable when something has changed meanwhile, or etcd
    went away: what was written is no harm, and the same is to be done again."""
    *others, last = rebuild.steps
    slots = asyncio.Semaphore(MAX_STEPS)

    async def one(step: Step) -> None:
        async with slots:
            await _swap(coordinator, step)

    await asyncio.gather(*map(one, others))
    await _swap(coordinator, last)


async def _swap(coordinator: Coordinator, step: Step) -> None:
    again = f"record {step.what} has changed meanwhile: nothing is harmed; do the same again"
    try:
        if (await coordinator.txn(step.compares, step.ops)).succeeded:
            return
    except CoordinationUnknown:
        # decide by what is there, never by the lost answer
        op = step.ops[0]
        found = await coordinator.get(op.key)
        if (found.value if found is not None else None) == (op.value if isinstance(op, Put) else None):
            return
        raise Unavailable(again) from None
    raise Unavailable(again)


# --- asking ----------------------------------------------------------------------------------------------------


def ask_nodes(where: Where, https: Collection[str]) -> tuple[str, list[Report], dict[str, str]]:
    """The cluster's name; what the nodes at these addresses tell, and of the others why they do not."""
    table = topology(where)
    wanted = {name: record.http for name, record in table.nodes.items()} | {http: http for http in https}

    def ask(url: str) -> Report | str:
        try:
            return report_from_plain(fetch_json(f"{url}/v1/control", 5.0), table.cluster)
        except MetastoreError as e:
            return e.message

    answers = ask_each(wanted, ask)
    reports = {a.node.node: a for a in answers.values() if isinstance(a, Report)}
    return table.cluster, list(reports.values()), {n: a for n, a in answers.items() if isinstance(a, str)}


# --- commands --------------------------------------------------------------------------------------------------


@click.group()
def control() -> None:
    """The control plane's records in etcd: keep a copy, and rebuild them when etcd has lost them."""


@control.command()
@cluster_options
@output_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done; so it is without --yes too.")
@click.option("--without", type=int, multiple=True, metavar="P", help="A partition to leave out.")
@click.option("--node", "https", multiple=True, metavar="HOST:PORT", help="HTTP address of one more node.")
@click.option("--backup", type=click.Path(path_type=Path), default=None, help="Of cellctl control backup.")
@click.option("--yes", is_flag=True, help="Do it.")
def rebuild(
    where: Where,
    output: str,
    dry_run: bool,
    without: tuple[int, ...],
    https: tuple[str, ...],
    backup: Path | None,
    yes: bool,
) -> None:
    """Write etcd's records anew from what the nodes' stores hold, after etcd was lost, restored or replaced. Reads and
    writes go on meanwhile. Without --yes it only tells what it would do.

    Example: cellctl control rebuild --yes
    """
    kept = read_backup(backup) if backup is not None else None
    found: list[Report] = []

    async def work(etcd: Coordinator, cluster: str) -> Rebuild:
        layout = Layout(cluster)
        there = await read_etcd(
            etcd, layout
        )  # before the stores are asked: what changes after that is noticed
        _, reports, silent = await asyncio.to_thread(ask_nodes, where, https)
        for name, why in sorted(silent.items()):
            note(f"{name} does not tell: {why}")
        if kept is not None and kept.cluster != cluster:
            raise InvalidRequest(
                f"the backup is of cluster {kept.cluster!r}, not of {cluster!r}; give the backup of this cluster"
            )
        found.extend(reports)
        at_ms = int(time.time() * 1000)
        records = kept.below(layout) if kept is not None else None
        past = kept.past(layout) if kept is not None else None
        result = compute(layout, there, reports, without=without, backup=records, past=past, at_ms=at_ms)
        if result.needed and yes and not dry_run:
            await carry_out(etcd, result)
        return result

    result = with_etcd(where, work)
    _tell(result, output)
    if result.refused:
        raise Unavailable(
            f"nothing was written: {len(result.refused)} partitions cannot be rebuilt; start their nodes, or leave them out: "
            + " ".join(f"--without {p}" for p in sorted(result.refused))
        )
    if not result.needed:
        note(f"nothing to rebuild: none of the {len(found)} nodes that answer distrusts etcd")
        sys.exit(1)
    if dry_run or not yes:
        note("nothing was written; to do it: cellctl control rebuild --yes")
        return
    _wait_trusted(where, https)


def _tell(result: Rebuild, output: str) -> None:
    if output != "table":
        print_data(
            output,
            {
                "partitions": {
                    str(p): c.to_plain() | {"cell": cell} for p, (cell, c) in result.configs.items()
                },
                "kept": sorted(result.kept),
                "refused": {str(p): why for p, why in result.refused.items()},
                "left_out": result.left_out,
                "records": [step.what for step in result.steps],
                "notes": result.notes,
            },
        )
        return
    for text in result.notes:
        say(text)
    rows: list[tuple[Any, ...]] = [
        (p, cell, c.leader, epoch_text(c.epoch), " ".join(n for n, _ in c.members()), "")
        for p, (cell, c) in sorted(result.configs.items())
    ]
    rows += [(p, None, None, None, None, why) for p, why in sorted(result.refused.items())]
    rows += [(p, None, None, None, None, "left out") for p in result.left_out]
    if rows:
        print_table(("partition", "cell", "leader", "epoch", "replicas", ""), rows)
    if result.lineage is not None:
        say(f"{len(result.steps)} records; rebuilding number {result.lineage.number} of this cluster")


def _wait_trusted(where: Where, https: Collection[str]) -> None:
    """Until every node that answers trusts etcd."""
    deadline = time.monotonic() + min(where.timeout_s, TRUST_S)
    while True:
        _, reports, _ = ask_nodes(where, https)
        left = {r.node.node: r.untrusted for r in reports if r.untrusted}
        if not left:
            note("done: every node that answers trusts etcd; see: cellctl status, cellctl doctor")
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the records are written, and {', '.join(sorted(left))} does not trust etcd yet; its log says why. When it is "
                "because it had seen later records than the rebuilding knew: run the same command again"
            )
        time.sleep(POLL_S)


# --- a copy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backup:
    """A copy of etcd's records."""

    cluster: str
    cluster_id: str
    revision: int
    at_ms: int
    records: tuple[tuple[str, str], ...]

    def to_plain(self) -> dict[str, Any]:
        """With a checksum over all of it."""
        plain: dict[str, Any] = {
            "format": FORMAT,
            "cluster": self.cluster,
            "cluster_id": self.cluster_id,
            "revision": self.revision,
            "at_ms": self.at_ms,
            "records": self.records,
        }
        return plain | {"checksum": _checksum(plain)}

    def below(self, layout: Layout) -> Mapping[str, bytes]:
        """Records by key below the cluster's root."""
        root = layout.root
        return {k[len(root) :]: v.encode() for k, v in self.records if k.startswith(root)}

    def past(self, layout: Layout) -> Mapping[str, bytes]:
        """Events (``cellctl history``) by their keys."""
        return {k: v.encode() for k, v in self.records if k.startswith(layout.history_root)}


def _checksum(plain: Mapping[str, Any]) -> str:
    body = {k: v for k, v in plain.items() if k != "checksum"}
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def read_backup(path: Path) -> Backup:
    """Raises InvalidRequest when the file is none, or has been changed."""
    try:
        raw = load_json(read_file(path, MAX_DOCUMENT_BYTES), MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES)
        if raw["format"] != FORMAT:
            raise InvalidRequest(
                f"{path} is a backup of format {raw['format']!r:.20}; this version reads {FORMAT}"
            )
        if raw["checksum"] != _checksum(raw):
            raise InvalidRequest(
                f"{path} is damaged: it does not match its checksum; use another copy of the backup"
            )
        records = tuple((str(k), str(v)) for k, v in raw["records"])
        return Backup(
            str(raw["cluster"]), str(raw["cluster_id"]), int(raw["revision"]), int(raw["at_ms"]), records
        )
    except OSError as e:
        raise InvalidRequest(f"{path} cannot be read: {e.strerror}") from None
    except (Undecodable, KeyError, TypeError, ValueError, AttributeError) as e:
        raise InvalidRequest(
            f"{path} is not a backup of the control plane: {type(e).__name__}: {e}"[:300]
        ) from None


async def read_backup_of(coordinator: Coordinator, layout: Layout) -> Backup:
    """All records but those on a lease, which are true only for as long as it lives. Raises CoordinationUnavailable."""
    seen = await coordinator.peek(layout.lineage)
    revision, kvs = await coordinator.range(layout.root)
    _, past = await coordinator.range(layout.history_root)
    if not kvs:
        raise Unavailable(f"etcd has no cluster called {layout.cluster!r}")
    records = tuple((kv.key, kv.value.decode("utf-8", "replace")) for kv in [*kvs, *past] if not kv.lease)
    return Backup(layout.cluster, f"{seen.cluster_id:x}", revision, int(time.time() * 1000), records)


@control.command()
@cluster_options
@click.argument("file", type=click.Path(path_type=Path))
def backup(where: Where, file: Path) -> None:
    """Keep the control plane's records in a file: what `control rebuild --backup FILE` takes from it is what the nodes may
    not know (cells' settings, drained nodes, pauses).

    Example: cellctl control backup control.json
    """
    found = with_etcd(where, lambda etcd, cluster: read_backup_of(etcd, Layout(cluster)))
    write_atomically(file, found.to_plain())
    note(f"{len(found.records)} records as of revision {found.revision} are in {file}")
