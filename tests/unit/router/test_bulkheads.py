"""What a router holds is bounded, and given back whatever happens."""

from __future__ import annotations

import pytest

from metastore.config import RouterConfig
from metastore.errors import Overloaded
from router.bulkheads import MIB, SMALL_BYTES, Bulkheads, Hold


def test_each_bound() -> None:
    b = Bulkheads(
        RouterConfig(
            max_inflight=2,
            max_inflight_per_cell=2,
            max_held_mib=16,
            max_cell_mib=4,
            max_watches=2,
            max_watches_per_cell=1,
        )
    )
    with b.request() as first, b.request() as second:
        first.take(11 * MIB)
        second.take(SMALL_BYTES)
        with pytest.raises(Overloaded, match="max_held_mib"):
            second.take(MIB)  # the rest is for small ones
        second.force(5 * MIB - SMALL_BYTES)  # an answer that is there
        with pytest.raises(Overloaded, match="max_held_mib"), Hold(b) as third:
            third.take(1)
        with pytest.raises(Overloaded, match="max_inflight"), b.request():
            pass
    assert (b.requests, b.bytes) == (0, 0)
    with b.operation("c1", 3 * MIB):
        with pytest.raises(Overloaded, match="max_cell_mib") as failed, b.operation("c1", 2 * MIB):
            pass
        assert failed.value.detail["cell"] == "c1"
        b.share("c1").ops = 2
        with b.operation("c2", 2 * MIB):
            pass
        with pytest.raises(Overloaded, match="max_inflight_per_cell"), b.operation("c1", 0):
            pass
        b.share("c1").ops = 1
    with b.watch({"c1"}):
        with pytest.raises(Overloaded, match="max_watches_per_cell"), b.watch({"c2", "c1"}):
            pass
        assert b.share("c2").watches == 0, "nothing is held by who was refused"
        with b.watch({"c2"}), pytest.raises(Overloaded, match="max_watches"), b.watch(set()):
            pass
    assert {(s.ops, s.bytes, s.watches) for s in b.cells.values()} == {(0, 0, 0)}
    assert b.watches == 0
    assert set(b.refused) == {
        "max_held_mib",
        "max_inflight",
        "max_cell_mib",
        "max_inflight_per_cell",
        "max_watches_per_cell",
        "max_watches",
    }


def test_given_back_when_something_fails() -> None:
    b = Bulkheads(RouterConfig())

    def fail() -> None:
        with b.request() as hold, b.operation("c", 7), b.watch({"c"}):
            hold.take(100)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    share = b.share("c")
    assert (b.requests, b.bytes, b.watches, share.ops, share.bytes, share.watches) == (0,) * 6
