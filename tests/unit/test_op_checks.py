"""Every bound of an operation, at it and one beyond."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.errors import InvalidRequest, TooLarge
from metastore.keys import MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, storage_key
from metastore.wire.client_messages import ADD, AT_LEAST, DELETE, GET, LIST, MAX_LIST_LIMIT, PUT
from metastore.wire.op_checks import check_op, op_shape

KEY = storage_key("n", "k")
MAX = (1 << 63) - 1


def op(kind: int, **changed: Any) -> list[Any]:
    shapes: dict[int, dict[str, Any]] = {
        GET: {"consistency": 0, "arg": None},
        PUT: {"seq": 1, "floor": 0, "stamp": 0, "condition": None, "value": b"", "type": "", "ttl": 0},
        DELETE: {"seq": 1, "floor": 0, "stamp": 0, "condition": None},
        ADD: {"seq": 1, "floor": 0, "stamp": 0, "condition": None, "delta": 1},
        LIST: {"end": b"", "limit": 1, "flags": 0, "consistency": 0, "arg": None},
    }
    made = {"id": 1, "kind": kind, "partition": 0, "lkey": KEY, **shapes[kind]}
    assert set(changed) <= set(made)
    return list({**made, **changed}.values())


GOOD = [
    op(GET), op(PUT), op(DELETE), op(ADD), op(LIST),
    op(GET, consistency=1, arg=5), op(GET, consistency=AT_LEAST, arg=0),
    op(PUT, value=bytes(MAX_VALUE_BYTES)), op(PUT, type="x" * MAX_CONTENT_TYPE_BYTES),
    op(PUT, lkey=storage_key("n" * 64, "k" * MAX_KEY_BYTES)),
    op(PUT, condition=0), op(PUT, condition=-1), op(PUT, condition=MAX - 1), op(PUT, seq=MAX - 1),
    op(ADD, delta=-(1 << 63)), op(ADD, delta=MAX), op(LIST, limit=MAX_LIST_LIMIT),
]  # fmt: skip


@pytest.mark.parametrize("good", GOOD, ids=lambda o: f"{o[1]}")
def test_what_is_right(good: list[Any]) -> None:
    assert op_shape(good) is None
    assert check_op(good) is None


BAD = [
    (op(PUT, value=bytes(MAX_VALUE_BYTES + 1)), f"{MAX_VALUE_BYTES + 1} bytes is over the limit"),
    (op(PUT, value="text"), "not bytes"),
    (op(PUT, type="x" * (MAX_CONTENT_TYPE_BYTES + 1)), "content type"),
    (op(PUT, type=b"x"), "content type"),
    (op(PUT, ttl=-1), "ttl_ms -1"),
    (op(PUT, ttl=1), "not served by this version"),
    (op(PUT, seq=-1), "-1 is not a count"),
    (op(PUT, seq=MAX), "is not a count below"),
    (op(PUT, floor="1"), "request id part"),
    (op(DELETE, stamp=None), "request id part"),
    (op(PUT, condition=-2), "condition -2"),
    (op(PUT, condition=MAX), "condition"),
    (op(PUT, condition=True), "condition"),
    (op(ADD, delta=1 << 63), "delta"),
    (op(ADD, delta=-(1 << 63) - 1), "delta"),
    (op(ADD, delta=1.5), "delta"),
    (op(GET, lkey=b"short"), "malformed storage key"),
    (op(GET, lkey=b"no nul byte in it"), "malformed storage key"),
    (op(PUT, lkey=KEY[:-1]), "malformed storage key"),
    (op(GET, lkey=KEY + bytes(3000)), "too long"),
    (op(GET, lkey="text"), "not bytes"),
    (op(GET, consistency=3), "unknown consistency 3"),
    (op(GET, consistency=AT_LEAST), "at_least needs a version"),
    (op(GET, consistency=1, arg=-1), "consistency argument -1"),
    (op(LIST, limit=0), f"limit 0 is not within 1 and {MAX_LIST_LIMIT}"),
    (op(LIST, limit=MAX_LIST_LIMIT + 1), f"limit {MAX_LIST_LIMIT + 1}"),
    (op(LIST, end=None), "end of a list"),
    (op(LIST, flags="1"), "flags"),
]


@pytest.mark.parametrize(("bad", "why"), BAD, ids=[why for _, why in BAD])
def test_what_is_wrong_is_told(bad: list[Any], why: str) -> None:
    assert op_shape(bad) is None
    error = check_op(bad)
    assert isinstance(error, InvalidRequest | TooLarge)
    assert why in error.message
    assert error.outcome == "none"


@pytest.mark.parametrize(
    "shape", [None, 7, {}, [], [1, 1], [1, 99, 0], [1, True, 0, KEY, 0, None], [1, GET, 0], [*op(GET), 1],
              [-1, *op(GET)[1:]], ["1", *op(GET)[1:]], [1, GET, None, KEY, 0, None]],
)  # fmt: skip
def test_shapes_that_are_no_operation(shape: Any) -> None:
    assert isinstance(op_shape(shape), InvalidRequest)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 64) | st.binary(max_size=20) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from([GET, PUT, DELETE, ADD, LIST]), st.lists(ANY, min_size=1, max_size=11))
def test_nothing_else_ever_happens(kind: int, rest: list[Any]) -> None:
    made = [1, kind, 0, *rest]
    if op_shape(made) is None:
        check_op(made)
