"""Deadlines: told once, renewed by touches, begun anew, never late for being many."""

from __future__ import annotations

from metastore.partition import expiry
from metastore.partition.expiry import MS, Deadlines

A, B = b"a", b"b"


def test_due_once_and_only_if_nothing_changed() -> None:
    d = Deadlines()
    d.start(0, {})
    d.changed(0, A, (1, 100))
    d.changed(0, B, (2, 100))
    assert d.due(99 * MS, 9) == []
    d.renew(50 * MS, B, (2, 100))
    assert d.due(100 * MS, 9) == [(A, 1)]
    assert d.due(100 * MS, 9) == []
    assert d.is_over(100 * MS, A, 1)
    assert not d.is_over(100 * MS, A, 2)
    d.renew(100 * MS, A, (1, 100))
    assert not d.is_over(100 * MS, A, 1), "touched before it went"
    assert d.due(150 * MS, 9) == [(B, 2)]
    d.changed(150 * MS, A, None)
    assert d.due(999 * MS, 9) == []


def test_time_that_does_not_count() -> None:
    d = Deadlines()
    d.start(0, {A: (1, 100)})
    assert d.due(90 * MS, 9) == []
    d.add_time(1000 * MS)
    assert d.due(1099 * MS, 9) == []
    assert d.due(1100 * MS, 9) == [(A, 1)]


def test_a_beginning_is_spread_over_many_calls(monkeypatch: object) -> None:
    """What changes meanwhile counts as it is now."""
    before, expiry.BEGIN_AT_ONCE = expiry.BEGIN_AT_ONCE, 10
    try:
        timed = {b"%d" % i: (i, 100) for i in range(35)}
        d = Deadlines()
        d.start(0, timed)
        del timed[b"30"]
        d.changed(1, b"30", None)
        timed[b"31"] = (99, 500)
        d.changed(1, b"31", timed[b"31"])
        assert d
        told = [storage_key for now in range(4) for storage_key, _ in d.due((200 + now) * MS, 100)]
        assert sorted(told, key=int) == [b"%d" % i for i in range(35) if i not in (30, 31)]
        assert d.due(502 * MS, 9) == [(b"31", 99)]
    finally:
        expiry.BEGIN_AT_ONCE = before


def test_touches_do_not_pile_up() -> None:
    d = Deadlines()
    d.start(0, {A: (1, 1000)})
    for now in range(100_000):
        d.renew(now, A, (1, 1000))
    assert len(d._heap) < 2000
