"""The mutations, as data: ``*.toml`` beside this module.

[[mutant]]
name = "R1-owner"                 # the rule, and what of it
what = "obeys() compares the epoch only, not its owner"
file = "metastore/core/replica.py"
find = "…"                        # stands exactly once in the file
replace = "…"
tests = ["tests/unit/core/test_fencing.py"]   # which are to notice it, or nodes of them
simulate = "core: hand-offs, cuts"            # may be left out: played when they do not
survives = "…"                    # may be left out: why nothing notices it
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mutation; see the module."""

    name: str
    what: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    simulate: str = ""
    survives: str = ""

    def mutated(self, root: Path) -> str:
        """The file as it is with the mutation. Raises ValueError: the list is not true to the code."""
        text = (root / self.file).read_text()
        count = text.count(self.find)
        if count != 1:
            raise ValueError(
                f"{self.name}: the text to be replaced stands {count} times in {self.file}, not once: "
                f"mend its entry in tests/mutants (the code that it names has changed)\n{self.find}"
            )
        mutated = text.replace(self.find, self.replace)
        if mutated == text:
            raise ValueError(f"{self.name}: the mutation changes nothing in {self.file}")
        try:
            compile(mutated, self.file, "exec", ast.PyCF_ONLY_AST)
        except SyntaxError as e:
            raise ValueError(f"{self.name}: {self.file} does not parse with the mutation: {e}") from None
        return mutated


def read_mutants(folder: Path = FOLDER) -> list[Mutant]:
    """All that there are. Raises ValueError."""
    found: dict[str, Mutant] = {}
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["mutant"]:
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            if mutant.name in found:
                raise ValueError(f"two mutants are called {mutant.name}")
            found[mutant.name] = mutant
    return list(found.values())


def problems(mutants: list[Mutant], root: Path = ROOT) -> list[str]:
    """What of the list does not fit the code, or the tests, as they are."""
    told: list[str] = []
    for mutant in mutants:
        try:
            mutant.mutated(root)
        except (ValueError, OSError) as e:
            told.append(str(e))
        if not mutant.tests:
            told.append(f"{mutant.name}: no test is named that is to notice it")
        for test in mutant.tests:
            path, _, name = test.partition("::")
            if not (root / path).exists():
                told.append(f"{mutant.name}: there is no {path}")
            elif name and f"def {name}(" not in (root / path).read_text():
                told.append(f"{mutant.name}: {path} has no {name}")
    return told
