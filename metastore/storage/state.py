"""The applied state: records, aux rows and the position each partition stands at, in the tables of an engine.

Tables: ``data`` (slot + storage_key -> record), ``metadata`` (slot + key -> row), ``meta``, ``map`` (rows that the node keeps beside its
facts: ``kept``). A partition's
current *slot* is in its meta row, so that a snapshot is staged in a fresh slot and switched in
by changing that row (R17). A partition that was split off another has its aux rows in a slot of its
own and its records, until a snapshot takes their place, where they always were: in the other's (R18). An engine's keys end at 511 bytes: a longer storage_key is cut to LONG bytes plus
a digest, with the whole storage_key kept in front of the record; among storage_keys that share those bytes
a scan sorts by the whole storage_key.

Every row has its checksums (``rows``), which this module alone puts on and takes off, and every reading
proves that nothing is missing at its borders: a row whose key has rotted is told, never passed over (R14).
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgpack

from metastore.decoding import unpack_own
from metastore.errors import CorruptState, CorruptTree
from metastore.keys import END_OF_RING
from metastore.storage.engine import Engine, Slice, Snapshot, Table
from metastore.storage.readcache import ReadCache
from metastore.storage.rows import (
    SUMS,
    SUMS_BYTES,
    check_key,
    first_from,
    is_sound,
    prove_absent,
    rotten,
    rows_from,
    seal,
    unseal,
)
from metastore.storage.segments import Border

SLOT: Final = struct.Struct(">I")
LONG: Final = 488
_DIGEST: Final = 16
_LONG_PHYSICAL: Final = SLOT.size + LONG + _DIGEST
_LEN: Final = struct.Struct("<H")
NODE_ROW: Final = b"n"
BORDER_ROW: Final = b"b"
DATA_TABLE: Final = "data"
METADATA_TABLE: Final = "aux"
META_TABLE: Final = "meta"
TABLES: Final = (DATA_TABLE, METADATA_TABLE, META_TABLE)
#: made where it is missing, by a build from before it; that nothing of it is lost is told by the node's row
MAP_TABLE: Final = "map"
READ_CACHE_BYTES: Final = 32 << 20
DELETE_CHUNK: Final = 2000
_slot_prefix: Final = SLOT.pack
#: so many rows are written at a stretch, and then the loop's thread has its turn
SLICE_ROWS: Final = 250
SLICE_PAUSE_S: Final = 0.001


@dataclass(slots=True)
class Meta:
    """What the state knows of one partition. ``log_from_seq``: entries recorded up to this
    number are void (a snapshot took their place). ``shared``: the slot of its records when they are in
    another than ``slot``, else 0. ``start``, ``end``: which storage keys of that slot are its own; others may share
    it (R18)."""

    slot: int
    applied: int = 0
    applied_epoch: int = 0
    commit: int = 0
    sealed: int = 0
    owner: bytes = b""
    config: bytes = b""
    log_from_seq: int = 0
    dropped: bool = False
    shared: int = 0
    start: bytes = b""
    end: bytes = END_OF_RING

    @property
    def data_slot(self) -> int:
        return self.shared or self.slot

    def pack(self) -> bytes:
        raw: bytes = msgpack.packb(
            [
                self.slot,
                self.applied,
                self.applied_epoch,
                self.commit,
                self.sealed,
                self.owner,
                self.config,
                self.log_from_seq,
                self.dropped,
                self.shared,
                self.start,
                self.end,
            ]
        )
        return raw

    @classmethod
    def unpack(cls, raw: bytes) -> Meta:
        return cls(*unpack_own(raw))


def meta_key(p: int) -> bytes:
    return b"p" + SLOT.pack(p)


def physical(slot: int, storage_key: bytes) -> bytes:
    if len(storage_key) <= LONG:
        return SLOT.pack(slot) + storage_key
    return SLOT.pack(slot) + storage_key[:LONG] + hashlib.blake2b(storage_key, digest_size=_DIGEST).digest()


def _frame(storage_key: bytes, record: bytes) -> bytes:
    return record if len(storage_key) <= LONG else _LEN.pack(len(storage_key)) + storage_key + record


Row = tuple[bytes, bytes | None]
"""``(key, value)``, value None = delete."""

Job = list[tuple[str, bytes, bytes | None]]
"""Writes of one transaction: ``(table, key, value)``, value None = delete."""


def record_writes(slot: int, records: Mapping[bytes, bytes | None]) -> list[Row]:
    """Changes ``storage_key -> record`` of one slot (None: deleted) as keys and values of ``data``."""
    prefix = SLOT.pack(slot)
    return [
        (prefix + storage_key, record)
        if len(storage_key) <= LONG
        else (physical(slot, storage_key), None if record is None else _frame(storage_key, record))
        for storage_key, record in records.items()
    ]


def metadata_write(slot: int, key: bytes, row: bytes | None) -> tuple[str, bytes, bytes | None]:
    """A change of one metadata row of a slot (None: deleted), for a Job."""
    return METADATA_TABLE, SLOT.pack(slot) + key, row


def _unframe(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    if len(key) < _LONG_PHYSICAL:
        return key[SLOT.size :], value
    (length,) = _LEN.unpack_from(value)
    return value[2 : 2 + length], value[2 + length :]


class Saved(NamedTuple):
    """What ``meta`` holds: the node's own row, where the log begins, and a row of each partition."""

    node: dict[str, Any]
    border: Border
    metas: dict[int, Meta]


class GarbageRange(NamedTuple):
    """Rows that nobody needs once the log is durable up to ``seq``: the aux rows of ``slot``, and those of
    ``data_slot`` from ``start`` up to ``end`` (points; None = the slot's end)."""

    seq: int
    slot: int
    data_slot: int
    start: bytes = b""
    end: bytes | None = None


class State:
    """The tables of one engine. Reads from the loop thread, ``write`` from the writer thread."""

    def __init__(self, engine: Engine, create: bool, read_cache_bytes: int = READ_CACHE_BYTES) -> None:
        """``create``: its tables, if they are not there. Raises StorageError, CorruptState, OSError."""
        self.engine = engine
        self.cache = ReadCache(read_cache_bytes)
        if not all(engine.open_table(name, create) for name in TABLES):
            raise CorruptState(f"the state lacks one of its tables {', '.join(TABLES)}; replace the node")
        engine.open_table(MAP_TABLE, create=True)
        engine.sync()
        self._begin()

    # --- reading --------------------------------------------------------------------------

    def _begin(self) -> None:
        self._snapshot = self.engine.snapshot()
        self._data = self._snapshot.table(DATA_TABLE)
        self._read = self._data.get

    def renew(self, changed: Mapping[bytes, bytes | None]) -> None:
        """See what was committed since: these changes of records, as ``record_writes`` makes them, and none that
        concern what anybody has read."""
        self._snapshot.close()
        self._begin()
        self.cache.changed(changed)

    def get(self, slot: int, storage_key: bytes) -> bytes | None:
        """The record, checked; None when there is none."""
        if len(storage_key) > LONG:
            return self._get_long(physical(slot, storage_key), storage_key)
        key = _slot_prefix(slot) + storage_key
        value: bytes | None = self.cache.young.get(key) or self.cache.get(key)
        if value is None:
            row = self._read(key)
            if row is None:
                prove_absent(self._data, key)
                return None
            value = unseal(key, row)
            self.cache.put(key, value)
        return value

    def _get_long(self, key: bytes, storage_key: bytes) -> bytes | None:
        row = self._read(key)
        if row is None:
            prove_absent(self._data, key)
            return None
        whole, value = _unframe(key, unseal(key, row))
        return value if whole == storage_key else None

    def scan(
        self, slot: int, start: bytes, end: bytes, snapshot: Snapshot | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """``(storage_key, record)`` with ``start <= storage_key < end``, in order, checked."""
        table = self._data if snapshot is None else snapshot.table(DATA_TABLE)
        prefix = SLOT.pack(slot)
        run: list[tuple[bytes, bytes]] = []
        run_prefix = b""
        for key, row in rows_from(table, prefix + start[:LONG]):
            if key[:4] != prefix:
                check_key(key, row)
                break
            storage_key, record = _unframe(key, unseal(key, row))
            if len(key) == _LONG_PHYSICAL:
                if run and key[:-_DIGEST] != run_prefix:
                    yield from sorted(run)
                    run = []
                run_prefix = key[:-_DIGEST]
                if start <= storage_key < end:
                    run.append((storage_key, record))
                elif not run and storage_key[:LONG] >= end:
                    break
                continue
            if run:
                yield from sorted(run)
                run = []
            if storage_key >= end:
                return
            if storage_key >= start:
                yield storage_key, record
        yield from sorted(run)

    def scan_short(
        self, slot: int, start: bytes, end: bytes, limit: int, max_bytes: int, wanted: bytes, max_looks: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None, int] | None:
        """The rows of ``scan`` at once, and for those within the bounds of ``Store.scan``: with where to go on, and
        what is left of ``max_bytes``. None when there are long keys, which take more care."""
        if len(start) > LONG or len(end) > LONG:
            return None
        prefix = SLOT.pack(slot)
        rows: list[tuple[bytes, bytes]] = []
        stop, crc32, sums_of = prefix + end, zlib.crc32, SUMS.unpack_from
        for key, row in rows_from(self._data, prefix + start):
            if key >= stop:
                check_key(key, row)
                break
            if len(key) >= _LONG_PHYSICAL:
                return None
            at = len(row) - SUMS_BYTES
            if at < 0:
                raise rotten(key)
            record, (crc, key_crc) = row[:at], sums_of(row, at)
            if crc32(record) != crc or crc32(key, crc) != key_crc:
                raise rotten(key)
            storage_key = key[4:]
            if len(rows) >= limit or max_bytes <= 0 or max_looks <= 0:
                return rows, storage_key, max_bytes
            max_looks -= 1
            if not wanted or storage_key.startswith(wanted, 8):
                rows.append((storage_key, record))
                max_bytes -= len(storage_key) + len(record)
        return rows, None, max_bytes

    def saved(self) -> Saved | None:
        """What the ``meta`` table holds, every row of it checked; None when there is nothing at all. Raises
        CorruptState."""
        node: bytes | None = None
        border: Border | None = None
        metas: dict[int, Meta] = {}
        with self.engine.snapshot() as snapshot:
            for key, row in rows_from(snapshot.table(META_TABLE), b""):
                value = unseal(key, row)
                if key == NODE_ROW:
                    node = value
                elif key == BORDER_ROW:
                    border = Border(*unpack_own(value))
                else:
                    metas[SLOT.unpack(key[1:])[0]] = Meta.unpack(value)
        if node is None and border is None and not metas:
            return None
        if node is None or border is None:
            raise CorruptState("the state lacks the node's own rows; replace the node")
        return Saved(dict(unpack_own(node, strict_map_key=False)), border, metas)

    def map_rows(self) -> dict[bytes, bytes]:
        """What the ``map`` table holds, every row of it checked. Raises CorruptState."""
        with self.engine.snapshot() as snapshot:
            rows = rows_from(snapshot.table(MAP_TABLE), b"")
            return {key: unseal(key, row) for key, row in rows}

    def meta_in(self, p: int, snapshot: Snapshot) -> Meta | None:
        """A partition's row, in that snapshot."""
        row = snapshot.table(META_TABLE).get(meta_key(p))
        return None if row is None else Meta.unpack(unseal(meta_key(p), row))

    def metadata_rows(self, slot: int) -> list[tuple[bytes, bytes]]:
        with self.engine.snapshot() as snapshot:
            return self.metadata_rows_in(slot, snapshot)

    def metadata_rows_in(self, slot: int, snapshot: Snapshot) -> list[tuple[bytes, bytes]]:
        prefix = SLOT.pack(slot)
        rows = []
        for key, row in rows_from(snapshot.table(METADATA_TABLE), prefix):
            if key[:4] != prefix:
                check_key(key, row)
                break
            rows.append((key[4:], unseal(key, row)))
        return rows

    def check_rows(self, table: str, after: bytes, max_bytes: int) -> tuple[bytes | None, int, list[bytes]]:
        """Check the rows beyond the key ``after``, about ``max_bytes`` of them: up to which key (None = the end), how many
        bytes that was, and the keys of values that are not as they were put. Any thread. Raises CorruptTree when that is
        so of a key, when keys are not in order, or when the table cannot be walked."""
        bad: list[bytes] = []
        size = 0
        try:
            with self.engine.snapshot() as snapshot:
                for key, row in rows_from(snapshot.table(table), after):
                    if key == after:
                        continue
                    if not is_sound(key, row):
                        bad.append(key)
                    if key < after:
                        raise rotten(key)
                    size += len(key) + len(row)
                    if size >= max_bytes:
                        return key, size, bad
                    after = key
        except self.engine.unreadable as e:
            raise CorruptTree(f"table {table} of the state cannot be read ({e}); replace the node") from None
        return None, size, bad

    def slots(self) -> set[int]:
        """Every slot that holds rows. Raises CorruptTree."""
        found: set[int] = set()
        with self.engine.snapshot() as snapshot:
            for name in (DATA_TABLE, METADATA_TABLE):
                table = snapshot.table(name)
                row = first_from(table, b"")
                while row is not None:
                    slot = SLOT.unpack(row[0][: SLOT.size])[0]
                    found.add(slot)
                    row = first_from(table, SLOT.pack(slot + 1)) if slot < 0xFFFFFFFF else None
        return found

    # --- writing (writer thread) -------------------------------------------------------------

    def write(self, job: Job, records: Iterable[Row] = ()) -> None:
        """One synced transaction: ``job``, and changes of records as ``record_writes`` makes them. Raises
        NoRoom, after which it may be tried again, and StorageError (R14)."""
        rows: dict[str, list[Row]] = {DATA_TABLE: list(records)}
        for table, key, value in job:
            rows.setdefault(table, []).append((key, value))
        sizes = [len(key) + len(value or b"") for changes in rows.values() for key, value in changes]
        self.engine.make_room(len(sizes), sum(sizes))
        self.engine.write(_slices(rows))

    def delete_step(self, garbage: GarbageRange) -> bool:
        """Delete some of those rows; whether rows are left. Raises as ``write``, and CorruptTree."""
        keys: dict[str, list[bytes]] = {}
        left = DELETE_CHUNK
        with self.engine.snapshot() as snapshot:
            for name, slot, start, end in (
                (DATA_TABLE, garbage.data_slot, garbage.start, garbage.end),
                (METADATA_TABLE, garbage.slot, b"", None),
            ):
                keys[name] = _keys_within(snapshot.table(name), SLOT.pack(slot), start, end, left)
                left -= len(keys[name])
        if left < DELETE_CHUNK:
            self.engine.make_room(DELETE_CHUNK - left, 0)
            self.engine.write(Slice(name, (), gone) for name, gone in keys.items())
        return not left

    def close(self) -> None:
        self._snapshot.close()
        self.engine.close()


def _slices(tables: dict[str, list[Row]]) -> Iterator[Slice]:
    """With the interpreter let go between them: a transaction at one stretch would keep the loop's thread, which everybody
    waits for, from its work for many milliseconds."""
    for table, rows in tables.items():
        rows.sort(key=itemgetter(0))  # in key order, an engine on a disk writes several times faster
        for start in range(0, len(rows), SLICE_ROWS):
            if start:
                time.sleep(SLICE_PAUSE_S)
            few = rows[start : start + SLICE_ROWS]
            puts = [(key, seal(key, value)) for key, value in few if value is not None]
            deletes = [key for key, value in few if value is None] if len(puts) < len(few) else ()
            yield Slice(table, puts, deletes)


def _keys_within(table: Table, prefix: bytes, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
    """The first keys of a slot from ``start`` on, up to ``end``. Raises CorruptTree: what is deleted is what was
    put there."""
    keys: list[bytes] = []
    for key, row in rows_from(table, prefix + start) if limit else ():
        check_key(key, row)
        if len(keys) == limit or key[:4] != prefix or (end is not None and key[4:] >= end):
            break
        keys.append(key)
    return keys
