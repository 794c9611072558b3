"""The operations on a namespace, asynchronous: the client's and the router's way in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from metastore.client.dispatch import Dispatcher, RequestIds
from metastore.client.results import (
    Add,
    AddResult,
    BatchResults,
    Compare,
    Consistency,
    Fence,
    Get,
    Op,
    OpResult,
    Page,
    Put,
    PutResult,
    TouchResult,
    TxnResult,
)
from metastore.client.watching import MAX_BUFFER_BYTES, Watcher, encode_resume
from metastore.errors import CrossPartition, InvalidRequest, MetastoreError, WrongRouting
from metastore.keys import (
    END_OF_RING,
    PARENT,
    check_namespace,
    encode_key,
    hash_point,
    next_key,
    prefix_routing_key,
    split_storage_key,
    storage_key,
)
from metastore.namespaces import MAX_TTL_MS
from metastore.records import Record, unpack_record
from metastore.wire.client_messages import (
    ABSENT,
    ADD,
    AT_LEAST,
    CREATED,
    DELETE,
    EQUAL,
    EXISTS,
    GET,
    GREATER,
    KEYS_ONLY,
    LESS,
    LINEARIZABLE,
    LIST,
    MAX_LIST_LIMIT,
    MAX_TXN_PARTS,
    NOT_EQUAL,
    NOT_FOUND,
    PUT,
    STALE,
    TOUCH,
    TXN,
    VALUE,
    VERSION,
)

_TARGETS = {"version": VERSION, "created": CREATED, "value": VALUE}
_RELATIONS = {"==": EQUAL, "!=": NOT_EQUAL, "<": LESS, ">": GREATER}
#: a page of a whole namespace ends after so many bytes of records (a node bounds its own answers)
MAX_PAGE_BYTES = 2 << 20
T = TypeVar("T")
# under names of their own: the class below has a method called list
Rows = list[list[Any]]
Raw = list[Any]


def condition_of(version: int | None, absent: bool, exists: bool) -> int | None:
    """The wire's condition. Raises InvalidRequest when more than one is given."""
    if (version is not None) + absent + exists > 1:
        raise InvalidRequest("give at most one of version, absent and exists")
    return ABSENT if absent else EXISTS if exists else version


def consistency_of(
    consistency: Consistency, max_staleness_ms: int | None, at_least: int | None
) -> tuple[int, int | None]:
    """The wire's consistency and its argument. Raises InvalidRequest."""
    if max_staleness_ms is not None and consistency != "stale":
        raise InvalidRequest("max_staleness goes with consistency stale")
    if consistency == "stale":
        return STALE, max_staleness_ms
    if consistency == "at_least" or at_least is not None:
        if at_least is None:
            raise InvalidRequest("consistency at_least needs at_least=version")
        return AT_LEAST, at_least
    if consistency != "linearizable":
        raise InvalidRequest(f"consistency {consistency!r:.40}: use linearizable, stale or at_least")
    return LINEARIZABLE, None


def ttl_ms_of(ttl_s: float | None) -> int | None:
    """The wire's TTL. Raises InvalidRequest."""
    if ttl_s is None:
        return None
    if not isinstance(ttl_s, int | float) or not math.isfinite(ttl_s) or not 0 <= ttl_s * 1000 <= MAX_TTL_MS:
        raise InvalidRequest(f"ttl_s = {ttl_s!r:.40} is not within 0 and {MAX_TTL_MS // 1000} seconds")
    return max(1, round(ttl_s * 1000)) if ttl_s else 0


def encode_cursor(start: bytes) -> str:
    """A cursor that says: go on from here."""
    return base64.urlsafe_b64encode(start).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        if len(raw) < 8 or encode_cursor(raw) != cursor:
            raise ValueError
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"cursor {cursor!r:.80} was not made by this store") from None
    return raw


class Namespace:
    """A named set of keys. All calls end by their deadline (seconds), whatever died: definite
    failures raise what happened, and a write whose outcome is not known OutcomeUnknown."""

    def __init__(self, dispatcher: Dispatcher, name: str, deadline_s: float) -> None:
        self.dispatcher = dispatcher
        self.name = check_namespace(name)
        self.deadline_s = deadline_s

    def until(self, deadline_s: float | None) -> float:
        """Loop time at which a call has to end."""
        return asyncio.get_running_loop().time() + (self.deadline_s if deadline_s is None else deadline_s)

    async def _routed(self, until: float, call: Callable[[int], Awaitable[T]]) -> T:
        """``call`` with the namespace's routing rule, again when a node knows a newer one."""
        await self.dispatcher.ready(until)
        while True:
            try:
                return await call(self.dispatcher.table.rule(self.name))
            except WrongRouting:
                if asyncio.get_running_loop().time() >= until:
                    raise
                await self.dispatcher.refresh()

    # --- single records ---------------------------------------------------------------------

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
        found = await self.get_with_age(
            key,
            consistency=consistency,
            max_staleness_ms=max_staleness_ms,
            at_least=at_least,
            deadline_s=deadline_s,
        )
        return found[0]

    async def get_with_age(
        self,
        key: str,
        *,
        consistency: Consistency = "stale",
        max_staleness_ms: int | None = None,
        at_least: int | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Record | None, int | None]:
        """The record or None, and how old it may be in milliseconds (0 for a linearizable read, None
        when the replica cannot tell)."""
        kind, arg = consistency_of(consistency, max_staleness_ms, at_least)
        until = self.until(deadline_s)

        async def call(rule: int) -> list[Any]:
            lkey = storage_key(self.name, key, rule)
            return await self.dispatcher.read([0, GET, 0, lkey, kind, arg], lkey, until)

        result = await self._routed(until, call)
        if result[1] == NOT_FOUND:
            return None, result[2]
        return unpack_record(result[2]), result[3]

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        version: int | None = None,
        absent: bool = False,
        exists: bool = False,
        ttl_s: float | None = None,
        content_type: str = "",
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> PutResult:
        """Write a record. ``ttl_s``: None = the namespace's default, 0 = it lives for ever.

        Raises ConditionFailed, Fenced, and MetastoreError (R7)."""
        condition, ttl_ms = condition_of(version, absent, exists), ttl_ms_of(ttl_s)
        tail = [condition, bytes(value), content_type, ttl_ms]
        result = await self.write(PUT, key, tail, fence, deadline_s, ids)
        return PutResult(result[2], bool(result[4]))

    async def delete(
        self,
        key: str,
        *,
        version: int | None = None,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> int:
        """Delete a record; the version of the delete, 0 when there was nothing. Raises as ``put``."""
        tail = [condition_of(version, False, exists)]
        result = await self.write(DELETE, key, tail, fence, deadline_s, ids)
        return int(result[2])

    async def add(
        self,
        key: str,
        delta: int = 1,
        *,
        version: int | None = None,
        absent: bool = False,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> AddResult:
        """Add to a counter, from 0 when absent. Raises NotANumber, and as ``put``."""
        tail = [condition_of(version, absent, exists), delta]
        result = await self.write(ADD, key, tail, fence, deadline_s, ids)
        return AddResult(result[4], result[2])

    async def touch(
        self, key: str, *, version: int | None = None, deadline_s: float | None = None
    ) -> TouchResult | None:
        """Start the record's TTL anew; None when there is no such record. Its version stays.

        Raises ConditionFailed when it is not at ``version``."""
        until = self.until(deadline_s)

        async def call(rule: int) -> list[Any]:
            lkey = storage_key(self.name, key, rule)
            return await self.dispatcher.read([0, TOUCH, 0, lkey, version], lkey, until)

        result = await self._routed(until, call)
        return None if result[1] == NOT_FOUND else TouchResult(result[2], result[4] / 1000)

    async def write(
        self,
        kind: int,
        key: str,
        tail: list[Any],
        fence: Fence | None,
        deadline_s: float | None,
        ids: RequestIds | None,
    ) -> list[Any]:
        """A write of one record in the wire's terms."""
        until = self.until(deadline_s)
        fences = [] if fence is None else [list(fence)]

        async def call(rule: int) -> list[Any]:
            lkey = storage_key(self.name, key, rule)
            return await self.dispatcher.write([0, kind, 0, lkey, 0, 0, 0, *tail, *fences], lkey, until, ids)

        return await self._routed(until, call)

    # --- several ----------------------------------------------------------------------------

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> TxnResult:
        """Do all of ``then`` if all of ``compare`` hold, else all of ``otherwise``, atomically.

        Raises CrossPartition when the keys do not live together, NotANumber (nothing was done), and
        as ``put``."""
        if len(compare) + len(then) + len(otherwise) == 0:
            raise InvalidRequest("a transaction without compares and operations does nothing")
        if max(len(compare), len(then), len(otherwise)) > MAX_TXN_PARTS:
            raise InvalidRequest(
                f"a transaction has at most {MAX_TXN_PARTS} compares, and operations in a branch"
            )
        until = self.until(deadline_s)

        async def call(rule: int) -> list[Any]:
            keys = [c.key for c in compare] + [op.key for op in (*then, *otherwise)]
            lkeys = {key: storage_key(self.name, key, rule) for key in keys}
            self._check_together(lkeys, rule)
            first = lkeys[keys[0]]
            compares = [
                [
                    lkeys[c.key],
                    _choice("what", c.what, _TARGETS),
                    _choice("relation", c.relation, _RELATIONS),
                    c.operand,
                ]
                for c in compare
            ]
            branches = [[_part(lkeys[op.key], op) for op in branch] for branch in (then, otherwise)]
            fences = [] if fence is None else [list(fence)]
            op = [0, TXN, 0, first, 0, 0, 0, compares, *branches, *fences]
            return await self.dispatcher.write(op, first, until, ids)

        result = await self._routed(until, call)
        branch = then if result[2] else otherwise
        return TxnResult(
            bool(result[2]), [_part_result(op, part) for op, part in zip(branch, result[4], strict=True)]
        )

    def _check_together(self, lkeys: dict[str, bytes], rule: int) -> None:
        table = self.dispatcher.table
        first = next(iter(lkeys))
        home = table.route(lkeys[first]).id
        for key, lkey in lkeys.items():
            if table.route(lkey).id != home:
                how = (
                    "give them one {tag}, or put them into one directory"
                    if rule == PARENT
                    else f"namespace {self.name} routes by {table.policy(self.name).routing}; use one that routes by parent"
                )
                raise CrossPartition(
                    f"a transaction stays within one partition, and {first!r:.200} and {key!r:.200} live in two; "
                    f"to keep keys together, {how}",
                    keys=[first, key],
                )

    async def batch(self, ops: Sequence[Op], *, deadline_s: float | None = None) -> BatchResults:
        """Many operations at once, no atomicity; a result, or the error, for each in order."""
        calls: list[Any] = [self._one(op, deadline_s) for op in ops]
        results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MetastoreError):
                raise result
        return results

    async def _one(self, op: Op, deadline_s: float | None) -> OpResult:
        if isinstance(op, Get):
            return await self.get(op.key, deadline_s=deadline_s)
        if isinstance(op, Put):
            return await self.put(
                op.key,
                op.value,
                version=op.version,
                content_type=op.content_type,
                ttl_s=op.ttl_s,
                deadline_s=deadline_s,
            )
        if isinstance(op, Add):
            return await self.add(op.key, op.delta, deadline_s=deadline_s)
        return await self.delete(op.key, version=op.version, deadline_s=deadline_s)

    # --- listing ----------------------------------------------------------------------------

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
        """One page of records, of at most ``limit``, and of about MAX_PAGE_BYTES.

        A prefix with a ``/`` (or a whole ``{tag}``) lists the entries of that one directory (or
        tag) that begin with it, in byte order; any other the whole namespace, in hash order. With
        another routing rule: a prefix that has all the segments the rule counts, or any other.
        """
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise InvalidRequest(f"limit {limit} is not within 1 and {MAX_LIST_LIMIT}")
        kind, arg = consistency_of(consistency, max_staleness_ms, None)
        tail = [KEYS_ONLY if keys_only else 0, kind, arg]
        until = self.until(deadline_s)
        start_at = decode_cursor(cursor) if cursor else b""

        async def call(rule: int) -> tuple[Rows, bytes | None, str | None, int | None]:
            ns, raw = self.name.encode(), encode_key(prefix) if prefix else b""
            routing = prefix_routing_key(raw, rule)
            if routing is None:
                found = await self._everywhere(start_at, ns + b"\0" + raw, limit, tail, until)
                return found[0], found[1], None, found[2]
            start = hash_point(ns, routing) + ns + b"\0" + raw
            end = next_key(start)
            if start_at and not start <= start_at < end:
                raise InvalidRequest("the cursor is of another listing: give the same prefix with it")
            result = await self._rows(max(start, start_at), end, limit, tail, until)
            return result[2], result[3], encode_resume([(start[:8], result[5])]), result[4]

        rows, following, resume, age_ms = await self._routed(until, call)
        items = []
        for lkey, packed in rows:
            record = Record(packed, 0, b"") if keys_only else unpack_record(packed)
            items.append((split_storage_key(lkey)[1], record))
        return Page(items, encode_cursor(following) if following else None, resume, age_ms)

    async def _rows(
        self, start: bytes, end: bytes, limit: int, tail: Sequence[Any], until: float, wanted: bytes = b""
    ) -> Raw:
        wanting = [wanted] if wanted else []
        return await self.dispatcher.read([0, LIST, 0, start, end, limit, *tail, *wanting], start, until)

    async def _everywhere(
        self, start_at: bytes, wanted: bytes, limit: int, tail: Sequence[Any], until: float
    ) -> tuple[Rows, bytes | None, int | None]:
        """Rows of all partitions in hash order whose namespace and key begin with ``wanted``, where to
        go on, and their age."""
        found: Rows = []
        size = 0
        ages: list[int | None] = [0]
        for placement in self.dispatcher.table.in_order():
            low = placement.lo.to_bytes(8, "big")
            end = END_OF_RING if placement.hi >> 64 else placement.hi.to_bytes(8, "big")
            if start_at >= end:
                continue
            start: bytes | None = max(low, start_at)
            while start is not None:
                if len(found) >= limit or size >= MAX_PAGE_BYTES:
                    return found, start, _oldest(ages)
                result = await self._rows(start, end, limit - len(found), tail, until, wanted)
                found += result[2]
                size += sum(len(packed) for _, packed in result[2]) if not tail[0] else 0
                ages.append(result[4])
                start = result[3]
        return found, None, _oldest(ages)

    async def scan(
        self,
        prefix: str = "",
        *,
        page: int = 1000,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
    ) -> AsyncIterator[tuple[str, Record]]:
        """All records of a listing, page by page."""
        cursor: str | None = None
        while True:
            result = await self.list(
                prefix, limit=page, cursor=cursor, keys_only=keys_only, consistency=consistency
            )
            for item in result.items:
                yield item
            cursor = result.cursor
            if cursor is None:
                return

    # --- watching ---------------------------------------------------------------------------

    def watch(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        keys_only: bool = False,
        any_replica: bool = False,
        buffer: int = 10_000,
        buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> Watcher:
        """Every change of keys that begin with ``prefix``, each once, in order for each key.

        Prefixes mean what they mean in ``list``. ``after``: a watcher's or a page's ``resume``, to
        see everything since; None = from now on, which ``async with`` or ``started()`` waits for.
        ``any_replica``: also followers may tell, a little later. ``buffer``, ``buffer_bytes``: how much may
        wait for the reader; beyond it the servers are told to wait. Iteration raises Compacted when
        what comes next is not kept any more: list again, and watch from there."""
        raw = encode_key(prefix) if prefix else b""
        return Watcher(self.dispatcher, self.name, raw, after, keys_only, any_replica, buffer, buffer_bytes)


def _oldest(ages: Sequence[int | None]) -> int | None:
    """None when one is not known."""
    known = [age for age in ages if age is not None]
    return max(known) if len(known) == len(ages) else None


def _choice(name: str, given: str, known: dict[str, int]) -> int:
    found = known.get(given)
    if found is None:
        raise InvalidRequest(f"{name} = {given!r:.40} in a compare: use {', '.join(known)}")
    return found


def _part(lkey: bytes, op: Op) -> list[Any]:
    if isinstance(op, Get):
        return [GET, lkey]
    if isinstance(op, Add):
        return [ADD, lkey, op.delta]
    if op.version is not None:
        raise InvalidRequest(
            f"{op.key!r:.200}: an operation of a transaction has no condition; add a Compare"
        )
    if isinstance(op, Put):
        return [PUT, lkey, bytes(op.value), op.content_type, ttl_ms_of(op.ttl_s)]
    return [DELETE, lkey]


def _part_result(op: Op, part: list[Any]) -> OpResult:
    if isinstance(op, Get):
        return None if part[0] == NOT_FOUND else unpack_record(part[1])
    if isinstance(op, Put):
        return PutResult(part[1], bool(part[2]))
    if isinstance(op, Add):
        return AddResult(part[2], part[1])
    return int(part[1])
