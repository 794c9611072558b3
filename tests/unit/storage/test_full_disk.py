"""A store on a real file system without a free byte (a small one in memory; needs root)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metastore.storage.disk import Disk
from tests.unit.storage.test_space import MIB, change, opened, until

DISK_BYTES = 96 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path) -> Path:
    """Take what is free, to the last block."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
        for size in (MIB, 4096):
            with contextlib.suppress(OSError):
                while f.write(bytes(size)) == size:
                    pass
    return filler


async def test_it_lives_deletes_and_goes_on(small_disk: Path) -> None:
    data = small_disk / "data"
    options = {"low_bytes": 8 * MIB, "reserve_bytes": 20 * MIB, "map_size_bytes": 1 << 30}
    store, failures = opened(data, Disk(), **options)
    store.add_partition(0)
    index = 0

    def write(count: int, value: bytes | None, first_key: int) -> None:
        nonlocal index
        for key in range(first_key, first_key + count):
            index += 1
            change(store, index, value, key=key)

    write(200, os.urandom(4000), 0)
    await until(lambda: store.space.reserve_held)
    assert not store.space.low
    filler = fill(small_disk)
    await until(lambda: store.space.low)
    assert not store.space.reserve_held, "given up"
    fill(small_disk)  # and taken by another
    for round_ in range(10):
        write(20, None, 20 * round_)
        await asyncio.sleep(0.1)
    assert not failures
    assert store.get(0, b"00000007n\0k") is None
    await until(lambda: store.durable_seq == store.last_seq)
    await store.close()  # what cannot be flushed is in the log
    again, failures = opened(data, Disk(), **options)
    store = again
    assert again.log.partitions[0].index.last_index == index
    for applied in range(again.partitions[0].applied_index + 1, index + 1):
        key = applied - 1 if applied <= 200 else applied - 201
        again.apply(0, applied, 1, [(b"%08dn\0k" % key, None if applied > 200 else b"")], set())
    filler.unlink()
    await until(lambda: not again.space.low and again.space.reserve_held)
    write(20, b"after", 1000)
    await until(lambda: not again.changes.active.changes and again.changes.flushing is None)
    assert again.get(0, b"00001007n\0k") is not None
    assert not failures
    await again.close()
