"""One partition that is a whole cluster, over ports in memory: no node, no store, no loop. What is appended is durable when
the test says so."""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import Any

from metastore.clock import now_ns
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.entry import entry_position
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.payloads import read_payload
from metastore.core.rows import UpperHalf
from metastore.core.settings import CoreSettings
from metastore.errors import CorruptState, MetastoreError, Moved, RottenEntry
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, first_epoch
from metastore.operations import GET, LINEARIZABLE, LIST, PUT
from metastore.partition.partition import Partition
from metastore.partition.policies import Policies
from metastore.partition.ports import EntryLog, Memory, Scan
from metastore.topology import Placement, TopologyTable

P, EPOCH, CLIENT = 5, first_epoch(1), b"c" * 16
ME = Process("f", "sf", "1")
RECORD = ConfigRecord(P, 0, 1 << 64, EPOCH, "f", (("f", "sf"),))
LONG_NS = 3_600_000_000_000


class Asker:
    """A client's connection: what it was answered, in order."""

    def __init__(self) -> None:
        self.results: list[list[Any]] = []
        self.full = False

    def answer(self, result: list[Any], size: int = 0, /) -> None:
        self.results.append(result)

    def crowded(self) -> bool:
        return self.full

    def statuses(self) -> list[int]:
        return [result[1] for result in self.results]


class Held:
    """The memory of those who wait."""

    waiting = 0
    writes_full = False


class Slice:
    """State and log of the partition, in memory."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.log: dict[int, bytes] = {}
        self.applied = self.applied_epoch = self.base_index = 0
        self.full = self.syncing = False
        self.rotten = False
        self.parted: list[UpperHalf] = []

    def get(self, storage_key: bytes, /) -> bytes | None:
        if self.rotten:
            raise CorruptState("it is rotten")
        return self.records.get(storage_key)

    def scan(
        self,
        start: bytes,
        end: bytes,
        limit: int,
        max_bytes: int,
        wanted: bytes = b"",
        max_looks: int = 1 << 62,
        /,
    ) -> Scan:
        found = [
            (k, r) for k, r in sorted(self.records.items()) if start <= k < end and k[8:].startswith(wanted)
        ]
        rows = found[:limit]
        following = found[limit][0] if len(found) > limit else None
        return Scan(rows, following, sum(len(k) + len(r) for k, r in rows))

    def metadata(self) -> list[tuple[bytes, bytes]]:
        return []

    def apply(
        self,
        index: int,
        epoch: int,
        changes: list[tuple[bytes, bytes | None]],
        metadata: set[bytes],
        split: UpperHalf | None,
        /,
    ) -> None:
        assert index == self.applied + 1
        self.applied, self.applied_epoch = index, epoch
        for storage_key, record in changes:
            if record is None:
                self.records.pop(storage_key, None)
            else:
                self.records[storage_key] = record
        if split is not None:
            self.parted.append(split)
            self.records = {k: r for k, r in self.records.items() if k < split.at}

    def opening(self) -> list[int]:
        return [half.child for half in self.parted]

    @property
    def last_index(self) -> int:
        return max(self.log, default=0)

    def epoch_at(self, index: int, /) -> int | None:
        return entry_position(self.log[index])[1] if index in self.log else None

    def read(self, first: int, max_bytes: int, /) -> list[bytes]:
        return [self.log[index] for index in range(first, self.last_index + 1)]

    def has(self, index: int, blob: bytes, /) -> bool:
        return self.log.get(index) is blob


class Alone:
    """See the module. It is the partition's agenda, and all that is around it."""

    def __init__(self, max_pending: int = 100) -> None:
        self.core = NodeCore(
            ME,
            CoreSettings(),
            Random(1),
            lambda p, first, size: self.slice.read(first, size),
            now_ns(),
            0,
            read_payload,
        )
        self.slice, self.topology = Slice(), TopologyTable("c")
        #: the core's door
        self.handle = self.core.handle
        self.handle(now_ns(), ev.Opened(P, ev.Restored(LogIndex(), config=RECORD)))
        self.replica = self.core.replicas[P]
        self.memory: Memory = Held()
        self.listing_ns = 0
        self.proposing = self.confirming = self.feeding = 0
        self.tight = self.stopping = False
        self.damaged: list[int] = []
        self.undurable: list[Any] = []
        policies = Policies(self.topology, "/metastore/", {})
        self.partition = Partition(self.replica, self.slice, self, self, policies, max_pending)
        self.partition.load()
        self.handle(now_ns(), ev.ConfigSeen(P, RECORD, 1))
        while self.replica.role != "active":
            self.settle()
            self.sync()

    # --- Agenda -------------------------------------------------------------------------------

    def propose(self, p: int, /) -> None:
        self.proposing += 1

    def confirm(self, p: int, /) -> int:
        self.confirming += 1
        return self.core.last_number

    def feed(self, p: int, /) -> None:
        self.feeding += 1

    def wake(self) -> None: ...

    # --- Surroundings -------------------------------------------------------------------------

    def can_elect(self) -> bool:
        return True

    def connected(self) -> Collection[str]:
        return ()

    def away_for_s(self, node: str, /) -> float:
        return 0.0

    def address_of(self, node: str | None, /) -> str | None:
        return None

    def family(self, p: int, /) -> list[Placement]:
        return []

    def whereabouts(self, p: int, /) -> MetastoreError:
        return Moved("it has left", partition=p)

    def room_text(self) -> str:
        return "1 MiB"

    def log_of(self, p: int, /) -> EntryLog | None:
        return None

    def rotten(self, p: int, error: CorruptState, /) -> None:
        self.damaged.append(p)

    def lost(self, error: RottenEntry, /) -> None:
        raise AssertionError(error)

    # --- what a tick does ---------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out the effects, but for what waits for the disk."""
        while effects := self.core.take():
            for effect in effects:
                if isinstance(effect, fx.Send):
                    self.undurable.append(effect.message)
                elif isinstance(effect, fx.PersistEntries):
                    self.slice.log.update({entry_position(blob)[0]: blob for blob in effect.blobs})
                elif isinstance(effect, fx.Committed):
                    self.partition.apply_to(effect[1])
                elif isinstance(effect, fx.RoleChanged):
                    self.partition.on_role(effect.role, effect.was)

    def sync(self) -> None:
        """All that was appended is durable."""
        messages, self.undurable = self.undurable, []
        for message in messages:
            self.core.handle(now_ns(), message, ME)
        self.settle()

    def run(self) -> None:
        """The log is free, and then durable."""
        self.partition.propose_pending(now_ns())
        self.settle()
        self.sync()

    # --- operations ---------------------------------------------------------------------------

    def ask(self, op: list[Any], asker: Asker | None = None) -> Asker:
        asker = asker or Asker()
        now = now_ns()
        self.partition.operate(asker, CLIENT, op, now + LONG_NS, now)
        return asker

    def put(self, key: str) -> Asker:
        return self.ask([1, PUT, P, storage_key_of("n", key), 0, 0, 0, None, b"value", "", 0])

    def get(self, key: str, asker: Asker | None = None) -> Asker:
        return self.ask([2, GET, P, storage_key_of("n", key), LINEARIZABLE, None], asker)

    def list_all(self, limit: int = 10) -> Asker:
        return self.ask([3, LIST, P, bytes(8), b"\xff" * 9, limit, 0, LINEARIZABLE, None])
