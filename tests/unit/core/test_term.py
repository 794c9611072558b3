"""Quorums and the state of one reign: R3, R4, R6, R8."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.core.quorum import is_quorum, quorum_value
from metastore.core.settings import MS, CoreSettings
from metastore.core.term import SealAnswer, Term
from metastore.layout import ConfigRecord


def config(replicas: str, joint: str | None = None) -> ConfigRecord:
    def members(names: str) -> tuple[tuple[str, str], ...]:
        return tuple((n, "s" + n) for n in names)

    made = ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", members(replicas))
    return (
        made
        if joint is None
        else ConfigRecord(0, 0, 1 << 64, 1 << 16, "a", members(replicas), members(joint))
    )


def subsets(names: str) -> list[set[str]]:
    return [set(c) for c in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))]


@pytest.mark.parametrize(
    ("old", "joint"),
    [("abc", None), ("abcde", None), ("ab", None), ("a", None), ("abc", "cde"), ("ab", "abc")],
)
def test_two_quorums_always_meet(old: str, joint: str | None) -> None:
    made = config(old, joint)
    everyone = "".join(sorted(set(old + (joint or ""))))
    quorums = [s for s in subsets(everyone) if is_quorum(made, s)]
    assert quorums
    for one in quorums:
        for other in quorums:
            assert one & other & set(old)


def test_a_joint_quorum_is_one_of_both() -> None:
    made = config("abc", "cde")
    assert is_quorum(made, {"a", "c", "d"})
    assert not is_quorum(made, {"a", "b", "c"})
    assert not is_quorum(made, {"c", "d", "e"})


@given(st.lists(st.integers(0, 20), min_size=5, max_size=5), st.sampled_from([None, "cde", "ade"]))
def test_quorum_value_is_what_a_quorum_has(values: list[int], joint: str | None) -> None:
    made, of = config("abc", joint), dict(zip("abcde", values, strict=True))
    found = quorum_value(made, of.__getitem__)
    assert is_quorum(made, {n for n in of if of[n] >= found})
    assert not is_quorum(made, {n for n in of if of[n] > found})


@pytest.mark.parametrize("count", range(1, 8))
def test_the_value_of_a_majority_is_more_than_halfs(count: int) -> None:
    """Of an even number too."""
    names = "abcdefg"[:count]
    made = config(names)
    for having in range(count + 1):
        of = {n: 7 if i < having else 3 for i, n in enumerate(names)}
        assert quorum_value(made, of.__getitem__) == (7 if 2 * having > count else 3)
        assert is_quorum(made, set(names[:having])) == (2 * having > count)


def answer(epoch: int, index: int, left: int = 0, at: int = 0) -> SealAnswer:
    return SealAnswer(epoch, index, 0, left, at)


def test_the_highest_position_is_adopted_epoch_first() -> None:
    term = Term(3 << 16, config("abc"), "a", 0)
    term.answers = {"a": answer(1, 99), "b": answer(2, 5), "c": answer(2, 4)}
    assert term.best_answer() == "b"
    term.answers = {"a": answer(2, 5), "b": answer(2, 5)}
    assert term.best_answer() == "a", "one's own when no other is higher"


def test_sealing_needs_ones_own_answer_and_a_quorum() -> None:
    term = Term(3 << 16, config("abc"), "a", 0)
    for having, enough in (("bc", False), ("a", False), ("ab", True), ("abc", True)):
        term.answers = {n: answer(1, 1) for n in having}
        assert term.sealed_quorum() is enough


def test_grants_of_a_quorum_have_passed_since_each_answer() -> None:
    """R4: with a margin of twice the clock rate error, and never a moment early."""
    settings = CoreSettings(clock_rate_error_ppm=500)
    term = Term(3 << 16, config("abc"), "a", 0)
    term.answers = {"a": answer(1, 1), "b": answer(1, 1, 900 * MS, 50 * MS)}
    due = 50 * MS + settings.stretched(900 * MS)
    assert settings.stretched(900 * MS) > 900 * MS * 1001 // 1000
    assert not term.grants_passed(due, settings)
    assert term.grants_passed(due + 1, settings)
    term.answers["c"] = answer(1, 1)
    assert term.grants_passed(60 * MS, settings), "a and c are a quorum without b"


def test_margins_go_the_safe_way() -> None:
    settings = CoreSettings(clock_rate_error_ppm=2000)
    for duration in (1, 1000, 900 * MS):
        assert settings.shrunk(duration) < duration < settings.stretched(duration)


def test_commit_counts_a_quorum() -> None:
    term = Term(3 << 16, config("abc"), "a", 0)
    for node, match in (("a", 7), ("b", 5), ("c", 0)):
        term.progress[node].match = match
    assert term.committed_index() == 5


def test_reads_hold_while_a_quorum_grants() -> None:
    term = Term(3 << 16, config("abc"), "a", 0)
    assert term.read_until_ns == 0
    term.hold_until = {"b": 100, "c": 70}
    term.count_grants()
    assert term.read_until_ns == 100
    five = Term(3 << 16, config("abcde"), "a", 0)
    five.hold_until = {"b": 100}
    five.count_grants()
    assert five.read_until_ns == 0, "the leader and one of four"
    five.hold_until = {"b": 100, "c": 70, "d": 30}
    five.count_grants()
    assert five.read_until_ns == 70
    alone = Term(3 << 16, config("a"), "a", 0)
    assert alone.read_until_ns > 1 << 60, "a cell of one asks nobody"
