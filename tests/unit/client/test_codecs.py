"""Codecs: what goes in comes out, what is wrong is told before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.client.codecs import BYTES, JSON, MSGPACK, TEXT, decoded
from metastore.errors import DecodeFailed
from metastore.history import Version
from metastore.records import COUNTER, Record, pack_record, unpack_record

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(plain)
def test_json_and_msgpack_give_back_what_they_got(value: Any) -> None:
    for codec in (JSON, MSGPACK):
        raw = codec.encode(value)
        assert isinstance(raw, bytes)
        assert decoded(codec, "k", Record(Version(1), Version(1), raw)).value == value


@given(st.binary(), st.text(st.characters(codec="utf-8")))
def test_bytes_and_text(raw: bytes, text: str) -> None:
    assert BYTES.encode(bytearray(raw)) == BYTES.encode(memoryview(raw)) == raw
    assert TEXT.decode(TEXT.encode(text)) == text


@pytest.mark.parametrize(
    ("codec", "wrong"), [(BYTES, "text"), (BYTES, 5), (TEXT, b"bytes"), (JSON, object())]
)
def test_a_wrong_type_is_refused(codec: Any, wrong: Any) -> None:
    """``bytes(5)`` would be five zeros."""
    with pytest.raises(TypeError):
        codec.encode(wrong)


@pytest.mark.parametrize(("codec", "raw"), [(JSON, b"{"), (TEXT, b"\xff"), (MSGPACK, b"\xc1")])
def test_a_strange_value_is_told(codec: Any, raw: bytes) -> None:
    with pytest.raises(DecodeFailed, match="the value of 'a/b'") as e:
        decoded(codec, "a/b", Record(Version(7), Version(7), raw, "image/png"))
    assert e.value.detail == {"key": "a/b", "content_type": "image/png"}


@pytest.mark.parametrize(("codec", "value"), [(BYTES, b"-12"), (TEXT, "-12"), (JSON, -12), (MSGPACK, -12)])
def test_counters(codec: Any, value: Any) -> None:
    record = unpack_record(pack_record(3, 2, b"-12", b"", 0, COUNTER))
    assert decoded(codec, "k", record) == Record(Version(3), Version(2), value, "", 0, True)
