"""Who waits for an entry hears of it once: when it is committed, when it is lost, or when the time is up."""

from __future__ import annotations

from typing import Any, cast

from metastore.errors import OutcomeUnknown
from metastore.node.clients import ClientConnection
from metastore.operations import OK
from metastore.partition.waiters import FOREVER_NS, Waiters
from tests.unit.node.leading import Asker


def waiting(*entries: tuple[int, int]) -> tuple[Waiters, Asker]:
    """``(entry, deadline)`` each; the operations are numbered from 1 on."""
    waiters, asker = Waiters(), Asker()
    for number, (entry, deadline) in enumerate(entries, 1):
        tail: tuple[Any, ...] = (OK, entry)
        waiters.append((entry, cast(ClientConnection, asker), number, tail, deadline))
        waiters.until = min(waiters.until, deadline)
    return waiters, asker


def test_nobody_is_answered_before_the_entry_is_committed() -> None:
    waiters, asker = waiting((7, 50), (7, 40), (8, 60))
    waiters.answer(6)
    assert asker.results == []
    waiters.answer(7)
    assert asker.results == [[1, OK, 7], [2, OK, 7]]
    waiters.answer(8)
    assert asker.results[2:] == [[3, OK, 8]]
    waiters.answer(9)
    assert len(asker.results) == 3


def test_those_whose_time_is_up_hear_so_and_the_others_wait_on() -> None:
    waiters, asker = waiting((7, 50), (7, 40), (8, 60))
    waiters.end_late(40, OutcomeUnknown("late"))
    assert asker.results == []
    waiters.end_late(41, OutcomeUnknown("late"))
    assert [r[:2] for r in asker.results] == [[2, OutcomeUnknown.status]]
    assert waiters.until == 50
    waiters.answer(7)
    assert [r[0] for r in asker.results] == [2, 1]
    waiters.end_late(61, OutcomeUnknown("late"))
    assert [r[0] for r in asker.results] == [2, 1, 3]
    assert waiters.until == FOREVER_NS


def test_all_hear_when_leadership_is_lost_and_none_twice() -> None:
    waiters, asker = waiting((7, 50), (8, 60))
    waiters.end(OutcomeUnknown("lost"))
    waiters.answer(9)
    waiters.end(OutcomeUnknown("lost"))
    assert [r[:2] for r in asker.results] == [[1, OutcomeUnknown.status], [2, OutcomeUnknown.status]]
    assert waiters.until == FOREVER_NS
