"""What a golden is: a form in which bytes leave a process, in one version, with examples of all that it has.

An example is written from ``value`` by the code that writes it in earnest, and read by the code that reads it in
earnest, checks and all. ``tests.golden.wire``, ``storage`` and ``records`` have the examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent

HINT: Final = """\
the bytes of {name!r} in {form} have changed. Builds that are out read and write the old ones, and they live with this one:
  - if that was not meant, mend the code;
  - if it was, raise the version of the form where it is told (a new entry or row only at or above a feature level, a
    new message only where a hello has agreed on it), raise it in tests/golden too, keep {file} as it is, and run
    `python -m tests.golden --write`, which writes the next file. What {file} has must still be read."""


@dataclass(frozen=True)
class Example:
    """``value`` as ``write`` makes bytes of it, and ``read`` brings it back. ``same``: what of the bytes has to be the
    same (what zlib makes of them is its own affair)."""

    value: Any
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    same: Callable[[bytes], Any] = field(default=bytes)


@dataclass(frozen=True)
class Form:
    """``examples``: by name, of today's ``version``; ``older``: what the golden of a version before says another value for,
    by ``(version, name)``, and how that is read."""

    name: str
    version: int
    examples: dict[str, Example]
    older: dict[tuple[int, str], Example] = field(default_factory=dict)

    def file(self, version: int) -> Path:
        return FOLDER / f"{self.name}-{version}.txt"

    def example(self, version: int, name: str) -> Example | None:
        return self.older.get((version, name)) or self.examples.get(name)

    def written(self) -> dict[str, bytes]:
        return {name: example.write(example.value) for name, example in self.examples.items()}

    def text(self) -> str:
        head = f"# {self.name}, version {self.version}: name and bytes of each example (python -m tests.golden --write)\n"
        return head + "".join(f"{name} {raw.hex() or '-'}\n" for name, raw in self.written().items())


def read_golden(path: Path) -> dict[str, bytes]:
    rows = [line.rsplit(" ", 1) for line in path.read_text().splitlines() if line and line[0] != "#"]
    return {name: bytes.fromhex(raw.replace("-", "")) for name, raw in rows}


def golden_versions(form: Form) -> list[int]:
    """Of the files that there are, the oldest first."""
    return sorted(int(path.stem.rsplit("-", 1)[1]) for path in FOLDER.glob(f"{form.name}-*.txt"))


def wrong(form: Form, version: int) -> list[str]:
    """What today's code does not read, or write, as the golden has it."""
    path, found = form.file(version), read_golden(form.file(version))
    told: list[str] = []
    for name, raw in found.items():
        example = form.example(version, name)
        if example is None:
            told.append(
                f"{path.name} has {name!r}, which nothing reads any more: builds that are out still write it"
            )
            continue
        try:
            back = example.read(raw)
        except Exception as e:
            told.append(f"{name!r} of {path.name} is not read any more: {type(e).__name__}: {e}")
            continue
        if back != example.value:
            told.append(f"{name!r} of {path.name} is read as {back!r:.300}, not as {example.value!r:.300}")
    if version == form.version:
        for name, example in form.examples.items():
            if name not in found:
                told.append(f"{path.name} has no {name!r}: python -m tests.golden --write")
            elif example.same(example.write(example.value)) != example.same(found[name]):
                told.append(HINT.format(name=name, form=form.name, file=path.name))
    return told
