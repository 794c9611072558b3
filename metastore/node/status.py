"""What a node tells of itself: status and topology, made at most some twenty times a second
however often it is asked: a question of six bytes must not cost a walk over all partitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from metastore.clock import now_ns
from metastore.core.settings import MS
from metastore.core.views import ReplicaView
from metastore.errors import ProtocolError
from metastore.node import control_report
from metastore.node.admission import Admission
from metastore.node.collector import Collector
from metastore.node.control_report import control_view
from metastore.node.ports import HasCore, HasLinks, HasPartitions, HasPins, HasProcess, HasTopology
from metastore.node.quotas import Quotas
from metastore.node.rebuild import Rebuild
from metastore.node.snapshots import Snapshots
from metastore.node.stored_topology import StoredTopology
from metastore.node.tick_loop import TickLoop
from metastore.topology import TopologyTable
from metastore.wire import frames
from metastore.wire.versions import build

T = TypeVar("T")
#: what the nodes of a cell should agree on
SHARED_SETTINGS: Final = (
    "heartbeat_ms",
    "grant_ms",
    "suspect_after_ms",
    "settle_ms",
    "lease_ttl_s",
    "clock_rate_error_ppm",
    "claim_without_etcd",
)
VIEW_AGE_NS: Final = 50 * MS
#: so many rows of the topology that have changed are told within VIEW_AGE_NS; who asks for more gets the whole frame that is there
MAX_ROWS_TOLD: Final = 2048


class ControlPlane(control_report.ControlPlane, Protocol):
    """What is told of the control plane."""

    @property
    def read_at(self) -> int:
        """The revision at which all of etcd's records were read last."""

    def status(self) -> dict[str, Any]: ...


class Here(control_report.Here, HasCore, HasPartitions, HasLinks, HasPins, HasProcess, HasTopology, Protocol):
    """What is told of the node: all of it."""

    @property
    def admission(self) -> Admission: ...
    @property
    def collector(self) -> Collector: ...
    @property
    def control(self) -> ControlPlane: ...
    @property
    def failure(self) -> BaseException | None: ...
    @property
    def quotas(self) -> Quotas: ...
    @property
    def rebuild(self) -> Rebuild: ...
    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def status_pages(self) -> StatusPages: ...
    @property
    def stored_topology(self) -> StoredTopology: ...
    @property
    def ticks(self) -> TickLoop: ...

    def watch_count(self) -> int: ...


class View(Generic[T]):
    """What ``make`` returns, made anew once it is older than VIEW_AGE_NS."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: T | None = None
        self._made_ns = 0

    def __call__(self) -> T:
        now = now_ns()
        if self._made is None or now - self._made_ns > VIEW_AGE_NS:
            self._made, self._made_ns = self._make(), now
        return self._made


class StatusPages:
    """See the module."""

    def __init__(self, node: Here) -> None:
        self.status: View[dict[str, Any]] = View(lambda: node_status(node))
        self.status_frame = View(lambda: frames.pack(frames.STATUS, [self.status()]))
        self.control: View[dict[str, Any]] = View(lambda: control_view(node))
        self.topology = TopologyView(node)


class TopologyView:
    """The node's table as it is told, its own replicas' knowledge of leaders in it: all of it, made anew only when there
    was a change, or what has changed since a revision."""

    def __init__(self, node: Here) -> None:
        self._node = node
        self._looked_ns = 0
        #: number of the newest change in it, revision, and the frame
        self._complete: tuple[int, int, bytes | ProtocolError] = -1, -1, b""
        #: what was told within VIEW_AGE_NS: revision asked for -> frame, and how many rows more may be
        self._changed: dict[int, bytes] = {}
        self._rows_left = MAX_ROWS_TOLD
        #: of the whole frame, as it was made last; at most MAX_FRAME_BYTES
        self.bytes = 0

    def _look(self) -> None:
        now, node = now_ns(), self._node
        if now - self._looked_ns <= VIEW_AGE_NS:
            return
        self._looked_ns, self._rows_left = now, MAX_ROWS_TOLD
        self._changed.clear()
        for p, partition in node.partitions.items():
            replica = partition.replica
            if replica.owner is not None and replica.sealed_epoch:
                node.topology.know_leader(p, replica.owner.node, replica.sealed_epoch)
        node.topology.changes.read_again(node.control.read_at)

    def wire(self) -> dict[str, Any]:
        """All of it, as plain data."""
        self._look()
        return self._node.topology.to_wire()

    def frame(self, since: int = 0) -> bytes:
        """The answer to who has a table of the revision ``since``, 0 = none."""
        self._look()
        if since:
            found = self._changed.get(since)
            if found is None:
                found = self._told(since)
            if found:
                return found
        table = self._node.topology
        if self._complete[:2] != (table.changes.number, table.revision):
            self._complete = table.changes.number, table.revision, self._pack(table)
        frame = self._complete[2]
        if isinstance(frame, ProtocolError):
            raise frame
        return frame

    def _pack(self, table: TopologyTable) -> bytes | ProtocolError:
        """What is too large is known until there is a change: it is not made anew for everybody to be refused."""
        try:
            frame = frames.pack(frames.TOPOLOGY, [table.to_wire()])
        except ProtocolError as e:
            self.bytes = frames.MAX_FRAME_BYTES
            return ProtocolError(f"the topology cannot be sent: {e.message}")
        self.bytes = len(frame)
        return frame

    def _told(self, since: int) -> bytes:
        """b"" = all of it has to be told."""
        told = self._node.topology.told_since(since, self._rows_left)
        frame = b""
        if told is not None:
            self._rows_left -= 1 + sum(len(told[kind]) for kind in ("nodes", "namespaces", "partitions"))
            frame = frames.pack(frames.TOPOLOGY, [told])
        if len(self._changed) < MAX_ROWS_TOLD:
            self._changed[since] = frame
        return frame


def learners(node: Here, r: ReplicaView) -> dict[str, dict[str, int]]:
    """How far newcomers are (R10): entries they lack, and bytes of a snapshot sent and in all."""
    if r.term is None:
        return {}
    return {
        n: {"lag": r.log.last_index - r.term.progress[n].match, **node.snapshots.progress(r.p, n)}
        for n in r.term.learners
    }


def disk(node: Here) -> dict[str, int]:
    """Room on the data folder's file system and in the state's map (map_size_gib), in bytes."""
    space = node.store.space
    return {
        "free_bytes": space.disk_free,
        "total_bytes": space.disk_total,
        "state_bytes": space.pages.used,
        "state_free_bytes": space.pages.free,
        "state_limit_bytes": space.pages.limit,
        "room_bytes": space.room,
        "low_mark_bytes": space.low_bytes,
        "reserve_bytes": space.reserve_bytes if space.reserve_held else 0,
        "low": int(space.low),
        "full": int(space.full),
    }


def node_status(node: Here) -> dict[str, Any]:
    """The node's own view, for tools (cellctl status, doctor)."""
    now = now_ns()
    partitions = []
    for p, partition in sorted(node.partitions.items()):
        r = partition.replica
        lag: dict[str, int] = {}
        if r.term is not None:
            lag = {n: r.log.last_index - r.term.progress[n].match for n in r.term.others()}
        healthy = r.is_healthy(now) if r.term is not None else not r.leader_is_lost(now)
        partitions.append(
            {
                "id": p,
                "role": r.role,
                "epoch": r.sealed_epoch,
                "leader": r.leader_node,
                "last_epoch": r.log.last_position()[0],
                "last_index": r.log.last_index,
                "commit_index": r.commit_index,
                "applied_index": partition.applied,
                "version": partition.machine.last_version,
                "records": sum(held[0] for held in partition.machine.usage.values()),
                "bytes": sum(held[1] for held in partition.machine.usage.values()),
                "operations": round(partition.rate, 1),
                "lag": lag,
                "damaged": node.rebuild.why.get(p),
                "health": "ok" if healthy else "no leader" if r.term is None else "no quorum",
                "parent": r.config.parent if r.config else None,
                "unrecorded": r.split.partition if r.split else None,
                "move": r.move_state(),
                "learners": learners(node, r),
            }
        )
    return {
        "node": node.config.node,
        "cell": node.config.cell,
        "version": build(),
        "clock_ms": time.time_ns() // MS,
        "settings": {name: getattr(node.config, name) for name in SHARED_SETTINGS},
        "disk": disk(node),
        "snapshots": node.pins.status(),
        "store_id": node.me.store,
        "incarnation": node.me.incarnation,
        "identity": node.identity.view(),
        "features": node.features.status(),
        "partitions": partitions,
        "etcd": node.control.status(),
        "lapses": node.core.ctx.lapses.view(now),
        "namespaces": node.quotas.crowded(),
        "topology": {
            "namespaces": len(node.topology.namespaces),
            "partitions": len(node.topology.partitions),
            "bytes": node.status_pages.topology.bytes,
            "limit_bytes": frames.MAX_FRAME_BYTES,
        },
        "topology_revision": node.topology.revision,
        "topology_kept": node.stored_topology.kept,
        "watches": node.watch_count(),
        "peers": node.links.connected(),
        "stalls": node.ticks.stalls,
        "worst_stall_ms": node.ticks.worst_stall_ns // MS,
        "gc": node.collector.stats(),
        "storage": {**node.store.stats(), "rebuilt_total": node.rebuild.rebuilt},
        "clients": node.admission.stats(),
        "failed": str(node.failure) if node.failure else None,
    }
