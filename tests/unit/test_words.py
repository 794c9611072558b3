"""The vocabulary: words that are retired (``tests/words.toml``) do not come back. Test code may lag behind."""

from __future__ import annotations

import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("metastore", "router", "cellctl")
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Makefile",
    "docs",
    "deploy",
    "bench/README.md",
    "tests/README.md",
)
#: from Python 3.12 on, the texts of an f-string are tokens of their own
TEXTS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class Word:
    """One entry of ``tests/words.toml``, which says what its fields mean."""

    use: str
    old: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    prose: bool = False
    but: tuple[str, ...] = ()
    not_yet: tuple[str, ...] = ()
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        words = "|".join(re.escape(w).replace(r"\ ", r"\s+") for w in sorted(self.old))
        object.__setattr__(self, "pattern", re.compile(rf"\b(?:{words or '(?!)'})\b", re.IGNORECASE))

    def in_name(self, name: str) -> bool:
        if name in self.but:
            return False
        return name in self.exact or not self.old.isdisjoint(p.lower() for p in PARTS.findall(name))

    def in_text(self, text: str) -> str:
        """What of ``text`` is retired, "" = nothing."""
        if not self.prose:
            return ""
        for right in self.but:
            text = text.replace(right, "")
        found = self.pattern.search(text)
        return found.group() if found else ""

    def covers(self, path: str) -> bool:
        return not any(path == p or path.startswith(f"{p}/") for p in self.not_yet)


def read(entry: dict[str, Any]) -> Word:
    lists: dict[str, Any] = {
        name: frozenset(entry.pop(name, "").split(", ")) - {""} for name in ("old", "exact")
    }
    tuples: dict[str, Any] = {name: tuple(entry.pop(name, ())) for name in ("but", "not_yet")}
    return Word(**entry, **lists, **tuples)


WORDS = [read(entry) for entry in tomllib.loads((ROOT / "tests/words.toml").read_text())["word"]]


@cache
def sources() -> dict[str, tuple[dict[str, int], list[tuple[int, str]]]]:
    """File -> (identifier -> its first line, [(line, text)])."""
    found: dict[str, tuple[dict[str, int], list[tuple[int, str]]]] = {}
    for path in (p for folder in CODE for p in sorted((ROOT / folder).rglob("*.py"))):
        names: dict[str, int] = dict.fromkeys(path.relative_to(ROOT).with_suffix("").parts, 0)
        texts: list[tuple[int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME:
                names.setdefault(token.string, token.start[0])
            elif token.type in TEXTS:
                texts.append((token.start[0], token.string))
        found[str(path.relative_to(ROOT))] = names, texts
    return found


@cache
def documents() -> dict[str, str]:
    paths = [ROOT / name for name in DOCUMENTS]
    files = [f for p in paths for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.is_file()]
    return {str(f.relative_to(ROOT)): f.read_text() for f in files}


def retired(word: Word) -> Iterator[str]:
    """Where ``word`` stands."""
    for path, (names, texts) in sources().items():
        if word.covers(path):
            yield from (f"{path}:{line}: {name}" for name, line in names.items() if word.in_name(name))
            yield from (f"{path}:{line}: {word.in_text(text)}" for line, text in texts if word.in_text(text))
    for path, text in documents().items():
        if word.covers(path):
            paragraphs = re.split(r"\n\s*\n", text)
            yield from (f"{path}: {word.in_text(p)}: {p:.60}" for p in paragraphs if word.in_text(p))


@pytest.mark.parametrize("word", WORDS, ids=lambda w: "-".join(sorted(w.old | w.exact))[:40])
def test_retired_words_do_not_come_back(word: Word) -> None:
    found = list(retired(word))
    assert not found, f"use {word.use}:\n" + "\n".join(found)


def test_what_is_excepted_is_there() -> None:
    """An exception, or a place still to be swept, goes when it is no longer needed."""
    everything = "\n".join(p.read_text() for folder in CODE for p in (ROOT / folder).rglob("*.py"))
    everything += "\n".join(documents().values())
    for word in WORDS:
        for right in word.but:
            assert right in everything, right
        for place in word.not_yet:
            assert (ROOT / place).exists(), place


@pytest.mark.parametrize(
    ("name", "expected"),
    [("leader_scout", True), ("ScoutOf", True), ("SCOUT_S", True), ("scouted_", False), ("probe", False)],
)
def test_names_are_split(name: str, expected: bool) -> None:
    assert Word("x", frozenset({"scout"})).in_name(name) is expected


def test_phrases_are_found_across_lines() -> None:
    word = Word("x", frozenset({"this very"}), prose=True, but=("is this very one",))
    assert word.in_text("of this\n    very one") == "this\n    very"
    assert not word.in_text("it is this very one")
