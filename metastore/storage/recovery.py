"""Replay of the log onto what the state has: rebuilds each partition's log, durable facts and kept rows."""

from __future__ import annotations

from typing import Any

from metastore.core.entry import check_entry
from metastore.errors import CorruptLog
from metastore.keys import END_OF_RING
from metastore.storage.facts import keep_fact
from metastore.storage.kept import KeptRows
from metastore.storage.log import NodeLog
from metastore.storage.partition_log import PartitionLog
from metastore.storage.records import (
    ConfigEntry,
    DropEntry,
    EntryRecord,
    Fact,
    Record,
    SealEntry,
    TruncateEntry,
)
from metastore.storage.segments import Block
from metastore.storage.state import Meta


class Recovery:
    """Feed it every block in order, then ``finish``. ``metas``, ``facts`` and ``kept`` are brought up to
    date in place; ``commits`` is what entries said was committed."""

    def __init__(
        self, log: NodeLog, metas: dict[int, Meta], facts: dict[str, Any], kept: KeptRows, free_slot: int
    ) -> None:
        """``free_slot``: from here on slots hold no rows."""
        self.log = log
        self.metas = metas
        self.facts = facts
        self.kept = kept
        self.commits: dict[int, int] = {}
        self.free_slot = free_slot
        #: partition -> first entry found beyond what the state ends at: an error, unless taken back
        self._gaps: dict[int, int] = {}
        for p in metas:
            self._part(p)

    def _part(self, p: int) -> PartitionLog:
        part = self.log.partitions.get(p)
        if part is None:
            part = self.log.partitions[p] = PartitionLog()
            part.unset = True
            if p not in self.metas:
                self.metas[p] = Meta(self.free_slot)
                self.free_slot += 1
        return part

    def on_block(self, block: Block) -> None:
        self.log.replay(block, self._apply)

    def _apply(self, seq: int, location: int, record: Record) -> None:
        if isinstance(record, EntryRecord):
            part = self._part(record.p)
            if seq > self.metas[record.p].log_from_seq:
                self._entry(part, record, location)
        elif isinstance(record, TruncateEntry):
            part = self._part(record.p)
            if seq > self.metas[record.p].log_from_seq:
                if record.keep_index < self._gaps.get(record.p, 0):
                    del self._gaps[record.p]
                if part.unset or record.keep_index < part.index.base_index:
                    part.reset(0, 0)
                    part.unset = True
                else:
                    part.truncate(record.keep_index)
        elif isinstance(record, SealEntry):
            self._part(record.p)
            meta = self.metas[record.p]
            self._revive(meta, seq)
            if record.epoch >= meta.sealed:
                meta.sealed, meta.owner, meta.config = record.epoch, record.owner, record.config
        elif isinstance(record, ConfigEntry):
            self._part(record.p)
            self.metas[record.p].config = record.config
        elif isinstance(record, Fact):
            keep_fact(self.facts, self.kept, record)
        elif isinstance(record, DropEntry):
            self._drop(record.p, seq)

    def _drop(self, p: int, seq: int) -> None:
        """Whatever was recorded before is void but the sealed epoch (R10)."""
        part, old = self._part(p), self.metas[p]
        if seq <= old.log_from_seq:
            return
        self.metas[p] = Meta(
            old.slot, sealed=old.sealed, owner=old.owner, config=old.config, log_from_seq=seq, dropped=True
        )
        part.reset(0, 0)
        self._gaps.pop(p, None)
        self.commits.pop(p, None)

    def _revive(self, meta: Meta, seq: int) -> None:
        """A record of a dropped partition: it was taken up again, empty."""
        if meta.dropped and seq > meta.log_from_seq:
            meta.slot, meta.shared, meta.dropped = self.free_slot, 0, False
            meta.start, meta.end = b"", END_OF_RING
            self.free_slot += 1

    def _entry(self, part: PartitionLog, record: EntryRecord, location: int) -> None:
        index, epoch = check_entry(record.blob)
        if part.unset:
            meta = self.metas[record.p]
            if index > meta.applied + 1:
                self._gaps.setdefault(record.p, index)
                return
            if index == meta.applied + 1 and epoch >= meta.applied_epoch:
                part.reset(meta.applied, meta.applied_epoch)
                part.append(index, epoch, location)
            else:
                # the first entry found serves as the base; one that a later record takes back
                # (its epoch is older than what is applied before it) until that record comes
                part.reset(index, epoch)
        else:
            try:
                part.append(index, epoch, location)
            except AssertionError as e:
                raise CorruptLog(f"partition {record.p}: {e}; replace the node") from None
        self.commits[record.p] = max(self.commits.get(record.p, 0), record.commit)

    def finish(self) -> None:
        """Raises CorruptLog when log and state contradict each other."""
        for p, part in self.log.partitions.items():
            meta = self.metas[p]
            if p in self._gaps:
                raise CorruptLog(
                    f"partition {p}: the log continues at entry {self._gaps[p]}, the state ends at {meta.applied}; "
                    "replace the node"
                )
            if part.unset:
                part.reset(meta.applied, meta.applied_epoch)
            index = part.index
            if index.last_index < meta.applied or index.base_index > meta.applied:
                raise CorruptLog(
                    f"partition {p}: the state is at entry {meta.applied}, the log has {index.base_index} to {index.last_index}; "
                    "replace the node"
                )
            if index.base_index <= meta.applied and index.epoch_at(meta.applied) != meta.applied_epoch:
                raise CorruptLog(
                    f"partition {p}: entry {meta.applied} is of epoch {index.epoch_at(meta.applied)} in the log "
                    f"and {meta.applied_epoch} in the state; replace the node"
                )
