"""How commands speak: tables for people, JSON or YAML for programs, one clear line for an error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson
import yaml
from rich.console import Console
from rich.table import Table

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Table for people, JSON or YAML for programs.",
)


def print_data(form: str, value: Any) -> None:
    """``value``, plain, as ``json`` or ``yaml``."""
    if form == "yaml":
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table; colour and width of the terminal only when there is one."""
    tty = sys.stdout.isatty()
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*["-" if cell is None else str(cell) for cell in row])
    Console(no_color=not tty, width=None if tty else 200, highlight=False).print(table)


def note(text: str) -> None:
    """A line for people; to standard error, so that output stays clean."""
    click.echo(text, err=True)
