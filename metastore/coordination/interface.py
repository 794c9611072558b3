"""What the rest of the store may ask of the coordination service (etcd), and nothing more.

Two implementations: ``etcd`` and ``memory``; one conformance suite runs on both. Every call is
bounded in time; nothing here can block or end the data plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from metastore.layout import LineageRecord


class Peek(NamedTuple):
    """What etcd says, whether it is trusted or not: who it is, its own revision, and a record's value (None = absent)."""

    cluster_id: int
    revision: int
    value: bytes | None


class Known(NamedTuple):
    """What a process knows of etcd: its cluster id (None = nothing yet), the highest revision seen, ``base`` included, and the
    lineage it follows: ``base``, and ``number`` (0 = there was never another etcd)."""

    cluster_id: int | None = None
    revision: int = 0
    base: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class KV:
    """A key as etcd has it; bytes in it that are no UTF-8 are surrogates (``surrogateescape``)."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One key before and after; ``new`` None = deleted."""

    key: str
    old: KV | None
    new: KV | None


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction. ``since``: of all records whose keys begin with ``key``."""

    key: str
    what: Literal["mod", "value", "since"]
    revision: int = 0
    value: bytes = b""

    @classmethod
    def absent(cls, key: str) -> Compare:
        return cls(key, "mod", 0)

    @classmethod
    def mod_revision_is(cls, key: str, revision: int) -> Compare:
        return cls(key, "mod", revision)

    @classmethod
    def unchanged_since(cls, prefix: str, revision: int) -> Compare:
        """Nothing whose key begins with ``prefix`` was made or changed after ``revision``; what was deleted says nothing."""
        return cls(prefix, "since", revision)

    @classmethod
    def value_is(cls, key: str, value: bytes) -> Compare:
        return cls(key, "value", 0, value)


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class Get:
    key: str


Op = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``kvs``: what the Gets of the branch taken found, in order."""

    succeeded: bool
    revision: int
    kvs: list[KV | None]


class Session(Protocol):
    """A lease that is kept alive and made anew when lost."""

    on_change: Callable[[Session], None]

    @property
    def lease_id(self) -> int:
        """0 while there is none."""
        ...

    @property
    def alive(self) -> bool:
        """By this side's own clock: granted or renewed (when sent) less than the TTL ago."""
        ...

    @property
    def margin_s(self) -> float:
        """The least that was left, in seconds, when a renewal came; the whole TTL before the first."""
        ...

    def start(self) -> None: ...

    async def close(self) -> None:
        """Revoke, best effort, within a second."""
        ...


#: how long a watch may be silent before it is asked whether it is alive
QUIET_S = 3.0


class Watch(Protocol):
    """A mirror of a prefix. ``ready`` is set once its first content was delivered. ``read_at``: the revision of the newest
    reading; what came and went before it may never have been told. ``readings``: how many there were."""

    ready: asyncio.Event
    kvs: dict[str, KV]
    revision: int
    read_at: int
    readings: int

    @property
    def silent_s(self) -> float:
        """How long ago it was known to have delivered all that there was; since it began, when it never was."""
        ...

    def begin_again(self) -> None:
        """Read everything anew, soon; what differs is delivered."""
        ...

    def close(self) -> None: ...


OnChange = Callable[[int, list[Change]], None]
OnRead = Callable[[Sequence[KV]], Awaitable[None]]


class Coordinator(Protocol):
    """See the module. Raises CoordinationUnavailable (certainly without effect) and
    CoordinationUnknown (sent, and no answer came)."""

    @property
    def cluster_id(self) -> int | None: ...

    @property
    def revision(self) -> int:
        """The highest seen."""
        ...

    @property
    def connected(self) -> bool: ...

    @property
    def untrusted(self) -> str:
        """Why no call is made any more (R13); "" = it is trusted."""
        ...

    @property
    def takes_writes(self) -> bool:
        """False while it refuses them for a reason of its own, as when it is full; seconds later one is tried again."""
        ...

    @property
    def trouble(self) -> str:
        """What ails the service, as far as its answers say, distrust included; "" = nothing."""
        ...

    async def get(self, key: str) -> KV | None: ...

    async def range(self, prefix: str) -> tuple[int, list[KV]]: ...

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult: ...

    def distrust(self, why: str) -> None:
        """R13: the service contradicts what is known; from here on every call fails, until it is followed anew."""
        ...

    @property
    def known(self) -> Known:
        """What is known of the service's identity, as it is to be kept."""
        ...

    async def peek(self, key: str) -> Peek:
        """A record, whether the service is trusted or not. For the lineage alone. Raises CoordinationUnavailable."""
        ...

    def follow(self, record: LineageRecord, seen: Peek) -> None:
        """R13: the service's records were rebuilt by ``record``, to which there is no objection: trust it, with
        new leases, and watches that read everything anew."""
        ...

    def session(self, ttl_s: float) -> Session: ...

    def watch(
        self, prefix: str, on_change: OnChange, quiet_s: float = QUIET_S, on_read: OnRead | None = None
    ) -> Watch:
        """Mirror ``prefix``; every net change is delivered once, in order, deletes too, across
        disconnects and compaction. The first delivery is the content found (maybe none). When nothing came
        for ``quiet_s`` it looks whether it is still told of changes. ``on_read`` is awaited with what a reading found
        before that is delivered."""
        ...

    async def close(self) -> None: ...
