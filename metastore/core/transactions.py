"""What a transaction comes to, resolved against the records as they are: its compares, and the rows of the branch it takes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from metastore.core.dedupe import Tail
from metastore.core.rows import NOTHING, nothing_tail, txn_results
from metastore.core.tables import Tables
from metastore.errors import HistoryChanged, NotANumber, TooLarge
from metastore.operations import (
    ADD,
    COMPARES_AT,
    DELETE,
    EQUAL,
    GET,
    LESS,
    MAX_TXN_READ_BYTES,
    NOT_EQUAL,
    OK,
    OTHERWISE_AT,
    PART_KEY_AT,
    PUT,
    THEN_AT,
    VALUE,
    VERSION,
    Op,
)
from metastore.records import COUNTER, pack_record, record_ttl_ms, unpack_record

INT64_MAX: Final = (1 << 63) - 1

Read = Callable[[bytes], bytes | None]
"""storage_key -> the record, packed, or None."""


class Refused(Exception):
    """A transaction that can have no effect; its status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def counter(old: bytes | None, version: int, created: int, total: int) -> bytes:
    """A counter keeps the TTL it was made with; there is none to give when adding."""
    ttl_ms = record_ttl_ms(old) if old is not None else 0
    return pack_record(version, created or version, b"%d" % total, b"", ttl_ms, COUNTER)


def sum_of(old: bytes | None, flags: int, delta: int) -> int | None:
    if old is None:
        total = delta
    elif flags & COUNTER:
        total = int(unpack_record(old).value) + delta
    else:
        return None
    return total if -INT64_MAX - 1 <= total <= INT64_MAX else None


def foreign_version(tables: Tables, compares: list[list[Any]]) -> int:
    """The first version that is compared with and is of another history, 0 = none is."""
    for _, target, _, operand in compares:
        if target != VALUE and operand and tables.is_other_history(operand):
            return int(operand)
    return 0


def read_txn(tables: Tables, read: Read, op: Op) -> tuple[Tail, int]:
    """A transaction that only reads, of the committed state: no entry, nothing to remember. Its
    answer, and how many bytes it read."""
    compares = op[COMPARES_AT]
    foreign = foreign_version(tables, compares)
    if foreign:
        return nothing_tail(HistoryChanged.status, foreign, tables.seen_index(0)), 0
    succeeded = all(holds(tables, read, *compare) for compare in compares)
    rows: list[list[Any]] = []
    size = 0
    for part in op[THEN_AT if succeeded else OTHERWISE_AT]:
        record = read(part[PART_KEY_AT])
        rows.append([GET, None if record is None else tables.shown(record)])
        size += len(record or b"")
        if size > MAX_TXN_READ_BYTES:  # the others are not read to be refused
            return nothing_tail(TooLarge.status, MAX_TXN_READ_BYTES, 0), 0
    return (OK, succeeded, 0, txn_results(0, rows)), size


def holds(
    tables: Tables,
    record_of: Read,
    storage_key: bytes,
    target: int,
    relation: int,
    operand: Any,
) -> bool:
    record = record_of(storage_key)
    if target == VALUE:
        if record is None:
            return relation == NOT_EQUAL
        value: Any = unpack_record(record).value
    else:
        _, version, created = tables.shown_versions(record)
        value = version if target == VERSION else created
    if relation == EQUAL:
        return bool(value == operand)
    if relation == NOT_EQUAL:
        return bool(value != operand)
    return bool(value < operand if relation == LESS else value > operand)


def stage(tables: Tables, current: Read, version: int, parts: list[list[Any]]) -> list[list[Any]]:
    """The rows of a branch, each part seeing those before it. Nothing is changed yet, so that a
    part that cannot be done undoes nothing. Raises Refused."""
    staged: dict[bytes, bytes | None] = {}
    read_bytes = 0
    rows: list[list[Any]] = []
    for part in parts:
        kind, storage_key = part[0], part[PART_KEY_AT]
        old = staged[storage_key] if storage_key in staged else current(storage_key)
        if kind == GET:
            read_bytes += len(old) if old else 0
            if read_bytes > MAX_TXN_READ_BYTES:
                raise Refused(TooLarge.status)
            rows.append([GET, old and tables.shown(old)])
            continue
        if kind == DELETE and old is None:
            rows.append([NOTHING])
            continue
        version += 1
        flags, _, created = tables.shown_versions(old)
        if kind == DELETE:
            new = None
            rows.append([DELETE, storage_key])
        elif kind == PUT:
            _, _, value, content_type, ttl_ms = part
            new = pack_record(version, created or version, value, content_type.encode(), ttl_ms or 0)
            rows.append([PUT, storage_key, new])
        else:
            _, _, delta = part
            total = sum_of(old, flags, delta)
            if total is None:
                raise Refused(NotANumber.status)
            new = counter(old, version, created, total)
            rows.append([ADD, storage_key, new])
        staged[storage_key] = new
    return rows
