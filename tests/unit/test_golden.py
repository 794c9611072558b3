"""What other builds have written is read, and what this one writes is what they read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import metastore
from metastore import layout, schema
from metastore.core.messages import KINDS
from metastore.operations import OPERATIONS
from metastore.storage.records import _KINDS as LOG_KINDS
from metastore.wire import frames
from tests.golden import records, storage, wire
from tests.golden.catalogue import FORMS
from tests.golden.formats import FOLDER, Form, golden_versions, read_golden, wrong

CASES = [(form, version) for form in FORMS for version in {form.version, *golden_versions(form)}]


@pytest.mark.parametrize(("form", "version"), CASES, ids=[f"{f.name}-{v}" for f, v in CASES])
def test_what_was_written_is_read_and_written_still(form: Form, version: int) -> None:
    assert form.file(version).exists(), "python -m tests.golden --write, and commit what it wrote"
    told = wrong(form, version)
    assert not told, "\n".join(told)


def test_each_golden_is_of_a_form_that_there_is() -> None:
    known = {form.name for form in FORMS}
    assert {path.stem.rsplit("-", 1)[0] for path in FOLDER.glob("*.txt")} <= known


def test_all_that_leaves_a_process_has_an_example() -> None:
    """Whoever adds a message, an operation, a record or a fact adds an example of it."""
    assert {type(one) for one in wire.PEER_MESSAGES} == set(KINDS.values())
    operations = {op[1] for op in wire.OPS.values()}
    assert operations == set(OPERATIONS)
    assert {type(one) for one in storage.LOG_RECORDS} >= set(LOG_KINDS.values())
    kinds = {
        value for name, value in vars(layout).items() if name.endswith("Record") or name == "ClusterMeta"
    }
    assert kinds <= {type(one) for one in records.ETCD.values()}
    assert set(schema.KINDS) == {parts[0] for parts, _, _ in records.PLAIN.values()} | {
        "meta", "lineage", "cells", "features", "nodes", "config", "leader", "moves", "splits", "namespaces",
    }  # fmt: skip
    raws = [raw for form in FORMS[:2] for raw in read_golden(form.file(form.version)).values()]
    sent = {frames.HEADER.unpack_from(raw)[2] for raw in raws}
    kinds_of_frames = {v for k, v in vars(frames).items() if k.isupper() and type(v) is int and v < 64}
    assert sent >= kinds_of_frames
    facts = set()
    for module in Path(metastore.__file__).parent.rglob("*.py"):
        for line in module.read_text().splitlines():
            if line.startswith("FACT_") and "=" in line:
                facts.add(line.split("=")[1].strip().strip('"'))
    assert facts == set(storage.FACTS)


def test_changed_bytes_are_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field more, a field less, and a golden that nothing reads: each is told."""
    form = next(form for form in FORMS if form.name == "etcd")
    lines = form.file(form.version).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("leader "))
    raw = bytes.fromhex(lines[at].split()[1])

    def told(changed: bytes, name: str = "leader") -> list[str]:
        path = tmp_path / form.file(form.version).name
        path.write_text("\n".join([*lines[:at], f"{name} {changed.hex()}", *lines[at + 1 :]]) + "\n")
        moved = dataclasses.replace(form)
        monkeypatch.setattr(Form, "file", lambda self, version: path)
        found = wrong(moved, form.version)
        monkeypatch.undo()
        return found

    assert told(raw) == []
    assert "raise the version" in told(raw[:-1] + b',"more":1}')[0]
    assert "not read any more" in told(raw.replace(b"epoch", b"epoca"))[0]
    assert any("nothing reads any more" in one for one in told(raw, "chief"))
