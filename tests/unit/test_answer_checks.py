"""What a server may answer, each by hand: a right answer of each kind, and what is nearly one (metastore.wire.answer_checks)."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.elements import is_count
from metastore.errors import ConditionFailed
from metastore.history import COUNT_BITS, MAX_GENERATIONS
from metastore.operations import ADD, DELETE, EXPIRE, GET, KEYS_ONLY, LINEARIZABLE, LIST, PUT, TOUCH, TXN
from metastore.records import HEAD_BYTES, pack_record
from metastore.wire.answer_checks import check_answer, check_changes, check_error, check_events
from metastore.wire.client_messages import WATCH_KEYS

RECORD = pack_record(7, 7, b"value")
ROTTEN = RECORD[:-1] + b"?"
P = b"\x11" * 8 + b"n\0d/"
LAST = (MAX_GENERATIONS << COUNT_BITS) - 1

READ = [1, GET, 0, P + b"k", LINEARIZABLE, None]
WRITE = [1, PUT, 0, P + b"k", 1, 0, 0, None, b"v"]
TAKE = [1, DELETE, 0, P + b"k", 1, 0, 0, None]
COUNT = [1, ADD, 0, P + b"k", 1, 0, 0, None, 2]
RENEW = [1, TOUCH, 0, P + b"k", None]
ROWS = [1, LIST, 0, P, P + b"\xff", 3, 0, LINEARIZABLE, None]
KEYS = [*ROWS[:6], KEYS_ONLY, *ROWS[7:]]
PARTS = [[GET, P], [PUT, P], [DELETE, P], [ADD, P]]
BOTH = [1, TXN, 0, P, 1, 0, 0, [], PARTS, PARTS[:1]]


def rows(*keys: bytes, following: bytes | None = None) -> list[Any]:
    return [1, 0, [[P + key, RECORD] for key in keys], following, 0, 9]


RIGHT: list[tuple[list[Any], list[Any]]] = [
    (READ, [1, 0, RECORD, 0]),
    (READ, [1, 0, RECORD, None]),
    (READ, [1, 1, None]),
    (READ, [1, 1, LAST]),
    (RENEW, [1, 1, None]),
    (WRITE, [1, 0, LAST, LAST, False]),
    (TAKE, [1, 0, 8, 12]),
    (COUNT, [1, 0, 8, 12, -(1 << 63)]),
    (RENEW, [1, 0, 7, 0, 5000]),
    (ROWS, rows()),
    (ROWS, rows(b"", b"a", b"b")),
    (ROWS, rows(b"a", b"b", following=P + b"b\0")),
    (ROWS, rows(following=P + b"\0")),
    (KEYS, [1, 0, [[P + b"a", 7]], None, 0, 9]),
    (BOTH, [1, 0, True, 12, [[0, RECORD], [0, 8, False], [0, 9], [0, 10, 4]]]),
    (BOTH, [1, 0, True, 12, [[1], [0, 8, False], [0, 9], [0, 10, 4]]]),
    (BOTH, [1, 0, False, 12, [[0, RECORD]]]),
    (WRITE, [1, ConditionFailed.status, "no", {"version": 3, "index": 9, "record": RECORD}]),
    (READ, [1, 77, "of a later version", {"anything": object}]),
]
WRONG: dict[str, tuple[list[Any], list[Any]]] = {
    "a record that is too short to be one": (READ, [1, 0, RECORD[: HEAD_BYTES - 1], 0]),
    "a record that is none": (READ, [1, 0, "text", 0]),
    "an age that no history reaches": (READ, [1, 0, RECORD, LAST + 1]),
    "an age that is true": (READ, [1, 0, RECORD, True]),
    "an age below none": (READ, [1, 0, RECORD, -1]),
    "not found, to a write": (WRITE, [1, 1, None]),
    "a version that no history reaches": (WRITE, [1, 0, LAST + 1, 12, True]),
    "an index that no history reaches": (WRITE, [1, 0, 8, LAST + 1, True]),
    "created, by a number": (WRITE, [1, 0, 8, 12, 1]),
    "a deletion of no version": (TAKE, [1, 0, None, 12]),
    "a counter that is too large": (COUNT, [1, 0, 8, 12, 1 << 63]),
    "a lifetime below none": (RENEW, [1, 0, 7, 0, -1]),
    "more rows than were asked for": (ROWS, rows(b"a", b"b", b"c", b"d")),
    "a row twice": (ROWS, rows(b"a", b"a")),
    "rows backwards": (ROWS, rows(b"b", b"a")),
    "a row before the range": (ROWS, [1, 0, [[P[:-1], RECORD]], None, 0, 9]),
    "a row behind the range": (ROWS, [1, 0, [[P + b"\xff", RECORD]], None, 0, 9]),
    "a row that is too short": (ROWS, [1, 0, [[P + b"a", RECORD[: HEAD_BYTES - 1]]], None, 0, 9]),
    "a record where a version was asked for": (KEYS, rows(b"a")),
    "a listing that goes on at its last row": (ROWS, rows(b"a", following=P + b"a")),
    "a listing that goes on before its last row": (ROWS, rows(b"b", following=P + b"a")),
    "a listing that goes on where it began": (ROWS, rows(following=P)),
    "a part too few": (BOTH, [1, 0, True, 12, [[0, RECORD], [0, 8, False], [0, 9]]]),
    "a part too many": (BOTH, [1, 0, False, 12, [[0, RECORD], [0, 9]]]),
    "the parts of the other branch": (BOTH, [1, 0, True, 12, [[0, RECORD]]]),
    "a part that is not found, of a write": (BOTH, [1, 0, True, 12, [[0, RECORD], [1], [0, 9], [0, 10, 4]]]),
    "a rotten record in a transaction": (BOTH, [1, 0, False, 12, [[0, ROTTEN]]]),
    "a text where a status was due": (READ, [1, "0", RECORD, 0]),
}


@pytest.mark.parametrize(("op", "result"), RIGHT)
def test_what_is_right(op: list[Any], result: list[Any]) -> None:
    assert check_answer(op, result) == ""


@pytest.mark.parametrize("what", WRONG)
def test_what_is_nearly_right(what: str) -> None:
    assert check_answer(*WRONG[what])


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0, True), (LAST, True), (LAST + 1, False), (-1, False), (True, False), (1.0, False)],
)
def test_what_can_be_a_version(value: Any, counts: bool) -> None:
    assert is_count(value) == counts
    assert (check_events([1, value, []]) == "") == counts


@pytest.mark.parametrize(
    "detail",
    [
        {"version": LAST + 1},
        {"leader": 7},
        {"epoch": 1 << 63},
        {"retry_after_s": float("nan")},
        {"nodes": ["a", 2]},
        {"spent": 1},
    ],
)
def test_the_detail_of_an_error(detail: dict[str, Any]) -> None:
    assert (
        check_error(3, "no", {"version": LAST, "leader": None, "epoch": 1, "nodes": ["a"], "later": 7}) == ""
    )
    assert next(iter(detail)) in check_error(3, "no", detail)


@pytest.mark.parametrize(
    ("changed", "good"),
    [
        ([], True),
        ([[PUT, P + b"a", 4, RECORD], [DELETE, P + b"a", 5, None], [EXPIRE, P + b"b", 9, None]], True),
        ([[PUT, P + b"a", 4, RECORD], [PUT, P + b"b", 4, RECORD]], False),
        ([[PUT, P + b"a", 5, RECORD], [PUT, P + b"b", 4, RECORD]], False),
        ([[PUT, P + b"a", 10, RECORD]], False),
        ([[PUT, P + b"a", 0, RECORD]], False),
        ([[PUT, P[:-1] + b"0", 4, RECORD]], False),  # another prefix, in the range
        ([[PUT, b"\x22" * 8 + P[8:], 4, RECORD]], False),  # the prefix, in another range
        ([[PUT, P + b"a", 4, None]], False),
        ([[PUT, P + b"a", 4, ROTTEN]], False),
        ([[DELETE, P + b"a", 4, RECORD]], False),
        ([[GET, P + b"a", 4, None]], False),
    ],
)
def test_what_a_watch_is_told(changed: list[Any], good: bool) -> None:
    """Told up to version 9."""
    watch = [0, b"\x11" * 8, b"\x12" * 8, None, 0, P[8:]]
    assert (check_changes(watch, 9, changed) == "") == good


def test_a_watch_of_keys_is_told_no_records() -> None:
    watch = [0, b"\x11" * 8, b"\x12" * 8, None, WATCH_KEYS, P[8:]]
    assert check_changes(watch, 9, [[PUT, P + b"a", 4, None]]) == ""
    assert check_changes(watch, 9, [[PUT, P + b"a", 4, RECORD]])
