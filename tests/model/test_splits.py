"""A partition that is split, snapshots of it, and copies that may go (R17, R18)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.splits import INTENTION, NOT_RESERVED, PAST_SPLIT, Bounds, Splits, initial
from tests.model.suite import Mutation, Suite

BASELINES = {
    "one crash": Bounds(crashes=1, outages=1, recovers=True, alone=True),
    "one dies": Bounds(deaths=1, compactions=1, recovers=True),
    "one dies, and etcd goes away": Bounds(deaths=1, outages=1, compactions=1, recovers=True, alone=True),
    "a move of the parent": Bounds(moves=1, deaths=1, recovers=True),
    "a move of the child": Bounds(child_moves=1, compactions=1, recovers=True),
    "an election": Bounds(elections=1, candidates=0b010),
    "claims of the child": Bounds(child_claims=1, crashes=1),
    "writes": Bounds(above=1),
    "two die, and one is forced to go on": Bounds(deaths=2, forces=1),
}
DEEPER = {
    "an election, and grants": Bounds(elections=1, grants=True),
    "writes on both sides": Bounds(above=1, below=1),
    "an election, and one dies": Bounds(elections=1, deaths=1, recovers=True),
    "a claim and a crash": Bounds(claims=1, crashes=1),
    "an election and a compaction": Bounds(elections=1, compactions=1, crashes=1),
    "a move, a crash and a compaction": Bounds(moves=1, crashes=1, compactions=1),
    "writes, a crash, a claim of the child": Bounds(above=1, crashes=1, child_claims=1),
    "a move, a death, a compaction": Bounds(moves=1, deaths=1, compactions=1, recovers=True),
    "etcd away, a death, a crash": Bounds(
        outages=1, deaths=1, compactions=1, crashes=1, recovers=True, alone=True
    ),
    INTENTION: Bounds(elections=1, broken=INTENTION),
    INTENTION + " (claims)": Bounds(claims=1, deaths=1, recovers=True, broken=INTENTION),
}
MOVE = Bounds(moves=1)
MUTATIONS = {
    "R18 parent and child are flushed apart": Mutation(Bounds(crashes=1), "S3"),
    "R18 a move does not wait for the record": Mutation(MOVE, "S1"),
    "R18 answers as the child before that is durable": Mutation(Bounds(crashes=1, child_claims=1), "I3"),
    "R18 splits before it is active": Mutation(
        Bounds(elections=1, grants=True, candidates=0b010),
        "I5",
        "1 wins the parent's term 2|1 seals (1, 2) for the parent's 2.0, adopts the log of 1|1 has etcd hold the intention",
    ),
    "R18 above is served until the entry is applied": Mutation(
        Bounds(elections=1, child_claims=1, grants=True, candidates=0b010), "I5"
    ),
    "R18 above is written until the entry is applied": Mutation(Bounds(above=1), "I5"),
    "R18 only etcd tells of a child": Mutation(BASELINES["one dies, and etcd goes away"], "S2"),
    "R18 what is known of the child does not prove its entry": Mutation(
        BASELINES["a move of the parent"], "S2"
    ),
    "R18 an active leader records, and only etcd tells": Mutation(
        replace(BASELINES["one dies"], crashes=1), "S2"
    ),
    NOT_RESERVED: Mutation(Bounds(), "I1"),
    PAST_SPLIT: Mutation(Bounds(deaths=2, forces=1), "S3"),
    "R3 nobody born in the child's quorum": Mutation(Bounds(child_claims=1), "I3"),
    "R3 only born replicas count in the child's quorum": Mutation(BASELINES["one dies"], "S2"),
    "R17 a snapshot past the split takes the rows": Mutation(Bounds(compactions=1), "S1"),
    "R17 a snapshot takes what is split off in memory only": Mutation(Bounds(compactions=1, below=1), "S1"),
    "R17 an empty child is durable enough": Mutation(MOVE, "S1"),
    "R17 dropped before what was split off is durable": Mutation(MOVE, "S1"),
    "R17 dropped while the child names this store": Mutation(MOVE, "S1"),
    "R17 keeps rows for a child that is elsewhere": Mutation(
        replace(BASELINES["a move of the child"], deaths=1), "S2"
    ),
}
SUITE = Suite("splits", Splits, initial, BASELINES, MUTATIONS, DEEPER)


#: the model reads nothing of the product: what it says changes with the model alone
pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("name", BASELINES)
def test_every_state_keeps_the_invariants(name: str) -> None:
    SUITE.check_baseline(name)


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    SUITE.check_mutation(rule)
