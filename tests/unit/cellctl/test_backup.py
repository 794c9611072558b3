"""The file of ``cellctl snapshot``: what is not whole, to the last byte, is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cellctl.backup import MAGIC, survey, write_frame
from metastore.errors import InvalidRequest
from metastore.keys import storage_key
from metastore.records import pack_record

HEAD = {"cluster": "c", "at_ms": 1, "partitions": 2, "namespaces": []}


def frames(path: Path, *rows: tuple[Any, ...]) -> None:
    with path.open("wb") as out:
        out.write(MAGIC)
        for row in rows:
            write_frame(out, *row)


def whole() -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = [("head", HEAD)]
    for p in range(2):
        made += [
            ("part", {"partition": p, "epoch": 1, "index": 5}),
            ("rows", [[storage_key("ns", f"k{p}"), pack_record(1, 1, b"value")]]),
            ("done", {"partition": p, "records": 1}),
        ]
    return [*made, ("end", {"partitions": 2, "records": 2})]


def test_each_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    frames(path, *whole())
    assert survey(path)["namespaces"]["ns"]["records"] == 2
    raw = path.read_bytes()
    for at in range(len(raw)):
        garbled = bytearray(raw)
        garbled[at] ^= 1 << at % 8
        for content in (raw[:at], bytes(garbled)):
            path.write_bytes(content)
            with pytest.raises(InvalidRequest):
                survey(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(InvalidRequest, match="goes on after its end"):
        survey(path)


@pytest.mark.parametrize("lost", range(8))
def test_each_frame(tmp_path: Path, lost: int) -> None:
    """A frame that is not there, the first one included, is missed. But for what says of which moment a part is."""
    path = tmp_path / "file"
    rows = whole()
    kind = rows.pop(lost)[0]
    frames(path, *rows)
    if kind == "part":
        survey(path)
    else:
        with pytest.raises(InvalidRequest):
            survey(path)


def test_a_snapshot_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    frames(path, ("end", {"partitions": 0, "records": 0}))
    with pytest.raises(InvalidRequest, match="head of a snapshot comes first"):
        survey(path)
