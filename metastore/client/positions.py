"""Where a watch stands, as text: resume tokens. Pure.

A position is ``[(first point, version), ...]`` in order of points: each version holds from its point
up to the next one's. A token is good in any process, and in the router's HTTP watches.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgpack

from metastore.errors import InvalidRequest

MAX_STRANDS: Final = 65_536

Position = list[tuple[bytes, int]]


def encode_resume(position: Position) -> str:
    """A position as text."""
    return base64.urlsafe_b64encode(msgpack.packb([list(p) for p in position])).decode().rstrip("=")


def decode_resume(resume: str) -> Position:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(resume.encode("ascii") + b"=" * (-len(resume) % 4))
        position = [(point, version) for point, version in msgpack.unpackb(raw, max_array_len=MAX_STRANDS)]
        points = [point for point, _ in position]
        if not position or points != sorted(set(points)) or {len(p) for p in points} != {8}:
            raise ValueError
        if not all(type(v) is int and 0 <= v < 1 << 63 for _, v in position):
            raise ValueError
    except (binascii.Error, ValueError, TypeError, msgpack.UnpackException):
        raise InvalidRequest(f"resume token {resume!r:.80} was not made by this store") from None
    return position
