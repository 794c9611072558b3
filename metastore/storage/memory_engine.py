"""The engine that keeps its rows in memory, for tests and simulation: what one process commits, the next one that opens the
same engine finds. Pure.

A table that was committed is never changed: a transaction copies those that it touches, and a snapshot keeps what
it shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

from metastore.errors import NoRoom, StorageError
from metastore.storage.engine import MAX_KEY_BYTES, Pages, Row, Slice

LIMIT_BYTES: Final = 1 << 40


class Unreadable(Exception):
    """Tables in memory can always be walked: nothing raises this but what injects faults."""


class MemoryTable:
    """Rows, and their keys in order once somebody asks for them."""

    __slots__ = ("_keys", "get", "rows", "size")

    def __init__(self, rows: dict[bytes, bytes], size: int) -> None:
        #: ``size``: bytes of all keys and values
        self.rows, self.size = rows, size
        self.get = rows.get
        self._keys: list[bytes] | None = None

    def keys(self) -> list[bytes]:
        if self._keys is None:
            self._keys = sorted(self.rows)
        return self._keys

    def seek(self, key: bytes, /) -> tuple[Row | None, Iterator[Row]]:
        keys, rows = self.keys(), self.rows
        at = bisect_left(keys, key)
        before = (keys[at - 1], rows[keys[at - 1]]) if at else None
        return before, ((keys[i], rows[keys[i]]) for i in range(at, len(keys)))

    def around(self, key: bytes, /) -> tuple[Row | None, Row | None]:
        before, rows = self.seek(key)
        return before, next(rows, None)

    def copy(self) -> MemoryTable:
        copied = MemoryTable(dict(self.rows), self.size)
        copied._keys = self._keys
        return copied

    def change(self, puts: Iterable[Row], deletes: Iterable[bytes]) -> None:
        """Of a copy that no snapshot has. Raises StorageError."""
        rows = self.rows
        for key, value in puts:
            if not 0 < len(key) <= MAX_KEY_BYTES:
                raise StorageError(f"a key has 1 to {MAX_KEY_BYTES} bytes, and this one {len(key)}")
            old = rows.get(key)
            if old is None:
                self._keys = None
                self.size += len(key) + len(value)
            else:
                self.size += len(value) - len(old)
            rows[key] = value
        for key in deletes:
            old = rows.pop(key, None)
            if old is not None:
                self._keys = None
                self.size -= len(key) + len(old)


class MemorySnapshot:
    def __init__(self, tables: dict[str, MemoryTable]) -> None:
        self._tables = tables

    def table(self, name: str) -> MemoryTable:
        return self._tables[name]

    def close(self) -> None:
        self._tables = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryEngine:
    """See the module. ``limit_bytes``: of all keys and values together."""

    unreadable: type[Exception] = Unreadable

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        #: as the last transaction left them; none of them is changed later
        self.tables: dict[str, MemoryTable] = {}

    def open_table(self, name: str, create: bool) -> bool:
        if create and name not in self.tables:
            self.tables = {**self.tables, name: MemoryTable({}, 0)}
        return name in self.tables

    def sync(self) -> None:
        """What was committed is as durable as it gets."""

    def snapshot(self) -> MemorySnapshot:
        return MemorySnapshot(self.tables)

    def make_room(self, rows: int, size: int) -> None:
        """There is what there is: ``write`` says when it is not enough."""

    def write(self, slices: Iterable[Slice]) -> None:
        tables = dict(self.tables)
        for name, puts, deletes in slices:
            if tables[name] is self.tables[name]:
                tables[name] = tables[name].copy()
            tables[name].change(puts, deletes)
        size, before = _size_of(tables), _size_of(self.tables)
        if size > self.limit_bytes and size > before:
            raise NoRoom(f"the state is full: {size} bytes, of at most {self.limit_bytes}")
        self.tables = tables

    def pages(self) -> Pages:
        return Pages(self.limit_bytes, _size_of(self.tables), 0)

    def close(self) -> None:
        """It may be opened again: what was committed stays."""


def _size_of(tables: dict[str, MemoryTable]) -> int:
    return sum(table.size for table in tables.values())
