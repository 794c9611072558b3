"""What is too large is refused before it is sent: it takes no room on its way, and nothing else suffers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore.client import PutResult
from metastore.client.results import Compare, Put
from metastore.errors import TooLarge
from metastore.keys import MAX_VALUE_BYTES
from metastore.operations import MAX_TXN_BYTES
from metastore.wire.op_checks import check_op
from tests.unit.client.fake_node import FakeNode, good
from tests.unit.client.test_answers import Call, client

MIB = b"x" * MAX_VALUE_BYTES
TOO_LARGE: dict[str, Call] = {
    "a value": lambda ns: ns.put("k", MIB + b"x"),
    "a value beyond a frame": lambda ns: ns.put("k", MIB * 17),
    "a value in a transaction": lambda ns: ns.txn([], [Put("d/a", MIB + b"x")]),
    "a transaction": lambda ns: ns.txn([], [Put(f"d/{n}", MIB) for n in range(2)]),
    "a transaction beyond a frame": lambda ns: ns.txn([], [Put(f"d/{n}", MIB) for n in range(20)]),
    "what it compares with": lambda ns: ns.txn(
        [Compare(f"d/{n}", "value", "==", MIB) for n in range(20)], [Put("d/a", b"")]
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_it_is_refused_here_and_what_goes_with_it_is_done(name: str) -> None:
    seen: list[list[Any]] = []

    def answer(_: str, op: list[Any]) -> list[Any]:
        seen.append(op)
        return good(op)

    async with FakeNode(answer) as node, client(node) as ns:
        large, small = await asyncio.wait_for(
            asyncio.gather(TOO_LARGE[name](ns), ns.put("small", b"v"), return_exceptions=True), 30
        )
    assert isinstance(large, TooLarge)
    assert large.outcome == "none"
    assert isinstance(small, PutResult)
    assert small.version == 8
    assert len(seen) == 1


async def test_a_node_counts_as_the_client_does() -> None:
    """Up to the very bound, compares with values and all."""
    sent: list[list[Any]] = []

    def answer(_: str, op: list[Any]) -> list[Any]:
        sent.append(op)
        return [op[0], 0, True, 12, [[0, 8, False], [0, 9, False]]]

    async with FakeNode(answer) as node, client(node) as ns:
        third = MAX_TXN_BYTES // 3 - 50
        puts = [Put(f"d/{n}", b"x" * third) for n in range(2)]
        await ns.txn([Compare("d/a", "value", "==", b"y" * third)], puts)
        op = sent[0]
        assert check_op(op) is None
        op[7][0][3] += b"y" * 300
        assert isinstance(check_op(op), TooLarge)
