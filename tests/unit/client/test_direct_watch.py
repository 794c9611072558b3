"""Where the reader of a watch is, while what it has not taken yet is in the buffer."""

from __future__ import annotations

import itertools
import random
from typing import Any

from metastore.client.watch.direct_watch import DirectWatch, PartitionSubscription
from metastore.client.watch.resume_tokens import Position
from metastore.client.watch.subscription import Buffer, SubscriptionFilter
from metastore.history import ResumePoint
from metastore.keys import storage_key_of
from metastore.operations import DELETE
from metastore.routing.dispatcher import Dispatcher
from metastore.topology import Placement, TopologyTable

TOP = 1 << 64


def table(*cuts: int) -> TopologyTable:
    found = TopologyTable("test")
    edges = [0, *cuts, TOP]
    for number, (lo, hi) in enumerate(itertools.pairwise(edges)):
        found.partitions[number] = Placement(number, lo, hi, "c", ())
    return found


def wide_watch(buffer: Buffer) -> tuple[DirectWatch, PartitionSubscription]:
    dispatcher = Dispatcher([])
    dispatcher.table = table()
    subscriptions = DirectWatch(SubscriptionFilter(dispatcher, "n", b"", 0, False), buffer, None)
    subscription = PartitionSubscription(bytes(8), b"\xff" * 9, ResumePoint(0))
    subscriptions._subscriptions.append(subscription)
    return subscriptions, subscription


def events(*versions: int) -> list[Any]:
    return [[DELETE, storage_key_of("n", f"k{v}"), v, None] for v in versions]


def at(position: Position | None) -> list[int]:
    assert position is not None
    return [version for _, version in position]


async def test_the_reader_is_where_it_has_read() -> None:
    buffer = Buffer(100)
    subscriptions, subscription = wide_watch(buffer)
    subscriptions._take(subscription, ResumePoint(3), events(1, 3))
    subscriptions._take(subscription, ResumePoint(7), [])
    subscriptions._take(subscription, ResumePoint(9), events(8))
    assert at(subscriptions.delivered) == [0]
    seen = []
    while (event := buffer.take()) is not None:
        seen.append((event[2], at(subscriptions.delivered)[0]))
    # after the last of a piece: everything up to what was told with it, and then all that was told
    assert seen == [(1, 1), (3, 3), (8, 9)]
    subscriptions._take(subscription, ResumePoint(12), [])
    assert at(subscriptions.delivered) == [12]


async def test_what_was_seen_is_passed_over() -> None:
    """A node that begins anew within an entry tells its first changes again; and nothing goes back."""
    buffer = Buffer(100)
    subscriptions, subscription = wide_watch(buffer)
    subscriptions._take(subscription, ResumePoint(5), events(2, 5))
    subscriptions._take(subscription, ResumePoint(7), events(3, 5, 6, 7))
    subscriptions._take(subscription, ResumePoint(6), events(6))
    seen = []
    while (event := buffer.take()) is not None:
        seen.append(event[2])
    assert seen == [2, 5, 6, 7]
    assert at(subscriptions.delivered) == [7]


async def test_a_split_claims_nothing_that_was_not_read() -> None:
    """A token taken after a split, while changes of both halves wait in the buffer, loses none."""
    for seed in range(200):
        rng = random.Random(seed)
        buffer = Buffer(1000)
        subscriptions, subscription = wide_watch(buffer)
        version, split = 0, rng.randrange(1, 8)
        for step in range(10):
            told = sorted({version + rng.randrange(1, 4) for _ in range(rng.randrange(3))})
            version = max([version, *told]) + rng.randrange(2)
            subscriptions._take(subscription, ResumePoint(version), events(*told))
            for _ in range(rng.randrange(3)):
                buffer.take()
            if step == split:
                subscriptions._dispatcher.table = table(TOP // 2)
                subscriptions._narrow(subscription)
                assert [s.end for s in subscriptions._subscriptions] == [
                    (TOP // 2).to_bytes(8, "big"),
                    b"\xff" * 9,
                ]
                break
        rest = [e[2] for _, _, piece in buffer._pieces for e in piece]
        for _ in range(len(rest) + 1):
            waiting = [e[2] for _, _, piece in buffer._pieces for e in piece]
            assert at(subscriptions.delivered)[0] == at(subscriptions.delivered)[1]
            assert all(v < min([*waiting, version + 1]) for v in at(subscriptions.delivered)), seed
            buffer.take()
        assert at(subscriptions.delivered) == [version, version]
        for one in subscriptions._subscriptions:
            assert not one.marks
        await subscriptions.close()
