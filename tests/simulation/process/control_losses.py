"""etcd that loses its records: wiped, set back to what it was, or replaced by a copy of that. An operator rebuilds them from the
stores by the very code of ``cellctl control rebuild``, again and again until nobody distrusts it (R13)."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import orjson

from cellctl.control import carry_out, read_etcd
from cellctl.rebuild import compute
from cellctl.reports import Report, report_from_plain
from metastore.errors import MetastoreError
from metastore.layout import Layout
from metastore.node.control_report import control_view
from tests.simulation.process.etcd import SimCoordinator

if TYPE_CHECKING:
    from tests.simulation.process.world import World

LOOK_S = 0.3


class ControlLosses:
    """``seen``: how often each came to its end; ``rebuilt``: how often the operator wrote everything."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.events.random
        self.seen: dict[str, int] = {}
        self.rebuilt = 0
        self._kept: tuple[int, dict[str, Any]] | None = None
        self._works = False

    def lose(self) -> None:
        """Not again before it was found and rebuilt."""
        if not self.is_over():
            return
        how = self.random.choice(("wiped", "set back", "replaced"))
        etcd = self.world.etcd
        kept: tuple[int, dict[str, Any]]
        if self._kept is None or how == "wiped":
            how, kept = "wiped", (1, {})
        else:
            kept = self._kept
        self._kept = etcd.revision, copy.copy(etcd.kvs)
        etcd.revision, etcd.kvs = kept[0], dict(kept[1])
        if how != "set back":
            etcd.cluster_id += 1
        for lease in list(etcd.leases):
            del etcd.leases[lease]
        etcd.compact()
        self.seen[how] = self.seen.get(how, 0) + 1
        self.world.tell(f"etcd is {how}, to revision {etcd.revision}")
        if not self._works:
            self._works = True
            loop = self.world.operator
            loop.enter(lambda: loop.create_task(self._operate()))

    def is_over(self) -> bool:
        """Whether everybody trusts etcd as it is."""
        if not self.seen:
            return True
        etcd = self.world.etcd
        for process in self.world.processes.values():
            if not process.runs or not hasattr(process.node.control, "coordinator"):
                return False
            coordinator: Any = process.node.control.coordinator
            if coordinator.untrusted or coordinator.cluster_id != etcd.cluster_id:
                return False
            if coordinator.revision > coordinator.base + etcd.revision:
                return False
        return True

    def reports(self) -> list[Report]:
        """Of the nodes that answer now."""
        return [
            report_from_plain(orjson.loads(orjson.dumps(control_view(process.node))), "sim")
            for process in self.world.processes.values()
            if process.runs and process.node.failure is None
        ]

    async def _operate(self) -> None:
        world, layout = self.world, Layout("sim")
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                coordinator = SimCoordinator(world.network, world.etcd, "operator")
                result = compute(layout, await read_etcd(coordinator, layout), self.reports())
                if result.needed:
                    await carry_out(coordinator, result)
                    self.rebuilt += 1
                    world.tell(f"etcd is rebuilt: {len(result.configs)} partitions, {len(result.kept)} kept")
                elif result.refused:
                    world.tell(f"the operator waits: {result.refused}")
            except MetastoreError as e:
                world.tell(f"the operator: {e.message}")
