"""The position of a watch, as text: resume tokens. Pure.

A position is ``[(first point, version), ...]`` in order of points: each version holds from its point
up to the next one's. A token is good in any process, and in the router's HTTP watches; it comes with
every event, so it is short.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from metastore.errors import InvalidRequest
from metastore.history import ResumePoint, Version, count_of, first_version, generation_of, resume_after

MAX_SUBSCRIPTIONS: Final = 65_536
#: encodings of a token: partitions as a cluster is made with them, or each with its point
_EVEN: Final = 1
_POINTS: Final = 2
#: of either: some version is of a generation above the first
_GENERATIONS: Final = 4

Position = list[tuple[bytes, ResumePoint]]


def _even(count: int) -> list[bytes]:
    """The first points of ``count`` equal ranges."""
    return [(i * ((1 << 64) // count)).to_bytes(8, "big") for i in range(count)]


def _put(raw: bytearray, number: int) -> None:
    """Groups of 7 bits, the lowest first."""
    while number > 127:
        raw.append(number & 127 | 128)
        number >>= 7
    raw.append(number)


def _take(raw: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and what follows it. Raises IndexError."""
    number = shift = 0
    while True:
        number |= (raw[at] & 127) << shift
        shift += 7
        at += 1
        if raw[at - 1] < 128:
            return number, at


def encode_resume(position: Position) -> str:
    """A position as text: ``_EVEN, log2 of the count``, or ``_POINTS`` and each version behind its point. Where versions
    have generations (R19) the encoding has ``_GENERATIONS`` too, and a version is ``count << 1``, or, where its generation is
    another than that of the one before it (0 at first), ``count << 1 | 1`` and the generation."""
    points = [point for point, _ in position]
    count = len(points)
    even = not count & (count - 1) and (count == 1 or points[1] == _even(count)[1]) and points == _even(count)
    raw = bytearray((_EVEN, count.bit_length() - 1) if even else (_POINTS,))
    plain = not any(generation_of(version) for _, version in position)
    last = 0
    if not plain:
        raw[0] |= _GENERATIONS
    for point, version in position:
        if not even:
            raw += point
        generation = generation_of(version)
        if plain:
            _put(raw, version)
        elif generation == last:
            _put(raw, count_of(version) << 1)
        else:
            _put(raw, count_of(version) << 1 | 1)
            _put(raw, generation)
            last = generation
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_resume(resume: str) -> Position:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(resume.encode("ascii") + b"=" * (-len(resume) % 4))
        plain, form = not raw[0] & _GENERATIONS, raw[0] & ~_GENERATIONS
        even = form == _EVEN
        if (not even and form != _POINTS) or (even and raw[1] > 16):
            raise ValueError
        points = _even(1 << raw[1]) if even else []
        at = 2 if even else 1
        position: Position = []
        generation = 0
        while at < len(raw) and len(position) < MAX_SUBSCRIPTIONS:
            if not even:
                points.append(raw[at : at + 8])
                at += 8
            version, at = _take(raw, at)
            if not plain:
                if version & 1:
                    generation, at = _take(raw, at)
                version = first_version(generation) + (version >> 1)
            position.append((points[len(position)], resume_after(Version(version))))
        if at != len(raw) or len(position) != len(points) or not points or points != sorted(set(points)):
            raise ValueError
        if not all(v < 1 << 63 for _, v in position) or encode_resume(position) != resume:
            raise ValueError
    except (binascii.Error, ValueError, IndexError):
        raise InvalidRequest(
            f"resume token {resume!r:.80} was not made by this store; pass one that an event or a listing came with"
        ) from None
    return position
