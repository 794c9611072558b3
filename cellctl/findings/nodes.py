"""Of nodes: who is down, whose store is another's, who is slow, who runs what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cellctl.findings.seen import Finding, Seen

#: of one node, as others remember: fewer may be one bad moment
LAPSES = 2
CLOCK_OFF_MS = 1000
OVERLAY_PART = 0.5


def nodes_that_are_down(seen: Seen) -> Iterator[Finding]:
    for name, view in sorted(seen.statuses.items()):
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
                "read its log; repair the disk and restart it, or replace it",
            )


def stores(seen: Seen) -> Iterator[Finding]:
    """R13: old copies, clones, replaced stores; and members whose stores are gone."""
    for name, view in seen.up():
        identity = view["identity"]
        if identity["state"] == "refused":
            yield Finding(
                "error",
                f"node {name}",
                f"it serves nothing: {identity['why']}",
                "it lacks what was acknowledged since; its partitions have one replica less",
                identity["do"],
            )
        elif identity["state"] == "starting" and identity["why"]:
            yield Finding(
                "error",
                f"node {name}",
                f"it waits: {identity['why']}",
                "two processes under one name, or on one store, must not both serve",
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
            found = seen.statuses.get(name)
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


def stalls(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        if view["stalls"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"its loop stood still {view['stalls']} times, for up to {view['worst_stall_ms']} ms",
                "a leader whose loop is blocked for suspect_after_ms is replaced",
                "give it a processor of its own; or raise suspect_after_ms above that",
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
        found = seen.statuses.get(name)
        if node.level < records.level and (found is None or found["identity"]["state"] != "refused"):
            yield Finding(
                "error",
                f"node {name}",
                f"its build supports feature levels up to {node.level}, and the cluster is at {records.level}",
                "it serves nothing: other nodes may write entries that it cannot read",
                f"start it with a build that supports level {records.level}; if it will not come back: cellctl node remove {name}",
            )
    if records.supported() > records.level:
        yield Finding(
            "warning",
            "cluster",
            f"it is at feature level {records.level}, and every node supports {records.supported()}",
            "features of the later levels are not used; until the level is raised, nodes can go back to their earlier build",
            "when none is to go back any more: cellctl features raise",
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
                "raise max_connections, or find which client opens so many",
            )


def routers(seen: Seen) -> Iterator[Finding]:
    if seen.router_error:
        yield Finding(
            "error",
            "router",
            seen.router_error,
            "clients cannot reach it over HTTP",
            "start it, or give another one with --router",
        )
