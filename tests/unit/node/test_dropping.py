"""A partition leaves a node while operations wait there (R10): they are answered, and nothing else happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

from metastore.errors import MetastoreError
from metastore.layout import ConfigRecord, first_epoch
from tests.unit.node.single import Single

#: of writes that end when it comes, and not before the partition is dropped, however busy the machine is
PATIENT_S = 6.0


async def test_a_leader_is_dropped_while_writes_wait_for_a_slow_disk(tmp_path: Path) -> None:
    """What etcd's watch tells: another leader was elected, and moved the partition away."""
    async with Single(tmp_path) as s, s.client() as client:
        ns = client.namespace("n")
        await ns.put("a", b"1")
        go = s.block_syncs()
        first = asyncio.create_task(ns.put("b", b"2", deadline_s=PATIENT_S))
        while not s.store.syncing:
            await asyncio.sleep(0.005)
        second = asyncio.create_task(ns.put("c", b"3", deadline_s=PATIENT_S))
        while not s.host.writes.pending:
            await asyncio.sleep(0.005)
        record = ConfigRecord(0, 0, 1 << 64, first_epoch(5), "x", (("x", "sx"),))
        s.node.control.assignment.config_changed("c1", record, 50)
        s.node.ticks.run_effects()
        assert s.node.partitions == {}
        go.set()
        proposed, waited = await asyncio.gather(first, second, return_exceptions=True)
        assert s.node.failure is None
        assert isinstance(proposed, MetastoreError)
        assert proposed.outcome == "unknown"
        assert isinstance(waited, MetastoreError)
        assert waited.outcome == "none"
        assert s.node.admission.waiting == 0
