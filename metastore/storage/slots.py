"""The partitions of a store: what is known of each, which slot of the state holds whose rows, and which rows nobody needs
any more (R17, R18). Pure.

Every fact about a partition's state and log is in its ``PartitionInfo`` and nowhere else in the store: the entry that is applied and the
bounds of its range in ``meta``, the log's first and last entry in ``log``, how far the state on the disk is in ``saved``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from metastore.core.logindex import LogIndex
from metastore.keys import END_OF_RING
from metastore.storage.partition_log import PartitionLog
from metastore.storage.state import DATA_TABLE, LONG, METADATA_TABLE, SLOT, GarbageRange, Meta

#: a slot that is never given out
NO_SLOT: Final = 0


@dataclass(slots=True)
class PartitionInfo:
    """What the store knows of a replica. ``log`` is the store's own; take a copy."""

    meta: Meta
    log: LogIndex
    #: the entry that the state on the disk is at, 0 = it has nothing of the partition
    saved: int = 0

    @property
    def sealed_epoch(self) -> int:
        return self.meta.sealed

    @property
    def owner(self) -> bytes:
        return self.meta.owner

    @property
    def config(self) -> bytes | None:
        return self.meta.config or None

    @property
    def commit_index(self) -> int:
        """A lower bound: what the store has heard of."""
        return self.meta.commit

    @property
    def applied_index(self) -> int:
        return self.meta.applied

    @property
    def applied_epoch(self) -> int:
        return self.meta.applied_epoch

    @property
    def dropped(self) -> bool:
        return self.meta.dropped


@dataclass(slots=True)
class Slots:
    """See the module."""

    partitions: dict[int, PartitionInfo] = field(default_factory=dict)
    #: partitions whose row in the state is not what it has to be
    changed: set[int] = field(default_factory=set)
    #: partitions whose staged slot is being switched in
    switching: set[int] = field(default_factory=set)
    #: to be deleted, the first one first
    garbage: list[GarbageRange] = field(default_factory=list)
    #: of a partition, at an entry: rows that it parted with and nobody here needs (R18)
    parted: list[tuple[int, int, GarbageRange]] = field(default_factory=list)
    _next: int = NO_SLOT + 1

    def recovered(
        self, metas: Mapping[int, Meta], logs: Mapping[int, PartitionLog], found: set[int], free_slot: int
    ) -> None:
        """What a recovery has found. ``found``: slots with rows; ``free_slot``: from here on there are none."""
        for p, meta in metas.items():
            self.partitions[p] = PartitionInfo(meta, logs[p].index, meta.applied)
        self.changed = set(metas)
        self._next = free_slot
        # what a crash left of one partition in a slot that others share goes with the last of them
        live = [info.meta for info in self.partitions.values() if not info.meta.dropped]
        used = {slot for meta in live for slot in (meta.slot, meta.data_slot)}
        self.garbage = [GarbageRange(0, slot, slot) for slot in sorted(found - used)]

    def take(self) -> int:
        """A slot without rows."""
        self._next += 1
        return self._next - 1

    def add(self, p: int, log: PartitionLog) -> None:
        """An empty replica, or an empty one once more of a partition that was dropped."""
        info = self.partitions.get(p)
        if info is None:
            self.partitions[p] = PartitionInfo(Meta(self.take()), log.index)
        elif info.meta.dropped:
            info.meta.slot, info.meta.shared, info.meta.dropped = self.take(), 0, False
            info.meta.start, info.meta.end = b"", END_OF_RING
            info.saved = 0
        self.changed.add(p)

    def drop(self, p: int, seq: int) -> None:
        """R10: only what was sealed stays; record ``seq`` of the log says so, and with it the rows may go."""
        info = self.partitions[p]
        self.garbage.append(self.rows_of(p, seq))
        meta = info.meta
        meta.dropped, meta.shared = True, 0
        meta.applied = meta.applied_epoch = meta.commit = info.saved = 0
        meta.log_from_seq = seq
        self.changed.add(p)

    def switch(self, p: int, slot: int, index: int, epoch: int) -> None:
        """R17: the rows of ``slot`` are the partition's, at entry ``index``; those that it had are garbage."""
        self.garbage.append(self.rows_of(p, 0))
        meta = self.partitions[p].meta
        meta.slot, meta.shared, meta.applied, meta.applied_epoch = slot, 0, index, epoch
        meta.start, meta.end = b"", END_OF_RING
        self.changed.add(p)

    def is_empty(self, p: int) -> bool:
        """Whether this replica has had nothing yet: no entry, no snapshot, none on its way in."""
        info = self.partitions[p]
        return not (info.meta.dropped or info.meta.applied or info.log.last_index or p in self.switching)

    def holds(self, p: int) -> bool:
        """Whether there is a durable copy of ``p`` here, of whatever age."""
        info = self.partitions.get(p)
        return info is not None and info.saved > 0

    def rows_of(self, p: int, seq: int) -> GarbageRange:
        """The rows of a partition, which are to go once the log is durable up to ``seq``: all of its slot, or what
        others in it leave."""
        meta = self.partitions[p].meta
        others = (i.meta for q, i in self.partitions.items() if q != p and not i.meta.dropped)
        if any(other.data_slot == meta.data_slot for other in others):
            return GarbageRange(seq, meta.slot, meta.data_slot, meta.start, meta.end)
        return GarbageRange(seq, meta.slot, meta.data_slot)

    def discard(self, slot: int) -> None:
        """All rows of a slot that no partition has."""
        self.garbage.append(GarbageRange(0, slot, slot))

    def discard_parted(self) -> None:
        """R18: rows above a point may go once the state has the parent at the entry that parted with them, or has dropped
        it: before that it would be without them at an earlier entry."""
        later = []
        for p, index, garbage in self.parted:
            if self.partitions[p].meta.dropped or self.partitions[p].saved >= index:
                self.garbage.append(garbage)
            else:
                later.append((p, index, garbage))
        self.parted = later

    def owners(self, table: str, key: bytes) -> list[int]:
        """The partitions that a row of the state is of; none when it is to be deleted."""
        found = []
        for p, info in self.partitions.items():
            meta = info.meta
            if table == METADATA_TABLE:
                mine = key[: SLOT.size] == SLOT.pack(meta.slot)
            else:
                data = SLOT.pack(meta.data_slot)
                mine = table == DATA_TABLE and data + meta.start[:LONG] <= key < data + meta.end[:LONG]
            if mine and not meta.dropped:
                found.append(p)
        return found
