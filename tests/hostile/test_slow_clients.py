"""Who is slow: what takes longer than a client has is ended, and nothing else is.

The processes have little patience here (``HURRIED``), so that it is quick to see that it ends. Every other file has
processes with more of it than a busy machine can use up: there a test is never taken for a slow client.
"""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from metastore.keys import storage_key_of
from metastore.node.admission import MAX_BEFORE_HELLO
from metastore.operations import GET, LINEARIZABLE, LIST, PUT, STALE
from metastore.wire import frames
from tests.hostile.attack import HELLO, dial, drain, frame, greeted, head, http, http_answers, request, send
from tests.hostile.conftest import HANG_S, HURRIED_S
from tests.hostile.test_http import KV, check_problem, put
from tests.integration.harness import Cluster

#: read by ``attacked``
HURRIED = True

LKEY = storage_key_of("hostile", "k")
GET_OP = [1, GET, 0, LKEY, LINEARIZABLE, None]
PUT_OP = [1, PUT, 0, LKEY, 0, 0, 0, None, b"v", "", 0]


# --- rpc ------------------------------------------------------------------------------------------


def test_a_caller_who_does_not_get_on_is_disconnected(rpc: str) -> None:
    """Half a hello, half a frame, a byte at a time: all end within the time they have."""
    beginnings = [b"", HELLO[:3], HELLO[:-1], *[HELLO + request(GET_OP)[:n] for n in (1, 5, 7, 20)]]
    sockets = [dial(rpc) for _ in beginnings]
    for s, data in zip(sockets, beginnings, strict=True):
        s.sendall(data)
    slow, slower = dial(rpc), greeted(rpc).socket
    began = time.monotonic()
    dripping = {slow: HELLO, slower: request(PUT_OP)}
    at = 0
    while dripping and time.monotonic() - began < HURRIED_S + HANG_S:
        for s, data in list(dripping.items()):
            with contextlib.suppress(BlockingIOError):
                s.setblocking(False)
                try:
                    if at < len(data):
                        s.send(data[at : at + 1])
                    if s.recv(1 << 16) == b"":
                        del dripping[s]
                except OSError as e:
                    if isinstance(e, BlockingIOError):
                        raise
                    del dripping[s]
        at += 1
        time.sleep(0.2)
    assert not dripping, "a byte at a time is fast enough"
    for s, data in zip(sockets, beginnings, strict=True):
        found = drain(s, HANG_S)
        assert found is not None, f"{data!r} may wait for ever"
        s.close()
    assert time.monotonic() - began < HURRIED_S + 2 * HANG_S


def test_a_client_that_only_listens_may_stay(rpc: str) -> None:
    """Idle is not slow: whoever owes nothing is left alone."""
    with greeted(rpc) as s:
        time.sleep(HURRIED_S + 0.7)
        s.send(request([7, GET, 0, LKEY, STALE, None]))
        assert s.read(frames.RESPONSE)[0][0] == 7


def test_thousands_who_say_nothing_are_gone_after_their_time(attacked: Cluster, rpc: str) -> None:
    """They do not lock out clients that do, nor peers, and are gone after their time."""
    silent: list[socket.socket] = []
    try:
        silent += [dial(rpc) for _ in range(3000)]
        began = time.monotonic()
        clients = attacked.status("c1n1")["clients"]
        assert clients["before_hello"] <= MAX_BEFORE_HELLO
        with greeted(rpc) as s:
            s.send(request([1, GET, 0, LKEY, STALE, None]))
            assert s.read(frames.RESPONSE)[0][0] == 1
        while attacked.status("c1n1")["clients"]["before_hello"] > 5:
            assert time.monotonic() - began < HURRIED_S + HANG_S
            time.sleep(0.1)
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("what", ["gets", "lists", "topology", "status"])
def test_who_does_not_read_is_not_answered_for_ever(
    attacked: Cluster, large: tuple[bytes, int], what: str
) -> None:
    """Small questions with large answers, and nobody takes those: beyond a bound they are refused,
    then the connection ends."""
    key, p = large
    rpc = str(attacked.node("c1n1")["rpc"])
    gets = request(*[[i, GET, p, key, STALE, None] for i in range(4096)])
    lists = request(*[[i, LIST, p, key[:-1], b"\xff" * 9, 10_000, 0, STALE, None] for i in range(4096)])
    data = {
        "gets": gets,
        "lists": lists,
        "topology": frame(frames.TOPOLOGY_REQUEST, [0]) * 20_000,
        "status": frame(frames.STATUS_REQUEST, []) * 20_000,
    }[what]
    others = attacked.status("c1n1")["clients"]["connections"]
    speakers = [greeted(rpc, small_window=True) for _ in range(6)]
    try:
        for s in speakers:
            s.socket.settimeout(HURRIED_S + HANG_S)
            with contextlib.suppress(OSError):
                for _ in range(6):
                    s.socket.sendall(data)
        until = time.monotonic() + HURRIED_S + HANG_S
        while True:
            now = attacked.status("c1n1")["clients"]
            if now["connections"] <= others and now["unread_bytes"] < 1 << 20:
                break
            assert time.monotonic() < until, f"nobody reads, and it waits on: {now}"
            time.sleep(0.1)
    finally:
        for s in speakers:
            s.socket.close()


# --- http -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["router", "node"])
def test_who_does_not_get_on_with_http_is_disconnected(attacked: Cluster, who: str) -> None:
    """Heads and bodies that begin and do not end, or come a byte at a time."""
    address = attacked.router if who == "router" else str(attacked.node("c1n1")["http"])
    beginnings = [b"", b"G", b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nX: y\r\nY"]
    if who == "router":
        beginnings += [
            head("PUT", KV, "Content-Length: 100"),
            head("PUT", KV, "Content-Length: 100") + b"half",
            head("PUT", KV, "Transfer-Encoding: chunked") + b"5\r\nab",
        ]
    quiet = [dial(address) for _ in beginnings]
    for s, data in zip(quiet, beginnings, strict=True):
        s.sendall(data)
    slow = {dial(address): head("GET", "/livez", "X: " + "y" * 50)}
    if who == "router":
        slow[dial(address)] = put(b"z" * 200)
    began, at = time.monotonic(), 0
    alive = dict(slow)
    while alive and time.monotonic() - began < 3 * HURRIED_S + HANG_S:
        for s, data in list(alive.items()):
            if not send(s, data[at : at + 1]) or (at >= 4 and _closed(s)):
                del alive[s]
        at += 1
        time.sleep(0.1)
    assert not alive, "a byte at a time is fast enough"
    for s, data in zip(quiet, beginnings, strict=True):
        left = began + 3 * HURRIED_S + 2 * HANG_S - time.monotonic()
        answer = drain(s, max(0.1, left))
        assert answer is not None, f"{data[:60]!r} may wait for ever"
        for one in http_answers(answer):
            assert one.status in (400, 408)
            check_problem(one, repr(data))
        s.close()
    for s in slow:
        s.close()


def _closed(s: socket.socket) -> bool:
    s.setblocking(False)
    try:
        return s.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        s.setblocking(True)


def test_who_does_not_read_answers_of_http_is_disconnected(attacked: Cluster, big: str) -> None:
    """A hundred large answers that nobody takes."""
    sockets = [dial(attacked.router, small_window=True) for _ in range(100)]
    try:
        for s in sockets:
            send(s, head("GET", big) * 3)
        until = time.monotonic() + HANG_S
        while True:
            (answer,) = http(attacked.router, head("GET", big, "Connection: close"))
            if answer.status == 200:
                break
            assert answer.status == 503, answer
            assert time.monotonic() < until, "who does not read keeps others from reading"
            time.sleep(0.1)
        assert len(answer.body) == 1 << 20
    finally:
        for s in sockets:
            s.close()
