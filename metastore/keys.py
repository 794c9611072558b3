"""Keys, routing keys, hash points and partitions. Pure; locked by golden vectors in the tests.

    key --routing rule--> routing key --hash--> point (64 bit) --> partition (range)

The *storage key* (``storage_key``) of a record is ``point (8 bytes, big endian) + namespace + NUL +
key``, so that a partition is one contiguous range of storage keys, the records of one routing
key are neighbours, and byte order of storage keys is key order inside a routing key.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from metastore.errors import InvalidRequest, TooLarge

HASH_NAME = "xxh3-64"
MAX_KEY_BYTES = 2048
MAX_VALUE_BYTES = 1 << 20
MAX_CONTENT_TYPE_BYTES = 127
#: routing rules of namespaces; n > 0: the first n segments
PARENT, WHOLE_KEY = 0, -1
MAX_SEGMENTS = 16
#: of a cluster when it is made: its table has to fit a frame
MAX_PARTITIONS = 8192
#: above every storage key
END_OF_RING = b"\xff" * 9

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_STORAGE_KEY = re.compile(rb".{8}[a-z0-9][a-z0-9._-]{0,63}\0(?=.)", re.DOTALL)


def end_point(hi: int) -> bytes:
    """The storage key before which a range of points ends that ends before ``hi``."""
    return hi.to_bytes(8, "big") if hi < 1 << 64 else END_OF_RING


def check_namespace(namespace: str) -> str:
    """Return ``namespace`` if it is valid; raise InvalidRequest with the reason otherwise."""
    if not isinstance(namespace, str) or not _NAMESPACE.match(namespace):
        raise InvalidRequest(
            f"namespace {namespace!r:.80} is not valid: use 1 to 64 of a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return namespace


def encode_key(key: str) -> bytes:
    """UTF-8 of ``key``, checked: not empty, at most MAX_KEY_BYTES, no lone surrogates."""
    if not isinstance(key, str) or not key:
        raise InvalidRequest(f"key {key!r:.80} is not valid: it must be a string of at least one character")
    try:
        raw = key.encode()
    except UnicodeEncodeError as e:
        raise InvalidRequest(f"key {key!r:.80} is not valid UTF-8 at character {e.start}") from None
    if len(raw) > MAX_KEY_BYTES:
        raise TooLarge(f"key of {len(raw)} bytes is over the limit of {MAX_KEY_BYTES} bytes")
    return raw


def routing_key(key: bytes, rule: int = PARENT) -> bytes:
    """The part of ``key`` that decides where it lives, by a namespace's rule.

    PARENT (the default): the first non-empty ``{tag}``, else the parent path, else the key:
    ``b"a/b/c"`` -> ``b"a/b"``; ``b"{t1}/x"`` -> ``b"t1"``; ``b"x"`` -> ``b"x"``. WHOLE_KEY: the key.
    ``n`` > 0: its first ``n`` segments, the key when it has fewer.
    """
    if rule == PARENT:
        start = key.find(b"{")
        if start >= 0:
            end = key.find(b"}", start + 1)
            if end > start + 1:
                return key[start + 1 : end]
        cut = key.rfind(b"/")
        return key[:cut] if cut >= 0 else key
    cut = _segment_end(key, rule)
    return key[:cut] if cut >= 0 else key


def _segment_end(key: bytes, rule: int) -> int:
    """Where the ``rule``-th segment ends; -1 when no ``/`` ends it, or for WHOLE_KEY."""
    cut = -1
    for _ in range(rule):
        cut = key.find(b"/", cut + 1)
        if cut < 0:
            break
    return cut


def prefix_routing_key(prefix: bytes, rule: int = PARENT) -> bytes | None:
    """The routing key shared by the keys that a listing of ``prefix`` means, or None when
    they are spread over the namespace.

    By the default rule that takes a ``/`` or a whole ``{tag}`` in the prefix: ``b"a/b/"`` and
    ``b"a/b/c"`` -> ``b"a/b"``, the entries of that one directory. By ``n`` segments it takes those.
    """
    if rule != PARENT:
        cut = _segment_end(prefix, rule)
        return prefix[:cut] if cut >= 0 else None
    if b"{" in prefix or b"/" in prefix:
        start = prefix.find(b"{")
        if start >= 0 and prefix.find(b"}", start + 1) <= start + 1:
            # an open tag: which one, and so which partition, is not known
            return None
        return routing_key(prefix)
    return None


def hash_point(namespace: bytes, routing: bytes) -> bytes:
    """The point on the 64-bit ring, as 8 big-endian bytes (order of bytes = order of points)."""
    return xxhash.xxh3_64_digest(namespace + b"\0" + routing)


def storage_key_of(namespace: str, key: str, rule: int = PARENT) -> bytes:
    """The storage_key of ``key``; raises InvalidRequest or TooLarge."""
    ns = check_namespace(namespace).encode()
    raw = encode_key(key)
    return hash_point(ns, routing_key(raw, rule)) + ns + b"\0" + raw


def well_placed(storage_key: bytes, rule: int) -> bool:
    """Whether the point of a well-formed storage_key is the one that its key has by ``rule``."""
    nul = storage_key.index(0, 9)
    if rule == PARENT and storage_key.find(b"{", nul) < 0:  # what is hashed stands together, but for tags
        cut = storage_key.rfind(b"/", nul)
        return xxhash.xxh3_64_digest(storage_key[8:cut] if cut >= 0 else storage_key[8:]) == storage_key[:8]
    return storage_key[:8] == hash_point(storage_key[8:nul], routing_key(storage_key[nul + 1 :], rule))


def is_storage_key(storage_key: bytes) -> bool:
    """Whether ``storage_key`` is made as ``storage_key_of`` does it, but for the point, which is the routing
    rule's affair. What is stored once has to be readable by everybody who lists its namespace."""
    found = _STORAGE_KEY.match(storage_key)
    if found is None or len(storage_key) - found.end() > MAX_KEY_BYTES:
        return False
    try:
        storage_key[found.end() :].decode()
    except UnicodeDecodeError:
        return False
    return True


def is_content_type(text: str) -> bool:
    """Whether ``text`` can be a record's content type: it goes out as a header of HTTP."""
    return len(text) <= MAX_CONTENT_TYPE_BYTES and text.isascii() and text.isprintable()


def split_storage_key(storage_key: bytes) -> tuple[str, str]:
    """``(namespace, key)`` of an storage_key."""
    nul = storage_key.index(b"\0", 8)
    return storage_key[8:nul].decode(), storage_key[nul + 1 :].decode()


def next_key(prefix: bytes) -> bytes:
    """The smallest bytes above everything that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else END_OF_RING


@dataclass(frozen=True, slots=True)
class PartitionRange:
    """Partition ``id`` owns the points ``lo <= point < hi`` (``hi`` may be 2**64)."""

    id: int
    lo: int
    hi: int

    def covers(self, storage_key: bytes) -> bool:
        return self.lo <= int.from_bytes(storage_key[:8], "big") < self.hi


class PartitionMap:
    """Point -> partition id. Immutable; ranges cover the ring without gap or overlap."""

    __slots__ = ("_ids", "_lows", "ranges")

    def __init__(self, ranges: Iterable[PartitionRange]) -> None:
        ordered = sorted(ranges, key=lambda r: r.lo)
        if not ordered or ordered[0].lo != 0 or ordered[-1].hi != 1 << 64:
            raise ValueError("partition ranges do not cover the ring from 0 to 2**64")
        for a, b in itertools.pairwise(ordered):
            if a.hi != b.lo:
                raise ValueError(f"partitions {a.id} and {b.id} leave a gap or overlap")
        self.ranges: dict[int, PartitionRange] = {r.id: r for r in ordered}
        self._lows = [r.lo.to_bytes(8, "big") for r in ordered]
        self._ids = [r.id for r in ordered]

    @classmethod
    def even(cls, count: int) -> PartitionMap:
        """``count`` (a power of two, 1 to MAX_PARTITIONS) equal ranges with ids 0 to count - 1."""
        if not 1 <= count <= MAX_PARTITIONS or count & (count - 1):
            raise InvalidRequest(f"partitions = {count}: must be a power of two from 1 to {MAX_PARTITIONS}")
        width = (1 << 64) // count
        return cls(PartitionRange(i, i * width, (i + 1) * width) for i in range(count))

    def of(self, storage_key: bytes) -> int:
        """The partition id that owns ``storage_key`` (or any bytes that begin with a point)."""
        return self._ids[bisect_right(self._lows, storage_key[:8]) - 1]

    def in_order(self) -> list[PartitionRange]:
        return [self.ranges[i] for i in self._ids]

    def __len__(self) -> int:
        return len(self._ids)
