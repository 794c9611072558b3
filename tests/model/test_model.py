"""Replication under one leader: every reachable state within the bounds keeps the invariants; every
weakened rule breaks one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.protocol import ANY_OWNER, SAME_AGAIN, Bounds, Protocol, initial
from tests.model.suite import Mutation, Suite

#: name -> bounds that are explored to the last state
BASELINES = {
    "elections": Bounds(terms=2, writes=2),
    "rivals": Bounds(terms=3, writes=1, candidates=(1,)),
    "parts": Bounds(terms=2, writes=2, tails=True, candidates=(1,)),
    "crashes": Bounds(terms=2, writes=1, crashes=1, unsynced=True, candidates=(1,)),
    "grants": Bounds(terms=2, writes=1, ticks=1, candidates=(1,), proposers=(1,)),
    "restarts": Bounds(terms=1, writes=1, crashes=2, restarts=2, unsynced=True, candidates=()),
    "claims": Bounds(terms=1, writes=1, restarts=1, claims=True),
    "hand-off": Bounds(terms=2, writes=1, ticks=1, handoff=True, candidates=(1,), proposers=(1,)),
}

GRANTS, HANDOFF = BASELINES["grants"], BASELINES["hand-off"]
#: 1 has sealed itself and 2 for term 2, and has appended its no-op; 0 still believes that it leads
SECOND = (
    "1 wins term 2|1 begins 8|1 gets seal of 8|2 gets seal of 8|"
    "1 gets sealed from 2|1 gets sealed from 1|1 adopts the log of 1"
)
#: 0 hands over to 1, and 2 leads term 2 instead, with 0 as its quorum
OVERTAKEN = (
    "0 resigns for 1|1 hears of the hand-off|2 wins term 2|2 begins 8|0 gets seal of 8|2 gets seal of 8|"
    "2 gets sealed from 0|2 gets sealed from 2|2 adopts the log of 2|0 gets append of 8|"
    "2 gets acked from 0|2 commits 2|2 is active"
)
MUTATIONS = {
    "R1 appends of old epochs are taken": Mutation(Bounds(writes=1), "I4"),
    "R1 an old epoch seals again": Mutation(
        Bounds(terms=3, writes=0),
        "I4",
        "1 wins term 2|1 begins 8|2 wins term 3|2 begins 12",
    ),
    "R1 two owners of an epoch": Mutation(Bounds(terms=1, restarts=1, claims=True), "I1"),
    "R1 the seal is not durable": Mutation(Bounds(crashes=1, candidates=(1,)), "I4"),
    ANY_OWNER: Mutation(Bounds(), "I1"),
    "R3 no quorum of seals": Mutation(Bounds(), "I4"),
    "R3 the own log is kept": Mutation(Bounds(), "I4"),
    "R3 reports no grants": Mutation(GRANTS, "I5"),
    "R4 does not wait": Mutation(GRANTS, "I5"),
    "R5 compares no epochs": Mutation(BASELINES["parts"], "I3"),
    "R5 keeps what conflicts": Mutation(Bounds(), "I3"),
    # which one is broken first depends on the order of the search
    "R6 counts itself before the sync": Mutation(Bounds(crashes=1, unsynced=True), "I"),
    "R6 commits by itself": Mutation(Bounds(), "I3"),
    "R6 commits an old epoch's entry by counting": Mutation(
        Bounds(terms=4, tails=True, candidates=(0, 1)),
        "I",
        "0 proposes write 1|" + SECOND + "|0 wins term 3|0 begins 12|0 gets seal of 12|2 gets seal of 12|"
        "0 gets sealed from 0|0 gets sealed from 2|0 adopts the log of 0",
    ),
    "R6 commits beyond the match": Mutation(Bounds(tails=True), "I3"),
    "R8 a restart forgets grants": Mutation(replace(GRANTS, crashes=1), "I5"),
    "R8 holds from receipt": Mutation(GRANTS, "I5"),
    "R8 reads without grants": Mutation(GRANTS, "I5"),
    "R11 resigns and goes on": Mutation(HANDOFF, "I5"),
    "R11 excuses other epochs": Mutation(replace(HANDOFF, terms=3, candidates=(1, 2)), "I5", OVERTAKEN),
    SAME_AGAIN: Mutation(Bounds(terms=1, crashes=1, restarts=1, candidates=()), "I1"),
}


SUITE = Suite("replication", Protocol, initial, BASELINES, MUTATIONS, floor=5000)


#: the model reads nothing of the product: what it says changes with the model alone
pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("name", BASELINES)
def test_every_state_keeps_the_invariants(name: str) -> None:
    SUITE.check_baseline(name)


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    SUITE.check_mutation(rule)
