"""``cellctl advise``: from what a business asks for to settings, with the arithmetic. ``advise`` is pure.

The model, times in ms (docs/cellctl.md). A leader that dies is missed

    at once          when its host says so (a killed process: connections are reset)
    after S          when nothing says so (power, network): suspect_after_ms since it was last heard

and its successor writes once it has been elected and the grants that its followers gave the old one (R8) are
over: ``max(G, missed + election) + activation``. G is grant_ms with both clocks' error. An election is the settle
step of the second in line, its jitter, a round of pre-votes, and a transaction of etcd; activation is the
sealing of a majority and one entry on a majority's disks. A pause of P does no harm while S > P + H.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import click

from cellctl.connect import Where, cluster_options, topology, with_etcd
from cellctl.leaders import hand_over
from cellctl.namespace import duration
from cellctl.output import note, output_option, print_data, print_table, say
from cellctl.status import node_statuses, partition_rows
from metastore.coordination.interface import Coordinator
from metastore.errors import InvalidRequest, MetastoreError
from metastore.layout import Layout

BEATS = 6
GRANT_PART = 0.9
TICK_MS = 20
SETTLE_MS = 50
CLOCK_ERROR = 2 * 500e-6
MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS = 20, 1000
MIN_LEASE_S = 5.0
#: suspect_after_ms goes no further; a pause and a heartbeat fit into it
MAX_SUSPECT_MS = 60_000
MAX_PAUSE_MS = MAX_SUSPECT_MS * (BEATS - 1) // BEATS
#: reads of etcd and hand-overs to measure
SAMPLES = 20
HANDOVERS = 8


@dataclass(frozen=True, slots=True)
class Costs:
    """What one step takes, in ms: as supposed for a local network and SSDs, or as measured."""

    round_trip_ms: float = 1.0
    sync_ms: float = 5.0
    etcd_ms: float = 20.0
    worst_stall_ms: float = 0.0
    #: a whole planned hand-over; None = not measured
    handover_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings, the times to expect with them, how those come about, and what to be warned of. ``met``:
    whether everything asked for can be had at once."""

    settings: dict[str, Any]
    replicas: int
    mode: str
    failover_killed_ms: float
    failover_silent_ms: float
    arithmetic: list[str]
    warnings: list[str]
    met: bool


def advise(
    rto_ms: float, pause_ms: float, rpo_ms: float, survive: int, costs: Costs, *, without_etcd: bool = True
) -> Advice:
    """Raises InvalidRequest for what is not valid."""
    if rto_ms <= 0 or pause_ms < 0 or rpo_ms < 0 or not 0 <= survive <= 3:
        raise InvalidRequest("--rto has to be above 0, --pause and --rpo at least 0, --survive 0 to 3")
    if pause_ms > MAX_PAUSE_MS:
        raise InvalidRequest(f"--pause of {pause_ms / 1000:g} s is above {MAX_PAUSE_MS / 1000:g} s")
    election = SETTLE_MS * 1.5 + costs.round_trip_ms + costs.etcd_ms
    activation = 2 * (costs.sync_ms + costs.round_trip_ms)
    # the longest silence that the pause asks for, or, with none asked for, what half the RTO leaves
    wanted = pause_ms * BEATS / (BEATS - 1) if pause_ms else max(rto_ms / 2 - election - activation, 0)
    wanted = min(wanted, MAX_SUSPECT_MS)
    heartbeat = min(MAX_HEARTBEAT_MS, max(MIN_HEARTBEAT_MS, round(wanted / BEATS)))
    suspect = min(MAX_SUSPECT_MS, max(round(wanted), 3 * heartbeat, round(pause_ms) + heartbeat))
    grant = max(3 * heartbeat, round(suspect * GRANT_PART))
    lease = max(MIN_LEASE_S, round(3 * suspect / 1000, 1))
    grant_over = grant * (1 + CLOCK_ERROR)
    killed = max(grant_over, election) + activation
    silent = max(grant_over, suspect + TICK_MS + election) + activation
    replicas = 2 * survive + 1
    arithmetic = [
        f"suspect_after_ms = pause + heartbeat = {pause_ms:.0f} + {heartbeat} -> {suspect}"
        if pause_ms
        else f"suspect_after_ms = what half the RTO leaves -> {suspect}",
        f"heartbeat_ms = suspect / {BEATS} = {heartbeat};  grant_ms = {GRANT_PART} suspect = {grant}",
        f"lease_ttl_s = the more of {MIN_LEASE_S:g} and 3 suspect = {lease:g}",
        f"election = settle {SETTLE_MS * 1.5:.0f} + round trip {costs.round_trip_ms:.1f} + etcd {costs.etcd_ms:.1f} = {election:.0f} ms",
        f"activation = 2 (sync {costs.sync_ms:.1f} + round trip {costs.round_trip_ms:.1f}) = {activation:.0f} ms",
        f"process killed: max(grants {grant_over:.0f}, election {election:.0f}) + activation {activation:.0f} = {killed:.0f} ms",
        f"power or network lost: max(grants {grant_over:.0f}, silence {suspect} + tick {TICK_MS} + election {election:.0f}) "
        f"+ activation {activation:.0f} = {silent:.0f} ms",
        f"replicas = 2 * {survive} + 1 = {replicas}",
    ]
    warnings = []
    met = silent <= rto_ms
    if not met:
        need = suspect + TICK_MS + election + activation
        warnings.append(
            f"an RTO of {rto_ms:.0f} ms cannot be had with pauses of {pause_ms:.0f} ms: a leader that may be silent so long "
            f"is replaced after {silent:.0f} ms; ask for --rto {need / 1000:.1f}s, or for less --pause"
        )
    if rpo_ms > 0:
        warnings.append(
            "every write waits for the disks of a majority whatever the RPO: none is lost while a majority's disks "
            "live, and there is no faster mode to be had for a larger one"
        )
    if survive == 0:
        warnings.append("one replica: when its node is lost the partition is gone until it comes back")
    if costs.worst_stall_ms > suspect * 0.8:
        warnings.append(
            f"it will flap: a node here stood still for {costs.worst_stall_ms:.0f} ms, and leaders are replaced after {suspect}"
        )
    if 10 * costs.sync_ms > suspect:
        warnings.append(
            f"it may flap: a sync takes {costs.sync_ms:.0f} ms, and ten in a row are longer than suspect_after_ms = {suspect}"
        )
    if heartbeat < 2 * TICK_MS:
        warnings.append(
            f"it may flap: heartbeat_ms = {heartbeat} is hardly above tick_ms = {TICK_MS}; a busy processor delays one"
        )
    settings = {
        "heartbeat_ms": heartbeat,
        "grant_ms": grant,
        "suspect_after_ms": suspect,
        "settle_ms": SETTLE_MS,
        "lease_ttl_s": lease,
        "claim_without_etcd": without_etcd,
    }
    mode = "claims without etcd (R16)" if without_etcd else "elections by etcd only"
    return Advice(settings, replicas, mode, killed, silent, arithmetic, warnings, met)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def measure(where: Where) -> Costs:
    """On this cluster: linearizable reads of etcd, the nodes' last syncs and worst stalls, and some leaders
    handed over to another node and back. Raises Unavailable."""

    async def work(etcd: Coordinator, cluster: str) -> float:
        times = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await etcd.get(Layout(cluster).meta)
            times.append((time.perf_counter() - began) * 1000)
        return median(times)

    etcd_ms = with_etcd(where, work)
    table = topology(where)
    statuses = node_statuses(table)
    up = [view for view in statuses.values() if view is not None]
    syncs = [view["storage"]["log_last_sync_us"] / 1000 for view in up]
    stalls = [float(view["worst_stall_ms"]) for view in up]
    took = []
    for row in [r for r in partition_rows(table, statuses) if r["health"] == "ok"][:HANDOVERS]:
        to = next((n for n in row["replicas"] if n != row["leader"] and n not in row["down"]), None)
        if to is None:
            continue
        try:
            took.append(float(hand_over(table, row["id"], row["leader"], to)["ms"]))
            took.append(float(hand_over(table, row["id"], to, row["leader"])["ms"]))
        except MetastoreError as e:
            note(f"partition {row['id']}: {e.message}")
    return Costs(
        round_trip_ms=1.0,
        sync_ms=round(max(syncs, default=5.0), 2),
        etcd_ms=round(etcd_ms, 2),
        worst_stall_ms=max(stalls, default=0.0),
        handover_ms=median(took) if took else None,
    )


def _duration(_: Any, __: Any, text: str) -> int:
    return duration(text)


@click.command("advise")
@cluster_options
@output_option
@click.option(
    "--rto", callback=_duration, default="3s", show_default=True, help="Longest time without writes."
)
@click.option(
    "--pause", callback=_duration, default="500ms", show_default=True, help="Longest pause to sit out."
)
@click.option("--rpo", callback=_duration, default="0", show_default=True, help="Writes that may be lost.")
@click.option(
    "--survive", type=click.IntRange(0, 3), default=1, show_default=True, help="Nodes lost at once."
)
@click.option(
    "--without-etcd/--only-by-etcd",
    default=True,
    show_default=True,
    help="Whether a leader is replaced while etcd is away.",
)
@click.option("--measure", "measured", is_flag=True, help="On this cluster; leaders change places for it.")
def advise_(
    where: Where,
    output: str,
    rto: int,
    pause: int,
    rpo: int,
    survive: int,
    without_etcd: bool,
    measured: bool,
) -> None:
    """Settings for what a business asks for, and what to expect. Exit code 1 when it cannot all be had.

    Example: cellctl advise --rto 3s --pause 2s --rpo 0
    """
    costs = measure(where) if measured else Costs()
    advice = advise(rto, pause, rpo, survive, costs, without_etcd=without_etcd)
    if output != "table":
        print_data(output, asdict(advice) | {"costs": asdict(costs), "measured": measured})
    else:
        rows = [(name, str(value).lower()) for name, value in advice.settings.items()]
        print_table(("setting", "value"), [*rows, ("replicas", advice.replicas), ("mode", advice.mode)])
        say("\n" + "\n".join(advice.arithmetic) + "\n")
        say(f"expect: {advice.failover_killed_ms / 1000:.2f} s without writes when a process is killed,")
        say(f"        {advice.failover_silent_ms / 1000:.2f} s when a machine or its network is lost")
        if costs.handover_ms is not None:
            say(f"measured here: a hand-over takes {costs.handover_ms:.0f} ms (median), and loses nothing")
        elif not measured:
            say("with a disk and a network as supposed; --measure takes this cluster's")
    for warning in advice.warnings:
        note(f"warning: {warning}")
    sys.exit(0 if advice.met else 1)
