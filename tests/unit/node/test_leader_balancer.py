"""Which leadership is handed over next: evenly, never to and fro, and away from what is drained."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from metastore.node.leader_balancer import HandOver, Led, next_hand_over


def test_two_more_is_uneven_one_more_is_not() -> None:
    led = [Led(p, ("b", "c")) for p in range(3)]
    assert next_hand_over("a", led, {"a": 3, "b": 2, "c": 2}, ()) is None
    assert next_hand_over("a", led, {"a": 3, "b": 2, "c": 1}, ()) == HandOver(0, "c")
    assert next_hand_over("a", [], {"a": 3}, ()) is None


def test_a_drained_node_gives_all_and_gets_none() -> None:
    led = [Led(0, ("b", "c"))]
    assert next_hand_over("a", led, {"a": 1, "b": 5, "c": 9}, {"a"}) == HandOver(0, "b")
    assert next_hand_over("a", led, {"a": 9, "b": 0, "c": 5}, {"b"}) == HandOver(0, "c")
    assert next_hand_over("a", led, {"a": 9}, {"a", "b", "c"}) is None


@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(2, 6))
def test_it_comes_to_rest_even(seed: int, partitions: int, nodes: int) -> None:
    """From anywhere, one hand-over at a time: an end is reached, and there nobody leads two more than
    another replica of something it leads."""
    random, names = Random(seed), [f"n{i}" for i in range(nodes)]
    members = {p: random.sample(names, min(3, nodes)) for p in range(partitions)}
    leader = {p: random.choice(members[p]) for p in members}
    for _ in range(partitions * nodes * 4):
        leads = Counter(leader.values())
        moves = [
            found
            for me in names
            if (
                found := next_hand_over(
                    me,
                    [Led(p, tuple(n for n in members[p] if n != me)) for p in members if leader[p] == me],
                    leads,
                    (),
                )
            )
        ]
        if not moves:
            break
        chosen = random.choice(moves)
        leader[chosen.p] = chosen.to
    else:
        raise AssertionError("it does not come to rest")
    leads = Counter(leader.values())
    for p, who in leader.items():
        assert all(leads[n] + 2 > leads[who] for n in members[p] if n != who)
