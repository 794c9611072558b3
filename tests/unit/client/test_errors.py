"""Did it happen? Every error says so by its class."""

from __future__ import annotations

import inspect

import pytest

from metastore import errors
from metastore.errors import (
    BY_STATUS,
    CoordinationError,
    DidNotHappen,
    MaybeHappened,
    MetastoreError,
    OutcomeUnknown,
    from_wire,
)

ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, MetastoreError)]
#: bases that say nothing yet
NEITHER = {MetastoreError, CoordinationError}


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_the_class_says_what_the_attribute_says(cls: type[MetastoreError]) -> None:
    did_not, maybe = issubclass(cls, DidNotHappen), issubclass(cls, MaybeHappened)
    assert did_not + maybe == (cls not in NEITHER)
    if cls not in NEITHER:
        assert cls.outcome == ("none" if did_not else "unknown")


def test_numbers_on_the_wire_stay() -> None:
    """Never reused, never changed."""
    assert {status: cls.__name__ for status, cls in sorted(BY_STATUS.items())} == {
        1: "NotFound",
        2: "ConditionFailed",
        3: "NotLeader",
        4: "Moved",
        5: "OutcomeUnknown",
        6: "Overloaded",
        7: "Unavailable",
        8: "InvalidRequest",
        9: "TooLarge",
        10: "RequestIdExpired",
        11: "DeadlineExceeded",
        12: "TooStale",
        13: "ShuttingDown",
        14: "NotANumber",
        15: "Fenced",
        16: "ConditionRequired",
        17: "QuotaExceeded",
        18: "Compacted",
        19: "WrongRouting",
        20: "CrossPartition",
        21: "FenceForgotten",
        22: "DiskLow",
        23: "HistoryChanged",
        24: "NoCommonVersion",
        99: "InternalError",
    }
    assert isinstance(from_wire(5, "", {}), OutcomeUnknown)
    assert isinstance(from_wire(12345, "from a newer node", {}), MaybeHappened)
