"""How commands speak: tables for people, JSON or YAML for programs, one clear line for an error."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
import orjson
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Table for people, JSON or YAML for programs.",
)


#: what a terminal may take for a command, or show elsewhere than it stands: C0, DEL, C1, and marks that turn text around
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: of these, what our own messages are laid out with
_LAYOUT: Final = "\n\t"


def visible(text: object) -> str:
    """``text`` in one line, control characters as ``\\xNN``: names, keys and messages come from anybody."""
    return _CONTROL.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _lines(text: object) -> str:
    return _CONTROL.sub(lambda found: found[0] if found[0] in _LAYOUT else _escaped(found[0]), str(text))


def say(text: object = "", **style: Any) -> None:
    """Lines for people, to standard output; a name within them that may have line ends needs ``visible`` of its own."""
    click.secho(_lines(text), **style)


def note(text: object) -> None:
    """Lines for people; to standard error, so that output stays clean."""
    click.echo(_lines(text), err=True)


def print_value(value: bytes) -> None:
    """A value as it is; to a terminal, as text of lines without commands to it."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
        return
    say(value.decode("utf-8", "backslashreplace"))


def print_data(form: str, value: Any) -> None:
    """``value``, plain, as ``json`` or ``yaml``."""
    if form == "yaml":
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        if _lines(text) != text:  # marks that turn text around are letters to YAML
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)
        sys.stdout.write(text)
    else:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
        # what JSON lets stand as it is; within texts only, so that it says the same
        sys.stdout.write(
            re.sub("[\x7f-\x9f\u200e-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
        )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table; colour and width of the terminal only when there is one."""
    tty = sys.stdout.isatty()
    table = Table(
        title=None if title is None else Text(visible(title)),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*[Text("-" if cell is None else visible(cell)) for cell in row])
    Console(no_color=not tty, width=None if tty else 200, highlight=False).print(table)
