"""Making a cluster: not where there is one whose records were lost (R13)."""

from __future__ import annotations

import pytest

from cellctl.bootstrap import RecordsLost, bootstrap
from metastore.coordination.interface import Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.layout import ConfigRecord, Layout, NodeRecord, to_json

LAYOUT = Layout("c")


async def made(etcd: MemoryEtcd, lost: str) -> bool:
    async def told() -> str:
        return lost

    coordinator = MemoryCoordinator(etcd, lambda: 0.0)
    return await bootstrap(coordinator, "c", {"c1": ["n1"]}, 2, 5.0, told)


async def test_no_first_terms_are_written_where_stores_have_later_ones() -> None:
    etcd = MemoryEtcd()
    node = NodeRecord("n1", "c1", "s1", "127.0.0.1:1", "127.0.0.1:2")
    etcd.txn([], [Put(LAYOUT.node("n1"), to_json(node))], [])
    with pytest.raises(RecordsLost, match="no records of cluster c, and node n1 distrusts it"):
        await made(etcd, "node n1 distrusts it")
    assert list(etcd.kvs) == [LAYOUT.node("n1")]
    assert await made(etcd, "")
    assert ConfigRecord.from_json(etcd.kvs[LAYOUT.config("c1", 0)].value).epoch == 0
    assert not await made(etcd, "node n1 distrusts it"), "the records are there: it is made already"
