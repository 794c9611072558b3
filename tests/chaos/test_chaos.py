"""The short set on real processes, and planted bugs that it must see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import lab
from tests.chaos.planted import PLANTED
from tests.chaos.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]


def chaos(*args: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    # a process of its own: it may move into a network namespace
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", *args],
        cwd=ROOT,
        env={**os.environ, "METASTORE_PLANTED": planted},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def test_the_short_set_keeps_every_promise(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = chaos("--short", "--report", str(report), "--keep", str(tmp_path / "kept"))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    for scenario in SCENARIOS:
        if scenario.short and (lab.available() or not scenario.network):
            assert f'<h2 id="{scenario.name}">' in text


@pytest.mark.nightly
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_seen(name: str) -> None:
    """Several tries: whether a fault meets the bug is a matter of chance. Seen is only what it breaks."""
    planted = PLANTED[name]
    scenario = next(s for s in SCENARIOS if s.name == planted.scenario)
    if scenario.network and not lab.available():
        pytest.skip("needs root and network namespaces")
    for seed in range(4):
        done = chaos(scenario.name, "--seed", str(seed), planted=name)
        if done.returncode == 1 and re.search(planted.breaks, done.stdout):
            print("\n".join(done.stdout.splitlines()[:8]))
            return
    pytest.fail(f"{name} was not seen:\n{done.stdout}{done.stderr}")
