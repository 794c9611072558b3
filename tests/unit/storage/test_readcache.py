"""What was read is remembered within bounds, and never beyond a change."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from metastore.records import pack_record
from metastore.storage.readcache import MAX_RECORD_BYTES, OVERHEAD, ReadCache
from metastore.storage.state import record_writes
from tests.unit.storage.engines import lmdb_state


def test_two_generations() -> None:
    cache = ReadCache(4 * (OVERHEAD + 2))
    for key in (b"a", b"b", b"c"):
        cache.put(key, b"1")
    assert cache.young == {}, "full: from here on they are the older generation"
    assert cache.get(b"a") == b"1"
    cache.put(b"d", b"1")
    cache.put(b"e", b"1")
    assert [cache.get(key) for key in (b"a", b"b", b"c", b"d", b"e")] == [b"1", None, None, b"1", b"1"]


def test_what_is_too_large_and_what_is_off() -> None:
    cache = ReadCache(1 << 20)
    cache.put(b"k", bytes(MAX_RECORD_BYTES + 1))
    assert cache.get(b"k") is None
    cache.put(b"k", bytes(MAX_RECORD_BYTES))
    cache.changed({b"k": bytes(MAX_RECORD_BYTES + 1)})
    assert cache.get(b"k") is None
    off = ReadCache(0)
    off.put(b"k", b"v")
    assert off.get(b"k") is None


KEYS = [b"\0" * 8 + b"ns\0" + bytes([65 + n]) * (1 if n < 4 else 600) for n in range(6)]
STEPS = ("get", "get", "put", "delete", "flush", "flush", "clear")


@pytest.mark.parametrize("seed", range(5))
def test_it_never_shows(tmp_path: Path, seed: int) -> None:
    """Reads through a small cache are those of the state itself."""
    random = Random(seed)
    state = lmdb_state(tmp_path, True, read_cache_bytes=6 * (OVERHEAD + 60))
    there: dict[bytes, bytes] = {}
    waiting: dict[bytes, bytes | None] = {}
    for version in range(1, 400):
        what, key = random.choice(STEPS[: 7 if version % 50 == 0 else 6]), random.choice(KEYS)
        if what == "get":
            assert state.get(1, key) == there.get(key)
        elif what == "put":
            waiting[key] = pack_record(version, version, b"%d" % version)
        elif what == "delete":
            waiting[key] = None
        elif what == "clear":
            state.cache.clear()
        else:
            rows = record_writes(1, waiting)
            state.write([], rows)
            state.renew(dict(rows))
            for changed, record in waiting.items():
                if record is None:
                    there.pop(changed, None)
                else:
                    there[changed] = record
            waiting.clear()
    state.close()
