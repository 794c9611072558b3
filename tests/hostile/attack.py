"""Sockets that say what they should not, and what came back."""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

import msgpack

from metastore.wire import frames
from metastore.wire.peer_messages import encode

HEADER = struct.Struct(">IBB")
#: for an answer, or an end, that is due at once; generous, for busy machines
ANSWER_S = 60.0


def dial(address: str, *, small_window: bool = False) -> socket.socket:
    """A connection to ``host:port``; ``small_window``: one that takes little until it is read."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    s = socket.socket()
    if small_window:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(ANSWER_S)
    s.connect((host, int(port)))
    return s


def raw_frame(kind: int, body: bytes, *, length: int | None = None, version: int = 1) -> bytes:
    """A frame that may lie about itself."""
    return HEADER.pack(len(body) + 2 if length is None else length, version, kind) + body


def frame(kind: int, body: Any) -> bytes:
    return raw_frame(kind, msgpack.packb(body))


HELLO = frame(frames.HELLO, ["dev", "hostile"])


def request(*ops: list[Any], client: bytes = b"h" * 16, timeout_ms: int = 5000) -> bytes:
    return frame(frames.REQUEST, [client, timeout_ms, list(ops)])


def send(s: socket.socket, data: bytes) -> bool:
    """Whether all of it was taken; the other side may have had enough before."""
    try:
        s.sendall(data)
    except OSError:
        return False
    return True


def drain(s: socket.socket, patience_s: float = ANSWER_S) -> bytes | None:
    """What comes until the other side closes; None when it does not within ``patience_s``."""
    until, found = time.monotonic() + patience_s, b""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return None
        s.settimeout(left)
        try:
            data = s.recv(1 << 20)
        except TimeoutError:
            return None
        except OSError:  # a reset is an end too
            return found
        if not data:
            return found
        found += data


def exchange(address: str, data: bytes, *, half_close: bool = True, patience_s: float = ANSWER_S) -> bytes:
    """Send ``data``, say that no more comes, and return what is answered until the close, which
    has to come."""
    with dial(address) as s:
        send(s, data)
        if half_close:
            try:
                s.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        found = drain(s, patience_s)
        assert found is not None, f"not closed within {patience_s} s after {data[:80]!r}"
        return found


def parse(data: bytes) -> list[tuple[int, Any]]:
    """The frames in an answer."""
    return frames.FrameDecoder().feed(data)


class Speaker:
    """A connection to the rpc port that keeps what it has not been asked for yet."""

    def __init__(self, address: str, *, small_window: bool = False) -> None:
        self.socket = dial(address, small_window=small_window)
        self._decoder = frames.FrameDecoder()
        self._frames: list[tuple[int, Any]] = []

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.settimeout(ANSWER_S)
        self.socket.sendall(data)

    def read(self, kind: int, patience_s: float = ANSWER_S) -> Any:
        """The body of the next frame of ``kind``; others before it are passed over."""
        until = time.monotonic() + patience_s
        while True:
            while self._frames:
                found, body = self._frames.pop(0)
                if found == kind:
                    return body
                assert found != frames.ERROR, body
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            data = self.socket.recv(1 << 20)
            assert data, f"closed where a frame of type {kind} was due"
            self._frames += self._decoder.feed(data)


def greeted(address: str, *, small_window: bool = False) -> Speaker:
    """A client's connection after its hello."""
    speaker = Speaker(address, small_window=small_window)
    speaker.send(HELLO)
    assert speaker.read(frames.HELLO_OK)[0] == "dev"
    return speaker


def peer_hello(caller: tuple[str, str, str], target: tuple[str, str], generation: int | None = None) -> bytes:
    """``generation``: of the caller's store, where that has one (R13)."""
    runs = [] if generation is None else [[[generation, caller[2], 0]]]
    return frame(frames.PEER_HELLO, ["dev", *caller, *target, *runs])


def peer(*messages: Any) -> bytes:
    """One PEER frame; what is no message goes as it is."""
    return frame(frames.PEER, [encode(m) if hasattr(m, "_fields") else m for m in messages])


@dataclass
class Answer:
    """One answer of HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def http_answers(data: bytes) -> list[Answer]:
    """The answers in ``data``; bodies by Content-Length only."""
    found: list[Answer] = []
    while data:
        head, mark, rest = data.partition(b"\r\n\r\n")
        if not mark:
            raise AssertionError(f"no whole head: {data[:200]!r}")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = (first + "  ").split(" ", 2)
        assert version in ("HTTP/1.1", "HTTP/1.0"), first
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        if int(status) == 100:
            data = rest
            continue
        size = int(headers.get("content-length", 0))
        found.append(Answer(int(status), headers, rest[:size]))
        data = rest[size:]
    return found


def http(address: str, data: bytes, *, patience_s: float = ANSWER_S, half_close: bool = True) -> list[Answer]:
    return http_answers(exchange(address, data, patience_s=patience_s, half_close=half_close))


def head(method: str, path: str, *headers: str, version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {path} {version}", "Host: h", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")
