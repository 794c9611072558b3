"""What an operation costs, counted: ``python -m bench.smoke`` (a minute; what CI prints).

Function calls per operation do not depend on the machine or on what else it does. Three nodes and a client run in
simulated time in one process, on simulated disks and network, with everything of metastore as it is; counted
are calls of its functions, by package, for puts and gets of 100 bytes, one at a time and 64 at a time. Beside
them the CPU time of the same, which depends on the machine. ``bench/smoke.json`` has the calls as they were when last
looked at: what has grown by half or more is told, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import metastore
from bench.measure import show
from metastore.client import AsyncClient
from tests.simulation.process.plans import Plan
from tests.simulation.process.world import World, surroundings

ROOT = Path(metastore.__file__).parent
KEPT = Path(__file__).parent / "smoke.json"
OPERATIONS = 2048
TOO_MUCH = 1.5
#: of LMDB itself no call is counted either
IN_PLACE_OF_LMDB = ("storage", "memory_engine.py")
PACKAGES = ("client", "routing", "wire", "node", "partition", "core", "storage")


class Calls:
    """Counts calls into metastore, by package. Use as a context."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._package: dict[Any, str | None] = {}

    def _of(self, filename: str) -> str | None:
        try:
            parts = Path(filename).relative_to(ROOT).parts
        except ValueError:
            return None
        if parts == IN_PLACE_OF_LMDB:
            return None
        first = parts[0]
        return first if first in PACKAGES else "other"

    def _called(self, frame: Any, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in self._package:
                self._package[code] = self._of(code.co_filename)
            package = self._package[code]
            if package is not None:
                self.count[package] += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def world() -> tuple[World, Any, AsyncClient]:
    """A cluster that is led, and a client of it."""
    made = World(7, Plan(workloads={}, partitions=2, seconds=1.0), name="smoke")
    made._play()
    loop, client = made.workloads.client()
    return made, loop, client


def turn(made: World, loop: Any, client: AsyncClient, kind: str, at_once: int) -> None:
    ns = client.namespace("bench")

    async def run() -> None:
        numbers = iter(range(OPERATIONS))

        async def worker() -> None:
            for n in numbers:
                if kind == "put":
                    await ns.put(f"d{n % 16}/k{n % 512}", b"x" * 100)
                else:
                    await ns.get(f"d{n % 16}/k{n % 512}")

        await asyncio.gather(*(worker() for _ in range(at_once)))

    made.await_(loop, run, 600)


def measure() -> dict[str, dict[str, float]]:
    """``put x 64`` and the like -> calls per operation by package, and in all; ``µs``: CPU."""
    found: dict[str, dict[str, float]] = {}
    with surroundings():
        made, loop, client = world()
        for kind in ("put", "get"):
            for at_once in (1, 64):
                turn(made, loop, client, kind, at_once)  # warm
                began = time.process_time()
                turn(made, loop, client, kind, at_once)
                cpu_us = (time.process_time() - began) / OPERATIONS * 1e6
                with Calls() as calls:
                    turn(made, loop, client, kind, at_once)
                row = {p: round(calls.count[p] / OPERATIONS, 1) for p in PACKAGES}
                row["all"] = round(sum(calls.count.values()) / OPERATIONS, 1)
                found[f"{kind} x {at_once}"] = row | {"µs": round(cpu_us, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="these are the calls to compare with from now on")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = measure()
    grown = table(found)
    if args.keep:
        calls = {name: {k: v for k, v in row.items() if k != "µs"} for name, row in found.items()}
        KEPT.write_text(json.dumps(calls, indent=1) + "\n")
    for line in grown:
        print(f"costs more than before: {line}")
    sys.exit(1 if grown else 0)


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Shows it; what costs much more than when it was last kept."""
    kept: dict[str, dict[str, float]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    rows: list[list[Any]] = []
    grown: list[str] = []
    for name, row in found.items():
        before = kept.get(name, {}).get("all")
        rows.append([name, *(row[p] for p in PACKAGES), row["all"], before or "-", row["µs"]])
        if before and row["all"] >= TOO_MUCH * before:
            grown.append(f"{name}: {row['all']} calls, {before} before")
    show(["operation", *PACKAGES, "all calls/op", "kept", "CPU µs/op, client and three nodes"], rows)
    return grown


if __name__ == "__main__":
    main()
