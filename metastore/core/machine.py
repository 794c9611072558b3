"""The replicated state machine of one partition: conditions, versions, dedupe (R7). Pure.

The leader *resolves* operations (``core.proposals``) against the latest state it has proposed, in log order, into rows of plain
effects (``core.rows``); everybody *applies* rows, which needs no clock, no chance and no condition. The n-th change of an
entry has the version ``base_version + n``, from 1: versions are dense. Dedupe is ``core.dedupe``'s, fences are ``core.fences``',
and all that is remembered beside the records is in ``core.tables``. An entry without rows begins a history (R19).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metastore.core.dedupe import Tail
from metastore.core.proposals import Proposals
from metastore.core.rows import (
    FORGET,
    NOTHING,
    SPLIT,
    Applied,
    Change,
    nothing_tail,
    txn_changes,
    txn_results,
)
from metastore.core.tables import Tables
from metastore.decoding import unpack_own
from metastore.history import (
    Version,
    count_of,
)
from metastore.operations import (
    ADD,
    DELETE,
    EXPIRE,
    TXN,
)
from metastore.records import (
    TTL,
    record_versions,
    unpack_record,
)


class Machine(Tables):
    """See the module. ``read``: the committed record of an storage_key, packed, or None."""

    def __init__(self, read: Callable[[bytes], bytes | None]) -> None:
        super().__init__()
        self.read = read
        self.proposals = Proposals(self, read)

    def reset(self) -> None:
        """Back to empty, before the rows of an installed snapshot are loaded (R17)."""
        super().reset()
        self.proposals.abandon()

    def load(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Start from saved aux rows."""
        super().load(rows)
        self.proposals.abandon()

    def apply(self, index: int, entry: Any) -> Applied:
        """Apply a committed entry: its payload, or that decoded; an entry resolved here is known already. Raises
        AssertionError when versions do not join up (I7)."""
        own = self.proposals.take(index)
        if own is not None:
            base, lowest_open_of, rows, usage, fences = own
        elif entry:
            if type(entry) is bytes:
                entry = unpack_own(entry)
            base, lowest_open_of, rows, usage, fences = entry
        else:
            return Applied([], set(), self.last_version)
        if not rows and base and not count_of(base):
            applied = self.begin_history(index, Version(base))
            if applied.metadata:
                self.proposals.version = base
            return applied
        if base != self.last_version:
            raise AssertionError(
                f"I7: entry {index} begins at version {base}, the state is at {self.last_version}"
            )
        changes: list[Change] = []
        tails: list[tuple[int, int, Tail]] = []
        expired: list[int] = []
        version, last_seen = base, self.seen_index(index)
        split: list[Any] | None = None
        horizon = 0
        has_ttl = bool(self.timed)
        for row in rows:
            kind = row[0]
            if kind >= FORGET:
                if kind == SPLIT:
                    split = row
                else:
                    horizon = row[1]
                continue
            if kind == NOTHING:
                _, at, seq, status, seen = row
                tail = nothing_tail(status, seen, last_seen)
            elif kind == TXN:
                _, at, seq, succeeded, parts = row
                tail = (0, succeeded, last_seen, txn_results(version, parts))
                changed = txn_changes(parts)
                changes += changed
                version += len(changed)
                has_ttl = True  # perhaps
            else:
                version += 1
                if kind in (DELETE, EXPIRE):
                    _, storage_key, at, seq = row
                    changes.append((storage_key, None))
                    tail = (0, version, last_seen)
                    if kind == EXPIRE:
                        expired.append(version)
                else:
                    _, storage_key, record, at, seq = row
                    changes.append((storage_key, record))
                    if record[4] & TTL:
                        has_ttl = True
                    if kind == ADD:
                        tail = (0, version, last_seen, int(unpack_record(record).value))
                    else:
                        tail = (0, version, last_seen, record_versions(record)[2] == version)
            if at >= 0:
                tails.append((at, seq, tail))
        self.last_version = Version(version)
        metadata = self.remember(index, lowest_open_of, tails, usage, fences, horizon)
        if has_ttl:
            self.note_ttls(changes, base, metadata)
        split_result = None if split is None else self.part_with(index, split, metadata)
        self.proposals.applied(index, version, own is not None, changes, lowest_open_of, tails)
        return Applied(changes, metadata, base, frozenset(expired), split_result)
