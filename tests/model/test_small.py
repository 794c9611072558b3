"""Three small models: generations of a store (R13), how old a stale read is (R8), where a watch goes on (R18)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.model import freshness, stores, watching
from tests.model.suite import Mutation, Suite

STORES = Suite(
    "stores",
    stores.Stores,
    stores.initial,
    {
        "copies": stores.Bounds(),
        "wipes": stores.Bounds(wipes=1, copies=0, boots=3),
        "restarts, etcd away": stores.Bounds(copies=0, boots=3, outages=1, writes=1),
        "few runs remembered": stores.Bounds(boots=2, writes=1, window=1),
        "few runs remembered, restarts, etcd away": stores.Bounds(
            copies=0, boots=4, outages=1, writes=0, elections=0, window=1
        ),
        "marks": stores.Bounds(boots=1, writes=1, marks=1),
        "marks, restarts": stores.Bounds(copies=0, marks=2, writes=1),
    },
    {
        "R13 generations are not compared": Mutation(stores.Bounds(), "I5"),
        "R13 generations are compared as numbers": Mutation(stores.Bounds(boots=3), "I5"),
        "R13 nobody asks whether another process of it lives": Mutation(stores.Bounds(), "I5"),
        "R13 peers do not remember": Mutation(stores.Bounds(outages=1), "I5"),
        "R13 an empty folder takes the name's old place": Mutation(stores.Bounds(wipes=1), "I5"),
        "R13 a run is told before it is durable": Mutation(stores.Bounds(copies=0, boots=3), "S2"),
        "R13 etcd's word is put above what peers met": Mutation(stores.Bounds(outages=1, writes=1), "I5"),
        "R13 what is beyond the runs remembered passes": Mutation(
            stores.Bounds(boots=4, writes=1, window=1), "I5"
        ),
        "R13 the run that etcd confirmed is forgotten like others": Mutation(
            stores.Bounds(copies=0, boots=3, outages=1, writes=0, elections=0, window=1), "S2"
        ),
        "R13 only what is known to be confirmed is kept": Mutation(
            stores.Bounds(copies=0, boots=3, outages=1, writes=0, elections=0, window=1), "S2"
        ),
        "R13 marks are not compared": Mutation(stores.Bounds(boots=1, marks=1), "I5"),
        stores.SAME_RUN: Mutation(stores.Bounds(), "I5"),
    },
    {
        "copies, etcd away": stores.Bounds(outages=1, boots=3, writes=1),
        "few runs remembered, more restarts": stores.Bounds(boots=3, writes=1, window=1),
        "marks, two writes": stores.Bounds(boots=1, marks=1),
        "two copies": stores.Bounds(copies=2, boots=3, writes=1),
    },
)
FRESHNESS = Suite(
    "freshness",
    freshness.Freshness,
    freshness.initial,
    {"stale reads": freshness.Bounds()},
    {
        "R8 healthy is taken for fresh": Mutation(freshness.Bounds(), "R8"),
        "R8 a leader that is not active yet says fresh": Mutation(freshness.Bounds(), "R8"),
        "R8 any beat is taken for fresh": Mutation(freshness.Bounds(), "R8"),
        "R8 the commit index is not compared": Mutation(freshness.Bounds(), "R8"),
        "R8 the age counts from receipt": Mutation(freshness.Bounds(), "R8"),
        "R8 an active leader says fresh without its grants": Mutation(freshness.Bounds(), "R8"),
        "R8 a leader's age is zero from its no-op on": Mutation(freshness.Bounds(), "R8"),
    },
    {"three writes": freshness.Bounds(writes=3, ticks=4, beats=3)},
)
WATCHING = Suite(
    "watching",
    watching.Watching,
    watching.initial,
    {"watches": watching.Bounds(ends=1)},
    {
        "a watch goes on at the parent's latest version": Mutation(watching.Bounds(), "W"),
        "a watch goes on at a beginning of the child's own": Mutation(watching.Bounds(), "W"),
        "a watch resumes one entry late": Mutation(watching.Bounds(), "W"),
        "the client passes nothing over": Mutation(watching.Bounds(), "W"),
    },
    {"watches, two ends": watching.Bounds()},
)
SUITES = (STORES, FRESHNESS, WATCHING)


def _cases(suite: Suite, names: Iterable[str], commit: int) -> list[Any]:
    """Of the stores' model, which takes longest, the first ``commit`` at every commit and the others nightly."""
    marks = [pytest.mark.nightly] if suite is STORES else []
    return [pytest.param(suite, name, marks=marks if n >= commit else []) for n, name in enumerate(names)]


@pytest.mark.parametrize(("suite", "name"), [c for s in SUITES for c in _cases(s, s.baselines, 1)])
def test_every_state_keeps_the_invariants(suite: Suite, name: str) -> None:
    suite.check_baseline(name)


@pytest.mark.parametrize(("suite", "rule"), [c for s in SUITES for c in _cases(s, s.mutations, 3)])
def test_a_broken_rule_breaks_an_invariant(suite: Suite, rule: str) -> None:
    suite.check_mutation(rule)
