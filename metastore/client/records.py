"""The operations on the records of a namespace, asynchronous: the client's and the router's way in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from typing_extensions import TypeVar as DefaultTypeVar

from metastore.client.codecs import BYTES, Codec, decoded
from metastore.client.encoding import (
    check_txn,
    condition_of,
    consistency_of,
    decode_cursor,
    encode_compare,
    encode_cursor,
    encode_part,
    get_op,
    part_result,
    touch_op,
    ttl_ms_of,
    write_op,
)
from metastore.client.listing import Found, Listing
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
from metastore.elements import RAISE
from metastore.errors import (
    ConditionFailed,
    CorruptState,
    CrossPartition,
    DecodeFailed,
    InvalidRequest,
    MetastoreError,
    Unavailable,
    WrongRouting,
)
from metastore.history import Version, first_version
from metastore.keys import (
    PARENT,
    check_namespace,
    split_storage_key,
    storage_key_of,
)
from metastore.operations import (
    ABSENT,
    ADD,
    DELETE,
    EXISTS,
    KEYS_ONLY,
    MAX_LIST_LIMIT,
    NOT_FOUND,
    PUT,
    RENAME,
    RESULT_HEAD,
    TXN,
)
from metastore.records import Record, unpack_record
from metastore.routing.dispatcher import Dispatcher
from metastore.routing.request_ids import RequestIds

T = DefaultTypeVar("T", default=bytes)
R = TypeVar("R")
# under a name of its own: the class below has a method called list
Raw = list[Any]


def read_record(key: str, packed: bytes) -> Record:
    """A record as a node answered it. Raises Unavailable when it is not sound: what a node read wrongly, or sent
    wrongly, another may read right."""
    try:
        return unpack_record(packed)
    except CorruptState as e:
        raise Unavailable(
            f"a node's answer for {key!r:.200} is damaged: {e.message}", retry_after_s=1
        ) from None


class AsyncRecords(Generic[T]):
    """The records of a namespace, with values as the codec has them (bytes without one).

    All calls end by their deadline (``deadline_s``, seconds; None = the client's), whatever died. They
    raise a DidNotHappen error when the operation certainly has no effect, and a MaybeHappened error when
    a write's outcome is not known (R7): then it took effect once, or not at all. What any call may raise:
    Unavailable, DeadlineExceeded, Overloaded, InvalidRequest, ClientClosed, and OutcomeUnknown for writes.
    """

    @overload
    def __init__(self: AsyncRecords[bytes], dispatcher: Dispatcher, name: str, deadline_s: float) -> None: ...

    @overload
    def __init__(self, dispatcher: Dispatcher, name: str, deadline_s: float, codec: Codec[T]) -> None: ...

    def __init__(self, dispatcher: Dispatcher, name: str, deadline_s: float, codec: Any = BYTES) -> None:
        self.dispatcher = dispatcher
        self.name = check_namespace(name)
        self.deadline_s = deadline_s
        self.codec: Codec[T] = codec

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def until(self, deadline_s: float | None) -> float:
        """Loop time at which a call has to end. For the router and the client's own use."""
        return asyncio.get_running_loop().time() + (self.deadline_s if deadline_s is None else deadline_s)

    async def _routed(self, until: float, call: Callable[[int], Awaitable[R]]) -> R:
        """``call`` with the namespace's routing rule, again when a node knows a newer one."""
        await self.dispatcher.ready(until)
        while True:
            try:
                return await call(self.dispatcher.table.rule(self.name))
            except WrongRouting:
                if asyncio.get_running_loop().time() >= until:
                    raise
                await self.dispatcher.refresh(until)

    # --- single records ---------------------------------------------------------------------

    async def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        at_least: int | None = None,
        deadline_s: float | None = None,
    ) -> Record[T] | None:
        """The record, or None when there is none.

        ``consistency``: ``linearizable`` (R8), ``stale`` (any replica; ``max_staleness_ms`` bounds its age)
        or ``at_least`` (any replica that has version ``at_least``, of this key or of one in its folder: read
        your writes). Raises TooStale when no replica is fresh enough, DecodeFailed."""
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
    ) -> tuple[Record[T] | None, int | None]:
        """The record or None, and how old it may be in milliseconds (0 for a linearizable read, None
        when the replica cannot tell). Raises as ``get``."""
        kind, arg = consistency_of(consistency, max_staleness_ms, at_least)
        until = self.until(deadline_s)

        async def call(rule: int) -> Raw:
            storage_key = storage_key_of(self.name, key, rule)
            return await self.dispatcher.read(get_op(storage_key, kind, arg), storage_key, until)

        _, status, *rest = await self._routed(until, call)
        if status == NOT_FOUND:
            return None, rest[0]
        packed, age_ms = rest
        return decoded(self.codec, key, read_record(key, packed)), age_ms

    async def put(
        self,
        key: str,
        value: T,
        *,
        version: Version | None = None,
        absent: bool = False,
        exists: bool = False,
        ttl_s: float | None = None,
        content_type: str = "",
        fence: Fence | None = None,
        raise_fence: str | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> PutResult:
        """Write a record: if it is at ``version``, is ``absent``, or ``exists``, when one of them is given.

        ``ttl_s``: seconds to live, None = the namespace's default, 0 = for ever. ``content_type``: "" = the
        codec's. ``raise_fence``: the record is a lock, and its fence has this name: it is raised to the record's new version
        by the same step, so that the token of a former holder is refused from then on (R20); not with ``fence``. ``ids``: request ids of one's own. Raises ConditionFailed, Fenced, ConditionRequired,
        QuotaExceeded, TooLarge, RequestIdExpired (R7), and what the codec raises."""
        condition, ttl_ms = condition_of(version, absent, exists), ttl_ms_of(ttl_s)
        tail = [condition, self.codec.encode(value), content_type or self.codec.content_type, ttl_ms]
        if raise_fence is not None:
            if fence is not None:
                raise InvalidRequest("give fence or raise_fence, not both")
            fence = Fence(raise_fence, RAISE)
        version, _, created = await self.write(PUT, key, tail, fence, deadline_s, ids)
        return PutResult(version, created)

    async def delete(
        self,
        key: str,
        *,
        version: Version | None = None,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> int:
        """Delete a record; the version of the delete, 0 when there was nothing. Raises as ``put``."""
        tail = [condition_of(version, False, exists)]
        version, _ = await self.write(DELETE, key, tail, fence, deadline_s, ids)
        return int(version)

    async def add(
        self,
        key: str,
        delta: int = 1,
        *,
        version: Version | None = None,
        absent: bool = False,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> AddResult:
        """Add to a counter, from 0 when absent. Raises NotANumber, and as ``put``."""
        tail = [condition_of(version, absent, exists), delta]
        version, _, count = await self.write(ADD, key, tail, fence, deadline_s, ids)
        return AddResult(count, version)

    async def rename(
        self,
        key: str,
        to: str,
        *,
        version: Version | None = None,
        replace: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> Version:
        """Give the record at ``key`` the key ``to``, in one step; its new version. It keeps its value, content type and
        ``created``; its TTL begins anew. ``replace``: a record that is at ``to`` is replaced.

        Raises ConditionFailed when there is no record, it is not at ``version``, or (without ``replace``) there is one at
        ``to``; CrossPartition when the keys do not live together; NoCommonVersion when the nodes are of a build that does
        not have it; and as ``put``."""
        if key == to:
            raise InvalidRequest(f"{key!r:.200} would be renamed to itself; give another key")
        until = self.until(deadline_s)

        async def call(rule: int) -> Raw:
            storage_keys = {name: storage_key_of(self.name, name, rule) for name in (key, to)}
            self._check_together(storage_keys, rule)
            tail = [EXISTS if version is None else version, storage_keys[to], None if replace else ABSENT]
            return await self.dispatcher.write(
                write_op(RENAME, storage_keys[key], tail, fence), storage_keys[key], until, ids
            )

        *_, (_, (_, at, _)) = await self._routed(until, call)
        return Version(at)

    async def touch(
        self, key: str, *, version: Version | None = None, deadline_s: float | None = None
    ) -> TouchResult | None:
        """Start the record's TTL anew (R15); None when there is no such record. Its version stays.

        Raises ConditionFailed when it is not at ``version``."""
        until = self.until(deadline_s)

        async def call(rule: int) -> Raw:
            storage_key = storage_key_of(self.name, key, rule)
            return await self.dispatcher.read(touch_op(storage_key, version), storage_key, until)

        _, status, *rest = await self._routed(until, call)
        if status == NOT_FOUND:
            return None
        found, _, ttl_ms = rest
        return TouchResult(found, ttl_ms / 1000)

    async def write(
        self,
        kind: int,
        key: str,
        tail: Raw,
        fence: Fence | None,
        deadline_s: float | None,
        ids: RequestIds | None,
    ) -> Raw:
        """A write of one record in the wire's terms: ``tail`` are the operation's elements behind the request id, what is
        returned the answer's behind OK."""
        until = self.until(deadline_s)

        async def call(rule: int) -> Raw:
            storage_key = storage_key_of(self.name, key, rule)
            return await self.dispatcher.write(
                write_op(kind, storage_key, tail, fence), storage_key, until, ids
            )

        try:
            result = await self._routed(until, call)
            return result[RESULT_HEAD:]
        except ConditionFailed as e:
            packed = e.detail.get("record")
            if isinstance(packed, bytes):
                with contextlib.suppress(DecodeFailed, CorruptState):
                    e.record = decoded(self.codec, key, unpack_record(packed))
            raise

    # --- several ----------------------------------------------------------------------------

    async def txn(
        self,
        compare: Sequence[Compare[T]],
        then: Sequence[Op[T]],
        otherwise: Sequence[Op[T]] = (),
        *,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> TxnResult[T]:
        """Do all of ``then`` if all of ``compare`` hold, else all of ``otherwise``, atomically.

        Raises CrossPartition when the keys do not live together, NotANumber (nothing was done), and
        as ``put``."""
        keys = check_txn(compare, then, otherwise)
        until = self.until(deadline_s)

        async def call(rule: int) -> Raw:
            storage_keys = {key: storage_key_of(self.name, key, rule) for key in keys}
            self._check_together(storage_keys, rule)
            first = storage_keys[keys[0]]
            compares = [encode_compare(storage_keys[c.key], c, self.codec) for c in compare]
            branches = [
                [encode_part(storage_keys[op.key], op, self.codec) for op in branch]
                for branch in (then, otherwise)
            ]
            op = write_op(TXN, first, [compares, *branches], fence)
            return await self.dispatcher.write(op, first, until, ids)

        _, _, succeeded, _, parts = await self._routed(until, call)
        results: list[OpResult[T] | DecodeFailed] = []
        for op, part in zip(then if succeeded else otherwise, parts, strict=True):
            try:
                results.append(part_result(op, part, self.codec))
            except DecodeFailed as e:  # what the transaction did is done
                results.append(e)
        return TxnResult(succeeded, results)

    def _check_together(self, storage_keys: dict[str, bytes], rule: int) -> None:
        table = self.dispatcher.table
        first = next(iter(storage_keys))
        home = table.route(storage_keys[first]).id
        for key, storage_key in storage_keys.items():
            if table.route(storage_key).id != home:
                how = (
                    "give them one {tag}, or put them into one directory"
                    if rule == PARENT
                    else f"namespace {self.name} routes by {table.policy(self.name).routing}; use one that routes by parent"
                )
                raise CrossPartition(
                    f"keys of one operation must be in one partition, but {first!r:.200} and {key!r:.200} are in two; "
                    f"to keep keys together, {how}",
                    keys=[first, key],
                )

    async def batch(
        self, ops: Sequence[Op[T]], *, fence: Fence | None = None, deadline_s: float | None = None
    ) -> BatchResults[T]:
        """Many operations at once, no atomicity; a result, or the error, for each in order. ``fence``: for
        each of the writes. Raises what the codec raises, before anything is sent."""
        raw = [self.codec.encode(op.value) if isinstance(op, Put) else b"" for op in ops]
        calls: list[Any] = [
            self._one(op, value, fence, deadline_s) for op, value in zip(ops, raw, strict=True)
        ]
        results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MetastoreError):
                raise result
        return results

    async def _one(
        self, op: Op[T], value: bytes, fence: Fence | None, deadline_s: float | None
    ) -> OpResult[T]:
        if isinstance(op, Get):
            return await self.get(op.key, deadline_s=deadline_s)
        if isinstance(op, Put):
            content_type = op.content_type or self.codec.content_type
            tail = [op.version, value, content_type, ttl_ms_of(op.ttl_s)]
            version, _, created = await self.write(PUT, op.key, tail, fence, deadline_s, None)
            return PutResult(version, created)
        if isinstance(op, Add):
            return await self.add(op.key, op.delta, fence=fence, deadline_s=deadline_s)
        return await self.delete(op.key, version=op.version, fence=fence, deadline_s=deadline_s)

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
    ) -> Page[T]:
        """One page of at most ``limit`` records (1 to 10,000); it may hold fewer though more follow:
        ``cursor`` tells.

        A prefix with a ``/`` (or a whole ``{tag}``) lists the entries of that one directory (or
        tag) that begin with it, in byte order; any other the whole namespace, in hash order. With
        another routing rule: a prefix that has all the segments the rule counts, or any other.
        With ``keys_only`` records have a version only. Raises DecodeFailed.
        """
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise InvalidRequest(f"limit = {limit} is not within 1 and {MAX_LIST_LIMIT}")
        kind, arg = consistency_of(consistency, max_staleness_ms, None)
        until = self.until(deadline_s)
        tail = [KEYS_ONLY if keys_only else 0, kind, arg]
        listing = Listing(self.dispatcher, self.name, limit, tail, until)
        start_at = decode_cursor(cursor) if cursor else b""

        async def call(rule: int) -> Found:
            return await listing.page(rule, prefix, start_at)

        rows, following, resume, age_ms = await self._routed(until, call)
        items: list[tuple[str, Record[T]]] = []
        for storage_key, packed in rows:
            try:
                key = split_storage_key(storage_key)[1]
            except ValueError:
                raise Unavailable(
                    f"a node listed {storage_key!r:.200}, which is not a storage key", retry_after_s=1
                ) from None
            record: Any = Record(packed, first_version(0), b"")
            items.append((key, record if keys_only else decoded(self.codec, key, read_record(key, packed))))
        return Page(items, encode_cursor(following) if following else None, resume, age_ms)

    async def scan(
        self,
        prefix: str = "",
        *,
        page: int = 1000,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        deadline_s: float | None = None,
    ) -> AsyncIterator[tuple[str, Record[T]]]:
        """All records of a listing, ``page`` at a time, each page within ``deadline_s``. Not one moment's
        picture: a page shows what is there when it is read. Raises as ``list``."""
        cursor: str | None = None
        while True:
            result = await self.list(
                prefix,
                limit=page,
                cursor=cursor,
                keys_only=keys_only,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                deadline_s=deadline_s,
            )
            for item in result.items:
                yield item
            cursor = result.cursor
            if cursor is None:
                return
