"""Frames: length-prefixed, versioned msgpack, bounded on decode. Sans-I/O.

A frame is ``u32 length (big endian, of what follows) | u8 wire version | u8 type | msgpack``.
Limits are checked before anything is allocated: the length, the number of elements that any one
array or map may claim and, where the sender is not trusted, the number of elements in all.
Whatever breaks a limit or does not parse raises ProtocolError; the caller disconnects the sender
and nothing else happens.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from metastore.decoding import MAX_ANSWER_ITEMS, MAX_ARRAY, MAX_ITEMS, MAX_MAP, UNCOUNTED_BYTES, unpack_body
from metastore.errors import ProtocolError

__all__ = ["MAX_ANSWER_ITEMS", "MAX_ARRAY", "MAX_ITEMS", "MAX_MAP", "UNCOUNTED_BYTES", "unpack_body"]

WIRE_VERSION: Final = 1
HEADER: Final = struct.Struct(">IBB")
MAX_FRAME_BYTES: Final = 16 << 20
#: before the sender has said who it is
MAX_HELLO_BYTES: Final = 4096
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
#: between nodes, from OPTIONAL on: the cluster's feature level was raised to this
LEVEL: Final = 128


def pack(kind: int, body: Any) -> bytes:
    """One whole frame."""
    raw: bytes = msgpack.packb(body, use_bin_type=True)
    if len(raw) + 2 > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(raw)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(raw) + 2, WIRE_VERSION, kind) + raw


class FrameDecoder:
    """Bytes in, ``(type, body)`` out: ``push`` what came, ``pull`` frames until there is none. Linear in
    what is pushed, however small the pieces. ``max_frame`` may be changed between two frames."""

    __slots__ = ("_pos", "buffer", "max_frame", "max_items")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES, max_items: int = 0) -> None:
        #: what no frame was made of yet, from a position on; empty when there is nothing. Bytes while it is what
        #: one read has brought, and as such mostly whole frames
        self.buffer: bytes | bytearray = b""
        self._pos = 0
        self.max_frame = max_frame_bytes
        self.max_items = max_items

    @property
    def buffered_bytes(self) -> int:
        return len(self.buffer) - self._pos

    def push(self, data: bytes) -> None:
        if self._pos == len(self.buffer):
            self.buffer, self._pos = data, 0
            return
        if type(self.buffer) is not bytearray:
            self.buffer, self._pos = bytearray(memoryview(self.buffer)[self._pos :]), 0
        elif self._pos:
            del self.buffer[: self._pos]
            self._pos = 0
        self.buffer += data

    def pull(self) -> tuple[int, Any] | None:
        """The next frame, None when it is not all there. Raises ProtocolError, after which there is
        nothing more to be had."""
        buffer, pos = self.buffer, self._pos
        end = len(buffer)
        if end - pos < HEADER.size:
            return None
        length, version, kind = HEADER.unpack_from(buffer, pos)
        if version != WIRE_VERSION:
            raise ProtocolError(f"wire version {version}; this side speaks {WIRE_VERSION}")
        if length < 2 or length > self.max_frame:
            raise ProtocolError(f"frame length {length} is not within 2 and {self.max_frame} bytes")
        stop = pos + 4 + length
        if stop > end:
            return None
        body = unpack_body(memoryview(buffer)[pos + HEADER.size : stop], self.max_items)
        if stop == end:
            self.buffer, self._pos = b"", 0
        else:
            self._pos = stop
        return kind, body

    def feed(self, data: bytes) -> list[tuple[int, Any]]:
        """Every frame completed by ``data``, in order. Raises ProtocolError."""
        self.push(data)
        frames = []
        while (frame := self.pull()) is not None:
            frames.append(frame)
        return frames
