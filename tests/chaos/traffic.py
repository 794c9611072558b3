"""Clients at work on a few keys of every partition, and their history."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from metastore.client import AsyncClient, AsyncNamespace
from metastore.errors import ConditionFailed, MetastoreError
from metastore.history import Version
from tests.checkers.history import ABSENT, Operation

TASKS = 12
KEYS_PER_PARTITION = 2
DEADLINE_S = 5.0
PAUSE_S = 0.004


@dataclass
class Traffic:
    """``TASKS`` tasks over a few clients; ``history`` holds what each saw, in nanoseconds."""

    clients: list[AsyncClient]
    keys: list[str]
    seed: int
    history: list[Operation] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    stop: bool = False
    #: the clock of the history, in nanoseconds
    clock: Callable[[], int] = time.monotonic_ns
    tasks: int = TASKS
    #: distinguishes the values of several of these
    name: str = ""
    #: key -> a version some task saw last, for conditions that have a chance to hold
    versions: dict[str, int] = field(default_factory=dict)

    namespace = "chaos"

    async def run(self) -> None:
        await asyncio.gather(*(self._task(n) for n in range(self.tasks)))

    async def _task(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        ns = self.clients[number % len(self.clients)].namespace("chaos")
        count = 0
        while not self.stop:
            count += 1
            await self.one(number, ns, rng.choice(self.keys), rng.random(), f"{self.name}{number}.{count}")
            await asyncio.sleep(PAUSE_S * rng.random() * 2)

    async def one(self, number: int, ns: AsyncNamespace, key: str, dice: float, value: str) -> Operation:
        """One operation, chosen by ``dice``; its entry in the history."""
        kind, when = "put", None
        if dice < 0.45:
            kind = "read"
        elif dice > 0.92:
            kind = "delete"
        elif dice > 0.65:
            when = self.versions.get(key, ABSENT)
        began = self.clock()
        outcome, version, seen = "ok", 0, value if kind == "put" else ""
        try:
            if kind == "read":
                record = await ns.get(key, deadline_s=DEADLINE_S)
                if record is not None:
                    seen, version = record.value.decode(), record.version
            elif kind == "delete":
                version = await ns.delete(key, deadline_s=DEADLINE_S)
            else:
                condition = None if when is None or when == ABSENT else Version(when)
                result = await ns.put(
                    key,
                    value.encode(),
                    version=condition,
                    absent=when == ABSENT,
                    deadline_s=DEADLINE_S,
                )
                version = result.version
        except ConditionFailed as e:
            outcome, version = "refused", e.detail["version"]
        except MetastoreError as e:
            outcome = e.outcome
            self.errors[e.code] = self.errors.get(e.code, 0) + 1
        if outcome != "unknown" and outcome != "none":
            self.versions[key] = 0 if kind == "delete" or (kind == "read" and not seen) else version
        op = Operation(number, key, kind, began, self.clock(), outcome, seen, version, when)
        self.history.append(op)
        return op

    async def until_all_serve(self, patience_s: float) -> float:
        """Seconds until every key takes a write again; raises AssertionError when it takes longer."""
        began = self.clock()
        ns = self.clients[0].namespace("chaos")
        for number, key in enumerate(self.keys):
            while (
                await self.one(self.tasks, ns, key, 0.5, f"{self.name}back.{number}.{self.clock()}")
            ).outcome != "ok":
                assert self.clock() - began < patience_s * 1e9, (
                    f"{key} takes no write {patience_s} s after healing"
                )
                await asyncio.sleep(0.1)
        return (self.clock() - began) / 1e9

    async def read_all(self) -> None:
        """A last look at every key."""
        ns = self.clients[-1].namespace("chaos")
        for key in self.keys:
            await self.one(self.tasks, ns, key, 0.0, "")
