"""From applied entries to the state on the disk: a generation of changes gathers, is frozen, and is written by one transaction.

Applying makes an entry's changes visible at once, with its position and what it splits off. ``freeze`` turns all that was applied
into one ``transactions.Flush``; it is written once the log is durable up to there, so that the state is never ahead of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from metastore.core.rows import UpperHalf
from metastore.errors import NoRoom
from metastore.storage.journal import Journal
from metastore.storage.options import StorageOptions
from metastore.storage.overlay import Changes
from metastore.storage.retention import Retention
from metastore.storage.slots import Slots
from metastore.storage.splits import Splits
from metastore.storage.state import State
from metastore.storage.transactions import Flush, MetadataSource, Transactions, flush_of
from metastore.storage.writer import Writer

log = logging.getLogger("metastore.store")

PUSH_S: Final = 0.002


class Checkpoints:
    """See the module. ``seq``: the record of the log up to which the state has all."""

    def __init__(
        self,
        options: StorageOptions,
        slots: Slots,
        changes: Changes,
        splits: Splits,
        journal: Journal,
        retention: Retention,
        state: State,
        transactions: Transactions,
        writer: Writer,
        seq: int,
    ) -> None:
        self._options = options
        self._slots, self._changes, self._splits = slots, changes, splits
        self._journal, self._retention = journal, retention
        self._state, self._transactions, self._writer = state, transactions, writer
        self.seq = seq
        #: so many changes make a flush due
        self.flush_changes = options.flush_changes
        self._since_s = 0.0
        #: frozen, and not yet given to the writer
        self.waiting: Flush | None = None
        #: a flush waits for room
        self.blocked = False
        self._sources: dict[int, MetadataSource] = {}
        #: told of a child that has become durable, and its parent (R18)
        self.on_split: Callable[[int, int], None] = lambda child, parent: None
        self.count = 0
        self.last_ms = 0

    # --- applying ---------------------------------------------------------------------------

    def set_metadata_source(self, p: int, source: MetadataSource) -> None:
        """Who gives the present value of a metadata row that changed, when a flush is frozen."""
        self._sources[p] = source

    def apply(
        self,
        p: int,
        index: int,
        epoch: int,
        changes: list[tuple[bytes, bytes | None]],
        metadata: set[bytes],
        split_off: UpperHalf | None = None,
    ) -> None:
        """Committed changes of entry ``index``, and what it splits off (R18); visible at once, in the state later.
        ``metadata``: metadata rows that changed."""
        slots = self._slots
        meta = slots.partitions[p].meta
        assert index == meta.applied + 1, f"R6: entry {index} applied after {meta.applied}"
        meta.applied, meta.applied_epoch = index, epoch
        if index > meta.commit:
            meta.commit = index
        active = self._changes.active
        if not active.changes:
            self._since_s = self._writer.now_s()
        active.apply(p, changes, metadata)
        self._changes.grown()
        slots.changed.add(p)
        if split_off is not None:
            self._splits.part(p, index, epoch, split_off)
        if split_off or active.bytes > self._options.flush_bytes or active.changes > self.flush_changes:
            self.freeze()

    def forget(self, p: int) -> None:
        """The partition is dropped: nothing of it goes into the state any more."""
        self._changes.active.drop(p)
        self._sources.pop(p, None)

    # --- flushing ---------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether a flush is, by age or because the log waits for one."""
        active, seq = self._changes.active, self.seq
        if active.changes and self._writer.now_s() - self._since_s > self._options.flush_age_s:
            return True
        return self._retention.needs_flush(bool(self._slots.changed) or self._journal.facts_seq > seq, seq)

    @property
    def idle(self) -> bool:
        """Whether the state has all that was applied."""
        return self._changes.flushing is None and not self._changes.active.changes and not self._slots.changed

    def freeze(self) -> None:
        """Make the active generation the flushing one, with all rows that go with it."""
        if self._changes.flushing is not None or self._slots.switching or self._writer.failure is not None:
            return
        # not in step: replicas apply the same changes, and a quorum of them should not be busy at once
        self.flush_changes = int(self._options.flush_changes * random.uniform(0.6, 1.4))
        changed, self._slots.changed = self._slots.changed, set()
        self.waiting = flush_of(
            self._slots.partitions,
            self._changes.freeze(),
            self._splits.freeze(),
            changed,
            self._sources,
            self._journal.kept.unsaved(),
            self._journal.log.last_seq,
        )
        self.submit()

    def submit(self) -> None:
        """Hand what is frozen to the writer once the log has all of it durable."""
        flush = self.waiting
        if flush is None or self._journal.log.durable_seq < flush.seq or self._writer.loop is None:
            return
        self.waiting = None
        then = partial(self._written, flush, time.monotonic())
        self._writer.submit(then, self._transactions.flush, flush, self._node_row(flush))

    def _node_row(self, flush: Flush) -> bytes:
        journal = self._journal
        return self._transactions.node_row(journal.facts, flush.seq, journal.log.durable_block, flush.kept)

    def _written(self, flush: Flush, began: float, error: BaseException | None) -> None:
        if isinstance(error, NoRoom):
            if not self.blocked:
                log.error("%s; it is tried again until there is room", error)
            self.waiting, self.blocked = flush, True
        elif error is not None:
            self._writer.fail(error)
        else:
            self._done(flush)
            self.last_ms = int((time.monotonic() - began) * 1000)

    def _done(self, flush: Flush) -> None:
        self._state.renew(flush.changed)  # before the overlay goes: no read may miss it
        self._changes.flushed()
        self.blocked = False
        self.count += 1
        self.seq = flush.seq
        for p, slot, applied in flush.applied:
            info = self._slots.partitions[p]
            if info.meta.slot == slot:  # not dropped and taken up again meanwhile
                info.saved = applied
        durable = self._splits.flushed()
        self._slots.discard_parted()
        for child, parent in durable.items():
            self.on_split(child, parent)
        self._retention.remove(self.seq)
        if (
            self._changes.active.bytes > self._options.flush_bytes
            or self._splits.waiting
            or self._slots.parted
        ):
            self.freeze()

    async def save(self, p: int, index: int) -> None:
        """Have the state hold the partition up to entry ``index``, which is applied. Raises StorageError."""
        while self._slots.partitions[p].saved < index:
            await self.push()

    async def push(self) -> None:
        """Get a flush on its way, or on; returns a little later. Raises StorageError."""
        if self._writer.failure is not None:
            raise self._writer.failure
        self.freeze()
        self._journal.log.start_sync()
        self.submit()
        await asyncio.sleep(PUSH_S)

    def run(self) -> None:
        """A whole flush here and now (no thread): for tests and simulation."""
        self._journal.log.sync_now()
        self.freeze()
        flush, self.waiting = self.waiting, None
        if flush is not None:
            self._transactions.flush(flush, self._node_row(flush))
            self._done(flush)
