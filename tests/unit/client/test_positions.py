"""Resume tokens."""

from __future__ import annotations

import base64

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.client.positions import decode_resume, encode_resume
from metastore.errors import InvalidRequest

positions = st.dictionaries(
    st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1), min_size=1, max_size=20
)


@given(positions)
def test_there_and_back(points: dict[bytes, int]) -> None:
    position = sorted(points.items())
    assert decode_resume(encode_resume(position)) == position


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "!",
        "ä",
        *(
            base64.urlsafe_b64encode(msgpack.packb(raw)).decode()
            for raw in (
                [],
                7,
                [[b"short", 1]],
                [[b"8" * 8]],
                [[b"8" * 8, -1]],
                [[b"8" * 8, True]],
                [[b"8" * 8, 1], [b"8" * 8, 2]],
                [[b"b" * 8, 1], [b"a" * 8, 2]],
            )
        ),
    ],
)
def test_nonsense_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_resume(bad)
