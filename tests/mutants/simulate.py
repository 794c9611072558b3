"""A bounded run of a simulation, for a mutation that no other test has noticed: ``core: hand-offs, cuts``."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tests.simulation.core import plans as core_plans
from tests.simulation.core import world as core_world
from tests.simulation.process import plans as process_plans
from tests.simulation.process import world as process_world
from tests.simulation.seeds import seeds_of
from tests.simulation.violation import Violation

CPU_S = 60.0
MAX_SEEDS = 200
OF: dict[str, tuple[Any, Any]] = {
    "core": (core_world.world_of, core_plans.PLANS),
    "process": (process_world.world_of, process_plans.PLANS),
}


def main(asked: str) -> int:
    """0: nothing was seen; 1: the first line of what was."""
    logging.disable(logging.CRITICAL)
    of, _, names = asked.partition(":")
    world_of, plans = OF[of.strip()]
    wanted = [name.strip() for name in names.split(",")] if names.strip() != "*" else list(plans)
    unknown = sorted(set(wanted) - set(plans))
    if unknown:
        print(f"no plan of the simulation is called {unknown}")
        return 2
    for seed in seeds_of(wanted, plans, MAX_SEEDS):
        if time.process_time() > CPU_S:
            break
        try:
            world_of(seed).play()
        except Violation as e:
            print(str(e).splitlines()[0])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
