"""docs/replication.md and the code that cites it name the same rules and invariants."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/replication.md").read_text()
RULES = set(re.findall(r"^### (R\d+) ", PAGE, re.M))
INVARIANTS = set(re.findall(r"^\| \*\*([IS]\d)\*\* \|", PAGE, re.M))
ONE = r"(R[1-9]\d?|[IS][1-9])(?!\w)"
CITED = re.compile(rf"(?<![\w.]){ONE}(?: to {ONE})?")


def cited(folders: str, kinds: str = "*.py") -> dict[str, str]:
    """Rule or invariant -> a file that cites it."""
    found: dict[str, str] = {}
    for folder in folders.split():
        for path in sorted((ROOT / folder).rglob(kinds)):
            for first, last in CITED.findall(path.read_text()):
                low, high = int(first[1:]), int((last or first)[1:])
                for number in range(low, max(low, high) + 1):
                    found.setdefault(f"{first[0]}{number}", str(path.relative_to(ROOT)))
    return found


def test_they_are_numbered_through() -> None:
    assert {f"R{n}" for n in range(1, len(RULES) + 1)} == RULES
    assert {f"I{n}" for n in range(1, 9)} | {"S1", "S2", "S3"} == INVARIANTS


@pytest.mark.parametrize("folders", ["metastore router cellctl", "tests bench", "docs deploy"])
def test_every_cited_rule_exists(folders: str) -> None:
    unknown = {
        rule: where
        for kinds in ("*.py", "*.md")
        for rule, where in cited(folders, kinds).items()
        if rule not in RULES | INVARIANTS
    }
    assert not unknown


def test_every_rule_is_cited() -> None:
    """Rules by the code that keeps them, invariants by code or by what checks them."""
    assert not RULES - cited("metastore").keys()
    assert not INVARIANTS - cited("metastore tests").keys()
