"""An engine of the state that faults are injected into, and what tests read and damage of a state's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from metastore.errors import NoRoom, StorageError
from metastore.storage.engine import Row, Slice
from metastore.storage.lmdb_engine import LmdbEngine
from metastore.storage.memory_engine import MemoryEngine, MemoryTable
from metastore.storage.state import READ_CACHE_BYTES, State


class FaultyEngine(MemoryEngine):
    """A disk in memory: it outlives the process. ``step`` is called before and after each transaction, and may raise:
    the process ends there."""

    def __init__(self, step: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.step = step
        #: the next transaction fails (R14)
        self.fail_next = False
        #: there is no room for a transaction, for the time being
        self.full = False

    def make_room(self, rows: int, size: int) -> None:
        if self.full:
            raise NoRoom("the disk has no room")

    def write(self, slices: Iterable[Slice]) -> None:
        self.step()
        if self.fail_next:
            self.fail_next = False
            raise StorageError("the state cannot be written (no space left on device); check the disk")
        super().write(slices)
        self.step()

    def copied(self) -> dict[str, MemoryTable]:
        """What is on the disk: it stays as it is whatever rots here later."""
        return {name: table.copy() for name, table in self.tables.items()}

    def row(self, table: str, key: bytes) -> bytes | None:
        """What was committed."""
        return self.tables[table].get(key) if table in self.tables else None

    def rot(self, table: str, key: bytes, row: bytes) -> None:
        """A row is another from here on: in the last transaction, and in each snapshot that shows the same."""
        self.tables[table].rows[key] = row


def lmdb_state(
    folder: Path, create: bool, map_size: int = 1 << 30, read_cache_bytes: int = READ_CACHE_BYTES
) -> State:
    return State(LmdbEngine.open(folder, map_size), create, read_cache_bytes)


def rows_in(state: State, table: str) -> list[Row]:
    """Every row of a table as its engine has it, checksums and all."""
    with state.engine.snapshot() as snapshot:
        return list(snapshot.table(table).seek(b"")[1])


def rot(state: State, table: str, at: int, how: Callable[[bytes, bytes], Row]) -> None:
    """Row ``at`` of a table becomes what ``how`` makes of its key and value, as by rot."""
    key, row = rows_in(state, table)[at]
    state.engine.write([Slice(table, (), [key]), Slice(table, [how(key, row)])])
    state.renew({})
