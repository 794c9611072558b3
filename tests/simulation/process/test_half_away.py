"""etcd that is half there: leases live on and nobody is told anything, or nothing can be written. It counts as away,
so that a leader's death is not waited for (R9, R16)."""

from __future__ import annotations

import pytest

from tests.simulation.process.loop import MS
from tests.simulation.process.plans import Plan
from tests.simulation.process.world import World

PLAN = Plan(workloads={"registers": 1}, seconds=0.5, partitions=2)


@pytest.mark.parametrize("anew", [True, False], ids=["restarted", "running"])
@pytest.mark.parametrize("how", ["blind", "full"])
def test_a_leader_that_dies_is_replaced(how: str, anew: bool) -> None:
    """Perhaps all have been restarted meanwhile, so that nobody has read a record, or is registered."""
    world = World(11, PLAN)
    world.play()
    setattr(world.etcd, how, True)
    if anew:
        for process in world.processes.values():
            process.die(silently=False)
            process.restart()
    world.until(world.all_led, 10, f"it does not serve with etcd {how}")
    world.run(2_000 * MS)  # their leases and their ignorance get old
    for process in world.processes.values():
        assert process.node.control.session.alive
        assert not process.node.control.can_elect()
    victim = next(p for p in world.processes.values() if world.leads(p))
    victim.die(silently=False)
    world.until(world.all_led, 5, f"nobody takes over with etcd {how}")
    setattr(world.etcd, how, False)
    victim.restart()

    def in_order() -> bool:
        """Whoever leads is the one that etcd's record names, in the term that it says."""
        return world.all_led() and all(
            any(
                h.replica.role == "active"
                and (h.replica.ctx.me.node, h.replica.sealed_epoch >> 16)
                == (world.config(p).leader, world.config(p).epoch >> 16)
                for h in world.hosts(p)
            )
            for p in world.partitions()
        )

    world.until(in_order, 20, "etcd does not hear who leads")
