"""The transactions of a store's state: each of them, here alone, with what has to be in it as one.

| transaction | writes as one | because |
|---|---|---|
| ``begin`` | the node's row; where the log begins | a state without either has lost something |
| ``flush`` | of one generation of applied entries: the records, the metadata rows, the position of each partition; the children that \
those entries split off, with their metadata rows; the topology's rows; the node's row: facts, and the log record up to which \
all of this counts | R6: a position is the position of what is there. R18, S3: parent and child are there both or neither |
| ``switch`` | one partition's row: the slot of a staged state, its position, where its log begins | R17: state and log position \
change together |
| ``move_border`` | where the log begins | known before the segments before it are deleted: a log that begins later is a loss |
| ``stage`` | rows of a slot that no partition has | nobody reads them before ``switch`` |
| ``delete_some`` | some rows that no partition has | as many steps as it takes; a crash between them leaves garbage only |

All but ``flush_of`` are for the writer's thread. They raise NoRoom (nothing is written: they may be tried again) and StorageError
(R14: the store has failed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from metastore.storage.overlay import Overlay
from metastore.storage.segments import BEGINNING, Border
from metastore.storage.slots import PartitionInfo
from metastore.storage.snapshot import DATA, METADATA, SnapshotRow
from metastore.storage.state import (
    BORDER_ROW,
    MAP_TABLE,
    META_TABLE,
    NODE_ROW,
    GarbageRange,
    Job,
    Meta,
    Row,
    State,
    meta_key,
    metadata_write,
    record_writes,
)

MetadataSource = Callable[[bytes], bytes | None]
"""The present value of one of a partition's metadata rows."""


class Flush(NamedTuple):
    """One ``flush`` to be: it may be written once the log is durable up to ``seq``."""

    generation: Overlay
    #: partition -> the slot of its records
    slots: dict[int, int]
    rows: Job
    seq: int
    #: partition, its slot, the entry that the state is at by then
    applied: list[tuple[int, int, int]]
    #: the records that it changes, once it is known what they are called in the state
    changed: dict[bytes, bytes | None]
    #: how many rows there are of the topology by then
    kept: int


def flush_of(
    partitions: Mapping[int, PartitionInfo],
    generation: Overlay,
    children: Mapping[int, list[tuple[bytes, bytes]]],
    changed: set[int],
    sources: Mapping[int, MetadataSource],
    topology: tuple[Mapping[bytes, bytes | None], int],
    seq: int,
) -> Flush:
    """What goes into the next ``flush``. ``children``: those split off, and their metadata rows; ``changed``: partitions whose row
    in the state is not what it has to be; ``topology``: rows that changed, and how many there are; ``seq``: the last record of
    the log. Pure, but that it asks ``sources``."""
    rows: Job = []
    for p, keys in generation.dirty_metadata.items():
        source, slot = sources.get(p), partitions[p].meta.slot
        if source is not None:
            rows += [metadata_write(slot, key, source(key)) for key in sorted(keys)]
    for child, metadata in children.items():
        slot = partitions[child].meta.slot
        rows += [metadata_write(slot, key, row) for key, row in metadata]
    rows += [(META_TABLE, meta_key(p), partitions[p].meta.pack()) for p in changed]
    rows += [(MAP_TABLE, key, row) for key, row in topology[0].items()]
    slots = {p: partitions[p].meta.data_slot for p in generation.partitions}
    applied = [(p, partitions[p].meta.slot, partitions[p].meta.applied) for p in changed]
    return Flush(generation, slots, rows, seq, applied, {}, topology[1])


class Transactions:
    """See the module. Nothing else writes to ``state``."""

    def __init__(self, state: State, store_id: str) -> None:
        self._state, self._store_id = state, store_id

    def node_row(self, facts: Mapping[str, Any], seq: int, block: int, kept: int) -> bytes:
        """The node's own row: what it is, the facts, and up to which record and block of the log the state has all."""
        row: bytes = msgpack.packb(
            {"store": self._store_id, "facts": facts, "seq": seq, "block": block, "rows": kept}
        )
        return row

    def begin(self) -> None:
        node_row = self.node_row({}, 0, 0, 0)
        border = msgpack.packb(BEGINNING)
        self._state.write([(META_TABLE, NODE_ROW, node_row), (META_TABLE, BORDER_ROW, border)])

    def flush(self, flush: Flush, node_row: bytes) -> None:
        """``flush.generation`` does not change any more."""
        records: list[Row] = []
        for p, part in flush.generation.partitions.items():
            records += record_writes(flush.slots[p], part.records)
        flush.changed.update(records)
        self._state.write([*flush.rows, (META_TABLE, NODE_ROW, node_row)], records)

    def switch(self, p: int, meta: Meta) -> None:
        self._state.write([(META_TABLE, meta_key(p), meta.pack())])

    def move_border(self, border: Border) -> None:
        self._state.write([(META_TABLE, BORDER_ROW, msgpack.packb(border))])

    def stage(self, slot: int, rows: list[SnapshotRow]) -> None:
        metadata = [metadata_write(slot, key, value) for kind, key, value in rows if kind == METADATA]
        records = record_writes(slot, {key: value for kind, key, value in rows if kind == DATA})
        self._state.write(metadata, records)

    def delete_some(self, garbage: GarbageRange) -> bool:
        """Whether rows are left."""
        return self._state.delete_step(garbage)
