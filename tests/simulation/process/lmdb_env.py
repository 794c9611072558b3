"""The part of LMDB that the state uses, in memory: synced transactions, snapshots, cursors.

A committed transaction is durable at once, which is what LMDB promises with its sync on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

Tables = dict[bytes, dict[bytes, bytes]]


class MemoryEnv:
    """An environment; outlives the process that opened it."""

    def __init__(self) -> None:
        self.tables: Tables = {}

    def open_db(self, name: bytes) -> bytes:
        self.tables.setdefault(name, {})
        return name

    def begin(self, write: bool = False) -> _Txn:
        return _Txn(self, write)

    def sync(self, force: bool) -> None:
        pass

    def info(self) -> dict[str, Any]:
        return {"map_size": 0}

    def close(self) -> None:
        pass


class _Txn:
    def __init__(self, env: MemoryEnv, write: bool) -> None:
        self._env = env
        self._write = write
        self.tables: Tables = {n: dict(t) for n, t in env.tables.items()} if write else dict(env.tables)

    def __enter__(self) -> _Txn:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._write and kind is None:
            self._env.tables = self.tables

    def abort(self) -> None:
        self.tables = {}

    def get(self, key: bytes, db: bytes) -> bytes | None:
        return self.tables[db].get(key)

    def put(self, key: bytes, value: bytes, db: bytes) -> None:
        self.tables[db][key] = value

    def delete(self, key: bytes, db: bytes) -> None:
        self.tables[db].pop(key, None)

    def cursor(self, db: bytes) -> _Cursor:
        return _Cursor(self.tables[db])


class _Cursor:
    def __init__(self, table: dict[bytes, bytes]) -> None:
        self._table = table
        self._keys = sorted(table)
        self._at = 0

    def set_range(self, key: bytes) -> bool:
        self._at = bisect_left(self._keys, key)
        return self._at < len(self._keys)

    def first(self) -> bool:
        self._at = 0
        return bool(self._keys)

    def key(self) -> bytes:
        return self._keys[self._at] if self._at < len(self._keys) else b""

    def delete(self) -> bool:
        del self._table[self._keys.pop(self._at)]
        return self._at < len(self._keys)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self._keys[self._at :]:
            yield key, self._table[key]
