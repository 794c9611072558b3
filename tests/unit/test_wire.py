"""Frames and messages: what is well formed comes back, anything else is a ProtocolError."""

from __future__ import annotations

import struct
import time
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.core import messages as m
from metastore.core.messages import KINDS, Lineage, Process, Run
from metastore.elements import shown
from metastore.errors import ProtocolError
from metastore.wire import frames, peer_messages
from metastore.wire.frames import (
    HEADER,
    MAX_ARRAY,
    MAX_FRAME_BYTES,
    WIRE_VERSION,
    FrameDecoder,
    pack,
    unpack_body,
)
from metastore.wire.peer_messages import MAX_COUNT, MAX_GRANT_NS, MAX_PARTITIONS, Hello
from metastore.wire.versions import OPTIONAL, UNTOLD, Levels, Spoken

SPOKEN = Spoken(2, 5, "0.9.1")

COUNT = st.integers(0, MAX_COUNT - 1)
BOUNDS = {"p": MAX_PARTITIONS, "grant_ns": MAX_GRANT_NS, "remaining_grant_ns": MAX_GRANT_NS}
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


def test_a_large_frame_in_small_pieces_takes_linear_time() -> None:
    """Kept whole at every piece, 15 MiB in pieces of 300 bytes would be 400 GB of copies."""
    frame = pack(3, bytes(15 << 20))
    decoder, got = FrameDecoder(), []
    began = time.process_time()
    for at in range(0, len(frame), 300):
        got += decoder.feed(frame[at : at + 300])
    assert [(kind, len(body)) for kind, body in got] == [(3, 15 << 20)]
    assert time.process_time() - began < 5


@pytest.mark.parametrize("element", [b"\x90", b"\x80", b"\xa2ab", b"\xcd\x01\x00"])
def test_a_large_frame_of_tiny_elements_is_refused(element: bytes) -> None:
    """Each byte would become an object of seventy: a frame of 16 MiB took over a gigabyte."""
    row = b"\xdc\x3e\x80" + element * 16000
    raw = b"\xdc\x00\x40" + row * 64
    with pytest.raises(ProtocolError, match="too many elements"):
        unpack_body(raw, frames.MAX_ITEMS)
    assert len(unpack_body(raw)) == 64


def test_frames_before_a_bad_one_are_seen() -> None:
    decoder = FrameDecoder()
    decoder.push(pack(3, 1) + pack(3, 2) + b"\xff" * 6)
    assert [decoder.pull(), decoder.pull()] == [(3, 1), (3, 2)]
    with pytest.raises(ProtocolError):
        decoder.pull()


def test_the_limit_may_change_between_frames() -> None:
    """A hello is small; what follows it in the same piece may not be."""
    decoder = FrameDecoder(64)
    decoder.push(pack(1, "hello") + pack(3, bytes(100)) + b"\0")
    assert decoder.pull() == (1, "hello")
    decoder.max_frame = 1000
    assert decoder.pull() == (3, bytes(100))
    assert decoder.pull() is None
    assert decoder.buffered_bytes == 1
    with pytest.raises(ProtocolError, match="frame length"):
        FrameDecoder(64).feed(pack(1, "hello") + pack(3, bytes(100)))


@pytest.mark.parametrize("value", [None, True, 1 << 63, 1.5, "text" * 99, b"\0" * 999, {"a": 1}, [[1], 2]])
def test_what_is_shown_is_short(value: Any) -> None:
    assert len(shown(value)) <= 40


def test_showing_does_not_walk_into_what_is_nested() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    assert shown(value) == "a list of 1"


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


def value_of(name: str, hint: Any) -> st.SearchStrategy[Any]:
    text = str(hint)
    if hint is int:
        return st.integers(0, BOUNDS.get(name, MAX_COUNT) - 1)
    if hint is str:
        return st.text(max_size=256)
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

    return st.one_of(
        [st.builds(cls, *[value_of(*hint) for hint in get_type_hints(cls).items()]) for cls in KINDS.values()]
    )


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
        raw.pop()
    else:
        nonsense: list[Any] = [-1, 1.5, None, "x", {}, 1 << 62, (1 << 64) - 1]
        raw[at] = data.draw(st.sampled_from(nonsense).filter(lambda v: v != raw[at]))
    with pytest.raises(ProtocolError):
        peer_messages.decode(raw)


@settings(max_examples=100)
@given(messages(), st.lists(PLAIN, min_size=1, max_size=16))
def test_what_a_later_version_says_besides_is_passed_over(message: Any, more: list[Any]) -> None:
    assert peer_messages.decode([*peer_messages.encode(message), *more]) == message
    assert peer_messages.decode([OPTIONAL + len(more), *more]) is None
    with pytest.raises(ProtocolError, match="fields instead of"):
        peer_messages.decode([*peer_messages.encode(message), *range(17)])


@pytest.mark.parametrize(
    "raw", [None, [], 7, [0], ["x"], [99, 1], [[1]], [6, 1, 1, 1, 1, 1, [1]], [20, 1, 1, 1, "x" * 257]]
)
def test_what_is_no_message(raw: Any) -> None:
    with pytest.raises(ProtocolError):
        peer_messages.decode(raw)


def test_numbers_of_messages_are_never_reused() -> None:
    assert {n: c.__name__ for n, c in KINDS.items()} == {
        1: "Heartbeat", 2: "HeartbeatAck", 3: "Seal", 4: "Sealed", 5: "Refused", 6: "Append",
        7: "Appended", 8: "Missed", 9: "Pull", 10: "Pulled", 11: "PullMissed", 12: "PreVote",
        13: "PreVoteReply", 14: "HandOff", 15: "SnapshotBegin", 16: "SnapshotChunk", 17: "SnapshotAck",
        18: "Appoint", 19: "Appointed", 20: "Recall", 21: "Rebuild",
    }  # fmt: skip


def test_hello_names_the_very_store() -> None:
    """R13: a caller that means another cluster, node or store is told, and nothing else."""
    me, caller = Process("n1", "s1", "a"), Process("n2", "s2", "b")
    lineage = Lineage((Run(7, "b"), Run(4, "old", 90)))
    told = Hello(caller, lineage, SPOKEN, Levels(2, 3))
    body = peer_messages.hello("c", told, "n1", "s1")
    assert peer_messages.read_hello(body, "c", me) == told
    assert peer_messages.read_hello([*body, "what", {"a later": "version says"}], "c", me) == told
    assert peer_messages.read_hello(body[:8], "c", me) == told._replace(levels=Levels(1, 1))
    assert peer_messages.read_hello(body[:6], "c", me) == Hello(caller, Lineage(), UNTOLD)
    for at, value in ((0, "d"), (4, "n9"), (5, "s9")):
        wrong = list(body)
        wrong[at] = value
        with pytest.raises(ProtocolError):
            peer_messages.read_hello(wrong, "c", me)
    bad: list[Any] = [[], None, body[:5], [*body[:5], 5], [*body[:5], "x" * 300], [*body, *range(20)]]
    bad += [
        [*body[:6], runs]
        for runs in (
            7,
            ["b"],
            [[0, "b", 0]],
            [["7", "b", 0]],
            [[1 << 62, "b", 0]],
            [[7, "b", -1]],
            [[7, 7, 0]],
            [[7, "b"]],
            [[7, "b", 0], [7, "a", 0]],
            [[7, "b", 0], [8, "a", 0]],
            [[99 - n, "b", 0] for n in range(65)],
        )
    ]
    for wrong in bad:
        with pytest.raises(ProtocolError, match="malformed"):
            peer_messages.read_hello(wrong, "c", me)


def test_the_answer_to_a_hello_names_the_very_store_too() -> None:
    me, lineage = Process("n1", "s1", "a"), Lineage((Run(2, "a"), Run(1, "z", 5)))
    told = Hello(me, lineage, SPOKEN, Levels(1, 4))
    body = peer_messages.hello_ok(told)
    assert peer_messages.read_hello_ok(body) == told
    assert peer_messages.read_hello_ok(body[:3]) == Hello(me, Lineage(), UNTOLD)
    with pytest.raises(ProtocolError, match="malformed"):
        peer_messages.read_hello_ok(body[:2])
    for levels in (7, [], [1], [0, 1], [1, "2"], [True, 1], [1, (1 << 16) + 1], [1, 1, *range(20)], [3, 2]):
        with pytest.raises(ProtocolError, match="feature level"):
            peer_messages.read_hello_ok([*body[:5], levels])
    assert peer_messages.read_hello_ok([*body[:5], [2, 5, "more"]]).levels == (2, 5)


def test_the_header_is_as_documented() -> None:
    assert pack(3, None) == struct.pack(">IBB", 3, 1, 3) + b"\xc0"
    assert m.KINDS[6] is m.Append
