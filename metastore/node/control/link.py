"""A process's connection to etcd: the coordinator, the lease, the watch of the cluster's records, and who writes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from metastore.coordination.absent import AbsentCoordinator, AbsentSession, AbsentWatch
from metastore.coordination.interface import KV, QUIET_S, Change, Coordinator, Known, Session, Watch
from metastore.core.messages import Process
from metastore.layout import Layout
from metastore.node.control.transactions import Author


class Link:
    """See the module. Until ``connect`` there is no etcd. ``lease_s``: the lease's time to live in seconds."""

    def __init__(self, layout: Layout, me: Process, lease_s: float) -> None:
        self.layout, self.me, self.lease_s = layout, me, lease_s
        self.coordinator: Coordinator = AbsentCoordinator(Known())
        self.session: Session = AbsentSession()
        self.watch: Watch = AbsentWatch()
        #: etcd has this process registered, on its present lease (R13)
        self.registered = False
        self._closed = False

    def connect(self, coordinator: Coordinator, on_lease: Callable[[], None]) -> None:
        """Have a lease from here on; nothing is followed yet. ``on_lease``: told when the lease is another."""
        self.coordinator = coordinator
        self.session = coordinator.session(self.lease_s)
        self.session.on_change = lambda _: on_lease()
        self.session.start()

    def follow(
        self,
        on_change: Callable[[int, list[Change]], None],
        read_ahead: Callable[[Sequence[KV]], Coroutine[Any, Any, None]],
    ) -> None:
        """Follow the cluster's records."""
        quiet_s = min(QUIET_S, self.lease_s / 3)
        self.watch = self.coordinator.watch(self.layout.root, on_change, quiet_s, read_ahead)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.watch.close()
            await self.session.close()
            await self.coordinator.close()

    @property
    def has_lease(self) -> bool:
        """Whether there is a lease, alive as far as is known."""
        return self.session.alive and bool(self.session.lease_id)

    def author(self) -> Author | None:
        """This process with its lease; None = it has none."""
        me = self.me
        return Author(me.node, me.incarnation, self.session.lease_id) if self.has_lease else None

    def kv(self, key: str) -> KV | None:
        """A record as the watch has it."""
        found: KV | None = self.watch.kvs.get(key)
        return found

    def can_elect(self) -> bool:
        """Whether an election could be run from here now; not before etcd has this process registered (R13), and
        not while it is full.
        A watch that heard nothing for as long as a lease lives counts as etcd away (R9, R16): by the lease, nobody
        else may take over, and without the watch this node knows of nothing to take over."""
        return (
            self.registered
            and self.coordinator.connected
            and self.coordinator.takes_writes
            and self.session.alive
            and self.watch.silent_s < self.lease_s
        )

    def status(self) -> dict[str, Any]:
        return {
            "connected": self.coordinator.connected,
            "trouble": self.coordinator.trouble,
            "untrusted": self.coordinator.untrusted,
            "watch_silent_s": round(self.watch.silent_s, 3),
            "lease": self.has_lease,
            "lease_margin_s": round(self.session.margin_s, 3),
            "revision": self.coordinator.revision,
        }
