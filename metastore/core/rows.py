"""The rows of an entry's payload, what they change and how they are answered (R7). Pure.

A payload is msgpack ``[base_version, sessions, rows, usage, fences]``:

    sessions   [[client_id, lowest_open], ...]
    rows       [PUT, storage_key, record, at, seq]     also for ADD (row kind ADD: the answer tells the count)
               [DELETE, storage_key, at, seq]
               [EXPIRE, storage_key, -1, 0]
               [NOTHING, at, seq, status, version]    a failed condition, or nothing to delete
               [TXN, at, seq, succeeded, parts]       parts: [PUT, storage_key, record], [ADD, storage_key, record],
                                                      [DELETE, storage_key], [NOTHING], [GET, record or None]
               [FORGET, horizon]                      entries up to there are older than the dedupe window
               [SPLIT, child, at, last, epoch, usage, members]
                                                      R18: from the point ``at`` (8 bytes) on to ``last``, which holds
                                                      ``usage``, all is another partition's, which has ``members``
    usage      [[namespace, records, bytes], ...]  by how much each namespace has grown
    fences     [[digest of name, token], ...]      raised by this entry

``at`` is a position in ``sessions``, -1 when no dedupe was asked for. The n-th change of an entry has
the version ``base_version + n``, from 1: versions are dense. Dedupe is ``core.dedupe``'s, fences are
``core.fences``'. An entry without rows begins a history (R19, ``metastore.history``).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

from metastore.core.dedupe import Tail
from metastore.decoding import first_number, unpack_own
from metastore.errors import (
    ConditionFailed,
    Fenced,
    FenceForgotten,
    HistoryChanged,
    TooLarge,
)
from metastore.history import (
    history_changed,
    is_mark,
)
from metastore.operations import (
    ADD,
    DELETE,
    EXPIRE,
    GET,
    NOT_FOUND,
    OK,
    PUT,
    TXN,
)
from metastore.records import (
    record_versions,
    unpack_record,
)

NOTHING: Final = 0
#: from here on: rows that are no operation of a client
FORGET: Final = 14
SPLIT: Final = 15
META_KEY: Final = b"m"
SESSION_PREFIX: Final = b"s"
USAGE_PREFIX: Final = b"u"
TTL_PREFIX: Final = b"t"
SPLITS_KEY: Final = b"x"

Change = tuple[bytes, bytes | None]
"""``(storage_key, record)``, None = deleted."""


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


class SplitResult(NamedTuple):
    """R18: what an entry split off, and the aux rows that it begins with."""

    split: SplitOff
    metadata: list[tuple[bytes, bytes]]


class UpperHalf(NamedTuple):
    """R18: what an applied entry splits off. All from the point ``at`` on is ``child``'s, which begins with the rows
    ``metadata``. ``config``: the child's first one, packed; None = this store is no member, and the records above go."""

    child: int
    at: bytes
    metadata: list[tuple[bytes, bytes]]
    config: bytes | None


class Applied(NamedTuple):
    """What applying an entry changed: records (the n-th has version ``base`` + n, from 1), the aux
    rows to save with them, which versions are expirations, and what was split off."""

    changes: list[Change]
    metadata: set[bytes]
    base: int = 0
    expired: frozenset[int] = frozenset()
    split_result: SplitResult | None = None


def unpack_splits(raw: bytes | None) -> list[SplitOff]:
    """The aux row SPLITS_KEY; None when there is none."""
    rows: list[Any] = unpack_own(raw) if raw else []
    return [
        SplitOff(child, at, last, epoch, entry, tuple((node, store) for node, store in members))
        for child, at, last, epoch, entry, members in rows
    ]


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
            changes += txn_changes(row[4])
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


def txn_changes(parts: list[list[Any]]) -> list[Change]:
    return [
        (part[1], part[2] if part[0] != DELETE else None) for part in parts if part[0] in (PUT, ADD, DELETE)
    ]


def txn_results(base: int, parts: list[list[Any]]) -> list[list[Any]]:
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
            f"the fence of that name was not raised for so long that it was forgotten, and a higher token may have been "
            f"seen: tokens up to {version} were forgotten; acquire the lock again and use the new token"
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
