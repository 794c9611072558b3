"""Records in etcd that make no sense, on a real cluster: nobody fails, everything may be restarted meanwhile, and all is
well when they are gone. (Every field and type: unit/node/test_poison.py.)"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import pytest
from aetcd import rpc

from cellctl.connect import Where, etcd_endpoints
from metastore.coordination.etcd import EtcdCoordinator
from metastore.layout import ConfigRecord, Layout
from tests.integration.harness import Cluster, Load, cellctl, keys_by_partition, until
from tests.processes import PATIENCE_S

LAYOUT = Layout("dev")
MEMBERS = (("c1n1", "s"), ("c1n2", "s"), ("c1n3", "s"))
#: keys that were not there, and nonsense for them
NEW = {
    b"nodes/ghost": b'{"node": "ghost", "cell": "c1", "store_id": "s", "rpc": 5, "http": "h:1"}',
    b"nodes/\xff\xfe": b"{}",
    b"nodes/other": b'{"node": "c1n1", "cell": "c1", "store_id": "s", "rpc": "h:1", "http": "h:1"}',
    b"namespaces/ns": b'{"routing": 7}',
    b"moves/00001": b"[",
    b"splits/00001": b'{"partition": 1, "child": "x", "at": 5}',
    b"usage/c1n9": b'{"ns": ["a", "b"]}',
    b"\xff": b"",
}
#: a range that is others'
OVERLAP = b"config/c1/00077", ConfigRecord(77, 5, 1 << 62, 1 << 16, "c1n1", MEMBERS).to_json()
#: records that are there, and what is done to them
HURT = {b"config/c1/00003": b'{"partition": 3', b"cells/c1": b'{"weight": "x"}'}


class Etcd:
    """Writes any bytes under the cluster's root."""

    def __init__(self, cell: Cluster) -> None:
        self._coordinator = EtcdCoordinator(etcd_endpoints(Where(None, cell.data, None)))
        self._root = LAYOUT.root.encode()

    async def put(self, key: bytes, value: bytes) -> None:
        client = await self._coordinator.client()
        await client.kvstub.Put(rpc.PutRequest(key=self._root + key, value=value), timeout=PATIENCE_S)

    async def get(self, key: bytes) -> bytes:
        client = await self._coordinator.client()
        found = await client.kvstub.Range(rpc.RangeRequest(key=self._root + key), timeout=PATIENCE_S)
        return bytes(found.kvs[0].value)

    async def delete(self, key: bytes) -> None:
        client = await self._coordinator.client()
        await client.kvstub.DeleteRange(rpc.DeleteRangeRequest(key=self._root + key), timeout=PATIENCE_S)

    async def close(self) -> None:
        await self._coordinator.close()


def met(cell: Cluster, name: str) -> tuple[int, list[int]]:
    """How many records make no sense, as a node says, and which partitions fit nowhere."""
    records = cell.status(name)["etcd"]["records"]
    return records["bad_now"], records["aside"]


def about_records(cell: Cluster) -> set[str]:
    """What doctor says of records and ranges."""
    done = cellctl("doctor", "--data", str(cell.data), "-o", "json", check=False)
    found = json.loads(done.stdout)
    return {f["about"] for f in found if f["about"].startswith("record ") or "its record" in f["what"]}


async def under_load(cell: Cluster, seconds: float, turn: int) -> None:
    """No operation fails, and nothing is lost. Each ``turn`` writes keys of its own."""
    async with cell.client() as client:
        keys = [keys[turn] for keys in keys_by_partition(client, turn + 1).values()]
        load = Load(client, keys, pause_s=0.02)
        await load.run(seconds)
        await load.check_all()
        assert not load.failures(), load.failures()[:5]


@pytest.mark.nightly
async def test_nonsense_in_etcd_stops_nobody(steady_cell: Cluster) -> None:
    cell, etcd = steady_cell, Etcd(steady_cell)
    good = {key: await etcd.get(key) for key in HURT}
    loaded = asyncio.create_task(under_load(cell, 12, 0))
    await asyncio.sleep(1)
    for key, value in (NEW | HURT | dict([OVERLAP])).items():
        await etcd.put(key, value)
    count = len(NEW) + len(HURT)
    for name in cell.names():
        await until(f"{name} has met all of it", lambda n=name: met(cell, n) == (count, [77]))
    named = await asyncio.to_thread(about_records, cell)
    assert len(named) == count + 1, named
    assert f"record {LAYOUT.root}nodes/\\xff\\xfe" in named
    await loaded

    # everything at once, while it is there: what was known before is on disk
    cell.verb("restart", *cell.names(), "router")
    cell.wait_until_led(8)
    await under_load(cell, 3, 1)
    assert cellctl("kv", "put", "--data", str(cell.data), "a", "b").returncode == 0
    # nor does the loss of the leader of the partition whose record makes no sense stop it
    leader = cell.leaders()[3][0]
    cell.verb("kill", leader)
    await until("another goes on", lambda: cell.leaders().get(3, ("", 0))[0] not in ("", leader))
    cell.verb("restart", leader)
    await under_load(cell, 1, 2)

    for key in [*NEW, OVERLAP[0]]:
        await etcd.delete(key)
    for key, value in good.items():
        await etcd.put(key, value)
    for name in cell.names():
        await until(f"{name} is well", lambda n=name: met(cell, n) == (0, []))
    await until("doctor finds nothing of it", lambda: about_records(cell) == set())

    # a node's own record: it writes it anew, at the latest when it starts
    await etcd.put(b"nodes/c1n2", b'{"rpc": 5}')
    await under_load(cell, 3, 3)
    cell.verb("restart", *cell.names())
    cell.wait_until_led(8)
    await under_load(cell, 2, 4)
    assert json.loads(await etcd.get(b"nodes/c1n2"))["node"] == "c1n2"
    await etcd.close()


async def test_what_was_removed_is_known_to_nobody(steady_cell: Cluster) -> None:
    """A node and a namespace: also where they were learned from others, and after a restart of everything."""
    cell, etcd = steady_cell, Etcd(steady_cell)
    ghost = b'{"node": "ghost", "cell": "c1", "store_id": "s", "rpc": "127.0.0.1:9", "http": "127.0.0.1:9"}'
    await etcd.put(b"nodes/ghost", ghost)
    await etcd.put(b"namespaces/gone", b'{"routing": "key"}')

    def known() -> set[str]:
        """Who knows the node or the namespace."""
        told = cellctl("topology", "--data", str(cell.data), check=False).stdout
        shown = {"router"} if "ghost" in told else set()
        for name in cell.names():
            table = topology_of(cell, name)
            if any(n["node"] == "ghost" for n in table["nodes"]) or table["namespaces"]:
                shown.add(name)
        return shown

    await until("all know them", lambda: len(known()) == 4)
    async with cell.client() as client:
        assert "ghost" in client.dispatcher.table.nodes
        await etcd.delete(b"nodes/ghost")
        await etcd.delete(b"namespaces/gone")
        await until("nobody knows them", lambda: not known())

        async def client_knows() -> bool:
            await client.dispatcher.refresh()
            table = client.dispatcher.table
            return "ghost" in table.nodes or bool(table.namespaces)

        async def client_has_forgotten() -> bool:
            return not await client_knows()

        await until("nor does a client", client_has_forgotten)
    cell.verb("restart", *cell.names(), "router")
    cell.wait_until_led(8)
    assert not known()
    await etcd.close()


def topology_of(cell: Cluster, name: str) -> dict[str, Any]:
    """A node's table."""
    with urllib.request.urlopen(cell.node(name)["http"] + "/v1/topology", timeout=PATIENCE_S) as response:
        found: dict[str, Any] = json.loads(response.read())
        return found
