"""Whether what a replica answered of its own was as new as it said.

An answer of a certain age holds all that was acknowledged so long before it was asked for: of each key the
latest such change, or a later one. One that had to have a version has it. Versions of one key only grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.checkers.history import Operation

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class StaleRead:
    """What a read of one key found at some replica. ``bound_ms``, ``at_least``: what was asked for; ``age_ms``:
    what was said, None = nothing; ``value``: "" = there is no record; ``version``: of the record. ``began`` and
    ``ended`` on the clock of the history. ``listed``: by a listing, which finds something, or nothing, of every key."""

    key: str
    began: int
    ended: int
    value: str = ""
    version: int = 0
    age_ms: int | None = None
    bound_ms: int | None = None
    at_least: int | None = None
    listed: bool = False

    def __str__(self) -> str:
        asked = f"at least {self.at_least}" if self.at_least is not None else f"within {self.bound_ms} ms"
        found = f"{self.value} at {self.version}" if self.value else "nothing"
        how = "listed" if self.listed else "read"
        return f"{self.began}..{self.ended} {how} {self.key} {asked}: {found}, {self.age_ms} ms old"


def floor_of(read: StaleRead, ops: Iterable[Operation]) -> tuple[int, Operation | None]:
    """The version that the answer has to have at least, and what says so."""
    least, why = read.at_least or 0, None
    if read.age_ms is not None:
        before = read.began - read.age_ms * MS
        for op in ops:
            if op.outcome == "ok" and op.ended <= before and op.version > least:
                least, why = op.version, op
    return least, why


def check_read(read: StaleRead, ops: list[Operation]) -> str | None:
    """None when the answer is possible, else why not. ``ops``: all other operations on that key."""
    if read.bound_ms is not None and (read.age_ms is None or read.age_ms > read.bound_ms):
        return f"older than was asked for:\n  {read}"
    least, why = floor_of(read, ops)
    if read.value:
        source = next((op for op in ops if op.kind == "put" and op.value == read.value), None)
        if source is None or source.outcome in ("none", "refused") or source.began > read.ended:
            return f"nobody had written that:\n  {read}\n  {source}"
        if source.outcome == "ok" and source.version != read.version:
            return f"written at another version:\n  {read}\n  {source}"
        if read.version >= least:
            return None
    elif not least or any(
        op.kind == "delete"
        and op.began <= read.ended
        and (op.outcome == "unknown" or (op.outcome == "ok" and op.version >= least))
        for op in ops
    ):
        return None
    late = "" if why is None else f", acknowledged {(read.began - why.ended) // MS} ms before it was asked"
    return f"it lacks version {least}{late}:\n  {read}" + ("" if why is None else f"\n  {why}")
