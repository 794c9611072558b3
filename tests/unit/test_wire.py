"""Frames and messages: what is well formed comes back, anything else is a ProtocolError."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.core import messages as m
from metastore.core.messages import KINDS, Process
from metastore.errors import ProtocolError
from metastore.wire import frames, peer_messages
from metastore.wire.frames import HEADER, MAX_ARRAY, MAX_FRAME_BYTES, WIRE_VERSION, FrameDecoder, pack

COUNT = st.integers(0, (1 << 63) - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | COUNT | st.text(max_size=8) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.integers(0, 255), PLAIN), max_size=5), st.data())
def test_frames_come_back_however_they_are_cut(sent: list[tuple[int, Any]], data: st.DataObject) -> None:
    stream = b"".join(pack(kind, body) for kind, body in sent)
    decoder, got = FrameDecoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert got == sent
    assert decoder.buffered_bytes == 0


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_do_nothing_else(raw: bytes) -> None:
    decoder = FrameDecoder()
    try:
        decoder.feed(raw)
    except ProtocolError:
        return
    assert decoder.buffered_bytes <= len(raw)


@settings(max_examples=300)
@given(st.binary(max_size=100))
def test_random_bodies_do_nothing_else(raw: bytes) -> None:
    try:
        FrameDecoder().feed(HEADER.pack(len(raw) + 2, WIRE_VERSION, 3) + raw)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (HEADER.pack(MAX_FRAME_BYTES + 1, WIRE_VERSION, 1), "frame length"),
        (HEADER.pack(1, WIRE_VERSION, 1), "frame length"),
        (HEADER.pack(10, WIRE_VERSION + 1, 1), "wire version"),
        (HEADER.pack(7, WIRE_VERSION, 1) + b"\xdd\xff\xff\xff\xff", "does not parse"),
        (HEADER.pack(7, WIRE_VERSION, 1) + b"\xdf\xff\xff\xff\xff", "does not parse"),
        (HEADER.pack(7, WIRE_VERSION, 1) + b"\xc6\xff\xff\xff\xff", "does not parse"),
        (HEADER.pack(5, WIRE_VERSION, 1) + b"\xd4\x01\x00", "does not parse"),
        (HEADER.pack(4, WIRE_VERSION, 1) + b"\x01\x01", "does not parse"),
        (HEADER.pack(4, WIRE_VERSION, 1) + b"\xa1\xff", "does not parse"),
        (HEADER.pack(2, WIRE_VERSION, 1), "does not parse"),
        (HEADER.pack(5002, WIRE_VERSION, 1) + b"\x91" * 5000, "does not parse"),
        (HEADER.pack(5002, WIRE_VERSION, 1) + b"\x81\x90" * 2500, "does not parse"),
    ],
    ids=["huge", "tiny", "version", "array", "map", "bin", "ext", "extra", "utf8", "empty", "deep", "keys"],
)
def test_hostile_frames(raw: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        FrameDecoder().feed(raw)


def test_bounds() -> None:
    body = list(range(MAX_ARRAY))
    assert FrameDecoder().feed(pack(3, body)) == [(3, body)]
    raw = msgpack.packb([*body, 1])
    with pytest.raises(ProtocolError, match="does not parse"):
        FrameDecoder().feed(HEADER.pack(len(raw) + 2, WIRE_VERSION, 3) + raw)
    with pytest.raises(ProtocolError, match="over the limit"):
        pack(3, b"x" * MAX_FRAME_BYTES)


def value_of(hint: Any) -> st.SearchStrategy[Any]:
    text = str(hint)
    if hint is int:
        return COUNT
    if hint is bytes:
        return st.binary(max_size=20)
    if hint is bool:
        return st.booleans()
    if "bytes, bytes" in text:
        return st.lists(st.tuples(COUNT, st.binary(max_size=4), st.binary(max_size=4)).map(list), max_size=3)
    if "bytes" in text:
        return st.lists(st.binary(max_size=10), max_size=3)
    width = text.count("int")
    return st.lists(st.lists(COUNT, min_size=width, max_size=width), max_size=3)


def messages() -> st.SearchStrategy[Any]:
    from typing import get_type_hints

    return st.one_of([st.builds(cls, *map(value_of, get_type_hints(cls).values())) for cls in KINDS.values()])


@settings(max_examples=300)
@given(messages())
def test_peer_messages_come_back(message: Any) -> None:
    ((_, [raw]),) = FrameDecoder().feed(pack(frames.PEER, [peer_messages.encode(message)]))
    assert peer_messages.decode(raw) == message


@settings(max_examples=300)
@given(messages(), st.data())
def test_a_wrong_field_is_refused(message: Any, data: st.DataObject) -> None:
    raw = peer_messages.encode(message)
    at = data.draw(st.integers(0, len(raw)))
    if at == len(raw):
        raw.append(1)
    else:
        raw[at] = data.draw(st.sampled_from([-1, 1.5, None, "x", {}, 1 << 70]).filter(lambda v: v != raw[at]))
        if raw[at] == 1 << 70:
            return  # more than 64 bits cannot arrive
    with pytest.raises(ProtocolError):
        peer_messages.decode(raw)


@pytest.mark.parametrize("raw", [None, [], 7, [0], ["x"], [99, 1], [[1]], [6, 1, 1, 1, 1, 1, [1]]])
def test_what_is_no_message(raw: Any) -> None:
    with pytest.raises(ProtocolError):
        peer_messages.decode(raw)


def test_numbers_of_messages_are_never_reused() -> None:
    assert {n: c.__name__ for n, c in KINDS.items()} == {
        1: "Heartbeat", 2: "HeartbeatAck", 3: "Seal", 4: "Sealed", 5: "Refused", 6: "Append",
        7: "Appended", 8: "Missed", 9: "Pull", 10: "Pulled", 11: "PullMissed", 12: "PreVote",
        13: "PreVoteReply", 14: "HandOff", 15: "SnapshotBegin", 16: "SnapshotChunk", 17: "SnapshotAck",
    }  # fmt: skip


def test_hello_names_the_very_store() -> None:
    """R13: a caller that means another cluster, node or store is told, and nothing else."""
    me, caller = Process("n1", "s1", "a"), Process("n2", "s2", "b")
    body = peer_messages.hello("c", caller, "n1", "s1")
    assert peer_messages.read_hello(body, "c", me) == caller
    for at, value in ((0, "d"), (4, "n9"), (5, "s9")):
        wrong = list(body)
        wrong[at] = value
        with pytest.raises(ProtocolError):
            peer_messages.read_hello(wrong, "c", me)
    for wrong in ([], None, body[:-1], [*body[:-1], 5], [*body[:-1], "x" * 300]):
        with pytest.raises(ProtocolError, match="malformed"):
            peer_messages.read_hello(wrong, "c", me)


def test_the_header_is_as_documented() -> None:
    assert pack(3, None) == struct.pack(">IBB", 3, 1, 3) + b"\xc0"
    assert m.KINDS[6] is m.Append
