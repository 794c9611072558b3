"""The entries that a partition's log still has, those of before it was split off among them (R18)."""

from __future__ import annotations

from metastore.partition.ports import EntryLog
from metastore.partition.state import PartitionState


class PartitionLog:
    """See the module."""

    def __init__(self, state: PartitionState) -> None:
        self.state = state

    @property
    def base(self) -> int:
        """The last entry that can no longer be read."""
        own = self.state.store.base_index
        parent = self._parent(own)
        return own if parent is None else parent.base

    def _parent(self, own_base: int) -> EntryLog | None:
        """The log that holds what was before this partition was split off, if it is here and joins up. That partition may
        have been split off itself."""
        state = self.state
        config = state.replica.config
        if config is None or config.parent is None or own_base != config.parent[2]:
            return None
        parent, epoch, index = config.parent
        log = state.around.log_of(parent)
        return log if log is not None and log.joins(epoch, index) else None

    def joins(self, epoch: int, index: int) -> bool:
        """Whether this log has an entry ``index`` of ``epoch``, or ends its past there."""
        store = self.state.store
        return store.base_index <= index <= store.last_index and store.epoch_at(index) == epoch

    def read(self, first: int, max_bytes: int) -> list[bytes]:
        """Entries from ``first`` on, above ``base``; at least one. Raises RottenEntry."""
        store = self.state.store
        own = store.base_index
        parent = self._parent(own) if first <= own else None
        if parent is None:
            return store.read(first, max_bytes)
        return parent.read(first, max_bytes)[: own - first + 1]
