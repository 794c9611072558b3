"""Fencing tokens: a fence holds from the acquisition on (R20), and names are forgotten safely."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.core import fences as fences_module
from metastore.core.fences import BUCKETS, FENCE_PREFIX, FLOOR_PREFIX, MAX_FENCES, bucket_of, fence_digest
from metastore.core.machine import Machine
from metastore.core.payloads import check_metadata, read_payload
from metastore.elements import RAISE
from metastore.errors import ConditionFailed, Fenced, FenceForgotten
from metastore.history import FencingToken
from metastore.operations import ABSENT, OK
from tests.unit.core.test_machine import A, B, Replica, delete, lk, put, txn

LOCK = ["job", RAISE]


def take(r: Replica, key: str = "lock", name: str = "job", when: int | None = ABSENT) -> tuple[Any, ...]:
    return r.run((A, put(key, when=when, fence=[name, RAISE])))[0]


def status(r: Replica, name: str, token: int) -> int:
    return int(r.run((A, put("data", fence=[name, token])))[0][0])


def reloaded(r: Replica) -> Replica:
    """After a restart, or with a snapshot: every row is one that is taken from others."""
    assert all(check_metadata(key, raw) for key, raw in r.saved.items())
    assert r.saved == {key: r.machine.metadata(key) for key in r.machine.metadata_keys()}
    fresh = Replica()
    fresh.state.update(r.state)
    fresh.index = r.index
    fresh.saved = dict(r.saved)
    fresh.machine.load(list(reversed(r.saved.items())))
    return fresh


# --- from the acquisition on -----------------------------------------------------------------------


def test_a_paused_holder_is_refused_before_the_next_one_has_written_anything() -> None:
    r = Replica()
    first = take(r)[1]
    assert status(r, "job", first) == OK
    r.run((A, delete("lock")))  # its TTL was over
    assert status(r, "job", first) == OK, "nobody has taken it yet"
    second = take(r)[1]
    assert second > first
    refused = r.run((A, put("data", fence=["job", first])))[0]
    assert (refused[0], refused[2]["token"]) == (Fenced.status, second)
    assert status(r, "job", second) == OK


def test_the_fence_is_raised_by_the_entry_that_takes_the_lock_and_by_no_other() -> None:
    r = Replica()
    _, results = r.propose(
        (A, put("lock", when=ABSENT, fence=LOCK)),
        (B, put("lock", when=ABSENT, fence=LOCK)),
        (B, put("data", fence=["job", 0xFF])),
        (A, put("data", fence=["job", 1])),
    )
    assert [r.tail[0] for r in results] == [OK, ConditionFailed.status, OK, Fenced.status]
    r.machine.proposals.abandon()
    r.index -= 1
    assert status(r, "job", 1) == OK, "it was never raised"


def test_who_does_not_get_the_lock_raises_nothing() -> None:
    r = Replica()
    holder = take(r)[1]
    assert take(r)[0] == ConditionFailed.status
    assert status(r, "job", holder) == OK


def test_a_lock_may_be_taken_over_by_its_version() -> None:
    r = Replica()
    first = take(r)[1]
    second = take(r, when=first)[1]
    assert (status(r, "job", first), status(r, "job", second)) == (Fenced.status, OK)


def test_a_lock_whose_name_has_a_higher_token_is_not_taken() -> None:
    """Another lock of the same name in another partition: the token that this one would get is good for
    nothing."""
    r = Replica()
    assert status(r, "job", 1000) == OK
    refused = take(r)
    assert (refused[0], refused[2]["token"]) == (Fenced.status, 1000)
    assert lk("lock") not in r.state


def test_names_of_namespaces_are_apart() -> None:
    assert fence_digest(b"a", "job") != fence_digest(b"b", "job")
    r = Replica()
    take(r)
    other = put("x", fence=["job", 1])
    other[3] = lk("x", "m")
    assert r.run((A, other), (A, txn([], [], fence=["job", 1])))[0][0] == OK


# --- many names ------------------------------------------------------------------------------------


def same_bucket(count: int) -> list[str]:
    """Names that meet in one bucket."""
    wanted, names, number = bucket_of(fence_digest(b"n", "n0")), ["n0"], 0
    while len(names) < count:
        number += 1
        if bucket_of(fence_digest(b"n", f"n{number}")) == wanted:
            names.append(f"n{number}")
    return names


def test_a_forgotten_token_is_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences_module, "MAX_FENCES", 2)
    a, b, c, d = same_bucket(4)
    r = Replica()
    assert [status(r, name, token) for name, token in ((a, 20), (b, 30), (a, 21), (c, 40))] == [OK] * 4
    # b was the least lately raised
    assert [m for m, _ in r.machine.fences.by_name.values()] == [21, 40]
    for again in (r, reloaded(r)):
        assert status(again, a, 20) == Fenced.status, "remembered"
        refused = again.run((A, put("x", fence=[b, 29])))[0]
        assert (refused[0], refused[2]["token"]) == (FenceForgotten.status, 30)
        assert "acquire the lock again" in refused[1]
        assert again.run((A, put("x", fence=[d, 29])))[0][0] == FenceForgotten.status, (
            "it cannot be told apart"
        )
        assert again.run((A, txn([], [], fence=[d, 29])))[0][0] == FenceForgotten.status
        assert status(again, a, 21) == OK
    assert status(r, b, 30) == OK, "the last holder that was seen goes on"


def test_nobody_who_was_replaced_is_let_in_however_many_names_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every name is taken twice; whatever was forgotten, the first holder never writes again."""
    monkeypatch.setattr(fences_module, "MAX_FENCES", 16)
    monkeypatch.setattr(fences_module, "BUCKETS", 4)
    r = Replica()
    former: list[tuple[str, int]] = []
    refused = 0
    for number in range(120):
        name = f"job {number % 60}"
        token = take(r, f"lock {number % 60}", name, when=None)[1]
        for old_name, old in former[::5]:
            now = int.from_bytes(r.state[lk(f"lock {old_name[4:]}")][5:13], "little")
            answer = status(r, old_name, old)
            allowed = (Fenced.status, FenceForgotten.status) if old < now else (OK, FenceForgotten.status)
            assert answer in allowed, (old_name, old)
            refused += old < now
        former.append((name, token))
        if number % 7 == 0:
            r = reloaded(r)
    assert refused > 100
    assert len(r.machine.fences.by_name) == 16
    assert len(r.machine.fences.floors) == 4


def test_65537_names_and_more_close_nothing() -> None:
    r = Replica()
    for base in range(0, MAX_FENCES + 1000, 1024):
        r.run(
            *((A, put(f"l{n % 7}", when=None, fence=[f"job {n}", RAISE])) for n in range(base, base + 1024))
        )
    fences = r.machine.fences
    assert len(fences.by_name) == MAX_FENCES
    assert 0 < len(fences.floors) <= BUCKETS
    assert sum(key[:1] in (FENCE_PREFIX, FLOOR_PREFIX) for key in r.saved) == MAX_FENCES + len(fences.floors)
    assert take(r, "new", "new")[0] == OK, "new locks are taken"
    again = reloaded(r)
    assert list(again.machine.fences.by_name.items()) == list(r.machine.fences.by_name.items())
    assert again.machine.fences.floors == r.machine.fences.floors


def test_both_halves_of_a_split_remember_fences_and_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences_module, "MAX_FENCES", 2)
    a, b, c = same_bucket(3)
    r = Replica()
    assert [status(r, name, token) for name, token in ((a, 20), (b, 30), (c, 40))] == [OK] * 3
    r.machine.proposals.count_above(b"\xff" * 8)
    r.machine.proposals.count_slice([], None)
    payload = r.machine.proposals.resolve_split(r.index + 1, 1, 1, (1 << 64) - 1, [("n", "s")])
    r.index += 1
    split_result = r.machine.apply(r.index, payload).split_result
    assert split_result is not None
    child = Machine(lambda _: None)
    child.load(split_result.metadata)
    for machine in (r.machine, child):
        assert [machine.fences.pass_by(fence_digest(b"n", n), FencingToken(19), []) for n in (a, b)] == [
            (FenceForgotten.status, 20),
            (Fenced.status, 30),
        ]


# --- what comes from others ------------------------------------------------------------------------


def test_a_payload_raises_digests_and_nothing_else() -> None:
    r = Replica()
    payload, _ = r.propose((A, put("lock", when=ABSENT, fence=LOCK)))
    assert payload is not None
    entry = read_payload(payload)
    assert entry[4] == [[fence_digest(b"n", "job"), 1]]
    r.apply(r.index, b"")
    assert r.saved[FENCE_PREFIX + fence_digest(b"n", "job")] == b"\x92\x01\x01"


@pytest.mark.parametrize(
    ("key", "row", "good"),
    [
        (b"f" + b"d" * 16, b"\x92\x07\x01", True),
        (b"f" + b"d" * 15, b"\x92\x07\x01", False),
        (b"f" + b"d" * 16, b"\x92\xff\x01", False),
        (b"f" + b"d" * 16, b"\x91\x07", False),
        (b"g\x03\xff", b"\x91\x07", True),
        (b"g\x04\x00", b"\x91\x07", False),
        (b"g\x03", b"\x91\x07", False),
        (b"g\x03\xff", b"\x92\x07\x07", False),
        (b"g\x03\xff", b"\x91\xff", False),
    ],
)
def test_rows_of_others_are_looked_at(key: bytes, row: bytes, good: bool) -> None:
    assert check_metadata(key, row) is good
