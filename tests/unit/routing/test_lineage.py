"""R18: what a client knows of one half of a split partition says nothing of the other half after they parted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore.client.watch.direct_watch import DirectWatch
from metastore.client.watch.subscription import Buffer, SubscriptionFilter
from metastore.errors import ClientClosed, Moved, NotLeader, RequestIdExpired
from metastore.history import ResumePoint, first_version
from metastore.layout import NodeRecord
from metastore.routing.attempts import Attempts, Step
from metastore.routing.connection import NodeConnection
from metastore.routing.dispatcher import Dispatcher, RequestIds
from metastore.topology import Placement, TopologyTable

TOP = 1 << 64


def placement(p: int, lo: int, hi: int, parent: tuple[int, int] | None = None, **more: Any) -> Placement:
    return Placement(p, lo, hi, "c", ("n1", "n2"), parent=parent, **more)


def table(*placements: Placement) -> TopologyTable:
    found = TopologyTable("test")
    found.partitions = {p.id: p for p in placements}
    found.nodes = {n: NodeRecord(n, "c", n, f"{n}:1", "") for n in ("n1", "n2")}
    return found


#: 0 gave its upper half to 1 at its entry 40, and half of the rest to 2 at 70; 1 gave its upper half to 3 at 55
SPLIT = table(
    placement(0, 0, TOP // 4),
    placement(2, TOP // 4, TOP // 2, (0, 70)),
    placement(1, TOP // 2, 3 * TOP // 4, (0, 40)),
    placement(3, 3 * TOP // 4, TOP, (1, 55)),
)


@pytest.mark.parametrize(
    ("last_seen", "to", "left"),
    [
        (39, 1, 39),  # both have that entry
        (41, 1, 40),  # 0's own after they parted
        (60, 3, 40),  # of what 3 was split off at 55, 0 had parted at 40
        (90, 2, 70),
        (0, 3, 0),
        (first_version(2) + 39, 1, first_version(2) + 39),  # a number is of its history (R19)
        (first_version(2) + 60, 3, first_version(2) + 40),
    ],
)
async def test_a_stamp_goes_as_far_as_the_logs_are_one(last_seen: int, to: int, left: int) -> None:
    client = Dispatcher([])
    client.table = SPLIT
    attempts = Attempts(client, [0, 1, 0, b"", 7, 0, last_seen], b"", 0.0)
    attempts.ids, attempts.partition, attempts.seen_in = client.ids, 0, 0
    attempts.split_off(SPLIT.partitions[to])
    assert (attempts.op[6], attempts.seen_in, attempts.partition) == (left, to, 0)


async def test_a_stamp_of_what_is_not_known_to_be_related_says_nothing() -> None:
    client = Dispatcher([])
    client.table = table(placement(0, 0, TOP // 2), placement(1, TOP // 2, TOP))
    attempts = Attempts(client, [0, 1, 0, b"", 7, 0, 60], b"", 0.0)
    attempts.ids, attempts.partition, attempts.seen_in = client.ids, 0, 0
    attempts.split_off(client.table.partitions[1])
    assert attempts.op[6] == 0


async def test_what_a_partition_said_of_itself_stands() -> None:
    """A write numbered for 0 goes to 1, which has forgotten who was there before its entry 77 and says so."""
    client = Dispatcher([])
    client.table = SPLIT
    attempts = Attempts(client, [0, 1, 0, b"", 7, 0, 60], b"", 0.0)
    attempts.ids, attempts.partition, attempts.seen_in = client.ids, 0, 0
    child = SPLIT.partitions[1]
    attempts.split_off(child)
    assert (
        attempts.judge("n1:1", child, RequestIdExpired("too old", index=77, reused=False), 1.0) is Step.AGAIN
    )
    assert (attempts.op[6], attempts.seen_in) == (77, 1)
    assert client.ids.last_seen(1) == 77
    assert client.ids.last_seen(0) == 0


async def test_another_clients_stamp_is_not_guessed() -> None:
    """It is told, and numbers the write anew; also when it knows of a split that is not known here."""
    client = Dispatcher([])
    client.table = SPLIT
    for of, to, news in ((0, 1, False), (3, 0, True)):
        attempts = Attempts(client, [0, 1, 0, b"", 7, 0, 60], b"", 0.0)
        attempts.partition = attempts.seen_in = of
        with pytest.raises(Moved):
            attempts.split_off(SPLIT.partitions[to])
        assert attempts.op[6] == 60
        assert attempts.doubts == news


@pytest.mark.parametrize("ours", [True, False])
async def test_a_stamp_of_nothing_is_of_no_partition(ours: bool) -> None:
    """What was numbered with it goes where its key is, whatever partition its client named: one that is gone, say."""
    client = Dispatcher([])
    client.table = SPLIT
    attempts = Attempts(client, [0, 1, 99, b"", 7, 0, 0], b"", 0.0)
    attempts.partition = attempts.seen_in = 99
    attempts.ids = client.ids if ours else None
    attempts.split_off(SPLIT.partitions[1])
    assert (attempts.op[6], attempts.doubts) == (0, False)


def test_requests_under_way_count_for_all_that_was_split_off() -> None:
    """R7: a write that was numbered for 0 may still go to any of its descendants."""
    ids = RequestIds()
    old, _ = ids.begin(0)
    ids.begin(1)
    for p in (0, 1, 2, 3):
        assert ids.lowest_open(*SPLIT.lineage(SPLIT.partitions[p])) == old
    ids.end(0, old)
    assert ids.lowest_open(*SPLIT.lineage(SPLIT.partitions[3])) == 2
    assert ids.lowest_open(*SPLIT.lineage(SPLIT.partitions[2])) == 3, "1 is no ancestor of 2"


class Told(Dispatcher):
    """Whose connections are one that the test speaks for."""

    def __init__(self) -> None:
        super().__init__([])
        self.watches: list[tuple[list[Any], Any, Any]] = []

    async def connect(
        self, address: str, until: float | None = None, patience_s: float = 0.0
    ) -> NodeConnection:
        return self  # type: ignore[return-value]

    def watch(self, body: list[Any], on_events: Any, on_end: Any) -> int:
        self.watches.append((body, on_events, on_end))
        return len(self.watches)

    def unwatch(self, watch_id: int) -> None:
        pass

    async def refresh(self, until: float | None = None) -> bool:
        return True


async def test_a_hint_of_the_parents_leader_is_none_of_the_childs() -> None:
    """A watch of the upper half is told by 0 that its leader is n2, in an epoch that 1 will not see for long."""
    dispatcher = Told()
    dispatcher.table = table(placement(0, 0, TOP, leader="n1", epoch=5))
    dispatcher.refresh_soon = lambda: None  # type: ignore[method-assign]
    subscriptions = DirectWatch(SubscriptionFilter(dispatcher, "n", b"", 0, False), Buffer(10), None)
    subscriptions._outcome = asyncio.get_running_loop().create_future()
    subscription = subscriptions._follow((3 << 62).to_bytes(8, "big"), b"\xff" * 9, ResumePoint(17))
    while not dispatcher.watches:
        await asyncio.sleep(0)
    assert dispatcher.watches[0][0][0] == 0
    dispatcher.table = table(
        placement(0, 0, TOP // 2, leader="n1", epoch=6),
        placement(1, TOP // 2, TOP, (0, 40), leader="n1", epoch=6),
    )
    dispatcher.watches[0][2](NotLeader("led by n2", partition=0, epoch=99, leader="n2"))
    while len(dispatcher.watches) < 2:
        await asyncio.sleep(0)
    assert dispatcher.watches[1][0][:4] == [1, subscription.start, subscription.end, 17]
    assert dispatcher.table.partitions[0].epoch == 99
    assert (dispatcher.table.partitions[1].leader, dispatcher.table.partitions[1].epoch) == ("n1", 6)
    dispatcher.pool.closed = True
    dispatcher.watches[1][2](ClientClosed("over"))
    await subscriptions.close()
