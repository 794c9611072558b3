"""A row of the state as it is on disk: what was put, and behind it two checksums (R14). Pure.

``value | crc32 of the value (u32) | crc32 of that and the key (u32)``, little endian. The second one ties key and
value together, and is enough to tell whether a *key* is as it was put, however long the value is. That
counts where nothing is found: a row whose key has rotted lies where it always did, between the same neighbours, so
"there is no such key" is true only if the rows on both sides of the gap have their keys (``prove_absent``). A value that has
rotted concerns the partition it belongs to. A key that has rotted concerns the whole tree: what was looked for since may
have been led astray by it, and so may what was put.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from metastore.errors import CorruptState, CorruptTree
from metastore.storage.engine import Row, Table

SUMS: Final = struct.Struct("<II")
SUMS_BYTES: Final = SUMS.size
_U32: Final = struct.Struct("<I")


def seal(key: bytes, value: bytes) -> bytes:
    """The row to store under ``key``."""
    crc = zlib.crc32(value)
    return value + SUMS.pack(crc, zlib.crc32(key, crc))


def unseal(key: bytes, row: bytes) -> bytes:
    """The value. Raises CorruptTree when the key, CorruptState when the value is not as it was put."""
    end = len(row) - SUMS_BYTES
    if end < 0:
        raise rotten(key)
    value = row[:end]
    crc, key_crc = SUMS.unpack_from(row, end)
    if zlib.crc32(key, crc) != key_crc:
        raise rotten(key)
    if zlib.crc32(value) != crc:
        raise CorruptState(f"the stored row of {key[:80]!r} does not match its checksum")
    return value


def is_sound(key: bytes, row: bytes) -> bool:
    """Whether the value is as it was put; raises CorruptTree when the key is not. Both may be views."""
    check_key(key, row)
    end = len(row) - SUMS_BYTES
    return bool(zlib.crc32(memoryview(row)[:end]) == SUMS.unpack_from(row, end)[0])


def has_key(key: bytes, row: bytes) -> bool:
    """Whether the key is the one that the row was put under."""
    end = len(row) - SUMS_BYTES
    return end >= 0 and zlib.crc32(key, _U32.unpack_from(row, end)[0]) == _U32.unpack_from(row, end + 4)[0]


def check_key(key: bytes, row: bytes) -> None:
    """Raises CorruptTree when the key is not the one that the row was put under."""
    if not has_key(key, row):
        raise rotten(key)


def rows_from(table: Table, key: bytes) -> Iterator[Row]:
    """The rows from ``key`` on, in order, not checked. Raises CorruptTree when the row before them is not the one that was
    put there: it could have been one of them."""
    before, rows = table.seek(key)
    if before is not None:
        check_key(*before)
    return rows


def first_from(table: Table, key: bytes) -> Row | None:
    """The first row from ``key`` on, its bytes perhaps as views, valid until the next call; None: there is none.
    Raises CorruptTree when it or the row before it is not the one that was put there."""
    before, found = table.around(key)
    if before is not None:
        check_key(*before)
    if found is not None:
        check_key(*found)
    return found


def prove_absent(table: Table, key: bytes) -> None:
    """There is no row of that key. Raises CorruptTree when one of the rows on both sides of its place is not
    the one that was put there: it could be the one; or when it is there after all, and another's key led astray."""
    found = first_from(table, key)
    if found is not None and found[0] == key:
        raise rotten(key)


def rotten(key: bytes) -> CorruptTree:
    return CorruptTree(
        f"a key of the state, found as {bytes(key)[:80]!r}, is not the key that was stored, so no search can be trusted; "
        "this node stops: replace it, its data is on the other replicas"
    )
