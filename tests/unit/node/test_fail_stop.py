"""R14 at the driver: whatever breaks while effects are carried out ends the node; nothing that was
lost on the way is acknowledged afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import pytest

from metastore.config import NodeConfig
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.core.messages import Process
from metastore.errors import CorruptState, ProtocolError, StorageError
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, first_epoch
from metastore.node.clients import ClientConnection
from metastore.node.node import Node
from metastore.operations import PUT
from metastore.partition import applying
from metastore.records import pack_record, unpack_record
from metastore.storage.store import Store

LEADER = Process("l", "sl", "1")
EPOCH = first_epoch(1)


class Fixture:
    """A follower on a real store, and the other end of its connections; ``out``: what leaves on them."""

    def __init__(self, folder: Path) -> None:
        self.config = NodeConfig(
            cell="c1", node="f", data_dir=str(folder), rpc="127.0.0.1:9", http="127.0.0.1:9"
        )
        self.store = Store.open(folder, cluster="metastore", node="f")
        self.node = Node(self.config, self.store, "1")
        self.out: list[Any] = []

    async def start(self) -> None:
        self.node.start()
        self.node.links._open = dict.fromkeys(("l", "x"), self)  # type: ignore[arg-type]
        members = (("l", "sl"), ("f", self.store.store_id), ("x", "sx"))
        self.record = ConfigRecord(0, 0, 1 << 64, EPOCH, "l", members)
        self.host = self.node.open_partition(self.record)
        self.node.on_peer_messages(LEADER, [m.Seal(0, EPOCH, pack_config(self.record), 0)])
        await self.durable()
        self.out.clear()

    def send(self, messages: list[Any]) -> None:
        self.out += messages

    def abort(self) -> None:
        pass

    async def durable(self) -> None:
        while self.store.durable_seq < self.store.last_seq and self.node.failure is None:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)

    def append(self, prev: int, *blobs: bytes, commit: int = 0) -> m.Append:
        return m.Append(0, EPOCH, EPOCH if prev else 0, prev, commit, list(blobs))

    def answers(self) -> list[Any]:
        return [x for x in self.out if isinstance(x, m.Appended | m.Sealed)]


async def test_an_entry_that_cannot_be_applied_ends_the_node(f: Fixture) -> None:
    """The second APPEND of the frame is never acknowledged: its effects went with the first's."""
    odd = pack_entry(2, EPOCH, msgpack.packb([7, [], [], [], []]))  # the state is not at version 7
    f.node.on_peer_messages(LEADER, [f.append(0, pack_entry(1, EPOCH, b""), odd)])
    await f.durable()
    f.out.clear()
    third = pack_entry(3, EPOCH, b"")
    f.node.on_peer_messages(LEADER, [f.append(2, commit=2), f.append(2, third)])
    await f.durable()
    assert f.node.failure is not None
    f.node.on_peer_messages(LEADER, [f.append(2, third)])
    await f.durable()
    assert not f.answers()


async def test_an_entry_of_a_form_that_is_not_known_is_not_taken(f: Fixture) -> None:
    """Of a later version, or made up: its sender is disconnected, and nothing is stored."""
    odd = pack_entry(2, EPOCH, msgpack.packb([0, [], [[2, b"k", b"r", -1, 0, "of a later version"]], [], []]))
    with pytest.raises(ProtocolError, match="a form that there is not"):
        f.node.on_peer_messages(LEADER, [f.append(0, pack_entry(1, EPOCH, b""), odd)])
    await f.durable()
    assert not f.answers()
    assert f.host.replica.log.last_index == 0
    assert f.node.failure is None


async def test_a_log_that_cannot_be_read_ends_the_node(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO behind a commit; the SEAL in the same frame is not answered."""
    f.node.on_peer_messages(LEADER, [f.append(0, pack_entry(1, EPOCH, b""))])
    await f.durable()
    f.out.clear()
    f.store.log.partitions[0].blobs.clear()

    def fails(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f.store.log.files.disk, "read", fails)
    seal = m.Seal(0, EPOCH + 1, pack_config(f.record), 0)
    f.node.on_peer_messages(LEADER, [f.append(1, commit=1), seal])
    await f.durable()
    assert isinstance(f.node.failure, StorageError)
    assert "cannot be read" in str(f.node.failure)
    assert not f.answers()


async def test_a_tick_that_fails_ends_the_node(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(f.node.core, "handle", fails)
    async with asyncio.timeout(120):
        await f.node.halt.failed.wait()


async def test_damage_that_a_client_finds_ends_the_node(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = ClientConnection(f.node)
    connection.greeted = True

    def fails(body: Any, now: int) -> None:
        raise CorruptState("the stored record does not match its checksum")

    monkeypatch.setattr(connection, "request", fails)
    from metastore.wire import frames

    connection.data_received(frames.pack(frames.REQUEST, []))
    assert isinstance(f.node.failure, CorruptState)


async def test_nonsense_from_a_peer_ends_only_its_connection(f: Fixture) -> None:
    with pytest.raises(ProtocolError):
        f.node.on_peer_messages(LEADER, [f.append(0, b"not an entry at all")])
    assert f.node.failure is None


def put_entry(index: int, epoch: int, value: bytes) -> bytes:
    """An entry that puts one record, the first of the partition."""
    storage_key = storage_key_of("ns", "k")
    payload = msgpack.packb(
        [0, [], [[PUT, storage_key, pack_record(1, 1, value), -1, 0]], [[b"ns", 1, 50]], []]
    )
    return pack_entry(index, epoch, payload)


async def test_what_is_applied_is_what_the_log_has(f: Fixture) -> None:
    """An entry is kept decoded from when it comes until it is committed; another may take its place."""
    f.node.on_peer_messages(LEADER, [f.append(0, pack_entry(1, EPOCH, b""), put_entry(2, EPOCH, b"old"))])
    assert 2 in f.host.applying.staged
    later = EPOCH + 1
    f.node.on_peer_messages(LEADER, [m.Seal(0, later, pack_config(f.record), 0)])
    await f.durable()
    new = m.Append(0, later, EPOCH, 1, 2, [put_entry(2, later, b"new")])
    f.node.on_peer_messages(LEADER, [new])
    await f.durable()
    assert f.node.failure is None
    assert f.host.applied == 2
    record = f.store.get(0, storage_key_of("ns", "k"))
    assert record is not None
    assert unpack_record(record).value == b"new"
    assert not f.host.applying.staged


async def test_who_is_far_behind_decodes_again(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "MAX_STAGED_BYTES", 0)
    f.node.on_peer_messages(LEADER, [f.append(0, pack_entry(1, EPOCH, b""))])
    f.node.on_peer_messages(LEADER, [f.append(1, put_entry(2, EPOCH, b"x"))])
    f.node.on_peer_messages(LEADER, [f.append(2, pack_entry(3, EPOCH, b""))])
    assert list(f.host.applying.staged) == [3]
    f.node.on_peer_messages(LEADER, [f.append(3, commit=3)])
    assert f.node.failure is None
    assert f.host.applied == 3
    assert f.store.get(0, storage_key_of("ns", "k")) is not None


async def test_nothing_is_written_under_another_epoch_than_the_sealed_one(f: Fixture) -> None:
    """R1: the storage write itself compares."""
    f.store.append_entries(0, EPOCH, 0, [])
    for epoch in (EPOCH - 1, EPOCH + 1):
        with pytest.raises(StorageError, match="R1"):
            f.store.append_entries(0, epoch, 0, [])
