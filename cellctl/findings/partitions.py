"""Of partitions: who ails, whose copies rot, what flaps, what is out of balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cellctl.findings.seen import Finding, Seen
from cellctl.plan import THRESHOLD, balance

FLAP_WINDOW_MS = 600_000
FLAP_ELECTIONS = 4
LAG_ENTRIES = 1000


def partitions_that_ail(seen: Seen) -> Iterator[Finding]:
    for row in seen.rows:
        about = f"partition {row['id']}"
        if row["health"] in ("no leader", "no quorum"):
            yield Finding(
                "error",
                about,
                f"{row['health']}; of its replicas {', '.join(row['down']) or 'none'} do not answer",
                "it accepts no writes and answers no linearizable reads",
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
                    "that disk returns other bytes than were written; the copy serves nothing, and leads nothing",
                    "nothing, if others hold it: it is rebuilt from them; watch for more of it, and replace the disk",
                )
        if view["storage"]["rebuilt_total"]:
            yield Finding(
                "warning",
                f"node {name}",
                f"{view['storage']['rebuilt_total']} damaged copies were rebuilt since it started",
                "its disk, memory or file system lost what was synced to it",
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
        names = [n for n in seen.records.nodes if seen.records.nodes[n].cell == cell and seen.statuses.get(n)]
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
