"""Which segments of the log stay, and how the others go.

A segment stays until the state has all that is in it, and beyond that for followers that lag: so many bytes in all, more of it while a
snapshot is on its way to somebody (R17), nothing when there is hardly room on the disk. One that has rotted goes as soon as it can (R14).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from metastore.errors import NoRoom
from metastore.storage.log import NodeLog
from metastore.storage.segments import Border, Segment
from metastore.storage.slots import Slots
from metastore.storage.space import Space
from metastore.storage.transactions import Transactions
from metastore.storage.writer import Writer

log = logging.getLogger("metastore.store")

HOLD_AFTER_S: Final = 10.0


class Retention:
    """See the module. ``kept_bytes``: how much log is kept for followers that lag."""

    def __init__(
        self,
        kept_bytes: int,
        node_log: NodeLog,
        space: Space,
        slots: Slots,
        transactions: Transactions,
        writer: Writer,
    ) -> None:
        self._kept_bytes = kept_bytes
        self._log, self._space, self._slots = node_log, space, slots
        self._transactions, self._writer = transactions, writer
        #: partition -> entries above this are kept for a while
        self._held: dict[int, int] = {}
        #: no more of the log, and not yet deleted
        self._leaving: list[Segment] = []
        #: segments up to this one go as soon as the state has what is in them
        self._rotten = 0
        #: told of a partition whose log begins later now, and after which entry
        self.on_compacted: Callable[[int, int], None] = lambda p, index: None

    # --- what is kept -----------------------------------------------------------------------

    def hold(self, p: int, index: int) -> None:
        """Keep entries above ``index``, within bounds: a snapshot at it is on its way (R17)."""
        self._held[p] = min(index, self._held.get(p, index))

    def release(self, p: int) -> None:
        """The snapshot has arrived or failed; who has received it has a while to ask for what follows."""
        if self._writer.loop is not None:
            self._writer.loop.call_later(HOLD_AFTER_S, self.forget, p)

    def forget(self, p: int) -> None:
        """Nobody needs any entry of ``p``."""
        self._held.pop(p, None)

    def let_go(self, segment: int) -> None:
        """R14: segments up to this one, which has rotted, go as soon as the state has what is in them."""
        self._rotten = max(self._rotten, segment)

    def knows(self, segment: int) -> bool:
        """Whether that segment is to go already."""
        return segment <= self._rotten

    @property
    def has_rotten(self) -> bool:
        """Whether a segment that has rotted is still of the log."""
        return self._log.files.segments[0].number <= self._rotten

    def _retained_bytes(self) -> int:
        if self._space.critical:
            return 0
        files, kept = self._log.files, self._kept_bytes
        if self.has_rotten:
            kept = min(kept, (files.segments[-1].number - self._rotten) * files.segment_bytes)
        return kept

    def needs_flush(self, unsaved: bool, checkpoint_seq: int) -> bool:
        """The log is over its retention and waits for facts or idle partitions to be saved: once a segment, so that it
        ends whatever else keeps some. ``unsaved``: there are some."""
        files = self._log.files
        return self.has_rotten or (
            unsaved
            and files.total_bytes() > self._retained_bytes()
            and len(files.segments) > 1
            and files.segments[-2].last_seq > checkpoint_seq
        )

    # --- what goes --------------------------------------------------------------------------

    def look(self, checkpoint_seq: int) -> None:
        """Without waiting for a flush, as nothing may have changed since the last one."""
        if self._space.critical:
            self.remove(checkpoint_seq)
        else:
            self._delete_leaving()

    def remove(self, checkpoint_seq: int) -> None:
        """The oldest segments go, of which the state has all, beyond what is kept. The state has the log up to record
        ``checkpoint_seq``."""
        partitions = self._slots.partitions
        shortened, removed = self._log.remove_segments(
            lambda p: partitions[p].saved if p in partitions else 0,
            checkpoint_seq,
            self._retained_bytes(),
            {} if self._space.critical or self.has_rotten else self._held,
        )
        self._leaving += removed
        self._delete_leaving()
        for p in shortened:
            self.on_compacted(p, self._log.partitions[p].index.base_index)

    def _delete_leaving(self) -> None:
        """Segments that nobody needs any more go, now or when there is room for the word of it."""
        if not self._leaving:
            return
        segments, self._leaving = self._leaving, []
        oldest = self._log.files.segments[0]
        border = Border(oldest.number, oldest.first_block)
        if self._writer.loop is None:
            self._delete(segments, border)
        else:
            self._writer.submit(partial(self._deleted, segments), self._delete, segments, border)

    def _delete(self, segments: list[Segment], border: Border) -> None:
        """The state knows first where the log begins: one that begins later is a loss."""
        self._transactions.move_border(border)
        try:
            self._log.files.delete(segments)
        except OSError as e:  # they are deleted at the next start
            log.warning("log segments could not be deleted: %s", e)

    def _deleted(self, segments: list[Segment], error: BaseException | None) -> None:
        if isinstance(error, NoRoom):
            self._leaving[:0] = segments
        elif error is not None:
            self._writer.fail(error)
