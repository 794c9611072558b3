"""Packed records come back as they were, and damage is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.errors import CorruptState
from metastore.history import Version
from metastore.records import COUNTER, Record, pack_record, record_versions, unpack_record

U64 = st.integers(0, (1 << 64) - 1)


@given(U64, U64, st.binary(max_size=300), st.text(max_size=30), U64, st.booleans())
def test_round_trip(version: int, created: int, value: bytes, kind: str, ttl: int, counter: bool) -> None:
    packed = pack_record(version, created, value, kind.encode(), ttl, COUNTER if counter else 0)
    assert unpack_record(packed) == Record(Version(version), Version(created), value, kind, ttl, counter)
    assert record_versions(packed)[1:] == (version, created)


@given(st.binary(max_size=60), st.data())
def test_any_flipped_bit_is_seen(value: bytes, data: st.DataObject) -> None:
    packed = bytearray(pack_record(7, 3, value, b"text/plain"))
    at = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[at // 8] ^= 1 << at % 8
    with pytest.raises(CorruptState):
        unpack_record(bytes(packed))


def test_cut_short() -> None:
    packed = pack_record(7, 3, b"value")
    for size in range(len(packed)):
        with pytest.raises(CorruptState):
            unpack_record(packed[:size])


def test_golden_bytes() -> None:
    """The format on disk and on the wire."""
    assert (
        pack_record(5, 2, b"v", b"t/p", 9).hex()
        == "83aabf8d0105000000000000000200000000000000030900000000000000742f7076"
    )
