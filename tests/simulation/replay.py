"""Play one seed again, exactly: ``make sim SEED=17 STEPS=5000``; prints the story of the world.

``python -m tests.simulation.replay SEED [--of core|process] [--steps N]``
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.runs import CORE, PROCESS, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--of", choices=(CORE, PROCESS), help="which simulation; both when not said")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many events")
    args = parser.parse_args()
    failed = False
    for of in [args.of] if args.of else [CORE, PROCESS]:
        result = run(of, args.seed, args.steps)
        failed |= bool(result.problem)
        print(f"--- {of}, seed {args.seed} ({result.plan})\n{result.problem or result.story}")
        print(f"--- {result.events} events, {result.cpu_s:.1f} s, trace {result.digest}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
