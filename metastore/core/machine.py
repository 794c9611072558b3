"""The replicated state machine of one partition: conditions, versions, dedupe (R7). Pure.

The leader *resolves* operations against the latest state it has proposed, in log order, into
rows of plain effects; everybody *applies* rows, which needs no clock, no chance and no
condition. An entry's payload is msgpack ``[base_version, sessions, rows, usage, fences]``:

    sessions   [[client_id, floor], ...]
    rows       [PUT, lkey, record, at, seq]     also for ADD (row kind ADD: the answer tells the count)
               [DELETE, lkey, at, seq]
               [EXPIRE, lkey, -1, 0]
               [NOTHING, at, seq, status, version]    a failed condition, or nothing to delete
               [TXN, at, seq, succeeded, parts]       parts: [PUT, lkey, record], [ADD, lkey, record],
                                                      [DELETE, lkey], [NOTHING], [GET, record or None]
               [FORGET, horizon]                      entries up to there are older than the dedupe window
               [SPLIT, child, at, last, epoch, usage, members]
                                                      R18: from the point ``at`` (8 bytes) on to ``last``, which holds
                                                      ``usage``, all is another partition's, which has ``members``
    usage      [[namespace, records, bytes], ...]  by how much each namespace has grown
    fences     [[digest of name, token], ...]      raised by this entry

``at`` is a position in ``sessions``, -1 when no dedupe was asked for. The n-th change of an entry has
the version ``base_version + n``, from 1: versions are dense. Dedupe is ``core.dedupe``'s, fences are
``core.fences``'. An entry without rows begins a history (R19, ``metastore.history``).

Beside the records a partition remembers, all of it replicated: finished requests, the version it
stands at, how much each namespace holds here, which records have a TTL, the fencing
tokens seen, and what was split off. Each is saved as an *aux row*; ``aux_keys`` names those
there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgpack

from metastore.core.dedupe import Session, Sessions, Tail
from metastore.core.fences import FENCE_PREFIX, FLOOR_PREFIX, Fences, fence_digest
from metastore.decoding import first_number, unpack_own
from metastore.elements import RAISE
from metastore.errors import (
    ConditionFailed,
    Fenced,
    FenceForgotten,
    HistoryChanged,
    NotANumber,
    QuotaExceeded,
    TooLarge,
)
from metastore.history import (
    LAST_COUNT,
    count_of,
    first_version,
    generation_of,
    history_changed,
    is_mark,
    is_of_another,
)
from metastore.operations import (
    ADD,
    COMPARES_AT,
    CONDITION_AT,
    CONTENT_TYPE_AT,
    DELETE,
    DELTA_AT,
    EQUAL,
    EXISTS,
    EXPIRE,
    FENCE_AT,
    FLOOR_AT,
    GET,
    KEY_AT,
    KIND_AT,
    LESS,
    MAX_TXN_READ_BYTES,
    NOT_EQUAL,
    NOT_FOUND,
    OK,
    OTHERWISE_AT,
    PART_KEY_AT,
    PUT,
    SEQ_AT,
    STAMP_AT,
    THEN_AT,
    TOUCH,
    TOUCH_CONDITION_AT,
    TTL_MS_AT,
    TXN,
    VALUE,
    VALUE_AT,
    VERSION,
    Op,
)
from metastore.records import (
    COUNTER,
    TTL,
    pack_record,
    record_ttl_ms,
    record_versions,
    shown_from,
    unpack_record,
)

NOTHING: Final = 0
#: from here on: rows that are no operation of a client
FORGET: Final = 14
SPLIT: Final = 15
MAX_CURRENT_BYTES: Final = 64 << 10
INT64_MAX: Final = (1 << 63) - 1
META_KEY: Final = b"m"
SESSION_PREFIX: Final = b"s"
USAGE_PREFIX: Final = b"u"
TTL_PREFIX: Final = b"t"
SPLITS_KEY: Final = b"x"

Change = tuple[bytes, bytes | None]
"""``(lkey, record)``, None = deleted."""


class Resolved(NamedTuple):
    """What became of one operation: answer ``tail`` once entry ``at`` is committed (0 = now)."""

    at: int
    tail: Tail


class SplitOff(NamedTuple):
    """R18: what entry ``(epoch, entry)`` split off: the points from ``at`` (8 bytes) up to ``last`` are ``child``'s.
    ``members``: its replicas, ``(node, store)``; the first is who proposed the entry, and owns its first term."""

    child: int
    at: bytes
    last: int
    epoch: int
    entry: int
    members: tuple[tuple[str, str], ...]


class Forked(NamedTuple):
    """R18: what an entry split off, and the aux rows that it begins with."""

    split: SplitOff
    aux: list[tuple[bytes, bytes]]


class Applied(NamedTuple):
    """What applying an entry changed: records (the n-th has version ``base`` + n, from 1), the aux
    rows to save with them, which versions are expirations, and what was split off."""

    changes: list[Change]
    aux: set[bytes]
    base: int = 0
    expired: frozenset[int] = frozenset()
    forked: Forked | None = None


def unpack_splits(raw: bytes | None) -> list[SplitOff]:
    """The aux row SPLITS_KEY; None when there is none."""
    rows: list[Any] = unpack_own(raw) if raw else []
    return [
        SplitOff(child, at, last, epoch, entry, tuple((node, store) for node, store in members))
        for child, at, last, epoch, entry, members in rows
    ]


class _Refused(Exception):
    """A transaction that can have no effect; its status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def digest_key(prefix: bytes, name: bytes) -> bytes:
    """The aux key of something whose name may be too long for one."""
    return prefix + hashlib.blake2b(name, digest_size=16).digest()


def changes_of(payload: bytes) -> Applied:
    """The changes of an entry without applying it (for watches)."""
    if not payload or is_mark(payload):
        return Applied([], set())
    base, _, rows, _, _ = unpack_own(payload)
    changes: list[Change] = []
    expired: list[int] = []
    for row in rows:
        kind = row[0]
        if kind in (PUT, ADD):
            changes.append((row[1], row[2]))
        elif kind == TXN:
            changes += _txn_changes(row[4])
        elif kind in (DELETE, EXPIRE):
            changes.append((row[1], None))
            if kind == EXPIRE:
                expired.append(base + len(changes))
    return Applied(changes, set(), base, frozenset(expired))


def base_version(payload: bytes) -> int | None:
    """The version before an entry's first change, without decoding the rest; None when it has none."""
    if not payload or is_mark(payload):
        return None
    return first_number(payload)


def _txn_changes(parts: list[list[Any]]) -> list[Change]:
    return [
        (part[1], part[2] if part[0] != DELETE else None) for part in parts if part[0] in (PUT, ADD, DELETE)
    ]


class Counting:
    """What a namespace has at the point ``at`` and above, exact at every moment below ``cursor`` (None:
    everywhere), changes that are only proposed included."""

    def __init__(self, at: bytes) -> None:
        self.at = at
        self.cursor: bytes | None = at
        self.usage: dict[bytes, list[int]] = {}

    def add(self, lkey: bytes, record: bytes, sign: int) -> None:
        held = self.usage.setdefault(lkey[8 : lkey.find(0, 8)], [0, 0])
        held[0] += sign
        held[1] += sign * (len(lkey) + len(record))

    def changed(self, lkey: bytes, old: bytes | None, new: bytes | None) -> None:
        """A change is proposed: what was counted before the change counts as it is after it."""
        if lkey >= self.at and (self.cursor is None or lkey < self.cursor):
            if old is not None:
                self.add(lkey, old, -1)
            if new is not None:
                self.add(lkey, new, 1)


class Machine:
    """See the module. ``read``: the committed record of an lkey, packed, or None."""

    def __init__(self, read: Callable[[bytes], bytes | None]) -> None:
        self.read = read
        self.last_version = 0
        #: where the partition's present history begins (R19); what was written before is shown as of it
        self.first_version = 0
        self.dedupe = Sessions()
        #: namespace -> [records, bytes]
        self.usage: dict[bytes, list[int]] = {}
        #: lkey -> (version, ttl_ms) of every record that has a TTL
        self.timed: dict[bytes, tuple[int, int]] = {}
        self.fences = Fences()
        #: all that was split off, the last one last
        self.splits: list[SplitOff] = []
        #: while a leader counts what lies above a point (R18)
        self.counting: Counting | None = None
        #: as the leader's clock has it: entries up to this one are older than the dedupe window
        self.horizon = 0
        self._timed_names: dict[bytes, bytes] = {}
        # the leader's state beyond what is committed
        self._version = 0
        self._records: dict[bytes, tuple[int, bytes | None]] = {}
        self._outcomes: dict[bytes, dict[int, Resolved]] = {}
        self._entries: dict[int, tuple[int, list[Any], list[Any], list[Any], list[Any]]] = {}

    @property
    def sessions(self) -> dict[bytes, Session]:
        return self.dedupe.by_client

    @property
    def expired_below(self) -> int:
        return self.dedupe.expired_below

    # --- saving and loading ---------------------------------------------------------------

    def aux(self, key: bytes) -> bytes | None:
        """The aux row ``key`` as it is now; None = delete it."""
        kind, rest = key[:1], key[1:]
        row: Any = None
        if key == META_KEY:
            row = [self.last_version, self.dedupe.expired_below]
        elif kind == SESSION_PREFIX:
            session = self.dedupe.by_client.get(rest)
            if session is not None:
                return session.pack()
            row = self.dedupe.spent.get(rest)
        elif kind == USAGE_PREFIX:
            row = self.usage.get(rest)
        elif kind == TTL_PREFIX:
            name = self._timed_names.get(key)
            row = None if name is None else [name, *self.timed[name]]
        elif kind in (FENCE_PREFIX, FLOOR_PREFIX):
            return self.fences.aux(key)
        elif key == SPLITS_KEY and self.splits:
            row = self.splits
        if row is None:
            return None
        raw: bytes = msgpack.packb(row)
        return raw

    def aux_keys(self) -> list[bytes]:
        """Every aux row that there is, in an order that all replicas share."""
        keys = [META_KEY]
        keys += [SESSION_PREFIX + client for client in sorted([*self.dedupe.by_client, *self.dedupe.spent])]
        keys += [USAGE_PREFIX + namespace for namespace in sorted(self.usage)]
        keys += sorted(self._timed_names)
        keys += self.fences.aux_keys()
        keys += [SPLITS_KEY] if self.splits else []
        return keys

    def reset(self) -> None:
        """Back to empty, before the rows of an installed snapshot are loaded (R17)."""
        self.last_version = self.first_version = 0
        self.dedupe = Sessions()
        self.fences = Fences()
        for table in (self.usage, self.timed, self._timed_names):
            table.clear()
        self.splits = []
        self.abandon()

    def load(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Start from saved aux rows."""
        sessions: list[tuple[bytes, Session | int]] = []
        fences: list[tuple[bytes, bytes]] = []
        expired_below = 0
        for key, raw in rows:
            kind = key[:1]
            if key == META_KEY:
                self.last_version, expired_below = unpack_own(raw)
            elif kind == SESSION_PREFIX:
                sessions.append((key[1:], Session.unpack(raw)))
            elif kind == USAGE_PREFIX:
                self.usage[key[1:]] = unpack_own(raw)
            elif kind == TTL_PREFIX:
                lkey, version, ttl_ms = unpack_own(raw)
                self.timed[lkey], self._timed_names[key] = (version, ttl_ms), lkey
            elif kind in (FENCE_PREFIX, FLOOR_PREFIX):
                fences.append((key, raw))
            elif key == SPLITS_KEY:
                self.splits = unpack_splits(raw)
        self.first_version = self.dedupe.history = first_version(generation_of(self.last_version))
        self.dedupe.load(sessions, expired_below)
        self.fences.load(fences)
        self.abandon()

    # --- the leader: resolve --------------------------------------------------------------

    def proposed(self, index: int) -> bool:
        """Whether entry ``index`` was resolved here, so that applying it needs no payload."""
        return index in self._entries

    def abandon(self) -> None:
        """Forget what was proposed and is not committed: leadership began or ended."""
        self._version = self.last_version
        self.counting = None
        self.horizon = 0
        self.fences.abandon()
        for table in (self._records, self._outcomes, self._entries):
            table.clear()

    def resolve(
        self, index: int, ops: Iterable[tuple[bytes, Op]], expired: Iterable[tuple[bytes, int]] = ()
    ) -> tuple[bytes | None, list[Resolved]]:
        """Resolve ``(client_id, op)`` pairs (checked before) into the payload of entry ``index``, and
        before them ``(lkey, version)`` of records whose TTL is over.

        Returns the payload, None when no entry is needed, and what became of each op.
        """
        rows: list[list[Any]] = []
        sessions: dict[bytes, int] = {}
        floors: list[list[Any]] = []
        results: list[Resolved] = []
        usage: dict[bytes, list[int]] = {}
        fences: list[list[Any]] = []
        base = self._version
        if count_of(base) > LAST_COUNT:
            text = "the partition's versions are used up; a new generation has them anew: cellctl partition new-generation"
            return None, [Resolved(0, (QuotaExceeded.status, text, {})) for _ in ops]
        for lkey, version in expired:
            old = self.current(lkey)
            if old is not None and record_versions(old)[1] == version:
                self._change(index, lkey, old, None, usage)
                rows.append([EXPIRE, lkey, -1, 0])
        for client, op in ops:
            if op[KIND_AT] == TOUCH:
                results.append(self._touch(op))
                continue
            seq = op[SEQ_AT]
            if seq:
                known = self._known(client, seq, op[FLOOR_AT], op[STAMP_AT])
                if known is not None:
                    results.append(known)
                    continue
                at = sessions.get(client)
                if at is None:
                    at = sessions[client] = len(floors)
                    floors.append([client, op[FLOOR_AT]])
                elif op[FLOOR_AT] > floors[at][1]:
                    floors[at][1] = op[FLOOR_AT]
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
        if self.horizon and self.dedupe.has_old(self.horizon):
            rows.append([FORGET, self.horizon])
        entry = (base, floors, rows, [[ns, *grown] for ns, grown in usage.items()], fences)
        self._entries[index] = entry
        payload: bytes = msgpack.packb(entry)
        return payload, results

    def knows(self, client: bytes, op: Op) -> bool:
        """Whether the request id of a write has an outcome already."""
        return self._known(client, op[SEQ_AT], op[FLOOR_AT], op[STAMP_AT]) is not None

    def _known(self, client: bytes, seq: int, floor: int, stamp: int) -> Resolved | None:
        """The first outcome of a request id, or its refusal; None = it was never executed."""
        pending = self._outcomes.get(client)
        if pending is not None:
            found = pending.get(seq)
            if found is not None:
                return found
            if floor > seq:  # a client of one request only, and that is another one
                return Resolved(0, self.dedupe.refusal(seq, stamp, True))
        tail = self.dedupe.known(client, seq, stamp)
        return None if tail is None else Resolved(0, tail)

    def current(self, lkey: bytes) -> bytes | None:
        """The record as of the latest proposal."""
        found = self._records.get(lkey)
        return self.read(lkey) if found is None else found[1]

    # --- versions that clients give, and see (R19) -------------------------------------------

    def shown(self, record: bytes) -> bytes:
        """A record as the present history has it."""
        return shown_from(record, self.first_version) if self.first_version else record

    def shown_versions(self, record: bytes | None) -> tuple[int, int, int]:
        """``(flags, version, created)`` of what ``shown`` gives; zeros when there is no record."""
        if record is None:
            return 0, 0, 0
        flags, version, created = record_versions(record)
        if version >= self.first_version:
            return flags, version, created
        return flags, self.first_version, self.first_version

    def is_other_history(self, version: int) -> bool:
        """Whether a version that a client gave is of another history than the present one."""
        return is_of_another(version, self.first_version)

    def is_left_behind(self, version: int, leads: bool) -> bool:
        """The same of a replica that may be behind: of a later history it may not have heard yet, unless it
        ``leads`` and can be read from."""
        return version < self.first_version or (leads and self.is_other_history(version))

    def _stamp(self, index: int) -> int:
        """What is handed out for a log index."""
        return self.first_version + index

    def _change(
        self, index: int, lkey: bytes, old: bytes | None, new: bytes | None, usage: dict[bytes, list[int]]
    ) -> None:
        """One more change of what is proposed."""
        if self.counting is not None:
            self.counting.changed(lkey, old, new)
        self._version += 1
        self._records[lkey] = (index, new)
        namespace = lkey[8 : lkey.find(0, 8)]
        grown = usage.get(namespace)
        if grown is None:
            grown = usage[namespace] = [0, 0]
        if old is not None and new is not None:
            grown[1] += len(new) - len(old)
        elif new is not None:
            grown[0] += 1
            grown[1] += len(lkey) + len(new)
        elif old is not None:
            grown[0] -= 1
            grown[1] -= len(lkey) + len(old)

    def _resolve_one(
        self,
        index: int,
        op: Op,
        at: int,
        seq: int,
        usage: dict[bytes, list[int]],
        fences: list[list[Any]],
    ) -> tuple[list[Any], Tail]:
        kind, lkey, stamp = op[KIND_AT], op[KEY_AT], self._stamp(index)
        digest: bytes | None = None
        if len(op) > FENCE_AT[kind]:
            name, token = op[FENCE_AT[kind]]
            digest = fence_digest(lkey[8 : lkey.find(0, 8)], name)
            if token != RAISE:
                if token < self.first_version:
                    return self._nothing(at, seq, HistoryChanged.status, token, stamp)
                refused = self.fences.pass_by(digest, token, fences)
                if refused is not None:
                    return self._nothing(at, seq, *refused, stamp)
        if kind == TXN:
            return self._resolve_txn(index, op, at, seq, usage)
        condition = op[CONDITION_AT]
        old = self.current(lkey)
        flags, version, created = self.shown_versions(old)
        if condition is not None and (version == 0 if condition == EXISTS else version != condition):
            if condition > 0 and self.is_other_history(condition):
                return self._nothing(at, seq, HistoryChanged.status, condition, stamp)
            row, tail = self._nothing(at, seq, ConditionFailed.status, version, stamp)
            if old is not None and len(old) <= MAX_CURRENT_BYTES:
                # for who waits now; what dedupe remembers, and a retry gets, is without it
                tail = (*tail[:2], {**tail[2], "record": self.shown(old)})
            return row, tail
        if kind == DELETE:
            if old is None:
                return self._nothing(at, seq, 0, 0, stamp)
            self._change(index, lkey, old, None, usage)
            return [DELETE, lkey, at, seq], (0, self._version, stamp)
        new_version = self._version + 1
        if kind == PUT:
            if digest is not None and token == RAISE:
                refused = self.fences.take(digest, new_version, fences)
                if refused is not None:
                    return self._nothing(at, seq, *refused, stamp)
            content_type, ttl_ms = op[CONTENT_TYPE_AT].encode(), op[TTL_MS_AT] or 0
            record = pack_record(new_version, created or new_version, op[VALUE_AT], content_type, ttl_ms)
            tail = (0, new_version, stamp, not version)
        else:
            total = self._add(old, flags, op[DELTA_AT])
            if total is None:
                return self._nothing(at, seq, NotANumber.status, version, stamp)
            record = self._counter(old, new_version, created, total)
            tail = (0, new_version, stamp, total)
        self._change(index, lkey, old, record, usage)
        return [kind, lkey, record, at, seq], tail

    @staticmethod
    def _counter(old: bytes | None, version: int, created: int, total: int) -> bytes:
        """A counter keeps the TTL it was made with; there is none to give when adding."""
        ttl_ms = record_ttl_ms(old) if old is not None else 0
        return pack_record(version, created or version, b"%d" % total, b"", ttl_ms, COUNTER)

    @staticmethod
    def _add(old: bytes | None, flags: int, delta: int) -> int | None:
        if old is None:
            total = delta
        elif flags & COUNTER:
            total = int(unpack_record(old).value) + delta
        else:
            return None
        return total if -INT64_MAX - 1 <= total <= INT64_MAX else None

    @staticmethod
    def _nothing(at: int, seq: int, status: int, version: int, stamp: int) -> tuple[list[Any], Tail]:
        return [NOTHING, at, seq, status, version], nothing_tail(status, version, stamp)

    def _touch(self, op: Op) -> Resolved:
        """Nothing is proposed: the leader's clock is all that a TTL runs on (R15). The answer waits
        for the entry that made the record what it is."""
        lkey, condition = op[KEY_AT], op[TOUCH_CONDITION_AT]
        found = self._records.get(lkey)
        at, record = (0, self.read(lkey)) if found is None else found
        _, version, _ = self.shown_versions(record)
        if record is None and condition is None:
            return Resolved(at, (NOT_FOUND, 0))
        if condition is not None and (version == 0 if condition == EXISTS else version != condition):
            if condition > 0 and self.is_other_history(condition):
                return Resolved(at, nothing_tail(HistoryChanged.status, condition, self._stamp(at)))
            return Resolved(at, nothing_tail(ConditionFailed.status, version, self._stamp(at)))
        if record is None:
            return Resolved(at, (NOT_FOUND, 0))
        return Resolved(at, (OK, version, 0, record_ttl_ms(record)))

    # --- transactions -----------------------------------------------------------------------

    def _resolve_txn(
        self, index: int, op: Op, at: int, seq: int, usage: dict[bytes, list[int]]
    ) -> tuple[list[Any], Tail]:
        compares, stamp = op[COMPARES_AT], self._stamp(index)
        foreign = self._foreign(compares)
        if foreign:
            return self._nothing(at, seq, HistoryChanged.status, foreign, stamp)
        succeeded = all(self._holds(self.current, *compare) for compare in compares)
        staged: dict[bytes, tuple[bytes | None, bytes | None]] = {}
        try:
            parts = self._stage(op[THEN_AT if succeeded else OTHERWISE_AT], staged)
        except _Refused as refused:
            bound = MAX_TXN_READ_BYTES if refused.status == TooLarge.status else 0
            return self._nothing(at, seq, refused.status, bound, stamp)
        for part in parts:
            if part[0] in (PUT, ADD):
                old = self.current(part[1])
                self._change(index, part[1], old, part[2], usage)
            elif part[0] == DELETE:
                self._change(index, part[1], self.current(part[1]), None, usage)
        row = [TXN, at, seq, succeeded, parts]
        return row, (0, succeeded, stamp, _txn_results(self._version - len(_txn_changes(parts)), parts))

    def _foreign(self, compares: list[list[Any]]) -> int:
        """The first version that is compared with and is of another history, 0 = none is."""
        for _, target, _, operand in compares:
            if target != VALUE and operand and self.is_other_history(operand):
                return int(operand)
        return 0

    def read_txn(self, op: Op) -> tuple[Tail, int]:
        """A transaction that only reads, of the committed state: no entry, nothing to remember. Its
        answer, and how many bytes it read."""
        compares = op[COMPARES_AT]
        foreign = self._foreign(compares)
        if foreign:
            return nothing_tail(HistoryChanged.status, foreign, self._stamp(0)), 0
        succeeded = all(self._holds(self.read, *compare) for compare in compares)
        rows: list[list[Any]] = []
        size = 0
        for part in op[THEN_AT if succeeded else OTHERWISE_AT]:
            record = self.read(part[PART_KEY_AT])
            rows.append([GET, None if record is None else self.shown(record)])
            size += len(record or b"")
            if size > MAX_TXN_READ_BYTES:  # the others are not read to be refused
                return nothing_tail(TooLarge.status, MAX_TXN_READ_BYTES, 0), 0
        return (OK, succeeded, 0, _txn_results(0, rows)), size

    def _holds(
        self,
        record_of: Callable[[bytes], bytes | None],
        lkey: bytes,
        target: int,
        relation: int,
        operand: Any,
    ) -> bool:
        record = record_of(lkey)
        if target == VALUE:
            if record is None:
                return relation == NOT_EQUAL
            value: Any = unpack_record(record).value
        else:
            _, version, created = self.shown_versions(record)
            value = version if target == VERSION else created
        if relation == EQUAL:
            return bool(value == operand)
        if relation == NOT_EQUAL:
            return bool(value != operand)
        return bool(value < operand if relation == LESS else value > operand)

    def _stage(
        self, parts: list[list[Any]], staged: dict[bytes, tuple[bytes | None, bytes | None]]
    ) -> list[list[Any]]:
        """The rows of a branch, each part seeing those before it. Nothing is changed yet, so that a
        part that cannot be done undoes nothing. Raises _Refused."""
        version, read_bytes = self._version, 0
        rows: list[list[Any]] = []
        for part in parts:
            kind, lkey = part[0], part[PART_KEY_AT]
            old = staged[lkey][1] if lkey in staged else self.current(lkey)
            if kind == GET:
                read_bytes += len(old) if old else 0
                if read_bytes > MAX_TXN_READ_BYTES:
                    raise _Refused(TooLarge.status)
                rows.append([GET, old and self.shown(old)])
                continue
            if kind == DELETE and old is None:
                rows.append([NOTHING])
                continue
            version += 1
            flags, _, created = self.shown_versions(old)
            if kind == DELETE:
                new = None
                rows.append([DELETE, lkey])
            elif kind == PUT:
                _, _, value, content_type, ttl_ms = part
                new = pack_record(version, created or version, value, content_type.encode(), ttl_ms or 0)
                rows.append([PUT, lkey, new])
            else:
                _, _, delta = part
                total = self._add(old, flags, delta)
                if total is None:
                    raise _Refused(NotANumber.status)
                new = self._counter(old, version, created, total)
                rows.append([ADD, lkey, new])
            staged[lkey] = (old, new)
        return rows

    # --- splitting (R18) ----------------------------------------------------------------------

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
        for lkey, (_, record) in self._records.items():
            if lkey >= start and (end is None or lkey < end):
                committed.pop(lkey, None)
                if record is not None:
                    counting.add(lkey, record, 1)
        for lkey, record in committed.items():
            counting.add(lkey, record, 1)

    def resolve_split(
        self, index: int, epoch: int, child: int, last: int, members: Iterable[tuple[str, str]]
    ) -> bytes:
        """The payload of entry ``(epoch, index)``, which splits off what has been counted, up to the point ``last``.
        Whatever is resolved after it has to lie below."""
        counting = self.counting
        assert counting is not None
        assert counting.cursor is None
        usage = [[ns, *held] for ns, held in sorted(counting.usage.items()) if held != [0, 0]]
        entry: tuple[int, list[Any], list[Any], list[Any], list[Any]]
        row = [SPLIT, child, counting.at, last, epoch, usage, [list(member) for member in members]]
        entry = (self._version, [], [row], [], [])
        self._entries[index] = entry
        self.counting = None
        payload: bytes = msgpack.packb(entry)
        return payload

    def _split(self, index: int, row: list[Any], aux: set[bytes]) -> Forked:
        """Part with what lies at ``at`` and above. The child remembers the same requests and fences."""
        _, child, at, last, epoch, usage, members = row
        upper = Machine(self.read)
        upper.last_version = self.last_version
        upper.dedupe, upper.fences = self.dedupe, self.fences
        for namespace, records, size in usage:
            upper.usage[namespace] = [records, size]
            held = self.usage.setdefault(namespace, [0, 0])
            held[0] -= records
            held[1] -= size
            if held == [0, 0]:
                del self.usage[namespace]
            aux.add(USAGE_PREFIX + namespace)
        for key, lkey in list(self._timed_names.items()):
            if lkey >= at:
                upper.timed[lkey], upper._timed_names[key] = self.timed.pop(lkey), lkey
                del self._timed_names[key]
                aux.add(key)
        split = SplitOff(child, at, last, epoch, index, tuple((node, store) for node, store in members))
        self.splits.append(split)
        aux.add(SPLITS_KEY)
        return Forked(split, [(key, upper.aux(key) or b"") for key in upper.aux_keys()])

    # --- everybody: apply -------------------------------------------------------------------

    def apply(self, index: int, entry: Any) -> Applied:
        """Apply a committed entry: its payload, or that decoded; an entry resolved here is known already. Raises
        AssertionError when versions do not join up (I7)."""
        own = self._entries.pop(index, None)
        if own is not None:
            base, floors, rows, usage, fences = own
        elif entry:
            if type(entry) is bytes:
                entry = unpack_own(entry)
            base, floors, rows, usage, fences = entry
        else:
            return Applied([], set(), self.last_version)
        if not rows and base and not count_of(base):
            return self._begin_history(index, base)
        if base != self.last_version:
            raise AssertionError(
                f"I7: entry {index} begins at version {base}, the state is at {self.last_version}"
            )
        changes: list[Change] = []
        tails: list[tuple[int, int, Tail]] = []
        expired: list[int] = []
        version, stamp = base, self._stamp(index)
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
                tail = nothing_tail(status, seen, stamp)
            elif kind == TXN:
                _, at, seq, succeeded, parts = row
                tail = (0, succeeded, stamp, _txn_results(version, parts))
                changed = _txn_changes(parts)
                changes += changed
                version += len(changed)
                has_ttl = True  # perhaps
            else:
                version += 1
                if kind in (DELETE, EXPIRE):
                    _, lkey, at, seq = row
                    changes.append((lkey, None))
                    tail = (0, version, stamp)
                    if kind == EXPIRE:
                        expired.append(version)
                else:
                    _, lkey, record, at, seq = row
                    changes.append((lkey, record))
                    if record[4] & TTL:
                        has_ttl = True
                    if kind == ADD:
                        tail = (0, version, stamp, int(unpack_record(record).value))
                    else:
                        tail = (0, version, stamp, record_versions(record)[2] == version)
            if at >= 0:
                tails.append((at, seq, tail))
        self.last_version = version
        aux = self._remember(index, floors, tails, usage, fences, horizon)
        if has_ttl:
            self._note_ttls(changes, base, aux)
        forked = None if split is None else self._split(index, split, aux)
        if own is not None:
            self._forget_proposed(index, changes, floors, tails)
        elif not self._entries:
            self._version = version
        return Applied(changes, aux, base, frozenset(expired), forked)

    def _begin_history(self, index: int, first: int) -> Applied:
        """A mark: every term of a partition whose history was changed begins with one, the first of them
        begins the generation (R19)."""
        if first <= self.last_version:
            return Applied([], set(), self.last_version)
        self.last_version = self.first_version = self._version = first
        self.dedupe.begin_history(first, index)
        return Applied([], {META_KEY}, first)

    def _remember(
        self,
        index: int,
        floors: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
        usage: list[list[Any]],
        fences: list[list[Any]],
        horizon: int,
    ) -> set[bytes]:
        aux = {META_KEY}
        changed, gone = self.dedupe.remember(index, floors, tails, horizon)
        for client in changed:
            aux.add(SESSION_PREFIX + client)
        for client in gone:
            aux.add(SESSION_PREFIX + client)
        for namespace, records, size in usage:
            held = self.usage.get(namespace)
            if held is None:
                held = self.usage[namespace] = [0, 0]
            held[0] += records
            held[1] += size
            if held == [0, 0]:
                del self.usage[namespace]
            aux.add(USAGE_PREFIX + namespace)
        if fences:
            self.fences.apply(fences, aux)
        return aux

    def _note_ttls(self, changes: list[Change], base: int, aux: set[bytes]) -> None:
        timed = self.timed
        number = base
        for lkey, record in changes:
            number += 1
            if record is not None and record[4] & TTL:
                key = digest_key(TTL_PREFIX, lkey)
                timed[lkey], self._timed_names[key] = (number, record_ttl_ms(record)), lkey
                aux.add(key)
            elif timed and lkey in timed:
                key = digest_key(TTL_PREFIX, lkey)
                del timed[lkey], self._timed_names[key]
                aux.add(key)

    def _forget_proposed(
        self,
        index: int,
        changes: list[Change],
        floors: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
    ) -> None:
        records = self._records
        if records and not self._entries:
            records.clear()  # nothing else is proposed
        for lkey, _ in changes if records else ():
            found = records.get(lkey)
            if found is not None and found[0] == index:
                del records[lkey]
        for at, seq, _ in tails:
            pending = self._outcomes.get(floors[at][0])
            if pending is not None:
                pending.pop(seq, None)
                if not pending:
                    del self._outcomes[floors[at][0]]


def _txn_results(base: int, parts: list[list[Any]]) -> list[list[Any]]:
    """The answers to a transaction's parts, the first change of which has version ``base`` + 1."""
    results: list[list[Any]] = []
    version = base
    for part in parts:
        kind = part[0]
        if kind == GET:
            results.append([NOT_FOUND] if part[1] is None else [OK, part[1]])
        elif kind == NOTHING:
            results.append([OK, 0])
        else:
            version += 1
            if kind == PUT:
                results.append([OK, version, record_versions(part[2])[2] == version])
            elif kind == DELETE:
                results.append([OK, version])
            else:
                results.append([OK, version, int(unpack_record(part[2]).value)])
    return results


def nothing_tail(status: int, version: int, index: int) -> Tail:
    """The answer to an operation that changed nothing. ``index``: as it is handed out, with its generation."""
    if status == 0:
        return (0, 0, index)
    if status == ConditionFailed.status:
        text = f"the record is at version {version}" if version else "there is no such record"
        return (status, f"condition failed: {text}", {"version": version, "index": index})
    if status == Fenced.status:
        text = f"a higher token, {version}, was seen here under that fence's name"
        return (status, text, {"token": version, "index": index})
    if status == FenceForgotten.status:
        text = (
            f"the fence of that name was not raised for so long that it was forgotten, and its token may have been "
            f"overtaken: tokens up to {version} were forgotten; take the lock again and use the new token"
        )
        return (status, text, {"token": version, "index": index})
    if status == HistoryChanged.status:
        error = history_changed(version, index)
        return (status, error.message, {**error.detail, "index": index})
    if status == TooLarge.status:
        text = f"a transaction reads at most {version} bytes: get large records on their own"
        return (status, text, {"index": index})
    return (
        status,
        "the record is not a counter, or the sum leaves 64 bits",
        {"version": version, "index": index},
    )
