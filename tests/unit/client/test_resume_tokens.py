"""Resume tokens."""

from __future__ import annotations

import base64

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastore.client.watch.resume_tokens import decode_resume, encode_resume
from metastore.errors import InvalidRequest
from metastore.history import ResumePoint, first_version

positions = st.dictionaries(
    st.binary(min_size=8, max_size=8), st.integers(0, 2**63 - 1).map(ResumePoint), min_size=1, max_size=20
)


@given(positions)
def test_there_and_back(points: dict[bytes, ResumePoint]) -> None:
    position = sorted(points.items())
    assert decode_resume(encode_resume(position)) == position


@given(st.integers(0, 5), st.data())
def test_there_and_back_with_generations(log2: int, data: st.DataObject) -> None:
    count = 1 << log2
    versions = st.builds(
        lambda g, n: ResumePoint(first_version(g) + n), st.integers(0, 3), st.integers(0, 300)
    )
    position = [((i * ((1 << 64) // count)).to_bytes(8, "big"), data.draw(versions)) for i in range(count)]
    assert decode_resume(encode_resume(position)) == position


def test_a_generation_costs_next_to_nothing() -> None:
    """Tokens of a whole namespace fit where they did before its partitions had another history."""
    points = [(i << 53).to_bytes(8, "big") for i in range(2048)]
    before = encode_resume([(point, ResumePoint(5000)) for point in points])
    after = encode_resume([(point, ResumePoint(first_version(7) + 5000)) for point in points])
    assert len(after) - len(before) <= 3


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
