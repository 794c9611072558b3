"""Bringing the log and the state of a folder together, or beginning them."""

from __future__ import annotations

from typing import Any, NamedTuple

from metastore.errors import CorruptState
from metastore.storage.disk import Disk
from metastore.storage.folder import Folder
from metastore.storage.kept import FACT_ROWS, KeptRows
from metastore.storage.log import NodeLog
from metastore.storage.options import StorageOptions
from metastore.storage.recovery import Recovery
from metastore.storage.segments import SegmentFiles
from metastore.storage.slots import Slots
from metastore.storage.state import Meta, State
from metastore.storage.transactions import Transactions


class Opened(NamedTuple):
    """A log that has been replayed, and what is known by the state and the log together."""

    log: NodeLog
    slots: Slots
    facts: dict[str, Any]
    kept: KeptRows
    #: the record of the log up to which the state has all
    seq: int


def open_log(
    folder: Folder, disk: Disk, state: State, transactions: Transactions, options: StorageOptions
) -> Opened:
    """Recover the log onto the state, or make both. Raises CorruptLog, CorruptState."""
    files = SegmentFiles(folder.path / "log", disk, folder.store_id, options.segment_bytes)
    log = NodeLog(files, options.cache_bytes)
    try:
        if folder.created:
            _begin(folder, files, state, transactions)
        return _recover(folder, log, state)
    except BaseException:
        log.close()
        raise


def _begin(folder: Folder, files: SegmentFiles, state: State, transactions: Transactions) -> None:
    """Log and state of a new store. Raises CorruptLog, CorruptState when there is one already."""
    files.begin()
    saved = state.saved()
    if state.slots() or (saved is not None and (saved.metas or saved.node["seq"])):
        raise CorruptState(
            f"store.json is missing though there is a state in {folder.path}; replace the node"
        )
    transactions.begin()


def _recover(folder: Folder, log: NodeLog, state: State) -> Opened:
    saved = state.saved()
    if saved is None or saved.node["store"] != folder.store_id:
        raise CorruptState(
            f"{folder.path / 'state'} is not the state of store {folder.store_id}, or lost; replace the node"
        )
    row, border, metas = saved
    facts = dict(row["facts"])
    facts.pop(FACT_ROWS, None)  # of a build that does not know what it is
    kept = _kept_rows(state, row.get("rows"))
    log.last_seq = log.durable_seq = row["seq"]
    log.block = log.durable_block = max(row["block"], border.block - 1)
    found = state.slots()
    free_slot = max(found | {s for m in metas.values() for s in (m.slot, m.shared)}, default=0) + 1
    recovery = Recovery(log, metas, facts, kept, free_slot)
    log.files.recover(border, row["block"], recovery.on_block)
    log.recovered()
    recovery.finish()
    for p, meta in metas.items():
        meta.commit = _commit_of(meta, log, p, recovery.commits.get(p, 0))
    slots = Slots()
    slots.recovered(metas, log.partitions, found, recovery.free_slot)
    return Opened(log, slots, facts, kept, row["seq"])


def _commit_of(meta: Meta, log: NodeLog, p: int, told: int) -> int:
    """What is known to be committed, which is in the log."""
    known = max(told, meta.commit)
    return max(meta.applied, min(known, log.partitions[p].index.last_index))


def _kept_rows(state: State, count: int | None) -> KeptRows:
    """``count``: of the rows that there have to be, None = the build that ran here last knows nothing of them."""
    rows, kept = state.map_rows(), KeptRows()
    if count is not None and len(rows) != count:
        raise CorruptState(
            f"the state has {len(rows)} rows of the topology, and there were {count}; replace the node"
        )
    kept.load(rows, count is not None)
    return kept
