"""What is made of a watch's delivery: of each record its last change, in an order that can be acted on."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from metastore import following as following_module
from metastore import schema
from metastore.coordination.interface import KV, Change
from metastore.following import Following
from metastore.layout import ConfigRecord, Layout, MoveRecord, first_epoch
from metastore.topology import TopologyTable

LAYOUT = Layout("m")
RECORD = ConfigRecord(0, 0, 1 << 64, first_epoch(1), "a", (("a", "sa"),))
HERE, THERE = LAYOUT.config("c1", 0), LAYOUT.config("c2", 0)
MOVE = MoveRecord(0, "c1", (("a", "sa"),), False, "test")

GOOD, BAD, GONE = "good", "bad", "gone"


def change(key: str, value: bytes | None, revision: int) -> Change:
    return Change(key, None, None if value is None else KV(key, value, revision, revision, 0))


def delivered(*changes: tuple[str, bytes | None]) -> tuple[Following, list[tuple[str, str]]]:
    """The follower, and what there is to act on: (kind and cell or number, state)."""
    following = Following(LAYOUT, TopologyTable())
    seen = following.take(9, [change(key, value, i) for i, (key, value) in enumerate(changes, 1)])
    states = {True: BAD, False: GOOD}
    return following, [("/".join(s.parts[:2]), GONE if s.new is None else states[s.bad]) for s in seen]


@pytest.mark.parametrize("states", list(itertools.product((GOOD, BAD, GONE), repeat=3)), ids="-".join)
def test_of_each_record_its_last_change(states: tuple[str, ...]) -> None:
    """And, where that makes no sense, the last one that does: what was known holds until it is mended."""
    values = {GOOD: MOVE.to_json(), BAD: b"{", GONE: None}
    following, seen = delivered(*((LAYOUT.move(0), values[state]) for state in states))
    sense = [state for state in states if state != BAD]
    wanted = [states[-1]] if states[-1] != BAD else [*sense[-1:], BAD]
    assert [state for _, state in seen] == wanted
    assert bool(following.bad) == (states[-1] == BAD)
    assert ("moves/00000" in following.table.unreadable) == (states[-1] == BAD)


def test_what_ends_and_begins_again_is_there() -> None:
    """A move has ended, and the next one is wanted, before anybody has looked."""
    assert delivered((LAYOUT.move(0), None), (LAYOUT.move(0), MOVE.to_json()))[1] == [("moves/00000", GOOD)]


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_removed_goes_last(order: int) -> None:
    """A partition that has moved to another cell has its new record by then."""
    following, seen = delivered(*[(HERE, None), (THERE, RECORD.to_json())][::order])
    assert seen == [("config/c2", GOOD), ("config/c1", GONE)]
    assert following.table.partitions[0].cell == "c2"


async def test_what_is_read_ahead_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a slice of records in one stretch, and what is taken then is read no second time, but for what has
    changed or makes no sense."""
    layout = Layout("c")
    following = Following(layout, TopologyTable("c"))
    content = [KV(layout.namespace(f"ns{i}"), b'{"max_records":5}', 5, 5) for i in range(1001)]
    content.append(KV(layout.namespace("bad"), b'{"max_records":"x"}', 5, 5))
    reading, turns, longest = 0, 0, 0
    read = schema.read

    def counted(parts: Any, value: bytes) -> Any:
        nonlocal reading, longest
        reading += 1
        longest = max(longest, reading)
        return read(parts, value)

    monkeypatch.setattr(schema, "read", counted)

    async def others() -> None:
        nonlocal turns, reading
        while True:
            turns, reading = turns + 1, 0
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await following.read_ahead(content)
    other.cancel()
    assert longest <= following_module.SLICE_RECORDS
    assert turns >= 5
    reading = 0
    content[7] = KV(content[7].key, b'{"max_records":9}', 6, 5)
    following.take(6, [Change(kv.key, None, kv) for kv in content])
    assert reading == 2
    assert following.table.policy("ns7").max_records == 9
    assert following.table.policy("ns8").max_records == 5
    assert list(following.bad) == [layout.namespace("bad")]
    # and what was read once says nothing of what comes later
    later = KV(content[8].key, b'{"max_records":1}', 7, 5)
    following.take(7, [Change(later.key, content[8], later)])
    assert following.table.policy("ns8").max_records == 1
