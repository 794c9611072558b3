"""Every bound of an operation, at it and one beyond."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.elements import MAX_FENCE_NAME_BYTES, MAX_TTL_MS, ONE_REQUEST, RAISE
from metastore.errors import InvalidRequest, TooLarge
from metastore.history import VERSIONS
from metastore.keys import MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, storage_key_of
from metastore.operations import (
    ADD,
    AT_LEAST,
    DELETE,
    GET,
    LIST,
    MAX_LIST_LIMIT,
    MAX_TXN_PARTS,
    PUT,
    TOUCH,
    TXN,
    VALUE,
    VERSION,
)
from metastore.wire.client_messages import CLIENT_ID_BYTES, MAX_OPS_PER_FRAME, MAX_TIMEOUT_MS, WATCH_KEYS
from metastore.wire.op_checks import check_op, check_request, check_watch, is_simple, op_shape

KEY = storage_key_of("n", "k")
MAX = (1 << 63) - 1


def op(kind: int, **changed: Any) -> list[Any]:
    shapes: dict[int, dict[str, Any]] = {
        GET: {"consistency": 0, "arg": None},
        PUT: {
            "seq": 1,
            "lowest_open": 0,
            "last_seen": 0,
            "condition": None,
            "value": b"",
            "type": "",
            "ttl": 0,
        },
        DELETE: {"seq": 1, "lowest_open": 0, "last_seen": 0, "condition": None},
        ADD: {"seq": 1, "lowest_open": 0, "last_seen": 0, "condition": None, "delta": 1},
        TXN: {"seq": 1, "lowest_open": 0, "last_seen": 0, "compares": [], "then": [], "otherwise": []},
        TOUCH: {"condition": None},
        LIST: {"end": b"", "limit": 1, "flags": 0, "consistency": 0, "arg": None},
    }
    made = {"id": 1, "kind": kind, "partition": 0, "storage_key": KEY, **shapes[kind]}
    assert set(changed) <= set(made)
    return list({**made, **changed}.values())


GOOD = [
    op(GET), op(PUT), op(DELETE), op(ADD), op(LIST),
    op(GET, consistency=1, arg=5), op(GET, consistency=AT_LEAST, arg=0),
    op(PUT, value=bytes(MAX_VALUE_BYTES)), op(PUT, type="x" * MAX_CONTENT_TYPE_BYTES),
    op(PUT, storage_key=storage_key_of("n" * 64, "k" * MAX_KEY_BYTES)),
    op(PUT, condition=0), op(PUT, condition=-1), op(PUT, condition=MAX - 1), op(PUT, seq=ONE_REQUEST - 1, lowest_open=MAX - 1),
    op(PUT, ttl=None), op(PUT, ttl=MAX_TTL_MS), op(TOUCH), op(TOUCH, condition=3), op(TXN),
    [*op(PUT), ["lock", 1]], [*op(PUT), ["lock", RAISE]], [*op(DELETE), ["x" * MAX_FENCE_NAME_BYTES, VERSIONS - 1]], [*op(ADD), ["l", 1]],
    op(TXN, compares=[[KEY, VERSION, 0, 0], [KEY, VALUE, 3, b""]] * (MAX_TXN_PARTS // 2)),
    [*op(TXN, then=[[GET, KEY], [PUT, KEY, b"", "", None], [DELETE, KEY], [ADD, KEY, 1]]), ["l", 1]],
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
    (op(PUT, ttl=MAX_TTL_MS + 1), f"ttl_ms {MAX_TTL_MS + 1}"),
    (op(PUT, ttl=True), "ttl_ms True"),
    (op(PUT, type="caf\u00e9"), "not ASCII"),
    (op(PUT, type="\ud800"), "content type"),
    (op(PUT, seq=-1), "-1 is not a count"),
    (op(PUT, seq=ONE_REQUEST), f"request number {ONE_REQUEST} is not within 0 and {ONE_REQUEST - 1}"),
    (
        op(TXN, seq=ONE_REQUEST, lowest_open=ONE_REQUEST),
        "the others say that a client makes a single request",
    ),
    (op(PUT, lowest_open=MAX), "is not a count below"),
    (op(DELETE, last_seen=MAX), "is not a count below"),
    (op(PUT, lowest_open="1"), "request id part"),
    (op(DELETE, last_seen=None), "request id part"),
    (op(PUT, condition=-2), "condition -2"),
    (op(PUT, condition=MAX), "condition"),
    (op(PUT, condition=True), "condition"),
    (op(ADD, delta=1 << 63), "delta"),
    (op(ADD, delta=-(1 << 63) - 1), "delta"),
    (op(ADD, delta=1.5), "delta"),
    (op(GET, storage_key=b"short"), "malformed storage key"),
    (op(GET, storage_key=b"no nul byte in it"), "malformed storage key"),
    (op(PUT, storage_key=KEY[:-1]), "malformed storage key"),
    (op(GET, storage_key=KEY + bytes(3000)), "malformed storage key"),
    (op(GET, storage_key="text"), "malformed storage key"),
    (op(GET, storage_key=b"........" + b"n" * 65 + b"\0k"), "malformed storage key"),
    (op(GET, storage_key=b"........" + b"\0k"), "malformed storage key"),
    (op(LIST, storage_key=None), "an end of a list"),
    (op(TOUCH, condition="1"), "condition"),
    ([*op(PUT), "lock"], "a fence is not"),
    ([*op(PUT), ["", 1]], "a fence's name"),
    ([*op(PUT), ["", RAISE]], "a fence's name"),
    ([*op(PUT), ["x", False]], "fencing token False"),
    ([*op(ADD), ["x", RAISE]], "fencing token 0"),
    ([*op(TXN), ["x", RAISE]], "fencing token 0"),
    ([*op(DELETE), ["\ud800", 0]], "fencing token 0"),
    ([*op(ADD), ["x" * (MAX_FENCE_NAME_BYTES + 1), 1]], "a fence's name"),
    ([*op(TXN), ["x", VERSIONS]], f"fencing token {VERSIONS} is not a version"),
    (op(TXN, compares=None), "compares"),
    (op(TXN, compares=[[KEY, 0, 0, 0]] * (MAX_TXN_PARTS + 1)), f"at most {MAX_TXN_PARTS}"),
    (op(TXN, compares=[[b"k", 0, 0, 0]]), "a compare is not"),
    (op(TXN, compares=[[KEY, 3, 0, 0]]), "target 3"),
    (op(TXN, compares=[[KEY, 0, 4, 0]]), "relation 4"),
    (op(TXN, compares=[[KEY, VALUE, 0, 1]]), "compared with bytes"),
    (op(TXN, compares=[[KEY, 0, 0, b""]]), "which is none"),
    (op(TXN, then=[[GET, KEY]] * (MAX_TXN_PARTS + 1)), "a branch of a transaction"),
    (op(TXN, then=[[LIST, KEY]]), "operation 5 of a transaction is malformed"),
    (op(TXN, then=[7]), "not an array"),
    (op(TXN, otherwise=[[PUT, KEY, "v", "", None]]), "not bytes"),
    (op(TXN, then=[[ADD, KEY, None]]), "delta"),
    (op(TXN, then=[[PUT, KEY, bytes(MAX_VALUE_BYTES), "", 0]] * 3), "over the limit"),
    (op(GET, consistency=3), "unknown consistency 3"),
    (op(GET, consistency=AT_LEAST), "at_least needs a version"),
    (op(GET, consistency=1, arg=-1), "consistency argument -1"),
    (op(LIST, limit=0), f"limit 0 is not within 1 and {MAX_LIST_LIMIT}"),
    (op(LIST, limit=MAX_LIST_LIMIT + 1), f"limit {MAX_LIST_LIMIT + 1}"),
    (op(LIST, end=None), "an end of a list"),
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


def test_the_bounds_of_a_request() -> None:
    me = bytes(CLIENT_ID_BYTES)
    for good in ([me, 1, []], [me, MAX_TIMEOUT_MS, [None] * MAX_OPS_PER_FRAME]):
        assert check_request(good) is None
    wrong: tuple[Any, ...] = (None, {}, [], [me, 1], [me, 1, None], [me, 1, [], 1], [me[1:], 1, []], [me + b"x", 1, []],
             ["x" * CLIENT_ID_BYTES, 1, []], [me, 0, []], [me, MAX_TIMEOUT_MS + 1, []], [me, True, []],
             [me, [[]], []])  # fmt: skip
    for bad in wrong:
        assert isinstance(check_request(bad), InvalidRequest), bad
    assert isinstance(check_request([me, 1, [None] * (MAX_OPS_PER_FRAME + 1)]), TooLarge)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 64) | st.binary(max_size=20) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "body",
    [None, [], [1, 0, b"", b"", None], ["1", 0, b"", b"", None, 0, b""], [1, None, b"", b"", None, 0, b""],
     [1, 0, "", b"", None, 0, b""], [1, 0, b"", bytes(4000), None, 0, b""], [1, 0, b"", b"", -1, 0, b""],
     [1, 0, b"", b"", None, 8, b""], [1, 0, b"", b"", None, True, b""], [1, 0, b"", b"", None, 0, ""]],
)  # fmt: skip
def test_watches_that_are_none(body: Any) -> None:
    assert isinstance(check_watch(body), InvalidRequest)
    assert check_watch([1, 0, b"a", b"b", 5, WATCH_KEYS, b"n"]) is None


@given(st.sampled_from([GET, PUT, DELETE, ADD, LIST, TXN, TOUCH]), st.lists(ANY, min_size=1, max_size=11))
def test_nothing_else_ever_happens(kind: int, rest: list[Any]) -> None:
    made = [1, kind, 0, *rest]
    if op_shape(made) is None:
        check_op(made)


def test_which_are_plain() -> None:
    plain = [o for o in GOOD if is_simple(o)]
    assert op(GET) in plain
    assert all(o in plain for o in GOOD if o[1] == PUT and len(o) == 11)
    assert {o[1] for o in plain} == {GET, PUT}


#: values that are wrong in some place, and those that are right in it
ODD: list[Any] = [None, True, False, -1, 0, 1, 2, 1.0, 2.0, MAX, MAX + 1, 1 << 64, "", "x" * 200, "\n", b"", KEY, KEY[:9], KEY + b"\xff",
       b"\0" * 8 + b"NS\0k", b"\0" * 8 + b"ns\0", b"\0" * 8 + b"n" * 65 + b"\0k", bytes(MAX_VALUE_BYTES + 1),
       [], MAX_TTL_MS + 1]  # fmt: skip


@pytest.mark.parametrize("good", [op(GET), op(PUT)], ids=["get", "put"])
def test_what_is_plain_is_right(good: list[Any]) -> None:
    for at in range(len(good)):
        for value in ODD:
            made = [*good[:at], value, *good[at + 1 :]]
            if is_simple(made):
                assert op_shape(made) is None
                assert check_op(made) is None
    others: tuple[Any, ...] = (None, {}, [], good[:-1], tuple(good))
    for other in others:
        assert not is_simple(other)
