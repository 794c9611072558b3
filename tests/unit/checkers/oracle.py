"""What a history may be, by trying everything: every order, every set of unknown writes that happened, every version
that they may have, every record that may have run out. For a handful of operations. Shares nothing with the checker
but the form of a history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.checkers.history import ABSENT, NEVER, READS, Check, Operation, Part
from tests.checkers.steps import EXISTS

#: the most that the version of a change can be of which nothing was told
MOST = 8


@dataclass(frozen=True)
class Row:
    """A record as it certainly is. ``due``: it may go from then on, 0 = never."""

    value: str
    version: int
    due: int = 0
    counter: bool = False


@dataclass(frozen=True)
class World:
    """The records and fences of keys that live together, at a moment."""

    rows: dict[str, Row] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    #: of the last change that somebody was told of; those grow over all records
    last: int = 0
    now: int = 0
    #: key -> the version at which its record went
    ended: dict[str, int] = field(default_factory=dict)
    #: (key, value) -> the version at which it was read
    told: dict[tuple[str, str], int] = field(default_factory=dict)

    def put(self, key: str, row: Row | None) -> World:
        rest = {k: r for k, r in self.rows.items() if k != key}
        rows = rest if row is None else {**rest, key: row}
        return replace(self, rows=rows)


def possible(operations: list[Operation]) -> bool:
    """Whether some order explains all that was told."""
    todo = [
        op for op in operations if op.outcome != "none" and not (op.outcome == "unknown" and op.kind in READS)
    ]
    told = {(key, value): version for op in operations for key, value, version in op.told() if value}
    return _some(World(told=told), todo)


def _some(world: World, todo: list[Operation]) -> bool:
    if all(op.outcome == "unknown" for op in todo):
        return True
    ends = [NEVER if op.outcome == "unknown" else op.ended for op in todo]
    for key, row in world.rows.items():  # a record runs out, in front of everything else
        at = max(world.now, row.due)
        if row.due and at <= min(ends):
            gone = replace(world.put(key, None), now=at, ended={**world.ended, key: row.version})
            if _some(gone, todo):
                return True
    for number, op in enumerate(todo):
        now = max(world.now, op.began)
        rest = todo[:number] + todo[number + 1 :]
        if now > min(ends):
            continue
        for after in _done(replace(world, now=now), op):
            if _some(after, rest):
                return True
    return False


def _done(world: World, op: Operation) -> list[World]:
    """What the world may be like after ``op``, which then has said what it has."""
    known = op.outcome != "unknown"
    if op.fence is not None:
        name, token = op.fence
        seen = world.fences.get(name, 0)
        if token < seen or op.outcome == "fenced":
            return [world] if op.outcome == "fenced" and token < seen == op.version else []
        world = replace(world, fences={**world.fences, name: token})
    if op.kind in ("txn", "list"):
        held = all(_holds(world, check) for check in op.checks)
        if known and held != (op.succeeded is not False):
            return []
        worlds = [world]
        for part in op.then if held else op.otherwise:
            worlds = [after for w in worlds for after in _part(w, part, known, op.began)]
        return worlds
    row = world.rows.get(op.key)
    version = row.version if row else 0
    if op.kind == "touch":
        if op.version != version:
            return []
        if row is None or not row.due:
            return [world]
        return [world.put(op.key, replace(row, due=max(row.due, op.began + op.ttl)))]
    failed = op.when is not None and (version == 0 if op.when == EXISTS else version != op.when)
    if op.outcome == "refused" or failed:
        if known and not (failed and op.outcome == "refused" and op.version == version):
            return []
        return [world]
    if op.outcome == "not_a_number":
        return [world] if row is not None and not row.counter and op.version in (0, version) else []
    kind = "get" if op.kind == "read" else op.kind
    part = Part(kind, op.key, op.value, op.version, op.delta, op.ttl)
    after = _part(world, part, known, op.began)
    if op.locks:
        after = [replace(w, fences={**w.fences, op.locks: w.rows[op.key].version}) for w in after]
    return after


def _part(world: World, part: Part, known: bool, began: int) -> list[World]:
    row = world.rows.get(part.key)
    if part.kind == "get":
        said = (part.value, part.version) if part.value else ("", 0)
        return [world] if not known or said == ((row.value, row.version) if row else ("", 0)) else []
    if part.kind == "delete" and row is None:
        return [world] if not known or part.version == 0 else []
    new: Any = None
    if part.kind == "put":
        new = Row(part.value, 0, began + part.ttl if part.ttl else 0)
    elif part.kind == "add":
        if row is not None and not row.counter:
            return []
        total = str(int(row.value if row else 0) + part.delta)
        if known and total != part.value:
            return []
        new = Row(total, 0, 0, True)
    above = row.version if row else world.ended.get(part.key, 0)
    told = world.told.get((part.key, part.value), 0)
    if known or (part.kind == "put" and told):
        version = part.version or told
        if version <= max(world.last, above):
            return []
        return [replace(_changed(world, part.key, new, version), last=version)]
    return [_changed(world, part.key, new, version) for version in range(above + 1, MOST + 1)]


def _changed(world: World, key: str, new: Row | None, version: int) -> World:
    changed = world.put(key, replace(new, version=version) if new else None)
    return changed if new else replace(changed, ended={**changed.ended, key: version})


def _holds(world: World, check: Check) -> bool:
    row = world.rows.get(check.key)
    if check.what == "value":
        return (row is not None and row.value == check.operand) == (check.relation == "==")
    version, operand = row.version if row else ABSENT, int(check.operand)
    return {
        "==": version == operand,
        "!=": version != operand,
        "<": version < operand,
        ">": version > operand,
    }[check.relation]
