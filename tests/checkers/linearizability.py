"""Whether the operations on records can be put in one order that respects real time (I5).

Keys that no transaction, no listing and no fence joins are independent, so the history is cut into groups of
keys that are joined, and each group is judged alone, by a search for such an order: at every step one of
the operations that began before the earliest end of those not yet placed comes next. What keeps it near linear:

- what changes nothing (a read, a listing, a refused condition) is placed as soon as it fits, which can never hurt;
- acknowledged changes come in the order of their versions: keys that are joined live in one partition, and
  count in one sequence (``tests.checkers.steps``);
- a record that may run out does so only where an operation is about it;
- an unknown write whose value was read has happened, and before that; another is placed only for the sake of an
  operation that is about the same records;
- of unknown writes that do the same, the one that began first comes first;
- what was tried in vain is remembered, and not tried again with fewer unknown writes left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tests.checkers.history import NEVER, READS, Operation, Part
from tests.checkers.steps import Rules, State, only_longer

SEARCH_LIMIT = 500_000
#: first so many partial orders are tried with so many unknown writes before one operation
HURRY = 20_000
FREE_AT_ONCE = (1, 2, 4)


class Undecided(Exception):
    """The search was given up: too many orders are possible."""


def home_of(key: str) -> str:
    """Keys of one directory live together, and so do fences that are used there."""
    return key.rpartition("/")[0] or key


def groups(operations: Iterable[Operation], home: Callable[[str], str] = home_of) -> list[list[Operation]]:
    """The operations by what joins their keys. ``home``: fences of one name are one where keys share it."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    operations = list(operations)
    for op in operations:
        joined = op.keys
        fences = ([op.fence[0]] if op.fence else []) + ([op.locks] if op.locks else [])
        joined += [f"\0{home(joined[0])}\0{name}" for name in fences]
        for other in joined[1:]:
            parent[root(other)] = root(joined[0])
    found: dict[str, list[Operation]] = defaultdict(list)
    for op in operations:
        found[root(op.keys[0])].append(op)
    return [found[name] for name in sorted(found)]


def check_group(operations: list[Operation]) -> str | None:
    """None when the operations on keys that belong together are linearizable, else why not. Raises Undecided."""
    problem = _nobody_wrote(operations)
    if problem:
        return problem
    search = _Search(operations)
    for most in FREE_AT_ONCE:
        try:
            if search.run(patient=True, most=most) is None:
                return None
        except Undecided:
            pass
    return search.run(patient=False, most=NEVER)


def _counts(op: Operation) -> bool:
    """Whether it may have been noticed, or noticed something."""
    return op.outcome != "none" and not (op.outcome == "unknown" and op.kind in READS)


def _puts(op: Operation) -> list[Part]:
    if op.kind == "put":
        return [Part("put", op.key, op.value)]
    return [part for part in (*op.then, *op.otherwise) if part.kind == "put"]


def _nobody_wrote(operations: list[Operation]) -> str | None:
    """A value that was read and never written, or whose write had no effect. (What counters hold is judged by
    the search.)"""
    written = {(part.key, part.value): op for op in operations for part in _puts(op)}
    counters = {p.key for op in operations for p in (*op.then, *op.otherwise) if p.kind == "add"}
    counters |= {op.key for op in operations if op.kind == "add"}
    for op in operations:
        for key, value, _ in op.told():
            source = written.get((key, value))
            if not value or (source is None and key in counters):
                continue
            if source is None:
                return f"nobody ever wrote what was read:\n  {op}"
            if source.outcome in ("none", "refused", "fenced"):
                return f"a write that never took effect was read:\n  {source}\n  {op}"
    return None


class _Node(NamedTuple):
    """Where the search is. ``low``: the first operation that is not placed; ``bits``: those that are placed beyond it;
    ``used``: the free ones that are placed, as bits; ``state``; ``focus``: the operation that free ones were placed
    for, -1 = none; ``chain``: how many."""

    low: int
    bits: int
    used: int
    state: State
    focus: int = -1
    chain: int = 0

    def then(self, i: int, state: State) -> _Node:
        """With ``i`` placed."""
        low, bits = self.low, self.bits | 1 << (i - self.low)
        while bits & 1:
            low, bits = low + 1, bits >> 1
        return _Node(low, bits, self.used, state)


class _Search:
    """For an order of operations, by depth, the likeliest first."""

    def __init__(self, operations: list[Operation]) -> None:
        self.rules = rules = Rules(operations)
        counting = sorted(filter(_counts, operations), key=lambda op: (op.began, op.ended))
        #: those that have happened, and the others: unknown writes that nobody is known to have read
        self.work = work = [op for op in counting if op.outcome != "unknown" or self._version(op)]
        self.free = free = [op for op in counting if op.outcome == "unknown" and not self._version(op)]
        reads = self._reads()
        self.begins = [op.began for op in work]
        self.ends = [self._end(op, reads) for op in work]
        #: the version of one that certainly changed something, 0 of others: they are placed as soon as they fit
        self.versions = [self._version(op) for op in work]
        self.touched = [rules.touched(op) for op in work]
        self.free_begins = [op.began for op in free]
        self.free_touched = [rules.touched(op) for op in free]
        self.twins = self._twins()

    def _reads(self) -> dict[tuple[str, str], int]:
        """``(key, value)`` -> the first end of an operation that told it."""
        found: dict[tuple[str, str], int] = {}
        for op in self.work:
            for key, value, _ in op.told():
                found[key, value] = min(op.ended, found.get((key, value), NEVER))
        return found

    def _version(self, op: Operation) -> int:
        if op.outcome != "unknown":
            return min((v for _, _, v in op.changes()), default=0)
        seen = self.rules.seen
        return min((v for part in _puts(op) if (v := seen.get((part.key, part.value), 0))), default=0)

    def _end(self, op: Operation, reads: dict[tuple[str, str], int]) -> int:
        """An unknown write has no end, but when it was read it has happened."""
        if op.outcome != "unknown":
            return op.ended
        return min((reads.get((part.key, part.value), NEVER) for part in _puts(op)), default=NEVER)

    def _twins(self) -> list[int]:
        """For a free write the one before it that does the same, -1 = there is none."""
        latest: dict[object, int] = {}
        found = []
        for number, op in enumerate(self.free):
            same: object = (
                op.kind, op.key, self._seen(op.key, op.value), op.when, op.delta, op.ttl, op.fence, op.locks,
                op.checks, self._forms(op.then), self._forms(op.otherwise),
            )  # fmt: skip
            found.append(latest.get(same, -1))
            latest[same] = number
        return found

    def _seen(self, key: str, value: str) -> str:
        return self.rules.value_of(key, value) if value else ""

    def _forms(self, parts: tuple[Part, ...]) -> tuple[object, ...]:
        return tuple((p.kind, p.key, self._seen(p.key, p.value), p.delta, p.ttl) for p in parts)

    def run(self, *, patient: bool, most: int) -> str | None:
        """None when there is one, else where it ends. ``patient``: free writes are placed only for what cannot wait
        any longer, and ``most`` at once; so most orders are found, and not all. Raises Undecided."""
        #: what was tried, and with which free writes used: with more of them nothing is better
        tried: dict[tuple[int, int, State, int, int], list[int]] = defaultdict(list)
        count, deepest, farthest, stuck = 0, None, -1, [0]
        stack = [_Node(0, 0, 0, self.rules.start)]
        while stack:
            node, choices, deadline = self._settle(stack.pop())
            if node.low == len(self.work):
                return None
            before = tried[node.low, node.bits, node.state, node.focus, node.chain]
            if any(used & node.used == used for used in before):
                continue
            before.append(node.used)
            count += 1
            if count > (HURRY if patient else SEARCH_LIMIT):
                raise Undecided(f"{', '.join(self.rules.keys)}: over {SEARCH_LIMIT} partial orders tried")
            placed = node.low + node.bits.bit_count()
            if placed > farthest:
                deepest, farthest, stuck = node, placed, choices
            stack += self._next(node, choices, deadline, patient, most)
        assert deepest is not None
        return self._why(deepest.state, farthest, stuck)

    def _next(self, node: _Node, choices: list[int], deadline: int, patient: bool, most: int) -> list[_Node]:
        """Where to go from there, the likeliest last.

        A free write is placed for the sake of the next operation that is about the same records: before that
        it could as well have been later. Where that operation fits without it, only a write of several records, or
        one with a fence, can have come before it and left something of itself."""
        first = min((self.versions[i] for i in choices if self.versions[i]), default=0)
        choices = [i for i in choices if self.versions[i] <= first and node.focus in (-1, i)]
        free = [
            u
            for u in range(bisect_right(self.free_begins, deadline))
            if not node.used >> u & 1 and (self.twins[u] < 0 or node.used >> self.twins[u] & 1)
        ]
        helped: list[_Node] = []
        plain: list[_Node] = []
        choices.sort(key=lambda i: -self.ends[i])
        fits = []
        for i in choices:
            found = [node.then(i, after) for after in self._after(node.state, self.work[i], deadline)]
            fits.append(bool(found))
            plain += found
        for i, fit in zip(choices, fits, strict=True):
            if node.chain >= most or (patient and plain and (fit or i != choices[-1])):
                continue
            for u, close in self._related(i, free):
                if fit and close and len(self.free_touched[u]) == 1:
                    continue
                used = node.used | 1 << u
                helped += [
                    _Node(node.low, node.bits, used, after, i, node.chain + patient)
                    for after in self._after(node.state, self.free[u], deadline)
                ]
        return helped + plain

    def _after(self, state: State, op: Operation, deadline: int) -> list[State]:
        """The states after ``op``, those last in which nothing has run out before it."""
        befores = (*self.rules.gone(state, op, deadline), state)
        return [after for before in befores for after in self.rules.after(before, op)]

    def _related(self, i: int, free: list[int]) -> list[tuple[int, bool]]:
        """The writes of ``free`` that may matter to ``i``, and whether they are about its own records; others are
        about the records of such a write. The latter come first."""
        near = self.touched[i]
        while True:
            wider = near.union(*(self.free_touched[u] for u in free if near & self.free_touched[u]))
            if wider == near:
                break
            near = wider
        found = [
            (u, bool(self.free_touched[u] & self.touched[i])) for u in free if near & self.free_touched[u]
        ]
        return sorted(found, key=lambda pair: pair[1])

    def _settle(self, node: _Node) -> tuple[_Node, list[int], int]:
        """Place what changes nothing. Then what may come next, and until when."""
        work, begins, ends, versions, after = (
            self.work,
            self.begins,
            self.ends,
            self.versions,
            self.rules.after,
        )
        count = len(work)
        low, bits, used, state, focus, chain = node
        while True:
            choices, deadline, index = [], NEVER, low
            while index < count and begins[index] <= deadline:
                if not bits >> (index - low) & 1:
                    choices.append(index)
                    if ends[index] < deadline:
                        deadline = ends[index]
                index += 1
            settled = False
            for i in choices:
                if versions[i] or begins[i] > deadline or focus not in (-1, i):
                    continue
                op = work[i]
                for changed in after(state, op):
                    # a touch only has a record stay longer: where it fits, nothing is lost by it
                    if changed == state or (op.kind == "touch" and only_longer(state, changed)):
                        bits |= 1 << (i - low)
                        state, focus, chain, settled = changed, -1, 0, True
                        break
            if not settled:
                choices = [i for i in choices if begins[i] <= deadline]
                return _Node(low, bits, used, state, focus, chain), choices, deadline
            while bits & 1:
                low, bits = low + 1, bits >> 1

    def _why(self, state: State, placed: int, stuck: list[int]) -> str:
        slots, low = state
        held = [
            f"{key} {slot.value or 'nothing'}" + (f" at {slot.version}{'' if slot.exact else ' or later'}")
            for key, slot in zip(self.rules.keys, slots, strict=False)
        ]
        fences = {name: slots[at].version for name, at in self.rules.fence_at.items()}
        held += [f"fence {name} {token}" for name, token in fences.items() if token]
        lines = "\n  ".join(str(self.work[i]) for i in stuck)
        return (
            f"{', '.join(self.rules.keys)}: {placed} operations can be ordered, ending with "
            f"{', '.join(held)}, after version {low}; none of these can come next:\n  {lines}"
        )


def check(operations: Iterable[Operation], home: Callable[[str], str] = home_of) -> list[str]:
    """What is wrong, group by group; empty when the history is linearizable. Raises Undecided."""
    return [why for ops in groups(operations, home) if (why := check_group(ops)) is not None]


def check_versions(operations: Iterable[Operation], partition_of: Mapping[str, int]) -> list[str]:
    """Within a partition a version belongs to one change."""
    problems: list[str] = []
    owner: dict[tuple[int, int], tuple[Operation, int]] = {}
    for op in operations:
        for number, (key, _, version) in enumerate(op.changes()):
            me = (op, number)
            other, at = owner.setdefault((partition_of[key], version), me)
            if (other, at) != me:
                problems.append(f"version {version} belongs to two changes:\n  {other}\n  {op}")
    return problems
