"""What is wrong or about to be: pure checks of what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cellctl.findings.etcd import etcd_members, leases, left_over, records_in_etcd
from cellctl.findings.nodes import (
    clocks,
    feature_levels,
    lapses,
    memory,
    mixtures,
    nodes_that_are_down,
    routers,
    stalls,
    stores,
)
from cellctl.findings.partitions import balances, copies_that_rot, flapping, partitions_that_ail
from cellctl.findings.room import crowding, disks
from cellctl.findings.seen import Finding, Seen

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
