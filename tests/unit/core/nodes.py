"""Cores whose logs are dicts, for tests that play one schedule by hand."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import entry_position, pack_entry
from metastore.core.events import Opened, Restored
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord, first_epoch

MEMBERS = (("a", "sa"), ("b", "sb"), ("c", "sc"))
TERM1 = first_epoch(1)
CONFIG = ConfigRecord(0, 0, 1 << 64, TERM1, "a", MEMBERS)
START = 100_000 * MS


def process(name: str, run: str = "1") -> Process:
    return Process(name, "s" + name, run)


class Node:
    """A core whose log is a dict, and what it said."""

    def __init__(
        self,
        me: Process,
        restored: Restored,
        seed: int = 1,
        *,
        settings: CoreSettings | None = None,
        began: int = START - 90_000 * MS,
        largest_grant_ns: int = 0,
    ) -> None:
        """``began``: when the process started; ``largest_grant_ns``: what an earlier run ever granted (R8)."""
        self.me = me
        self.blobs: dict[int, bytes] = {}
        settings = settings or CoreSettings()
        self.core = NodeCore(me, settings, Random(seed), self.read, began, largest_grant_ns)
        self.core.handle(START, Opened(0, restored))
        self.replica = self.core._replicas[0]
        self.up = True

    def read(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        blobs: list[bytes] = []
        while first in self.blobs and (not blobs or sum(map(len, blobs)) < max_bytes):
            blobs.append(self.blobs[first])
            first += 1
        return blobs

    def take(self) -> list[Any]:
        effects = self.core.take()
        for e in effects:
            if isinstance(e, fx.PersistEntries):
                self.blobs.update({entry_position(b)[0]: b for b in e.blobs})
        return effects

    def sent(self, kind: type[Any]) -> list[Any]:
        return [e.message for e in self.take() if isinstance(e, fx.Send) and isinstance(e.message, kind)]


def followers(owner: Process, *names: str) -> dict[str, Node]:
    return {n: Node(process(n), Restored(LogIndex(), TERM1, owner, CONFIG, 0)) for n in names}


def deliver(
    nodes: dict[str, Node], now: int, drop: Callable[[str, str, Any], bool] = lambda a, b, x: False
) -> None:
    """Every message at once, until nobody has anything to say."""
    moved = True
    while moved:
        moved = False
        for node in nodes.values():
            for e in node.take():
                if isinstance(e, fx.Send) and node.up and not drop(node.me.node, e.node, e.message):
                    moved = True
                    if e.node in nodes and nodes[e.node].up:
                        nodes[e.node].core.handle(now, e.message, node.me)


def led(now: int = START, drop: Callable[[str, str, Any], bool] = lambda a, b, x: False) -> dict[str, Node]:
    """Three nodes, of which ``a`` is active in ``TERM1 + 1``; nobody is owed an answer."""
    nodes = followers(process("a", "0"), "a", "b", "c")
    nodes["a"].replica.elect_without_etcd(now, "test")
    deliver(nodes, now, drop)
    assert nodes["a"].replica.role == "active"
    return nodes


def blob(index: int, epoch: int, payload: bytes = b"") -> bytes:
    return pack_entry(index, epoch, payload)


def log_of(*epochs: int) -> LogIndex:
    """A log from the first entry on, of these epochs."""
    log = LogIndex()
    for index, epoch in enumerate(epochs, 1):
        log.append(index, epoch)
    return log


def seal(epoch: int, config: ConfigRecord, resigned: int = 0) -> m.Seal:
    return m.Seal(0, epoch, pack_config(config), resigned)
