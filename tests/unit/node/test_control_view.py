"""What etcd's records ask of one node, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metastore.layout import ConfigRecord, MoveRecord, first_epoch
from metastore.node.control.view import (
    PARENT_PATIENCE_NS,
    Copy,
    Parent,
    Place,
    differs,
    is_missing,
    is_to_join,
    is_withdrawn,
    leads_as_recorded,
    may_be_dropped,
    place_of,
    waits_for_parent,
)

MINE = ("f", "sf")
OTHERS = (("x", "sx"), ("y", "sy"), ("z", "sz"))
TERM1, TERM2 = first_epoch(1), first_epoch(2)
THEIRS = ConfigRecord(3, 0, 1 << 64, TERM2, "x", OTHERS)
OURS = replace(THEIRS, replicas=(MINE, *OTHERS[:2]))
JOINT = replace(THEIRS, joint=(MINE, *OTHERS[:2]))
#: the node's name with a store that it had before
OLD_STORE = replace(THEIRS, replicas=(("f", "s0"), *OTHERS[:2]))
TO_US, TO_OTHERS = MoveRecord(3, "c1", (MINE, *OTHERS[:2])), MoveRecord(3, "c1", OTHERS)
CANCELLED = replace(TO_US, cancel=True)


@pytest.mark.parametrize(
    ("config", "move", "open_", "aside", "place"),
    [
        (OURS, None, False, False, Place.HERE),
        (JOINT, None, False, False, Place.HERE),
        (THEIRS, None, False, False, Place.ELSEWHERE),
        (THEIRS, None, True, False, Place.ELSEWHERE),
        (OLD_STORE, None, True, False, Place.ELSEWHERE),
        (THEIRS, TO_US, False, False, Place.HERE),
        (THEIRS, TO_OTHERS, False, False, Place.ELSEWHERE),
        (THEIRS, CANCELLED, False, False, Place.ELSEWHERE),
        (OURS, None, False, True, Place.ASIDE),
        (OURS, None, True, True, Place.HERE),
        (THEIRS, None, False, True, Place.ELSEWHERE),
        (THEIRS, TO_US, False, True, Place.ASIDE),
    ],
)
def test_where_a_partition_is(
    config: ConfigRecord, move: MoveRecord | None, open_: bool, aside: bool, place: Place
) -> None:
    assert place_of(config, move, MINE, open_, aside) is place


@pytest.mark.parametrize(
    ("config", "move", "joins", "withdrawn"),
    [
        (THEIRS, TO_US, True, False),
        (THEIRS, CANCELLED, False, True),
        (THEIRS, None, False, True),
        (OURS, TO_US, False, False),
        (OURS, CANCELLED, False, False),
        (JOINT, None, False, False),
    ],
)
def test_who_joins_and_who_does_not_any_more(
    config: ConfigRecord, move: MoveRecord | None, joins: bool, withdrawn: bool
) -> None:
    assert (is_to_join(config, move, MINE), is_withdrawn(config, move, MINE)) == (joins, withdrawn)


@pytest.mark.parametrize(
    ("config", "revision", "copy", "may"),
    [
        (THEIRS, 9, Copy(TERM1, 9, False), True),
        (THEIRS, 9, Copy(TERM2, 9, False), True),
        (THEIRS, 9, Copy(TERM2 + 1, 9, False), True),
        (THEIRS, 9, Copy(first_epoch(3), 9, False), False),
        (THEIRS, 8, Copy(TERM1, 9, False), False),
        (THEIRS, 9, Copy(TERM1, 9, True), False),
        (OURS, 9, Copy(TERM1, 9, False), False),
        (JOINT, 9, Copy(TERM1, 9, False), False),
    ],
)
def test_which_copy_may_go(config: ConfigRecord, revision: int, copy: Copy, may: bool) -> None:
    """R10: not one that has sealed a later term, nor by a record older than what it goes by."""
    assert may_be_dropped(config, revision, MINE, copy) is may


MEMBER, LEARNER = Parent(True, False), Parent(False, False)
SOON, LATE = PARENT_PATIENCE_NS - 1, PARENT_PATIENCE_NS


@pytest.mark.parametrize(
    ("pending", "held", "parent", "waited_ns", "waits"),
    [
        (True, False, None, LATE, True),
        (True, True, Parent(True, True), LATE, True),
        (False, False, MEMBER, 0, True),
        (False, False, MEMBER, SOON, True),
        (False, False, MEMBER, LATE, False),
        (False, False, LEARNER, 0, False),
        (False, False, Parent(True, True), 0, False),
        (False, True, MEMBER, 0, False),
        (False, False, None, 0, False),
    ],
)
def test_which_child_waits_for_its_parent(
    pending: bool, held: bool, parent: Parent | None, waited_ns: int, waits: bool
) -> None:
    """R18: what was split off and is not durable is never opened; what may still come by the parent's log is waited for."""
    assert waits_for_parent(pending, held, parent, waited_ns) is waits


@pytest.mark.parametrize(
    ("replicas", "gone", "durable", "missing"),
    [
        (("f", "x"), False, False, True),
        (None, False, False, True),
        (("x", "y"), False, False, False),
        (("f", "x"), True, False, False),
        (("f", "x"), False, True, False),
        (None, False, True, False),
    ],
)
def test_which_partition_is_missing(
    replicas: tuple[str, ...] | None, gone: bool, durable: bool, missing: bool
) -> None:
    assert is_missing("f", replicas, gone, durable) is missing


@pytest.mark.parametrize(
    ("config", "sealed", "active", "leads"),
    [
        (replace(OURS, leader="f"), TERM2, True, True),
        (replace(OURS, leader="f"), TERM2 + 3, True, True),
        (replace(OURS, leader="f"), TERM2, False, False),
        (replace(OURS, leader="f"), first_epoch(3), True, False),
        (replace(OURS, leader="f"), TERM1, True, False),
        (OURS, TERM2, True, False),
        (None, TERM2, True, False),
    ],
)
def test_whose_leader_key_is_put_back(
    config: ConfigRecord | None, sealed: int, active: bool, leads: bool
) -> None:
    """R12: that of the leader whom the record names, in the record's term, at whatever restart."""
    assert leads_as_recorded(config, sealed, active, "f") is leads


@pytest.mark.parametrize(
    ("usage", "published", "other"),
    [
        ({}, {}, False),
        ({"n": [100, 1000]}, {"n": [100, 1000]}, False),
        ({"n": [101, 1010]}, {"n": [100, 1000]}, False),
        ({"n": [102, 1000]}, {"n": [100, 1000]}, True),
        ({"n": [100, 1011]}, {"n": [100, 1000]}, True),
        ({"n": [99, 1000]}, {"n": [100, 1000]}, False),
        ({"n": [1, 1]}, {"n": [0, 0]}, True),
        ({"n": [0, 0]}, {}, True),
        ({}, {"n": [0, 0]}, True),
    ],
)
def test_what_is_published_anew(
    usage: dict[str, list[int]], published: dict[str, list[int]], other: bool
) -> None:
    assert differs(usage, published) is other
