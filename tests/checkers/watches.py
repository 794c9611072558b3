"""Whether a watch told each change once, in order for each key, between where it began and where its reader is.

What a position stands for: of every key the changes up to the version that the position has at the key's point.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from metastore.client.watch.resume_tokens import Position


class Change(NamedTuple):
    """``value``: of a put, None = the record went."""

    version: int
    value: bytes | None


Truth = dict[bytes, list[Change]]
"""Storage key -> all its changes, in order."""


def version_at(position: Position, storage_key: bytes) -> int:
    """Up to which version a position has the changes of a key; 0 before the first point."""
    at = bisect_right(position, storage_key[:8], key=lambda part: part[0])
    return position[at - 1][1] if at else 0


@dataclass
class Session:
    """What one watch told, however often it was interrupted and gone on with: from ``start`` to ``end``."""

    start: Position
    end: Position
    seen: list[tuple[bytes, Change]] = field(default_factory=list)


def missing(session: Session, truth: Truth) -> int:
    """How many changes are behind the end of the session."""
    return sum(
        sum(1 for c in changes if c.version > version_at(session.end, k)) for k, changes in truth.items()
    )


def check_session(session: Session, truth: Truth) -> str | None:
    """None when all is well, else what is not."""
    seen: dict[bytes, list[Change]] = {}
    for storage_key, change in session.seen:
        seen.setdefault(storage_key, []).append(change)
    for storage_key in sorted({*truth, *seen}):
        began, ended = version_at(session.start, storage_key), version_at(session.end, storage_key)
        due = [c for c in truth.get(storage_key, []) if began < c.version <= ended]
        told = seen.get(storage_key, [])
        if told != due:
            return f"{storage_key!r} from version {began} to {ended}: {_how(told, due)}"
    return None


def _how(told: list[Change], due: list[Change]) -> str:
    if lost := _versions(c for c in due if c not in told):
        return f"versions {lost} were never told"
    if strange := _versions(c for c in told if c not in due):
        return f"versions {strange} were told, and are none of its changes then"
    if twice := _versions(c for c in due if told.count(c) > 1):
        return f"versions {twice} were told more than once"
    return f"told in the order {_versions(told)}"


def _versions(changes: Iterable[Change]) -> list[int]:
    return [c.version for c in changes]
