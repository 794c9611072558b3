"""What runs at every commit and what runs nightly: ``python -m tests.lanes commit|nightly``.

A lane is two runs of pytest side by side. The tests that compute (unit, model, simulation) are niced and use what the
others leave; the tests that start processes mostly wait, so more of them run at a time, a file on one worker. A test is in the lane
of every commit unless it is marked ``nightly``. Exit code 0 when both runs passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPUTING = ("tests/unit", "tests/transcripts", "tests/model", "tests/simulation")
#: the longest file first
WAITING = ("tests/chaos", "tests/integration", "tests/hostile", "tests/conformance")
#: nightly, properties are tried on fresh examples too (``conftest.py``)
SELECTED = {"commit": "not nightly", "nightly": "nightly or hypothesis"}
NO_TESTS = 5
COMPUTING_JOBS = 2
WAITING_JOBS = 4


def pytest(lane: str, folders: tuple[str, ...], jobs: int, dist: str, nice: int) -> list[str]:
    command = ["nice", "-n", str(nice), sys.executable, "-m", "pytest", "-m", SELECTED[lane]]
    return [*command, "-n", str(jobs), "--dist", dist, "--durations=10", *folders]


def run(lane: str) -> int:
    began = time.monotonic()
    os.environ["METASTORE_TEST_LANE"] = lane
    computing = pytest(lane, COMPUTING, COMPUTING_JOBS, "worksteal", nice=10)
    waiting = pytest(lane, WAITING, WAITING_JOBS, "loadfile", nice=0)
    # the output of the run that computes is shown when the other has ended: two at once nobody can read
    with subprocess.Popen(
        computing, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as beside:
        try:
            second = subprocess.run(waiting, cwd=ROOT, check=False).returncode
            print(f"[{time.monotonic() - began:.0f} s] the tests that compute:", flush=True)
            print(beside.communicate()[0], flush=True)
        except BaseException:
            beside.terminate()
            raise
    print(f"[{time.monotonic() - began:.0f} s] {lane}: {os.cpu_count()} processors", flush=True)
    return next((code for code in (beside.returncode, second) if code not in (0, NO_TESTS)), 0)


if __name__ == "__main__":
    if sys.argv[1:] not in (["commit"], ["nightly"]):
        sys.exit("usage: python -m tests.lanes commit|nightly")
    sys.exit(run(sys.argv[1]))
