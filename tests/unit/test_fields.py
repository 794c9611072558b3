"""Fields of records, at their bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from metastore import fields
from metastore.fields import MAX_MORE, BadRecord, Field, Shape, with_more


class One(NamedTuple):
    n: int
    of: tuple[Any, ...]
    more: bytes


ONE = Shape(
    "a record",
    One,
    {"n": Field(fields.whole(1, 9)), "of": Field(fields.several(fields.text), ())},
    keeps=True,
)


@pytest.mark.parametrize("value", [True, False, 0, 10, 1.0, "1", None])
def test_what_is_no_whole_number(value: Any) -> None:
    """True is not 1."""
    with pytest.raises(BadRecord, match="n of a record"):
        ONE.read({"n": value})


@pytest.mark.parametrize("value", [0, 1, 0.0, "true", None])
def test_what_is_no_flag(value: Any) -> None:
    with pytest.raises(ValueError, match="not true or false"):
        fields.flag(value)


def test_what_a_later_version_has_is_kept_within_a_bound() -> None:
    found = ONE.read({"n": 1, "later": "x" * (MAX_MORE - 12)})
    assert len(found.more) == MAX_MORE
    assert with_more({"n": 2}, found.more) == {"n": 2, "later": "x" * (MAX_MORE - 12)}
    with pytest.raises(BadRecord, match=f"{MAX_MORE} are kept"):
        ONE.read({"n": 1, "later": "x" * (MAX_MORE - 11)})


@pytest.mark.parametrize("field", ["n", "of", "later"])
def test_what_is_nested_without_end_is_a_bad_record(field: str) -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(BadRecord):
        ONE.read({"n": 1, field: deep})
    while deep:  # a tree so deep is not let go of at once
        deep = deep.pop()
