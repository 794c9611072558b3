"""The node's dealings with the control plane, none of them on the path of a request.

Registers the node, follows the cluster's records, hands what they ask to ``assignment``, and puts right again and again what etcd and
this node should agree on. Whatever fails here is tried again later; the data plane does not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol

from metastore import fields
from metastore.clock import now_ns
from metastore.coordination.interface import Change, Coordinator, Known, Put, Session
from metastore.coordination.lineage import Follower
from metastore.coordination.waiting import set_within
from metastore.core import events as ev
from metastore.errors import CoordinationError, StorageError
from metastore.following import Following, Seen
from metastore.layout import Layout
from metastore.node.control import assignment, registration, replacement, view
from metastore.node.control.assignment import Assignment
from metastore.node.control.link import Link
from metastore.node.control.record_changes import RecordChanges
from metastore.node.control.registration import Registration
from metastore.node.control.replacement import Replacement
from metastore.node.control_report import ONLY_IN_ETCD
from metastore.node.ports import HasHalt, HasLinks
from metastore.node.quotas import Quotas
from metastore.schema import usage_to_json
from metastore.storage.facts import read_fact

log = logging.getLogger("metastore.control")

FACT_CLUSTER_ID = "etcd_cluster_id"
FACT_REVISION = "etcd_revision"
#: the lineage that is followed, and what it followed upon (R13)
FACT_LINEAGE = "etcd_lineage"
RECONCILE_S = 1.0
USAGE_S = 2.0
#: a record of so many namespaces is written every USAGE_S at most, a larger one as much more seldom: it is written, and read by every
#: node, as a whole (10,000 namespaces: 340 KB, and 46 ms at each reader)
USAGE_NAMESPACES = 1000
ORDER = {"moves": 1, "leader": 2}
#: what a node keeps for a start without etcd
REMEMBERED = frozenset({"nodes", "config", "leader", "namespaces"})


class Here(assignment.Here, registration.Here, replacement.Here, HasHalt, HasLinks, Protocol):
    """What this needs of the node."""

    @property
    def quotas(self) -> Quotas: ...

    def remember_fact(self, key: str, value: Any) -> None:
        """A durable fact, with the next round of the log."""

    def remember_topology(self) -> None:
        """The topology, kept for a start without etcd."""


def _known(plain: Any) -> Known:
    """Raises ValueError."""
    return Known(*_KNOWN(plain))


_ID: Final = fields.whole(high=(1 << 64) - 1)
_KNOWN: Final = fields.row(_ID, fields.whole(), fields.whole(), fields.whole())


def known_etcd(facts: Mapping[str, Any]) -> Known:
    """What the store knows of etcd (R13). Who has gone over to a rebuilt one knows nothing any more of the one before."""
    followed = read_fact(facts, FACT_LINEAGE, _known, None, None)
    revision = read_fact(facts, FACT_REVISION, fields.whole(), 0, 0)
    if followed is None:
        return Known(read_fact(facts, FACT_CLUSTER_ID, fields.maybe(_ID), None, None), revision)
    return followed._replace(revision=max(revision, followed.revision))


def usage_pause_s(namespaces: int) -> float:
    """Seconds from one record of usage to the next, by how many namespaces it is of."""
    return USAGE_S * max(1.0, namespaces / USAGE_NAMESPACES)


class Control:
    """See the module."""

    def __init__(self, node: Here) -> None:
        self.node = node
        self.layout = Layout(node.config.cluster)
        self.link = Link(self.layout, node.me, node.config.lease_ttl_s)
        self.records = Following(self.layout, node.topology)
        self.assignment = Assignment(node, node.config.cell, self.wake, self._learned)
        self.record_changes = RecordChanges(node, self.link, self.assignment, self._spawn, self.records.note)
        self.registration = Registration(node, self.link)
        self.replacement = Replacement(node, self.link, self.assignment)
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: nodes that are to hold nothing
        self.drained: set[str] = set()
        self._remembered: Known | None = None
        self._remember_due = False
        self._published: dict[str, list[int]] = {}
        self._published_at = 0
        #: what was looked at last for that, and never changes
        self._compared: dict[str, list[int]] | None = None
        self.ready = asyncio.Event()
        self.can_elect = self.link.can_elect
        self.campaign, self.change_config = self.record_changes.campaign, self.record_changes.change_config
        self.move_ended = self.record_changes.move_ended
        self.sought, self.misses = self.assignment.sought, self.assignment.misses
        self.open_now, self.open_child = self.assignment.open_now, self.assignment.open_child

    @property
    def coordinator(self) -> Coordinator:
        return self.link.coordinator

    @property
    def session(self) -> Session:
        return self.link.session

    @property
    def related(self) -> set[str]:
        """Nodes of other cells that share a partition with this one, now or soon."""
        return self.assignment.related

    @property
    def elections_won(self) -> int:
        return self.record_changes.elections_won

    def connect(self, coordinator: Coordinator) -> None:
        """Have a lease from here on; nothing is followed yet."""
        self.link.connect(coordinator, self._lease_changed)

    def follow(self) -> None:
        """Follow the cluster's records, and keep this node's own there. The node has started."""
        self.link.follow(self._on_change, self.records.read_ahead)
        self._follower = Follower(self.coordinator, self.layout.lineage, self._followed)
        self._spawn(self._wait_ready())
        self._spawn(self._reconcile_forever())
        self._spawn(self._follower.run())

    def _followed(self) -> None:
        """R13: etcd was rebuilt, and is trusted. That is durable as one fact, so that no crash leaves a part of it."""
        self.node.remember_fact(FACT_LINEAGE, list(self.coordinator.known))
        self.link.registered = False
        self.assignment.terms.clear()
        self.wake()

    async def _wait_ready(self) -> None:
        await self.link.watch.ready.wait()
        self.ready.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self.node.halt.ended)

    def wake(self) -> None:
        """Something changed that etcd should hear of soon."""
        self._wake.set()

    def _lease_changed(self) -> None:
        self.link.registered = False
        self._published, self._compared = {}, None
        self.wake()

    def _learned(self) -> None:
        self._remember_due = True

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.close()

    # --- what etcd says -------------------------------------------------------------------

    def _on_change(self, revision: int, changes: list[Change]) -> None:
        node = self.node
        number = node.topology.changes.number
        seen = self.records.take(revision, changes)
        # configs before leader keys: a replica must exist before it hears who leads it; moves in
        # between, since they may ask for one
        for found in sorted(seen, key=lambda s: ORDER.get(s.parts[0], 0)):
            try:
                self._act(found)
            except Exception as e:  # the record is in order: what is wrong is this node (R14)
                node.halt.fail_stop(e)
        self._forget_nodes(number)
        self.assignment.open_set_aside()
        self._remember_due |= any(found.parts[0] in REMEMBERED for found in seen)
        self.wake()
        node.ticks.run_effects()

    def _forget_nodes(self, number: int) -> None:
        """Nodes that went from the table since that change of it."""
        node = self.node
        changed = node.topology.changes.after(number) or []
        for name in [str(name) for kind, name in changed if kind == "nodes"]:
            if name not in node.topology.nodes:
                self.assignment.related.discard(name)
                node.links.forget(name)

    def _act(self, seen: Seen) -> None:
        """Do what a change of a record asks for; the topology has it already."""
        node, (kind, *names), record, new = self.node, seen.parts, seen.record, seen.new
        if kind == "config" and record is not None and new is not None:
            self.assignment.config_changed(names[0], record, new.mod_revision)
        if kind == "config":
            self.assignment.recorded(names[0], int(names[1]), record is not None)
        if kind == "leader" and names[0] == self.assignment.homes.get(int(names[1])):
            self.assignment.leader_changed(int(names[1]), new)  # R2 compares what is there, whatever it says
        if seen.bad:
            return
        match kind:
            case "nodes" if record is not None:
                node.meet(record)
            case "moves":
                self.assignment.move_changed(
                    int(names[0]), None if new is None else (record, new.mod_revision)
                )
            case "splits":
                self.assignment.split_changed(int(names[0]), record)
            case "drained":
                (self.drained.discard if new is None else self.drained.add)(names[0])
            case "features" if record is not None:
                beyond = node.features.learn(record.level)
                if beyond is not None:
                    node.condemn(beyond)
            case "paused":
                node.core.handle(now_ns(), ev.MovesPaused(new is not None))
            case "lineage":
                self._follower.notice()
            case "usage":
                node.quotas.published(names[0], record)

    def records_seen(self) -> tuple[int, list[tuple[str, str]]] | None:
        """Records that only etcd has (key below the cluster's root, value), as the watch has them, and etcd's revision then;
        None = it has not delivered any yet."""
        if not self.link.watch.ready.is_set():
            return None
        root, kinds = len(self.layout.root), ONLY_IN_ETCD
        found = [
            (key[root:], kv.value.decode("utf-8", "replace"))
            for key, kv in sorted(self.link.watch.kvs.items())
            if self.layout.parse(key)[0] in kinds and key.isprintable()
        ]
        return self.link.watch.revision, found

    @property
    def read_at(self) -> int:
        """The revision at which all of etcd's records were read last."""
        return self.link.watch.read_at

    # --- registration, R12, durable facts ------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            await set_within(self._wake, RECONCILE_S)
            self._wake.clear()
            try:
                await self._reconcile()
            except CoordinationError as e:
                log.debug("reconcile: %s", e)
            except (StorageError, AssertionError):
                raise  # what is broken is this node (R14)
            except Exception:
                log.exception("reconcile failed; it will be tried again")
            await asyncio.sleep(0.02)

    async def _reconcile(self) -> None:
        if self.ready.is_set():
            self.assignment.leader_keys_read()
            self.assignment.drop_what_left()
            self.assignment.open_waiting()
            self._remember()
        usage = self.node.quotas.recount()
        session = self.session
        if not session.alive or not session.lease_id:
            return
        if not self.link.registered:
            # R13: what is not registered changes nothing in etcd
            if await self.registration.register(session) != "done":
                return
            self.link.registered = True
        if not await self.registration.tell_mark():
            self.link.registered = False
            return
        await self._publish(usage, session)
        if self.ready.is_set():
            await self.record_changes.keep_leader_keys()
            await self.replacement.look()

    async def _publish(self, usage: dict[str, list[int]], session: Session) -> None:
        """What this node leads of namespaces with a quota, when that changed by over a hundredth."""
        now = now_ns()
        if now - self._published_at < usage_pause_s(len(usage)) * 1e9 or usage is self._compared:
            return
        if not view.differs(usage, self._published):
            self._compared = usage
            return
        key = self.layout.usage(self.node.config.node)
        await self.coordinator.txn([], [Put(key, usage_to_json(usage), session.lease_id)])
        self._published, self._published_at = {ns: list(sums) for ns, sums in usage.items()}, now

    def _remember(self) -> None:
        """Keep etcd's identity (R13) and the topology durable, at most once a second."""
        node, coordinator = self.node, self.coordinator
        if self._remember_due:
            self._remember_due = False
            node.remember_topology()
        seen = coordinator.known
        if seen != self._remembered and seen.cluster_id is not None:
            self._remembered = seen
            node.remember_fact(FACT_CLUSTER_ID, seen.cluster_id)
            node.remember_fact(FACT_REVISION, seen.revision)

    def knows_all_nodes(self) -> bool:
        """Whether every node that ever registered is in the topology: etcd tells, or told lately."""
        return self.ready.is_set() and self.can_elect()

    def status(self) -> dict[str, Any]:
        return {
            **self.link.status(),
            "campaigns": self.record_changes.campaigns,
            "elections_won": self.record_changes.elections_won,
            "records": self.records.status(),
        }
