"""The checker itself: histories known good and bad, and against brute force."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkers.history import Operation, load, save
from tests.checkers.linearizability import check, check_versions
from tests.unit.checkers.oracle import possible


def op(
    text: str, began: int, ended: int, outcome: str = "ok", version: int = 0, when: int | None = None
) -> Operation:
    """``w a`` writes a; ``r a`` read a; ``r`` read nothing; ``d`` deletes."""
    kind, _, value = text.partition(" ")
    kinds = {"w": "put", "r": "read", "d": "delete"}
    return Operation(0, "k", kinds[kind], began, ended, outcome, value, version, when)


GOOD = {
    "empty": [],
    "one after another": [op("w a", 0, 1, version=1), op("r a", 2, 3, version=1)],
    "a read beside a write sees either": [op("w a", 0, 9, version=1), op("r", 1, 2), op("r a", 3, 4, version=1)],
    "an unknown write that is seen": [op("w a", 0, 1, "unknown"), op("r a", 5, 6, version=3)],
    "an unknown write that is never seen": [op("w a", 0, 1, "unknown"), op("r", 5, 6)],
    "an unknown write that comes late": [op("w a", 0, 1, "unknown"), op("r", 5, 6), op("r a", 7, 8, version=2)],
    "a failure that was none": [op("w a", 0, 1, "none"), op("r", 5, 6)],
    "compare and set": [
        op("w a", 0, 1, version=1), op("w b", 2, 3, version=2, when=1), op("w c", 4, 5, "refused", 2, 1),
    ],
    "a refusal that saw an unknown write": [
        op("w a", 0, 1, version=1), op("w b", 2, 3, "unknown"), op("w c", 4, 5, "refused", 7, 1),
        op("w d", 6, 7, version=8, when=7),
    ],
    "an unknown delete, and made anew": [
        op("w a", 0, 1, version=2), op("d", 2, 3, "unknown"), op("w b", 4, 5, version=4, when=0),
    ],
    "delete and make anew": [
        op("w a", 0, 1, version=1), op("d", 2, 3, version=2), op("r", 4, 5), op("w b", 6, 7, version=3, when=0),
    ],
    "a delete of what only an unknown write can have made": [
        op("w a", 0, 1, version=1), op("d", 2, 3, version=2), op("w b", 4, 5, "unknown"), op("d", 6, 7, version=5),
    ],
    "an unknown write on top of another that nobody saw": [
        op("w u", 0, 0, "unknown"), op("w v1", 0, 0, "unknown", when=1), op("r v1", 1, 2, version=2),
    ],
    "nothing to delete": [op("d", 0, 1), op("w a", 2, 3, version=1)],
    "an unknown delete": [op("w a", 0, 1, version=1), op("d", 2, 3, "unknown"), op("r", 4, 5)],
}  # fmt: skip

BAD = {
    "a delete of what nobody can have made": [
        op("w a", 0, 1, version=1), op("d", 2, 3, version=2), op("w b", 8, 9, "unknown"), op("d", 6, 7, version=5),
    ],
    "stale read": [op("w a", 0, 1, version=1), op("w b", 2, 3, version=2), op("r a", 4, 5, version=1)],
    "lost write": [op("w a", 0, 1, version=1), op("r", 2, 3)],
    "read of what nobody wrote": [op("r x", 0, 1, version=1)],
    "read of a failed write": [op("w a", 0, 1, "none"), op("r a", 2, 3, version=1)],
    "read of a refused write": [op("w a", 0, 1, "refused", 0, 5), op("r a", 2, 3, version=1)],
    "reads that go back": [
        op("w a", 0, 1, version=1), op("w b", 2, 9, version=2), op("r b", 3, 4, version=2), op("r a", 5, 6, version=1),
    ],
    "two sets of one version": [
        op("w a", 0, 1, version=1), op("w b", 2, 9, version=2, when=1), op("w c", 3, 8, version=3, when=1),
    ],
    "an unknown write seen, then not": [
        op("w a", 0, 1, "unknown"), op("r a", 2, 3, version=1), op("r", 4, 5),
    ],
    "a deleted record comes back": [
        op("w a", 0, 1, version=1), op("d", 2, 3, version=2), op("r a", 4, 5, version=1),
    ],
    "versions against time": [op("w a", 0, 1, version=2), op("w b", 2, 3, version=1)],
    "a refusal that saw another version": [op("w a", 0, 1, version=1), op("w c", 4, 5, "refused", 3, 9)],
    "made twice": [op("w a", 0, 1, version=1, when=0), op("w b", 2, 3, version=2, when=0)],
    "written twice": [
        op("w a", 0, 1, version=1), op("w b", 2, 3, version=2), op("r b", 4, 5, version=2), op("r a", 6, 7, version=3),
    ],
    "made anew at once, with no version for the delete in between": [
        op("w a", 0, 1, version=2), op("d", 2, 3, "unknown"), op("w b", 4, 5, version=3, when=0),
    ],
    "a delete that found nothing after a write": [op("w a", 0, 1, version=1), op("d", 2, 3)],
    "a value under another version": [op("w a", 0, 1, version=1), op("r a", 2, 3, version=9)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    (why,) = check(BAD[name])
    assert any(str(o) in why for o in BAD[name]), why


TIMES = st.tuples(st.integers(0, 12), st.integers(0, 5)).map(lambda t: (t[0], t[0] + t[1]))


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Five operations at most, anything that could be said of them."""
    ops = []
    for number in range(draw(st.integers(1, 5))):
        began, ended = draw(TIMES)
        kind = draw(st.sampled_from(["w", "w", "r", "r", "d"]))
        outcome = (
            draw(st.sampled_from(["ok", "ok", "ok", "unknown", "none", "refused"])) if kind != "r" else "ok"
        )
        value = (
            f"v{number}"
            if kind == "w"
            else draw(st.sampled_from(["", "v0", "v1", "v2"]))
            if kind == "r"
            else ""
        )
        version = draw(st.integers(1, 5)) if kind == "w" or value else draw(st.integers(0, 3))
        if outcome in ("unknown", "none") or (kind == "r" and not value):
            version = 0
        if outcome == "refused":
            version = draw(st.integers(0, 4))
        when = draw(st.sampled_from([None, None, 0, 1, 2, 3])) if kind != "r" else None
        if outcome == "refused" and when is None:
            when = 9
        made = f"{kind} {value}" if value else kind
        ops.append(op(made, began, ended, outcome, version, when))
    return ops


@settings(max_examples=1500, deadline=None)
@given(histories())
def test_as_brute_force_says(ops: list[Operation]) -> None:
    written = {o.value: o for o in ops if o.kind == "put"}
    for o in ops:
        if o.kind == "read" and o.value:
            source = written.get(o.value)
            if source is None or source.outcome in ("none", "refused"):
                assert check(ops)
                return
    assert (check(ops) == []) == possible(ops), check(ops)


def sequential(count: int, keys: int, seed: int, unknown: float) -> list[Operation]:
    """A true execution, its operations blown up in time so that they overlap."""
    rng = random.Random(seed)
    ops, version = [], 0
    state: dict[str, tuple[str, int]] = {}
    for number in range(count):
        key, at = f"k{rng.randrange(keys)}", number * 10
        began, ended = at - rng.randrange(25), at + 1 + rng.randrange(25)
        value, old = state.get(key, ("", 0))
        dice = rng.random()
        if dice < 0.5:
            ops.append(Operation(0, key, "read", began, ended, "ok", value, old if value else 0))
            continue
        when = None if dice < 0.7 else (old if value else 0)
        if dice > 0.95:
            ops.append(
                Operation(0, key, "put", began, ended, "refused", f"v{number}", old if value else 0, 1 << 40)
            )
            continue
        happened = True
        outcome = "ok"
        if rng.random() < unknown:
            outcome, happened = "unknown", rng.random() < 0.5
        if happened:
            version += 1
            state[key] = (f"v{number}", version)
        ops.append(
            Operation(
                0, key, "put", began, ended, outcome, f"v{number}", version if outcome == "ok" else 0, when
            )
        )
    return ops


@pytest.mark.parametrize("seed", range(20))
def test_true_executions_pass_and_planted_lies_do_not(seed: int) -> None:
    ops = sequential(400, 6, seed, 0.1)
    assert check(ops) == []
    rng = random.Random(seed)
    reads = [i for i, o in enumerate(ops) if o.kind == "read" and o.value and o.version > 20]
    i = rng.choice(reads)
    older = [
        o
        for o in ops
        if o.key == ops[i].key and o.kind == "put" and o.outcome == "ok" and o.ended < ops[i].began - 200
    ]
    newer = [
        o
        for o in ops
        if o.key == ops[i].key
        and o.kind == "put"
        and o.outcome == "ok"
        and older
        and o.began > older[0].ended
        and o.ended < ops[i].began
    ]
    if older and newer:
        lie = ops[i]
        ops[i] = Operation(0, lie.key, "read", lie.began, lie.ended, "ok", older[0].value, older[0].version)
        assert check(ops)


def test_tens_of_thousands() -> None:
    assert check(sequential(30_000, 24, 1, 0.02)) == []


def test_many_unknown_writes_do_not_blow_up() -> None:
    ops = [op(f"w u{i}", i, i + 1, "unknown") for i in range(60)]
    ops += [
        op("w a", 100, 101, version=70),
        op("r a", 102, 103, version=70),
        op("r u7", 104, 105, version=75),
    ]
    assert check(ops) == []
    assert check([*ops, op("r a", 106, 107, version=70)])


def test_versions_belong_to_one_change() -> None:
    ops = [op("w a", 0, 1, version=1), op("w b", 0, 1, version=1)]
    assert check_versions(ops, {"k": 0})
    assert check_versions(ops[:1], {"k": 0}) == []


def test_saved_and_loaded(tmp_path: Path) -> None:
    ops = sequential(50, 3, 1, 0.2)
    save(tmp_path / "h.jsonl", ops)
    assert load(tmp_path / "h.jsonl") == ops
