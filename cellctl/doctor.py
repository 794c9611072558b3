"""``cellctl doctor``: what is wrong or about to be, why that matters, and what to do. ``findings`` is pure."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click

from cellctl.connect import (
    Where,
    cluster_options,
    etcd_endpoints,
    fetch_figure,
    fetch_json,
    router_url,
    topology,
)
from cellctl.history import read_history
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.plan import THRESHOLD, balance
from cellctl.rebalance import operate
from cellctl.records import Records
from cellctl.status import node_views, partition_rows
from metastore.coordination.etcd_members import EtcdMember, ailments, ask_members
from metastore.errors import MetastoreError
from metastore.layout import HistoryRecord
from metastore.namespaces import MAX_NAMESPACES, NEARLY_FULL

FLAP_WINDOW_MS = 600_000
FLAP_ELECTIONS = 4
#: of one node, as others remember: fewer may be one bad moment
LAPSES = 2
LAG_ENTRIES = 1000
#: of the lease's time to live, when it was renewed
MARGIN_PART = 0.25
CLOCK_OFF_MS = 1000
SYNC_SLOW_US = 50_000
DISK_PART = 0.10
STATE_PART = 0.80
OVERLAY_PART = 0.5
SNAPSHOT_LONG_S = 600

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``what`` was seen, ``why`` it matters, what to ``do``."""

    level: Level
    about: str
    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a diagnosis is made from. ``records`` and ``history``: None = etcd does not answer; ``asked_ms``:
    when the nodes were asked, on this machine's clock, between these two."""

    views: Mapping[str, dict[str, Any] | None]
    cells: Mapping[str, str]
    rows: Sequence[dict[str, Any]]
    asked_ms: tuple[int, int]
    records: Records | None = None
    history: Sequence[HistoryRecord] | None = None
    router_error: str = ""
    #: that have a policy
    namespaces: int = 0
    #: and how many may, by the router's setting
    max_namespaces: int = MAX_NAMESPACES
    members: Sequence[EtcdMember] = ()

    def up(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, view in sorted(self.views.items()):
            if view is not None:
                yield name, view


def nodes_that_are_down(seen: Seen) -> Iterator[Finding]:
    for name, view in sorted(seen.views.items()):
        if view is None:
            yield Finding(
                "error",
                f"node {name}",
                "it does not answer",
                "its partitions have one replica less; with another lost they may have no quorum",
                f"start it, or: cellctl node replace {name} OTHER",
            )
        elif view["failed"]:
            yield Finding(
                "error",
                f"node {name}",
                f"it has stopped itself: {view['failed']}",
                "it does not trust its disk or itself any more (R14)",
                "read its log; mend the disk and restart it, or replace it",
            )


def stores(seen: Seen) -> Iterator[Finding]:
    """R13: old copies, clones, replaced stores; and members whose stores are gone."""
    for name, view in seen.up():
        identity = view["identity"]
        if identity["state"] == "refused":
            yield Finding(
                "error",
                f"node {name}",
                f"it takes part in nothing: {identity['why']}",
                "it lacks what was acknowledged since; its partitions have one replica less",
                identity["do"],
            )
        elif identity["state"] == "starting" and identity["why"]:
            yield Finding(
                "error",
                f"node {name}",
                f"it waits: {identity['why']}",
                "two processes under one name, or on one store, must not both take part",
                "stop one of the two",
            )
        if identity["accused"]:
            yield Finding(
                "error",
                f"node {name}",
                f"peers do not let it in: {identity['accused']}",
                "what they know of its store may be out of date, or older than what the store remembers of itself",
                "if it does not end once they reach etcd, stop the node, set its store aside (--discard-store) and start it",
            )
        for peer, what in sorted(identity["lacking"].items()):
            yield Finding(
                "error",
                f"node {peer}",
                f"as {name} sees it, it has less than it acknowledged: {what}",
                "its store is an old copy, or its disk lost what it had synced; it counts in no quorum",
                f"look at {peer}'s log and /v1/status; stop it, set its store aside (--discard-store), start it",
            )
    lost: dict[str, list[int]] = {}
    for row in seen.rows:
        for name in row["missing"]:
            found = seen.views.get(name)
            if found is None or found["identity"]["state"] != "refused":
                lost.setdefault(name, []).append(row["id"])
    for name, partitions in sorted(lost.items()):
        yield Finding(
            "warning",
            f"node {name}",
            f"it has another store than {len(partitions)} partitions name: its replicas of them are gone",
            "they have one replica less until the new store is filled",
            "their leaders do that by themselves, a few at a time (cellctl rebalance status), unless changes are "
            "paused (cellctl resume) or a partition has no majority left (cellctl failover)",
        )


def partitions_that_ail(seen: Seen) -> Iterator[Finding]:
    for row in seen.rows:
        about = f"partition {row['id']}"
        if row["health"] in ("no leader", "no quorum"):
            yield Finding(
                "error",
                about,
                f"{row['health']}; of its replicas {', '.join(row['down']) or 'none'} do not answer",
                "it takes no writes and answers no linearizable reads",
                "start its nodes; when a majority is lost for good: cellctl failover --force "
                + str(row["id"]),
            )
        if len(row["replicas"]) < 3:
            yield Finding(
                "warning",
                about,
                f"it has {len(row['replicas'])} replicas",
                "it does not survive the loss of a node",
                f"cellctl partition move {row['id']} --to three nodes, or: cellctl rebalance plan",
            )
        slow = {n: lag for n, lag in row["lag"].items() if lag > LAG_ENTRIES and n not in row["down"]}
        for name, lag in sorted(slow.items()):
            yield Finding(
                "warning",
                about,
                f"{name} is {lag} entries behind",
                "it cannot take over until it has caught up, and counts in no quorum of new writes",
                "if it stays so, look at that node's disk, processor and network",
            )


def copies_that_rot(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        for row in view["partitions"]:
            if row["damaged"]:
                yield Finding(
                    "error",
                    f"partition {row['id']}",
                    f"its copy on {name} is damaged: {row['damaged']}",
                    "what is on that disk is not what was written; the copy serves nothing, and leads nothing",
                    "nothing, if others hold it: it is rebuilt from them; watch for more of it, and replace the disk",
                )
        if view["storage"]["rebuilt_total"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"{view['storage']['rebuilt_total']} damaged copies were rebuilt since it started",
                "its disk, memory or file system lost what it was told to keep",
                f"replace the disk: cellctl node replace {name} OTHER",
            )


def flapping(seen: Seen) -> Iterator[Finding]:
    since = seen.asked_ms[1] - FLAP_WINDOW_MS
    recent = [e for e in seen.history or () if e.at_ms >= since and e.kind in ("election", "claim")]
    count = Counter(e.partition for e in recent)
    for p, times in sorted(count.items()):
        if times >= FLAP_ELECTIONS:
            last = max((e for e in recent if e.partition == p), key=lambda e: e.at_ms)
            yield Finding(
                "warning",
                f"partition {p}",
                f"{times} elections in ten minutes, the last because: {last.cause}",
                "each stops writes for up to a second",
                f"cellctl history {p}; if nodes are just slow, raise suspect_after_ms: cellctl advise --pause …",
            )


def lapses(seen: Seen) -> Iterator[Finding]:
    worst: dict[str, list[int]] = {}
    for _, view in seen.up():
        for node, (times, seconds) in view.get("lapses", {}).items():
            worst[node] = max(worst.get(node, [0, 0]), [times, seconds])
    for node, (times, seconds) in sorted(worst.items()):
        if times >= LAPSES:
            yield Finding(
                "warning",
                f"node {node}",
                f"it was silent for so long that others took its leaders, {times} times lately",
                "each time its partitions wait for an election; "
                + (
                    f"it is the last to get leaders for {seconds} s"
                    if seconds
                    else "it may get leaders again"
                ),
                "look at its processor, disk and network; if it is just slow, raise suspect_after_ms: cellctl advise "
                "--measure",
            )


def leases(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        etcd, ttl = view["etcd"], float(view["settings"]["lease_ttl_s"])
        if etcd["untrusted"]:
            yield Finding(
                "error",
                f"node {name}",
                f"it distrusts etcd, because {etcd['untrusted']}",
                "reads and writes go on, and elections by claims (R16); nothing else can be changed",
                "see what its records would be: cellctl control rebuild; then: cellctl control rebuild --yes. If the etcd of before is "
                "still there, unharmed, give that back instead",
            )
        elif etcd["trouble"]:
            yield Finding(
                "error",
                f"node {name}",
                etcd["trouble"],
                "reads and writes go on; changes of the cluster do not, or late",
                "what it says; the members one by one are below",
            )
        elif not etcd.get("connected"):
            yield Finding(
                "warning",
                f"node {name}",
                "it does not reach etcd",
                "reads and writes go on; it hears of no change, and takes part in no election by etcd",
                "look at etcd and at the network between them",
            )
        elif etcd["watch_silent_s"] > ttl:
            yield Finding(
                "error",
                f"node {name}",
                f"its watch of etcd has heard nothing for {etcd['watch_silent_s']:.0f} s, though etcd answers",
                "it knows of no change since, and counts etcd as away (R16)",
                "look at the member of etcd that it follows, and at its own log",
            )
        elif not etcd["lease"]:
            yield Finding(
                "warning",
                f"node {name}",
                "it has no lease in etcd",
                "its leader keys are gone, so that others may campaign",
                "look at etcd's load and disk; it gets a new lease by itself",
            )
        elif etcd["lease_margin_s"] < MARGIN_PART * ttl:
            yield Finding(
                "warning",
                f"node {name}",
                f"its lease of {ttl:g} s was once renewed with only {etcd['lease_margin_s']:.2f} s left",
                "one slower answer, and its leader keys go",
                "raise lease_ttl_s, or give etcd a disk of its own",
            )


def etcd_members(seen: Seen) -> Iterator[Finding]:
    for about, what, why, do in ailments(seen.members):
        yield Finding("error", about, what, why, do)


def stalls(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        if view["stalls"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"its loop stood still {view['stalls']} times, for up to {view['worst_stall_ms']} ms",
                "a leader that stands still for suspect_after_ms is replaced",
                "give it a processor of its own; or raise suspect_after_ms above that",
            )


def disks(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        disk, about = view["disk"], f"node {name}"
        if disk.get("full"):
            yield Finding(
                "error",
                about,
                f"its disk is full: {disk['free_bytes'] >> 20} MiB are free",
                "it takes no entries any more; with a majority like that nothing can be written, not even deletes",
                "make room on its disk",
            )
        elif disk.get("low"):
            yield Finding(
                "error",
                about,
                f"{disk['room_bytes'] >> 20} MiB may be added to its state, {disk['free_bytes'] >> 20} MiB of its disk are free; its "
                f"low-water mark is {disk['low_mark_bytes'] >> 20} MiB",
                "it leads nothing while others have room; with a majority like that writes that add data get 507",
                "free some of the disk, enlarge it, delete records, or move partitions away; if it is the map that is "
                "full, raise map_size_gib",
            )
        elif disk["free_bytes"] < DISK_PART * disk["total_bytes"]:
            yield Finding(
                "warning",
                about,
                f"{disk['free_bytes'] / disk['total_bytes']:.0%} of its disk is free",
                "below the low-water mark (disk_low_mib) writes that add data are refused",
                "free some, enlarge it, or move partitions away",
            )
        in_use = disk["state_bytes"] - disk.get("state_free_bytes", 0)
        if in_use > STATE_PART * disk["state_limit_bytes"]:
            yield Finding(
                "warning",
                about,
                f"its state takes {in_use / disk['state_limit_bytes']:.0%} of map_size_gib",
                "when it is nearly full, writes that add data are refused",
                "raise map_size_gib (address space only) and restart it",
            )
        for pin in view.get("snapshots", ()):
            if pin["seconds"] > SNAPSHOT_LONG_S:
                yield Finding(
                    "warning",
                    about,
                    f"it has been sending a snapshot of partition {pin['partition']} to {pin['to']} for "
                    f"{pin['seconds'] // 60} minutes",
                    "until that ends, the file of its state grows with every write, and it never shrinks",
                    "look at who takes it; snapshot_max_s and snapshot_min_kib_s end it",
                )
        sync_us = view["storage"]["log_last_sync_us"]
        if sync_us > SYNC_SLOW_US:
            yield Finding(
                "warning",
                about,
                f"its last sync to disk took {sync_us / 1000:.0f} ms",
                "every write waits for the disks of a majority",
                "look for what else uses that disk",
            )


def clocks(seen: Seen) -> Iterator[Finding]:
    before, after = seen.asked_ms
    for name, view in seen.up():
        off = max(before - view["clock_ms"], view["clock_ms"] - after, 0)
        if off > CLOCK_OFF_MS:
            yield Finding(
                "warning",
                f"node {name}",
                f"its wall clock is {off / 1000:.1f} s off this machine's",
                "nothing hangs on wall clocks here (R15); logs and history are hard to read",
                "have it run NTP",
            )


def mixtures(seen: Seen) -> Iterator[Finding]:
    versions = Counter(view["version"] for _, view in seen.up())
    if len(versions) > 1:
        yield Finding(
            "warning",
            "cluster",
            "versions differ: " + ", ".join(f"{v} on {n} nodes" for v, n in sorted(versions.items())),
            "that is meant for the time of an upgrade only",
            "go on with the rolling restart",
        )
    by_cell: dict[str, dict[str, dict[str, Any]]] = {}
    for name, view in seen.up():
        by_cell.setdefault(seen.cells.get(name, ""), {})[name] = view["settings"]
    for cell, settings in sorted(by_cell.items()):
        for key in sorted({k for s in settings.values() for k in s}):
            values = {name: s.get(key) for name, s in settings.items()}
            if len(set(values.values())) > 1:
                yield Finding(
                    "warning",
                    f"cell {cell}",
                    f"{key} differs: {', '.join(f'{n} {v}' for n, v in sorted(values.items()))}",
                    "leaders and followers of a cell judge each other by it",
                    "set the same on all nodes of the cell",
                )


def feature_levels(seen: Seen) -> Iterator[Finding]:
    records = seen.records
    if records is None:
        return
    for name, node in sorted(records.nodes.items()):
        found = seen.views.get(name)
        if node.level < records.level and (found is None or found["identity"]["state"] != "refused"):
            yield Finding(
                "error",
                f"node {name}",
                f"its build supports feature levels up to {node.level}, and the cluster is at {records.level}",
                "it takes part in nothing: others may write what it cannot read",
                f"start it with a build that supports level {records.level}; if it is gone for good: cellctl node remove {name}",
            )
    if records.supported() > records.level:
        yield Finding(
            "warning",
            "cluster",
            f"it is at feature level {records.level}, and every node supports {records.supported()}",
            "what came with the later levels is not used; as long as it is so, nodes can go back to their earlier build",
            "when none is to go back any more: cellctl features raise",
        )


def balances(seen: Seen) -> Iterator[Finding]:
    if seen.records is None:
        return
    view = seen.records.view()
    now = balance(view)
    if now.cell_spread > 1 + THRESHOLD and len(view.cells) > 1:
        fair = len(view.partitions) / len(view.cells)
        if max(now.cells.values()) - fair >= 1 or now.cell_spread == float("inf"):
            yield Finding(
                "warning",
                "cluster",
                f"cells hold {', '.join(f'{c} {n}' for c, n in sorted(now.cells.items()))} partitions",
                "the fullest cell is the limit of all",
                "cellctl rebalance plan --out plan.json",
            )
    if now.dispersion < 1:
        yield Finding(
            "warning",
            "cluster",
            f"{1 - now.dispersion:.0%} of the partitions have two replicas in one zone though others are free",
            "a zone's loss could take their quorum",
            "cellctl rebalance plan --out plan.json",
        )
    leads = Counter(row["leader"] for row in seen.rows if row["leader"])
    for cell in {n.cell for n in seen.records.nodes.values()}:
        names = [n for n in seen.records.nodes if seen.records.nodes[n].cell == cell and seen.views.get(n)]
        held = [n for n in names if any(n in row["replicas"] for row in seen.rows)]
        counts = {n: leads[n] for n in held if n not in seen.records.drained}
        uneven = bool(counts) and max(counts.values()) * len(counts) > 2 * sum(counts.values())
        if uneven and max(counts.values()) - min(counts.values()) > 2 and not seen.records.paused:
            yield Finding(
                "warning",
                f"cell {cell}",
                f"leaders are uneven: {', '.join(f'{n} {c}' for n, c in sorted(counts.items()))}",
                "a leader does several times the work of a follower",
                "it evens out by itself within minutes, unless leader_spread_s is 0; or: cellctl switchover",
            )


def left_over(seen: Seen) -> Iterator[Finding]:
    if seen.records is None:
        yield Finding(
            "warning",
            "etcd",
            "it does not answer from here",
            "reads and writes go on; nothing can be changed, and elections go by claims (R16)",
            "look at etcd; give --etcd if it is elsewhere",
        )
        return
    if seen.records.paused:
        yield Finding(
            "warning",
            "cluster",
            "automatic changes are paused",
            "moves stand still, and leaders do not spread",
            "cellctl resume",
        )
    for name in sorted(seen.records.drained):
        held = sum(name in {n for n, _ in c.members()} for _, c in seen.records.configs.values())
        if held and not seen.records.moves:
            yield Finding(
                "warning",
                f"node {name}",
                f"it is draining, holds {held} replicas, and nothing moves them",
                "a drain says what is wanted; a plan carries it out",
                "cellctl rebalance plan --out plan.json; cellctl rebalance apply plan.json",
            )


def records_in_etcd(seen: Seen) -> Iterator[Finding]:
    """What etcd has that makes no sense, by itself or together."""
    bad: dict[str, str] = {}
    for _, view in seen.up():
        bad |= view["etcd"].get("records", {}).get("bad", {})
    records = seen.records
    for key, why in sorted((bad if records is None else records.bad).items()):
        yield Finding(
            "error",
            f"record {key}",
            f"it makes no sense: {why}",
            "it is left out, and what was known of it before holds; who has known nothing of it does without",
            f"mend it, or remove it if nothing needs it: etcdctl del $'{key}'",
        )
    if records is None:
        return
    # where a record makes no sense the others leave a gap, and only nodes know what fits
    aside = {p for _, view in seen.up() for p in view["etcd"].get("records", {}).get("aside", ())}
    for p in sorted((aside & records.configs.keys()).union(records.misfits())):
        cell, config = records.configs[p]
        yield Finding(
            "error",
            f"partition {p}",
            f"its record, in cell {cell}, has the range {config.lo:016x} to {config.hi:016x}, which is others'",
            "nodes and routers go by the others, and nothing is held or looked for in this one",
            f"remove its record if it should not be there (config/{cell}/{p:05d}), or mend the others'",
        )
    for lo, hi in records.gaps():
        yield Finding(
            "error",
            "cluster",
            f"no partition's record covers the points from {lo:016x} to {hi:016x}",
            "whoever knew the partition goes on with it; who starts anew finds nobody for those keys, and nobody can be "
            "elected",
            "put the record back as it was (a node's /v1/topology tells)",
        )
    for name, partitions in records.missing_nodes().items():
        yield Finding(
            "error",
            f"node {name}",
            f"{len(partitions)} partitions name it, and there is no record of it",
            "whoever knew where it is goes on with that; who starts anew does not find it",
            "restart it: it registers itself",
        )


def memory(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        clients = view["clients"]
        if clients["refused_total"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"{clients['refused_total']} connections were refused",
                "clients fall back to other ways, or fail",
                "raise max_connections, or find who opens so many",
            )


def routers(seen: Seen) -> Iterator[Finding]:
    if seen.router_error:
        yield Finding(
            "error",
            "router",
            seen.router_error,
            "clients over HTTP find nobody there",
            "start it, or give another one with --router",
        )


def crowding(seen: Seen) -> Iterator[Finding]:
    if seen.namespaces >= NEARLY_FULL * seen.max_namespaces:
        yield Finding(
            "warning",
            "cluster",
            f"{seen.namespaces} namespaces have a policy; at {seen.max_namespaces} no more are made",
            "every node, router and client knows all of them, so their number is bounded (max_namespaces of the routers)",
            "remove those that are not needed (cellctl namespace list, delete), or use prefixes within one",
        )
    full: dict[str, float] = {}
    for name, view in seen.up():
        full |= dict(view.get("namespaces", {}).get("fullest", ()))  # a build from before has none
        told = view.get("topology", {})
        if told and told["bytes"] >= NEARLY_FULL * told["limit_bytes"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"the topology has {told['bytes']} bytes; from {told['limit_bytes']} on new clients are told nothing",
                f"{told['namespaces']} namespaces and {told['partitions']} partitions are told to each of them at once",
                "remove namespaces that are not needed, split no more partitions, or spread the data over two clusters",
            )
    for name, part in sorted(full.items()):
        yield Finding(
            "warning",
            f"namespace {name}",
            f"it holds {part:.0%} of its quota",
            "at all of it writes that add to it are refused with 507",
            f"delete records of it, or raise its bounds: cellctl namespace set {name} --max-records N --max-bytes N",
        )


CHECKS: tuple[Callable[[Seen], Iterator[Finding]], ...] = (
    routers,
    nodes_that_are_down,
    stores,
    partitions_that_ail,
    copies_that_rot,
    flapping,
    lapses,
    leases,
    etcd_members,
    stalls,
    disks,
    clocks,
    mixtures,
    feature_levels,
    balances,
    left_over,
    records_in_etcd,
    memory,
    crowding,
)


def findings(seen: Seen) -> list[Finding]:
    """Everything found, errors first."""
    return sorted((f for check in CHECKS for f in check(seen)), key=lambda f: f.level != "error")


def look(where: Where) -> Seen:
    """Ask everybody. Raises Unavailable when nobody tells the topology."""
    table = topology(where)
    before = time.time_ns() // 1_000_000
    views = node_views(table)
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
    rows, namespaces = partition_rows(table, views), len(table.namespaces)
    most = MAX_NAMESPACES if limit is None else int(limit)
    return Seen(views, cells, rows, asked, records, events, router_error, namespaces, most, members)


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
