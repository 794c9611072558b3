"""The operations on a namespace, for threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic

from typing_extensions import TypeVar as DefaultTypeVar

from metastore.client.blocking.locks import Election, Lock
from metastore.client.blocking.portal import Portal
from metastore.client.blocking.watching import Watcher
from metastore.client.codecs import Codec
from metastore.client.namespace import AsyncNamespace
from metastore.client.request_ids import RequestIds
from metastore.client.results import (
    AddResult,
    BatchResults,
    Compare,
    Consistency,
    Fence,
    Op,
    Page,
    PutResult,
    TouchResult,
    TxnResult,
)
from metastore.client.subscription import MAX_BUFFER_BYTES
from metastore.keys import check_namespace
from metastore.records import Record

T = DefaultTypeVar("T", default=bytes)


class Namespace(Generic[T]):
    """AsyncNamespace for threads; made by ``Client.namespace``. Methods, results and errors are described
    there."""

    def __init__(self, portal: Portal, name: str, deadline_s: float, codec: Codec[T]) -> None:
        self.name = check_namespace(name)
        self.deadline_s = deadline_s
        self.codec = codec
        self._portal = portal

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def _inner(self) -> AsyncNamespace[T]:
        return AsyncNamespace(self._portal.client().dispatcher, self.name, self.deadline_s, self.codec)

    # --- single records ---------------------------------------------------------------------

    def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        at_least: int | None = None,
        deadline_s: float | None = None,
    ) -> Record[T] | None:
        """The record, or None when there is none."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.get(
                key,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                at_least=at_least,
                deadline_s=deadline_s,
            )
        )

    def get_with_age(
        self,
        key: str,
        *,
        consistency: Consistency = "stale",
        max_staleness_ms: int | None = None,
        at_least: int | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Record[T] | None, int | None]:
        """The record or None, and how old it may be in milliseconds."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.get_with_age(
                key,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                at_least=at_least,
                deadline_s=deadline_s,
            )
        )

    def put(
        self,
        key: str,
        value: T,
        *,
        version: int | None = None,
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
        ``raise_fence``: it is a lock, and its fence has this name."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.put(
                key,
                value,
                version=version,
                absent=absent,
                exists=exists,
                ttl_s=ttl_s,
                content_type=content_type,
                fence=fence,
                raise_fence=raise_fence,
                deadline_s=deadline_s,
                ids=ids,
            )
        )

    def delete(
        self,
        key: str,
        *,
        version: int | None = None,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> int:
        """Delete a record; the version of the delete, 0 when there was nothing."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.delete(
                key, version=version, exists=exists, fence=fence, deadline_s=deadline_s, ids=ids
            )
        )

    def add(
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
        """Add to a counter, from 0 when absent."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.add(
                key,
                delta,
                version=version,
                absent=absent,
                exists=exists,
                fence=fence,
                deadline_s=deadline_s,
                ids=ids,
            )
        )

    def touch(
        self, key: str, *, version: int | None = None, deadline_s: float | None = None
    ) -> TouchResult | None:
        """Start the record's TTL anew; None when there is no such record."""
        inner = self._inner
        return self._portal.call(lambda: inner.touch(key, version=version, deadline_s=deadline_s))

    # --- several ----------------------------------------------------------------------------

    def txn(
        self,
        compare: Sequence[Compare[T]],
        then: Sequence[Op[T]],
        otherwise: Sequence[Op[T]] = (),
        *,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> TxnResult[T]:
        """Do all of ``then`` if all of ``compare`` hold, else all of ``otherwise``, atomically."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.txn(compare, then, otherwise, fence=fence, deadline_s=deadline_s, ids=ids)
        )

    def batch(
        self, ops: Sequence[Op[T]], *, fence: Fence | None = None, deadline_s: float | None = None
    ) -> BatchResults[T]:
        """Many operations at once, no atomicity; a result, or the error, for each in order."""
        inner = self._inner
        return self._portal.call(lambda: inner.batch(ops, fence=fence, deadline_s=deadline_s))

    # --- listing ----------------------------------------------------------------------------

    def list(
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
        """One page of at most ``limit`` records (1 to 10,000)."""
        inner = self._inner
        return self._portal.call(
            lambda: inner.list(
                prefix,
                limit=limit,
                cursor=cursor,
                keys_only=keys_only,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                deadline_s=deadline_s,
            )
        )

    def scan(
        self,
        prefix: str = "",
        *,
        page: int = 1000,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        deadline_s: float | None = None,
    ) -> Iterator[tuple[str, Record[T]]]:
        """All records of a listing, ``page`` at a time."""
        cursor: str | None = None
        while True:
            result = self.list(
                prefix,
                limit=page,
                cursor=cursor,
                keys_only=keys_only,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                deadline_s=deadline_s,
            )
            yield from result.items
            cursor = result.cursor
            if cursor is None:
                return

    # --- watching, locks, elections -----------------------------------------------------------

    def watch(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        keys_only: bool = False,
        any_replica: bool = False,
        buffer: int = 10_000,
        buffer_bytes: int = MAX_BUFFER_BYTES,
    ) -> Watcher[T]:
        """Every change of keys that begin with ``prefix``, each once, in order for each key."""
        inner = self._inner.watch(
            prefix,
            after=after,
            keys_only=keys_only,
            any_replica=any_replica,
            buffer=buffer,
            buffer_bytes=buffer_bytes,
        )
        return Watcher(self._portal, inner)

    def lock(self, key: str, *, ttl_s: float = 10.0, owner: str = "") -> Lock:
        """A lock of everybody who uses this key."""
        return Lock(self._portal, self._inner.lock(key, ttl_s=ttl_s, owner=owner))

    def election(self, key: str, *, ttl_s: float = 10.0) -> Election[T]:
        """An election of one leader among everybody who campaigns for this key."""
        return Election(self._portal, self._inner.election(key, ttl_s=ttl_s))
