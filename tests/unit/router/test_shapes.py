"""Shapes: the schema that is told and the check that is made agree, on any value."""

from __future__ import annotations

import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.client.results import AddResult, PutResult, TouchResult
from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.history import Version
from metastore.operations import OPERATIONS as OPERATIONS_OF_CLIENTS
from metastore.operations import SINGLE
from metastore.records import Record
from router.api import bodies, parameters
from router.api.openapi import document
from router.api.operations import OPERATIONS
from router.api.shapes import (
    Base64,
    Choice,
    Const,
    EachOf,
    Flag,
    Integer,
    ListOf,
    Member,
    Number,
    Object,
    Param,
    Shape,
    Tagged,
    Text,
)
from router.problems import result_json

POINT = Object(
    {
        "x": Member(Integer(-5, 5), required=True),
        "label": Member(Text(1, 4, "[a-z]+", "small letters"), default="none"),
        "a": Member(Flag()),
        "b": Member(Number(0, 1)),
        "c": Member(Base64(6)),
    },
    one_of=(("a", "b"),),
    not_both=(("b", "c"),),
)
SHAPES: list[Shape] = [
    Integer(-3, 1 << 62),
    Number(0, 10),
    Flag(),
    Choice(("red", "green")),
    Text(1, 5, "[a-c]*|x", "a to c"),
    Const("only"),
    Base64(9),
    ListOf(Integer(0, 3), 3, 1),
    POINT,
    Tagged(
        "op",
        {
            "one": Object({"op": Member(Const("one"), required=True)}),
            "two": Object({"op": Member(Const("two"), required=True), "n": Member(Integer(0, 9))}),
        },
    ),
]
NAMES = st.sampled_from(["x", "label", "a", "b", "c", "op", "n", "zz"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.integers()
    | st.floats(-2, 12)
    | st.text(max_size=6)
    | st.sampled_from(["red", "only", "one", "two", "abc", "x", "AAAA", "AA==", "AAE=", "A", "abcabc"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=6,
)


def accepted(shape: Shape, value: Any) -> bool:
    try:
        shape.check(value, "it")
    except MetastoreError:
        return False
    return True


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
@given(value=VALUES)
def test_the_schema_and_the_check_agree(shape: Shape, value: Any) -> None:
    said = jsonschema_rs.Draft202012Validator(shape.schema()).is_valid(value)
    assert accepted(shape, value) is said


@given(value=VALUES)
def test_they_agree_on_every_body_of_the_api(value: Any) -> None:
    components = document(OPERATIONS)["components"]
    for shape in (bodies.BATCH_OP, bodies.TXN, bodies.POLICY):
        validator = jsonschema_rs.Draft202012Validator({**shape.reference(), "components": components})
        assert accepted(shape, value) is validator.is_valid(value)


@given(data=st.data())
def test_they_agree_on_operations_that_are_nearly_right(data: st.DataObject) -> None:
    components = document(OPERATIONS)["components"]
    op = {"op": data.draw(st.sampled_from(["get", "put", "delete", "add", "touch"])), "key": "k"}
    pool: dict[str, list[Any]] = {
        "value": ["v", 1],
        "value_base64": ["AAAA", "!"],
        "if_version": [1, 0],
        "if_absent": [True],
        "if_exists": [False],
        "ttl_ms": [0, -1],
        "ttl_s": [1.5],
        "delta": [-1, 1 << 63],
        "fence": [{"name": "n", "token": 1}, {"name": "n"}],
        "consistency": ["stale", "never"],
    }
    for name in data.draw(st.lists(st.sampled_from(sorted(pool)), max_size=4, unique=True)):
        op[name] = data.draw(st.sampled_from(pool[name]))
    validator = jsonschema_rs.Draft202012Validator({**bodies.BATCH_OP.reference(), "components": components})
    assert accepted(bodies.BATCH_OP, op) is validator.is_valid(op), op


def test_what_is_checked_is_also_converted() -> None:
    assert POINT.check({"x": 3.0, "b": 1, "label": "ab"}, "it") == {"x": 3, "b": 1.0, "label": "ab"}
    assert POINT.check({"x": 0, "a": True, "c": "AAE="}, "it") == {
        "x": 0,
        "label": "none",
        "a": True,
        "c": b"\0\1",
    }
    assert ListOf(Flag(), 2).check([True], "it") == [True]
    mixed = EachOf(Integer(0, 3), 3).check([1, 9, 2], "ops")
    assert (mixed[0], mixed[2]) == (1, 2)
    assert isinstance(mixed[1], InvalidRequest)
    assert "ops[1] = 9" in mixed[1].message


@pytest.mark.parametrize(
    ("shape", "value", "kind", "text"),
    [
        (Integer(1, 5), 6, InvalidRequest, "it = 6 is not a whole number from 1 to 5"),
        (Integer(1, 5), True, InvalidRequest, "not a whole number"),
        (Number(0, 5), math.inf, InvalidRequest, "not a number"),
        (Text(1, 3), "abcd", TooLarge, "of 4 characters"),
        (Text(2, 3), "a", InvalidRequest, "of 1 characters"),
        (Text(), "\ud800", InvalidRequest, "not UTF-8"),
        (Base64(3), "A" * 8, TooLarge, "over the limit of 3 bytes"),
        (Base64(3), "AA=A", InvalidRequest, "is not base64"),
        (ListOf(Flag(), 2), [True] * 3, TooLarge, "it has 3 elements; the limit is 2"),
        (ListOf(Flag(), 2, 1), [], InvalidRequest, "at least 1"),
        (POINT, {"x": 1, "a": True, "colour": 1}, InvalidRequest, "unknown member 'colour'; known: x, label"),
        (POINT, {"a": True}, InvalidRequest, "no member 'x'"),
        (POINT, {"x": 1}, InvalidRequest, "exactly one of a, b"),
        (POINT, {"x": 1, "b": 0, "c": "AAAA"}, InvalidRequest, "at most one of b, c"),
    ],
)
def test_a_message_names_value_and_bound(shape: Shape, value: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text.replace("[", r"\[")) as failed:
        shape.check(value, "it")
    assert type(failed.value) is kind


def test_parameters_as_text() -> None:
    assert Integer(-9, 9).parse("-7", "n") == -7
    assert Number(0, 9).parse("1.5e0", "n") == 1.5
    assert Flag().parse("true", "n") is True
    for shape, text in (
        (Integer(0, 9), "1_0"),
        (Integer(0, 9), "٣"),
        (Integer(0, 9), " 3"),
        (Integer(0, 9), ""),
        (Number(0, 9), "nan"),
        (Number(0, 9), "1e999"),
        (Flag(), "1"),
        (Flag(), "True"),
    ):
        with pytest.raises(InvalidRequest):
            shape.parse(text, "n")


@pytest.mark.parametrize(
    ("param", "good", "bad"),
    [
        (parameters.IF_MATCH, ["*", '"12"', "12", 'W/"12"'], ["", "abc", '"0"', '"1", "2"', '"-1"', '"01"']),
        (parameters.IF_NONE_MATCH, ["*"], ['"12"', "", "**"]),
        (parameters.IF_NONE_MATCH_READ, ["*", '"1"', '"1", W/"2","3"'], ["", '"x"', '"1",']),
        (
            parameters.FENCE_QUERY[0],
            ["a:1", "locks/x y:17", "ä:3"],
            ["a", "a:", ":1", "a:0", "a:b", "a:b:1", "\0:1"],
        ),
        (parameters.IDEMPOTENCY_KEY, ["a", "x" * 256], ["", "a b", "ä", "x" * 257]),
        (parameters.NAMESPACE, ["a", "a.b-c_d", "0" * 64], ["", "A", "-a", "a" * 65, "a/b", "a\n"]),
        (parameters.KEY, ["a", "ä/\0", "x" * 2048], ["", "x" * 2049]),
        (parameters.CURSOR, ["", "AAAA-_"], ["=", "+", "a b"]),
    ],
    ids=lambda v: v.name if isinstance(v, Param) else "",
)
def test_patterns(param: Param, good: list[str], bad: list[str]) -> None:
    """The same by the check and by the pattern in the document."""
    validator = jsonschema_rs.Draft202012Validator(param.shape.schema())
    for text in good:
        param.shape.parse(text, param.name)
        assert validator.is_valid(text), text
    for text in bad:
        with pytest.raises(MetastoreError):
            param.shape.parse(text, param.name)
        assert not validator.is_valid(text), text


RESULTS = {
    "get": Record(Version(7), Version(3), b"value", "text/plain", 5, False),
    "put": PutResult(Version(7), True),
    "delete": 7,
    "add": AddResult(-3, Version(7)),
    "touch": TouchResult(Version(7), 0.25),
}


def test_a_batch_takes_and_answers_every_operation_of_a_single_record() -> None:
    names = {OPERATIONS_OF_CLIENTS[kind].name for kind in SINGLE}
    assert set(bodies.ANSWERS) == set(bodies.BATCH_OP.kinds) == set(RESULTS) == names


@pytest.mark.parametrize("name", RESULTS)
def test_an_answer_is_of_the_form_that_is_told(name: str) -> None:
    shape, answer = bodies.ANSWERS[name], result_json("a/b", RESULTS[name])
    assert shape.check(answer, "answer") == answer
    for member in shape.members:
        if member in ("version", "created", "count", "ttl_ms"):
            lacking = {k: v for k, v in answer.items() if k != member}
            if shape.members[member].required:
                with pytest.raises(InvalidRequest):
                    shape.check(lacking, "answer")
