"""Runs the console blocks of a page as a reader would, one shell for all of them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.processes import PATIENCE_S

MARK = "--- end of a command ---"


@dataclass
class Command:
    """A line behind ``$ `` and what the page says it prints."""

    line: int
    text: str
    expected: str


def commands(page: Path) -> list[Command]:
    """Those of the blocks fenced as ``console``, in order."""
    found: list[Command] = []
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            found.append(Command(number, line[2:], ""))
        elif inside:
            found[-1].expected += line + "\n"
    return found


def pattern(expected: str) -> str:
    """``…`` stands for anything, a number for any number: versions and ports differ."""
    parts = re.split(r"(…|\d+)", expected.strip())
    return "".join(".*" if p == "…" else r"\d+" if p.isdigit() else re.escape(p) for p in parts)


def run(page: Path, replace: dict[str, str], prelude: str = "") -> list[str]:
    """What was printed otherwise than the page says. ``prelude``: shell that comes first."""
    todo = commands(page)
    script = "set -u\n" + prelude
    for command in todo:
        text = command.text
        for old, new in replace.items():
            text = text.replace(old, new)
        script += f"{text}\necho \"$?\"; echo '{MARK}'\n"
    done = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    outputs = done.stdout.split(MARK + "\n")
    wrong: list[str] = []
    for command, output in zip(todo, outputs, strict=False):
        printed, _, code = (
            output.rstrip("\n").rpartition("\n")
            if "\n" in output.rstrip("\n")
            else ("", "", output.rstrip("\n"))
        )
        if code[-1:] != "0" or not re.fullmatch(
            pattern(command.expected), (printed + code[:-1]).replace("\r", "").strip(), re.S
        ):
            wrong.append(f"{page.name}:{command.line}: $ {command.text}\n{output}(said: {command.expected})")
    if len(outputs) <= len(todo):
        wrong.append(f"{page.name}: only {len(outputs) - 1} of {len(todo)} commands ran: {done.stderr}")
    return wrong
