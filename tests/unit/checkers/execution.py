"""True executions of a few records that live together, and lies told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from tests.checkers.history import ABSENT, Check, Operation, Part

KINDS = ("read", "read", "put", "put", "delete", "add", "add", "touch", "txn", "txn", "list", "list")


class Execution:
    """Records of one home, changed one operation after the other; what callers are told of it overlaps in time.

    ``unknown``: the share of writes whose answer is lost, half of which happen. ``step``: how much time an operation
    takes; they overlap by as much as ``spread`` of them."""

    def __init__(
        self, rng: Random, keys: int, *, unknown: float, home: str = "d", step: int = 10, spread: int = 3
    ):
        self.rng = rng
        self.records = [f"{home}/r{n}" for n in range(keys)]
        self.counters = [f"{home}/n{n}" for n in range(max(1, keys // 2))]
        self.fence = f"{home}/lock"
        self.unknown, self.step, self.spread = unknown, step, spread
        self.last = 0
        self.now = 0
        self.number = 0
        #: key -> (value, version, from when on it may go or 0, ttl)
        self.rows: dict[str, tuple[str, int, int, int]] = {}
        self.token = 0

    def run(self, count: int) -> list[Operation]:
        return [self.one(self.rng.choice(KINDS)) for _ in range(count)]

    def one(self, kind: str) -> Operation:
        rng = self.rng
        self.number += 1
        self.now += self.step
        spread = self.step * self.spread
        began, ended = self.now - rng.randrange(spread + 1), self.now + rng.randrange(spread + 1)
        for key, row in list(self.rows.items()):
            if row[2] and row[2] <= self.now and rng.random() < 0.5:
                del self.rows[key]
                self.last += 1
        key = rng.choice(self.counters if kind == "add" else self.records)
        op = Operation(rng.randrange(9), key, kind, began, ended)
        lost = kind not in ("read", "list", "touch") and rng.random() < self.unknown
        before = (dict(self.rows), self.last, self.token)
        does: Callable[[Operation], Operation] = getattr(self, "_" + kind)
        op = does(op)
        if not lost:
            return op
        if rng.random() < 0.5:
            self.rows, self.last, self.token = before
        # what was told goes with the answer; what was asked stays
        value = "" if kind == "add" else op.value
        parts = tuple(_asked(p) for p in op.then), tuple(_asked(p) for p in op.otherwise)
        return replace(
            op, outcome="unknown", version=0, value=value, then=parts[0], otherwise=parts[1], succeeded=None
        )

    # --- kinds --------------------------------------------------------------------------------

    def _read(self, op: Operation) -> Operation:
        part = self._get(op.key)
        return replace(op, value=part.value, version=part.version)

    def _get(self, key: str) -> Part:
        row = self.rows.get(key)
        return Part("get", key, row[0], row[1]) if row else Part("get", key)

    def _list(self, op: Operation) -> Operation:
        return replace(op, key="", then=tuple(map(self._get, [*self.records, *self.counters])))

    def _touch(self, op: Operation) -> Operation:
        row = self.rows.get(op.key)
        if row is None:
            return op
        due = max(row[2], op.began + row[3]) if row[3] else 0
        self.rows[op.key] = (row[0], row[1], due, row[3])
        return replace(op, version=row[1], ttl=row[3])

    def _condition(self, op: Operation) -> tuple[Operation, bool]:
        """With a condition, perhaps, and whether it is to be carried out; or a fence, perhaps."""
        rng, version = self.rng, self.rows[op.key][1] if op.key in self.rows else 0
        if rng.random() < 0.2:
            token = self.token + rng.choice((-2, -1, 0, 0, 1))
            if token > 0:
                op = replace(op, fence=(self.fence, token))
                if token < self.token:
                    return replace(op, outcome="fenced", version=self.token), False
                self.token = token
        if rng.random() < 0.3:
            when = rng.choice((version, version, ABSENT, max(1, version - 1)))
            op = replace(op, when=when)
            if when != version:
                return replace(op, outcome="refused", version=version), False
        return op, True

    def _put(self, op: Operation) -> Operation:
        ttl = self.rng.choice((0, 0, 4 * self.step, 9 * self.step))
        op, go = self._condition(replace(op, value=f"v{self.number}", ttl=ttl))
        return replace(op, version=self._write(op.key, op.value, op.began, ttl)) if go else op

    def _write(self, key: str, value: str, began: int, ttl: int = 0) -> int:
        self.last += 1
        self.rows[key] = (value, self.last, began + ttl if ttl else 0, ttl)
        return self.last

    def _remove(self, key: str) -> int:
        if self.rows.pop(key, None) is None:
            return 0
        self.last += 1
        return self.last

    def _delete(self, op: Operation) -> Operation:
        op, go = self._condition(op)
        return replace(op, version=self._remove(op.key)) if go else op

    def _add(self, op: Operation) -> Operation:
        op, go = self._condition(replace(op, delta=self.rng.choice((1, 1, 1, 5))))
        if not go:
            return op
        total = str(int(self.rows[op.key][0] if op.key in self.rows else 0) + op.delta)
        return replace(op, value=total, version=self._write(op.key, total, op.began))

    def _txn(self, op: Operation) -> Operation:
        """Two records get the same value, or are read together and a counter counts it."""
        rng = self.rng
        key, other = rng.sample(self.records, 2) if len(self.records) > 1 else [op.key, self.counters[0]]
        row = self.rows.get(key)
        version = row[1] if row else 0
        check: Any = Check(key, "version", "==", rng.choice((version, version, version + 1)))
        if row and rng.random() < 0.3:
            check = Check(key, "value", "==", row[0])
        held = check.operand in ((row[0], row[1]) if row else (0,))
        value = f"v{self.number}"
        then = [Part("put", key, value), Part("put", other, value), Part("get", key)]
        if other == self.counters[0]:
            then[1] = Part("add", other, delta=1)
        otherwise = [Part("get", other), Part("add", self.counters[0], delta=1)]
        if rng.random() < 0.2:
            then.append(Part("delete", other))
        branch = [self._part(p, op.began) for p in (then if held else otherwise)]
        done = (tuple(branch), tuple(otherwise)) if held else (tuple(then), tuple(branch))
        return replace(op, key="", checks=(check,), then=done[0], otherwise=done[1], succeeded=held)

    def _part(self, part: Part, began: int) -> Part:
        if part.kind == "get":
            return self._get(part.key)
        if part.kind == "delete":
            return replace(part, version=self._remove(part.key))
        if part.kind == "put":
            return replace(part, version=self._write(part.key, part.value, began))
        total = str(int(self.rows[part.key][0] if part.key in self.rows else 0) + part.delta)
        return replace(part, value=total, version=self._write(part.key, total, began))


def _asked(part: Part) -> Part:
    return replace(part, version=0, value=part.value if part.kind == "put" else "")


def lie(rng: Random, operations: list[Operation]) -> list[Operation] | None:
    """One operation says something else than was the case; None when nothing can be made of the one that was
    drawn. It need not be seen to be a lie: another order may explain it."""
    kinds = [op.kind if op.outcome == "ok" else op.outcome for op in operations]
    kind = rng.choice(sorted(set(kinds)))
    at = rng.choice([i for i, k in enumerate(kinds) if k == kind])
    op = changed = operations[at]
    if op.outcome == "unknown":
        return None
    if op.outcome in ("refused", "fenced"):
        changed = replace(op, version=max(0, op.version + rng.choice((-1, 1))))
    elif op.kind in ("read", "touch"):
        others = [told for o in operations for told in o.told() if told[0] == op.key]
        if not others or (op.kind == "touch" and not op.version):
            return None
        _, value, version = rng.choice(others)
        changed = replace(op, version=version, value=value if op.kind == "read" else "")
    elif op.kind in ("txn", "list"):
        parts = list(op.done())
        i = rng.randrange(len(parts))
        others = [told for o in operations for told in o.told() if told[0] == parts[i].key]
        if parts[i].kind == "get" and others:
            _, value, version = rng.choice(others)
            parts[i] = replace(parts[i], value=value, version=version)
        elif parts[i].kind == "add":
            parts[i] = replace(parts[i], value=str(int(parts[i].value) + rng.choice((-1, 1))))
        if op.succeeded is False:
            changed = replace(op, otherwise=tuple(parts))
        else:
            changed = replace(op, then=tuple(parts))
    elif op.kind == "add":
        changed = replace(op, value=str(int(op.value) + rng.choice((-1, 1))))
    if changed == op:
        return None
    return [*operations[:at], changed, *operations[at + 1 :]]
