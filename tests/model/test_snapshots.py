"""A replica is caught up by a snapshot, staged apart and switched in (R17)."""

from __future__ import annotations

import pytest

from tests.model.snapshots import ANY_EPOCH, EARLY, LOG_FIRST, Bounds, Snapshots, initial
from tests.model.suite import Mutation, Suite

TWO = Bounds(snapshots=2)
BASELINES = {
    "a crash": Bounds(crashes=1),
    "two snapshots": TWO,
    "an election": Bounds(elections=1),
}
DEEPER = {
    "an election and a crash": Bounds(elections=1, crashes=1),
    "an election and two snapshots": Bounds(elections=1, snapshots=2),
    "two snapshots, two writes": Bounds(writes=2, snapshots=2),
    ANY_EPOCH: Bounds(elections=1, broken=ANY_EPOCH),
    EARLY: Bounds(elections=1, crashes=1, broken=EARLY),
    LOG_FIRST: Bounds(elections=1, crashes=1, broken=LOG_FIRST),
}
#: two entries are with 0 and 1, and a snapshot at the first of them is on its way to 2
SENT = (
    "0 proposes|1 takes the log of 0|0 commits 1|0 applies up to 1|0 compacts to 1|0 sends 2 a snapshot at 1"
)
MUTATIONS = {
    "R17 a snapshot has what is not committed": Mutation(Bounds(), "I3"),
    "R17 a snapshot below the commit index is switched in": Mutation(TWO, "I4"),
    "R17 a log that holds its position is thrown away": Mutation(
        Bounds(writes=2, snapshots=2),
        "I3",
        SENT + "|0 commits 2|0 applies up to 2|0 sends 2 a snapshot at 2|2 agrees to the snapshot at 1|"
        "2 switches to 1|0 proposes",
    ),
    "R17 appends are taken while it is switched in": Mutation(
        Bounds(elections=1), "I3", SENT + "|1 seals 0, and leads epoch 2|2 agrees to the snapshot at 1"
    ),
    "R17 the state is switched before its position": Mutation(Bounds(crashes=1), "I3"),
    "R17 what the log had before the switch is found again": Mutation(Bounds(crashes=1), "I2"),
}
SUITE = Suite("snapshots", Snapshots, initial, BASELINES, MUTATIONS, DEEPER)


#: the model reads nothing of the product: what it says changes with the model alone
pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("name", BASELINES)
def test_every_state_keeps_the_invariants(name: str) -> None:
    SUITE.check_baseline(name)


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    SUITE.check_mutation(rule)
