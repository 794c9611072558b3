"""What namespaces ask for, enforced by the leader before an operation is queued.

Routing rule, required condition, default TTL, quotas. Quotas are kept within seconds, not to the
record: each node publishes what it leads of each namespace that has one, and refuses what would
grow a namespace whose sum is at its bound.

A namespace whose record makes no sense, and of which no policy was ever known here, exists all the same: where its records are, and
what it asks of writes, is not known, so nothing of it is read or written until the record is mended or removed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from metastore.errors import ConditionRequired, MetastoreError, QuotaExceeded, Unavailable, WrongRouting
from metastore.keys import PARENT, hash_point, prefix_routing_key, well_placed
from metastore.namespaces import NEARLY_FULL, Policy
from metastore.operations import (
    ADDING,
    COMPARES_AT,
    COMPOUND,
    CONDITION_AT,
    END_AT,
    KEY_AT,
    KIND_AT,
    LIST,
    MANY_KEYS,
    PART_KEY_AT,
    PART_TTL_MS_AT,
    PART_VALUE_AT,
    PUT,
    START_AT,
    TTL_MS_AT,
    VALUE_AT,
    WRITES,
    Op,
    keys_of,
    parts_of,
)
from metastore.records import unpack_record
from metastore.schema import Usage

if TYPE_CHECKING:
    from metastore.node.host import PartitionHost
    from metastore.node.node import Node


#: so many namespaces that are near to their quota are named in status
MAX_TOLD: Final = 20


class Policies:
    """See the module."""

    def __init__(self, node: Node) -> None:
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

    # --- before an operation ----------------------------------------------------------------

    def refuse(self, host: PartitionHost, op: Op) -> MetastoreError | None:
        """Why a checked operation is not to be carried out; None = it is. A default TTL is filled in."""
        kind, lkey = op[KIND_AT], op[KEY_AT]
        topology = self.node.topology
        namespaces = topology.namespaces
        if topology.unreadable and (unread := self._refuse_unread(op)) is not None:
            return unread
        writes = kind in WRITES
        if not namespaces and kind not in MANY_KEYS and (not writes or well_placed(lkey, PARENT)):
            return None
        if kind == LIST:
            return self.refuse_range(op[START_AT], op[END_AT]) if namespaces else None
        name = lkey[8 : lkey.index(0, 8)].decode("ascii", "replace")
        policy = namespaces.get(name) if namespaces else None
        rule = PARENT if policy is None else self.node.topology.rule(name)
        if not writes:
            return None if policy is None or well_placed(lkey, rule) else self._misplaced(name)
        if not well_placed(lkey, rule):
            return self._misplaced(name)
        if kind in COMPOUND:
            return self._refuse_parts(host, op)
        if policy is None:
            return None
        if kind == PUT and op[TTL_MS_AT] is None:
            op[TTL_MS_AT] = policy.default_ttl_ms
        return self._refuse_write(name, policy, op[CONDITION_AT] is not None) or (
            self._refuse_growth(host, name, policy, lkey, len(op[VALUE_AT]) if kind == PUT else 0)
            if kind in ADDING and name in self.full
            else None
        )

    def _refuse_unread(self, op: Op) -> MetastoreError | None:
        """An operation on a namespace that is not known, though it has a record."""
        return next(filter(None, map(self._unread, keys_of(op))), None)

    def _unread(self, lkey: bytes) -> MetastoreError | None:
        topology, nul = self.node.topology, lkey.find(0, 8)
        name = lkey[8:nul].decode("ascii", "replace")
        key = f"namespaces/{name}"
        if nul < 0 or key not in topology.unreadable or name in topology.namespaces:
            return None
        layout = self.node.control.layout
        return Unavailable(
            f"the record {layout.root}{key} in etcd makes no sense, so it is not known where the records of namespace {name} "
            "are, and what it asks of writes: mend or remove that record (cellctl doctor)",
            retry_after_s=1,
        )

    def _refuse_parts(self, host: PartitionHost, op: Op) -> MetastoreError | None:
        namespaces = self.node.topology.namespaces
        for lkey in keys_of(op):
            named = lkey[8 : lkey.index(0, 8)].decode("ascii", "replace")
            if not well_placed(lkey, self.node.topology.rule(named)):
                return self._misplaced(named)
        compared = {compare[0] for compare in op[COMPARES_AT]}
        for part in parts_of(op):
            kind, lkey = part[0], part[PART_KEY_AT]
            named = lkey[8 : lkey.index(0, 8)].decode("ascii", "replace")
            found = namespaces.get(named)
            if found is None or kind not in WRITES:
                continue
            if kind == PUT and part[PART_TTL_MS_AT] is None:
                part[PART_TTL_MS_AT] = found.default_ttl_ms
            refused = self._refuse_write(named, found, lkey in compared)
            if refused is None and kind in ADDING and named in self.full:
                size = len(part[PART_VALUE_AT]) if kind == PUT else 0
                refused = self._refuse_growth(host, named, found, lkey, size)
            if refused is not None:
                return refused
        return None

    @staticmethod
    def _refuse_write(name: str, policy: Policy, conditional: bool) -> MetastoreError | None:
        if not policy.ready:
            return Unavailable(f"namespace {name} is being created", retry_after_s=1)
        if policy.require_condition and not conditional:
            return ConditionRequired(
                f"namespace {name} takes only conditional writes: give a version, or ask for absence"
            )
        return None

    def _refuse_growth(
        self, host: PartitionHost, name: str, policy: Policy, lkey: bytes, size: int
    ) -> MetastoreError | None:
        records_full, bytes_full = self.full[name]
        old = host.machine.current(lkey)
        if old is None and records_full:
            return QuotaExceeded(
                f"namespace {name} holds its {policy.max_records} records (max_records); delete some, or raise it"
            )
        if bytes_full and (old is None or len(unpack_record(old).value) < size):
            return QuotaExceeded(
                f"namespace {name} holds its {policy.max_bytes} bytes (max_bytes); delete some, or raise it"
            )
        return None

    @staticmethod
    def _misplaced(name: str) -> MetastoreError:
        return WrongRouting(
            f"a key of namespace {name} was placed by another routing rule than the namespace has; "
            "refresh the topology",
            retry_after_s=0.1,
        )

    def refuse_range(self, start: bytes, end: bytes) -> MetastoreError | None:
        """A listing or watch of one routing key, made by another rule than the namespace has."""
        if self.node.topology.unreadable and (unread := self._unread(start)) is not None:
            return unread
        if start[:8] != end[:8] or len(start) < 10:
            return None
        nul = start.find(0, 8)
        if nul < 0:
            return None
        namespace = start[8:nul]
        name = namespace.decode("ascii", "replace")
        if name not in self.node.topology.namespaces:
            return None
        routing = prefix_routing_key(start[nul + 1 :], self.node.topology.rule(name))
        if routing is None or hash_point(namespace, routing) != start[:8]:
            return self._misplaced(name)
        return None

    # --- quotas -----------------------------------------------------------------------------

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
        led = [(p, host) for p, host in self.node.hosts.items() if host.role == "active"] if limited else []
        counted = [(p, host.applied) for p, host in led]
        held = [host.machine.usage for _, host in led]
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
        for host in self.node.hosts.values():
            if host.role == "active":
                for raw, (records, size) in host.machine.usage.items():
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
        """Which namespaces are full now, and which nearly; also what to publish, the very same while nothing has changed. Only
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
