"""What the parts of one partition share: its replica, its state machine, its range, and the node around it."""

from __future__ import annotations

from typing import Final

from metastore.clock import now_ns
from metastore.core.machine import Machine
from metastore.core.replica import ACTIVE, RESIGNING
from metastore.core.views import ReplicaView
from metastore.keys import end_point
from metastore.operations import Op
from metastore.partition.ports import Agenda, PartitionSlice, ReplySink, Surroundings

#: roles in which entries proposed here may still be uncommitted
PROPOSING: Final = frozenset({ACTIVE, RESIGNING})

Waiting = tuple[ReplySink, bytes, Op, int, int]
"""``(connection, client id, op, deadline in ns, bytes that it takes)``."""


class PartitionState:
    """See the module."""

    __slots__ = ("agenda", "around", "frozen", "hi", "lo", "machine", "p", "replica", "store")

    def __init__(
        self, replica: ReplicaView, store: PartitionSlice, agenda: Agenda, around: Surroundings
    ) -> None:
        config = replica.config
        assert config is not None
        self.p = replica.p
        self.replica, self.store, self.agenda, self.around = replica, store, agenda, around
        self.machine = Machine(store.get)
        #: storage keys ``lo <= storage_key < hi`` are served: each begins with its point. ``hi`` follows from what ``Split.narrow``
        #: finds
        self.lo, self.hi = config.lo.to_bytes(8, "big"), end_point(config.hi)
        #: the state could not even be loaded (R14): nothing is applied to it, all waits in the log
        self.frozen = False

    def covers(self, storage_key: bytes) -> bool:
        return self.lo <= storage_key < self.hi

    def has_state(self) -> bool:
        """R8: whether what is here was the partition's state at some moment. Nothing applied or installed yet is
        no state, nor is what a new member has been sent so far, before it once had all (R10): by either the
        records that are there would not exist."""
        return self.store.applied > 0 and (self.replica.fresh_ns > 0 or self.replica.is_member())

    def age_ms(self) -> int | None:
        """Upper bound of the age of this copy (R8); None when it is not known."""
        age_ns = self.replica.age_ns(now_ns())
        return None if age_ns is None else -(-age_ns // 1_000_000)
