"""What a store does by the clock: flushes by age, looks at the room that there is, deletes garbage."""

from __future__ import annotations

import asyncio
from typing import Final

from metastore.errors import NoRoom, StorageError
from metastore.storage.checkpoints import Checkpoints
from metastore.storage.log import NodeLog
from metastore.storage.overlay import Changes
from metastore.storage.retention import Retention
from metastore.storage.slots import Slots
from metastore.storage.space import Space
from metastore.storage.state import State
from metastore.storage.transactions import Transactions
from metastore.storage.writer import Writer

INTERVAL_S: Final = 0.25


class Upkeep:
    """See the module."""

    def __init__(
        self,
        slots: Slots,
        changes: Changes,
        log: NodeLog,
        space: Space,
        retention: Retention,
        checkpoints: Checkpoints,
        state: State,
        transactions: Transactions,
        writer: Writer,
    ) -> None:
        self._slots, self._changes, self._log, self._space = slots, changes, log, space
        self._retention, self._checkpoints = retention, checkpoints
        self._state, self._transactions, self._writer = state, transactions, writer

    async def run_forever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.look()
            if self._checkpoints.is_due:
                self._checkpoints.freeze()
            if self._slots.garbage and self._changes.flushing is None and self._writer.failure is None:
                await self._delete_garbage()
            if self._space.wants_reserve():
                await self._writer.run(self._space.make_reserve)

    def look(self) -> None:
        """How much room there is; what waits for some is tried again."""
        changes, blocked = self._changes, self._checkpoints.blocked
        pages, room = self._state.engine.pages(), self._log.room()
        self._space.look(pages, changes.bytes, room, blocked, blocked and changes.full)
        if self._writer.failure is None:
            self._checkpoints.submit()
            self._retention.look(self._checkpoints.seq)
            if self._space.disk_free > self._space.segment_bytes:
                self._log.retry()

    async def _delete_garbage(self) -> None:
        """Some of the first rows of garbage, once the log is durable up to where they became that."""
        garbage = self._slots.garbage[0]
        try:
            durable = self._log.durable_seq >= garbage.seq
            if durable and not await self._writer.run(self._transactions.delete_some, garbage):
                self._slots.garbage.remove(garbage)
                self._state.cache.clear()
        except NoRoom:
            pass  # later
        except StorageError as e:
            self._writer.fail(e)
