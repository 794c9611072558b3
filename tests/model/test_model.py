"""Every reachable state within the bounds keeps the invariants; every weakened rule breaks one.

``python -m tests.model.test_model [name…]`` explores what is named and prints states, depth and time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from tests.model.checker import Found, explore
from tests.model.protocol import ANY_OWNER, SAME_AGAIN, Bounds, Protocol, initial

LIMIT = 1_000_000

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
#: the rule that is broken -> the bounds in which that shows, the invariant that it breaks, and what
#: happens first (to save the time of finding the way there)
MUTATIONS: dict[str, tuple[Bounds, str, str]] = {
    "R1 appends of old epochs are taken": (Bounds(writes=1), "I4", ""),
    "R1 an old epoch seals again": (
        Bounds(terms=3, writes=0),
        "I4",
        "1 wins term 2|1 begins 8|2 wins term 3|2 begins 12",
    ),
    "R1 two owners of an epoch": (Bounds(terms=1, restarts=1, claims=True), "I1", ""),
    "R1 the seal is not durable": (Bounds(crashes=1, candidates=(1,)), "I4", ""),
    ANY_OWNER: (Bounds(), "I1", ""),
    "R3 no quorum of seals": (Bounds(), "I4", ""),
    "R3 the own log is kept": (Bounds(), "I4", ""),
    "R3 reports no grants": (GRANTS, "I5", ""),
    "R4 does not wait": (GRANTS, "I5", ""),
    "R5 compares no epochs": (BASELINES["parts"], "I3", ""),
    "R5 keeps what conflicts": (Bounds(), "I3", ""),
    # which one is broken first depends on the order of the search
    "R6 counts itself before the sync": (Bounds(crashes=1, unsynced=True), "I", ""),
    "R6 commits by itself": (Bounds(), "I3", ""),
    "R6 commits an old epoch's entry by counting": (
        Bounds(terms=4, tails=True, candidates=(0, 1)),
        "I",
        "0 proposes write 1|" + SECOND + "|0 wins term 3|0 begins 12|0 gets seal of 12|2 gets seal of 12|"
        "0 gets sealed from 0|0 gets sealed from 2|0 adopts the log of 0",
    ),
    "R6 commits beyond the match": (Bounds(tails=True), "I3", ""),
    "R8 a restart forgets grants": (replace(GRANTS, crashes=1), "I5", ""),
    "R8 holds from receipt": (GRANTS, "I5", ""),
    "R8 reads without grants": (GRANTS, "I5", ""),
    "R11 resigns and goes on": (HANDOFF, "I5", ""),
    "R11 excuses other epochs": (replace(HANDOFF, terms=3, candidates=(1, 2)), "I5", OVERTAKEN),
    SAME_AGAIN: (Bounds(terms=1, crashes=1, restarts=1, candidates=()), "I1", ""),
}


def run(bounds: Bounds, story: str = "") -> Found:
    protocol = Protocol(bounds)
    world = protocol.follow(initial(bounds), story.split("|") if story else ())
    return explore(world, protocol.steps, LIMIT)


@pytest.mark.parametrize("name", BASELINES)
def test_every_state_keeps_the_invariants(name: str) -> None:
    found = run(BASELINES[name])
    print(f"\n{name}: {found.states} states, depth {found.depth}")
    assert found.violation is None, "\n".join(found.path)
    assert found.states > 5000, "the bounds leave out what should be explored"


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_breaks_an_invariant(rule: str) -> None:
    bounds, invariant, story = MUTATIONS[rule]
    found = run(replace(bounds, broken=rule), story)
    assert found.violation is not None, f"{found.states} states and none shows it"
    assert found.violation.startswith(invariant), "\n".join(found.path)


def main(names: list[str]) -> None:
    for name in names or [*BASELINES, *MUTATIONS]:
        bounds, _, story = MUTATIONS.get(name) or (BASELINES[name], "", "")
        began = time.monotonic()
        try:
            found = run(bounds if name in BASELINES else replace(bounds, broken=name), story)
            print(f"{name}: {found.states} states, depth {found.depth}, {time.monotonic() - began:.1f} s")
            print("\n".join("   " + step for step in found.path), flush=True)
        except RuntimeError as e:
            print(name, e, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
