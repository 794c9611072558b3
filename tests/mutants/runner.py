"""Runs the tests on copies of the tree with one mutation each: which of them does nobody notice?

A copy is of everything that Python reads. What a test says about a mutation counts only if it fails by
an assertion, an error of the project's own, or time: a NameError says that the mutation is badly made.

Each verdict is written to a journal as it comes (``Journal``), so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from tests.mutants.mutants import ROOT, Mutant

COPIED = ("metastore", "router", "cellctl", "tests", "bench", "pyproject.toml")
TEST_TIMEOUT_S = 150
#: of all the tests that are named, once without any mutation
ALL_TESTS_TIMEOUT_S = 1800
SIMULATION_TIMEOUT_S = 300
#: what pytest prints of an error: that of a mutation which is no weakening, but nonsense
NONSENSE = re.compile(
    r"^E +((?:NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError).*)$", re.M
)
NOTICED, HANGS, SURVIVED, BROKEN = "noticed", "hangs", "SURVIVED", "BROKEN"


class Verdict(NamedTuple):
    """``by``: the first test that failed, or the simulated world."""

    mutant: Mutant
    outcome: str
    by: str
    seconds: float

    @property
    def seen(self) -> bool:
        return self.outcome in (NOTICED, HANGS)


class Copy:
    """A copy of the tree, to be mutated."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / name)

    def write(self, file: str, text: str) -> None:
        """Python tells a changed source by second and size: what it made of the old one goes."""
        path = self.root / file
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def run(self, arguments: list[str], timeout_s: float) -> tuple[int | None, str]:
        """``python -m …`` in the copy; its exit code (None: it took too long) and what it printed."""
        # only the plugin that is needed: others take longer to begin than most tests to run
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=timeout_s)
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return None, process.communicate()[0]

    def pytest(self, tests: Iterable[str], timeout_s: float = TEST_TIMEOUT_S) -> tuple[int | None, str]:
        options = ["-x", "--tb=short", "-rfE", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin"]
        options += ["-p", "tests.mutants.quiet"]
        return self.run(["pytest", *options, *tests], timeout_s)


def first_failure(printed: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.M)
    return found.group(1) if found else printed.strip().splitlines()[-1][:200] if printed.strip() else "?"


def judge(copy: Copy, mutant: Mutant, *, simulate: bool) -> Verdict:
    """Mutate, try, and put back."""
    began = time.monotonic()
    original = (copy.root / mutant.file).read_text()
    copy.write(mutant.file, mutant.mutated(copy.root))

    def verdict(outcome: str, by: str) -> Verdict:
        return Verdict(mutant, outcome, by, time.monotonic() - began)

    try:
        code, printed = copy.pytest(mutant.tests)
        if code is None:
            return verdict(HANGS, " ".join(mutant.tests))
        nonsense = NONSENSE.search(printed)
        if nonsense or code not in (0, 1):
            return verdict(BROKEN, nonsense.group(1) if nonsense else printed[-2000:])
        if code == 1:
            return verdict(NOTICED, first_failure(printed))
        if simulate and mutant.simulate:
            code, printed = copy.run(["tests.mutants.simulate", mutant.simulate], SIMULATION_TIMEOUT_S)
            if code == 1:
                return verdict(NOTICED, printed.strip().splitlines()[0][:200])
            if code not in (0, None):
                return verdict(BROKEN, printed[-2000:])
        return verdict(SURVIVED, mutant.survives)
    finally:
        copy.write(mutant.file, original)


class Journal:
    """A file of verdicts, one line each. A verdict is of a mutated file and of the files of its tests, as they are when the
    run begins: it is known again as long as they are the same, whatever else has changed (a whole run begins without)."""

    def __init__(self, path: Path, mutants: Iterable[Mutant], *, resume: bool) -> None:
        self._path = path
        self._keys = {mutant.name: _key(mutant) for mutant in mutants}
        self._known: dict[str, list[Any]] = {}
        if resume and path.exists():
            # a run that is cut off may leave a part of a line
            lines = [line for line in path.read_text().splitlines() if line.endswith("]")]
            self._known = {key: rest for key, *rest in map(json.loads, lines)}
        path.write_text("".join(json.dumps([key, *rest]) + "\n" for key, rest in self._known.items()))

    def known(self, mutant: Mutant) -> Verdict | None:
        """The verdict of an earlier run, if it is one."""
        found = self._known.get(self._keys[mutant.name])
        return None if found is None else Verdict(mutant, *found)

    def note(self, verdict: Verdict) -> None:
        if verdict.outcome != BROKEN:
            entry = [self._keys[verdict.mutant.name], verdict.outcome, verdict.by, verdict.seconds]
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def _key(mutant: Mutant) -> str:
    files = sorted({test.partition("::")[0] for test in mutant.tests})
    parts = [mutant.file, mutant.mutated(ROOT), *mutant.tests, mutant.simulate]
    parts += [path.read_text() for path in map(ROOT.joinpath, files) if path.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def judge_all(
    mutants: list[Mutant], folder: Path, jobs: int, *, simulate: bool, told: Callable[[Verdict], None]
) -> list[Verdict]:
    """The verdict on each, ``jobs`` at a time; as they come, to ``told``. Raises RuntimeError when the
    tests fail without a mutation: they could say nothing then."""
    if not mutants:
        return []
    copies: SimpleQueue[Copy] = SimpleQueue()
    first = Copy(folder / "0")
    code, printed = first.run(["tests.mutants.where"], 60)
    if code != 0:
        raise RuntimeError(f"a copy of the tree does not import itself:\n{printed}")
    every = sorted({test for mutant in mutants for test in mutant.tests})
    code, printed = first.pytest(every, ALL_TESTS_TIMEOUT_S)
    if code != 0:
        raise RuntimeError(f"the tests fail without any mutation:\n{printed[-3000:]}")
    copies.put(first)
    for number in range(1, jobs):
        copies.put(Copy(folder / str(number)))

    def work(mutant: Mutant) -> Verdict:
        copy = copies.get()
        try:
            verdict = judge(copy, mutant, simulate=simulate)
        finally:
            copies.put(copy)
        told(verdict)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, mutants))
