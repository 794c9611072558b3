"""The replicas of a partition change (R10), claims under the configs of a move (R16)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.moves import JOINS_EARLY, LEARNED, Bounds, Moves, initial
from tests.model.suite import Mutation, Suite

#: nodes 0, 1, 2 become: 3 alone; 0 and 3; 1, 2 and 3
APART, PART, OVERLAP = 0b1000, 0b1001, 0b1110
FIRST = 0b0011

BASELINES = {
    "apart": Bounds(new=APART, swaps=3, candidates=FIRST, drops=True),
    "in part": Bounds(new=PART, swaps=3, candidates=FIRST),
    "overlapping": Bounds(new=OVERLAP, swaps=2, candidates=FIRST, drops=True),
    "grants": Bounds(new=PART, grants=True, candidates=FIRST, drops=True),
    "claims": Bounds(new=APART, elections=0, claims=1, crashes=1, candidates=FIRST, drops=True),
}
DEEPER = {
    "in part, three swaps": Bounds(new=PART, swaps=3, elections=2, drops=True),
    "overlapping, three swaps": Bounds(new=OVERLAP, swaps=3, drops=True),
    "claims and writes": Bounds(
        elections=0, swaps=3, claims=2, crashes=1, writes=1, candidates=FIRST, drops=True
    ),
    "claims and elections": Bounds(claims=1, crashes=1, drops=True),
    JOINS_EARLY: Bounds(new=PART, swaps=3, candidates=FIRST, broken=JOINS_EARLY),
    LEARNED: Bounds(claims=1, drops=True, candidates=0b0010, broken=LEARNED),
}
TWO = Bounds(new=APART)
MUTATIONS = {
    "R10 learners count": Mutation(replace(TWO, elections=0), "I3"),
    "R10 the old set is quorum enough": Mutation(replace(TWO, elections=0), "I3"),
    "R10 the new set is quorum enough": Mutation(
        replace(TWO, elections=0, claims=1, candidates=0b0010), "I3"
    ),
    "R10 the joint term is left before it is activated": Mutation(replace(TWO, elections=0, writes=1), "I3"),
    "R10 the joint term is left before the wait is over": Mutation(
        replace(TWO, grants=True, candidates=0b0010), "I5"
    ),
    "R10 a swap without an answer counts as done": Mutation(
        Bounds(new=PART, swaps=3, candidates=0b0010), "I3"
    ),
    "R10 a swap compares what is there now": Mutation(replace(TWO, swaps=3, elections=0), "I3"),
    "R10 drops whatever it has sealed": Mutation(replace(TWO, drops=True, candidates=0b0001), "I3"),
    "R10 who drops forgets what it sealed": Mutation(
        replace(TWO, elections=0, drops=True, claims=1, candidates=FIRST), "I3"
    ),
    "R10 another cell's record is made before the old one goes": Mutation(
        replace(TWO, swaps=3, candidates=0b0010), "I1"
    ),
    "R16 claims under the config of the term before": Mutation(
        replace(TWO, elections=0, claims=1, crashes=1, candidates=FIRST), "I3"
    ),
}
SUITE = Suite("moves", Moves, initial, BASELINES, MUTATIONS, DEEPER)


#: the model reads nothing of the product: what it says changes with the model alone
pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("name", BASELINES)
def test_every_state_keeps_the_invariants(name: str) -> None:
    SUITE.check_baseline(name)


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    SUITE.check_mutation(rule)
