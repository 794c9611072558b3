"""The Python client, asynchronous: direct to leaders over the binary protocol."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from metastore.client.dispatch import Dispatcher, RequestIds
from metastore.errors import InvalidRequest, MetastoreError
from metastore.keys import (
    check_namespace,
    encode_key,
    hash_point,
    prefix_routing_key,
    split_storage_key,
    storage_key,
)
from metastore.records import Record, unpack_record
from metastore.wire.client_messages import (
    ABSENT,
    ADD,
    AT_LEAST,
    DELETE,
    EXISTS,
    GET,
    KEYS_ONLY,
    LINEARIZABLE,
    LIST,
    MAX_LIST_LIMIT,
    NOT_FOUND,
    PUT,
    STALE,
)

Consistency = Literal["linearizable", "stale", "at_least"]
#: a page ends with the rows that fill it, however many were asked for
MAX_PAGE_BYTES = 4 << 20
END_OF_RING = b"\xff" * 9
Rows = list[list[Any]]
Calls = list[Any]


@dataclass(frozen=True, slots=True)
class PutResult:
    """``created``: there was no record before."""

    version: int
    created: bool


@dataclass(frozen=True, slots=True)
class AddResult:
    value: int
    version: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing. ``cursor``: pass it to get the next one; None at the end."""

    items: list[tuple[str, Record]]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Get:
    """A read in a batch."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """A write in a batch; ``version``: what it must be now, 0 = absent."""

    key: str
    value: bytes
    version: int | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """A delete in a batch."""

    key: str
    version: int | None = None


BatchResults = list[Record | PutResult | int | MetastoreError | None]


def condition_of(version: int | None, absent: bool, exists: bool) -> int | None:
    """The wire's condition. Raises InvalidRequest when more than one is given."""
    if (version is not None) + absent + exists > 1:
        raise InvalidRequest("give at most one of version, absent and exists")
    return ABSENT if absent else EXISTS if exists else version


def consistency_of(
    consistency: Consistency, max_staleness_ms: int | None, at_least: int | None
) -> tuple[int, int | None]:
    """The wire's consistency and its argument. Raises InvalidRequest."""
    if consistency == "stale":
        return STALE, max_staleness_ms
    if consistency == "at_least" or at_least is not None:
        if at_least is None:
            raise InvalidRequest("consistency at_least needs at_least=version")
        return AT_LEAST, at_least
    if consistency != "linearizable":
        raise InvalidRequest(f"consistency {consistency!r}: use linearizable, stale or at_least")
    return LINEARIZABLE, None


def encode_cursor(lkey: bytes) -> str:
    """A cursor that says: go on after ``lkey``."""
    return base64.urlsafe_b64encode(lkey).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4))
        split_storage_key(raw)
    except (binascii.Error, ValueError, UnicodeError):
        raise InvalidRequest(f"cursor {cursor!r:.80} was not made by this store") from None
    return raw


def next_key(prefix: bytes) -> bytes:
    """The smallest bytes above everything that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else END_OF_RING


class Namespace:
    """A named set of keys. All calls end by their deadline (seconds), whatever died: definite
    failures raise what happened, and a write whose outcome is not known OutcomeUnknown."""

    def __init__(self, dispatcher: Dispatcher, name: str, deadline_s: float) -> None:
        self._dispatcher = dispatcher
        self.name = check_namespace(name)
        self.deadline_s = deadline_s

    def _until(self, deadline_s: float | None) -> float:
        return asyncio.get_running_loop().time() + (self.deadline_s if deadline_s is None else deadline_s)

    async def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        at_least: int | None = None,
        deadline_s: float | None = None,
    ) -> Record | None:
        """The record, or None. Raises MetastoreError (R8 for linearizable reads)."""
        lkey = storage_key(self.name, key)
        kind, arg = consistency_of(consistency, max_staleness_ms, at_least)
        result = await self._dispatcher.read([0, GET, 0, lkey, kind, arg], lkey, self._until(deadline_s))
        return None if result[1] == NOT_FOUND else unpack_record(result[2])

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        version: int | None = None,
        absent: bool = False,
        exists: bool = False,
        content_type: str = "",
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> PutResult:
        """Write a record. Raises ConditionFailed, and MetastoreError (R7)."""
        lkey = storage_key(self.name, key)
        condition = condition_of(version, absent, exists)
        op = [0, PUT, 0, lkey, 0, 0, 0, condition, bytes(value), content_type, 0]
        result = await self._dispatcher.write(op, lkey, self._until(deadline_s), ids)
        return PutResult(result[2], result[4])

    async def delete(
        self,
        key: str,
        *,
        version: int | None = None,
        exists: bool = False,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> int:
        """Delete a record; the version of the delete, 0 when there was nothing."""
        lkey = storage_key(self.name, key)
        op = [0, DELETE, 0, lkey, 0, 0, 0, condition_of(version, False, exists)]
        result = await self._dispatcher.write(op, lkey, self._until(deadline_s), ids)
        return int(result[2])

    async def add(
        self, key: str, delta: int = 1, *, deadline_s: float | None = None, ids: RequestIds | None = None
    ) -> AddResult:
        """Add to a counter, from 0 when absent. Raises NotANumber."""
        lkey = storage_key(self.name, key)
        op = [0, ADD, 0, lkey, 0, 0, 0, None, delta]
        result = await self._dispatcher.write(op, lkey, self._until(deadline_s), ids)
        return AddResult(result[4], result[2])

    async def list(
        self,
        prefix: str = "",
        *,
        limit: int = 1000,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        deadline_s: float | None = None,
    ) -> Page:
        """One page of records; it may hold fewer than ``limit`` though more follow: ``cursor`` tells.

        A prefix with a ``/`` (or a whole ``{tag}``) lists the entries of that one directory (or
        tag) that begin with it, in byte order; any other the whole namespace, in hash order.
        """
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise InvalidRequest(f"limit {limit} is not within 1 and {MAX_LIST_LIMIT}")
        kind, arg = consistency_of(consistency, max_staleness_ms, None)
        flags = KEYS_ONLY if keys_only else 0
        tail = [flags, kind, arg]
        until = self._until(deadline_s)
        ns, raw = self.name.encode(), encode_key(prefix) if prefix else b""
        routing = prefix_routing_key(raw)
        after = decode_cursor(cursor) + b"\0" if cursor else b""
        if routing is not None:
            start = hash_point(ns, routing) + ns + b"\0" + raw
            rows, more = await self._rows(max(start, after), next_key(start), limit, tail, until)
        else:
            rows, more = await self._everywhere(after, ns + b"\0" + raw, limit, tail, until)
        items = []
        for lkey, packed in rows:
            record = Record(packed, 0, b"") if keys_only else unpack_record(packed)
            items.append((split_storage_key(lkey)[1], record))
        return Page(items, encode_cursor(rows[-1][0]) if more and rows else None)

    async def _rows(
        self, start: bytes, end: bytes, limit: int, tail: Sequence[Any], until: float
    ) -> tuple[Rows, bool]:
        result = await self._dispatcher.read([0, LIST, 0, start, end, limit, *tail], start, until)
        return result[2], result[3]

    async def _everywhere(
        self, after: bytes, wanted: bytes, limit: int, tail: Sequence[Any], until: float
    ) -> tuple[Rows, bool]:
        """Rows of all partitions in hash order whose namespace and key begin with ``wanted``."""
        table = self._dispatcher.table
        if not table.complete:
            await self._dispatcher._wait_for_table(until)
        found: Rows = []
        size = 0
        ordered = table.in_order()
        for number, placement in enumerate(ordered):
            low, high = placement.lo.to_bytes(8, "big"), min(placement.hi, (1 << 64) - 1).to_bytes(8, "big")
            end = END_OF_RING if placement.hi >> 64 else high
            if after >= end:
                continue
            start = max(low, after)
            while True:
                rows, more = await self._rows(start, end, limit, tail, until)
                fresh = [row for row in rows if row[0][8:].startswith(wanted)]
                found += fresh
                size += sum(len(k) + (len(v) if type(v) is bytes else 8) for k, v in fresh)
                if len(found) >= limit or size >= MAX_PAGE_BYTES:
                    left = more or len(found) > limit or number + 1 < len(ordered)
                    return found[:limit], left
                if not more or not rows:
                    break
                start = rows[-1][0] + b"\0"
        return found, False

    async def scan(self, prefix: str = "", *, page: int = 1000) -> AsyncIterator[tuple[str, Record]]:
        """All records of a listing, page by page."""
        cursor: str | None = None
        while True:
            result = await self.list(prefix, limit=page, cursor=cursor)
            for item in result.items:
                yield item
            cursor = result.cursor
            if cursor is None:
                return

    async def batch(
        self, ops: Sequence[Get | Put | Delete], *, deadline_s: float | None = None
    ) -> BatchResults:
        """Many operations at once, no atomicity; a result, or the error, for each in order."""
        calls: Calls = []
        for op in ops:
            if isinstance(op, Get):
                calls.append(self.get(op.key, deadline_s=deadline_s))
            elif isinstance(op, Put):
                calls.append(
                    self.put(
                        op.key,
                        op.value,
                        version=op.version,
                        content_type=op.content_type,
                        deadline_s=deadline_s,
                    )
                )
            else:
                calls.append(self.delete(op.key, version=op.version, deadline_s=deadline_s))
        results: Calls = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MetastoreError):
                raise result
        return results


class AsyncClient:
    """A client of one cluster.

    ``nodes``: ``host:port`` of any nodes, to learn the topology from. ``deadline_s``: default time
    limit of a call. Use as an async context manager, or call ``start`` and ``close``.
    """

    def __init__(
        self, nodes: Sequence[str], *, cluster: str = "", deadline_s: float = 10.0, name: str = "python"
    ) -> None:
        self.dispatcher = Dispatcher(list(nodes), cluster, name=name)
        self.deadline_s = deadline_s

    async def start(self) -> None:
        """Raises Unavailable when no node tells the topology within the deadline."""
        await self.dispatcher.start(self.deadline_s)

    async def close(self) -> None:
        await self.dispatcher.close()

    async def __aenter__(self) -> AsyncClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def namespace(self, name: str) -> Namespace:
        """Raises InvalidRequest when ``name`` is not valid."""
        return Namespace(self.dispatcher, name, self.deadline_s)
