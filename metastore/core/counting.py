"""What lies above the point at which a leader is about to split (R18). Pure."""

from __future__ import annotations


class Counting:
    """What a namespace has at the point ``at`` and above, exact at every moment below ``cursor`` (None:
    everywhere), changes that are only proposed included."""

    def __init__(self, at: bytes) -> None:
        self.at = at
        self.cursor: bytes | None = at
        self.usage: dict[bytes, list[int]] = {}

    def add(self, storage_key: bytes, record: bytes, sign: int) -> None:
        held = self.usage.setdefault(storage_key[8 : storage_key.find(0, 8)], [0, 0])
        held[0] += sign
        held[1] += sign * (len(storage_key) + len(record))

    def changed(self, storage_key: bytes, old: bytes | None, new: bytes | None) -> None:
        """A change is proposed: what was counted before the change counts as it is after it."""
        if storage_key >= self.at and (self.cursor is None or storage_key < self.cursor):
            if old is not None:
                self.add(storage_key, old, -1)
            if new is not None:
                self.add(storage_key, new, 1)
