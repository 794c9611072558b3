"""One partition's part of the store, as the partition sees it (partition.ports)."""

from __future__ import annotations

from functools import partial

from metastore.core.rows import UpperHalf
from metastore.partition.ports import Scan
from metastore.storage.store import Store


class StoreSlice:
    """See the module."""

    def __init__(self, store: Store, p: int) -> None:
        self._store, self._p = store, p
        self._held = store.partitions[p]
        self._changes = store.changes
        self.get = partial(store.get, p)

    @property
    def applied(self) -> int:
        return self._held.meta.applied

    @property
    def applied_epoch(self) -> int:
        return self._held.meta.applied_epoch

    @property
    def full(self) -> bool:
        return self._changes.full

    @property
    def syncing(self) -> bool:
        return self._store.syncing

    def scan(
        self,
        start: bytes,
        end: bytes,
        limit: int,
        max_bytes: int,
        wanted: bytes = b"",
        max_looks: int = 1 << 62,
    ) -> Scan:
        rows, following, left = self._store.scan(self._p, start, end, limit, max_bytes, wanted, max_looks)
        return Scan(rows, following, max_bytes - left)

    def metadata(self) -> list[tuple[bytes, bytes]]:
        return self._store.load_metadata(self._p)

    def apply(
        self,
        index: int,
        epoch: int,
        changes: list[tuple[bytes, bytes | None]],
        metadata: set[bytes],
        split: UpperHalf | None,
    ) -> None:
        self._store.apply(self._p, index, epoch, changes, metadata, split)

    def opening(self) -> list[int]:
        return self._store.pending_splits(self._p)

    @property
    def base_index(self) -> int:
        return self._held.log.base_index

    @property
    def last_index(self) -> int:
        return self._held.log.last_index

    def epoch_at(self, index: int) -> int | None:
        return self._held.log.epoch_at(index)

    def read(self, first: int, max_bytes: int) -> list[bytes]:
        return self._store.read_entries(self._p, first, max_bytes)

    def has(self, index: int, blob: bytes) -> bool:
        return self._store.log.partitions[self._p].blobs.get(index) is blob
