"""The highest fencing token that a partition has seen of each name (R20). Pure.

A token is the version of a record that is a lock. A write that carries ``[name, token]`` is refused once a higher
token of that name was seen here; one that *takes* a lock (``[name, 0]``) raises the fence to the version that it
gives the record, in the same entry, so that a former holder is refused from that moment on.

At most MAX_FENCES names are remembered. The least lately raised goes first, and leaves its token in the *floor* of
its bucket, one of BUCKETS by the digest of the name: the token of an unknown name may have been overtaken if it is
below that, and is refused. So nobody who was replaced is let in again, however many names there are; what is lost is that a
holder whose name was forgotten has to take its lock again, if a later token was forgotten in the same bucket.

The table is replicated state: all that it does follows from the entries alone. Names are kept as digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from metastore.decoding import unpack_own
from metastore.errors import Fenced, FenceForgotten
from metastore.history import NO_TOKEN, FencingToken, Version, token_of

MAX_FENCES: Final = 65_536
BUCKETS: Final = 1024
FENCE_PREFIX: Final = b"f"
FLOOR_PREFIX: Final = b"g"
DIGEST_BYTES: Final = 16
BUCKET_BYTES: Final = 2

Refusal = tuple[int, FencingToken]
"""``(status, token)``: of Fenced the highest token seen, of FenceForgotten the floor."""


def fence_digest(namespace: bytes, name: str) -> bytes:
    """What a name is remembered by; names belong to a namespace."""
    return hashlib.blake2b(namespace + b"\0" + name.encode(), digest_size=DIGEST_BYTES).digest()


def bucket_of(digest: bytes) -> bytes:
    """The bucket, in the bytes of its aux key."""
    return (int.from_bytes(digest[:BUCKET_BYTES], "big") % BUCKETS).to_bytes(BUCKET_BYTES, "big")


class Fences:
    """See the module. ``by_name``: digest -> (token, number of the raise), from the least to the most lately
    raised; ``floors``: bucket -> token."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, tuple[FencingToken, int]] = {}
        self.floors: dict[bytes, FencingToken] = {}
        #: the leader's: raised by entries that are proposed and not committed
        self._proposed: dict[bytes, FencingToken] = {}
        #: how many raises there were: the last one is never forgotten, and has this number
        self._raises = 0

    # --- saving and loading -----------------------------------------------------------------

    def metadata(self, key: bytes) -> bytes | None:
        """The aux row ``key`` as it is now; None = delete it."""
        table: dict[bytes, Any] = self.by_name if key[:1] == FENCE_PREFIX else self.floors
        row = table.get(key[1:])
        if row is None:
            return None
        raw: bytes = msgpack.packb(row if type(row) is tuple else (row,))
        return raw

    def metadata_keys(self) -> list[bytes]:
        """Every aux row that there is, in an order that all replicas share."""
        return sorted(FENCE_PREFIX + d for d in self.by_name) + sorted(FLOOR_PREFIX + b for b in self.floors)

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Start from saved aux rows, in any order."""
        fences: list[tuple[bytes, tuple[FencingToken, int]]] = []
        for key, raw in rows:
            row = unpack_own(raw)
            if key[:1] == FENCE_PREFIX:
                fences.append((key[1:], (row[0], row[1])))
            else:
                self.floors[key[1:]] = row[0]
        fences.sort(key=lambda item: item[1][1])
        self.by_name = dict(fences)
        self._raises = fences[-1][1][1] if fences else 0

    # --- the leader -------------------------------------------------------------------------

    def abandon(self) -> None:
        """Forget what was proposed and is not committed."""
        self._proposed.clear()

    def _seen(self, digest: bytes) -> FencingToken | None:
        """The highest token of a name so far; None = it is unknown, or forgotten."""
        proposed = self._proposed.get(digest)
        if proposed is not None:
            return proposed
        found = self.by_name.get(digest)
        return None if found is None else found[0]

    def pass_by(self, digest: bytes, token: FencingToken, raised: list[list[Any]]) -> Refusal | None:
        """A write that carries ``token``: None when it may be done, else the refusal. What it raises is put
        into ``raised``, the entry's."""
        seen = self._seen(digest)
        if seen is None:
            floor = self.floors.get(bucket_of(digest), NO_TOKEN)
            if token < floor:
                return FenceForgotten.status, floor
        elif token <= seen:
            return None if token == seen else (Fenced.status, seen)
        self._raise(digest, token, raised)
        return None

    def take(self, digest: bytes, version: Version, raised: list[list[Any]]) -> Refusal | None:
        """A lock is taken at ``version``, as ``pass_by``. Floors do not matter: every earlier token of the name was
        a version of this partition too, and so is lower. Where locks of two partitions share a
        name, it may not be; what is known to be higher is respected."""
        seen = self._seen(digest)
        if seen is not None and seen >= token_of(version):
            return Fenced.status, seen
        self._raise(digest, token_of(version), raised)
        return None

    def _raise(self, digest: bytes, token: FencingToken, raised: list[list[Any]]) -> None:
        self._proposed[digest] = token
        raised.append([digest, token])

    # --- everybody --------------------------------------------------------------------------

    def apply(self, raised: list[list[Any]], metadata: set[bytes]) -> None:
        """What a committed entry raised; ``metadata``: the rows that have changed by it."""
        by_name = self.by_name
        for digest, token in raised:
            by_name.pop(digest, None)
            self._raises += 1
            by_name[digest] = token, self._raises
            metadata.add(FENCE_PREFIX + digest)
            if self._proposed.get(digest) == token:
                del self._proposed[digest]
        while len(by_name) > MAX_FENCES:
            digest = next(iter(by_name))
            token, _ = by_name.pop(digest)
            bucket = bucket_of(digest)
            self.floors[bucket] = max(token, self.floors.get(bucket, NO_TOKEN))
            metadata.add(FENCE_PREFIX + digest)
            metadata.add(FLOOR_PREFIX + bucket)
