"""The rows of one page of a listing: of one directory, or of all partitions in the order of their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from metastore.client.encoding import list_op
from metastore.client.watch.resume_tokens import encode_resume
from metastore.elements import rows_size
from metastore.errors import InvalidRequest
from metastore.keys import encode_key, end_point, hash_point, next_key, prefix_routing_key
from metastore.operations import RESULT_HEAD
from metastore.routing.dispatcher import Dispatcher

#: a page ends with the rows that fill it, however many were asked for
MAX_PAGE_BYTES: Final = 2 << 20

Rows = list[list[Any]]
Found = tuple[Rows, bytes | None, str | None, int | None]
"""The rows, where to go on, a resume token, and how old they may be in milliseconds; each None where it is not known."""


def oldest(ages: Sequence[int | None]) -> int | None:
    """The greatest of ``ages``; None when one is not known."""
    known = [age for age in ages if age is not None]
    return max(known) if len(known) == len(ages) else None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is asked of each partition: ``limit`` rows in all, the operation's flags, consistency and argument (``tail``), until
    the loop time ``until``."""

    dispatcher: Dispatcher
    namespace: str
    limit: int
    tail: Sequence[Any]
    until: float

    async def page(self, rule: int, prefix: str, start_at: bytes) -> Found:
        """The page of ``prefix`` that begins at the storage key ``start_at``, b"" for the first, by the routing rule ``rule``.
        Raises InvalidRequest when that is of another prefix, and what the dispatcher raises."""
        ns, raw = self.namespace.encode(), encode_key(prefix) if prefix else b""
        routing = prefix_routing_key(raw, rule)
        if routing is None:
            return await self._everywhere(start_at, ns + b"\0" + raw)
        start = hash_point(ns, routing) + ns + b"\0" + raw
        end = next_key(start)
        if start_at and not start <= start_at < end:
            raise InvalidRequest(
                "the cursor belongs to a listing of another prefix; give the same prefix with it"
            )
        rows, following, age_ms, version = await self._rows(max(start, start_at), end, self.limit)
        return rows, following, encode_resume([(start[:8], version)]), age_ms

    async def _rows(self, start: bytes, end: bytes, limit: int, wanted: bytes = b"") -> list[Any]:
        flags, consistency, arg = self.tail
        op = list_op(start, end, limit, flags, consistency, arg, wanted)
        result = await self.dispatcher.read(op, start, self.until)
        return result[RESULT_HEAD:]

    async def _everywhere(self, start_at: bytes, wanted: bytes) -> Found:
        """Rows of all partitions, in the order of their points, whose namespace and key begin with ``wanted``."""
        found: Rows = []
        size = 0
        ages: list[int | None] = [0]
        for placement in self.dispatcher.table.in_order():
            low = placement.lo.to_bytes(8, "big")
            end = end_point(placement.hi)
            if start_at >= end:
                continue
            start: bytes | None = max(low, start_at)
            while start is not None:
                if len(found) >= self.limit or size >= MAX_PAGE_BYTES:
                    return found, start, None, oldest(ages)
                rows, start, age_ms, _ = await self._rows(start, end, self.limit - len(found), wanted)
                found += rows
                size += rows_size(rows)
                ages.append(age_ms)
        return found, None, None, oldest(ages)
