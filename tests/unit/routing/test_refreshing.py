"""What a client asks for when it asks for the topology: what has changed, or all of it."""

from __future__ import annotations

from typing import Any

import pytest

from metastore.layout import NodeRecord
from metastore.routing import directory
from metastore.routing.dispatcher import Dispatcher
from metastore.routing.pool import Pool
from metastore.topology import Placement, TopologyTable


async def test_all_is_asked_for_when_what_is_known_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is wrong at the revision that it says would stay so: nothing has changed since."""
    told = TopologyTable("c")
    told.revision = 5
    told.nodes = {"n1": NodeRecord("n1", "c1", "s1", "127.0.0.1:1", "127.0.0.1:2")}
    told.partitions = {0: Placement(0, 0, 1 << 64, "c1", ("n1",), "n1", 1 << 16, None, ("s1",))}
    asked: list[int] = []

    class Connection:
        async def topology(self, timeout_s: float, since: int = 0) -> Any:
            asked.append(since)
            whole = told.to_wire()
            return {**whole, "since": since, "nodes": [], "partitions": []} if since else whole

    async def connect(self: Pool, address: str) -> Connection:
        return Connection()

    monkeypatch.setattr(Pool, "connect", connect)
    monkeypatch.setattr(directory, "MIN_REFRESH_GAP_S", 0.0)
    client = Dispatcher(["127.0.0.1:1"], "c")
    assert await client.refresh()
    client.directory._begin_refresh()
    assert client.directory._refreshing is not None
    await client.directory._refreshing
    assert await client.refresh(), "in doubt, and all of it was told a moment ago"
    assert asked == [0, 5, 5]
    monkeypatch.setattr(directory, "REFRESH_S", 0.0)
    client.directory._begin_refresh()
    await client.directory._refreshing
    client.directory._begin_refresh()
    await client.directory._refreshing
    assert asked == [0, 5, 5, 0, 5], "once, and no more than that"
