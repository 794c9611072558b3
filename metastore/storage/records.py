"""The records of the log: entries and the small durable facts between them. Pure.

A record is ``u32 length (of what follows) | u8 kind | body``. An ENTRY's body is ``partition
(u32) | commit (u64)`` and the entry's bytes as the leader made them; the others are msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from metastore.decoding import unpack_own
from metastore.errors import CorruptLog

HEAD: Final = struct.Struct("<IB")
ENTRY_HEAD: Final = struct.Struct("<IBIQ")
MAX_RECORD_BYTES: Final = (8 << 20) + 1024


class EntryRecord(NamedTuple):
    """One log entry of a partition; ``commit``: what was known committed when it came."""

    p: int
    commit: int
    blob: bytes


class SealEntry(NamedTuple):
    """R1: sealed epoch, who owns it, and the config that made it (packed)."""

    p: int
    epoch: int
    owner: bytes
    config: bytes


class ConfigEntry(NamedTuple):
    """The last known config of a partition (packed)."""

    p: int
    config: bytes


class TruncateEntry(NamedTuple):
    """Entries above ``keep_index`` are gone."""

    p: int
    keep_index: int


class Fact(NamedTuple):
    """A durable fact of the node."""

    key: str
    value: Any


class DropEntry(NamedTuple):
    """The replica was removed; its sealed epoch stays for ever (R10)."""

    p: int


Record = EntryRecord | SealEntry | ConfigEntry | TruncateEntry | Fact | DropEntry

_KINDS: Final[dict[int, type[Any]]] = {
    2: SealEntry,
    3: ConfigEntry,
    4: TruncateEntry,
    5: Fact,
    6: DropEntry,
}
_NUMBERS: Final = {cls: n for n, cls in _KINDS.items()}
ENTRY: Final = 1


def pack_record(record: Record) -> bytes:
    """The record's bytes. Raises ValueError when it is over the size limit."""
    if type(record) is EntryRecord:
        return pack_entry_record(*record)
    body: bytes = msgpack.packb(list(record))
    return _bounded(HEAD.pack(len(body) + 1, _NUMBERS[type(record)]) + body)


def pack_entry_record(p: int, commit: int, blob: bytes) -> bytes:
    """An EntryRecord's bytes. Raises ValueError when it is over the size limit."""
    return _bounded(ENTRY_HEAD.pack(len(blob) + 13, ENTRY, p, commit) + blob)


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MAX_RECORD_BYTES:
        raise ValueError(f"log record of {len(raw)} bytes is over the limit of {MAX_RECORD_BYTES}")
    return raw


def unpack_records(body: bytes) -> Iterator[tuple[int, Record]]:
    """``(offset in body, record)`` of every record. Raises CorruptLog."""
    pos, end = 0, len(body)
    while pos < end:
        if end - pos < HEAD.size:
            raise CorruptLog("a log record is cut short inside an intact block")
        length, kind = HEAD.unpack_from(body, pos)
        stop = pos + 4 + length
        if stop > end or length < 1:
            raise CorruptLog("a log record is longer than its block")
        if kind == ENTRY:
            if length < ENTRY_HEAD.size - 4:
                raise CorruptLog("a log record is shorter than an entry's head")
            _, _, p, commit = ENTRY_HEAD.unpack_from(body, pos)
            yield pos, EntryRecord(p, commit, body[pos + ENTRY_HEAD.size : stop])
        else:
            cls = _KINDS.get(kind)
            if cls is None:
                raise CorruptLog(f"log record kind {kind} is not known: written by a later version?")
            try:
                record: Record = cls(*unpack_own(body[pos + HEAD.size : stop], strict_map_key=False))
            except (ValueError, TypeError, msgpack.UnpackException) as e:
                raise CorruptLog(f"a log record of kind {kind} cannot be read: {e}") from None
            yield pos, record
        pos = stop
