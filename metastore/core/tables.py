"""What a partition remembers beside its records, all of it replicated: finished requests, the version it stands at, how much each
namespace holds here, which records have a TTL, the fencing tokens seen, and what was split off. Each is saved as an *aux row*;
``metadata_keys`` names those there are. Pure.
"""

from __future__ import annotations

from typing import Any

import msgpack

from metastore.core.dedupe import Session, Sessions, Tail
from metastore.core.fences import FENCE_PREFIX, FLOOR_PREFIX, Fences
from metastore.core.rows import (
    META_KEY,
    SESSION_PREFIX,
    SPLITS_KEY,
    TTL_PREFIX,
    USAGE_PREFIX,
    Applied,
    Change,
    SplitOff,
    SplitResult,
    digest_key,
    unpack_splits,
)
from metastore.decoding import unpack_own
from metastore.history import (
    LastSeenIndex,
    Version,
    first_version,
    generation_of,
    is_of_another,
)
from metastore.records import (
    TTL,
    record_ttl_ms,
    record_versions,
    shown_from,
)


class Tables:
    """See the module."""

    def __init__(self) -> None:
        self.last_version = first_version(0)
        #: where the partition's present history begins (R19); what was written before is shown as of it
        self.first_version = first_version(0)
        self.dedupe = Sessions()
        #: namespace -> [records, bytes]
        self.usage: dict[bytes, list[int]] = {}
        #: storage_key -> (version, ttl_ms) of every record that has a TTL
        self.timed: dict[bytes, tuple[Version, int]] = {}
        self.fences = Fences()
        #: all that was split off, the last one last
        self.splits: list[SplitOff] = []
        self._timed_names: dict[bytes, bytes] = {}

    @property
    def sessions(self) -> dict[bytes, Session]:
        return self.dedupe.by_client

    @property
    def expired_below(self) -> LastSeenIndex:
        return self.dedupe.expired_below

    def metadata(self, key: bytes) -> bytes | None:
        """The aux row ``key`` as it is now; None = delete it."""
        kind, rest = key[:1], key[1:]
        row: Any = None
        if key == META_KEY:
            row = [self.last_version, self.dedupe.expired_below]
        elif kind == SESSION_PREFIX:
            session = self.dedupe.by_client.get(rest)
            if session is not None:
                return session.pack()
            row = self.dedupe.spent.get(rest)
        elif kind == USAGE_PREFIX:
            row = self.usage.get(rest)
        elif kind == TTL_PREFIX:
            name = self._timed_names.get(key)
            row = None if name is None else [name, *self.timed[name]]
        elif kind in (FENCE_PREFIX, FLOOR_PREFIX):
            return self.fences.metadata(key)
        elif key == SPLITS_KEY and self.splits:
            row = self.splits
        if row is None:
            return None
        raw: bytes = msgpack.packb(row)
        return raw

    def metadata_keys(self) -> list[bytes]:
        """Every aux row that there is, in an order that all replicas share."""
        keys = [META_KEY]
        keys += [SESSION_PREFIX + client for client in sorted([*self.dedupe.by_client, *self.dedupe.spent])]
        keys += [USAGE_PREFIX + namespace for namespace in sorted(self.usage)]
        keys += sorted(self._timed_names)
        keys += self.fences.metadata_keys()
        keys += [SPLITS_KEY] if self.splits else []
        return keys

    def reset(self) -> None:
        """Back to empty, before the rows of an installed snapshot are loaded (R17)."""
        self.last_version = self.first_version = first_version(0)
        self.dedupe = Sessions()
        self.fences = Fences()
        for table in (self.usage, self.timed, self._timed_names):
            table.clear()
        self.splits = []

    def load(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Start from saved aux rows."""
        sessions: list[tuple[bytes, Session | int]] = []
        fences: list[tuple[bytes, bytes]] = []
        expired_below = LastSeenIndex(0)
        for key, raw in rows:
            kind = key[:1]
            if key == META_KEY:
                self.last_version, expired_below = unpack_own(raw)
            elif kind == SESSION_PREFIX:
                sessions.append((key[1:], Session.unpack(raw)))
            elif kind == USAGE_PREFIX:
                self.usage[key[1:]] = unpack_own(raw)
            elif kind == TTL_PREFIX:
                storage_key, version, ttl_ms = unpack_own(raw)
                self.timed[storage_key], self._timed_names[key] = (version, ttl_ms), storage_key
            elif kind in (FENCE_PREFIX, FLOOR_PREFIX):
                fences.append((key, raw))
            elif key == SPLITS_KEY:
                self.splits = unpack_splits(raw)
        self.first_version = self.dedupe.history = first_version(generation_of(self.last_version))
        self.dedupe.load(sessions, expired_below)
        self.fences.load(fences)

    def shown(self, record: bytes) -> bytes:
        """A record as the present history has it."""
        return shown_from(record, self.first_version) if self.first_version else record

    def shown_versions(self, record: bytes | None) -> tuple[int, int, int]:
        """``(flags, version, created)`` of what ``shown`` gives; zeros when there is no record."""
        if record is None:
            return 0, 0, 0
        flags, version, created = record_versions(record)
        if version >= self.first_version:
            return flags, version, created
        return flags, self.first_version, self.first_version

    def is_other_history(self, version: int) -> bool:
        """Whether a version that a client gave is of another history than the present one."""
        return is_of_another(version, self.first_version)

    def is_left_behind(self, version: int, leads: bool) -> bool:
        """The same of a replica that may be behind: of a later history it may not have heard yet, unless it
        ``leads`` and can be read from."""
        return version < self.first_version or (leads and self.is_other_history(version))

    def seen_index(self, index: int) -> LastSeenIndex:
        """What is handed out for a log index."""
        return self.first_version + index  # type: ignore[return-value]  # once an operation: a type is not to cost a call

    def begin_history(self, index: int, first: Version) -> Applied:
        """A mark: every term of a partition whose history was changed begins with one, the first of them
        begins the generation (R19)."""
        if first <= self.last_version:
            return Applied([], set(), self.last_version)
        self.last_version = self.first_version = first
        self.dedupe.begin_history(first, index)
        return Applied([], {META_KEY}, first)

    def remember(
        self,
        index: int,
        lowest_open_of: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
        usage: list[list[Any]],
        fences: list[list[Any]],
        horizon: int,
    ) -> set[bytes]:
        metadata = {META_KEY}
        changed, gone = self.dedupe.remember(index, lowest_open_of, tails, horizon)
        for client in changed:
            metadata.add(SESSION_PREFIX + client)
        for client in gone:
            metadata.add(SESSION_PREFIX + client)
        for namespace, records, size in usage:
            held = self.usage.get(namespace)
            if held is None:
                held = self.usage[namespace] = [0, 0]
            held[0] += records
            held[1] += size
            if held == [0, 0]:
                del self.usage[namespace]
            metadata.add(USAGE_PREFIX + namespace)
        if fences:
            self.fences.apply(fences, metadata)
        return metadata

    def note_ttls(self, changes: list[Change], base: int, metadata: set[bytes]) -> None:
        timed = self.timed
        number = base
        for storage_key, record in changes:
            number += 1
            if record is not None and record[4] & TTL:
                key = digest_key(TTL_PREFIX, storage_key)
                timed[storage_key], self._timed_names[key] = (
                    (Version(number), record_ttl_ms(record)),
                    storage_key,
                )
                metadata.add(key)
            elif timed and storage_key in timed:
                key = digest_key(TTL_PREFIX, storage_key)
                del timed[storage_key], self._timed_names[key]
                metadata.add(key)

    def part_with(self, index: int, row: list[Any], metadata: set[bytes]) -> SplitResult:
        """Part with what lies at ``at`` and above. The child remembers the same requests and fences."""
        _, child, at, last, epoch, usage, members = row
        upper = Tables()
        upper.last_version = self.last_version
        upper.dedupe, upper.fences = self.dedupe, self.fences
        for namespace, records, size in usage:
            upper.usage[namespace] = [records, size]
            held = self.usage.setdefault(namespace, [0, 0])
            held[0] -= records
            held[1] -= size
            if held == [0, 0]:
                del self.usage[namespace]
            metadata.add(USAGE_PREFIX + namespace)
        for key, storage_key in list(self._timed_names.items()):
            if storage_key >= at:
                upper.timed[storage_key], upper._timed_names[key] = self.timed.pop(storage_key), storage_key
                del self._timed_names[key]
                metadata.add(key)
        split = SplitOff(child, at, last, epoch, index, tuple((node, store) for node, store in members))
        self.splits.append(split)
        metadata.add(SPLITS_KEY)
        return SplitResult(split, [(key, upper.metadata(key) or b"") for key in upper.metadata_keys()])
