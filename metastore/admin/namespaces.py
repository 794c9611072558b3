"""Making, changing and removing namespaces: policy records in etcd, changed by compare-and-set.

A routing rule says where the records of a namespace are, so it must never differ between two that
write. A namespace without a record routes by parent, and anybody may be writing to it; the step from
that to another rule, and back, therefore has two phases:

1. The record is written with the new rule and ``ready`` false. A node that has seen it takes no write
   to the namespace: by the old rule it is misplaced, by the new one too early.
2. *Settle*: wait until every registered node has seen the record and keeps it across a restart; then put
   a write through the log of every partition. What a node had taken before it saw the record lies before
   that write in the log, or will never be committed, so a linearizable listing now finds all there is.
   Whatever the new rule would not find there forbids the change.
3. ``ready`` becomes true, or, when a namespace is removed, the record goes.

Each step compares the revision that the one before has made, so of two that do this at once one
finishes and the other sees what is there. Who is interrupted leaves the namespace not ready: nothing
can be written, nothing is lost, and the same request once more, or a removal, goes on from there.

Nothing is written into an etcd that a node distrusts (R13): no node would hear of it, and a rebuilding takes no policy from
there. A router and ``cellctl`` remember nothing of the etcd of before, so the nodes are asked; and where etcd was rebuilt, revisions
are compared with the nodes' only as the lineage translates them.

Used by the router and by ``cellctl``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from metastore.admin.errors import NamespaceNotEmpty, RoutingFixed, TooManyNamespaces
from metastore.coordination.interface import KV, Compare, Coordinator, Delete, Put
from metastore.coordination.lineage import Follower
from metastore.errors import (
    ConditionFailed,
    CoordinationError,
    CoordinationUnknown,
    InvalidRequest,
    MetastoreError,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from metastore.fields import BadRecord
from metastore.history import NO_VERSION
from metastore.keys import (
    PARENT,
    check_namespace,
    end_point,
    split_storage_key,
    storage_key_of,
    well_placed,
)
from metastore.layout import Layout, NodeRecord
from metastore.namespaces import DEFAULT, MAX_NAMESPACES, Policy, policy_from_plain
from metastore.operations import DELETE, KEYS_ONLY, LINEARIZABLE, LIST, MAX_LIST_LIMIT
from metastore.routing.dispatcher import Dispatcher
from metastore.schema import read_record, shown

#: the namespace of the store's own probes and barriers
RESERVED: Final = "metastore"
MAX_TRIES: Final = 20
POLL_S: Final = 0.1
STATUS_TIMEOUT_S: Final = 1.0
ROLLBACK_S: Final = 4.0
MAX_BARRIER_TRIES: Final = 1 << 20
#: nodes that are asked whether they trust etcd
MAX_ASKED: Final = 8


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace that has a record. ``revision``: what to compare with when changing it."""

    name: str
    policy: Policy
    revision: int


def barrier_keys(dispatcher: Dispatcher) -> dict[int, bytes]:
    """For every partition a storage key that it holds."""
    table = dispatcher.table
    found: dict[int, bytes] = {}
    for number in range(MAX_BARRIER_TRIES):
        storage_key = storage_key_of(RESERVED, f"barrier-{number}")
        found.setdefault(table.route(storage_key).id, storage_key)
        if len(found) == len(table.partitions):
            break
    return found


class NamespaceAdmin:
    """See the module. ``until`` is a loop time. All calls raise Unavailable or OutcomeUnknown when
    etcd or a node does not answer."""

    def __init__(
        self,
        coordinator: Coordinator,
        layout: Layout,
        dispatcher: Dispatcher,
        max_namespaces: int = MAX_NAMESPACES,
    ) -> None:
        self.coordinator = coordinator
        self.max_namespaces = max_namespaces
        self.layout = layout
        self.dispatcher = dispatcher

    # --- reading ----------------------------------------------------------------------------

    def _record(self, kv: KV) -> NamespaceRecord:
        """Raises BadRecord."""
        parts = self.layout.parse(kv.key)
        return NamespaceRecord(parts[1], read_record(parts, kv.value, Policy), kv.mod_revision)

    async def list(self) -> list[NamespaceRecord]:
        """All that have a record that makes sense, by name. Raises CoordinationError."""
        _, kvs = await self.coordinator.range(self.layout.namespace(""))
        found = []
        for kv in kvs:
            with contextlib.suppress(BadRecord):  # who follows etcd tells of it
                found.append(self._record(kv))
        return sorted(found, key=lambda r: r.name)

    async def get(self, name: str) -> NamespaceRecord | None:
        """None: it has the default policy. Raises CoordinationError, and Unavailable when its record is not valid."""
        kv = await self.coordinator.get(self.layout.namespace(check_namespace(name)))
        try:
            return None if kv is None else self._record(kv)
        except BadRecord as e:
            raise Unavailable(
                f"the record of namespace {name} in etcd is not valid ({e.message}); repair or remove it there: "
                "cellctl doctor names it"
            ) from None

    # --- changing ---------------------------------------------------------------------------

    async def put(
        self,
        name: str,
        wanted: dict[str, Any],
        until: float,
        *,
        revision: int | None = None,
        absent: bool = False,
        exists: bool = False,
    ) -> tuple[NamespaceRecord, bool]:
        """The record with the members ``wanted`` of a Policy, all others at their defaults and the
        routing rule as it is; whether it was made. Raises ConditionFailed, RoutingFixed,
        NamespaceNotEmpty, TooManyNamespaces, InvalidRequest."""
        self._check_name(name)
        await self._check_etcd()
        for _ in range(MAX_TRIES):
            found = await self.get(name)
            self._check_condition(name, found, revision, absent, exists)
            if found is None:
                self._check_room()
            routing = wanted.get("routing") or (DEFAULT if found is None else found.policy).routing
            policy = policy_from_plain({**wanted, "routing": routing})
            if found is not None:
                policy = replace(policy, more=found.policy.more)
            if found is not None and routing != found.policy.routing:
                raise RoutingFixed(
                    f"namespace {name} routes by {found.policy.routing}, which cannot be changed to {routing}: the rule decides "
                    "where its records are; make another namespace and copy them"
                )
            if policy.rule == PARENT or (found is not None and found.policy.ready):
                written = await self._write(name, found, policy)
            else:
                written = await self._make(name, found, policy, until)
            if written is not None:
                return written, found is None
        raise Unavailable(
            f"namespace {name} was changed by others each time that this change was tried; try again",
            retry_after_s=1,
        )

    async def delete(self, name: str, until: float, *, revision: int | None = None) -> None:
        """Remove the record: the default policy holds. Records stay; those that would not be found
        any more forbid it. Raises NotFound, ConditionFailed, NamespaceNotEmpty."""
        self._check_name(name)
        await self._check_etcd()
        for _ in range(MAX_TRIES):
            found = await self.get(name)
            if found is None:
                raise NotFound(f"namespace {name} has no policy of its own")
            self._check_condition(name, found, revision, False, False)
            if found.policy.rule == PARENT:
                if await self._remove(found):
                    return
            elif await self._unmake(found, until):
                return
        raise Unavailable(
            f"namespace {name} was changed by others each time that this change was tried; try again",
            retry_after_s=1,
        )

    async def _check_etcd(self) -> None:
        """Raises Unavailable when a node distrusts the etcd that is written to. Nodes that are silent are passed over."""
        await Follower(self.coordinator, self.layout.lineage).look()
        nodes = self.dispatcher.table.nodes
        asked = random.sample(sorted(nodes), min(len(nodes), MAX_ASKED))
        told = await asyncio.gather(*(self._distrust_of(nodes[name].rpc) for name in asked))
        for name, why in zip(asked, told, strict=True):
            if why:
                raise Unavailable(
                    f"nothing was changed: node {name} distrusts etcd, because {why:.200}; cellctl control rebuild shows what etcd's "
                    "records would be",
                    retry_after_s=1,
                )

    async def _distrust_of(self, address: str) -> str:
        """Why a node distrusts etcd; "" = it does not, or does not say."""
        try:
            connection = await self.dispatcher.connect(address)
            etcd = (await connection.status(STATUS_TIMEOUT_S)).get("etcd")
        except MetastoreError:
            return ""
        return str(etcd.get("untrusted") or "") if isinstance(etcd, dict) else ""

    def _check_room(self) -> None:
        """One more may be made. Counted in the copy that is at hand: those that are made in the same moment may pass
        the bound by themselves."""
        known = len(self.dispatcher.table.namespaces)
        if known >= self.max_namespaces:
            raise TooManyNamespaces(
                f"the cluster has {known} namespaces with a policy of their own, the limit (max_namespaces = "
                f"{self.max_namespaces}); remove some (cellctl namespace delete), use prefixes in one, or raise it",
                limit=self.max_namespaces,
            )

    @staticmethod
    def _check_name(name: str) -> None:
        if check_namespace(name) == RESERVED:
            raise InvalidRequest(f"namespace {RESERVED} is reserved for the store and has no policy")

    @staticmethod
    def _check_condition(
        name: str, found: NamespaceRecord | None, revision: int | None, absent: bool, exists: bool
    ) -> None:
        at = 0 if found is None else found.revision
        if (absent and at) or (exists and not at) or (revision is not None and revision != at):
            text = (
                f"the policy of namespace {name} is at revision {at}"
                if at
                else f"namespace {name} has no policy"
            )
            raise ConditionFailed(f"condition failed: {text}", version=at)

    # --- etcd -------------------------------------------------------------------------------

    async def _cas(self, name: str, revision: int, policy: Policy | None) -> int | None:
        """Write, or with None remove, the record if it is at ``revision`` (0 = absent); the new
        revision, None when it was not."""
        key = self.layout.namespace(name)
        op = Delete(key) if policy is None else Put(key, policy.to_json())
        try:
            result = await self.coordinator.txn([Compare.mod_revision_is(key, revision)], [op])
            return result.revision if result.succeeded else None
        except CoordinationUnknown:
            # decide by what is there, never by the lost answer
            now = await self.coordinator.get(key)
            at = 0 if now is None else now.mod_revision
            if at == revision:
                raise
            done = now is None if policy is None else now is not None and now.value == policy.to_json()
            return at if done and at else self.coordinator.revision if done else None

    async def _write(
        self, name: str, found: NamespaceRecord | None, policy: Policy
    ) -> NamespaceRecord | None:
        revision = await self._cas(name, found.revision if found else 0, policy)
        return None if revision is None else NamespaceRecord(name, policy, revision)

    async def _remove(self, found: NamespaceRecord) -> bool:
        return await self._cas(found.name, found.revision, None) is not None

    # --- two phases -------------------------------------------------------------------------

    async def _make(
        self, name: str, found: NamespaceRecord | None, policy: Policy, until: float
    ) -> NamespaceRecord | None:
        """A namespace with a rule of its own; None when somebody else has changed it meanwhile."""
        if found is None:
            await self._check_placed(name, policy.rule, until)  # before anybody is disturbed
        closed = replace(policy, ready=False)
        begun = (
            found if found is not None and found.policy == closed else await self._write(name, found, closed)
        )
        if begun is None:
            return None
        try:
            await self._settle(name, begun.revision, policy.rule, until)
            return await self._write(name, begun, policy)
        except MetastoreError as e:
            if found is None:
                await self._undo(begun, None, e)
                raise
            # an earlier attempt was interrupted: what it has left behind is not this one's to undo
            raise type(e)(
                f"{e.message}; namespace {name} stays closed to writes until this succeeds or it is removed",
                **e.detail,
            ) from None

    async def _unmake(self, found: NamespaceRecord, until: float) -> bool:
        """Remove a record with a rule of its own; False when somebody has changed it meanwhile."""
        if found.policy.ready:
            await self._check_placed(found.name, PARENT, until)
        closed: NamespaceRecord | None = found
        if found.policy.ready:
            closed = await self._write(found.name, found, replace(found.policy, ready=False))
        if closed is None:
            return False
        try:
            await self._settle(found.name, closed.revision, PARENT, until)
            return await self._remove(closed)
        except MetastoreError as e:
            if found.policy.ready:
                await self._undo(closed, found.policy, e)
            raise

    async def _undo(self, begun: NamespaceRecord, before: Policy | None, error: MetastoreError) -> None:
        """Put back what was there. When that fails too, ``error`` says how the namespace is left."""
        try:
            async with asyncio.timeout(ROLLBACK_S):
                await self._cas(begun.name, begun.revision, before)
        except (CoordinationError, TimeoutError):
            raise OutcomeUnknown(
                f"namespace {begun.name} is left closed to writes, and the control plane does not answer: send the "
                f"request again, or remove the namespace ({error.message})"
            ) from None

    async def _settle(self, name: str, revision: int, rule: int, until: float) -> None:
        """Phase 2. Raises Unavailable, which names the nodes that do not answer, NamespaceNotEmpty."""
        await self._wait_for_nodes(revision, until)
        await self._barrier(until)
        await self._check_placed(name, rule, until)

    async def _wait_for_nodes(self, revision: int, until: float) -> None:
        """Return when every registered node keeps a topology of ``revision`` or later."""
        loop = asyncio.get_running_loop()
        done: set[str] = set()
        behind: dict[str, str] = {}
        while True:
            _, kvs = await self.coordinator.range(self.layout.node(""))
            nodes = self._addresses(kvs)
            waiting = sorted(set(nodes) - done)
            if not waiting:
                return
            told = await asyncio.gather(*(self._node_is_at(nodes[n], revision) for n in waiting))
            behind = {n: why for n, why in zip(waiting, told, strict=True) if why}
            done |= set(waiting) - set(behind)
            if not behind:
                continue  # unless a node has registered meanwhile, all know it
            if loop.time() >= until:
                names = sorted(behind)
                raise Unavailable(
                    f"every node has to apply the change, but {names[0]} {behind[names[0]]}"
                    + (f", nor do {', '.join(names[1:])}" if len(names) > 1 else "")
                    + "; nothing was changed",
                    nodes=names,
                    retry_after_s=1,
                )
            await asyncio.sleep(POLL_S)

    def _addresses(self, kvs: Sequence[KV]) -> dict[str, str]:
        """Where each node is; of one whose record is not valid, where it was last. Raises Unavailable when that is
        not known: it might be there, and take writes by the rule as it was."""
        found = {}
        for kv in kvs:
            parts = self.layout.parse(kv.key)
            try:
                record: NodeRecord | None = read_record(parts, kv.value, NodeRecord)
            except BadRecord:
                record = self.dispatcher.table.nodes.get(parts[1])
            if record is None:
                raise Unavailable(
                    f"every node has to apply the change, but etcd's record {shown(kv.key)} is not valid; nothing "
                    "was changed",
                    retry_after_s=1,
                )
            found[record.node] = record.rpc
        return found

    async def _node_is_at(self, address: str, revision: int) -> str:
        """ "" when it is, else what it does instead."""
        try:
            connection = await self.dispatcher.connect(address)
            status = await connection.status(STATUS_TIMEOUT_S)
        except MetastoreError:
            return "does not answer"
        kept = status.get("topology_kept", 0)
        if type(kept) is not int:
            return f"answers with what is not a revision: {kept!r:.40}"
        return "" if kept >= revision else f"is at revision {kept} of {revision}"

    async def _barrier(self, until: float) -> None:
        """A write without effect through the log of every partition."""
        await self.dispatcher.ready(until)
        keys = barrier_keys(self.dispatcher)
        missing = sorted(set(self.dispatcher.table.partitions) - set(keys))
        if missing:
            raise Unavailable(f"no key was found that lies in partition {missing[0]}")

        async def one(storage_key: bytes) -> None:
            try:
                await self.dispatcher.write(
                    [0, DELETE, 0, storage_key, 0, 0, 0, NO_VERSION], storage_key, until
                )
            except ConditionFailed:
                pass  # logged and committed, as every failed condition is (R7)

        await asyncio.gather(*(one(storage_key) for storage_key in keys.values()))

    async def _check_placed(self, name: str, rule: int, until: float) -> None:
        """Raises NamespaceNotEmpty if there is a record that ``rule`` would look for elsewhere."""
        await self.dispatcher.ready(until)
        wanted = name.encode() + b"\0"
        for placement in self.dispatcher.table.in_order():
            start: bytes | None = placement.lo.to_bytes(8, "big")
            end = end_point(placement.hi)
            while start is not None:
                op = [0, LIST, 0, start, end, MAX_LIST_LIMIT, KEYS_ONLY, LINEARIZABLE, None, wanted]
                result = await self.dispatcher.read(op, start, until)
                for storage_key, _ in result[2]:
                    if not well_placed(storage_key, rule):
                        key = split_storage_key(storage_key)[1]
                        raise NamespaceNotEmpty(
                            f"namespace {name} has records that its new routing rule would not find, {key!r:.200} "
                            "for one: delete them first, or use another namespace",
                            record_key=key,
                        )
                start = result[3]
