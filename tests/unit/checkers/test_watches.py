"""The judge of watches tells what may be from what may not."""

from __future__ import annotations

import re

import pytest

from metastore.history import ResumePoint
from tests.checkers.watches import Change, Session, check_session, missing, version_at

LOW, HIGH = bytes(8) + b"n\0a", b"\x90" + bytes(7) + b"n\0b"
TRUTH = {
    LOW: [Change(1, b"1"), Change(4, None), Change(6, b"6")],
    HIGH: [Change(2, b"2"), Change(5, b"5"), Change(6, b"x")],
}
ALL = [(LOW, c) for c in TRUTH[LOW]] + [(HIGH, c) for c in TRUTH[HIGH]]
ORIGIN = bytes(8)
START = [(ORIGIN, ResumePoint(0))]
#: the upper half of the ring counts for itself
LEFT, RIGHT = (ORIGIN, ResumePoint(6)), (b"\x80" + bytes(7), ResumePoint(5))
END = [LEFT, RIGHT]


def test_positions() -> None:
    assert [version_at(END, k) for k in (LOW, HIGH)] == [6, 5]
    assert version_at([(b"\x10" + bytes(7), ResumePoint(9))], LOW) == 0


def test_what_may_be() -> None:
    assert check_session(Session(START, START), TRUTH) is None
    assert check_session(Session(START, END, ALL[:-1]), TRUTH) is None
    assert check_session(Session(START, END, ALL[3:5] + ALL[:3]), TRUTH) is None, "keys have no order"
    assert check_session(Session(END, [LEFT], ALL[-1:]), TRUTH) is None
    assert missing(Session(START, END), TRUTH) == 1
    assert missing(Session(START, [LEFT]), TRUTH) == 0


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (ALL, r"versions \[6\] were told, and are none"),
        (ALL[:-2], r"versions \[5\] were never told"),
        (ALL[1:-1], r"versions \[1\] were never told"),
        ([*ALL[:-1], ALL[0]], r"versions \[1\] were told more than once"),
        ([ALL[1], ALL[0], *ALL[2:-1]], r"told in the order \[4, 1, 6\]"),
        ([*ALL[:-1], (b"\x90strange", Change(1, b""))], "none of its changes"),
        ([(LOW, Change(1, b"another")), *ALL[1:-1]], r"versions \[1\] were never told"),
    ],
)
def test_what_may_not(seen: list[tuple[bytes, Change]], why: str) -> None:
    assert re.search(why, check_session(Session(START, END, seen), TRUTH) or "")
