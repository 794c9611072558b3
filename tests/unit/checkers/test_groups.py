"""The checker on what is of several records: transactions, listings, counters, fences, records that run out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkers.history import Check, Operation, Part, load, save
from tests.checkers.linearizability import check, check_versions, groups
from tests.unit.checkers.execution import Execution, lie
from tests.unit.checkers.oracle import possible

A, B, N = "d/a", "d/b", "d/n"


def put(key: str, value: str, at: int, version: int = 0, **more: object) -> Operation:
    """Unknown when it has no version."""
    outcome = "ok" if version else "unknown"
    return replace(Operation(0, key, "put", at, at + 1, outcome, value, version), **more)  # type: ignore[arg-type]


def read(key: str, value: str, at: int, version: int = 0) -> Operation:
    return Operation(1, key, "read", at, at + 1, "ok", value, version)


def add(key: str, total: int | None, at: int, version: int = 0, delta: int = 1, **more: object) -> Operation:
    outcome, value = ("unknown", "") if total is None else ("ok", str(total))
    op = Operation(2, key, "add", at, at + 1, outcome, value, version, delta=delta)
    return replace(op, **more)  # type: ignore[arg-type]


def touch(key: str, at: int, version: int, ttl: int) -> Operation:
    return Operation(3, key, "touch", at, at + 1, "ok", "", version, ttl=ttl)


def listing(at: int, *rows: tuple[str, str, int]) -> Operation:
    """Of A and B; what is not told was not there."""
    told = {key: (value, version) for key, value, version in rows}
    return Operation(
        4, "", "list", at, at + 1, then=tuple(Part("get", k, *told.get(k, ("", 0))) for k in (A, B))
    )


def both(value: str, at: int, version: int = 0, **more: object) -> Operation:
    """A transaction that writes both; unknown when it has no version."""
    parts = (Part("put", A, value, version), Part("put", B, value, version and version + 1))
    outcome = "ok" if version else "unknown"
    op = Operation(5, "", "txn", at, at + 1, outcome, then=parts, succeeded=True if version else None)
    return replace(op, **more)  # type: ignore[arg-type]


def swap(at: int, if_value: str, value: str, version: int, held: bool) -> Operation:
    """A transaction: if A has a value, B gets one."""
    then = (Part("put", B, value, version if held else 0),)
    checks = (Check(A, "value", "==", if_value),)
    return Operation(6, "", "txn", at, at + 1, checks=checks, then=then, succeeded=held)


def fenced(op: Operation, token: int, seen: int = 0) -> Operation:
    """``op`` with a fence; refused when a higher token was ``seen``."""
    op = replace(op, fence=("d/lock", token))
    return replace(op, outcome="fenced", version=seen) if seen else op


GOOD = {
    "a transaction is read whole": [both("x", 0, 1), listing(2, (A, "x", 1), (B, "x", 2))],
    "one that nobody answered is read whole": [both("x", 0), listing(2, (A, "x", 7), (B, "x", 8))],
    "one that nobody answered comes late": [both("x", 0), listing(2), listing(4, (A, "x", 1), (B, "x", 2))],
    "one that nobody answered fails": [put(A, "y", 0, 1), both("x", 2, checks=(Check(A, "version", "==", 0),)), listing(4, (A, "y", 1))],
    "a branch that did not hold": [put(A, "y", 0, 1), swap(2, "z", "x", 0, False), listing(4, (A, "y", 1))],
    "a branch that held": [put(A, "y", 0, 1), swap(2, "y", "x", 2, True), listing(4, (A, "y", 1), (B, "x", 2))],
    "a listing beside a write": [put(A, "x", 0, 1, ended=9), listing(2), listing(4, (A, "x", 1))],
    "counting": [add(N, 1, 0, 1), add(N, 2, 2, 2), add(N, 12, 4, 3, 10), read(N, "12", 6, 3)],
    "counting with lost answers": [add(N, 1, 0, 1), add(N, None, 2), add(N, None, 2), add(N, 3, 4, 4), read(N, "4", 6, 5)],
    "a lost answer that counted twice lost": [add(N, None, 0), add(N, None, 0), add(N, 1, 4, 1), read(N, "1", 6, 1)],
    "a later holder": [fenced(put(A, "x", 0, 1), 5), fenced(put(A, "y", 2, 2), 6), fenced(put(A, "z", 4), 5, 6), read(A, "y", 6, 2)],
    "the fence was raised by a lost write": [fenced(put(A, "y", 0), 6), fenced(put(A, "z", 4), 5, 6), read(A, "y", 6, 1)],
    "a refused condition raises the fence": [
        put(A, "x", 0, 1), fenced(Operation(0, A, "put", 2, 3, "refused", "y", 1, 0), 9), fenced(put(A, "z", 4), 5, 9),
    ],
    "the lock itself raises the fence": [
        put("d/lock", "me", 0, 7, when=0, locks="d/lock"), fenced(put(A, "z", 4), 5, 7), fenced(put(A, "y", 6, 8), 7),
    ],
    "a lock that nobody answered raises the fence": [
        put("d/lock", "me", 0, when=0, locks="d/lock"), fenced(put(A, "z", 4), 5, 7), read("d/lock", "me", 6, 7),
    ],
    "it runs out": [put(A, "x", 0, 1, ttl=10), read(A, "x", 2, 1), read(A, "", 10)],
    "it runs out late": [put(A, "x", 0, 1, ttl=10), read(A, "x", 50, 1), read(A, "", 60)],
    "touched it stays": [put(A, "x", 0, 1, ttl=10), touch(A, 5, 1, 10), read(A, "x", 14, 1), read(A, "", 16)],
    "it runs out under a transaction": [
        put(A, "x", 0, 1, ttl=5), put(B, "y", 0, 2, ttl=5), both("z", 6, 5, checks=(Check(A, "version", "==", 0),)),
    ],
    "made anew after it ran out": [put(A, "x", 0, 1, ttl=3), put(A, "y", 5, 3, when=0), read(A, "y", 7, 3)],
}  # fmt: skip

BAD = {
    "half a transaction": [both("x", 0, 1), listing(2, (A, "x", 1))],
    "half of one that nobody answered": [both("x", 0), listing(2, (A, "x", 1))],
    "one that nobody answered comes and goes": [both("x", 0), listing(2, (A, "x", 1), (B, "x", 2)), listing(4)],
    "one that nobody answered ignored its compare": [
        put(A, "y", 0, 1), both("x", 2, checks=(Check(A, "version", "==", 0),)), listing(4, (A, "x", 2), (B, "x", 3)),
    ],
    "a listing of two moments": [
        put(A, "x", 0, 1), put(B, "x", 2, 2), put(A, "y", 4, 3), put(B, "y", 6, 4), listing(2, (A, "y", 3)),
    ],
    "two listings that disagree": [
        put(A, "x", 0, 1, ended=9), put(B, "y", 0, 2, ended=9), listing(2, (A, "x", 1)), listing(4, (B, "y", 2)),
    ],
    "a compare that did not hold": [put(A, "y", 0, 1), swap(2, "z", "x", 2, True)],
    "a compare that held": [put(A, "y", 0, 1), swap(2, "y", "x", 0, False)],
    "an addition is lost": [add(N, 1, 0, 1), add(N, 2, 2, 2), add(N, 2, 4, 3)],
    "an addition counts twice": [add(N, 1, 0, 1), add(N, 3, 2, 2)],
    "a lost answer counts twice": [add(N, None, 0), add(N, 3, 4, 3)],
    "additions that never happened": [add(N, None, 0, outcome="none"), add(N, 2, 4, 2)],
    "a counter goes back": [add(N, 1, 0, 1), add(N, 2, 2, 2), read(N, "1", 4, 1)],
    "a former holder writes": [fenced(put(A, "x", 0, 1), 6), fenced(put(A, "y", 2, 2), 5)],
    "refused for a token that nobody had": [fenced(put(A, "x", 0, 1), 6), fenced(put(A, "y", 2), 5, 8)],
    "refused for no higher token": [fenced(put(A, "x", 0, 1), 6), fenced(put(A, "y", 2), 6, 6)],
    "a former holder writes after a refused condition": [
        put(A, "x", 0, 1), fenced(Operation(0, A, "put", 2, 3, "refused", "y", 1, 0), 9), fenced(put(A, "z", 4, 2), 5),
    ],
    "a former holder writes after the lock was taken": [
        put("d/lock", "me", 0, 7, when=0, locks="d/lock"), fenced(put(A, "z", 4, 8), 5),
    ],
    "it goes too early": [put(A, "x", 0, 1, ttl=10), read(A, "", 5)],
    "touched it goes all the same": [put(A, "x", 0, 1, ttl=10), touch(A, 5, 1, 10), read(A, "", 12)],
    "it goes and comes back": [put(A, "x", 0, 1, ttl=10), read(A, "", 12), read(A, "x", 14, 1)],
    "touched after it was gone": [put(A, "x", 0, 1, ttl=10), read(A, "", 12), touch(A, 14, 1, 10)],
    "what lives for ever goes": [put(A, "x", 0, 1), read(A, "", 99)],
    "versions against time, in one home": [put(A, "x", 0, 2), put(B, "y", 4, 1), listing(6, (A, "x", 2), (B, "y", 1))],
    "a number of what is none": [add(N, 1, 0, 1), Operation(0, N, "add", 2, 3, "not_a_number", "", 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert check(GOOD[name]) == []
    assert possible(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    (why,) = check(BAD[name])
    assert any(str(op) in why for op in BAD[name]), why
    assert not possible(BAD[name])


def test_joined_is_what_a_transaction_a_listing_or_a_fence_joins() -> None:
    apart = [put(A, "x", 0, 1), put(B, "y", 0, 2), fenced(put("e/a", "z", 0, 3), 1)]
    assert [len(ops) for ops in groups(apart)] == [1, 1, 1]
    assert [len(ops) for ops in groups([*apart, listing(5)])] == [3, 1]
    assert [len(ops) for ops in groups([fenced(op, 1) for op in apart])] == [2, 1], (
        "a fence is a directory's own"
    )


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 5), st.floats(0, 0.5), st.booleans())
@pytest.mark.nightly
def test_as_trying_everything_says(rng: Random, count: int, unknown: float, true: bool) -> None:
    ops = Execution(rng, 2, unknown=unknown).run(count)
    if not true:
        ops = lie(rng, ops) or ops
    assert (check(ops) == []) == possible(ops), "\n".join([*map(str, ops), *check(ops)])


@pytest.mark.parametrize("seed", range(30))
def test_true_executions_pass(seed: int) -> None:
    assert check(Execution(Random(seed), 4, unknown=0.04).run(400)) == []


def test_lies_are_seen() -> None:
    """Most of them, in executions that overlap little; every kind of operation is caught lying."""
    seen: dict[str, list[int]] = {}
    for seed in range(120):
        rng = Random(seed)
        ops = Execution(rng, 3, unknown=0.03, spread=1).run(80)
        lied = lie(rng, ops)
        if lied is None:
            continue
        (changed,) = [after for before, after in zip(ops, lied, strict=True) if before != after]
        counts = seen.setdefault(changed.kind if changed.outcome == "ok" else changed.outcome, [0, 0])
        counts[bool(check(lied))] += 1
    print({kind: f"{caught} of {missed + caught}" for kind, (missed, caught) in seen.items()})
    assert {"read", "list", "txn", "add", "touch", "refused", "fenced"} <= {
        k for k, (_, n) in seen.items() if n
    }
    missed, caught = (sum(counts[i] for counts in seen.values()) for i in (0, 1))
    assert caught > 5 * missed, seen


@pytest.mark.nightly
def test_half_of_a_transaction_is_found_among_thousands() -> None:
    """A listing that saw both records of a transaction tells of one of them what was there before."""
    ops = Execution(Random(3), 4, unknown=0.02).run(3000)
    assert check(ops) == []

    def of_one_txn(op: Operation) -> list[int]:
        values = [part.value for part in op.then] if op.kind == "list" else []
        return [i for i, value in enumerate(values) if value.startswith("v") and values.count(value) == 2]

    at = next(at for at, op in enumerate(ops) if at > 1500 and of_one_txn(op))
    op, twice = ops[at], of_one_txn(ops[at])
    half = op.then[twice[0]]
    before = next(
        o for o in reversed(ops[:at]) for key, v, _ in o.told() if key == half.key and v != half.value
    )
    told = next(t for t in before.told() if t[0] == half.key)
    parts = [*op.then]
    parts[twice[0]] = replace(half, value=told[1], version=told[2] if told[1] else 0)
    ops[at] = replace(op, then=tuple(parts))
    assert check(ops)


@pytest.mark.nightly
def test_tens_of_thousands() -> None:
    """Of twenty groups of six keys; how many are judged in a second is told."""
    ops: list[Operation] = []
    for home in range(20):
        ops += Execution(Random(home), 4, unknown=0.02, home=f"h{home}").run(1000)
    began = time.process_time()
    assert check(ops) == []
    print(f"{len(ops) / (time.process_time() - began):,.0f} operations a second of a processor")


@pytest.mark.nightly
def test_many_lost_answers_do_not_blow_up() -> None:
    ops = [put(A, f"u{i}", i) for i in range(40)] + [both(f"t{i}", i) for i in range(40)]
    ops += [add(N, None, i) for i in range(40)] + [Operation(9, A, "delete", 5, 6, "unknown")]
    ops += [both("x", 100, 200), listing(102, (A, "x", 200), (B, "x", 201)), add(N, 31, 104, 300)]
    assert check(ops) == []
    assert check([*ops, listing(106, (A, "x", 200), (B, "t9", 290))])
    assert check([*ops, add(N, 73, 106, 400)])


def test_versions_of_transactions_belong_to_one_change() -> None:
    assert check_versions([both("x", 0, 1), put("e/k", "y", 0, 2)], {A: 0, B: 0, "e/k": 1}) == []
    assert check_versions([both("x", 0, 1), put("e/k", "y", 0, 2)], {A: 0, B: 0, "e/k": 0})


def test_saved_and_loaded(tmp_path: Path) -> None:
    ops = Execution(Random(1), 3, unknown=0.2).run(200)
    save(tmp_path / "h.jsonl", ops)
    assert load(tmp_path / "h.jsonl") == ops
