"""A write and its sync are one call of the system where there is one, and two where not; never two tries (R14)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore.storage.disk import Disk


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    disk = Disk()
    disk.create(tmp_path / "a.seg", 4096)
    opened = disk.open(tmp_path / "a.seg")
    yield opened
    os.close(opened)


def fails(code: int) -> Any:
    def pwritev(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    return pwritev


def test_in_one_call_in_two_and_cut_short(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    disk.write_synced(fd, b"one", 10)
    assert disk.one_call
    disk.one_call = False
    disk.write_synced(fd, b"two", 13)
    disk.one_call = True
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, data, at, flags: whole(fd, [data[0][:2]], at, flags))
    disk.write_synced(fd, b"three", 16)
    assert os.pread(fd, 11, 10) == b"onetwothree"


def test_who_does_not_know_the_call_is_not_asked_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(os, "pwritev", fails(errno.EOPNOTSUPP))
    disk.write_synced(fd, b"data", 0)
    assert os.pread(fd, 4, 0) == b"data"
    assert not disk.one_call
    assert Disk.one_call


def test_an_error_is_not_tried_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(os, "pwritev", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        disk.write_synced(fd, b"data", 0)
    assert os.pread(fd, 4, 0) == bytes(4)
