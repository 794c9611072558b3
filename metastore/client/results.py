"""What the client gives back, and what it takes beside plain values. Plain data.

``T`` is what the namespace's codec makes of values; bytes when there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from metastore.errors import DecodeFailed, MetastoreError
from metastore.history import FencingToken, Version
from metastore.records import Record

T = TypeVar("T", default=bytes)

Consistency = Literal["linearizable", "stale", "at_least"]


class Fence(NamedTuple):
    """A fencing token: a write that carries it is refused (Fenced) by every partition that has seen
    a higher token of this name: by a fenced write, or because a lock of this name was taken in it (R20). Names belong
    to the namespace that is written to."""

    name: str
    token: FencingToken


@dataclass(frozen=True, slots=True)
class PutResult:
    """``created``: there was no record before."""

    version: Version
    created: bool


@dataclass(frozen=True, slots=True)
class AddResult:
    """``value``: the counter after the addition."""

    value: int
    version: Version


@dataclass(frozen=True, slots=True)
class TouchResult:
    """``ttl_s``: how long the record lives from now on, 0 = for ever."""

    version: Version
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing. ``cursor``: pass it to get the next one; None at the end. ``resume``:
    of a listing within one routing key, pass it to ``watch`` to see every change since this page was read;
    None for listings of a whole namespace (open the watch first, then list). ``age_ms``: how old what was
    read may be, 0 for a linearizable listing, None when a replica cannot tell."""

    items: list[tuple[str, Record[T]]]
    cursor: str | None
    resume: str | None = None
    age_ms: int | None = 0


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """A change. ``kind``: put, delete, or expire (its TTL was over). ``record``: what was put; None
    for the others, and with ``keys_only``."""

    kind: Literal["put", "delete", "expire"]
    key: str
    version: Version
    record: Record[T] | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """A read in a batch or a transaction."""

    key: str


@dataclass(frozen=True, slots=True)
class Put(Generic[T]):
    """A write in a batch or a transaction. ``version``: what it must be now, 0 = absent (batches only:
    a transaction has its compares). ``content_type``: "" = the codec's. ``ttl_s``: None = the namespace's
    default, 0 = it lives for ever."""

    key: str
    value: T
    version: Version | None = None
    content_type: str = ""
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """A delete in a batch or a transaction."""

    key: str
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """An addition to a counter in a batch or a transaction."""

    key: str
    delta: int = 1


Relation = Literal["==", "!=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Compare(Generic[T]):
    """One condition of a transaction: ``Compare("a/b", "version", "==", 7)``.

    ``what``: ``version`` or ``created`` (numbers, 0 = the record is absent) or ``value`` (compared as the
    bytes that the codec makes of ``operand``; of an absent record only ``!=`` holds)."""

    key: str
    what: Literal["version", "created", "value"]
    relation: Relation
    operand: int | T

    @classmethod
    def absent(cls, key: str) -> Compare[T]:
        return cls(key, "version", "==", 0)

    @classmethod
    def exists(cls, key: str) -> Compare[T]:
        return cls(key, "version", ">", 0)


Op: TypeAlias = Get | Put[T] | Delete | Add
OpResult: TypeAlias = Record[T] | PutResult | AddResult | int | None
"""Of a Get: the record or None. Of a Put: PutResult, of an Add: AddResult. Of a Delete: its version,
0 when there was nothing."""

BatchResults: TypeAlias = list[Record[T] | PutResult | AddResult | int | MetastoreError | None]


@dataclass(frozen=True, slots=True)
class TxnResult(Generic[T]):
    """``succeeded``: all compares held, and ``then`` was done; else ``otherwise`` was. ``results``: one
    for each operation of that branch, in order; of a Get whose value the codec does not decode, the
    DecodeFailed."""

    succeeded: bool
    results: list[OpResult[T] | DecodeFailed]
