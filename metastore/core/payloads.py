"""Whether what came from another node can be applied or loaded, before it is stored. Pure.

A checksum says that bytes arrived as they were sent, not that they are what a leader makes. What a
follower could not apply would end it when it is committed (R14), at the sender's pleasure; so it is
refused when it comes. The forms are those of ``core.machine``.
"""

from __future__ import annotations

from typing import Any, Final

from metastore.core.dedupe import Session
from metastore.core.fences import BUCKET_BYTES, BUCKETS, DIGEST_BYTES, FENCE_PREFIX, FLOOR_PREFIX
from metastore.core.rows import (
    FORGET,
    META_KEY,
    NOTHING,
    SESSION_PREFIX,
    SPLIT,
    SPLITS_KEY,
    TTL_PREFIX,
    USAGE_PREFIX,
    digest_key,
)
from metastore.core.transactions import INT64_MAX
from metastore.decoding import MAX_ITEMS, unpack_body
from metastore.errors import ProtocolError
from metastore.history import MAX_GENERATIONS, count_of, generation_of
from metastore.operations import ADD, DELETE, EXPIRE, GET, PUT, TXN
from metastore.records import COUNTER, is_sound, record_versions, unpack_record

_UNREADABLE: Final = (ProtocolError, ValueError, TypeError, RecursionError)
#: entries up to this size may become as many objects as they can: few enough
UNCOUNTED_PAYLOAD: Final = 256 << 10
_MIN_STORAGE_KEY: Final = 11
POINT_BYTES: Final = 8
#: what a partition's number is below
MAX_PARTITION_IDS: Final = 1 << 16


def read_payload(payload: bytes | memoryview) -> list[Any]:
    """``payload`` decoded, if it is one that ``Proposals.resolve`` makes: it can be applied, but for the version
    at which it begins. Raises ValueError with the reason when it is not."""
    try:
        entry = unpack_body(payload, MAX_ITEMS, UNCOUNTED_PAYLOAD, MAX_ITEMS)
    except _UNREADABLE as e:
        raise ValueError(f"the payload does not parse: {type(e).__name__}") from None
    if type(entry) is not list or len(entry) != 5:
        raise ValueError("the payload is not [version, sessions, rows, usage, fences]")
    base, sessions, rows, usage, fences = entry
    if not (type(sessions) is type(rows) is type(usage) is type(fences) is list):
        raise ValueError("the payload is not [version, sessions, rows, usage, fences]")
    if not _is_count(base):
        raise ValueError(f"the payload begins at no version: {base!r:.20}")
    # loops, not all(...): this is done for every entry by every follower
    for item in sessions:
        if not _is_pair(item, bytes):
            raise ValueError("a session is not [client, count]")
    for item in fences:
        if not _is_pair(item, bytes) or len(item[0]) != DIGEST_BYTES:
            raise ValueError("a fence is not [digest of a name, token]")
    for item in usage:
        if type(item) is not list or len(item) != 3 or type(item[0]) is not bytes:
            raise ValueError("usage is not [namespace, records, bytes]")
        if not (type(item[1]) is type(item[2]) is int):
            raise ValueError("usage is not [namespace, records, bytes]")
    if not rows and count_of(base) == 0 and generation_of(base) >= MAX_GENERATIONS:
        raise ValueError(f"the payload begins generation {generation_of(base)}, which cannot be")
    known = len(sessions)
    for row in rows:
        if type(row) is list and len(row) == 5 and row[0] == PUT:  # nearly all
            _, storage_key, record, at, seq = row
            if (
                type(storage_key) is bytes is type(record)
                and len(storage_key) >= _MIN_STORAGE_KEY
                and type(at) is int is type(seq)
                and -1 <= at < known
                and 0 <= seq <= INT64_MAX
                and is_sound(record)
            ):
                continue
        if type(row) is not list or not row or not _is_row(row, known):
            raise ValueError("a row of a form that there is not")
    return entry


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT64_MAX


def _is_pair(item: Any, kind: type[Any]) -> bool:
    return type(item) is list and len(item) == 2 and type(item[0]) is kind and _is_count(item[1])


def _is_row(row: list[Any], sessions: int) -> bool:
    kind, width = row[0], len(row)
    if kind in (PUT, ADD) and width == 5:
        good, at, seq = _is_write(kind, row[1], row[2]), row[3], row[4]
    elif kind in (DELETE, EXPIRE) and width == 4:
        good, at, seq = _is_storage_key(row[1]), row[2], row[3]
    elif kind == NOTHING and width == 5:
        good, at, seq = _is_count(row[3]) and _is_count(row[4]), row[1], row[2]
    elif kind == TXN and width == 5:
        good = type(row[3]) is bool and type(row[4]) is list and all(map(_is_part, row[4]))
        at, seq = row[1], row[2]
    elif kind == FORGET and width == 2:
        return _is_count(row[1])
    elif kind == SPLIT and width == 7:
        usage = row[5]
        shaped = type(usage) is list and all(type(u) is list and len(u) == 3 for u in usage)
        counts = shaped and all(type(u[0]) is bytes and type(u[1]) is type(u[2]) is int for u in usage)
        return counts and _is_split(row[1:5], row[6])
    else:
        return False
    return good and type(at) is int and -1 <= at < sessions and _is_count(seq)


def _is_partition(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_PARTITION_IDS


def _is_split(head: list[Any], members: Any) -> bool:
    """``head``: child, point, last point, epoch."""
    child, at, last, epoch = head
    if not (_is_partition(child) and type(at) is bytes and len(at) == POINT_BYTES and _is_count(epoch)):
        return False
    if type(last) is not int or not int.from_bytes(at, "big") <= last < 1 << 8 * POINT_BYTES:
        return False
    return type(members) is list and bool(members) and all(map(_is_member, members))


def _is_member(member: Any) -> bool:
    return type(member) is list and len(member) == 2 and type(member[0]) is type(member[1]) is str


def _is_part(part: Any) -> bool:
    if type(part) is not list or not part:
        return False
    kind, width = part[0], len(part)
    if kind in (PUT, ADD):
        return width == 3 and _is_write(kind, part[1], part[2])
    if kind == DELETE:
        return width == 2 and _is_storage_key(part[1])
    if kind == GET:
        return width == 2 and (part[1] is None or _is_record(part[1]))
    return bool(kind == NOTHING) and width == 1


def _is_storage_key(storage_key: Any) -> bool:
    return type(storage_key) is bytes and len(storage_key) >= _MIN_STORAGE_KEY


def _is_write(kind: int, storage_key: Any, record: Any) -> bool:
    if not _is_storage_key(storage_key) or not _is_record(record):
        return False
    return kind == PUT or _is_counter(record)


def _is_record(record: Any) -> bool:
    return type(record) is bytes and is_sound(record)


def _is_counter(record: bytes) -> bool:
    if not record_versions(record)[0] & COUNTER:
        return False
    try:
        int(unpack_record(record).value)
    except ValueError:
        return False
    return True


def check_metadata(key: bytes, raw: bytes) -> bool:
    """Whether an aux row that came with a snapshot is one that ``Machine.load`` takes."""
    kind = key[:1]
    try:
        if kind == SESSION_PREFIX:
            session = Session.unpack(raw)
            if isinstance(session, int):
                return _is_count(session)
            counts = (
                session.minimum,
                session.lowest_open,
                session.last_index,
                session.ordinal,
                *session.outcomes,
            )
            return all(map(_is_count, counts)) and all(session.outcomes.values())
        row = unpack_body(raw, MAX_ITEMS, max_array=MAX_ITEMS)
    except _UNREADABLE:
        return False
    if type(row) is not list:
        return False
    if key == SPLITS_KEY:
        return all(
            type(s) is list and len(s) == 6 and _is_count(s[4]) and _is_split(s[:4], s[5]) for s in row
        )
    if key == META_KEY:
        return len(row) == 2 and all(map(_is_count, row))
    if kind == USAGE_PREFIX:
        return len(row) == 2 and all(type(v) is int for v in row)
    if kind == TTL_PREFIX:
        return (
            len(row) == 3
            and _is_storage_key(row[0])
            and all(map(_is_count, row[1:]))
            and key == digest_key(kind, row[0])
        )
    if kind == FENCE_PREFIX:
        return len(key) == 1 + DIGEST_BYTES and len(row) == 2 and all(map(_is_count, row))
    bucket = int.from_bytes(key[1:], "big")
    good = kind == FLOOR_PREFIX and len(key) == 1 + BUCKET_BYTES and bucket < BUCKETS
    return good and len(row) == 1 and _is_count(row[0])
