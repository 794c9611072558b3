"""Ports of local clusters that are started side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cellctl.dev_files import pick_ports

NAMES = ["c1n1-rpc", "c1n1-http", "router"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_was_picked_lately_is_not_picked_again() -> None:
    """Nobody listens on the ports of the first yet."""
    first, second = (pick_ports("127.0.0.1", NAMES, set()) for _ in range(2))
    assert list(first) == list(second) == NAMES
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"20000": "soon"}', b"\xff"])
def test_a_damaged_record_of_picks_costs_nothing(content: bytes, temporary: Path) -> None:
    pick_ports("127.0.0.1", NAMES, set())
    (record,) = temporary.glob("metastore-ports-*")
    record.write_bytes(content)
    assert len(set(pick_ports("127.0.0.1", NAMES, set()).values())) == len(NAMES)
