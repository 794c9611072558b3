"""What cellctl prints and how it ends: no commands to the terminal, no tracebacks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import cellctl
from cellctl import main
from cellctl.output import note, print_data, print_table, say, visible
from metastore.errors import Unavailable

NASTY = "a\x1b[31mred\x07\x1b]0;title\x1b\\\x9b2J\r\x00\x7f\u202egnp\u2066 [bold]x[/bold]"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@given(st.text())
def test_what_is_made_visible_is_one_line_without_commands(text: str) -> None:
    shown = visible(text)
    assert not COMMANDS.search(shown)
    assert "\n" not in shown
    assert text.isprintable() <= (shown == text)


@pytest.mark.parametrize("text", [NASTY, "two\nlines"])
def test_every_way_to_print(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"key {text}", fg="red")
    note(text)
    print_table(("key",), [(text,), (None,)], title=text)
    print_data("json", {"key": text})
    print_data("yaml", {"key": text})
    found = capsys.readouterr()
    assert not COMMANDS.search(found.out + found.err)
    assert "\\x1b[31m" in found.out or text != NASTY
    assert "[bold]x[/bold]" in found.out or text != NASTY, "names are no markup"


def test_data_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_data("json", {NASTY: NASTY})
    assert orjson.loads(capsys.readouterr().out) == {NASTY: NASTY}
    print_data("yaml", {NASTY: NASTY})
    assert yaml.safe_load(capsys.readouterr().out) == {NASTY: NASTY}


def test_nobody_prints_around_it() -> None:
    """But for the script of ``completion``, and records that go to a file or a pipe."""
    printing = [
        "print",
        "click.echo",
        "click.secho",
        "sys.stdout.write",
        "sys.stdout.buffer.write",
        "sys.stderr.write",
    ]
    found = [
        f"{path.name}: {ast.unparse(node)[:40]}"
        for path in sorted(Path(cellctl.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing
    ]
    allowed = ("output.py", "main.py: click.echo(found(cli, {}, 'cellctl'")
    assert [f for f in found if not f.startswith(allowed)] == []


@pytest.mark.parametrize(
    "error",
    [
        KeyError("partitions"),
        TypeError("x"),
        AttributeError("y"),
        RecursionError(),
        Unavailable("no\x1b[2J"),
        OSError(5, "odd"),
    ],
)
def test_whatever_a_command_meets_it_ends_in_a_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def odd() -> None:
        raise error

    monkeypatch.setitem(main.cli.commands, "odd", odd)
    assert main.run(["odd"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cellctl: ")
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert main.run(["odd", "--debug"]) == main.run(["--debug", "odd"]) == 2
    assert capsys.readouterr().err.count("Traceback") == 2


def test_what_follows_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", "--", "--debug"]) == 2
    assert "'--debug' is not one of" in capsys.readouterr().err
