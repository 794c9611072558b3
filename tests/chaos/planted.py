"""Bugs to be planted into real nodes, by name (``METASTORE_PLANTED``): the runner must see each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def read_without_grants() -> None:
    """R8: an active leader reads whatever it holds, cut off or not."""
    from metastore.core.leading import LeadingReplica
    from metastore.core.replica import ACTIVE

    LeadingReplica.can_read = lambda self, now: self.role == ACTIVE  # type: ignore[method-assign]


def no_dedupe() -> None:
    """R7: a retry is executed again."""
    from metastore.core.machine import Machine

    Machine._known = lambda self, client, seq, floor, stamp: None  # type: ignore[method-assign]


def answer_before_commit() -> None:
    """R7: a write is answered when it is proposed; what the leader alone had dies with it."""
    from metastore.node.host import PartitionHost

    original = PartitionHost.propose_pending

    def propose_pending(self: Any, now: int) -> None:
        original(self, now)
        while self.waiters:
            _, connection, op_id, tail, _ = self.waiters.popleft()
            connection.answer([op_id, *tail])

    PartitionHost.propose_pending = propose_pending  # type: ignore[method-assign]


def skip_a_record() -> None:
    """I2: one replica in a while leaves out a change."""
    from metastore.storage.store import Store

    original = Store.apply

    def apply(self: Any, p: int, index: int, epoch: int, changes: Any, aux: Any) -> None:
        lost = index % 97 == 0 and "c1n2" in str(self.folder)
        original(self, p, index, epoch, [] if lost else changes, aux)

    Store.apply = apply  # type: ignore[method-assign]


def answer_before_sync() -> None:
    """R5, R6: a copy counts as durable a fifth of a second before it is."""
    import threading

    from metastore.storage.disk import Disk

    sync = Disk.sync

    def late(self: Any, fd: int) -> None:
        timer = threading.Timer(0.2, sync, (self, fd))
        timer.daemon = True
        timer.start()

    Disk.sync = late  # type: ignore[method-assign]


#: name -> (what plants it, the scenario that must see it)
PLANTED: dict[str, tuple[Callable[[], None], str]] = {
    f.__name__: (f, scenario)
    for f, scenario in (
        (read_without_grants, "leader-cut-off"),
        (no_dedupe, "kills-in-turn"),
        (answer_before_commit, "leader-mute"),
        (skip_a_record, "calm"),
        (answer_before_sync, "power-off"),
    )
}
