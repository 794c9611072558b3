"""What is split off while something is done to all partitions gets it too."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cellctl.generations import until_unchanged, with_children
from metastore.layout import ConfigRecord

MEMBERS = (("a", "sa"),)


def records(**parents: int | None) -> dict[int, tuple[str, ConfigRecord]]:
    """``p3=1``: partition 3 was split off 1."""
    return {
        int(name[1:]): (
            "c1",
            ConfigRecord(int(name[1:]), 0, 1, 1, None, MEMBERS, parent=None if p is None else (p, 1, 1)),
        )
        for name, p in parents.items()
    }


def test_what_was_split_off_meanwhile_belongs_to_it() -> None:
    """And what was split off that; not what was split off long ago, nor what others split."""
    before = records(p0=None, p1=None, p2=0)
    now = records(p0=None, p1=None, p2=0, p3=0, p4=3, p5=1, p6=2)
    assert with_children([0], before, now) == {0, 3, 4}
    assert with_children([1, 2], before, now) == {1, 2, 5, 6}
    assert with_children(list(before), before, now) == set(now)
    assert with_children([0], before, before) == {0}


@pytest.mark.parametrize("grows", [[], [{3}], [{3}, {4, 5}], [{3}, {4}, {5}]])
def test_passes_go_on_until_one_finds_nothing_new(grows: list[set[int]]) -> None:
    there, passes, left = {0, 1}, [], list(grows)

    def carry_out(partitions: Iterable[int]) -> None:
        passes.append(set(partitions))
        if left:
            there.update(left.pop(0))

    done = until_unchanged(lambda: frozenset(there), carry_out)
    assert done == passes[-1] == there, "the last whole pass was over all that there are"
    assert len(passes) == len(grows) + 1
