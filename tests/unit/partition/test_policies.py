"""What a namespace's policy has against an operation."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core.machine import Machine
from metastore.errors import ConditionRequired, MetastoreError, QuotaExceeded, Unavailable, WrongRouting
from metastore.keys import PARENT, WHOLE_KEY, storage_key_of
from metastore.namespaces import Policy
from metastore.operations import (
    ABSENT,
    ADD,
    DELETE,
    EQUAL,
    EXISTS,
    GET,
    LINEARIZABLE,
    PUT,
    RENAME,
    TTL_MS_AT,
    TXN,
    VERSION,
)
from metastore.partition.policies import Policies
from metastore.topology import TopologyTable

IDS = (1, 1, 0)
BY_KEY, BY_PARENT = (storage_key_of("n", "d/a", rule) for rule in (WHOLE_KEY, PARENT))
OTHER_BY_KEY, OTHER_BY_PARENT = (storage_key_of("n", "d/b", rule) for rule in (WHOLE_KEY, PARENT))


def refusal(
    policy: Policy | None, op: list[Any], full: tuple[bool, bool] | None = None
) -> MetastoreError | None:
    table = TopologyTable("test")
    if policy is not None:
        table.apply([(("namespaces", "n"), policy)], 1)
    return Policies(table, "root/", {} if full is None else {"n": full}).refuse(
        Machine(lambda storage_key: None), op
    )


def put(storage_key: bytes, when: int | None = None, value: bytes = b"v") -> list[Any]:
    return [1, PUT, 0, storage_key, *IDS, when, value, "", None]


def rename(storage_key: bytes, to: bytes, when: int | None = EXISTS) -> list[Any]:
    return [1, RENAME, 0, storage_key, *IDS, when, to, ABSENT]


@pytest.mark.parametrize(
    ("routing", "good"), [("parent", (BY_PARENT, OTHER_BY_PARENT)), ("key", (BY_KEY, OTHER_BY_KEY))]
)
def test_every_key_of_an_operation_is_where_the_rule_has_it(routing: str, good: tuple[bytes, bytes]) -> None:
    """Else one record would have two places, each with a value of its own."""
    a, b = good
    (bad,) = {BY_KEY, BY_PARENT} - {a}
    (worse,) = {OTHER_BY_KEY, OTHER_BY_PARENT} - {b}
    policy = Policy(routing=routing)
    txn = [1, TXN, 0, a, *IDS, [[b, VERSION, EQUAL, 0]], [[PUT, a, b"", "", None]], []]
    for op in (put(a), rename(a, b), txn, [1, GET, 0, a, LINEARIZABLE, None]):
        assert refusal(policy, op) is None, op
    elsewhere = [1, TXN, 0, a, *IDS, [[worse, VERSION, EQUAL, 0]], [[PUT, a, b"", "", None]], []]
    for op in (put(bad), rename(bad, b), rename(a, worse), elsewhere, [1, GET, 0, bad, LINEARIZABLE, None]):
        assert isinstance(refusal(policy, op), WrongRouting), op


def test_a_namespace_without_a_policy_routes_by_the_parent() -> None:
    assert refusal(None, put(BY_PARENT)) is None
    assert isinstance(refusal(None, put(BY_KEY)), WrongRouting)
    assert isinstance(refusal(None, rename(BY_PARENT, OTHER_BY_KEY)), WrongRouting)


def test_where_conditions_are_required() -> None:
    policy = Policy(require_condition=True)
    for op in (
        put(BY_PARENT),
        [1, DELETE, 0, BY_PARENT, *IDS, None],
        rename(BY_PARENT, OTHER_BY_PARENT, None),
    ):
        assert isinstance(refusal(policy, op), ConditionRequired), op
    for op in (
        put(BY_PARENT, ABSENT),
        rename(BY_PARENT, OTHER_BY_PARENT),
        rename(BY_PARENT, OTHER_BY_PARENT, 7),
    ):
        assert refusal(policy, op) is None, op
    assert isinstance(refusal(policy, [1, ADD, 0, BY_PARENT, *IDS, None, 1]), ConditionRequired)


def test_a_namespace_that_is_being_created_takes_no_writes() -> None:
    assert isinstance(refusal(Policy(ready=False), put(BY_PARENT)), Unavailable)
    assert refusal(Policy(ready=False), [1, GET, 0, BY_PARENT, LINEARIZABLE, None]) is None


def test_a_default_ttl_is_filled_in() -> None:
    op = put(BY_PARENT)
    assert refusal(Policy(default_ttl_ms=5000), op) is None
    assert op[TTL_MS_AT] == 5000


def test_a_full_namespace_takes_no_more_and_lets_go() -> None:
    policy = Policy(max_records=1, max_bytes=1)
    assert isinstance(refusal(policy, put(BY_PARENT), (True, False)), QuotaExceeded)
    assert isinstance(refusal(policy, put(BY_PARENT), (False, True)), QuotaExceeded)
    assert refusal(policy, [1, DELETE, 0, BY_PARENT, *IDS, None], (True, True)) is None
