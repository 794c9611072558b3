"""Transcripts of the core: a script of what happens, and what comes of it, side by side, for people to read and for the test
to hold the core to. ``stage.py`` has the verbs.

A file is a line of what it shows behind ``#``, and blocks that are separated by an empty line: lines of the script, ``----``, and what came of them.
``make transcripts`` (``TRANSCRIPTS=write``) writes what comes of them now; look at the difference before it is committed.
"""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

import pytest

from tests.transcripts.stage import Stage

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.txt"))
MARK = "----"
MAX_LINES = 110


def folded(said: list[str]) -> list[str]:
    """The same several times over is said once."""
    runs = [(line, len(list(same))) for line, same in groupby(said)]
    return [line if count == 1 else f"{line}  ({count} times)" for line, count in runs]


def replayed(text: str) -> str:
    """The transcript as it comes out now."""
    stage, blocks = Stage(), []
    for block in text.strip("\n").split("\n\n"):
        script = [line for line in block.split(f"\n{MARK}", 1)[0].split("\n") if line]
        said: list[str] = []
        for line in script:
            if not line.startswith("#"):
                said += stage.play(line)
        acts = any(not line.startswith("#") for line in script)
        blocks.append("\n".join([*script, *([MARK, *(folded(said) or ["(nothing)"])] if acts else [])]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_comes_of_it_is_what_is_written(path: Path) -> None:
    text = path.read_text()
    found = replayed(text)
    if os.environ.get("TRANSCRIPTS") == "write":
        path.write_text(found)
    else:
        assert found == text, f"{path.name}: see {__name__} for how to write it anew"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_says_what_it_shows_and_is_short(path: Path) -> None:
    lines = path.read_text().split("\n")
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")
    assert len(lines) <= MAX_LINES


def test_there_are_twenty_at_least() -> None:
    assert len(FILES) >= 20


def test_a_core_that_does_otherwise_is_noticed() -> None:
    path = HERE / "hand_over.txt"
    text = path.read_text()
    assert replayed(text.replace("transfer a b", "transfer a c")) != text
