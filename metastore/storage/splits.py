"""What applied entries split off, until a flush has made it durable (R18).

A child's records stay where they are, in its parent's slot; its metadata rows get a slot of its own. Parent and child go into the
state by one ``flush`` (``transactions``).
"""

from __future__ import annotations

from metastore.core.rows import UpperHalf
from metastore.storage.log import NodeLog
from metastore.storage.overlay import Changes
from metastore.storage.partition_log import PartitionLog
from metastore.storage.slots import NO_SLOT, PartitionInfo, Slots
from metastore.storage.state import GarbageRange, Meta


class Splits:
    """See the module."""

    def __init__(self, slots: Slots, changes: Changes, log: NodeLog) -> None:
        self._slots, self._changes, self._log = slots, changes, log
        #: child -> its parent, and the metadata rows that it begins with; no flush has these yet
        self._pending: dict[int, tuple[int, list[tuple[bytes, bytes]]]] = {}
        #: child -> its parent, of the flush that is under way
        self._flushing: dict[int, int] = {}

    def part(self, p: int, index: int, epoch: int, split_off: UpperHalf) -> None:
        """Entry ``index`` of ``p`` is applied and parts with what lies above. A child that is here, but still
        empty, becomes the split-off half; one that came from elsewhere stays as it is."""
        slots, child = self._slots, split_off.child
        parent, known = slots.partitions[p].meta, slots.partitions.get(child)
        end, parent.end = parent.end, split_off.at
        above = self._changes.active.split(p, split_off.at)
        if split_off.config is None or (known is not None and not slots.is_empty(child)):
            # the rows of a copy that came otherwise are in a slot of its own
            if known is None or known.meta.dropped or slots.holds(child):
                garbage = GarbageRange(self._log.last_seq, NO_SLOT, parent.data_slot, split_off.at, end)
                slots.parted.append((p, index, garbage))
            return
        if known is None:
            log = self._log.partitions[child] = PartitionLog()
            known = slots.partitions[child] = PartitionInfo(Meta(0, config=split_off.config), log.index)
        else:
            slots.discard(known.meta.slot)
        meta = known.meta
        meta.slot, meta.shared = slots.take(), parent.data_slot
        meta.config = meta.config or split_off.config
        meta.start, meta.end = split_off.at, end
        meta.applied, meta.applied_epoch, meta.commit = index, epoch, index
        meta.log_from_seq = self._log.last_seq
        self._log.partitions[child].reset(index, epoch)
        known.saved = 0
        if above is not None:
            self._changes.active.partitions[child] = above
        self._pending[child] = p, split_off.metadata
        slots.changed.add(child)

    def is_pending(self, p: int) -> bool:
        """Whether ``p`` has been split off, and no flush has made it so yet: it is not to be opened."""
        return p in self._pending or p in self._flushing

    def pending_of(self, p: int) -> list[int]:
        """What was split off ``p``, and ``p`` itself if it was, as far as no flush has made it so yet."""
        parents = {child: parent for child, (parent, _) in self._pending.items()} | self._flushing
        return [child for child, parent in parents.items() if p in (child, parent)]

    @property
    def waiting(self) -> bool:
        """Whether something waits for the next flush."""
        return bool(self._pending)

    def freeze(self) -> dict[int, list[tuple[bytes, bytes]]]:
        """The next flush has what waits: the metadata rows of each child."""
        pending, self._pending = self._pending, {}
        self._flushing = {child: parent for child, (parent, _) in pending.items()}
        return {child: metadata for child, (_, metadata) in pending.items()}

    def flushed(self) -> dict[int, int]:
        """What was split off is durable: child -> its parent."""
        flushing, self._flushing = self._flushing, {}
        return flushing
