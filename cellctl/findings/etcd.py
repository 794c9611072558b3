"""Of etcd: its members, the leases and watches of nodes, records that are not valid, or of what is gone."""

from __future__ import annotations

from collections.abc import Iterator

from cellctl.findings.seen import Finding, Seen
from metastore.coordination.etcd_members import ailments

#: of the lease's time to live, when it was renewed
MARGIN_PART = 0.25


def leases(seen: Seen) -> Iterator[Finding]:
    for name, view in seen.up():
        etcd, ttl = view["etcd"], float(view["settings"]["lease_ttl_s"])
        if etcd["untrusted"]:
            yield Finding(
                "error",
                f"node {name}",
                f"it distrusts etcd, because {etcd['untrusted']}",
                "reads and writes are served, and leaders are elected without etcd (R16); nothing else can be changed",
                "see what its records would be: cellctl control rebuild; then: cellctl control rebuild --yes. If the etcd of before is "
                "still there, unharmed, give that back instead",
            )
        elif etcd["trouble"]:
            yield Finding(
                "error",
                f"node {name}",
                etcd["trouble"],
                "reads and writes are served; changes of the cluster are late, or fail",
                "see its error; the members are listed below",
            )
        elif not etcd.get("connected"):
            yield Finding(
                "warning",
                f"node {name}",
                "it does not reach etcd",
                "reads and writes are served; the node sees no change of the records, and takes part in no election by etcd",
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


def left_over(seen: Seen) -> Iterator[Finding]:
    if seen.records is None:
        yield Finding(
            "warning",
            "etcd",
            "it does not answer from here",
            "reads and writes are served; no record can be changed, and leaders are elected without etcd (R16)",
            "look at etcd; give --etcd if it is elsewhere",
        )
        return
    if seen.records.paused:
        yield Finding(
            "warning",
            "cluster",
            "automatic changes are paused",
            "moves wait, and leaders are not balanced",
            "cellctl resume",
        )
    for name in sorted(seen.records.drained):
        held = sum(name in {n for n, _ in c.members()} for _, c in seen.records.configs.values())
        if held and not seen.records.moves:
            yield Finding(
                "warning",
                f"node {name}",
                f"it is draining, holds {held} replicas, and nothing moves them",
                "a drain only marks the cell or node; a plan moves its partitions",
                "cellctl rebalance plan --out plan.json; cellctl rebalance apply plan.json",
            )


def records_in_etcd(seen: Seen) -> Iterator[Finding]:
    """What etcd has that is not valid, by itself or together."""
    bad: dict[str, str] = {}
    for _, view in seen.up():
        bad |= view["etcd"].get("records", {}).get("bad", {})
    records = seen.records
    for key, why in sorted((bad if records is None else records.bad).items()):
        yield Finding(
            "error",
            f"record {key}",
            f"it is not valid: {why}",
            "it is left out, and its last valid state holds; a process that has not seen that has no such record",
            f"repair it, or remove it if nothing needs it: etcdctl del $'{key}'",
        )
    if records is None:
        return
    # where a record is not valid the others leave a gap, and only nodes know what fits
    aside = {p for _, view in seen.up() for p in view["etcd"].get("records", {}).get("aside", ())}
    for p in sorted((aside & records.configs.keys()).union(records.misfits())):
        cell, config = records.configs[p]
        yield Finding(
            "error",
            f"partition {p}",
            f"its record, in cell {cell}, has the range {config.lo:016x} to {config.hi:016x}, which is others'",
            "nodes and routers go by the others, and nothing is held or looked for in this one",
            f"remove its record if it should not be there (config/{cell}/{p:05d}), or repair the others'",
        )
    for lo, hi in records.gaps():
        yield Finding(
            "error",
            "cluster",
            f"no partition's record covers the points from {lo:016x} to {hi:016x}",
            "processes that knew the partition go on with it; those that start anew find no leader for those keys, and no leader can be "
            "elected",
            "put the record back as it was (a node's /v1/topology has it)",
        )
    for name, partitions in records.missing_nodes().items():
        yield Finding(
            "error",
            f"node {name}",
            f"{len(partitions)} partitions name it, and there is no record of it",
            "processes that knew where it is go on with that; those that start anew do not find it",
            "restart it: it registers itself",
        )
