"""Frames: length-prefixed, versioned msgpack, bounded on decode. Sans-I/O.

A frame is ``u32 length (big endian, of what follows) | u8 wire version | u8 type | msgpack``.
Limits are checked before anything is allocated: the length, and the number of elements that
any one array or map may claim. Whatever breaks a limit or does not parse raises ProtocolError;
the caller disconnects the sender and nothing else happens.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from metastore.errors import ProtocolError

WIRE_VERSION: Final = 1
HEADER: Final = struct.Struct(">IBB")
MAX_FRAME_BYTES: Final = 16 << 20
MAX_ARRAY: Final = 16384
MAX_MAP: Final = 4096
"""msgpack allocates an array when it reads its header, up to 1,024 levels deep: the element
bound keeps a hostile frame below about 130 MB, and that only until it fails to parse."""

# client <-> node
HELLO: Final = 1
HELLO_OK: Final = 2
REQUEST: Final = 3
RESPONSE: Final = 4
TOPOLOGY_REQUEST: Final = 5
TOPOLOGY: Final = 6
ERROR: Final = 7
STATUS_REQUEST: Final = 8
STATUS: Final = 9
WATCH: Final = 10
UNWATCH: Final = 11
EVENTS: Final = 12
WATCH_END: Final = 13
# node <-> node
PEER_HELLO: Final = 32
PEER_HELLO_OK: Final = 33
PEER: Final = 34
PING: Final = 35

_packer_options: dict[str, Any] = {"use_bin_type": True}


def pack(kind: int, body: Any) -> bytes:
    """One whole frame."""
    raw: bytes = msgpack.packb(body, use_bin_type=True)
    if len(raw) + 2 > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(raw)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(raw) + 2, WIRE_VERSION, kind) + raw


def unpack_body(raw: bytes | memoryview) -> Any:
    """The msgpack value in ``raw``, within the limits."""
    try:
        return msgpack.unpackb(
            raw,
            use_list=True,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_ARRAY,
            max_map_len=MAX_MAP,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, UnicodeDecodeError, msgpack.UnpackException) as e:
        raise ProtocolError(f"frame body does not parse: {type(e).__name__}: {e}") from None


class FrameDecoder:
    """Bytes in, ``(type, body)`` out; keeps at most one unfinished frame."""

    __slots__ = ("_buffer", "_max_frame")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = b""
        self._max_frame = max_frame_bytes

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, Any]]:
        """Every frame completed by ``data``, in order. Raises ProtocolError."""
        if self._buffer:
            data = self._buffer + data
        frames: list[tuple[int, Any]] = []
        pos, end = 0, len(data)
        view = memoryview(data)
        while end - pos >= 6:
            length, version, kind = HEADER.unpack_from(data, pos)
            if version != WIRE_VERSION:
                raise ProtocolError(f"wire version {version}; this side speaks {WIRE_VERSION}")
            if length < 2 or length > self._max_frame:
                raise ProtocolError(f"frame length {length} is not within 2 and {self._max_frame} bytes")
            stop = pos + 4 + length
            if stop > end:
                break
            frames.append((kind, unpack_body(view[pos + 6 : stop])))
            pos = stop
        self._buffer = data[pos:] if pos < end else b""
        return frames
