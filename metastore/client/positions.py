"""Where a watch stands, as text: resume tokens. Pure.

A position is ``[(first point, version), ...]`` in order of points: each version holds from its point
up to the next one's. A token is good in any process, and in the router's HTTP watches; it comes with
every event, so it is short.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from metastore.errors import InvalidRequest

MAX_STRANDS: Final = 65_536
#: forms of a token: partitions as a cluster is made with them, or each with its point
_EVEN: Final = 1
_POINTS: Final = 2

Position = list[tuple[bytes, int]]


def _even(count: int) -> list[bytes]:
    """The first points of ``count`` equal ranges."""
    return [(i * ((1 << 64) // count)).to_bytes(8, "big") for i in range(count)]


def encode_resume(position: Position) -> str:
    """A position as text: ``_EVEN, log2 of the count``, or ``_POINTS`` and each version behind its point;
    versions as groups of 7 bits, the lowest first."""
    points = [point for point, _ in position]
    count = len(points)
    even = not count & (count - 1) and (count == 1 or points[1] == _even(count)[1]) and points == _even(count)
    raw = bytearray((_EVEN, count.bit_length() - 1) if even else (_POINTS,))
    for point, version in position:
        if not even:
            raw += point
        while version > 127:
            raw.append(version & 127 | 128)
            version >>= 7
        raw.append(version)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_resume(resume: str) -> Position:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(resume.encode("ascii") + b"=" * (-len(resume) % 4))
        even = raw[0] == _EVEN
        if (not even and raw[0] != _POINTS) or (even and raw[1] > 16):
            raise ValueError
        points = _even(1 << raw[1]) if even else []
        at = 2 if even else 1
        position: Position = []
        while at < len(raw) and len(position) < MAX_STRANDS:
            if not even:
                points.append(raw[at : at + 8])
                at += 8
            version = shift = 0
            while True:
                version |= (raw[at] & 127) << shift
                shift += 7
                at += 1
                if raw[at - 1] < 128:
                    break
            position.append((points[len(position)], version))
        if at != len(raw) or len(position) != len(points) or not points or points != sorted(set(points)):
            raise ValueError
        if not all(v < 1 << 63 for _, v in position) or encode_resume(position) != resume:
            raise ValueError
    except (binascii.Error, ValueError, IndexError):
        raise InvalidRequest(f"resume token {resume!r:.80} was not made by this store") from None
    return position
