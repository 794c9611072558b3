"""The list of mutations (``make mutants``) is true to the code: each can be made, and its tests are there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.mutants.mutants import ROOT, problems, read_mutants
from tests.mutants.runner import BROKEN, NOTICED, SURVIVED, Journal, Verdict


def test_every_mutation_applies_to_the_code_as_it_is() -> None:
    """Whoever changes what one replaces changes the mutation too, in tests/mutants."""
    mutants = read_mutants()
    assert not problems(mutants), "\n".join(problems(mutants))
    assert len(mutants) >= 80


def test_no_mutation_names_what_is_not_there(tmp_path: Path) -> None:
    """One that raises NameError plants nothing: it would be noticed by whatever runs it."""
    for number, mutant in enumerate(read_mutants()):
        (tmp_path / f"m{number}.py").write_text(f"#: {mutant.name}\n{mutant.mutated(ROOT)}")
    command = [
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--quiet",
        "--select",
        "F821,F823",
        "--output-format",
        "concise",
    ]
    found = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path)], capture_output=True, text=True, check=False
    )
    named = [
        f"{(tmp_path / line.partition(':')[0].rpartition('/')[2]).read_text().splitlines()[0]} {line}"
        for line in found.stdout.splitlines()
    ]
    assert (found.returncode, named) == (0, []), found.stderr


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    """The journal knows a verdict again as long as what was judged is the same."""
    path = tmp_path / "journal"
    one, other, broken = read_mutants()[:3]
    journal = Journal(path, [one, other, broken], resume=False)
    assert journal.known(one) is None
    journal.note(Verdict(one, SURVIVED, "it does no harm", 1.5))
    journal.note(Verdict(broken, BROKEN, "NameError", 0.5))
    with path.open("a") as file:
        file.write('["half a line')
    again = Journal(path, [one, other, broken], resume=True)
    assert again.known(one) == Verdict(one, SURVIVED, "it does no harm", 1.5)
    assert again.known(other) is None
    assert again.known(broken) is None, "it is to be mended"
    again.note(Verdict(other, NOTICED, "tests/x.py::y", 2.5))
    changed = replace(one, replace=one.replace + "  # more")
    third = Journal(path, [changed, other], resume=True)
    assert third.known(changed) is None
    assert third.known(other) == Verdict(other, NOTICED, "tests/x.py::y", 2.5)
    assert Journal(path, [other], resume=False).known(other) is None
