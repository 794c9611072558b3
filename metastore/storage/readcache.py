"""Records lately read from the state, as they are in it. Pure.

Beneath the overlay: an entry is what LMDB has under that key in the snapshot that is read, checked already. A caller that moves
on to a later snapshot says what was written in between; a key that is not there is not remembered. Two generations: what
is not asked for again while the younger one fills goes with the older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAX_RECORD_BYTES: Final = 64 << 10
#: of an entry, beyond its bytes: two object headers and a slot
OVERHEAD: Final = 150


class ReadCache:
    """See the module. ``limit_bytes``: of both generations together; 0 = nothing is remembered. ``young`` is
    there to be read."""

    __slots__ = ("_bytes", "_limit", "_old", "young")

    def __init__(self, limit_bytes: int) -> None:
        self.young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._limit = limit_bytes // 2
        self._bytes = 0

    def get(self, key: bytes) -> bytes | None:
        record = self.young.get(key)
        if record is None and self._old:
            record = self._old.pop(key, None)
            if record is not None:
                self.put(key, record)
        return record

    def put(self, key: bytes, record: bytes) -> None:
        if len(record) > MAX_RECORD_BYTES or not self._limit:
            return
        self.young[key] = record
        self._bytes += len(key) + len(record) + OVERHEAD
        if self._bytes > self._limit:
            self._old, self.young, self._bytes = self.young, {}, 0

    def changed(self, rows: Mapping[bytes, bytes | None]) -> None:
        """These keys have these records now; None = there is none."""
        for generation in (self.young, self._old):
            for key in generation.keys() & rows.keys():
                record = rows[key]
                if record is None or len(record) > MAX_RECORD_BYTES:
                    del generation[key]
                else:
                    generation[key] = record

    def clear(self) -> None:
        self.young, self._old, self._bytes = {}, {}, 0
