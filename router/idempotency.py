"""Idempotency-Key: one key is one request id (R7), so that a repeated request gets the first outcome.

The *client* of the request id is made from the key and the record that the request is about, its
*sequence number* from the request itself, and its *floor* lies above all sequence numbers: this
client will never make another request. So the partition's own table of finished requests, which is
replicated, holds every router to it: the same request finds its outcome, and any other under the same
key, which has another number, is below the floor and refused.

The window is that of all request ids: a partition remembers the last ``dedupe.MAX_SESSIONS`` clients,
and each key counts as one. A repetition that comes later is executed anew; who cannot rule that out
makes the write conditional as well. What was refused without being logged (503, 428, 507, …) was not
done, is not remembered, and may be sent again under the same key.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgpack

from metastore.client.dispatch import RequestIds
from metastore.wire.client_messages import CLIENT_ID_BYTES

#: above every sequence number that is made here, below what the wire allows
FLOOR: Final = 1 << 62


def _hash(size: int, *parts: Any) -> bytes:
    return hashlib.blake2b(msgpack.packb(parts, unicode_errors="surrogateescape"), digest_size=size).digest()


class OneRequest(RequestIds):
    """The request id of one request under an Idempotency-Key. ``scope``: what the key belongs to;
    ``request``: all that makes it this request and no other, as plain data; ``router``: whose stamps
    to use."""

    def __init__(self, router: RequestIds, key: str, scope: tuple[str, ...], request: Any) -> None:
        super().__init__(_hash(CLIENT_ID_BYTES, "idempotency", key, *scope))
        self.request_seq = int.from_bytes(_hash(8, request), "big") % (FLOOR - 1) + 1
        self._router = router

    def begin(self, partition: int) -> tuple[int, int]:
        return self.request_seq, self._router.stamp(partition)

    def floor(self, *partitions: int) -> int:
        return FLOOR

    def end(self, partition: int, seq: int) -> None:
        pass

    def seen(self, partition: int, index: int) -> None:
        self._router.seen(partition, index)
