"""An operation that came with a later version of the protocol goes to nodes that speak it, and to no other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metastore.client import AsyncClient
from metastore.client.namespace import AsyncNamespace
from metastore.errors import NoCommonVersion
from metastore.operations import ADD, KIND_AT, LATER
from metastore.routing.connection import NodeConnection
from metastore.wire.versions import Spoken
from tests.unit.client.fake_node import FakeNode, good

NOW = 2


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LATER, ADD, NOW)
    monkeypatch.setattr(NodeConnection, "spoken", Spoken(1, NOW, "new"))


@contextlib.asynccontextmanager
async def served(*spoken: list[Any]) -> AsyncIterator[tuple[AsyncNamespace, list[int]]]:
    kinds: list[int] = []

    def answer(_: str, op: list[Any]) -> Any:
        kinds.append(op[KIND_AT])
        return good(op)

    async with FakeNode(answer) as node:
        node.spoken = list(spoken)
        async with AsyncClient(node.address) as client:
            yield client.namespace("n"), kinds


async def test_a_node_that_speaks_it_gets_it() -> None:
    async with served([1, NOW, "new"]) as (ns, kinds):
        await ns.add("d/a", 1)
        assert kinds == [ADD]


@pytest.mark.parametrize("spoken", [[], [[1, NOW - 1, "old"]]], ids=["says nothing", "says so"])
async def test_an_older_node_does_not(spoken: list[list[Any]]) -> None:
    async with served(*spoken) as (ns, kinds):
        with pytest.raises(
            NoCommonVersion, match=r"'add' needs version 2 .* node n1 speaks version 1: upgrade"
        ) as told:
            await ns.add("d/a", 1)
        assert told.value.outcome == "none"
        await ns.put("d/a", b"1")
        assert ADD not in kinds, "and the rest goes on"
        assert kinds
