"""One run of either simulation, and what came of it."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from tests.simulation.core import world as core
from tests.simulation.process import world as process
from tests.simulation.violation import Violation

CORE, PROCESS = "core", "process"


class Run(NamedTuple):
    """``problem``: what was found, with its story; "" when all was well."""

    of: str
    seed: int
    plan: str
    events: int
    cpu_s: float
    digest: str
    story: str
    problem: str


def run(of: str, seed: int, steps: int = 0) -> Run:
    """Play ``seed`` of the simulation ``of``, at most so many ``steps`` of it (0: to its end)."""
    logging.disable(logging.CRITICAL)  # nodes that are killed and starved have much to say
    began = time.process_time()
    world = core.world_of(seed, steps) if of == CORE else process.world_of(seed, steps)
    problem = ""
    try:
        world.play()
    except Violation as e:
        problem = str(e)
    took = time.process_time() - began
    return Run(of, seed, world.name, world.done, took, world.digest.hexdigest(), world.told(), problem)
