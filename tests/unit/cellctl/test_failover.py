"""Which replica may go on alone, by what the records and the nodes say (R18)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cellctl.failover import check_target, longest, split_off, survivors
from metastore.errors import InvalidRequest
from metastore.layout import ConfigRecord

E1, E2 = 1 << 16, 2 << 16
MEMBERS = (("a", "sa"), ("b", "sb"), ("c", "sc"))
PARENT = ConfigRecord(3, 0, 1 << 64, E1, "a", MEMBERS)
CHILD = ConfigRecord(8, 1 << 63, 1 << 64, E2, "a", MEMBERS, parent=(3, E1, 41))


def part(epoch: int, index: int, p: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": p, "last_epoch": epoch, "last_index": index, "damaged": None, "parent": None, **more}


def view(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"partitions": list(parts)}


def test_children_are_known_by_records_and_by_copies() -> None:
    """Also by a copy that has nothing yet: somebody who applied the entry has told it."""
    statuses = {"a": None, "c": view(part(E1, 40), part(0, 0, 9, parent=[3, E1, 50]), part(E1, 7, 10))}
    configs = {3: ("c1", PARENT), 8: ("c1", CHILD)}
    assert split_off(3, configs, statuses) == {8: (E1, 41), 9: (E1, 50)}
    assert split_off(8, configs, statuses) == {}


@pytest.mark.parametrize(
    ("epoch", "index", "good"),
    [(E1, 40, False), (E1, 41, True), (E1, 60, True), (E2, 43, True), (1, 99, False)],
)
def test_an_heir_has_the_entry_that_split(epoch: int, index: int, good: bool) -> None:
    """In its log is enough: whoever leads applies what its log has. A log of a later epoch has what was committed."""
    parts = {"c": part(epoch, index)}
    if good:
        check_target(3, PARENT, "c", parts, {8: (E1, 41)})
        return
    with pytest.raises(
        InvalidRequest, match=r"partition 8's now, and a split is not undone; start one .*a, b"
    ):
        check_target(3, PARENT, "c", parts, {8: (E1, 41)})


def test_a_child_does_not_go_on_from_nothing() -> None:
    with pytest.raises(InvalidRequest, match="nothing of what it began with"):
        check_target(8, CHILD, "c", {"c": part(0, 0, 8)}, {})
    check_target(8, CHILD, "c", {"c": part(E1, 41, 8)}, {})


def test_a_damaged_copy_is_the_last_choice_and_none() -> None:
    parts = {"b": part(E1, 70, damaged="a row"), "c": part(E1, 40)}
    assert longest(parts) == "c"
    with pytest.raises(InvalidRequest, match="is damaged"):
        check_target(3, PARENT, "b", parts, {})


def test_whose_log_is_longest() -> None:
    """R3's order: what a later epoch has counts for more than any number of entries."""
    assert longest({"a": part(E1, 900), "b": part(E2, 41), "c": part(E2, 40)}) == "b"
    assert longest({"b": part(E2, 41), "a": part(E2, 41)}) == "a"


def test_who_survives_by_the_store_that_the_record_names() -> None:
    """Another store under a member's name has nothing of what that one acknowledged."""
    statuses: dict[str, dict[str, Any] | None] = {
        "a": {"store_id": "sa", **view(part(E1, 40), part(E1, 7, 10))},
        "b": {"store_id": "another", **view(part(E1, 99))},
        "c": None,
        "d": {"store_id": "sd", **view(part(E1, 40))},
    }
    assert survivors(3, MEMBERS, statuses) == {"a": part(E1, 40)}


def test_without_a_split_any_log_goes_on() -> None:
    check_target(3, replace(PARENT, leader=None), "c", {"c": part(0, 0)}, {})
