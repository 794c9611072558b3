"""``python -m tests.chaos [NAME …] [--short] [--report FILE] [--keep DIR] [--seed N]``: exit 1 if a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from tests.chaos import lab as lab_module
from tests.chaos.report import page
from tests.chaos.runner import run
from tests.chaos.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(s.name for s in SCENARIOS)}")
    parser.add_argument("--short", action="store_true", help="the set of CI")
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="histories and logs of what went wrong")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    given = parser.parse_args()
    unknown = set(given.names) - {s.name for s in SCENARIOS}
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    chosen = [
        s for s in SCENARIOS if s.name in given.names or (not given.names and (s.short or not given.short))
    ]
    network = lab_module.available()
    skipped = [s.name for s in chosen if s.network and not network]
    lab = (
        lab_module.Lab(["etcd", "c1n1", "c1n2", "c1n3"])
        if network and any(s.network for s in chosen)
        else None
    )
    results = []
    print(f"seed {given.seed}", flush=True)
    try:
        for scenario in chosen:
            if scenario.name in skipped:
                print(f"{scenario.name:22} skipped: needs root and network namespaces", flush=True)
                continue
            result = asyncio.run(run(scenario, lab, given.seed, given.keep))
            results.append(result)
            verdict = "BROKEN" if result.problems else "kept"
            print(
                f"{scenario.name:22} {verdict:7} {len(result.history):6} operations, longest outage {result.outage_s:5.2f} s, "
                f"back {result.back_s:5.2f} s after healing, failed {result.errors or 'none'}",
                flush=True,
            )
            for problem in result.problems:
                print(f"  {problem}", flush=True)
    finally:
        if lab is not None:
            lab.close()
    if given.report is not None:
        given.report.write_text(page(results, skipped))
    return 1 if any(r.problems for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
