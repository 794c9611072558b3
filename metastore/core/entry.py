"""The log entry as bytes: made once by the leader, stored and forwarded verbatim. Pure.

``index (u64) | epoch (u64) | crc32 (u32)`` little endian, then the payload. The checksum is over index, epoch
and payload: an entry that rots anywhere is no entry (R14). An empty payload is the no-op with which a leader
begins its epoch (R3); a mark of its history (``metastore.history``) stands for one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from metastore.errors import CorruptLog

HEAD: Final = struct.Struct("<QQI")
_POSITION: Final = struct.Struct("<QQ")
_CRC: Final = struct.Struct("<I")
MAX_ENTRY_BYTES: Final = 8 << 20
#: entries of one message or reading: the wire takes arrays of four times as many elements
MAX_READ_ENTRIES: Final = 4096


def pack_entry(index: int, epoch: int, payload: bytes) -> bytes:
    position = _POSITION.pack(index, epoch)
    return b"".join((position, _CRC.pack(zlib.crc32(payload, zlib.crc32(position))), payload))


def entry_position(blob: bytes) -> tuple[int, int]:
    """``(index, epoch)``; raises CorruptLog when the blob is too short."""
    if len(blob) < HEAD.size:
        raise CorruptLog(f"entry of {len(blob)} bytes is shorter than its header of {HEAD.size}")
    index, epoch, _ = HEAD.unpack_from(blob)
    return index, epoch


def check_entry(blob: bytes) -> tuple[int, int]:
    """``(index, epoch)`` of an entry that was read back from a disk. Raises CorruptLog when it is not as it was
    made."""
    index, epoch = entry_position(blob)
    view = memoryview(blob)
    if zlib.crc32(view[HEAD.size :], zlib.crc32(view[: _POSITION.size])) != HEAD.unpack_from(blob)[2]:
        raise CorruptLog(f"entry {index} of epoch {epoch} does not match its checksum")
    return index, epoch


def entry_payload(blob: bytes) -> bytes:
    """The payload, checked. Raises CorruptLog when the checksum does not match."""
    check_entry(blob)
    return blob[HEAD.size :]


Checked = tuple[int, int, Any]
"""``(index, epoch, entry)`` of a blob that is intact; ``entry`` is what ``read_payload`` made of it."""


def check_entries(
    blobs: list[bytes],
    first_index: int,
    prev_epoch: int,
    max_epoch: int,
    read_payload: Callable[[memoryview], Any] | None = None,
) -> list[Checked]:
    """``blobs`` as intact, contiguous entries from ``first_index`` on, with epochs that do not fall from
    ``prev_epoch`` and do not pass ``max_epoch``. Raises ValueError with the reason when they are not."""
    checked: list[Checked] = []
    expect, last_epoch = first_index, prev_epoch
    for blob in blobs:
        if not HEAD.size <= len(blob) <= MAX_ENTRY_BYTES:
            raise ValueError(
                f"entry {expect} of {len(blob)} bytes is not within {HEAD.size} and {MAX_ENTRY_BYTES}"
            )
        index, epoch, crc = HEAD.unpack_from(blob)
        if index != expect:
            raise ValueError(f"entry {index} where {expect} was due")
        if epoch < last_epoch:
            raise ValueError(f"entry {index} has epoch {epoch}, below {last_epoch} before it")
        if epoch > max_epoch:
            raise ValueError(f"entry {index} has epoch {epoch}, above {max_epoch}")
        view = memoryview(blob)
        payload = view[HEAD.size :]
        if zlib.crc32(payload, zlib.crc32(view[: _POSITION.size])) != crc:
            raise ValueError(f"entry {index} does not match its checksum")
        entry = None
        if read_payload is not None and payload:
            try:
                entry = read_payload(payload)
            except ValueError as e:
                raise ValueError(f"entry {index}: {e}") from None
        checked.append((index, epoch, entry))
        expect, last_epoch = index + 1, epoch
    return checked
