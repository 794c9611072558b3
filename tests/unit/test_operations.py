"""The description of operations: what is made from it, held to what the protocol says in words, and to the operations in bytes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from metastore import elements as e
from metastore import keys
from metastore import operations as o
from metastore.client import encoding
from metastore.keys import storage_key_of
from metastore.operations import ADD, DELETE, GET, LIST, OPERATIONS, PUT, RENAME, TOUCH, TXN
from metastore.wire import client_messages
from metastore.wire.answer_checks import check_answer
from metastore.wire.op_checks import check_op, is_simple, op_shape
from metastore.wire.versions import client_versions
from tests.golden import wire

A, B, C = (storage_key_of("n", f"d/{name}") for name in "abc")
WRITE = (1, 0, 0)
#: [compare, part, part]: a transaction of three keys
PARTS = [
    [[A, o.VALUE, 0, b"12345"], [C, o.VERSION, 0, 1]],
    [[PUT, B, b"123", "", None], [GET, A]],
    [[DELETE, C], [ADD, A, 1]],
]
BIG_TXN = [1, TXN, 0, A, *WRITE, *PARTS]
READING = [1, TXN, 0, A, *WRITE, [[B, o.VERSION, 0, 1]], [[GET, A]], []]


def test_the_protocol_in_words_names_the_elements_of_the_description() -> None:
    lines = re.findall(
        r"^    \[id, ([A-Z]+), +partition, (.*)\]$", client_messages.__doc__ or "", re.MULTILINE
    )
    told = {kind: re.sub(r"\[[^]]*\]", "list", elements).split(", ") for kind, elements in lines}
    assert {name.lower() for name in told} == set(o.BY_NAME)
    for name, elements in told.items():
        fields = [f.name for f in OPERATIONS[getattr(o, name)].all_fields if f.name != "fence"]
        spoken = ["key" if word == "storage_key" else word for word in elements]
        assert len(spoken) == len(fields)
        assert all(word in ("list", f) for word, f in zip(spoken, fields, strict=True)), name


def test_kinds_and_positions_are_what_they_always_were() -> None:
    """They are on the wire and in the log: a description that moves one is another protocol."""
    kinds = {"get": 1, "put": 2, "delete": 3, "add": 4, "list": 5, "txn": 6, "touch": 7, "rename": 9}
    assert {op.name: op.kind for op in OPERATIONS.values()} == kinds
    assert {op.name: op.lengths for op in OPERATIONS.values()} == {
        "get": (6, 6), "put": (11, 12), "delete": (8, 9), "add": (9, 10), "list": (9, 10), "txn": (10, 11), "touch": (5, 5),
        "rename": (10, 11),
    }  # fmt: skip
    assert (o.SEQ_AT, o.LOWEST_OPEN_AT, o.LAST_SEEN_AT, o.CONDITION_AT, o.TOUCH_CONDITION_AT) == (
        4,
        5,
        6,
        7,
        4,
    )
    assert (o.VALUE_AT, o.CONTENT_TYPE_AT, o.TTL_MS_AT, o.DELTA_AT) == (8, 9, 10, 8)
    assert (o.COMPARES_AT, o.THEN_AT, o.OTHERWISE_AT) == (7, 8, 9)
    assert (o.START_AT, o.END_AT, o.FLAGS_AT, o.WANTED_AT) == (3, 4, 6, 9)
    assert o.CONSISTENCY_AT == {GET: 4, LIST: 7}
    assert o.FENCE_AT == {PUT: 11, DELETE: 8, ADD: 9, TXN: 10, RENAME: 10}
    assert (o.TO_AT, o.TO_CONDITION_AT) == (8, 9)
    assert (o.STATUS_AT, o.INDEX_AT) == (1, 3)
    assert (o.PART_KEY_AT, o.PART_VALUE_AT, o.PART_TTL_MS_AT) == (1, 2, 4)
    assert {kind: 1 + len(fields) for kind, fields in o.PARTS.items()} == {GET: 2, PUT: 5, DELETE: 2, ADD: 3}


def test_a_build_speaks_the_version_that_its_newest_operation_came_with() -> None:
    """An older peer is told so, and refuses or is refused, before it meets an operation that it does not know."""
    assert client_versions().highest == max(op.since for op in OPERATIONS.values())
    assert all(client_versions().lowest <= op.since for op in OPERATIONS.values())
    assert {op.name for op in OPERATIONS.values() if op.since == 1} >= {
        "get",
        "put",
        "delete",
        "add",
        "list",
        "txn",
        "touch",
    }


@pytest.mark.parametrize("name", wire.OPS)
def test_every_operation_in_bytes_is_one_of_the_description(name: str) -> None:
    op = wire.OPS[name]
    assert op_shape(op) is None
    assert check_op(op) is None
    assert o.keys_of(op)[0] == op[o.KEY_AT]
    assert o.size_of(op) >= o.OP_BYTES + len(op[o.KEY_AT])
    assert not (o.is_read(op) and o.is_write(op))
    assert o.is_read(op) or o.is_write(op) or op[o.KIND_AT] == TOUCH


@pytest.mark.parametrize("name", wire.ANSWERS)
def test_every_answer_in_bytes_is_one_of_the_description(name: str) -> None:
    of, tail = wire.ANSWERS[name]
    assert check_answer(wire.OPS[of], [7, *tail]) == ""


def test_the_keys_of_an_operation_are_all_that_it_names() -> None:
    assert o.keys_of([1, GET, 0, A, 0, None]) == [A]
    assert o.keys_of([1, LIST, 0, A, B, 9, 0, 0, None]) == [A]
    assert o.keys_of(BIG_TXN) == [A, A, C, B, A, C, A]
    assert o.keys_of([1, RENAME, 0, A, *WRITE, None, B, None]) == [A, B]
    assert {TXN} == o.COMPOUND
    assert {TXN, RENAME} == o.MANY_KEYS == o.WEIGHED


def test_what_is_a_read_needs_no_entry() -> None:
    assert o.is_read(READING)
    assert not o.is_read([*READING, ["lock", 3]])  # the fence is looked at while an entry is made
    assert not o.is_read(BIG_TXN)
    assert o.is_read([1, LIST, 0, A, B, 9, 0, 0, None])
    assert not o.is_read([1, TOUCH, 0, A, None])
    assert not o.is_write([1, TOUCH, 0, A, None])


@pytest.mark.parametrize(
    ("consistency", "local"), [(o.LINEARIZABLE, False), (o.STALE, True), (o.AT_LEAST, True)]
)
def test_only_a_read_that_is_not_linearizable_is_for_any_replica(consistency: int, local: bool) -> None:
    assert o.is_local([1, GET, 0, A, consistency, 3]) == local
    assert o.is_local([1, LIST, 0, A, B, 9, 0, consistency, 3]) == local
    assert not o.is_local([1, TOUCH, 0, A, consistency])
    assert not o.is_local(READING)


def test_what_adds_data_may_be_refused_for_want_of_room() -> None:
    assert o.adds([1, PUT, 0, A, *WRITE, None, b"", "", None])
    assert o.adds([1, ADD, 0, A, *WRITE, None, 1])
    assert o.adds(BIG_TXN)
    assert not o.adds([1, DELETE, 0, A, *WRITE, None])
    assert not o.adds(READING)
    assert not o.adds([1, TXN, 0, A, *WRITE, [], [[DELETE, A], [GET, B]], []])


def test_sizes_count_keys_and_values() -> None:
    n = o.OP_BYTES
    assert o.size_of([1, GET, 0, A, 0, None]) == n + len(A)
    assert o.size_of([1, PUT, 0, A, *WRITE, None, b"12345", "", None]) == n + len(A) + 5
    assert o.size_of(BIG_TXN) == 7 * n + 7 * len(A) + 5 + 3
    assert o.work_of([1, PUT, 0, A, *WRITE, None, b"", "", None]) == (1, 0)
    assert o.work_of([1, RENAME, 0, A, *WRITE, None, B, None]) == (2, keys.MAX_VALUE_BYTES)
    assert o.work_of(BIG_TXN) == (5, o.MAX_TXN_READ_BYTES)
    assert o.work_of([1, TXN, 0, A, *WRITE, [], [[DELETE, A]], []]) == (2, 0)


@pytest.mark.parametrize(
    ("op", "tail", "size"),
    [
        ([1, GET, 0, A, 0, None], [0, b"x" * 30, 0], 30),
        ([1, GET, 0, A, 0, None], [1, 0], 0),
        ([1, GET, 0, A, 0, None], [7, "no", {"record": b"x"}], 0),
        ([1, LIST, 0, A, B, 9, 0, 0, None], [0, [[b"kk", b"x" * 30], [b"k", 7]], None, 0, 7], 2 + 30 + 1 + 8),
        (BIG_TXN, [0, True, 5, [[0, 3, True], [0, b"x" * 30], [1]]], 30),
        ([1, TOUCH, 0, A, None], [0, 3, 0, 9], 0),
    ],
)
def test_the_size_of_an_answer_is_that_of_its_records(op: list[Any], tail: list[Any], size: int) -> None:
    assert o.answer_size(op, [1, *tail]) == size


def test_what_clients_make_is_of_the_description() -> None:
    made = [
        encoding.get_op(A, o.STALE, 5),
        encoding.touch_op(A, 3),
        encoding.list_op(A, B, 9, o.KEYS_ONLY, 0, None, b""),
        encoding.list_op(A, B, 9, 0, 0, None, b"n\0"),
        encoding.write_op(PUT, A, [None, b"v", "text/plain", 5], ("lock", e.RAISE)),
        encoding.write_op(DELETE, A, [3], None),
        encoding.write_op(ADD, A, [None, 2], ("lock", 9)),
        encoding.write_op(TXN, A, PARTS, ("lock", 9)),
        encoding.write_op(RENAME, A, [3, B, o.ABSENT], None),
    ]
    assert {op[o.KIND_AT] for op in made} == set(OPERATIONS)
    for op in made:
        assert op_shape(op) is None
        assert check_op(op) is None


BOUNDS: list[Any] = [
    None, True, 1.0, "text", "caf\u00e9", "x" * 128, [], A, B[:9], A + b"\xff", b"x" * (keys.MAX_VALUE_BYTES + 1),
    *(at + by for at in (0, e.ONE_REQUEST, e.COUNT_END, e.I64_END, e.U64_END, e.MAX_TTL_MS) for by in (-2, -1, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("name", ["get", "put", "put-absent"])
def test_what_is_plain_is_what_the_description_lets_pass(name: str) -> None:
    """``is_simple`` has its bounds by hand, for speed: at each bound of each element it lets nothing pass that the table would
    not."""
    for at in range(len(wire.OPS[name])):
        for value in BOUNDS:
            op = list(wire.OPS[name])
            op[at] = value
            if is_simple(op):
                assert op_shape(op) is None, op
                assert check_op(op) is None, op
