"""The interfaces between one partition and the node around it: replies, watches, what is to be done, surroundings, its
part of the store. A partition calls nothing of a node but these, so a test can stand in for all of it.

All times are in ns on the node's clock, all sizes in bytes. Everything happens in one thread.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

from metastore.core.rows import UpperHalf
from metastore.errors import CorruptState, MetastoreError, RottenEntry
from metastore.topology import Placement


class ReplySink(Protocol):
    """Where the results of a client's operations go."""

    def answer(self, result: list[Any], size: int = 0, /) -> None:
        """One result of about ``size`` bytes: ``[op id, status, ...]``."""

    def crowded(self) -> bool:
        """Whether so many answers wait to be read that another large one is too much."""


class WatchSink(Protocol):
    """Where the frames of a client's watches go."""

    def write(self, data: bytes, /) -> None:
        """Send one frame."""

    def watch_ended(self, watch_id: int, error: MetastoreError, /) -> None:
        """The watch has ended; nothing more is sent for it."""

    def congested(self, limit: int, /) -> bool:
        """Whether over ``limit`` bytes wait to be read by the other side."""


class Memory(Protocol):
    """The bytes that operations of all partitions hold while they wait."""

    waiting: int

    @property
    def writes_full(self) -> bool:
        """Whether no more writes may wait."""


class Agenda(Protocol):
    """What a partition asks the node's next tick to do for it, and what it has used up of this one."""

    #: time spent in this tick on listings, and on finding where watches begin
    listing_ns: int
    memory: Memory

    def propose(self, p: int, /) -> None:
        """Call the partition's ``propose_pending`` once the log is free. Asking twice is asking once."""

    def confirm(self, p: int, /) -> int:
        """Send heartbeats at the end of this tick, and call ``confirm_waiting`` when peers have answered. Only answers to
        heartbeats with a number above the returned one confirm what waits from now on (R8)."""

    def feed(self, p: int, /) -> None:
        """Call the ``pump`` of the partition's watches soon."""

    def handle(self, now: int, event: Any, /) -> None:
        """Something has happened to a replica (``core.events``): the core's one door. Its effects are carried out soon."""

    def wake(self) -> None:
        """There is something to do: a tick of the loop comes."""


class EntryLog(Protocol):
    """The log of another partition here, which may have what was before a split (R18)."""

    @property
    def base(self) -> int:
        """The last entry that can no longer be read."""

    def joins(self, epoch: int, index: int, /) -> bool:
        """Whether this log has an entry ``index`` of ``epoch``, or ends its past there."""

    def read(self, first: int, max_bytes: int, /) -> list[bytes]:
        """Entries from ``first`` on, above ``base``; at least one. Raises RottenEntry."""


class Surroundings(Protocol):
    """What a partition asks about the node and the cluster around it."""

    #: something keeps writes that add data from some partition of this node: look closer
    tight: bool

    @property
    def stopping(self) -> bool:
        """Whether this node hands its leaders over and ends."""

    def can_elect(self) -> bool:
        """Whether etcd answers and this node's lease is alive, as far as is known."""

    def connected(self) -> Collection[str]:
        """The nodes that a connection is open to."""

    def away_for_s(self, node: str, /) -> float:
        """Seconds for which there has been no connection to ``node``; 0.0 while there is one."""

    def address_of(self, node: str | None, /) -> str | None:
        """The rpc address of ``node``, if it is known."""

    def family(self, p: int, /) -> list[Placement]:
        """The partitions that ``p`` and what was split off it are now (R18)."""

    def whereabouts(self, p: int, /) -> MetastoreError:
        """The answer for a partition that is not here."""

    def room_text(self) -> str:
        """How much room the disk has, in words."""

    def log_of(self, p: int, /) -> EntryLog | None:
        """The log of another partition here."""

    def rotten(self, p: int, error: CorruptState, /) -> None:
        """R14: what was read from the state of ``p`` is not what was put there."""

    def lost(self, error: RottenEntry, /) -> None:
        """R14: an entry of a log is not what was written."""


class Scan(NamedTuple):
    """``next``: the key to go on at, None = there is nothing more; ``bytes``: keys and records together."""

    rows: list[tuple[bytes, bytes]]
    next: bytes | None
    bytes: int


class PartitionSlice(Protocol):
    """One partition's part of the store: its state, and its log."""

    @property
    def applied(self) -> int:
        """The last entry that the state has: the store's word, which nobody else keeps."""

    @property
    def applied_epoch(self) -> int:
        """The epoch of that entry."""

    @property
    def full(self) -> bool:
        """Whether so much waits to be flushed that no more writes are to come."""

    @property
    def syncing(self) -> bool:
        """Whether an entry that is appended now waits for a later round of the log."""

    def get(self, storage_key: bytes, /) -> bytes | None:
        """The committed record, packed. Raises CorruptState."""

    def scan(
        self,
        start: bytes,
        end: bytes,
        limit: int,
        max_bytes: int,
        wanted: bytes = ...,
        max_looks: int = ...,
        /,
    ) -> Scan:
        """Committed records with ``start <= key < end`` whose namespace and key begin with ``wanted``, until a bound is
        met. Raises CorruptState."""

    def metadata(self) -> list[tuple[bytes, bytes]]:
        """The metadata rows of the state. Raises CorruptState."""

    def apply(
        self,
        index: int,
        epoch: int,
        changes: list[tuple[bytes, bytes | None]],
        metadata: set[bytes],
        split: UpperHalf | None,
        /,
    ) -> None:
        """Entry ``index`` is applied, with all that follows from it, as one. ``metadata``: keys of metadata rows that changed."""

    def opening(self) -> list[int]:
        """R18: what was split off this partition, and this partition itself if it was, as far as it is not durable yet."""

    @property
    def base_index(self) -> int:
        """The last entry that the log has no more."""

    @property
    def last_index(self) -> int:
        """The last entry of the log."""

    def epoch_at(self, index: int, /) -> int | None:
        """The epoch of an entry that the log has, or of the last that it has no more."""

    def read(self, first: int, max_bytes: int, /) -> list[bytes]:
        """Entries from ``first`` on, at least one. Raises RottenEntry."""

    def has(self, index: int, blob: bytes, /) -> bool:
        """Whether entry ``index`` of the log is this same object."""
