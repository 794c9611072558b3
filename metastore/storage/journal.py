"""The one way into a store's log: what changes it is compared with the sealed epoch here (R1), and noted where it is read from.

Beside entries the log has what a node keeps of itself: *facts* by name, and the rows of the topology (``kept``); among the facts is
which processes have run on the store (R13).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from metastore import fields
from metastore.core.messages import Lineage, Run
from metastore.errors import StorageError
from metastore.storage.facts import keep_fact, read_fact
from metastore.storage.kept import FACT_ROWS, PART_BYTES, KeptRows, parts_of
from metastore.storage.log import NodeLog
from metastore.storage.records import ConfigEntry, DropEntry, Fact, SealEntry, TruncateEntry
from metastore.storage.slots import Slots

#: a durable fact: which processes have run on the store, the newest first (R13)
FACT_RUNS: Final = "runs"
_RUNS: Final = fields.several(fields.row(fields.whole(), fields.text, fields.whole(), fields.whole()))

SimpleRecord = SealEntry | ConfigEntry | Fact | DropEntry
"""Records that change no partition's log: those that do name the epoch under which they do (R1)."""


class Journal:
    """See the module. ``facts`` and ``kept``: as the log has left them."""

    def __init__(self, log: NodeLog, slots: Slots, facts: dict[str, Any], kept: KeptRows) -> None:
        self.log, self.facts, self.kept = log, facts, kept
        self._slots = slots
        #: the newest record that is more than a fact (``mark``)
        self._data_seq = 0
        #: the newest fact
        self.facts_seq = 0

    # --- records ----------------------------------------------------------------------------

    def append(self, record: SimpleRecord) -> int:
        """Buffer a record that changes no log; its number. Durable once ``durable_seq`` reaches it. Raises StorageError (R1)."""
        partitions = self._slots.partitions
        if isinstance(record, SealEntry) and record.epoch <= partitions[record.p].meta.sealed:
            sealed = partitions[record.p].meta.sealed
            raise StorageError(
                f"R1: partition {record.p} has sealed {sealed}; it is not lowered to {record.epoch}"
            )
        seq = self.log.append(record)
        if isinstance(record, SealEntry):
            meta = partitions[record.p].meta
            meta.sealed, meta.owner, meta.config = record.epoch, record.owner, record.config
            self._slots.changed.add(record.p)
        elif isinstance(record, ConfigEntry):
            partitions[record.p].meta.config = record.config
            self._slots.changed.add(record.p)
        elif isinstance(record, Fact):
            keep_fact(self.facts, self.kept, record)
            self.facts_seq = seq
            return seq
        self._data_seq = seq
        return seq

    def append_entries(self, p: int, epoch: int, commit: int, blobs: list[bytes]) -> int:
        """Buffer entries of one partition, written under ``epoch``; the number of the last one. Raises StorageError
        unless ``epoch`` is the one sealed (R1)."""
        self._must_be_sealed(p, epoch)
        self._data_seq = seq = self.log.append_entries(p, commit, blobs)
        return seq

    def truncate(self, p: int, epoch: int, keep_index: int) -> int:
        """Remove the entries above ``keep_index``, under ``epoch``; the record's number. Raises as ``append_entries``."""
        self._must_be_sealed(p, epoch)
        self._data_seq = seq = self.log.append(TruncateEntry(p, keep_index))
        return seq

    def _must_be_sealed(self, p: int, epoch: int) -> None:
        """R1: the storage write itself compares: what changes a log goes by here."""
        sealed = self._slots.partitions[p].meta.sealed
        if epoch != sealed:
            raise StorageError(
                f"R1: partition {p} has sealed epoch {sealed}; nothing is written under {epoch}"
            )

    def save_soon(self) -> None:
        """What is appended is durable when this returns if the log has not been started, else soon."""
        if self.log.started:
            self.log.start_sync()
        else:
            self.log.sync_now()

    # --- what the node keeps of itself ------------------------------------------------------

    def keep_fact(self, key: str, value: Any) -> None:
        """A durable fact: durable when this returns if the store has not been started, else soon."""
        self.append(Fact(key, value))
        self.save_soon()

    def keep_rows(self, rows: Mapping[bytes, bytes | None], complete: bool) -> int:
        """Rows beside the facts (``kept``), all of them or (not ``complete``) what has changed, None = gone; the number of the
        record with which they are durable, as one."""
        seq = self.log.last_seq
        for part in parts_of(rows, complete, min(PART_BYTES, self.log.files.segment_bytes // 4)):
            seq = self.append(Fact(FACT_ROWS, part))
        return seq

    @property
    def lineage(self) -> Lineage:
        """R13: which processes have run on the store."""
        none: tuple[tuple[Any, ...], ...] = ()
        return Lineage(tuple(Run(*run) for run in read_fact(self.facts, FACT_RUNS, _RUNS, none, none)))

    @property
    def mark(self) -> int:
        """R13: the newest record that is durable and may have been answered for: a copy of the folder that ends before it is
        an old one, whichever process runs on it next. What the node notes of others is not counted, or two that tell each other their
        marks would never come to rest."""
        return min(self._data_seq, self.log.durable_seq)

    def raise_generation(self, incarnation: str) -> None:
        """One process more runs on the store (R13). Durable when this returns; to be called before ``start``, and
        before the process's first message. Raises StorageError."""
        self._note_lineage(self.lineage.begun(incarnation, self.log.last_seq))
        self.log.sync_now()

    def note_asked(self, asked: int) -> int:
        """What the present run knows of etcd's record of it (R13); the record's number. Durable as ``keep_fact``."""
        seq = self._note_lineage(self.lineage.noted(asked))
        self.save_soon()
        return seq

    def _note_lineage(self, lineage: Lineage) -> int:
        return self.append(Fact(FACT_RUNS, [list(run) for run in lineage.runs]))
