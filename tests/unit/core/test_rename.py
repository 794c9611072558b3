"""A record gets another key by one row: a delete and a put, as of a transaction."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.core.payloads import read_payload
from metastore.errors import ConditionFailed, HistoryChanged, InvalidRequest
from metastore.history import first_version, pack_mark
from metastore.keys import storage_key_of
from metastore.operations import ABSENT, EXISTS, OK, RENAME
from metastore.records import unpack_record
from metastore.wire.op_checks import check_op
from tests.unit.core.test_machine import A, Replica, add, assert_accounts, delete, lk, put


def rename(
    key: str, to: str, *, seq: int = 0, floor: int = 0, when: int | None = EXISTS, replace: bool = False
) -> list[Any]:
    return [0, RENAME, 0, lk(key), seq, floor, 0, when, lk(to), None if replace else ABSENT]


def found(r: Replica, key: str) -> Any:
    return unpack_record(r.state[lk(key)])


def test_the_record_keeps_what_it_is_but_its_version() -> None:
    r = Replica()
    r.run((A, put("x", b"1", ttl=5000)), (A, put("x", b"2", ttl=7000)))
    before = found(r, "x")
    assert r.run((A, rename("x", "y"))) == [(OK, True, 2, [[OK, 3], [OK, 4, False]])]
    assert set(r.state) == {lk("y")}
    assert found(r, "y") == before._replace(version=4)
    assert (found(r, "y").created, found(r, "y").ttl_ms) == (1, 7000)
    assert_accounts(r)


def test_a_counter_stays_one() -> None:
    r = Replica()
    r.run((A, add("n", 5)), (A, rename("n", "m")))
    assert r.run((A, add("m", 2)))[0][-1] == 7


@pytest.mark.parametrize("there", [False, True])
def test_what_is_under_the_new_key_is_replaced_only_where_that_is_asked(there: bool) -> None:
    r = Replica()
    r.run((A, put("x", b"x")), *([(A, put("y", b"y", ttl=9))] if there else []))
    ((status, text, detail),) = r.run((A, rename("x", "y")))[:1] if there else [(0, "", {})]
    if there:
        assert (status, detail["version"]) == (ConditionFailed.status, 2)
        assert "under the new key, at version 2" in text
        assert (found(r, "x").value, found(r, "y").value) == (b"x", b"y"), "nothing was done"
    r.run((A, rename("x", "y", replace=True)))
    assert set(r.state) == {lk("y")}
    assert found(r, "y").value == b"x"
    assert_accounts(r)


def test_conditions_on_the_record() -> None:
    r = Replica()
    r.run((A, put("x")))
    assert r.run((A, rename("x", "y", when=7)))[0][2]["version"] == 1
    assert r.run((A, rename("none", "y")))[0][0] == ConditionFailed.status
    ((status, _, detail),) = r.run((A, rename("none", "y", when=None)))
    assert (status, detail["version"]) == (ConditionFailed.status, 0)
    assert r.run((A, rename("x", "y", when=1)))[0][0] == OK


def test_it_sees_what_is_proposed_before_it_and_is_seen_by_what_comes_after() -> None:
    r = Replica()
    _, results = r.propose(
        (A, put("x", b"1")),
        (A, rename("x", "y")),
        (A, rename("y", "z")),
        (A, delete("z")),
        (A, rename("z", "x")),
    )
    assert [t.tail[0] for t in results] == [OK, OK, OK, OK, ConditionFailed.status]
    r.apply(1, b"")
    assert not r.state
    assert_accounts(r)


def test_a_retry_gets_the_first_outcome_from_every_replica() -> None:
    leader, follower = Replica(), Replica()
    payload, first = leader.propose(
        (A, put("x", seq=1)), (A, rename("x", "y", seq=2)), (A, rename("x", "y", seq=3))
    )
    assert payload is not None
    read_payload(memoryview(payload))
    for r, entry in ((leader, b""), (follower, payload)):
        r.apply(1, entry)
    assert follower.view() == leader.view()
    follower.index = 1
    _, again = follower.propose((A, rename("x", "y", seq=2)), (A, rename("x", "y", seq=3)))
    assert again[0].tail == first[1].tail
    assert again[1].tail[0] == first[2].tail[0] == ConditionFailed.status
    assert len(follower.state) == 1, "carried out once"


def test_a_version_of_another_history_is_refused() -> None:
    r = Replica()
    r.run((A, put("x")))
    r.index += 1
    r.apply(r.index, pack_mark(1))
    assert r.run((A, rename("x", "y", when=first_version(2) + 1)))[0][0] == HistoryChanged.status
    ((status, *_),) = r.run((A, rename("x", "y")))
    assert status == OK
    assert found(r, "y").created == first_version(1)


KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=3)),
        st.tuples(st.just("rename"), KEYS, KEYS, st.booleans()),
        st.tuples(st.just("delete"), KEYS),
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=200)
def test_it_is_what_a_dictionary_does(steps: list[tuple[Any, ...]]) -> None:
    r, model = Replica(), dict[str, bytes]()
    for kind, key, *rest in steps:
        if kind == "put":
            r.run((A, put(key, rest[0])))
            model[key] = rest[0]
        elif kind == "delete":
            r.run((A, delete(key)))
            model.pop(key, None)
        else:
            to, replace = rest
            done = r.run((A, rename(key, to, replace=replace)))[0][0] == OK
            assert done == (key in model and (replace or to not in model))
            if done:
                model[to] = model.pop(key)
        assert {lk(k): v for k, v in model.items()} == {k: unpack_record(v).value for k, v in r.state.items()}
        assert_accounts(r)


def test_both_keys_are_of_one_namespace() -> None:
    a, b, other = storage_key_of("n", "d/a"), storage_key_of("n", "d/b"), storage_key_of("m", "d/b")
    assert check_op([1, RENAME, 0, a, 1, 1, 0, None, b, ABSENT]) is None
    told = check_op([1, RENAME, 0, a, 1, 1, 0, None, other, ABSENT])
    assert isinstance(told, InvalidRequest)
    assert "several namespaces" in told.message
