"""A namespace whose record makes no sense, and whose policy nobody here has ever known: it exists, and nothing of it is read or
written; everything else goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from metastore.client import AsyncNamespace, Compare, Put
from metastore.coordination.interface import KV, Change
from metastore.errors import ConditionRequired, DeadlineExceeded, MetastoreError, Unavailable
from metastore.following import Following
from metastore.keys import storage_key_of
from metastore.layout import Layout
from metastore.namespaces import Policy
from metastore.topology import TopologyTable
from tests.unit.node.single import Single

KEY = "/metastore/metastore/namespaces/bad"
BAD = b'{"routing": 5, "require_condition": true}'


def deliver(single: Single, value: bytes | None, revision: int) -> None:
    """etcd's watch tells of the record."""
    new = None if value is None else KV(KEY, value, revision, revision)
    Following(Layout("metastore"), single.node.topology).take(revision, [Change(KEY, None, new)])


CALLS: dict[str, Callable[[AsyncNamespace], Awaitable[object]]] = {
    "get": lambda ns: ns.get("d/k", deadline_s=0.5),
    "put": lambda ns: ns.put("d/k", b"v", deadline_s=0.5),
    "delete": lambda ns: ns.delete("d/k", deadline_s=0.5),
    "add": lambda ns: ns.add("d/n", 1, deadline_s=0.5),
    "touch": lambda ns: ns.touch("d/k", deadline_s=0.5),
    "list": lambda ns: ns.list("d/", deadline_s=0.5),
    "txn": lambda ns: ns.txn([Compare.absent("d/x")], [Put("d/x", b"")], deadline_s=0.5),
}


async def test_what_is_not_known_is_neither_read_nor_written(tmp_path: Path) -> None:
    async with Single(tmp_path) as single, single.client() as client:
        ns = client.namespace("bad")
        await client.namespace("other").put("d/k", b"v")
        deliver(single, BAD, 5)
        for name, call in CALLS.items():
            with pytest.raises(MetastoreError, match="repair or remove that record") as found:
                await call(ns)
            assert isinstance(found.value, Unavailable | DeadlineExceeded), name
            assert KEY in found.value.message
        start = storage_key_of("bad", "d/")
        refused = single.node.policies.refuse_range(start, start + b"\xff")  # a watch of it
        assert refused is not None
        assert KEY in refused.message
        assert await client.namespace("other").get("d/k") is not None
        deliver(single, None, 6)  # removed
        await ns.put("d/k", b"v")
        for call in CALLS.values():
            await call(ns)


async def test_a_policy_that_was_known_holds(tmp_path: Path) -> None:
    async with Single(tmp_path) as single, single.client() as client:
        ns = client.namespace("bad")
        deliver(single, Policy(require_condition=True).to_json(), 4)
        deliver(single, BAD, 5)
        with pytest.raises(ConditionRequired):
            await ns.put("d/k", b"v")
        await ns.put("d/k", b"v", absent=True)
        assert (await ns.get("d/k")) is not None


async def test_it_is_as_closed_after_a_restart(tmp_path: Path) -> None:
    """By what the node kept, until etcd tells it anew; also where what was kept of it makes no sense any more."""
    async with Single(tmp_path) as single:
        deliver(single, BAD, 5)
        kept = single.node.topology.to_wire() | {"nodes": [], "partitions": []}
    for wire in (kept, kept | {"unreadable": [], "namespaces": [["bad", {"routing": 5}]]}):
        async with Single(tmp_path / str(len(wire["namespaces"]))) as single, single.client() as client:
            single.node.topology.merge(TopologyTable.from_wire(wire))
            with pytest.raises(MetastoreError, match="is not valid"):
                await client.namespace("bad").get("d/k", deadline_s=0.5)
