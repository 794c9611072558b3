"""A snapshot takes the place of a partition's state: staged apart, switched in by one transaction (R17, R14)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from metastore.errors import NoRoom, StorageError
from metastore.keys import END_OF_RING
from metastore.storage.checkpoints import Checkpoints
from metastore.storage.journal import Journal
from metastore.storage.overlay import Changes
from metastore.storage.records import ConfigEntry
from metastore.storage.slots import Slots
from metastore.storage.snapshot import SnapshotInstaller, SnapshotRow
from metastore.storage.splits import Splits
from metastore.storage.state import Meta, State
from metastore.storage.transactions import Transactions
from metastore.storage.writer import Writer

#: so often a switch for which there is no room is tried again
RETRY_S: Final = 0.25


class Switching:
    """See the module."""

    def __init__(
        self,
        slots: Slots,
        changes: Changes,
        splits: Splits,
        journal: Journal,
        checkpoints: Checkpoints,
        state: State,
        transactions: Transactions,
        writer: Writer,
    ) -> None:
        self._slots, self._changes, self._splits = slots, changes, splits
        self._journal, self._checkpoints = journal, checkpoints
        self._state, self._transactions, self._writer = state, transactions, writer

    def begin(self, p: int) -> SnapshotInstaller:
        """Raises StorageError when this store holds no replica of ``p``."""
        if p not in self._slots.partitions:
            raise StorageError(f"this store holds no replica of partition {p}")
        return SnapshotInstaller(self, p, self._slots.take())

    async def stage(self, slot: int, rows: list[SnapshotRow]) -> None:
        await self._writer.run(self._transactions.stage, slot, rows)

    def discard(self, slot: int) -> None:
        self._slots.discard(slot)

    async def rebuild(self, p: int, slot: int, index: int, epoch: int) -> bool:
        """One transaction makes the staged slot the state of a partition whose own is damaged. The log stays as it is,
        and what it has above ``index`` is applied again. False when it does not reach down to there any more.
        Nothing may be applied in the partition until this returns."""
        await self._children_durable(p)
        info = self._slots.partitions[p]
        self._slots.switching.add(p)  # no flush may write the partition's old row after the new one
        try:
            while self._changes.flushing is not None:
                await self._checkpoints.push()
            if not info.log.base_index <= index <= info.log.last_index:
                return False
            info.saved = index  # segments with what follows stay
            new = replace(info.meta, slot=slot, shared=0, start=b"", end=END_OF_RING)
            new.applied, new.applied_epoch = index, epoch
            await self._write(p, new)
        finally:
            self._slots.switching.discard(p)
        if info.meta.dropped:  # meanwhile
            return False
        self._changes.active.drop(p)
        self._slots.switch(p, slot, index, epoch)
        self._state.renew({})
        return True

    async def switch(self, p: int, slot: int, index: int, epoch: int) -> None:
        """R17: one transaction makes the staged slot the partition's state. Nothing may be
        appended to or applied in the partition until this returns, but seals and configs."""
        await self._children_durable(p)
        info, log = self._slots.partitions[p], self._journal.log
        meta, from_seq = info.meta, log.last_seq
        self._slots.switching.add(p)  # no flush may write the partition's old row after the new one
        try:
            # records up to ``from_seq`` become void: none of these numbers may be given out again
            # by a recovery that finds a shorter log
            while self._changes.flushing is not None or log.durable_seq < from_seq:
                await self._checkpoints.push()
            new = Meta(slot, index, epoch, index, meta.sealed, meta.owner, meta.config, from_seq)
            await self._write(p, new)
        finally:
            self._slots.switching.discard(p)
        # a seal recorded meanwhile is in the log and in ``meta``, which stays the live object
        self._changes.active.drop(p)
        self._slots.switch(p, slot, index, epoch)
        meta.commit, meta.log_from_seq = index, from_seq
        self._state.renew({})
        log.partitions[p].reset(index, epoch)
        info.saved = index
        if meta.config:  # what came by snapshot is acknowledged like any entry: the mark says so too (R13)
            self._journal.append(ConfigEntry(p, meta.config))
        if self._splits.waiting:
            self._checkpoints.freeze()

    async def _children_durable(self, p: int) -> None:
        """R18: what was split off stands on the old rows and the old log until it is durable."""
        while self._splits.pending_of(p):
            await self._checkpoints.push()

    async def _write(self, p: int, new: Meta) -> None:
        while True:
            try:
                await self._writer.run(self._transactions.switch, p, new)
                return
            except NoRoom:
                await asyncio.sleep(RETRY_S)
