"""The part of LMDB that the state uses, in memory: synced transactions, snapshots, cursors.

A committed transaction is durable at once, which is what LMDB promises with its sync on. Tables
are never changed once they are committed: a writer copies those that it touches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import lmdb

STAT = {"psize": 4096, "branch_pages": 0, "leaf_pages": 0, "overflow_pages": 0}


class _Table:
    """Rows, and their keys in order once a cursor has asked for them."""

    __slots__ = ("_keys", "rows")

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows
        self._keys: list[bytes] | None = None

    def keys(self) -> list[bytes]:
        if self._keys is None:
            self._keys = sorted(self.rows)
        return self._keys

    def changed(self) -> None:
        self._keys = None


class MemoryEnv:
    """An environment; outlives the process that opened it. ``fail_next``: the next commit fails."""

    def __init__(self) -> None:
        self.tables: dict[bytes, _Table] = {}
        self.fail_next = False

    def open_db(self, name: bytes, create: bool = True) -> bytes:
        if not create and name not in self.tables:
            raise lmdb.NotFoundError("mdb_dbi_open")
        self.tables.setdefault(name, _Table({}))
        return name

    def begin(self, write: bool = False, buffers: bool = False) -> _Txn:
        return _Txn(self, write)

    def sync(self, force: bool) -> None:
        pass

    def info(self) -> dict[str, Any]:
        return {"map_size": 1 << 40, "last_pgno": 1}

    def stat(self) -> dict[str, int]:
        return STAT

    def close(self) -> None:
        pass


class _Txn:
    def __init__(self, env: MemoryEnv, write: bool) -> None:
        self._env = env
        self._write = write
        self._own: set[bytes] = set()
        self.tables = dict(env.tables)

    def __enter__(self) -> _Txn:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._write and kind is None:
            if self._env.fail_next:
                self._env.fail_next = False
                raise lmdb.DiskError("mdb_txn_commit: No space left on device")
            self._env.tables = self.tables

    def abort(self) -> None:
        self.tables = {}

    def stat(self, db: bytes) -> dict[str, int]:
        return STAT

    def _mine(self, db: bytes) -> _Table:
        table = self.tables[db]
        if db not in self._own:
            self._own.add(db)
            table = self.tables[db] = _Table(dict(table.rows))
        return table

    def get(self, key: bytes, default: None = None, db: bytes = b"") -> bytes | None:
        return self.tables[db].rows.get(key, default)

    def put(self, key: bytes, value: bytes, db: bytes) -> None:
        table = self._mine(db)
        if key not in table.rows:
            table.changed()
        table.rows[key] = value

    def delete(self, key: bytes, db: bytes) -> None:
        table = self._mine(db)
        if table.rows.pop(key, None) is not None:
            table.changed()

    def cursor(self, db: bytes) -> _Cursor:
        return _Cursor(self._mine(db) if self._write else self.tables[db])


class _Cursor:
    def __init__(self, table: _Table) -> None:
        self._table = table
        self._keys = table.keys()
        self._at = 0

    def set_range(self, key: bytes) -> bool:
        self._at = bisect_left(self._keys, key)
        return self._at < len(self._keys)

    def first(self) -> bool:
        self._at = 0
        return bool(self._keys)

    def last(self) -> bool:
        self._at = max(0, len(self._keys) - 1)
        return bool(self._keys)

    def next(self) -> bool:
        self._at += 1
        return self._at < len(self._keys)

    def prev(self) -> bool:
        if self._at == 0:
            return False
        self._at -= 1
        return True

    def key(self) -> bytes:
        return self._keys[self._at] if self._at < len(self._keys) else b""

    def value(self) -> bytes:
        return self._table.rows[self._keys[self._at]]

    def putmulti(self, items: list[tuple[bytes, bytes]]) -> None:
        self._table.rows.update(items)
        self._table.changed()

    def delete(self) -> bool:
        del self._table.rows[self._keys.pop(self._at)]
        return self._at < len(self._keys)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        keys, rows = self._keys, self._table.rows
        for at in range(self._at, len(keys)):
            yield keys[at], rows[keys[at]]
