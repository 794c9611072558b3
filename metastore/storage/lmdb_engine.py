"""The engine that keeps its rows on the disk, in LMDB. All that metastore knows of LMDB is in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import lmdb

from metastore.errors import NoRoom, StorageError
from metastore.storage.disk import Disk
from metastore.storage.engine import Pages, Row, Slice
from metastore.storage.space import Blocks

MAX_TABLES: Final = 4
#: two for each snapshot that is open
MAX_READERS: Final = 128
#: beside those of its rows, what a transaction may need: branches, roots, the list of free pages
TXN_PAGES: Final = 128
#: pages of a file that hold no rows
META_PAGES: Final = 2


class LmdbTable:
    """A table, read by two transactions that see the same: one copies what it reads, the other shows it in place."""

    __slots__ = ("_copying", "_cursor", "_db", "_showing", "get")

    def __init__(self, copying: Any, showing: Any, db: Any, get: Callable[[bytes], bytes | None]) -> None:
        self.get = get
        self._copying, self._showing, self._db = copying, showing, db
        self._cursor: Any = None

    def seek(self, key: bytes, /) -> tuple[Row | None, Iterator[Row]]:
        cursor = self._copying.cursor(db=self._db)
        found = cursor.set_range(key)
        before = cursor.item() if (cursor.prev() if found else cursor.last()) else None
        if not found:
            return before, iter(())
        if before is None:
            cursor.first()
        else:
            cursor.next()
        return before, iter(cursor)

    def around(self, key: bytes, /) -> tuple[Row | None, Row | None]:
        cursor = self._cursor
        if cursor is None:
            cursor = self._cursor = self._showing.cursor(db=self._db)
        found = cursor.set_range(key)
        before = cursor.item() if (cursor.prev() if found else cursor.last()) else None
        if not found:
            return before, None
        if before is None:
            cursor.first()
        else:
            cursor.next()
        return before, cursor.item()


class LmdbSnapshot:
    def __init__(self, env: Any, dbs: dict[str, Any]) -> None:
        self._dbs = dbs
        #: records lie in the table that is opened first: LMDB looks there without being told, which is cheaper
        self._first = next(iter(dbs))
        while True:
            self._copying, self._showing = env.begin(db=dbs[self._first]), env.begin(buffers=True)
            if self._copying.id() == self._showing.id():
                return
            self.close()  # something was committed between the two

    def table(self, name: str) -> LmdbTable:
        copying, db = self._copying, self._dbs[name]
        # no Python function in between: this is the way of a read that no cache answers
        get = copying.get if name == self._first else partial(copying.get, db=db)
        return LmdbTable(copying, self._showing, db, get)

    def close(self) -> None:
        self._copying.abort()
        self._showing.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LmdbEngine:
    """Rows in the file ``data.mdb`` of a folder. LMDB writes into blocks that the file has: those of a transaction are
    allocated before it begins (``space.Blocks``)."""

    def __init__(self, env: Any, folder: Path) -> None:
        self.folder = folder
        self._env = env
        self._dbs: dict[str, Any] = {}
        self._blocks = Blocks(folder / "data.mdb")

    @classmethod
    def open(cls, folder: Path, map_size: int) -> Self:
        """``map_size``: how many bytes there may be. Raises StorageError, OSError."""
        try:
            env = lmdb.open(
                str(folder),
                map_size=map_size,
                max_dbs=MAX_TABLES,
                max_readers=MAX_READERS,
                subdir=True,
                lock=True,
                readahead=False,
                meminit=False,
            )
        except lmdb.Error as e:
            raise _unopened(folder, e) from None
        try:
            return cls(env, folder)
        except BaseException:
            env.close()
            raise

    @property
    def unreadable(self) -> type[Exception]:
        return lmdb.Error

    def open_table(self, name: str, create: bool) -> bool:
        try:
            self._dbs[name] = self._env.open_db(name.encode(), create=create)
        except lmdb.NotFoundError:
            return False
        except lmdb.Error as e:
            raise _unopened(self.folder, e) from None
        return True

    def sync(self) -> None:
        # what a killed process had committed may be in the kernel's cache only
        try:
            self._env.sync(True)
        except lmdb.Error as e:
            raise _unopened(self.folder, e) from None
        Disk().sync_folder(self.folder)

    def snapshot(self) -> LmdbSnapshot:
        return LmdbSnapshot(self._env, self._dbs)

    def make_room(self, rows: int, size: int) -> None:
        pages = self.pages()
        page = self._env.stat()["psize"]
        # each row has its leaf written anew, and there are no more of those than there are pages; some of what
        # is free may be in use by a reader still
        leaves = min(rows, pages.used // page)
        needed = page * (leaves + leaves // 8 + TXN_PAGES) + 2 * size
        more = max(page * TXN_PAGES, needed - pages.free // 2)
        self._blocks.ensure(pages.used, min(more, max(0, pages.limit - pages.used)))

    def write(self, slices: Iterable[Slice]) -> None:
        try:
            with self._env.begin(write=True) as txn:
                for table, puts, deletes in slices:
                    db = self._dbs[table]
                    if puts:
                        txn.cursor(db=db).putmulti(puts)
                    for key in deletes:
                        txn.delete(key, db=db)
        except lmdb.MapFullError:
            raise NoRoom(
                f"the state is full: map size {self._env.info()['map_size']} bytes; raise map_size_gib"
            ) from None
        except lmdb.Error as e:
            raise StorageError(f"the state cannot be written ({e}); check the disk") from None

    def pages(self) -> Pages:
        """What LMDB's list of free pages takes counts as free."""
        env = self._env
        info, stat = env.info(), env.stat()
        with env.begin() as txn:
            found = [stat, *(txn.stat(db) for db in self._dbs.values())]
        rows = sum(one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in found)
        page, last = stat["psize"], info["last_pgno"] + 1
        used = last * page
        free = max(0, last - META_PAGES - rows) * page
        return Pages(info["map_size"], used, free, max(0, self._blocks.end - used))

    def close(self) -> None:
        self._blocks.close()
        self._env.close()


def _unopened(folder: Path, error: Exception) -> StorageError:
    return StorageError(f"the state in {folder} cannot be opened: {error}")
