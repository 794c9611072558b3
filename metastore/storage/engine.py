"""The interface between the state and what holds its rows: tables of rows in the order of their keys, changed by
transactions, read from snapshots. ``lmdb_engine`` keeps them on the disk, ``memory_engine`` in memory.

An engine stores keys and values as they are: checksums and what keys mean are the state's affair. One conformance suite
(``tests/unit/storage/test_engine.py``) holds every engine to what is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

#: of a key; the shortest is one byte
MAX_KEY_BYTES: Final = 511

Row = tuple[bytes, bytes]
"""``(key, value)``."""


class Slice(NamedTuple):
    """Some of the changes of one transaction, all of one table: rows to put and keys to delete, no key in both."""

    table: str
    puts: Sequence[Row]
    deletes: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Pages:
    """Of an engine's rows, in bytes: how many there may be, up to where that is used, what of that is free, and
    what the file has on the disk beyond what is used."""

    limit: int
    used: int
    free: int
    ahead: int = 0


class Table(Protocol):
    """One table, as a snapshot shows it. Usable until the snapshot is closed."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value, or None."""

    def seek(self, key: bytes, /) -> tuple[Row | None, Iterator[Row]]:
        """The row below ``key`` (None: there is none), and the rows from ``key`` on, in order. ``key`` may be empty."""

    def around(self, key: bytes, /) -> tuple[Row | None, Row | None]:
        """The row below ``key``, and the first one from ``key`` on. Their bytes may be views, valid until the next
        call: large values are not copied."""


class Snapshot(Protocol):
    """All tables as one transaction left them, whatever is written later. For one thread at a time. What only later
    transactions need waits for it: close it, or use it as a context."""

    def table(self, name: str) -> Table:
        """A table that was opened."""

    def close(self) -> None:
        """Nothing is read from it any more."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """See the module. ``open_table`` (first for the table that is read most)
    and ``sync`` come first. Snapshots are for any thread, ``make_room`` and ``write``
    for one at a time."""

    @property
    def unreadable(self) -> type[Exception]:
        """What a reading raises when a table cannot be walked."""

    def open_table(self, name: str, create: bool) -> bool:
        """Whether there is such a table: with ``create``, always. Raises StorageError."""

    def sync(self) -> None:
        """What an earlier process has committed is durable when this returns; it is called once. Raises StorageError, OSError
        (R14)."""

    def snapshot(self) -> Snapshot:
        """As of the last transaction that was committed."""

    def make_room(self, rows: int, size: int) -> None:
        """Have room on the disk for a transaction that changes so many rows, of so many bytes. Raises NoRoom: then
        nothing was begun."""

    def write(self, slices: Iterable[Slice]) -> None:
        """One transaction, durable when this returns. Slices are asked for one after the other, and a later one
        counts; to delete what is not there changes nothing. Raises NoRoom, after which nothing has changed and it may be tried
        again, and StorageError, after which it may not (R14); whatever ``slices`` raises changes nothing either."""

    def pages(self) -> Pages:
        """How much room its rows take."""

    def close(self) -> None:
        """Once no snapshot is open any more."""
