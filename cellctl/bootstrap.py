"""Making a cluster, once: cells, configs and meta records in etcd. Resumable if interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from metastore import schema
from metastore.coordination.interface import Compare, Coordinator, Put
from metastore.errors import ConfigError, CoordinationError
from metastore.fields import BadRecord
from metastore.keys import HASH_NAME
from metastore.layout import (
    FORMAT,
    CellRecord,
    ClusterMeta,
    Layout,
    NodeRecord,
    to_json,
)
from metastore.placement import RING, plan_initial


async def registered_nodes(coordinator: Coordinator, layout: Layout) -> dict[str, NodeRecord]:
    """Nodes that have registered, by name; without those whose records are not valid."""
    _, kvs = await coordinator.range(layout.node(""))
    found = {}
    for kv in kvs:
        with contextlib.suppress(BadRecord):
            record = schema.read_record(layout.parse(kv.key), kv.value, NodeRecord)
            found[record.node] = record
    return found


class RecordsLost(ConfigError):
    """etcd has no records of the cluster, and nodes have data of it: new records, which begin with the first term, would
    contradict all that the stores have promised. The way back is ``cellctl control rebuild``."""


Lost = Callable[[], Awaitable[str]]
"""What nodes say that shows that etcd has lost the cluster's records; "" = nothing does."""


async def never_lost() -> str:
    """Of nodes that are made just now."""
    return ""


async def wait_for_nodes(
    coordinator: Coordinator, layout: Layout, wanted: Sequence[str], timeout_s: float, lost: Lost = never_lost
) -> dict[str, NodeRecord]:
    """Raises ConfigError naming the nodes that did not register in time; RecordsLost."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    missing = list(wanted)
    while True:
        if why := await lost():
            raise RecordsLost(f"etcd has no records of cluster {layout.cluster}, and {why}")
        try:
            found = await registered_nodes(coordinator, layout)
            missing = [n for n in wanted if n not in found]
            if not missing:
                if why := await lost():  # of who has just been registered too
                    raise RecordsLost(f"etcd has no records of cluster {layout.cluster}, and {why}")
                return found
        except CoordinationError:
            pass
        if asyncio.get_running_loop().time() > deadline:
            raise ConfigError(f"not registered after {timeout_s:.0f} s: {', '.join(missing)}; see their logs")
        await asyncio.sleep(0.05)


async def bootstrap(
    coordinator: Coordinator,
    cluster: str,
    cells: Mapping[str, Sequence[str]],
    partitions: int,
    timeout_s: float = 30,
    lost: Lost = never_lost,
) -> bool:
    """Make the cluster's records unless they exist; whether they were made now. Raises RecordsLost when it is no new
    cluster: nothing is written then.

    Each record is written only if absent and the meta record last, so that an interrupted run
    is simply run again. Raises ConfigError when the cluster exists with other figures.
    """
    layout = Layout(cluster)
    existing = await coordinator.get(layout.meta)
    if existing is not None:
        meta = ClusterMeta.from_json(existing.value)
        if meta.partitions != partitions:
            raise ConfigError(
                f"cluster {cluster} was made with {meta.partitions} partitions, not {partitions}; the number cannot be changed: leave it out, or split partitions"
            )
        return False
    names = [n for nodes in cells.values() for n in nodes]
    found = await wait_for_nodes(coordinator, layout, names, timeout_s, lost)
    plan = plan_initial({cell: [found[n] for n in nodes] for cell, nodes in cells.items()}, partitions)
    for cell, configs in plan.items():
        key = layout.cell(cell)
        await coordinator.txn([Compare.absent(key)], [Put(key, CellRecord().to_json())])
        for config in configs:
            key = layout.config(cell, config.partition)
            await coordinator.txn([Compare.absent(key)], [Put(key, config.to_json())])
    meta = ClusterMeta(FORMAT, cluster, partitions, HASH_NAME, RING)
    await coordinator.txn([Compare.absent(layout.meta)], [Put(layout.meta, to_json(meta))])
    return True
