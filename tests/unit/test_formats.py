"""docs/formats.md names every version, kind, field and golden file that the code has, and no others."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Final

import pytest

from metastore import layout, operations, schema
from metastore.core import rows
from metastore.core.fences import FENCE_PREFIX, FLOOR_PREFIX
from metastore.core.messages import KINDS
from metastore.storage import records, state
from metastore.wire import frames, versions
from tests.golden.catalogue import FORMS
from tests.golden.formats import FOLDER
from tests.golden.storage import FACTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/formats.md").read_text()

#: a constant of this name is a version of something, or is in NO_VERSIONS
NAMED_SO: Final = re.compile(
    r"^((?:[A-Z_]*_)?(?:FORMAT|MAGIC|VERSION|LEVEL))(?:: Final(?:\[\w+\])?)? = ", re.M
)
#: bounds, numbers of frames and parameters of the HTTP API that are called like versions
NO_VERSIONS: Final = {
    ("metastore/history.py", "NO_VERSION"),
    ("metastore/layout/records.py", "MAX_LEVEL"),
    ("metastore/node/features.py", "FACT_LEVEL"),
    ("metastore/wire/frames.py", "LEVEL"),
    ("metastore/wire/versions.py", "MAX_VERSION"),
    ("router/api/bodies.py", "_VERSION"),
    ("router/api/parameters.py", "MAX_VERSION"),
    ("router/api/parameters.py", "VERSION"),
}


def table(header: str) -> list[list[str]]:
    """The cells of each row of every table of the page whose header begins so."""
    rows: list[list[str]] = []
    within = False
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            within = False
        elif within and not line.startswith("|---"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        within = within or line.startswith(f"| {header} |")
    assert rows, header
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def versions_of_the_code() -> dict[tuple[str, str], str]:
    """(file, constant) -> its value, as the page shows it."""
    found: dict[tuple[str, str], str] = {}
    for folder in ("metastore", "router", "cellctl"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = str(path.relative_to(ROOT))
            for name in NAMED_SO.findall(path.read_text()):
                if (where, name) not in NO_VERSIONS:
                    module = importlib.import_module(where[:-3].replace("/", "."))
                    found[where, name] = repr(getattr(module, name))
    for spoken in (versions.peer_versions, versions.client_versions):
        lowest, highest, _ = spoken()
        found["metastore/wire/versions.py", f"{spoken.__name__}()"] = f"{lowest} to {highest}"
    return found


def test_every_version_is_named_with_its_value() -> None:
    told = {tuple(quoted(where)): quoted(value)[0] for where, value, _ in table("constant")}
    assert told == versions_of_the_code()


def test_what_is_called_like_a_version_and_is_none_exists() -> None:
    for where, name in NO_VERSIONS:
        assert name in NAMED_SO.findall((ROOT / where).read_text()), (where, name)


def test_every_golden_file_is_named() -> None:
    told = {quoted(form)[0]: quoted(file)[0] for form, file, _ in table("form")}
    assert told == {form.name: f"tests/golden/{form.file(form.version).name}" for form in FORMS}
    older = {path.name for path in FOLDER.glob("*.txt")} - {Path(file).name for file in told.values()}
    assert not [name for name in older if name not in PAGE]


def fields_of(read: Any) -> list[str]:
    """The fields of a record that is read by a shape; [] = it is none."""
    return list(getattr(getattr(read, "__self__", None), "fields", ()))


def test_every_record_of_etcd_is_named_with_its_fields() -> None:
    told = {quoted(kind)[0]: (quoted(key)[0], quoted(fields)) for kind, key, fields, _ in table("kind | key")}
    assert told.keys() == {*schema.KINDS, "marks", "history"}
    for name, kind in schema.KINDS.items():
        key, fields = told[name]
        assert key.split("/")[0] == name
        assert len(key.split("/")) == 1 + len(kind.key), name
        assert fields == fields_of(kind.read), name
    assert told["marks"][1] == list(layout.MARK.fields)
    assert told["history"][1] == list(layout.HISTORY.fields)
    paths = layout.Layout("CLUSTER")
    assert told["marks"][0].startswith(paths.marks_root)
    assert told["history"][0].startswith(paths.history_root)


def test_what_is_kept_of_a_later_version_is_told() -> None:
    told = {quoted(kind)[0]: other for kind, _, _, other in table("kind | key")}
    for name, kind in schema.KINDS.items():
        shape = getattr(kind.read, "__self__", None)
        if shape is not None:
            assert told[name].startswith("kept" if shape._keeps else "passed over"), name


def test_every_fact_is_named() -> None:
    assert {fact for names, _ in table("fact") for fact in quoted(names)} == set(FACTS)


def test_every_kind_of_log_record_and_row_is_named() -> None:
    told = {int(number): quoted(name)[0] for number, name, _ in table("kind | log record")}
    kinds = {number: cls.__name__ for number, cls in records._KINDS.items()}
    assert told == {records.ENTRY: records.EntryRecord.__name__, **kinds}
    tables = {quoted(name)[0] for name, _, _ in table("table | key")}
    assert tables == {*state.TABLES, state.MAP_TABLE}
    keys = {
        rows.META_KEY,
        rows.SESSION_PREFIX,
        rows.USAGE_PREFIX,
        rows.TTL_PREFIX,
        rows.SPLITS_KEY,
        FENCE_PREFIX,
        FLOOR_PREFIX,
    }
    assert {quoted(key)[0].encode() for _, key, _ in table("aux row")} == keys


def test_every_frame_operation_and_message_is_named() -> None:
    told = {quoted(name)[0]: int(number) for number, name, _ in table("type | frame")}
    numbers = {name: v for name, v in vars(frames).items() if name.isupper() and type(v) is int}
    numbers = {name: v for name, v in numbers.items() if not name.startswith("MAX_") and v <= frames.LEVEL}
    assert told == {name: v for name, v in numbers.items() if name not in {"WIRE_VERSION"}}

    described = {int(number): (quoted(name)[0], row) for number, name, row in table("number | operation")}
    assert described.keys() == operations.OPERATIONS.keys()
    for number, (name, lengths) in described.items():
        operation = operations.OPERATIONS[number]
        assert name.lower() == operation.name
        assert {int(n) for n in re.findall(r"\d+", lengths)} == set(operation.lengths), name

    cells = [cell for row in table("number | message") for cell in row]
    messages = {int(n): quoted(name)[0] for n, name in zip(cells[::2], cells[1::2], strict=True)}
    assert messages == {number: cls.__name__ for number, cls in KINDS.items()}


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_each_form_says_that_its_golden_holds_it(form: str) -> None:
    assert re.search(rf"golden (`\w+` and )?`{form}`", PAGE), form
