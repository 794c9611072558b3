"""The judge of stale reads tells what may be from what may not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkers.history import Operation
from tests.checkers.staleness import MS, StaleRead, check_read


def op(kind: str, began: int, ended: int, version: int, value: str = "", outcome: str = "ok") -> Operation:
    return Operation(0, "k", kind, began * MS, ended * MS, outcome, value, version)


def read(at: int, value: str, version: int, age_ms: int | None, **asked: Any) -> StaleRead:
    return StaleRead("k", at * MS, at * MS + 1, value, version, age_ms, **asked)


OPS = [
    op("put", 0, 10, 3, "a"),
    op("put", 20, 30, 5, "b"),
    op("delete", 40, 50, 8),
    op("put", 60, 70, 9, "c"),
    op("put", 80, 90, 0, "d", "unknown"),
    op("put", 80, 90, 0, "e", "refused"),
]


@pytest.mark.parametrize(
    "found",
    [
        read(100, "c", 9, 0),
        read(100, "d", 12, 0),  # perhaps it was carried out
        read(100, "", 0, 40),  # 60 ms ago it was deleted
        read(100, "b", 5, 60),
        read(100, "a", 3, None),  # of some moment
        read(100, "", 0, None),
        read(100, "b", 5, None, at_least=5),
        read(100, "", 0, None, at_least=8),
        read(25, "b", 5, 0),  # before its writer heard that it was carried out
        read(100, "c", 9, 30, bound_ms=30),
    ],
)
def test_what_may_be(found: StaleRead) -> None:
    assert check_read(found, OPS) is None


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (read(100, "b", 5, 0), "lacks version 9, acknowledged 30 ms before"),
        (read(100, "b", 5, 29), "lacks version 9"),
        (read(100, "b", 5, 49), "lacks version 8"),
        (read(100, "a", 3, 60), "lacks version 5"),
        (read(35, "", 0, 5), "lacks version 5"),
        (read(100, "a", 3, None, at_least=5), "lacks version 5"),
        (read(100, "", 0, None, at_least=9), "lacks version 9"),
        (read(100, "e", 10, 0), "nobody had written"),
        (read(100, "x", 10, 0), "nobody had written"),
        (read(10, "b", 5, 0), "nobody had written"),
        (read(100, "c", 10, 0), "another version"),
        (read(100, "c", 9, 31, bound_ms=30), "older than was asked"),
        (read(100, "c", 9, None, bound_ms=30), "older than was asked"),
    ],
)
def test_what_may_not(found: StaleRead, why: str) -> None:
    assert why in (check_read(found, OPS) or "")
