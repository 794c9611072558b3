"""R8: what a replica answers of its own, whoever leads: by its bound, by its version, and never from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.core.settings import MS
from metastore.errors import Moved, TooStale, Unavailable
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, first_epoch
from metastore.operations import AT_LEAST, GET, LIST, NOT_FOUND, OK, STALE
from metastore.wire.client_messages import WATCH_ANY
from tests.typed import there
from tests.unit.node.single import Single

LKEY = storage_key_of("n", "d/k")


class Asker:
    """A connection that keeps what it is answered."""

    def __init__(self) -> None:
        self.result: list[Any] = []
        self.ended: Any = None

    def crowded(self) -> bool:
        return False

    def answer(self, result: list[Any], size: int = 0) -> None:
        self.result = result

    def write(self, data: bytes) -> None: ...

    def watch_ended(self, number: int, error: Any) -> None:
        self.ended = error


def ask(host: Any, consistency: int, arg: int | None) -> set[int]:
    """The statuses of a get and of a listing, which are alike but for what is not there."""
    asker: Any = Asker()
    statuses = set()
    for op in (
        [1, GET, host.p, LKEY, consistency, arg],
        [1, LIST, host.p, LKEY, LKEY + b"\xff", 10, 0, consistency, arg],
    ):
        host.operate(asker, b"", op, now_ns() + 10**9, now_ns())
        statuses.add(asker.result[1])
    return statuses


async def test_a_bound_is_kept(tmp_path: Path) -> None:
    """A follower that was complete ten seconds ago says so, rounded up, and nothing younger."""
    async with Single(tmp_path) as s, s.client() as client:
        version = (await client.namespace("n").put("d/k", b"v")).version
        host, replica = s.host, s.node.core._replicas[s.host.p]
        assert host.state.age_ms() == 0
        replica.step_down("test")
        s.node.ticks.run_effects()
        assert host.state.age_ms() is None
        assert ask(host, STALE, None) == {OK}
        assert ask(host, STALE, 1 << 40) == {TooStale.status}, "nobody ever said how old it is"
        replica.fresh_ns = now_ns() - 10_000 * MS
        assert there(host.state.age_ms()) > 10_000
        assert ask(host, STALE, 10_000) == {TooStale.status}
        assert ask(host, STALE, 600_000) == {OK}
        assert ask(host, AT_LEAST, version) == {OK}
        assert ask(host, AT_LEAST, version + 1) == {TooStale.status}


async def test_an_age_is_rounded_up(tmp_path: Path) -> None:
    async with Single(tmp_path) as s:
        for age_ns, age_ms in ((0, 0), (1, 1), (MS, 1), (MS + 1, 2)):
            s.host.replica.age_ns = lambda now, age_ns=age_ns: age_ns  # type: ignore[method-assign, misc]
            assert s.host.state.age_ms() == age_ms


async def test_what_is_empty_says_nothing_of_records(tmp_path: Path) -> None:
    """A replica that was just opened, or opened again after its data went, or waits for its part of another."""
    async with Single(tmp_path) as s:
        me = (("f", s.store.store_id),)
        others = (("g", "store-g"), ("h", "store-h"))
        record = ConfigRecord(5, 0, 1 << 64, first_epoch(3), None, me + others)

        def knows_nothing(host: Any) -> None:
            assert ask(host, STALE, None) == ask(host, STALE, 600_000) == {TooStale.status}
            assert ask(host, AT_LEAST, 0) == {TooStale.status}
            for after in (None, 0):
                asker: Any = Asker()
                host.watches.add(asker, [1, 5, LKEY, LKEY + b"\xff", after, WATCH_ANY, b""])
                assert isinstance(asker.ended, Unavailable)

        host = s.node.open_partition(record)
        knows_nothing(host)
        # complete as it may be: of what its leader says there is nothing
        s.node.core._replicas[host.p].fresh_ns = now_ns()
        knows_nothing(host)
        s.node.drop_partition(5)
        again = s.node.open_partition(record)
        assert again is not host
        knows_nothing(again)
        s.node.drop_partition(5)
        child = s.node.open_partition(
            ConfigRecord(5, 1 << 63, 1 << 64, first_epoch(3), None, me + others, parent=(1, 1 << 16, 40))
        )
        assert child.applied == 0
        assert ask(child, STALE, None) <= {TooStale.status, Moved.status}


@pytest.mark.parametrize("complete", [False, True])
async def test_who_is_being_brought_up_says_nothing_before_it_once_had_all(
    complete: bool, tmp_path: Path
) -> None:
    """R10: the log of the first year is no state of the partition as it has been since."""
    async with Single(tmp_path) as s:
        others = (("g", "store-g"), ("h", "store-h"))
        host = s.node.open_partition(ConfigRecord(5, 0, 1 << 64, first_epoch(3), None, others))
        s.store.partitions[5].meta.applied = 7
        s.node.core._replicas[5].fresh_ns = now_ns() if complete else 0
        assert ask(host, STALE, None) == ({NOT_FOUND, OK} if complete else {TooStale.status})
        s.store.partitions[5].meta.applied = 0
