"""Bugs to be planted into real nodes, by name (``METASTORE_PLANTED``): the runner must see what each breaks, and
no other problem counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def read_without_grants() -> None:
    """R8: an active leader reads whatever it holds, cut off or not."""
    from metastore.core.leading import LeadingReplica
    from metastore.core.replica import ACTIVE

    LeadingReplica.can_read = lambda self, now: self.role == ACTIVE  # type: ignore[method-assign]


def no_dedupe() -> None:
    """R7: a retry is executed again."""
    from metastore.core.proposals import Proposals

    Proposals._known = lambda self, client, seq, lowest_open, last_seen: None  # type: ignore[method-assign]


def answer_before_commit() -> None:
    """R7: a write is answered when it is proposed; what the leader alone had dies with it."""
    from metastore.partition.partition import Partition

    original = Partition.propose_pending

    def propose_pending(self: Any, now: int) -> None:
        original(self, now)
        while self.waiters:
            _, connection, op_id, tail, _ = self.waiters.popleft()
            connection.answer([op_id, *tail])

    Partition.propose_pending = propose_pending  # type: ignore[method-assign]


def skip_a_record() -> None:
    """I2: one replica in a while leaves out a change."""
    from metastore.storage.checkpoints import Checkpoints

    original = Checkpoints.apply

    def apply(self: Any, p: int, index: int, epoch: int, changes: Any, *more: Any) -> None:
        lost = index % 97 == 0 and "c1n2" in str(self._journal.log.files.folder)
        original(self, p, index, epoch, [] if lost else changes, *more)

    Checkpoints.apply = apply  # type: ignore[method-assign, assignment]


def answer_before_sync() -> None:
    """R5, R6: most copies count as durable when they are written: the disk is synced every now and then."""
    import time

    from metastore.storage.disk import Disk

    sync, synced = Disk.sync, [0.0]

    def seldom(self: Any, fd: int) -> None:
        if time.monotonic() - synced[0] > 0.3:
            sync(self, fd)
            synced[0] = time.monotonic()

    Disk.sync = seldom  # type: ignore[method-assign]


#: how the judges begin to say that histories are not linearizable (I5), that replicas differ (I2)
HISTORY = r"none of these can come next|nobody ever wrote what was read|belongs to two changes"
REPLICAS = r"I2: replicas of partition \d+ differ"
#: and that a disk lost what counted as durable: the log says so itself (R14), or a promise is forgotten (I7)
DURABLE = (
    r"corrupt at offset \d+ \(block \d+, which was durable once\)|had sealed \d+ of partition \d+, and now"
)


@dataclass(frozen=True)
class Plant:
    """``bug``: what plants it; ``scenario``: that must see it; ``breaks``: what is said then, as a pattern."""

    bug: Callable[[], None]
    scenario: str
    breaks: str


PLANTED: dict[str, Plant] = {
    plant.bug.__name__: plant
    for plant in (
        Plant(read_without_grants, "leader-cut-off", HISTORY),
        Plant(no_dedupe, "kills-in-turn", HISTORY),
        Plant(answer_before_commit, "leader-mute", HISTORY),
        Plant(skip_a_record, "calm", f"{HISTORY}|{REPLICAS}"),
        Plant(answer_before_sync, "power-off", f"{HISTORY}|{DURABLE}"),
    )
}
