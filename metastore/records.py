"""The packed form of a record: what the state stores, what a GET returns. Pure.

``crc32 of the rest (u32) | flags (u8) | version (u64) | created (u64) | content type length
(u8) | [ttl_ms (u64) if flags & TTL] | content type | value``, little endian. The leader packs
it once; followers store, and readers verify, the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, Generic, NamedTuple

from typing_extensions import TypeVar

from metastore.errors import CorruptState
from metastore.history import Version

_HEAD: Final = struct.Struct("<IBQQB")
_REST: Final = struct.Struct("<BQQB")
_CRC: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
TTL: Final = 1
COUNTER: Final = 2
HEAD_BYTES: Final = _HEAD.size


T = TypeVar("T", default=bytes)


class Record(NamedTuple, Generic[T]):
    """One record. ``version``, ``created``: partition versions; ``ttl_ms``: 0 = lives for ever. The value
    is bytes, or what a client's codec has made of them; ``counter``: ``add`` made it."""

    version: Version
    created: Version
    value: T
    content_type: str = ""
    ttl_ms: int = 0
    counter: bool = False


def pack_record(
    version: int, created: int, value: bytes, content_type: bytes = b"", ttl_ms: int = 0, flags: int = 0
) -> bytes:
    """The packed bytes."""
    if ttl_ms or content_type:
        head = _REST.pack(flags | TTL if ttl_ms else flags, version, created, len(content_type))
        rest = b"".join((head, _U64.pack(ttl_ms) if ttl_ms else b"", content_type, value))
    else:
        rest = _REST.pack(flags, version, created, 0) + value
    return _CRC.pack(zlib.crc32(rest)) + rest


def record_versions(packed: bytes) -> tuple[int, int, int]:
    """``(flags, version, created)`` without decoding or checking the rest."""
    _, flags, version, created, _ = _HEAD.unpack_from(packed)
    return flags, version, created


def shown_from(packed: bytes, first: int) -> bytes:
    """The record as a history that begins at version ``first`` shows it (R19): what was written before is of that
    version. One that does not match its checksum stays as it is, for the reader to see."""
    crc, flags, version, created, type_len = _HEAD.unpack_from(packed)
    if version >= first or zlib.crc32(memoryview(packed)[4:]) != crc:
        return packed
    rest = _REST.pack(flags, first, max(created, first), type_len) + packed[HEAD_BYTES:]
    return _CRC.pack(zlib.crc32(rest)) + rest


def record_ttl_ms(packed: bytes) -> int:
    """0 when the record lives for ever."""
    return int(_U64.unpack_from(packed, HEAD_BYTES)[0]) if packed[4] & TTL else 0


def is_sound(packed: bytes) -> bool:
    """Whether ``unpack_record`` takes it, without making anything of it."""
    if len(packed) < HEAD_BYTES:
        return False
    crc, flags, _, _, type_len = _HEAD.unpack_from(packed)
    start = HEAD_BYTES + 8 if flags & TTL else HEAD_BYTES
    if zlib.crc32(memoryview(packed)[4:]) != crc or len(packed) < start:
        return False
    try:
        return not type_len or packed[start : start + type_len].decode() is not None
    except UnicodeDecodeError:
        return False


def unpack_record(packed: bytes) -> Record:
    """Decode and verify. Raises CorruptState when the checksum or the lengths are wrong."""
    if len(packed) < HEAD_BYTES:
        raise CorruptState(f"record of {len(packed)} bytes is shorter than its header of {HEAD_BYTES}")
    crc, flags, version, created, type_len = _HEAD.unpack_from(packed)
    if zlib.crc32(memoryview(packed)[4:]) != crc:
        raise CorruptState(f"record at version {version} does not match its checksum")
    pos, ttl_ms = HEAD_BYTES, 0
    if flags & TTL:
        if len(packed) < pos + 8:
            raise CorruptState(f"record at version {version} ends before its time to live")
        (ttl_ms,) = _U64.unpack_from(packed, pos)
        pos += 8
    try:
        content_type = packed[pos : pos + type_len].decode()
    except UnicodeDecodeError:
        raise CorruptState(f"record at version {version} has a content type that is not text") from None
    return Record(version, created, packed[pos + type_len :], content_type, ttl_ms, bool(flags & COUNTER))
