"""The applied state in LMDB: records, aux rows and the position each partition stands at.

Databases: ``data`` (slot + lkey -> record), ``aux`` (slot + key -> row), ``meta``, ``map`` (rows that the node keeps beside its
facts: ``kept``). A partition's
current *slot* is in its meta row, so that a snapshot is staged in a fresh slot and switched in
by changing that row (R17). A partition that was split off another has its aux rows in a slot of its
own and its records, until a snapshot takes their place, where they always were: in the other's (R18). LMDB keys end at 511 bytes: a longer lkey is cut to LONG bytes plus
a digest, with the whole lkey kept in front of the record; among lkeys that share those bytes
a scan sorts by the whole lkey.

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
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import msgpack

from metastore.decoding import unpack_own
from metastore.errors import CorruptState, CorruptTree, NoRoom, StorageError
from metastore.keys import END_OF_RING
from metastore.storage.disk import Disk
from metastore.storage.readcache import ReadCache
from metastore.storage.rows import (
    SUMS,
    SUMS_BYTES,
    check_key,
    is_sound,
    prove_absent,
    rotten,
    seal,
    seek,
    unseal,
)
from metastore.storage.segments import Border
from metastore.storage.space import Blocks, Pages, pages_of

SLOT: Final = struct.Struct(">I")
LONG: Final = 488
_DIGEST: Final = 16
_LONG_PHYSICAL: Final = SLOT.size + LONG + _DIGEST
_LEN: Final = struct.Struct("<H")
NODE_ROW: Final = b"n"
BORDER_ROW: Final = b"b"
TABLES: Final = (b"data", b"aux", b"meta")
#: made where it is missing, by a build from before it; that nothing of it is lost is told by the node's row
MAP_TABLE: Final = b"map"
READ_CACHE_BYTES: Final = 32 << 20
DELETE_CHUNK: Final = 2000
#: beside those of its rows, what a transaction may need: branches, roots, the list of free pages
TXN_PAGES: Final = 128
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


def physical(slot: int, lkey: bytes) -> bytes:
    if len(lkey) <= LONG:
        return SLOT.pack(slot) + lkey
    return SLOT.pack(slot) + lkey[:LONG] + hashlib.blake2b(lkey, digest_size=_DIGEST).digest()


def _frame(lkey: bytes, record: bytes) -> bytes:
    return record if len(lkey) <= LONG else _LEN.pack(len(lkey)) + lkey + record


Row = tuple[bytes, bytes | None]
"""``(key, value)``, value None = delete."""

Job = list[tuple[Any, bytes, bytes | None]]
"""Writes of one transaction: ``(db, key, value)``."""


def record_writes(slot: int, records: Mapping[bytes, bytes | None]) -> list[Row]:
    """Changes ``lkey -> record`` of one slot (None: deleted) as keys and values of ``data``."""
    prefix = SLOT.pack(slot)
    return [
        (prefix + lkey, record)
        if len(lkey) <= LONG
        else (physical(slot, lkey), None if record is None else _frame(lkey, record))
        for lkey, record in records.items()
    ]


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


class Rubbish(NamedTuple):
    """Rows that nobody needs once the log is durable up to ``seq``: the aux rows of ``slot``, and those of
    ``data_slot`` from ``start`` up to ``end`` (points; None = the slot's end)."""

    seq: int
    slot: int
    data_slot: int
    start: bytes = b""
    end: bytes | None = None


class State:
    """One LMDB environment. Reads from the loop thread, ``write`` from the writer thread."""

    def __init__(self, env: Any, create: bool, read_cache_bytes: int = READ_CACHE_BYTES) -> None:
        """``env``: an open LMDB environment, or what stands in for one; ``create``: its tables, if they are not
        there. Raises CorruptState."""
        self.env = env
        self.cache = ReadCache(read_cache_bytes)
        try:
            self.data, self.aux, self.meta = (env.open_db(name, create=create) for name in TABLES)
        except lmdb.NotFoundError:
            raise CorruptState(
                f"the state lacks one of its tables {', '.join(map(bytes.decode, TABLES))}; replace the node"
            ) from None
        self.map = env.open_db(MAP_TABLE, create=True)
        # what a killed process had committed may be in the kernel's cache only
        env.sync(True)
        self._begin()
        #: of its file on the disk, if it has one
        self.blocks: Blocks | None = None

    @classmethod
    def open(
        cls, folder: Path, create: bool, map_size: int, read_cache_bytes: int = READ_CACHE_BYTES
    ) -> State:
        """Raises StorageError, CorruptState."""
        try:
            env = lmdb.open(
                str(folder),
                map_size=map_size,
                max_dbs=4,
                max_readers=64,
                subdir=True,
                lock=True,
                readahead=False,
                meminit=False,
            )
            state = cls(env, create, read_cache_bytes)
            Disk().sync_folder(folder)
            state.blocks = Blocks(folder / "data.mdb")
            return state
        except lmdb.Error as e:
            raise StorageError(f"the state in {folder} cannot be opened: {e}") from None

    # --- reading --------------------------------------------------------------------------

    def _begin(self) -> None:
        self._reader = self.env.begin()
        self._prober = self.env.begin(buffers=True)
        self._probe = self._prober.cursor(db=self.data)

    def _end(self) -> None:
        self._reader.abort()
        self._prober.abort()

    def renew(self, changed: Mapping[bytes, bytes | None]) -> None:
        """See what was committed since: these changes of records, as ``record_writes`` makes them, and none that
        concern what anybody has read."""
        self._end()
        self._begin()
        self.cache.changed(changed)

    def get(self, slot: int, lkey: bytes) -> bytes | None:
        """The record, checked; None when there is none."""
        if len(lkey) > LONG:
            return self._get_long(physical(slot, lkey), lkey)
        key = _slot_prefix(slot) + lkey
        value: bytes | None = self.cache.young.get(key) or self.cache.get(key)
        if value is None:
            row = self._reader.get(key, None, self.data)
            if row is None:
                prove_absent(self._probe, key)
                return None
            value = unseal(key, row)
            self.cache.put(key, value)
        return value

    def _get_long(self, key: bytes, lkey: bytes) -> bytes | None:
        row: bytes | None = self._reader.get(key, None, self.data)
        if row is None:
            prove_absent(self._probe, key)
            return None
        whole, value = _unframe(key, unseal(key, row))
        return value if whole == lkey else None

    def scan(self, slot: int, start: bytes, end: bytes, txn: Any = None) -> Iterator[tuple[bytes, bytes]]:
        """``(lkey, record)`` with ``start <= lkey < end``, in order, checked."""
        cursor = (txn or self._reader).cursor(db=self.data)
        prefix = SLOT.pack(slot)
        if not seek(cursor, prefix + start[:LONG]):
            return
        run: list[tuple[bytes, bytes]] = []
        run_prefix = b""
        for key, row in cursor:
            if key[:4] != prefix:
                check_key(key, row)
                break
            lkey, record = _unframe(key, unseal(key, row))
            if len(key) == _LONG_PHYSICAL:
                if run and key[:-_DIGEST] != run_prefix:
                    yield from sorted(run)
                    run = []
                run_prefix = key[:-_DIGEST]
                if start <= lkey < end:
                    run.append((lkey, record))
                elif not run and lkey[:LONG] >= end:
                    break
                continue
            if run:
                yield from sorted(run)
                run = []
            if lkey >= end:
                return
            if lkey >= start:
                yield lkey, record
        yield from sorted(run)

    def scan_short(
        self, slot: int, start: bytes, end: bytes, limit: int, max_bytes: int, wanted: bytes, max_looks: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None, int] | None:
        """The rows of ``scan`` at once, and for those within the bounds of ``Store.scan``: with where to go on, and
        what is left of ``max_bytes``. None when there are long keys, which take more care."""
        if len(start) > LONG or len(end) > LONG:
            return None
        cursor = self._reader.cursor(db=self.data)
        prefix = SLOT.pack(slot)
        rows: list[tuple[bytes, bytes]] = []
        if not seek(cursor, prefix + start):
            return rows, None, max_bytes
        stop, crc32, sums_of = prefix + end, zlib.crc32, SUMS.unpack_from
        for key, row in cursor:
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
            lkey = key[4:]
            if len(rows) >= limit or max_bytes <= 0 or max_looks <= 0:
                return rows, lkey, max_bytes
            max_looks -= 1
            if not wanted or lkey.startswith(wanted, 8):
                rows.append((lkey, record))
                max_bytes -= len(lkey) + len(record)
        return rows, None, max_bytes

    def saved(self) -> Saved | None:
        """What the ``meta`` table holds, every row of it checked; None when there is nothing at all. Raises
        CorruptState."""
        node: bytes | None = None
        border: Border | None = None
        metas: dict[int, Meta] = {}
        with self.env.begin() as txn:
            for key, row in txn.cursor(db=self.meta):
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
        with self.env.begin() as txn:
            return {bytes(key): unseal(key, row) for key, row in txn.cursor(db=self.map)}

    def meta_in(self, p: int, txn: Any) -> Meta | None:
        """A partition's row, in that transaction."""
        row = txn.get(meta_key(p), db=self.meta)
        return None if row is None else Meta.unpack(unseal(meta_key(p), row))

    def aux_rows(self, slot: int) -> list[tuple[bytes, bytes]]:
        with self.env.begin() as txn:
            return self.aux_rows_in(slot, txn)

    def aux_rows_in(self, slot: int, txn: Any) -> list[tuple[bytes, bytes]]:
        prefix = SLOT.pack(slot)
        rows = []
        cursor = txn.cursor(db=self.aux)
        if seek(cursor, prefix):
            for key, row in cursor:
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
            with self.env.begin(buffers=True) as txn:
                cursor = txn.cursor(db=getattr(self, table))
                more = seek(cursor, after)
                while more:
                    key, row = bytes(cursor.key()), cursor.value()
                    if key != after:
                        if not is_sound(key, row):
                            bad.append(key)
                        if key < after:
                            raise rotten(key)
                        size += len(key) + len(row)
                        if size >= max_bytes:
                            return key, size, bad
                        after = key
                    more = cursor.next()
        except lmdb.Error as e:
            raise CorruptTree(f"table {table} of the state cannot be read ({e}); replace the node") from None
        return None, size, bad

    def slots(self) -> set[int]:
        """Every slot that holds rows. Raises CorruptTree."""
        found: set[int] = set()
        with self.env.begin() as txn:
            for db in (self.data, self.aux):
                cursor = txn.cursor(db=db)
                more = cursor.first()
                while more:
                    check_key(cursor.key(), cursor.value())
                    slot = SLOT.unpack(cursor.key()[:4])[0]
                    found.add(slot)
                    more = slot < 0xFFFFFFFF and seek(cursor, SLOT.pack(slot + 1))
        return found

    def pages(self) -> Pages:
        """How much of its map is used, as the loop's thread sees it."""
        return pages_of(self.env, self._reader, (self.data, self.aux, self.meta, self.map))

    # --- writing (writer thread) -------------------------------------------------------------

    def make_room(self, rows: int, size: int) -> None:
        """Have blocks on the disk for a transaction that changes so many rows, of so many bytes. Raises NoRoom: then
        nothing was begun."""
        if self.blocks is None:
            return
        with self.env.begin() as txn:
            pages = pages_of(self.env, txn, (self.data, self.aux, self.meta, self.map))
        page = self.env.stat()["psize"]
        # each row has its leaf written anew, and there are no more of those than there are pages; some of what
        # is free may be in use by a reader still
        leaves = min(rows, pages.used // page)
        needed = page * (leaves + leaves // 8 + TXN_PAGES) + 2 * size
        more = max(page * TXN_PAGES, needed - pages.free // 2)
        self.blocks.ensure(pages.used, min(more, max(0, pages.limit - pages.used)))

    def aux_write(self, slot: int, key: bytes, row: bytes | None) -> tuple[Any, bytes, bytes | None]:
        return self.aux, SLOT.pack(slot) + key, row

    def write(self, job: Job, records: Iterable[Row] = ()) -> None:
        """One synced transaction: ``job``, and changes of records as ``record_writes`` makes them. Raises
        NoRoom, after which it may be tried again, and StorageError (R14)."""
        rows: dict[Any, list[Row]] = {self.data: list(records)}
        for db, key, value in job:
            rows.setdefault(db, []).append((key, value))
        if self.blocks is not None:
            sizes = [len(key) + len(value or b"") for changes in rows.values() for key, value in changes]
            self.make_room(len(sizes), sum(sizes))
        try:
            with self.env.begin(write=True) as txn:
                for db, changes in rows.items():
                    self._write_rows(txn, db, changes)
        except lmdb.MapFullError:
            raise NoRoom(
                f"the state is full: map size {self.env.info()['map_size']} bytes; raise map_size_gib"
            ) from None
        except lmdb.Error as e:
            raise StorageError(f"the state cannot be written ({e}); check the disk") from None

    @staticmethod
    def _write_rows(txn: Any, db: Any, rows: list[Row]) -> None:
        """By slices, with the interpreter let go between them: a transaction at one stretch would keep the loop's
        thread, which everybody waits for, from its work for many milliseconds."""
        rows.sort(key=itemgetter(0))  # in key order, LMDB writes several times faster
        for start in range(0, len(rows), SLICE_ROWS):
            if start:
                time.sleep(SLICE_PAUSE_S)
            few = rows[start : start + SLICE_ROWS]
            puts = [(key, seal(key, value)) for key, value in few if value is not None]
            if puts:
                txn.cursor(db=db).putmulti(puts)
            if len(puts) < len(few):
                for key, value in few:
                    if value is None:
                        txn.delete(key, db=db)

    def delete_step(self, rubbish: Rubbish) -> bool:
        """Delete some of those rows; whether rows are left. Raises as ``write``, and CorruptTree."""
        left = DELETE_CHUNK
        self.make_room(left, 0)
        spans = (
            (self.data, SLOT.pack(rubbish.data_slot), rubbish.start, rubbish.end),
            (self.aux, SLOT.pack(rubbish.slot), b"", None),
        )
        try:
            with self.env.begin(write=True) as txn:
                for db, prefix, start, end in spans:
                    cursor = txn.cursor(db=db)
                    more = seek(cursor, prefix + start)
                    while more and left and cursor.key()[:4] == prefix:
                        check_key(cursor.key(), cursor.value())
                        if end is not None and cursor.key()[4:] >= end:
                            break
                        more = cursor.delete()
                        left -= 1
                    if not left:
                        return True
        except lmdb.MapFullError:
            raise NoRoom("the state is full: raise map_size_gib") from None
        except lmdb.Error as e:
            raise StorageError(f"the state cannot be written ({e}); check the disk") from None
        return False

    def bytes_used(self) -> int:
        """Of the map, free pages between used ones included."""
        return int((self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"])

    def close(self) -> None:
        self._end()
        if self.blocks is not None:
            self.blocks.close()
        self.env.close()
