"""What an operation does to records that live together: the rules that the search of
``tests.checkers.linearizability`` tries orders against. Pure.

A *state* is ``(slots, low)``: a slot for every key and for every fence, and the version of the last change that is
known. Keys that live together count their changes in one sequence, so a later change has a higher version. Of a
change whose version nobody was told (its outcome is unknown, or a record ran out) only this is known: it is above that
of the change of its own key before it. It may have come long before an operation met with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from tests.checkers.history import ABSENT, Check, Operation, Part

#: the condition that there is a record, whatever its version
EXISTS = -1
#: of an unknown write that nobody read: one is as good as another
UNSEEN = "?"
#: so many records at most go by themselves between two operations on them
MAX_GONE = 5


class Slot(NamedTuple):
    """A record, or a fence (then ``version`` is its token). ``value``: "" = absent. ``version``: of the last
    change, or with ``exact`` False the least that it can be. ``due``: from when on it may go by itself, 0 = never.
    ``counter``: whether ``add`` made it."""

    value: str = ""
    version: int = 0
    exact: bool = True
    due: int = 0
    counter: bool = False


State = tuple[tuple[Slot, ...], int]
NOTHING = Slot()


def only_longer(before: State, after: State) -> bool:
    """Whether all that differs is how long records stay."""
    pairs = zip(before[0], after[0], strict=True)
    return before[1] == after[1] and all(a._replace(due=0) == b._replace(due=0) for a, b in pairs)


class _Impossible(Exception):
    """No order has this operation here."""


class _Draft:
    """A state in the making."""

    __slots__ = ("low", "slots")

    def __init__(self, state: State) -> None:
        self.slots = list(state[0])
        self.low = state[1]

    def state(self) -> State:
        return tuple(self.slots), self.low

    def fix(self, at: int, version: int) -> None:
        """The record at ``at`` has this version. Raises _Impossible."""
        slot = self.slots[at]
        if slot.exact:
            if slot.version != version:
                raise _Impossible
        elif version < slot.version:
            raise _Impossible
        else:
            self.slots[at] = slot._replace(version=version, exact=True)

    def change(self, at: int, slot: Slot, version: int) -> None:
        """The record at ``at`` becomes ``slot`` in a change of ``version``, 0 = which is not known. Raises
        _Impossible."""
        before = self.slots[at].version
        if version:
            if version <= self.low or version <= before:
                raise _Impossible
            self.low = version
        self.slots[at] = slot._replace(version=version or before + 1, exact=bool(version))

    def gone(self, at: int) -> None:
        """The record at ``at`` has gone in a change of a version that is not known."""
        self.slots[at] = Slot("", self.slots[at].version, False)


class Rules:
    """Of the keys that ``operations`` are about. ``seen``: ``(key, value)`` -> the version it was read at."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        operations = list(operations)
        keys = sorted({key for op in operations for key in op.keys})
        fences = {op.fence[0] for op in operations if op.fence} | {op.locks for op in operations if op.locks}
        self.keys = keys
        self.at = {key: number for number, key in enumerate(keys)}
        self.fence_at = {name: len(keys) + number for number, name in enumerate(sorted(fences))}
        self.start: State = ((NOTHING,) * (len(keys) + len(fences)), 0)
        self.seen = {(key, value): version for op in operations for key, value, version in op.told() if value}
        self.compared = {(c.key, c.operand) for op in operations for c in op.checks if c.what == "value"}

    def value_of(self, key: str, value: str) -> str:
        """What an unknown write of ``value`` leaves, as far as anybody can tell."""
        return value if (key, value) in self.seen or (key, value) in self.compared else UNSEEN

    def touched(self, op: Operation) -> frozenset[int]:
        """The slots that ``op`` is about."""
        found = {self.at[key] for key in op.keys}
        if op.fence is not None:
            found.add(self.fence_at[op.fence[0]])
        if op.locks:
            found.add(self.fence_at[op.locks])
        return frozenset(found)

    def gone(self, state: State, op: Operation, deadline: int) -> Iterable[State]:
        """States before ``op`` in which records that it is about have run out, no later than ``deadline``."""
        slots = state[0]
        due = [i for i in map(self.at.__getitem__, op.keys) if slots[i].due and slots[i].due <= deadline]
        for count in range(min(len(due), MAX_GONE), 0, -1):
            for some in combinations(due, count):
                draft = _Draft(state)
                for i in some:
                    draft.gone(i)
                yield draft.state()

    def after(self, state: State, op: Operation) -> Iterable[State]:
        """The states that ``op`` may leave behind; none when it cannot come here. An unknown write that would
        change nothing has none."""
        draft = _Draft(state)
        try:
            if op.fence is not None and not self._fence(draft, op):
                return (draft.state(),)
            if op.kind in ("txn", "list"):
                return self._txn(state, draft, op)
            if op.outcome == "unknown":
                return self._unknown(state, draft, op)
            self._single(draft, op)
        except _Impossible:
            return ()
        return (draft.state(),)

    # --- fences -----------------------------------------------------------------------------

    def _fence(self, draft: _Draft, op: Operation) -> bool:
        """Whether the fence lets the write pass; it is raised then. Raises _Impossible."""
        assert op.fence is not None
        name, token = op.fence
        at = self.fence_at[name]
        if op.outcome == "fenced":
            if op.version <= token:
                raise _Impossible
            draft.fix(at, op.version)
            return False
        if draft.slots[at].version > token:
            raise _Impossible
        draft.slots[at] = Slot("", token)
        return True

    def _raise_fence(self, draft: _Draft, op: Operation) -> None:
        """R20: what takes a lock raises its fence to the lock's own version."""
        if op.locks:
            taken, at = draft.slots[self.at[op.key]], self.fence_at[op.locks]
            if not taken.exact or draft.slots[at].version < taken.version:
                draft.slots[at] = Slot("", max(taken.version, draft.slots[at].version), taken.exact)

    # --- one record -------------------------------------------------------------------------

    def _single(self, draft: _Draft, op: Operation) -> None:
        """An operation on one key that was answered. Raises _Impossible."""
        at = self.at[op.key]
        slot = draft.slots[at]
        if op.outcome == "refused":
            held = bool(op.version) if op.when == EXISTS else op.version == op.when
            if held or bool(op.version) != bool(slot.value):
                raise _Impossible
            if op.version:
                draft.fix(at, op.version)
        elif op.outcome == "not_a_number":
            if not slot.value or slot.counter:
                raise _Impossible
            if op.version:
                draft.fix(at, op.version)
        elif op.kind == "read":
            self._get(draft, at, op.value, op.version)
        elif op.kind == "touch":
            self._touch(draft, at, op)
        else:
            self._condition(draft, at, op.when)
            part = Part(op.kind, op.key, op.value, op.version, op.delta, op.ttl)
            self._change(draft, part, op.began)
            self._raise_fence(draft, op)

    @staticmethod
    def _get(draft: _Draft, at: int, value: str, version: int) -> None:
        if draft.slots[at].value != value:
            raise _Impossible
        if value and version:
            draft.fix(at, version)

    @staticmethod
    def _touch(draft: _Draft, at: int, op: Operation) -> None:
        if bool(draft.slots[at].value) != bool(op.version):
            raise _Impossible
        if op.version:
            draft.fix(at, op.version)
            slot = draft.slots[at]
            if slot.due:
                draft.slots[at] = slot._replace(due=max(slot.due, op.began + op.ttl))

    @staticmethod
    def _condition(draft: _Draft, at: int, when: int | None) -> None:
        """Raises _Impossible when it does not hold."""
        if when is None:
            return
        present = bool(draft.slots[at].value)
        if present == (when == ABSENT):
            raise _Impossible
        if when > 0:
            draft.fix(at, when)

    def _change(self, draft: _Draft, part: Part, began: int) -> None:
        """A put, delete or add that was done. Raises _Impossible."""
        at = self.at[part.key]
        slot = draft.slots[at]
        if part.kind == "delete":
            if bool(slot.value) != bool(part.version):
                raise _Impossible
            if part.version:
                draft.change(at, NOTHING, part.version)
        elif part.kind == "put":
            due = began + part.ttl if part.ttl else 0
            draft.change(at, Slot(part.value, due=due), part.version)
        else:
            if (slot.value and not slot.counter) or str(int(slot.value or 0) + part.delta) != part.value:
                raise _Impossible
            draft.change(at, Slot(part.value, counter=True), part.version)

    def _unknown(self, state: State, draft: _Draft, op: Operation) -> Iterable[State]:
        """A write without an answer: what it may have left, if anything."""
        fenced = draft.state()
        at = self.at[op.key]
        found: list[State] = []
        try:
            self._condition(draft, at, op.when)
            part = Part(op.kind, op.key, op.value, 0, op.delta, op.ttl)
            if self._maybe(draft, part, op.began):
                self._raise_fence(draft, op)
                found.append(draft.state())
        except _Impossible:
            pass
        read = op.kind == "put" and (op.key, op.value) in self.seen
        if fenced != state and not read and (op.when is not None or not found):
            found.insert(0, fenced)  # its condition failed, and its fence was raised all the same
        return found

    def _maybe(self, draft: _Draft, part: Part, began: int) -> bool:
        """A put, delete or add of which nothing was told; whether it changes something. Raises _Impossible."""
        at = self.at[part.key]
        slot = draft.slots[at]
        if part.kind == "put":
            due = began + part.ttl if part.ttl else 0
            version = self.seen.get((part.key, part.value), 0)
            draft.change(at, Slot(self.value_of(part.key, part.value), due=due), version)
        elif part.kind == "delete":
            if not slot.value:
                return False
            draft.change(at, NOTHING, 0)  # which takes a version, as every change does
        else:
            if slot.value and not slot.counter:
                raise _Impossible
            draft.change(at, Slot(str(int(slot.value or 0) + part.delta), counter=True), 0)
        return True

    # --- several ------------------------------------------------------------------------------

    def _txn(self, state: State, draft: _Draft, op: Operation) -> Iterable[State]:
        if op.outcome == "not_a_number":
            return (draft.state(),)
        before = draft.state()
        found: list[State] = []
        read = [
            any((p.key, p.value) in self.seen for p in b if p.kind == "put") for b in (op.otherwise, op.then)
        ]
        for held, branch in ((False, op.otherwise), (True, op.then)):
            if op.outcome == "ok" and (op.succeeded is not False) != held:
                continue
            if op.outcome == "unknown" and read[not held]:
                continue  # the other branch was done: its value was read
            draft = _Draft(before)
            try:
                self._checks(draft, op.checks, held)
                for part in branch:
                    if part.kind == "get":
                        if op.outcome == "ok":
                            self._get(draft, self.at[part.key], part.value, part.version)
                    elif op.outcome == "ok":
                        self._change(draft, part, op.began)
                    else:
                        self._maybe(draft, part, op.began)
            except _Impossible:
                continue
            found.append(draft.state())
        if op.outcome == "unknown":
            return [after for after in dict.fromkeys(found) if after != state]
        return found

    def _checks(self, draft: _Draft, checks: tuple[Check, ...], held: bool) -> None:
        """Raises _Impossible unless all of them hold, or one does not."""
        results = [self._holds(draft, check) for check in checks]
        if held:
            if False in results:
                raise _Impossible
            for check, result in zip(checks, results, strict=True):
                if result is None and check.relation == "==":
                    draft.fix(self.at[check.key], int(check.operand))
        elif all(result is True for result in results):
            raise _Impossible

    def _holds(self, draft: _Draft, check: Check) -> bool | None:
        """None: that depends on a version which is not known."""
        slot = draft.slots[self.at[check.key]]
        if check.what == "value":
            if not slot.value:
                return check.relation == "!="
            return (slot.value == check.operand) == (check.relation == "==")
        operand = int(check.operand)
        version = slot.version if slot.value else ABSENT
        if slot.exact or not slot.value:
            return {
                "==": version == operand,
                "!=": version != operand,
                "<": version < operand,
                ">": version > operand,
            }[check.relation]
        if operand < version:
            return check.relation in ("!=", ">")
        return None
