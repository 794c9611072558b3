"""Of room: disks, states and quotas that fill."""

from __future__ import annotations

from collections.abc import Iterator

from cellctl.findings.seen import Finding, Seen
from metastore.namespaces import NEARLY_FULL

SYNC_SLOW_US = 50_000
DISK_PART = 0.10
STATE_PART = 0.80
SNAPSHOT_LONG_S = 600


def disks(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        disk, about = view["disk"], f"node {name}"
        if disk.get("full"):
            yield Finding(
                "error",
                about,
                f"its disk is full: {disk['free_bytes'] >> 20} MiB are free",
                "it accepts no entries any more; with a majority in this state nothing can be written, not even deletes",
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
                    "look at its receiver; snapshot_max_s and snapshot_min_kib_s end it",
                )
        sync_us = view["storage"]["log_last_sync_us"]
        if sync_us > SYNC_SLOW_US:
            yield Finding(
                "warning",
                about,
                f"its last sync to disk took {sync_us / 1000:.0f} ms",
                "every write waits for the disks of a majority",
                "look which other files use that disk",
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
                f"the topology has {told['bytes']} bytes; from {told['limit_bytes']} on new clients get no topology",
                f"{told['namespaces']} namespaces and {told['partitions']} partitions are sent to each of them at once",
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
