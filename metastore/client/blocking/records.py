"""The operations on the records of a namespace, for threads.

Made from ``metastore/client/records.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from typing_extensions import TypeVar as DefaultTypeVar

from metastore.client.blocking.bases import RecordsBase
from metastore.client.blocking.portal import Portal
from metastore.client.codecs import BYTES, Codec
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
from metastore.history import Version
from metastore.keys import check_namespace
from metastore.records import Record
from metastore.routing.request_ids import RequestIds

T = DefaultTypeVar("T", default=bytes)


class Records(RecordsBase[T]):
    """The records of a namespace, with values as the codec has them (bytes without one).

    All calls end by their deadline (``deadline_s``, seconds; None = the client's), whatever died. They
    raise a DidNotHappen error when the operation certainly has no effect, and a MaybeHappened error
    when a write's outcome is not known (R7): then it took effect once, or not at all. What any call may
    raise: Unavailable, DeadlineExceeded, Overloaded, InvalidRequest, ClientClosed, and OutcomeUnknown
    for writes."""

    @overload
    def __init__(self: Records[bytes], portal: Portal, name: str, deadline_s: float) -> None: ...

    @overload
    def __init__(self, portal: Portal, name: str, deadline_s: float, codec: Codec[T]) -> None: ...

    def __init__(self, portal: Portal, name: str, deadline_s: float, codec: Any = BYTES) -> None:
        self._portal = portal
        self.name = check_namespace(name)
        self.deadline_s = deadline_s
        self.codec: Codec[T] = codec

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

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
        """The record, or None when there is none.

        ``consistency``: ``linearizable`` (R8), ``stale`` (any replica; ``max_staleness_ms`` bounds its age)
        or ``at_least`` (any replica that has version ``at_least``, of this key or of one in its folder:
        read your writes). Raises TooStale when no replica is fresh enough, DecodeFailed."""
        inner = self._inner
        return self._call(
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
        """The record or None, and how old it may be in milliseconds (0 for a linearizable read, None when the
        replica cannot tell). Raises as ``get``."""
        inner = self._inner
        return self._call(
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
        codec's. ``raise_fence``: the record is a lock, and its fence has this name: it is raised to the
        record's new version by the same step, so that the token of a former holder is refused from then on
        (R20); not with ``fence``. ``ids``: request ids of one's own. Raises ConditionFailed, Fenced,
        ConditionRequired, QuotaExceeded, TooLarge, RequestIdExpired (R7), and what the codec raises."""
        inner = self._inner
        return self._call(
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
        version: Version | None = None,
        exists: bool = False,
        fence: Fence | None = None,
        deadline_s: float | None = None,
        ids: RequestIds | None = None,
    ) -> int:
        """Delete a record; the version of the delete, 0 when there was nothing. Raises as ``put``."""
        inner = self._inner
        return self._call(
            lambda: inner.delete(
                key, version=version, exists=exists, fence=fence, deadline_s=deadline_s, ids=ids
            )
        )

    def add(
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
        inner = self._inner
        return self._call(
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

    def rename(
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
        """Give the record at ``key`` the key ``to``, in one step; its new version. It keeps its value, content
        type and ``created``; its TTL begins anew. ``replace``: a record that is at ``to`` is replaced.

        Raises ConditionFailed when there is no record, it is not at ``version``, or (without ``replace``)
        there is one at ``to``; CrossPartition when the keys do not live together; NoCommonVersion when the
        nodes are of a build that does not have it; and as ``put``."""
        inner = self._inner
        return self._call(
            lambda: inner.rename(
                key, to, version=version, replace=replace, fence=fence, deadline_s=deadline_s, ids=ids
            )
        )

    def touch(
        self, key: str, *, version: Version | None = None, deadline_s: float | None = None
    ) -> TouchResult | None:
        """Start the record's TTL anew (R15); None when there is no such record. Its version stays.

        Raises ConditionFailed when it is not at ``version``."""
        inner = self._inner
        return self._call(lambda: inner.touch(key, version=version, deadline_s=deadline_s))

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
        """Do all of ``then`` if all of ``compare`` hold, else all of ``otherwise``, atomically.

        Raises CrossPartition when the keys do not live together, NotANumber (nothing was done), and as
        ``put``."""
        inner = self._inner
        return self._call(
            lambda: inner.txn(compare, then, otherwise, fence=fence, deadline_s=deadline_s, ids=ids)
        )

    def batch(
        self, ops: Sequence[Op[T]], *, fence: Fence | None = None, deadline_s: float | None = None
    ) -> BatchResults[T]:
        """Many operations at once, no atomicity; a result, or the error, for each in order. ``fence``: for
        each of the writes. Raises what the codec raises, before anything is sent."""
        inner = self._inner
        return self._call(lambda: inner.batch(ops, fence=fence, deadline_s=deadline_s))

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
        """One page of at most ``limit`` records (1 to 10,000); it may hold fewer though more follow:
        ``cursor`` tells.

        A prefix with a ``/`` (or a whole ``{tag}``) lists the entries of that one directory (or tag) that
        begin with it, in byte order; any other the whole namespace, in hash order. With another routing
        rule: a prefix that has all the segments the rule counts, or any other. With ``keys_only`` records
        have a version only. Raises DecodeFailed."""
        inner = self._inner
        return self._call(
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
        """All records of a listing, ``page`` at a time, each page within ``deadline_s``. Not one moment's
        picture: a page shows what is there when it is read. Raises as ``list``."""
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
