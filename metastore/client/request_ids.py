"""Request ids: what makes a retry of a write harmless (R7)."""

from __future__ import annotations

import hashlib
import os

from metastore.wire.client_messages import CLIENT_ID_BYTES


class RequestIds:
    """Request ids of one client (R7): ``floor`` and ``stamp`` are kept per partition.

    A client makes its own. With ``RequestIds.named("order 4711")`` the first write that is given it is
    carried out once, however often, and from whichever process, it is sent again with ids of that
    name: later ones get the first outcome, within the store's dedupe window.
    """

    def __init__(self, client_id: bytes | None = None) -> None:
        self.client_id = client_id or os.urandom(CLIENT_ID_BYTES)
        self._seq = 0
        self._open: dict[int, dict[int, None]] = {}
        self._stamps: dict[int, int] = {}

    @classmethod
    def named(cls, name: str) -> RequestIds:
        """The ids that HTTP's ``Idempotency-Key: name`` stands for. Give them to one write."""
        raw = name.encode("utf-8", "surrogateescape")
        return cls(hashlib.blake2b(raw, digest_size=CLIENT_ID_BYTES).digest())

    def begin(self, partition: int) -> tuple[int, int]:
        """``(seq, stamp)`` for a new write."""
        self._seq += 1
        opened = self._open.get(partition)
        if opened is None:
            opened = self._open[partition] = {}
        opened[self._seq] = None
        return self._seq, self.stamp(partition)

    def stamp(self, partition: int) -> int:
        """The highest index seen from a partition so far, 0 = none."""
        return self._stamps.get(partition, 0)

    def floor(self, *partitions: int) -> int:
        """No write below it is under way to these (more than one: some were split off others)."""
        opened = [self._open[p] for p in partitions if self._open.get(p)]
        return min((next(iter(seqs)) for seqs in opened), default=self._seq + 1)

    def end(self, partition: int, seq: int) -> None:
        """The write will not be sent again."""
        opened = self._open.get(partition)
        if opened is not None:
            opened.pop(seq, None)

    def seen(self, partition: int, index: int) -> None:
        if index > self._stamps.get(partition, 0):
            self._stamps[partition] = index
