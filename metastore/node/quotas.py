"""Which namespaces are at their quota: counted over all nodes, within seconds, not to the record.

Each node publishes what it leads of each namespace that has a quota. A leader refuses what would grow a namespace whose
sum is at its bound (partition.policies).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from typing import Any, Final, Protocol

from metastore.namespaces import NEARLY_FULL, Policy
from metastore.node.ports import HasPartitions, HasProcess, HasTopology
from metastore.schema import Usage

#: so many namespaces that are near to their quota are named in status
MAX_TOLD: Final = 20


class Here(HasPartitions, HasProcess, HasTopology, Protocol):
    """What this needs of the node."""


class Quotas:
    """See the module."""

    def __init__(self, node: Here) -> None:
        self.node = node
        #: node -> what it has published
        self.others: dict[str, Usage] = {}
        #: namespaces at their quota: (of records, of bytes)
        self.full: dict[str, tuple[bool, bool]] = {}
        #: namespaces that are near to it, and what part of it they hold
        self.near: dict[str, float] = {}
        #: what this node leads of namespaces with a quota: never changed, but replaced
        self._local: Usage = {}
        #: of which partitions, each at which entry
        self._counted: list[tuple[int, int]] = []
        #: number of the newest change of the topology that was looked at
        self._upto = -1
        #: namespaces of which others have published something else
        self._news: set[str] = set()

    def _sums(self, held: list[dict[bytes, list[int]]], names: Collection[str]) -> Usage:
        """What there is of these namespaces."""
        usage: Usage = {}
        for sums in held:
            few = sums if len(sums) < len(names) else [name.encode() for name in names]
            for raw in few:
                name, found = raw.decode("ascii", "replace"), sums.get(raw)
                if found is not None and name in names:
                    total = usage.setdefault(name, [0, 0])
                    total[0] += found[0]
                    total[1] += found[1]
        return usage

    def _recount_local(self, changed: set[str]) -> set[str]:
        """Bring ``_local`` up to date; namespaces of which it says something else than before, or that are among
        ``changed``."""
        limited = self.node.topology.limited
        led = (
            [(p, partition) for p, partition in self.node.partitions.items() if partition.role == "active"]
            if limited
            else []
        )
        counted = [(p, partition.applied) for p, partition in led]
        held = [partition.machine.usage for _, partition in led]
        before = self._local
        if counted != self._counted:
            self._counted = counted
            local = self._sums(held, limited.keys())
            news = {name for name in local.keys() | before.keys() if local.get(name) != before.get(name)}
        elif changed:
            found = self._sums(held, changed & limited.keys())
            news = {name for name in changed if found.get(name) != before.get(name)}
            local = {name: sums for name, sums in before.items() if name not in news} if news else before
            local |= {name: found[name] for name in news & found.keys()}
        else:
            return changed
        if news:
            self._local = local
        return changed | news

    def held(self, limit: int) -> tuple[Usage, int]:
        """What this node leads of every namespace, the largest first, and how many more there are."""
        sums: dict[bytes, list[int]] = {}
        for partition in self.node.partitions.values():
            if partition.role == "active":
                for raw, (records, size) in partition.machine.usage.items():
                    found = sums.setdefault(raw, [0, 0])
                    found[0] += records
                    found[1] += size
        ordered = heapq.nlargest(limit, sums.items(), key=lambda item: item[1][1])
        return {raw.decode("ascii", "replace"): held for raw, held in ordered}, len(sums) - len(ordered)

    def published(self, node: str, usage: Usage | None) -> None:
        """Another node's usage, as etcd has it; None = gone."""
        if node == self.node.me.node:
            return
        old, new = self.others.pop(node, {}), usage or {}
        self._news |= {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if usage is not None:
            self.others[node] = usage

    def recount(self) -> Usage:
        """Which namespaces are full now, and which nearly; also what to publish, the same object while nothing has changed. Only
        what has changed is looked at."""
        table = self.node.topology
        rows = None if self._upto < 0 else table.changes.after(self._upto)
        self._upto = table.changes.number
        if rows is None:
            changed = {*table.limited, *self.full, *self.near}
        else:
            changed = {str(name) for kind, name in rows if kind == "namespaces"}
        news, self._news = self._news, set()
        for name in self._recount_local(changed | news):
            self._judge(name, table.limited.get(name))
        return self._local

    def _judge(self, name: str, policy: Policy | None) -> None:
        self.full.pop(name, None)
        self.near.pop(name, None)
        if policy is None:
            return
        sums = [u[name] for u in (self._local, *self.others.values()) if name in u]
        records, size = sum(s[0] for s in sums), sum(s[1] for s in sums)
        records_full, bytes_full = 0 < policy.max_records <= records, 0 < policy.max_bytes <= size
        if records_full or bytes_full:
            self.full[name] = records_full, bytes_full
        part = max(records / (policy.max_records or math.inf), size / (policy.max_bytes or math.inf))
        if part >= NEARLY_FULL:
            self.near[name] = part

    def crowded(self) -> dict[str, Any]:
        """For status: namespaces that are near to their quota, or at it, the fullest first."""
        fullest = heapq.nlargest(MAX_TOLD, self.near.items(), key=lambda item: item[1])
        return {
            "full": len(self.full),
            "near": len(self.near),
            "fullest": [[name, round(part, 3)] for name, part in fullest],
        }
