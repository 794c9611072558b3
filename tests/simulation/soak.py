"""Fresh seeds for as long as told, in parallel: ``make soak SECONDS=3600 JOBS=4``.

``python -m tests.simulation.soak [--seconds S | --count N] [--jobs J] [--of core|process] [--first SEED]``

Prints every seed that fails with its story, and events per second; exits with 1 when one failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import sys
import time
import traceback
from typing import Any

from tests.simulation.runs import CORE, PROCESS, Run, run

TELL_EVERY_S = 30.0
MAX_STORIES = 20


def work(kinds: list[str], first: int, count: int, until: float, following: Any, results: Any) -> None:
    """Take seeds until there are none left, or the time is over. Each simulation in turn."""
    while time.monotonic() < until:
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= count:
            break
        of, seed = kinds[number % len(kinds)], first + number // len(kinds)
        try:
            results.put(run(of, seed))
        except Exception:  # a fault of the simulation itself
            results.put(Run(of, seed, "?", 0, 0.0, "", "", traceback.format_exc()))
    results.put(None)


def soak(kinds: list[str], first: int, count: int, seconds: float, jobs: int) -> int:
    """How many seeds failed."""
    context = multiprocessing.get_context("fork")
    following, results = context.Value("q", 0), context.Queue()
    began = time.monotonic()
    until = began + seconds
    workers = [
        context.Process(target=work, args=(kinds, first, count, until, following, results), daemon=True)
        for _ in range(jobs)
    ]
    for worker in workers:
        worker.start()
    print(f"seeds of {' and '.join(kinds)} from {first}, {jobs} at a time", flush=True)
    seen: dict[str, list[Run]] = {of: [] for of in kinds}
    failed: list[Run] = []
    left, tell_at = jobs, began + TELL_EVERY_S
    while left:
        try:
            result = results.get(timeout=1.0)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                print("a worker is gone without a word")
                return len(failed) + 1
            continue
        if result is None:
            left -= 1
            continue
        seen[result.of].append(result._replace(story=""))
        if result.problem:
            failed.append(result)
            if len(failed) <= MAX_STORIES:
                print(f"\nFAILED: {result.of}\n{result.problem}\n", flush=True)
        if time.monotonic() >= tell_at:
            tell_at += TELL_EVERY_S
            tell(seen, len(failed), time.monotonic() - began)
    tell(seen, len(failed), time.monotonic() - began)
    for result in failed:
        print(f"failed: make sim OF={result.of} SEED={result.seed}  ({result.plan})")
    return len(failed)


def tell(seen: dict[str, list[Run]], failed: int, elapsed_s: float) -> None:
    parts = []
    for of, runs in seen.items():
        events, cpu_s = sum(r.events for r in runs), sum(r.cpu_s for r in runs)
        rate = f"{events / cpu_s:,.0f}" if cpu_s else "no"
        parts.append(f"{len(runs)} seeds of {of}, {events:,} events, {rate} events per CPU second")
    print(f"{elapsed_s:.0f} s: {'; '.join(parts)}; {failed} failed", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=0, help="so many seeds of each instead")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--of", choices=(CORE, PROCESS), help="which simulation; both when not said")
    parser.add_argument("--first", type=int, default=random.SystemRandom().randrange(1 << 40))
    args = parser.parse_args()
    kinds = [args.of] if args.of else [CORE, PROCESS]
    count = args.count * len(kinds) or 1 << 62
    seconds = args.seconds or (1e9 if args.count else 60.0)
    return int(soak(kinds, args.first, count, seconds, args.jobs) > 0)


if __name__ == "__main__":
    sys.exit(main())
