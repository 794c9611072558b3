"""What namespaces ask for, enforced by the leader before an operation is queued: routing rule, required condition,
default TTL, quotas. Which namespaces are at their quota is counted elsewhere (node.quotas).

A namespace whose record is not valid, and of which no policy was ever known here, exists all the same: where its records are, and
what it asks of writes, is not known, so nothing of it is read or written until the record is mended or removed.
"""

from __future__ import annotations

from collections.abc import Mapping

from metastore.core.machine import Machine
from metastore.errors import ConditionRequired, MetastoreError, QuotaExceeded, Unavailable, WrongRouting
from metastore.keys import PARENT, hash_point, prefix_routing_key, well_placed
from metastore.namespaces import Policy
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
from metastore.topology import TopologyTable


class Policies:
    """See the module."""

    def __init__(self, topology: TopologyTable, root: str, full: Mapping[str, tuple[bool, bool]]) -> None:
        """``root``: of the control plane's records; ``full``: namespaces at their quota (of records, of bytes), kept up to
        date by its owner."""
        self.topology, self.root, self.full = topology, root, full

    def refuse(self, machine: Machine, op: Op) -> MetastoreError | None:
        """Why a checked operation is not to be carried out; None = it is. A default TTL is filled in."""
        kind, storage_key = op[KIND_AT], op[KEY_AT]
        topology = self.topology
        namespaces = topology.namespaces
        if topology.unreadable and (unread := self._refuse_unread(op)) is not None:
            return unread
        writes = kind in WRITES
        if not namespaces and kind not in MANY_KEYS and (not writes or well_placed(storage_key, PARENT)):
            return None
        if kind == LIST:
            return self.refuse_range(op[START_AT], op[END_AT]) if namespaces else None
        name = storage_key[8 : storage_key.index(0, 8)].decode("ascii", "replace")
        policy = namespaces.get(name) if namespaces else None
        rule = PARENT if policy is None else self.topology.rule(name)
        if not writes:
            return None if policy is None or well_placed(storage_key, rule) else self._misplaced(name)
        if not well_placed(storage_key, rule):
            return self._misplaced(name)
        if kind in COMPOUND:
            return self._refuse_parts(machine, op)
        if kind in MANY_KEYS and not all(well_placed(named, rule) for named in keys_of(op)):
            return self._misplaced(name)
        if policy is None:
            return None
        if kind == PUT and op[TTL_MS_AT] is None:
            op[TTL_MS_AT] = policy.default_ttl_ms
        return self._refuse_write(name, policy, op[CONDITION_AT] is not None) or (
            self._refuse_growth(machine, name, policy, storage_key, len(op[VALUE_AT]) if kind == PUT else 0)
            if kind in ADDING and name in self.full
            else None
        )

    def _refuse_unread(self, op: Op) -> MetastoreError | None:
        """An operation on a namespace that is not known, though it has a record."""
        return next(filter(None, map(self._unread, keys_of(op))), None)

    def _unread(self, storage_key: bytes) -> MetastoreError | None:
        topology, nul = self.topology, storage_key.find(0, 8)
        name = storage_key[8:nul].decode("ascii", "replace")
        key = f"namespaces/{name}"
        if nul < 0 or key not in topology.unreadable or name in topology.namespaces:
            return None
        return Unavailable(
            f"the record {self.root}{key} in etcd is not valid, so it is not known where the records of namespace {name} "
            "are, nor which condition its writes need: repair or remove that record (cellctl doctor)",
            retry_after_s=1,
        )

    def _refuse_parts(self, machine: Machine, op: Op) -> MetastoreError | None:
        namespaces = self.topology.namespaces
        for storage_key in keys_of(op):
            named = storage_key[8 : storage_key.index(0, 8)].decode("ascii", "replace")
            if not well_placed(storage_key, self.topology.rule(named)):
                return self._misplaced(named)
        compared = {compare[0] for compare in op[COMPARES_AT]}
        for part in parts_of(op):
            kind, storage_key = part[0], part[PART_KEY_AT]
            named = storage_key[8 : storage_key.index(0, 8)].decode("ascii", "replace")
            found = namespaces.get(named)
            if found is None or kind not in WRITES:
                continue
            if kind == PUT and part[PART_TTL_MS_AT] is None:
                part[PART_TTL_MS_AT] = found.default_ttl_ms
            refused = self._refuse_write(named, found, storage_key in compared)
            if refused is None and kind in ADDING and named in self.full:
                size = len(part[PART_VALUE_AT]) if kind == PUT else 0
                refused = self._refuse_growth(machine, named, found, storage_key, size)
            if refused is not None:
                return refused
        return None

    @staticmethod
    def _refuse_write(name: str, policy: Policy, conditional: bool) -> MetastoreError | None:
        if not policy.ready:
            return Unavailable(f"namespace {name} is being created", retry_after_s=1)
        if policy.require_condition and not conditional:
            return ConditionRequired(
                f"namespace {name} accepts only conditional writes: give a version, or require absence"
            )
        return None

    def _refuse_growth(
        self, machine: Machine, name: str, policy: Policy, storage_key: bytes, size: int
    ) -> MetastoreError | None:
        records_full, bytes_full = self.full[name]
        old = machine.proposals.current(storage_key)
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
        if self.topology.unreadable and (unread := self._unread(start)) is not None:
            return unread
        if start[:8] != end[:8] or len(start) < 10:
            return None
        nul = start.find(0, 8)
        if nul < 0:
            return None
        namespace = start[8:nul]
        name = namespace.decode("ascii", "replace")
        if name not in self.topology.namespaces:
            return None
        routing = prefix_routing_key(start[nul + 1 :], self.topology.rule(name))
        if routing is None or hash_point(namespace, routing) != start[:8]:
            return self._misplaced(name)
        return None
