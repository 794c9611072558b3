"""What the replicas of a node share: the log as the core sees it."""

from __future__ import annotations

from random import Random

from metastore.core import effects as fx
from metastore.core.entry import pack_entry
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.settings import CoreSettings

BIG = 1 << 20


def blob(index: int, epoch: int) -> bytes:
    return pack_entry(index, epoch, b"payload")


def make(stored: dict[int, bytes]) -> NodeCore:
    def read(p: int, first: int, max_bytes: int) -> list[bytes]:
        return [stored[i] for i in range(first, max(stored) + 1)]

    return NodeCore(Process("n", "s", "1"), CoreSettings(), Random(1), read, 0, 0)


def test_a_truncation_not_carried_out_yet_counts_already() -> None:
    """A new owner takes its own suffix back, pulls another and sends on, all in one step: the
    store still holds the old suffix (I2)."""
    stored = {i: blob(i, 1) for i in range(1, 7)}
    core = make(stored)
    core.emit(fx.PersistTruncate(0, 4, 1))
    core.emit(fx.PersistEntries(0, [blob(5, 2), blob(6, 3)], 4, 3))
    assert core._read_log(0, 2, BIG) == [blob(2, 1), blob(3, 1), blob(4, 1)]
    assert core._read_log(0, 5, BIG) == [blob(5, 2), blob(6, 3)]
    assert core._read_log(0, 5, 1) == [blob(5, 2)]
    core.take()
    assert core._read_log(0, 6, BIG) == [blob(6, 1)], "taken: the driver has carried them out"


def test_a_deeper_truncation_after_entries() -> None:
    core = make({i: blob(i, 1) for i in range(1, 4)})
    core.emit(fx.PersistEntries(0, [blob(4, 1), blob(5, 1)], 0, 1))
    core.emit(fx.PersistTruncate(0, 2, 1))
    core.emit(fx.PersistEntries(0, [blob(3, 2)], 0, 2))
    assert core._read_log(0, 1, BIG) == [blob(1, 1), blob(2, 1)]
    assert core._read_log(0, 3, BIG) == [blob(3, 2)]
