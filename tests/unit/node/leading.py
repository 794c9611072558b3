"""A real node that leads a partition of three; the test plays the two other nodes, and the clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metastore.clock import now_ns
from metastore.config import NodeConfig
from metastore.core import messages as m
from metastore.core.events import ConfigSeen, QuorumAsked
from metastore.core.messages import Process
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, first_epoch
from metastore.node.node import Node
from metastore.operations import DELETE, GET, LINEARIZABLE, PUT, TOUCH
from metastore.storage.store import Store

P, EPOCH = 0, first_epoch(1)
X, Y = Process("x", "sx", "1"), Process("y", "sy", "1")
#: long enough for any machine
LONG_NS = 3_600_000_000_000
CLIENT = b"c" * 16


class Asker:
    """A client's connection: what it was answered, in order."""

    def __init__(self) -> None:
        self.results: list[list[Any]] = []

    def answer(self, result: list[Any], size: int = 0) -> None:
        self.results.append(result)

    def crowded(self) -> bool:
        return False

    def statuses(self) -> list[int]:
        return [result[1] for result in self.results]


class Leading:
    """See the module; an async context manager. ``out``: (node, message) of all that has left."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.out: list[tuple[str, Any]] = []

    async def __aenter__(self) -> Leading:
        self.store = Store.open(self.folder, cluster="metastore", node="f")
        config = NodeConfig(
            cell="c1",
            node="f",
            data_dir=str(self.folder),
            rpc="127.0.0.1:9",
            http="127.0.0.1:9",
            **self.settings,
        )
        self.node = Node(config, self.store, "1")
        self.node.links.queue = lambda node, message: self.out.append((node, message))  # type: ignore[method-assign]
        self.node.start()
        members = (("f", self.store.store_id), ("x", "sx"), ("y", "sy"))
        self.record = ConfigRecord(P, 0, 1 << 64, EPOCH, "f", members)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.stop(hand_over=False)

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not what():
                assert self.node.failure is None, self.node.failure
                await asyncio.sleep(0)

    async def durable(self) -> None:
        """Everything that was appended is synced, and what waited for that has left."""
        seq = self.store.last_seq
        await self.until(lambda: self.store.durable_seq >= seq)
        await asyncio.sleep(0)

    def begin(self) -> None:
        """etcd names this node owner."""
        self.host = self.node.open_partition(self.record)
        self.replica = self.host.replica
        self.node.core.handle(now_ns(), ConfigSeen(P, self.record, 1))
        self.node.ticks.run_effects()

    async def lead(self) -> None:
        """Until it is active, with grants of ``x`` for an hour."""
        self.begin()
        await self.until(lambda: self.sent(m.Seal, "x"))
        self.node.on_peer_messages(X, [m.Sealed(P, EPOCH, 0, 0, 0, 0)])
        await self.until(lambda: self.replica.term is not None and self.replica.term.noop_index)
        await self.acknowledged()
        await self.until(lambda: self.host.role == "active")
        self.grant()

    def sent(self, kind: type[Any], to: str = "x") -> list[Any]:
        return [message for node, message in self.out if node == to and type(message) is kind]

    def grant(self) -> None:
        """``x`` acknowledges a heartbeat that is sent now."""
        core = self.node.core
        core.handle(now_ns(), QuorumAsked())
        self.node.ticks.run_effects()
        self.node.on_peer_messages(X, [m.HeartbeatAck(core.last_number, 0, LONG_NS, [])])
        assert self.replica.can_read(now_ns())

    async def disks(self, room: int, *peers: Process) -> None:
        """Each of ``peers`` says how much room its disk has, and this node has heard it."""
        core = self.node.core
        core.handle(now_ns(), QuorumAsked())
        self.node.ticks.run_effects()
        for peer in peers:
            self.node.on_peer_messages(peer, [m.HeartbeatAck(core.last_number, 0, LONG_NS, [], room)])
        self.node.ticks.note_room()

    def end_grants(self) -> None:
        """All grants held are over, all at once."""
        term = self.replica.term
        assert term is not None
        term.hold_until.clear()
        term.count_grants()
        assert not self.replica.can_read(now_ns())

    async def acknowledged(self) -> None:
        """This node and ``x`` have on disk all that there is."""
        await self.durable()
        self.node.on_peer_messages(X, [m.Appended(P, EPOCH, self.replica.log.last_index)])

    # --- operations ----------------------------------------------------------------------------

    def ask(self, op: list[Any], asker: Asker | None = None, within_ns: int = LONG_NS) -> Asker:
        asker = asker or Asker()
        now = now_ns()
        self.host.operate(asker, CLIENT, op, now + within_ns, now)
        return asker

    def put(self, key: str, ttl_ms: int = 0, seq: int = 0, within_ns: int = LONG_NS) -> Asker:
        op = [1, PUT, P, storage_key_of("n", key), seq, seq, 0, None, b"value", "", ttl_ms]
        return self.ask(op, within_ns=within_ns)

    def delete(self, key: str) -> Asker:
        return self.ask([4, DELETE, P, storage_key_of("n", key), 0, 0, 0, None])

    def get(self, key: str) -> Asker:
        return self.ask([2, GET, P, storage_key_of("n", key), LINEARIZABLE, None])

    def touch(self, key: str) -> Asker:
        return self.ask([3, TOUCH, P, storage_key_of("n", key), None])

    def propose(self) -> None:
        self.host.propose_pending(now_ns())
        self.node.ticks.run_effects()

    async def written(self, key: str, ttl_ms: int = 0) -> None:
        asker = self.put(key, ttl_ms)
        self.propose()
        await self.acknowledged()
        await self.until(lambda: asker.results)
        assert asker.statuses() == [0]
