"""Idempotency-Key: one key is one request id (R7), so that a repeated request gets the first outcome.

The *client* of the request id is made from the key and the record that the request is about, its
*sequence number* from the request itself, and its *lowest open request* lies above all sequence numbers: this
client will never make another request. So the partition's own table of finished requests, which is
replicated, holds every router to it: the same request finds its outcome, and any other under the same
key, which has another number, is below the lowest open request and refused.

The window is that of all request ids (``core.dedupe``): a time and a number of keys. A key whose outcome is
forgotten leaves a mark for a while, by which a repetition is refused (``request_id_expired``). Longer ago
nothing tells a repetition from a first time but the client: with ``Idempotency-Age``, how long ago it first
sent the request, it is refused as well, from AGE_MARGIN_S before the end of the window on. What was refused without being logged (503, 428, 507, …) was not
done, is not remembered, and may be sent again under the same key.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgpack
from aiohttp import web

from metastore.elements import ONE_REQUEST
from metastore.errors import MetastoreError
from metastore.history import NOTHING_SEEN, LastSeenIndex
from metastore.routing.request_ids import RequestIds, SingleRequest
from metastore.wire.client_messages import CLIENT_ID_BYTES

KEY_HEADER: Final = "Idempotency-Key"
AGE_HEADER: Final = "Idempotency-Age"
#: where operations have keys of their own
BATCHES: Final = "/v1/batch/"
_KEYED: Final = "metastore.keyed"


def _hash(size: int, *parts: Any) -> bytes:
    return hashlib.blake2b(msgpack.packb(parts, unicode_errors="surrogateescape"), digest_size=size).digest()


class OneRequest(SingleRequest):
    """The request id of one request under an Idempotency-Key. ``scope``: what the key belongs to;
    ``request``: all that makes it this request and no other, as plain data; ``router``: whose last seen indexes
    to use; ``age_s``: how long ago it was first sent, None = not told."""

    def __init__(
        self, router: RequestIds, key: str, scope: tuple[str, ...], request: Any, age_s: float | None = None
    ) -> None:
        super().__init__(_hash(CLIENT_ID_BYTES, "idempotency", key, *scope), age_s)
        self.request_seq = int.from_bytes(_hash(8, request), "big") % (ONE_REQUEST - 1) + 1
        self._router = router

    def begin(self, partition: int) -> tuple[int, LastSeenIndex]:
        return self.request_seq, self.last_seen(partition)

    def last_seen(self, partition: int) -> LastSeenIndex:
        return self._router.last_seen(partition) if self.restamps else NOTHING_SEEN

    def end(self, partition: int, seq: int) -> None:
        pass

    def seen(self, partition: int, index: LastSeenIndex) -> None:
        self._router.seen(partition, index)


def aged(age_s: float | None, since_s: float) -> float | None:
    """An age that was told ``since_s`` ago; 0 stays 0, which says that this is the first time."""
    return age_s + since_s if age_s else age_s


def note_batch(request: web.BaseRequest, ops: list[Any]) -> None:
    """The operations of a batch have been read: what a refusal of the whole batch means hangs on them."""
    request[_KEYED] = any(
        isinstance(op, dict) and op.get("idempotency_key") is not None and op.get("idempotency_age_s") != 0
        for op in ops
    )


def was_sent_before(request: web.BaseRequest) -> bool:
    """Whether it may be: it has an Idempotency-Key, and does not say that this is the first time; or is a batch with
    such operations, as far as is known, which is not read at once."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return False
    if KEY_HEADER in request.headers:
        return request.headers.get(AGE_HEADER, "").strip() != "0"
    return bool(request.get(_KEYED, request.raw_path.startswith(BATCHES)))


def refused(error: MetastoreError, request: web.BaseRequest) -> MetastoreError:
    """The refusal of a request that the router turned away before any partition saw it, as it is of what its
    Idempotency-Key, or those of its operations, stand for."""
    return SingleRequest(b"").about(error) if was_sent_before(request) else error
