"""Resume tokens: short, exact, and nothing else is taken for one."""

from __future__ import annotations

import base64
import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.client.watch.watcher import decode_resume, encode_resume
from metastore.errors import InvalidRequest
from metastore.history import ResumePoint

VERSIONS = st.integers(0, (1 << 63) - 1).map(ResumePoint)


def even(count: int) -> list[bytes]:
    return [(i * ((1 << 64) // count)).to_bytes(8, "big") for i in range(count)]


@given(st.integers(0, 6).flatmap(lambda k: st.lists(VERSIONS, min_size=1 << k, max_size=1 << k)))
def test_positions_of_whole_namespaces(versions: list[ResumePoint]) -> None:
    position = list(zip(even(len(versions)), versions, strict=True))
    assert decode_resume(encode_resume(position)) == position


@given(st.dictionaries(st.binary(min_size=8, max_size=8), VERSIONS, min_size=1, max_size=9))
def test_positions_of_any_points(versions: dict[bytes, ResumePoint]) -> None:
    position = sorted(versions.items())
    assert decode_resume(encode_resume(position)) == position


def test_they_are_short() -> None:
    """They come with every event, and have to fit into a header."""
    assert len(encode_resume(list(zip(even(32), [ResumePoint(100_000)] * 32, strict=True)))) <= 132
    assert len(encode_resume(list(zip(even(1024), [ResumePoint(10_000_000)] * 1024, strict=True)))) <= 5500
    assert len(encode_resume([(os.urandom(8), ResumePoint(5_000_000))])) <= 20


@given(st.binary(max_size=24) | st.text(max_size=12).map(str.encode))
def test_nonsense_is_refused(raw: bytes) -> None:
    for text in (base64.urlsafe_b64encode(raw).decode().rstrip("="), raw.decode("latin-1")):
        with contextlib.suppress(InvalidRequest):
            assert encode_resume(decode_resume(text)) == text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1",
        b"\2",
        b"\3\0",
        b"\1\0",  # a version is missing
        b"\1\0\5\5",  # one too many
        b"\1\21",  # more than there can be
        b"\2" + bytes(8),
        b"\2" + bytes(7),
        b"\2" + bytes(8) + b"\1" + bytes(8) + b"\1",  # a point twice
        b"\2" + b"\2" * 8 + b"\1" + b"\1" * 8 + b"\1",  # out of order
        b"\2" + bytes(8) + b"\x80" * 20 + b"\1",  # a version above 63 bits
        b"\1\0" + b"\x85\0",  # not the shortest form
    ],
)
def test_broken_ones(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_resume(base64.urlsafe_b64encode(raw).decode().rstrip("="))
