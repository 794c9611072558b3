"""Which slot of the state holds which partition's rows, and which rows nobody needs any more (R17, R18). Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from metastore.core.logindex import LogIndex
from metastore.storage.state import AUX_TABLE, DATA_TABLE, LONG, SLOT, Meta, Rubbish

#: a slot that is never given out
NO_SLOT: Final = 0


@dataclass(slots=True)
class PartitionInfo:
    """What the store knows of a replica. ``log`` is the store's own; take a copy."""

    meta: Meta
    log: LogIndex

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
    """See the module. ``partitions``: the store's own."""

    partitions: dict[int, PartitionInfo]
    #: to be deleted, the first one first
    garbage: list[Rubbish] = field(default_factory=list)
    #: of a partition, at an entry: rows that it parted with and nobody here needs (R18)
    parted: list[tuple[int, int, Rubbish]] = field(default_factory=list)
    _next: int = NO_SLOT + 1

    def recovered(self, found: set[int], free_slot: int) -> None:
        """``found``: slots with rows; ``free_slot``: from here on there are none."""
        self._next = free_slot
        # what a crash left of one partition in a slot that others share goes with the last of them
        metas = [info.meta for info in self.partitions.values() if not info.meta.dropped]
        used = {slot for meta in metas for slot in (meta.slot, meta.data_slot)}
        self.garbage = [Rubbish(0, slot, slot) for slot in sorted(found - used)]

    def take(self) -> int:
        """A slot without rows."""
        self._next += 1
        return self._next - 1

    def rows_of(self, p: int, seq: int) -> Rubbish:
        """The rows of a partition, which are to go once the log is durable up to ``seq``: all of its slot, or what
        others in it leave."""
        meta = self.partitions[p].meta
        others = (i.meta for q, i in self.partitions.items() if q != p and not i.meta.dropped)
        if any(other.data_slot == meta.data_slot for other in others):
            return Rubbish(seq, meta.slot, meta.data_slot, meta.start, meta.end)
        return Rubbish(seq, meta.slot, meta.data_slot)

    def discard(self, slot: int) -> None:
        """All rows of a slot that no partition has."""
        self.garbage.append(Rubbish(0, slot, slot))

    def discard_parted(self, durable_applied: Callable[[int], int]) -> None:
        """R18: rows above a point may go once the state has the parent at the entry that parted with them, or has dropped
        it: before that it would be without them at an earlier entry."""
        later = []
        for p, index, rubbish in self.parted:
            if self.partitions[p].meta.dropped or durable_applied(p) >= index:
                self.garbage.append(rubbish)
            else:
                later.append((p, index, rubbish))
        self.parted = later

    def owners(self, table: str, key: bytes) -> list[int]:
        """The partitions that a row of the state is of; none when it is to be deleted."""
        found = []
        for p, info in self.partitions.items():
            meta = info.meta
            if table == AUX_TABLE:
                mine = key[: SLOT.size] == SLOT.pack(meta.slot)
            else:
                data = SLOT.pack(meta.data_slot)
                mine = table == DATA_TABLE and data + meta.start[:LONG] <= key < data + meta.end[:LONG]
            if mine and not meta.dropped:
                found.append(p)
        return found
