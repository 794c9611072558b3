"""The rpc port, from those who are, or claim to be, clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metastore.errors import Compacted, InvalidRequest, Overloaded, TooLarge
from metastore.keys import storage_key_of
from metastore.operations import ADD, DELETE, GET, LINEARIZABLE, LIST, OK, PUT, STALE, TOUCH, TXN
from metastore.wire import frames
from metastore.wire.client_messages import MAX_WATCHES_PER_CONNECTION, WATCH_ANY
from tests.hostile.attack import (
    HELLO,
    exchange,
    frame,
    greeted,
    parse,
    peer_hello,
    raw_frame,
    request,
    send,
)
from tests.hostile.conftest import HANG_S, NODE_MEMORY_MIB, memory_mib, pids
from tests.integration.harness import Cluster

LKEY = storage_key_of("hostile", "k")
ID = b"i" * 16
GET_OP = [1, GET, 0, LKEY, LINEARIZABLE, None]
PUT_OP = [1, PUT, 0, LKEY, 0, 0, 0, None, b"v", "", 0]


def nested(depth: int, leaf: bytes = b"\xc0") -> bytes:
    return b"\x91" * depth + leaf


#: name -> what a client sends after its hello; each costs it the connection, with a reason
REFUSED: dict[str, bytes] = {
    "version 0": raw_frame(frames.REQUEST, b"\xc0", version=0),
    "version 2": raw_frame(frames.REQUEST, b"\xc0", version=2),
    "version 255": raw_frame(frames.REQUEST, b"\xc0", version=255),
    "length 0": raw_frame(frames.REQUEST, b"", length=0),
    "length 1": raw_frame(frames.REQUEST, b"", length=1),
    "length 2**32 - 1": raw_frame(frames.REQUEST, b"", length=(1 << 32) - 1),
    "length just over": raw_frame(frames.REQUEST, b"", length=frames.MAX_FRAME_BYTES + 1),
    "no body": raw_frame(frames.REQUEST, b""),
    "not msgpack": raw_frame(frames.REQUEST, b"\xc1" * 100),
    "text that is no utf-8": raw_frame(frames.REQUEST, b"\xa2\xff\xfe"),
    "two values": raw_frame(frames.REQUEST, b"\x01\x02"),
    "array of 2**32 - 1": raw_frame(frames.REQUEST, b"\xdd\xff\xff\xff\xff"),
    "map of 2**32 - 1": raw_frame(frames.REQUEST, b"\xdf\xff\xff\xff\xff"),
    "bytes of 2**32 - 1": raw_frame(frames.REQUEST, b"\xc6\xff\xff\xff\xff"),
    "text of 2**32 - 1": raw_frame(frames.REQUEST, b"\xdb\xff\xff\xff\xff"),
    "ext of 2**32 - 1": raw_frame(frames.REQUEST, b"\xc9\xff\xff\xff\xff\x01"),
    "arrays of 65,535 in each other": raw_frame(frames.REQUEST, b"\xdc\xff\xff" * 1000),
    "arrays of 16,384 in each other": raw_frame(frames.REQUEST, b"\xdc\x40\x00" * 20000),
    "1,000 deep": raw_frame(frames.REQUEST, nested(1000)),
    "100,000 deep": raw_frame(frames.REQUEST, nested(100_000)),
    "maps in maps": raw_frame(frames.REQUEST, b"\x81\xa1k" * 1000 + b"\xc0"),
    "a map with numbers as keys": raw_frame(frames.REQUEST, b"\x81\x01\x01"),
    "an ext": raw_frame(frames.REQUEST, b"\xd4\x01\x00"),
    "a timestamp": raw_frame(frames.REQUEST, b"\xd6\xff\x00\x00\x00\x00"),
    "millions of empty arrays": raw_frame(
        frames.REQUEST, b"\xdc\x03\xe8" + (b"\xdc\x3e\x80" + b"\x90" * 16000) * 1000
    ),
    "millions of empty maps": raw_frame(
        frames.REQUEST, b"\xdc\x03\xe8" + (b"\xdc\x3e\x80" + b"\x80" * 16000) * 1000
    ),
    "millions of short texts": raw_frame(
        frames.REQUEST, b"\xdc\x01\x2c" + (b"\xdc\x3e\x80" + b"\xa2ab" * 16000) * 300
    ),
    "an unknown type": frame(77, []),
    "a node's frame": frame(frames.PEER, [[1, 1, []]]),
    "a node's hello after a client's": peer_hello(("c1n0", "s", "i"), ("c1n1", "s")),
    "another hello": HELLO,
    "an answer": frame(frames.RESPONSE, [[1, 0]]),
    "a request that is a map": frame(frames.REQUEST, {"a": 1}),
    "a request of two": frame(frames.REQUEST, [ID, 1000]),
    "a short client id": frame(frames.REQUEST, [b"x", 1000, []]),
    "no time": frame(frames.REQUEST, [ID, 0, []]),
    "all the time": frame(frames.REQUEST, [ID, 1 << 63, []]),
    "negative time": frame(frames.REQUEST, [ID, -1, []]),
    "5,000 operations": request(*[GET_OP] * 5000),
    "an operation that is a number": request(7),  # type: ignore[arg-type]
    "an empty operation": request([]),
    "an unknown operation": request([1, 99, 0]),
    "an operation named by what is nested": raw_frame(
        frames.REQUEST, b"\x93" + msgpack.packb(ID) + b"\x64\x91\x93\x01" + nested(900) + b"\x00"
    ),
    "an operation named by 8 MiB": request([1, b"\xff" * (8 << 20), 0]),
    "an id below 0": request([-1, *GET_OP[1:]]),
    "an id that is text": request(["x", *GET_OP[1:]]),
    "a partition that is text": request([1, GET, "p", LKEY, 0, None]),
    "an operation too short": request(GET_OP[:5]),
    "an operation too long": request([*GET_OP, 1]),
    "a watch of nothing": frame(frames.WATCH, []),
    "a watch that is text": frame(frames.WATCH, ["a", 0, b"", b"", None, 0, b""]),
    "a watch to the end of all": frame(frames.WATCH, [1, 0, b"x" * 9, b"y" * 9, (1 << 64) - 1, 0, b""]),
    "a watch with unknown flags": frame(frames.WATCH, [1, 0, b"x" * 9, b"y" * 9, None, 1 << 40, b""]),
    "a watch of a long name": frame(frames.WATCH, [1, 0, b"x" * 9000, b"y" * 9, None, 0, b""]),
    "a watch that is nested": raw_frame(frames.WATCH, b"\x97" + nested(900) * 7),
}


def test_nonsense_costs_the_connection(rpc: str) -> None:
    for name, data in REFUSED.items():
        answers = parse(exchange(rpc, HELLO + data, half_close=False))
        assert [kind for kind, _ in answers] == [frames.HELLO_OK, frames.ERROR], name
        status, message, _ = answers[1][1]
        assert status == 99, name
        assert 0 < len(message) < 200, name


#: name -> what comes first; a hello is small, and a stranger gets nothing else
BEFORE_HELLO: dict[str, bytes] = {
    "http": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(64),
    "ff": b"\xff" * 64,
    "a large hello": raw_frame(frames.HELLO, b"", length=8 << 20),
    "a request": request(GET_OP),
    "a question": frame(frames.TOPOLOGY_REQUEST, [0]),
    "a peer's message": frame(frames.PEER, []),
    "another cluster": frame(frames.HELLO, ["other", "x"]),
    "no name": frame(frames.HELLO, ["dev"]),
    "a name of nested": raw_frame(frames.HELLO, b"\x92" + nested(900) + b"\xa1x"),
    "numbers": frame(frames.HELLO, [1, 2]),
}


def test_strangers_get_nothing(rpc: str) -> None:
    for name, data in BEFORE_HELLO.items():
        answers = parse(exchange(rpc, data, half_close=False))
        assert [kind for kind, _ in answers] == [frames.ERROR], name


def txn(compares: Any, then: Any, otherwise: Any, *fence: Any) -> list[Any]:
    return [1, TXN, 0, LKEY, 0, 0, 0, compares, then, otherwise, *fence]


BAD_OPS: dict[str, tuple[list[Any], type[Exception]]] = {
    "a key that is text": ([1, GET, 0, "k", 0, None], InvalidRequest),
    "a key without namespace": ([1, GET, 0, b"12345678key", 0, None], InvalidRequest),
    "a key of 3 KiB": ([1, GET, 0, LKEY + b"k" * 3000, 0, None], InvalidRequest),
    "a put to a namespace that is none": ([*PUT_OP[:3], b"12345678A\0k", *PUT_OP[4:]], InvalidRequest),
    "a put to a key that is no text": ([*PUT_OP[:3], b"12345678a\0\xff\xfe", *PUT_OP[4:]], InvalidRequest),
    "a put to no key": ([*PUT_OP[:3], b"12345678a\0", *PUT_OP[4:]], InvalidRequest),
    "a value of text": ([*PUT_OP[:8], "v", "", 0], InvalidRequest),
    "a value over a MiB": ([*PUT_OP[:8], bytes((1 << 20) + 1), "", 0], TooLarge),
    "a content type that adds a header": ([*PUT_OP[:8], b"v", "a\r\nX-Evil: 1", 0], InvalidRequest),
    "a content type of 200": ([*PUT_OP[:8], b"v", "a" * 200, 0], InvalidRequest),
    "a content type beyond ascii": ([*PUT_OP[:8], b"v", "ä", 0], InvalidRequest),
    "a sequence of 2**63": ([1, PUT, 0, LKEY, 1 << 63, 0, 0, None, b"", "", 0], InvalidRequest),
    "a floor below 0": ([1, PUT, 0, LKEY, 1, -1, 0, None, b"", "", 0], InvalidRequest),
    "a condition of 2**64 - 1": ([1, DELETE, 0, LKEY, 0, 0, 0, (1 << 64) - 1], InvalidRequest),
    "a delta of 2**63": ([1, ADD, 0, LKEY, 0, 0, 0, None, 1 << 63], InvalidRequest),
    "a ttl that is text": ([*PUT_OP[:8], b"v", "", "1"], InvalidRequest),
    "a consistency of 9": ([1, GET, 0, LKEY, 9, None], InvalidRequest),
    "an age below 0": ([1, GET, 0, LKEY, STALE, -1], InvalidRequest),
    "a list of 2**32": ([1, LIST, 0, LKEY, b"", 1 << 32, 0, 0, None], InvalidRequest),
    "a list of nothing": ([1, LIST, 0, LKEY, b"", 0, 0, 0, None], InvalidRequest),
    "a touch with a text as condition": ([1, TOUCH, 0, LKEY, "x"], InvalidRequest),
    "a transaction of numbers": (txn(1, 2, 3), InvalidRequest),
    "a transaction of 129 parts": (txn([], [[GET, LKEY]] * 129, []), InvalidRequest),
    "a compare of two": (txn([[LKEY, 0]], [], []), InvalidRequest),
    "a compare with a target of 9": (txn([[LKEY, 9, 0, 0]], [], []), InvalidRequest),
    "a compare with a relation of 2**40": (txn([[LKEY, 0, 1 << 40, 0]], [], []), InvalidRequest),
    "a compare of a value with a number": (txn([[LKEY, 1, 0, 7]], [], []), InvalidRequest),
    "a part that is nested": (txn([], [[[[]]]], []), InvalidRequest),
    "a part of a list": (txn([], [[LIST, LKEY]], []), InvalidRequest),
    "a part that puts no text": (
        txn([], [[PUT, LKEY[:13] + b"\xff\xff", b"", "", None]], []),
        InvalidRequest,
    ),
    "a part that puts 2 MiB": (txn([], [[PUT, LKEY, bytes(2 << 20), "", None]], []), TooLarge),
    "parts that put 3 MiB": (txn([], [[PUT, LKEY, bytes(1 << 20), "", None]] * 3, []), TooLarge),
    "a part that adds 2**63": (txn([], [[ADD, LKEY, 1 << 63]], []), InvalidRequest),
    "a fence that is text": (txn([], [], [], "f"), InvalidRequest),
    "a fence of 300": (txn([], [], [], ["f" * 300, 1]), InvalidRequest),
    "a fence of 2**64 - 1": (txn([], [], [], ["f", (1 << 64) - 1]), InvalidRequest),
    "a fence below 0": ([*PUT_OP, ["f", -1]], InvalidRequest),
    "an argument that is nested": ([1, GET, 0, LKEY, STALE, [[[]]]], InvalidRequest),
}


def test_a_bad_operation_is_answered_and_the_next_is_done(rpc: str) -> None:
    with greeted(rpc) as s:
        for name, (op, error) in BAD_OPS.items():
            s.send(request(op) + request([2, GET, 0, LKEY, STALE, None]))
            results = s.read(frames.RESPONSE)
            while len(results) < 2:
                results += s.read(frames.RESPONSE)
            bad, good = results
            assert bad[:2] == [1, error.status], (name, bad)  # type: ignore[attr-defined]
            assert good[0] == 2, name


def test_numbers_at_the_end_of_64_bits_are_answered(rpc: str) -> None:
    """What fits the wire fits the answer too: no partition, version or id overflows anything."""
    big = (1 << 64) - 1
    with greeted(rpc) as s:
        for op in ([big, GET, big, LKEY, 0, None], [big, GET, -(1 << 63), LKEY, 2, 1 << 62]):
            s.send(request(op))
            assert s.read(frames.RESPONSE)[0][:2] == [big, 4]
        s.send(frame(frames.TOPOLOGY_REQUEST, [big]))
        assert s.read(frames.TOPOLOGY)[0]["cluster"] == "dev"


def test_half_closed_after_a_request(rpc: str) -> None:
    for data in (HELLO, HELLO + request(GET_OP), HELLO + request(PUT_OP)[:-3]):
        exchange(rpc, data)


# --- memory ---------------------------------------------------------------------------------------


def test_halves_of_frames_have_a_budget(attacked: Cluster, rpc: str) -> None:
    """Thirty halves of 16 MiB frames hold no more than the budget; honest clients are not the ones
    that go for it."""
    pid = pids(attacked)["c1n1"]
    before, evicted = memory_mib(pid, "VmRSS"), attacked.status("c1n1")["clients"]["evicted_total"]
    sockets = []
    half = raw_frame(frames.REQUEST, bytes(15 << 20), length=(16 << 20) - 10)
    try:
        for _ in range(30):
            s = greeted(rpc)
            sockets.append(s)
            send(s.socket, half)
        held = attacked.status("c1n1")["clients"]["unfinished_bytes"]
        assert held <= NODE_MEMORY_MIB << 20
        assert memory_mib(pid, "VmRSS") - before < 100
        until = time.monotonic() + HANG_S
        while attacked.status("c1n1")["clients"]["evicted_total"] - evicted < 25:
            assert time.monotonic() < until, "all halves are kept"
            time.sleep(0.05)
    finally:
        for s in sockets:
            s.socket.close()


def test_watches_without_number(attacked: Cluster, large: tuple[bytes, int]) -> None:
    """Thousands on one connection, all from the past, of large records, and nobody reads what they
    bring: some are refused, what is sent has a bound, others do not wait."""
    key, p = large
    rpc = str(attacked.node("c1n1")["rpc"])
    start, end = key[:8], key[:7] + bytes([key[7] + 1]) if key[7] < 255 else b"\xff" * 9
    with greeted(rpc) as s:
        for i in range(MAX_WATCHES_PER_CONNECTION + 500):
            s.send(frame(frames.WATCH, [i, p, start, end, 0 if i % 2 else None, WATCH_ANY, b""]))

        async def write() -> None:
            async with attacked.client() as client:
                for i in range(4):
                    await client.namespace("large").put(f"d/{i}", bytes(1 << 20))

        asyncio.run(write())
        ended = s.read(frames.WATCH_END)
        assert ended[1] in (Overloaded.status, Compacted.status), ended


def test_large_answers_that_are_read_come(large: tuple[bytes, int], attacked: Cluster) -> None:
    """The bound is for those who do not read: the others get everything, a part refused at a time."""
    key, p = large
    with greeted(str(attacked.node("c1n1")["rpc"])) as s:
        left = list(range(60))
        refused, until = 0, time.monotonic() + HANG_S
        while left:
            assert time.monotonic() < until, f"{len(left)} of 60 do not come"
            s.send(request(*[[i, GET, p, key, STALE, None] for i in left]))
            results: list[Any] = []
            while len(results) < len(left):
                results += s.read(frames.RESPONSE)
            assert {r[1] for r in results} <= {OK, Overloaded.status}
            left = [r[0] for r in results if r[1] != OK]
            refused += len(left)
        assert refused, "60 MiB at once were no more than may wait"


@pytest.mark.growth_mib(
    320
)  # 48 MiB at once: as they came, in the overlay, for the log and two followers, in pages of LMDB
def test_writes_that_wait_have_a_budget(attacked: Cluster, large: tuple[bytes, int]) -> None:
    """More large writes at once than may wait for the log: some are refused, none is forgotten."""
    name = attacked.leaders()[large[1]][0]
    rpc = str(attacked.node(name)["rpc"])
    found: Counter[int] = Counter()
    speakers = [greeted(rpc) for _ in range(6)]
    for number, s in enumerate(speakers):
        for i in range(8):
            key = storage_key_of("large", f"d/w{number}.{i}")
            put = [i, PUT, large[1], key, 0, 0, 0, None, bytes(1 << 20), "", 0]
            s.send(request(put, timeout_ms=60_000))
    for s in speakers:
        answered = 0
        while answered < 8:
            results = s.read(frames.RESPONSE, 2 * HANG_S)
            answered += len(results)
            found.update(result[1] for result in results)
        s.socket.close()
    assert set(found) <= {OK, Overloaded.status}, found
    assert found[OK] >= 8
    # an honest client writes beside this: now and then one small write of its own waits
    until = time.monotonic() + HANG_S
    while attacked.status(name)["clients"]["waiting_bytes"] and time.monotonic() < until:
        time.sleep(0.06)
    assert attacked.status(name)["clients"]["waiting_bytes"] < 1000


# --- chance ---------------------------------------------------------------------------------------

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=24)
)
PLAIN = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@QUICK
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes(rpc: str, data: bytes, after_hello: bool) -> None:
    exchange(rpc, HELLO + data if after_hello else data)


@QUICK
@given(st.integers(0, 255), PLAIN, st.booleans())
def test_frames_of_anything(rpc: str, kind: int, body: Any, after_hello: bool) -> None:
    data = frame(kind, body)
    exchange(rpc, HELLO + data if after_hello else data)


@QUICK
@given(st.lists(st.lists(LEAF | st.lists(LEAF, max_size=3), max_size=12), max_size=4))
def test_requests_of_anything(rpc: str, ops: list[Any]) -> None:
    for op in ops[:1]:
        if len(op) > 2:
            op[:3] = [1, 2, 0]
    exchange(rpc, HELLO + frame(frames.REQUEST, [ID, 1000, ops]))


OPS: list[list[Any]] = [
    GET_OP,
    PUT_OP,
    [1, DELETE, 0, LKEY, 1, 1, 0, None],
    [1, ADD, 0, LKEY, 1, 1, 0, None, 5],
    [1, LIST, 0, LKEY, b"\xff" * 9, 10, 0, STALE, None],
    [1, TOUCH, 0, LKEY, None],
    [1, TXN, 0, LKEY, 1, 1, 0, [[LKEY, 0, 0, 0]], [[PUT, LKEY, b"v", "", None]], [[GET, LKEY]], ["f", 1]],
]


@QUICK
@given(st.sampled_from(OPS), st.integers(0, 3), st.integers(0, 12), LEAF)
def test_requests_with_one_wrong_element(rpc: str, op: list[Any], p: int, at: int, value: Any) -> None:
    changed = [*op[:2], p, *op[3:]]
    if at < len(changed):
        changed[at] = value
    exchange(rpc, HELLO + request(changed))


@QUICK
@given(st.sampled_from(OPS), st.data())
def test_requests_with_flipped_bits(rpc: str, op: list[Any], data: st.DataObject) -> None:
    raw = bytearray(HELLO + request(op, op))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    exchange(rpc, bytes(raw))


def test_what_was_written_meanwhile_can_be_listed(attacked: Cluster) -> None:
    """No mutation has left a record that spoils the listing of its namespace."""

    async def look() -> None:
        async with attacked.client() as client:
            for name in ("hostile", "large", "honest"):
                async for key, record in client.namespace(name).scan():
                    assert key
                    assert record.content_type.isascii()

    asyncio.run(look())
