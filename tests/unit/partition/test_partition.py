"""A partition over its ports alone: what is answered, and when."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

from metastore.clock import now_ns
from metastore.errors import Moved, Overloaded, Unavailable
from metastore.keys import storage_key_of
from metastore.operations import NOT_FOUND, OK
from metastore.partition import reads
from tests.unit.partition.alone import Alone, Asker

T = TypeVar("T")


def result_of(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as done:
            found: T = done.value
            return found


def test_a_write_is_answered_when_it_is_committed_and_not_before() -> None:
    """R6, and reads see nothing of it until then."""
    alone = Alone()
    asker = alone.put("k")
    alone.partition.propose_pending(now_ns())
    alone.settle()
    assert (asker.results, alone.get("k").statuses()) == ([], [NOT_FOUND])
    alone.sync()
    assert asker.statuses() == [OK]
    assert alone.get("k").statuses() == [OK]
    assert alone.memory.waiting == 0


def test_what_gathers_is_one_entry_asked_for_once() -> None:
    alone = Alone()
    before = alone.slice.last_index
    askers = [alone.put(key) for key in "abc"]
    assert alone.proposing == 1
    assert alone.memory.waiting > 0
    alone.run()
    assert alone.slice.last_index == before + 1
    assert [asker.statuses() for asker in askers] == [[OK]] * 3


def test_only_so_many_writes_wait_and_the_others_hear_why() -> None:
    alone = Alone(max_pending=2)
    askers = [alone.put(key) for key in "abc"]
    assert [asker.statuses() for asker in askers] == [[], [], [Overloaded.status]]
    alone.slice.full = True
    alone.run()
    assert alone.put("d").statuses() == [Overloaded.status]


def test_a_key_of_another_range_is_elsewhere() -> None:
    alone = Alone()
    alone.partition.state.hi = storage_key_of("n", "k")[:8]
    assert alone.put("k").statuses() == [Moved.status]


def test_a_reader_that_does_not_read_gets_no_more() -> None:
    alone, asker = Alone(), Asker()
    asker.full = True
    assert alone.get("k", asker).statuses() == [Overloaded.status]


def test_listings_have_their_share_of_a_tick() -> None:
    alone = Alone()
    alone.put("a")
    alone.run()
    assert alone.list_all().statuses() == [OK]
    assert alone.listing_ns > 0
    alone.listing_ns = reads.MAX_LISTING_NS + 1
    assert alone.list_all().statuses() == [Overloaded.status]


def test_what_cannot_be_read_is_told_and_not_answered() -> None:
    """R14."""
    alone = Alone()
    alone.put("k")
    alone.run()
    alone.slice.rotten = True
    assert alone.get("k").statuses() == [Unavailable.status]
    assert alone.damaged == [5]


def test_who_waits_when_the_partition_leaves_is_sent_elsewhere() -> None:
    alone = Alone()
    proposed = alone.put("a")
    alone.partition.propose_pending(now_ns())
    waiting = alone.put("b")
    alone.partition.retire()
    assert waiting.statuses() == [Moved.status]
    assert proposed.results[0][1] != OK, "its outcome is not known"
    assert alone.memory.waiting == 0


@pytest.mark.parametrize("slices", [0, 1])
def test_a_digest_is_of_one_moment(slices: int) -> None:
    alone = Alone()
    alone.put("a")
    alone.run()
    work = alone.partition.digest()
    for _ in range(slices):
        next(work)
    if slices:
        alone.put("b")
        alone.run()
    assert (result_of(work) is None) == bool(slices)
