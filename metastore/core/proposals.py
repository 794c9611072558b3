"""The leader's side of the state machine: operations are *resolved* against the latest state that it has proposed, in log order,
into rows of plain effects (R7). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgpack

from metastore.core.counting import Counting
from metastore.core.dedupe import Tail
from metastore.core.fences import fence_digest
from metastore.core.rows import (
    FORGET,
    NOTHING,
    SPLIT,
    Change,
    Resolved,
    nothing_tail,
    txn_changes,
    txn_results,
)
from metastore.core.tables import Tables
from metastore.core.transactions import Refused, counter, foreign_version, holds, stage, sum_of
from metastore.elements import RAISE
from metastore.errors import (
    ConditionFailed,
    HistoryChanged,
    NotANumber,
    QuotaExceeded,
    TooLarge,
)
from metastore.history import (
    LAST_COUNT,
    LastSeenIndex,
    Version,
    count_of,
)
from metastore.operations import (
    ABSENT,
    ADD,
    COMPARES_AT,
    CONDITION_AT,
    CONTENT_TYPE_AT,
    DELETE,
    DELTA_AT,
    EXISTS,
    EXPIRE,
    FENCE_AT,
    KEY_AT,
    KIND_AT,
    LAST_SEEN_AT,
    LOWEST_OPEN_AT,
    MAX_TXN_READ_BYTES,
    NOT_FOUND,
    OK,
    OTHERWISE_AT,
    PUT,
    RENAME,
    SEQ_AT,
    THEN_AT,
    TO_AT,
    TO_CONDITION_AT,
    TOUCH,
    TOUCH_CONDITION_AT,
    TTL_MS_AT,
    TXN,
    VALUE_AT,
    Op,
)
from metastore.records import (
    COUNTER,
    pack_record,
    record_ttl_ms,
    record_versions,
    unpack_record,
)

MAX_CURRENT_BYTES: Final = 64 << 10

Entry = tuple[int, list[Any], list[Any], list[Any], list[Any]]
"""A payload, decoded."""


class Proposals:
    """What a leader has proposed and is not applied yet. ``read``: the committed record of an storage_key, packed, or None."""

    def __init__(self, tables: Tables, read: Callable[[bytes], bytes | None]) -> None:
        self.tables, self.read = tables, read
        #: the version of the latest change proposed
        self.version = 0
        #: while a leader counts what lies above a point (R18)
        self.counting: Counting | None = None
        #: as the leader's clock has it: entries up to this one are older than the dedupe window
        self.horizon = 0
        self._records: dict[bytes, tuple[int, bytes | None]] = {}
        self._outcomes: dict[bytes, dict[int, Resolved]] = {}
        self._entries: dict[int, Entry] = {}

    def take(self, index: int) -> Entry | None:
        """The entry ``index`` as it was resolved here, if it was: it is being applied."""
        return self._entries.pop(index, None)

    def applied(
        self,
        index: int,
        version: int,
        own: bool,
        changes: list[Change],
        lowest_open_of: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
    ) -> None:
        """Entry ``index`` is applied, up to ``version``. ``own``: it was resolved here."""
        if own:
            self._forget(index, changes, lowest_open_of, tails)
        elif not self._entries:
            self.version = version

    def proposed(self, index: int) -> bool:
        """Whether entry ``index`` was resolved here, so that applying it needs no payload."""
        return index in self._entries

    def abandon(self) -> None:
        """Forget what was proposed and is not committed: leadership began or ended."""
        self.version = self.tables.last_version
        self.counting = None
        self.horizon = 0
        self.tables.fences.abandon()
        for table in (self._records, self._outcomes, self._entries):
            table.clear()

    def resolve(
        self, index: int, ops: Iterable[tuple[bytes, Op]], expired: Iterable[tuple[bytes, int]] = ()
    ) -> tuple[bytes | None, list[Resolved]]:
        """Resolve ``(client_id, op)`` pairs (checked before) into the payload of entry ``index``, and
        before them ``(storage_key, version)`` of records whose TTL is over.

        Returns the payload, None when no entry is needed, and what became of each op.
        """
        rows: list[list[Any]] = []
        sessions: dict[bytes, int] = {}
        lowest_open_of: list[list[Any]] = []
        results: list[Resolved] = []
        usage: dict[bytes, list[int]] = {}
        fences: list[list[Any]] = []
        base = self.version
        if count_of(base) > LAST_COUNT:
            text = "the partition's versions are used up; a new generation has them anew: cellctl partition new-generation"
            return None, [Resolved(0, (QuotaExceeded.status, text, {})) for _ in ops]
        for storage_key, version in expired:
            old = self.current(storage_key)
            if old is not None and record_versions(old)[1] == version:
                self._change(index, storage_key, old, None, usage)
                rows.append([EXPIRE, storage_key, -1, 0])
        for client, op in ops:
            if op[KIND_AT] == TOUCH:
                results.append(self._touch(op))
                continue
            seq = op[SEQ_AT]
            if seq:
                known = self._known(client, seq, op[LOWEST_OPEN_AT], op[LAST_SEEN_AT])
                if known is not None:
                    results.append(known)
                    continue
                at = sessions.get(client)
                if at is None:
                    at = sessions[client] = len(lowest_open_of)
                    lowest_open_of.append([client, op[LOWEST_OPEN_AT]])
                elif op[LOWEST_OPEN_AT] > lowest_open_of[at][1]:
                    lowest_open_of[at][1] = op[LOWEST_OPEN_AT]
            else:
                at = -1
            row, tail = self._resolve_one(index, op, at, seq, usage, fences)
            rows.append(row)
            result = Resolved(index, tail)
            results.append(result)
            if seq:
                pending = self._outcomes.get(client)
                if pending is None:
                    pending = self._outcomes[client] = {}
                pending[seq] = result
        if not rows:
            return None, results
        if self.horizon and self.tables.dedupe.has_old(self.horizon):
            rows.append([FORGET, self.horizon])
        entry = (base, lowest_open_of, rows, [[ns, *grown] for ns, grown in usage.items()], fences)
        self._entries[index] = entry
        payload: bytes = msgpack.packb(entry)
        return payload, results

    def knows(self, client: bytes, op: Op) -> bool:
        """Whether the request id of a write has an outcome already."""
        return self._known(client, op[SEQ_AT], op[LOWEST_OPEN_AT], op[LAST_SEEN_AT]) is not None

    def _known(self, client: bytes, seq: int, lowest_open: int, last_seen: LastSeenIndex) -> Resolved | None:
        """The first outcome of a request id, or its refusal; None = it was never executed."""
        pending = self._outcomes.get(client)
        if pending is not None:
            found = pending.get(seq)
            if found is not None:
                return found
            if lowest_open > seq:  # a client of one request only, and that is another one
                return Resolved(0, self.tables.dedupe.refusal(seq, last_seen, True))
        tail = self.tables.dedupe.known(client, seq, last_seen)
        return None if tail is None else Resolved(0, tail)

    def current(self, storage_key: bytes) -> bytes | None:
        """The record as of the latest proposal."""
        found = self._records.get(storage_key)
        return self.read(storage_key) if found is None else found[1]

    def _change(
        self,
        index: int,
        storage_key: bytes,
        old: bytes | None,
        new: bytes | None,
        usage: dict[bytes, list[int]],
    ) -> None:
        """One more change of what is proposed."""
        if self.counting is not None:
            self.counting.changed(storage_key, old, new)
        self.version += 1
        self._records[storage_key] = (index, new)
        namespace = storage_key[8 : storage_key.find(0, 8)]
        grown = usage.get(namespace)
        if grown is None:
            grown = usage[namespace] = [0, 0]
        if old is not None and new is not None:
            grown[1] += len(new) - len(old)
        elif new is not None:
            grown[0] += 1
            grown[1] += len(storage_key) + len(new)
        elif old is not None:
            grown[0] -= 1
            grown[1] -= len(storage_key) + len(old)

    def _resolve_one(
        self,
        index: int,
        op: Op,
        at: int,
        seq: int,
        usage: dict[bytes, list[int]],
        fences: list[list[Any]],
    ) -> tuple[list[Any], Tail]:
        kind, storage_key, last_seen = op[KIND_AT], op[KEY_AT], self.tables.seen_index(index)
        digest: bytes | None = None
        if len(op) > FENCE_AT[kind]:
            name, token = op[FENCE_AT[kind]]
            digest = fence_digest(storage_key[8 : storage_key.find(0, 8)], name)
            if token != RAISE:
                if token < self.tables.first_version:
                    return self._nothing(at, seq, HistoryChanged.status, token, last_seen)
                refused = self.tables.fences.pass_by(digest, token, fences)
                if refused is not None:
                    return self._nothing(at, seq, *refused, last_seen)
        if kind == TXN:
            return self._resolve_txn(index, op, at, seq, usage)
        condition = op[CONDITION_AT]
        old = self.current(storage_key)
        flags, version, created = self.tables.shown_versions(old)
        if condition is not None and (version == 0 if condition == EXISTS else version != condition):
            if condition > 0 and self.tables.is_other_history(condition):
                return self._nothing(at, seq, HistoryChanged.status, condition, last_seen)
            row, tail = self._nothing(at, seq, ConditionFailed.status, version, last_seen)
            if old is not None and len(old) <= MAX_CURRENT_BYTES:
                # for who waits now; what dedupe remembers, and a retry gets, is without it
                tail = (*tail[:2], {**tail[2], "record": self.tables.shown(old)})
            return row, tail
        if kind == RENAME:
            return self._resolve_rename(index, op, at, seq, usage)
        if kind == DELETE:
            if old is None:
                return self._nothing(at, seq, 0, 0, last_seen)
            self._change(index, storage_key, old, None, usage)
            return [DELETE, storage_key, at, seq], (0, self.version, last_seen)
        new_version = self.version + 1
        if kind == PUT:
            if digest is not None and token == RAISE:
                refused = self.tables.fences.take(digest, Version(new_version), fences)
                if refused is not None:
                    return self._nothing(at, seq, *refused, last_seen)
            content_type, ttl_ms = op[CONTENT_TYPE_AT].encode(), op[TTL_MS_AT] or 0
            record = pack_record(new_version, created or new_version, op[VALUE_AT], content_type, ttl_ms)
            tail = (0, new_version, last_seen, not version)
        else:
            total = sum_of(old, flags, op[DELTA_AT])
            if total is None:
                return self._nothing(at, seq, NotANumber.status, version, last_seen)
            record = counter(old, new_version, created, total)
            tail = (0, new_version, last_seen, total)
        self._change(index, storage_key, old, record, usage)
        return [kind, storage_key, record, at, seq], tail

    def _resolve_rename(
        self, index: int, op: Op, at: int, seq: int, usage: dict[bytes, list[int]]
    ) -> tuple[list[Any], Tail]:
        """A delete and a put in one row, as of a transaction. The record keeps what it is but for its version: when it was
        created too; its TTL begins anew."""
        storage_key, to, last_seen = op[KEY_AT], op[TO_AT], self.tables.seen_index(index)
        old, there = self.current(storage_key), self.current(to)
        if old is None:
            return self._nothing(at, seq, ConditionFailed.status, 0, last_seen)
        if there is not None and op[TO_CONDITION_AT] == ABSENT:
            version = self.tables.shown_versions(there)[1]
            row, (status, _, detail) = self._nothing(at, seq, ConditionFailed.status, version, last_seen)
            text = f"condition failed: there is a record under the new key, at version {version}"
            return row, (status, text, detail)
        record, base = unpack_record(old), self.version
        new = pack_record(
            base + 2,
            self.tables.shown_versions(old)[2],
            record.value,
            record.content_type.encode(),
            record.ttl_ms,
            COUNTER if record.counter else 0,
        )
        self._change(index, storage_key, old, None, usage)
        self._change(index, to, self.current(to), new, usage)
        parts = [[DELETE, storage_key], [PUT, to, new]]
        return [TXN, at, seq, True, parts], (OK, True, last_seen, txn_results(base, parts))

    @staticmethod
    def _nothing(
        at: int, seq: int, status: int, version: int, last_seen: LastSeenIndex
    ) -> tuple[list[Any], Tail]:
        return [NOTHING, at, seq, status, version], nothing_tail(status, version, last_seen)

    def _touch(self, op: Op) -> Resolved:
        """Nothing is proposed: the leader's clock is all that a TTL runs on (R15). The answer waits
        for the entry that made the record what it is."""
        storage_key, condition = op[KEY_AT], op[TOUCH_CONDITION_AT]
        found = self._records.get(storage_key)
        at, record = (0, self.read(storage_key)) if found is None else found
        _, version, _ = self.tables.shown_versions(record)
        if record is None and condition is None:
            return Resolved(at, (NOT_FOUND, 0))
        if condition is not None and (version == 0 if condition == EXISTS else version != condition):
            if condition > 0 and self.tables.is_other_history(condition):
                return Resolved(
                    at, nothing_tail(HistoryChanged.status, condition, self.tables.seen_index(at))
                )
            return Resolved(at, nothing_tail(ConditionFailed.status, version, self.tables.seen_index(at)))
        if record is None:
            return Resolved(at, (NOT_FOUND, 0))
        return Resolved(at, (OK, version, 0, record_ttl_ms(record)))

    def _resolve_txn(
        self, index: int, op: Op, at: int, seq: int, usage: dict[bytes, list[int]]
    ) -> tuple[list[Any], Tail]:
        compares, last_seen = op[COMPARES_AT], self.tables.seen_index(index)
        foreign = foreign_version(self.tables, compares)
        if foreign:
            return self._nothing(at, seq, HistoryChanged.status, foreign, last_seen)
        succeeded = all(holds(self.tables, self.current, *compare) for compare in compares)
        try:
            parts = stage(self.tables, self.current, self.version, op[THEN_AT if succeeded else OTHERWISE_AT])
        except Refused as refused:
            bound = MAX_TXN_READ_BYTES if refused.status == TooLarge.status else 0
            return self._nothing(at, seq, refused.status, bound, last_seen)
        for part in parts:
            if part[0] in (PUT, ADD):
                old = self.current(part[1])
                self._change(index, part[1], old, part[2], usage)
            elif part[0] == DELETE:
                self._change(index, part[1], self.current(part[1]), None, usage)
        row = [TXN, at, seq, succeeded, parts]
        return row, (0, succeeded, last_seen, txn_results(self.version - len(txn_changes(parts)), parts))

    def count_above(self, at: bytes) -> None:
        """Begin to count what lies at the point ``at`` and above, to be fed slice by slice."""
        self.counting = Counting(at)

    def count_slice(self, rows: list[tuple[bytes, bytes]], end: bytes | None) -> None:
        """The committed records from where counting stands up to ``end`` (None: all that is left)."""
        counting = self.counting
        assert counting is not None
        start, committed = counting.cursor, dict(rows)
        assert start is not None
        counting.cursor = end
        for storage_key, (_, record) in self._records.items():
            if storage_key >= start and (end is None or storage_key < end):
                committed.pop(storage_key, None)
                if record is not None:
                    counting.add(storage_key, record, 1)
        for storage_key, record in committed.items():
            counting.add(storage_key, record, 1)

    def resolve_split(
        self, index: int, epoch: int, child: int, last: int, members: Iterable[tuple[str, str]]
    ) -> bytes:
        """The payload of entry ``(epoch, index)``, which splits off what has been counted, up to the point ``last``.
        Whatever is resolved after it has to lie below."""
        counting = self.counting
        assert counting is not None
        assert counting.cursor is None
        usage = [[ns, *held] for ns, held in sorted(counting.usage.items()) if held != [0, 0]]
        row = [SPLIT, child, counting.at, last, epoch, usage, [list(member) for member in members]]
        entry: Entry = (self.version, [], [row], [], [])
        self._entries[index] = entry
        self.counting = None
        payload: bytes = msgpack.packb(entry)
        return payload

    def _forget(
        self,
        index: int,
        changes: list[Change],
        lowest_open_of: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
    ) -> None:
        records = self._records
        if records and not self._entries:
            records.clear()  # nothing else is proposed
        for storage_key, _ in changes if records else ():
            found = records.get(storage_key)
            if found is not None and found[0] == index:
                del records[storage_key]
        for at, seq, _ in tails:
            pending = self._outcomes.get(lowest_open_of[at][0])
            if pending is not None:
                pending.pop(seq, None)
                if not pending:
                    del self._outcomes[lowest_open_of[at][0]]
