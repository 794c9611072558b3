"""What is to be done about rot in the log or the state, whether a reader or the scrub finds it (R14)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from metastore.errors import CorruptLog, CorruptState, RottenEntry
from metastore.storage.journal import Journal
from metastore.storage.retention import Retention
from metastore.storage.scrub import RottenBlock, RottenRow
from metastore.storage.slots import Slots
from metastore.storage.writer import Writer

log = logging.getLogger("metastore.store")

#: a fact that is logged so that a segment which has rotted is the last one no more
FACT_LEFT: Final = "left_segment"
#: how long it may take until nothing needs a segment that has rotted
LET_GO_S: Final = 10.0


class Damage:
    """See the module. ``count``: how much was found, for status and metrics."""

    def __init__(self, slots: Slots, journal: Journal, retention: Retention, writer: Writer) -> None:
        self._slots, self._journal, self._retention, self._writer = slots, journal, retention, writer
        self.count = 0
        #: what is in the state of a partition is not what was put there, and why that is known
        self.on_rotten: Callable[[int, CorruptState], None] = lambda p, error: None
        #: whether some partition's state is on its way from another replica: what needs that may take long
        self.is_rebuilding: Callable[[], bool] = lambda: False

    def found(self, damage: RottenRow | RottenBlock) -> None:
        """The scrub has found it: that of a partition goes to ``on_rotten``, any other ends the store."""
        self.count += 1
        if isinstance(damage, RottenBlock):
            path = self._journal.log.files.path(damage.segment)
            self._let_go(
                damage.segment,
                CorruptLog(f"{path} is corrupt at offset {damage.offset}; replace the node"),
            )
            return
        error = CorruptState(
            f"the stored row of {damage.key[:80]!r} in {damage.table} does not match its checksum"
        )
        if damage.table in ("meta", "map"):
            self._writer.fail(error)
        for p in self._slots.owners(damage.table, damage.key):
            self.on_rotten(p, error)

    def entry(self, error: RottenEntry) -> None:
        """A read has found what the scrub had not come to yet."""
        segment = error.detail["segment"]
        if not self._retention.knows(segment):  # else it is read again
            self.count += 1
        self._let_go(segment, error)

    def _let_go(self, segment: int, error: CorruptLog) -> None:
        """A segment has rotted. Nothing needs it once it is written no more and the state has all that is in it; if that
        does not come about soon, or when the copies that lack something have been rebuilt, the store ends."""
        writer, node_log = self._writer, self._journal.log
        if writer.failure is not None or self._retention.knows(segment):
            return
        if writer.loop is None:
            writer.fail(error)
            return
        log.error("%s; what is in its segment is saved in the state, and then that goes", error.message)
        self._retention.let_go(segment)
        if segment >= node_log.files.segments[-1].number:
            node_log.leave(segment)
            self._journal.keep_fact(FACT_LEFT, segment)
        writer.loop.call_later(LET_GO_S, self._look, error)

    def _look(self, error: CorruptLog) -> None:
        writer = self._writer
        if not self._retention.has_rotten or writer.failure is not None:
            return
        if self.is_rebuilding():
            assert writer.loop is not None
            writer.loop.call_later(LET_GO_S, self._look, error)
        else:
            writer.fail(error)
