"""Whether the operations on each key can be put in one order that respects real time (I5).

Keys are independent, so each is judged alone, by a search for such an order: at every step one
of the operations that began before the earliest end of those not yet placed comes next. Three
things keep it near linear: what changes nothing (a read, a refused condition) is placed as soon as it
fits, which can never hurt; acknowledged changes come in the order of their versions; an unknown
write whose value nobody ever saw is left out, since it may never have taken effect, unless a
version was seen that no acknowledged write has. What was tried in vain is remembered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.checkers.history import ABSENT, NEVER, Operation

State = tuple[str, int, bool]
"""``(value, "" = absent; version of the last change; whether that version is exact)``: of an unknown
write whose version nobody saw the least that it can be."""

START: State = ("", 0, True)
SEARCH_LIMIT = 2_000_000


class Undecided(Exception):
    """The search was given up: too many orders are possible."""


def step(state: State, op: Operation, seen: dict[str, int]) -> State | None:
    """The state after ``op``, None when it cannot come here. ``seen``: value -> version read."""
    value, version, exact = state
    if op.outcome == "refused":
        if op.version == 0:
            fits = not value
        else:
            fits = bool(value) and (op.version == version if exact else op.version >= version)
            if fits and not exact:
                return value, op.version, True
        return state if fits else None
    if op.kind == "read":
        if op.value != value:
            return None
        return state if not value or not exact or op.version == version else None
    if op.when is not None:
        if op.when == ABSENT:
            if value:
                return None
        elif not value or (op.when != version if exact else op.when < version):
            return None
    version = max(version, op.when or 0)  # which it had, if the condition held
    if op.outcome == "unknown":
        if op.kind == "delete":
            return ("", version + 1, False) if value else state
        known = seen.get(op.value)
        if known is None:
            return op.value, version + 1, False
        return (op.value, known, True) if known > version else None
    if op.kind == "delete" and op.version == 0:
        return None if value else state
    if op.kind == "delete" and not value:
        return None
    if op.version <= version:
        return None
    return ("" if op.kind == "delete" else op.value), op.version, True


def relevant(ops: list[Operation], seen: dict[str, int]) -> list[Operation]:
    """Without what never happened and unknown writes that nobody can have noticed."""
    acknowledged = {op.version for op in ops if op.kind != "read" and op.outcome == "ok"}
    noticed = {op.version for op in ops if op.outcome == "refused" and op.version}
    noticed |= {op.when for op in ops if op.when and (op.outcome == "ok" or op.value in seen)}
    strangers = bool(noticed - acknowledged - set(seen.values())) or _deletes_of_nothing(ops)
    return [
        op
        for op in ops
        if op.outcome in ("ok", "refused")
        or (op.outcome == "unknown" and (op.kind == "delete" or op.value in seen or strangers))
    ]


def _deletes_of_nothing(ops: list[Operation]) -> bool:
    """Whether an acknowledged delete removed something that no acknowledged write left there."""
    there = False
    changes = [op for op in ops if op.kind != "read" and op.outcome == "ok" and op.version]
    for op in sorted(changes, key=lambda op: op.version):
        if op.kind == "delete" and not there:
            return True
        there = op.kind == "put"
    return False


def check_key(ops: list[Operation]) -> str | None:
    """None when the operations of one key are linearizable, else why not. Raises Undecided."""
    written = {op.value: op for op in ops if op.kind == "put"}
    for op in ops:
        if op.kind == "read" and op.outcome == "ok" and op.value:
            source = written.get(op.value)
            if source is None:
                return f"nobody ever wrote what was read:\n  {op}"
            if source.outcome in ("none", "refused"):
                return f"a write that never took effect was read:\n  {source}\n  {op}"
    seen = {op.value: op.version for op in ops if op.kind == "read" and op.outcome == "ok" and op.value}
    work = [op for op in relevant(ops, seen) if not (op.kind == "read" and op.outcome != "ok")]
    work.sort(key=lambda op: (op.began, op.ended))
    ends = [NEVER if op.outcome == "unknown" else op.ended for op in work]
    passive = [op.outcome == "refused" or op.kind == "read" for op in work]
    return _search(work, ends, passive, seen)


def _search(work: list[Operation], ends: list[int], passive: list[bool], seen: dict[str, int]) -> str | None:
    count = len(work)
    must = sum(1 for op in work if op.outcome != "unknown")
    tried: set[tuple[int, int, State]] = set()
    deepest, stuck_state, stuck = -1, START, [0]
    # (first operation not placed, those placed beyond it as bits, state, how many of ``must`` placed)
    stack: list[tuple[int, int, State, int]] = [(0, 0, START, 0)]
    while stack:
        low, bits, state, placed = stack.pop()
        while True:  # place what changes nothing
            open_ops, deadline = [], NEVER
            index = low
            while index < count and work[index].began <= deadline:
                if not bits >> (index - low) & 1:
                    open_ops.append(index)
                    deadline = min(deadline, ends[index])
                index += 1
            open_ops = [i for i in open_ops if work[i].began <= deadline]
            settled = False
            for i in open_ops:
                if passive[i]:
                    after = step(state, work[i], seen)
                    if after == state:
                        bits |= 1 << (i - low)
                        placed, settled = placed + 1, True
            while bits & 1:
                bits, low = bits >> 1, low + 1
            if not settled:
                break
        if placed == must:
            return None
        mark = (low, bits, state)
        if mark in tried:
            continue
        tried.add(mark)
        if len(tried) > SEARCH_LIMIT:
            raise Undecided(f"{work[0].key}: over {SEARCH_LIMIT} partial orders tried")
        if placed > deepest:
            deepest, stuck_state, stuck = placed, state, open_ops
        acknowledged = [i for i in open_ops if not passive[i] and work[i].outcome == "ok" and work[i].version]
        first = min(acknowledged, key=lambda i: work[i].version, default=None)
        # the last pushed is tried first: acknowledged before unknown
        for i in sorted(open_ops, key=lambda i: work[i].outcome == "ok"):
            if i in acknowledged and i != first:
                continue
            after = step(state, work[i], seen)
            if after is not None:
                more = 0 if work[i].outcome == "unknown" else 1
                next_low, next_bits = low, bits | 1 << (i - low)
                while next_bits & 1:
                    next_bits, next_low = next_bits >> 1, next_low + 1
                stack.append((next_low, next_bits, after, placed + more))
    value, version, exact = stuck_state
    at = f"{'' if exact else 'after '}{version}"
    lines = "\n  ".join(str(work[i]) for i in stuck)
    return (
        f"{work[0].key}: {deepest} operations can be ordered, ending with {value or 'nothing'} at {at}; "
        f"none of these can come next:\n  {lines}"
    )


def check(operations: Iterable[Operation]) -> list[str]:
    """What is wrong, key by key; empty when the history is linearizable. Raises Undecided."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for op in operations:
        by_key[op.key].append(op)
    return [why for _, ops in sorted(by_key.items()) if (why := check_key(ops)) is not None]


def check_versions(operations: Iterable[Operation], partition_of: dict[str, int]) -> list[str]:
    """Within a partition a version belongs to one change, and a value to one version."""
    problems: list[str] = []
    owner: dict[tuple[int, int], Operation] = {}
    for op in operations:
        if op.outcome == "ok" and op.version and op.kind != "read":
            other = owner.setdefault((partition_of[op.key], op.version), op)
            if other is not op:
                problems.append(f"version {op.version} belongs to two changes:\n  {other}\n  {op}")
    return problems
