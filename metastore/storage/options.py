"""The bounds of a store."""

from __future__ import annotations

from dataclasses import dataclass

from metastore.storage.state import READ_CACHE_BYTES


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Bounds in bytes, but where the name says otherwise."""

    segment_bytes: int = 32 << 20
    log_retention_bytes: int = 128 << 20
    cache_bytes: int = 64 << 20
    overlay_limit_bytes: int = 64 << 20
    flush_bytes: int = 8 << 20
    flush_changes: int = 5_000
    flush_age_s: float = 1.0
    map_size_bytes: int = 64 << 30
    read_cache_bytes: int = READ_CACHE_BYTES
    #: how much the scrub reads a second, 0 = it does not run
    scrub_bytes_s: int = 0
    #: below so much room what adds data is refused; 0 = no mark (storage.space)
    low_bytes: int = 0
    reserve_bytes: int = 0
