"""The peers' native protocols, as little of them as a load generator needs: bytes out, answers counted.

A *speaker* is one connection's state. ``begin()``: what is sent first. ``put(n)``, ``get(n)``, ``listing(n)``:
bytes of one request about key ``n``, and the id by which its answer is known. ``feed(data)``: the ids that are
answered, in the order they came; raises Wrong for an error. Requests may be joined: that is pipelining.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from metastore.keys import storage_key_of
from metastore.operations import GET, LINEARIZABLE, LIST, PUT
from metastore.wire import frames


class Wrong(Exception):
    """A peer answered with an error: the figures mean nothing."""


class Speaker(Protocol):
    def begin(self) -> bytes: ...
    def put(self, n: int) -> tuple[Any, Any]: ...
    def get(self, n: int) -> tuple[Any, Any]: ...
    def listing(self, n: int) -> tuple[Any, Any]: ...
    def join(self, requests: Sequence[Any]) -> bytes: ...
    def feed(self, data: bytes) -> list[Any]: ...


# --- metastore ----------------------------------------------------------------------------------------

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True)
class Target:
    """A key of metastore: where it lives, and how it is called there."""

    partition: int
    storage_key: bytes


def target(namespace: str, key: str, table: Any) -> Target:
    storage_key = storage_key_of(namespace, key)
    return Target(table.route(storage_key).id, storage_key)


class Metastore:
    """With conditions unset, dedupe on (request ids with floors), checksums always."""

    def __init__(self, client: bytes, targets: Sequence[Target], value: bytes, cluster: str = "dev") -> None:
        self.client = client
        self.targets = targets
        self.value = value
        self.cluster = cluster
        self._decoder = frames.FrameDecoder()
        self._id = 0
        self._open: dict[int, dict[int, None]] = {}
        self._partition: dict[int, int] = {}
        #: partition -> highest index heard of (the stamp of the next write)
        self._stamps: dict[int, int] = {}

    def begin(self) -> bytes:
        return frames.pack(frames.HELLO, [self.cluster, "bench"])

    def put(self, n: int) -> tuple[Any, int]:
        self._id += 1
        number = self._id
        at = self.targets[n % len(self.targets)]
        opened = self._open.setdefault(at.partition, {})
        opened[number] = None
        self._partition[number] = at.partition
        floor, stamp = next(iter(opened)), self._stamps.get(at.partition, 0)
        return [
            number, PUT, at.partition, at.storage_key, number, floor, stamp, None, self.value, "", None
        ], number  # fmt: skip

    def get(self, n: int) -> tuple[Any, int]:
        self._id += 1
        at = self.targets[n % len(self.targets)]
        return [self._id, GET, at.partition, at.storage_key, LINEARIZABLE, None], self._id

    def listing(self, n: int) -> tuple[Any, int]:
        """All of the directory of the key; its name is the storage_key up to the last slash."""
        self._id += 1
        at = self.targets[n % len(self.targets)]
        start = at.storage_key[: at.storage_key.rindex(b"/") + 1]
        end = start[:-1] + b"0"
        return [self._id, LIST, at.partition, start, end, 1000, 0, LINEARIZABLE, None], self._id

    def join(self, requests: Sequence[Any]) -> bytes:
        return frames.pack(frames.REQUEST, [self.client, 10_000, list(requests)])

    def feed(self, data: bytes) -> list[int]:
        done = []
        for kind, body in self._decoder.feed(data):
            if kind != frames.RESPONSE:
                if kind == frames.ERROR:
                    raise Wrong(str(body))
                continue
            for result in body:
                number = result[0]
                if result[1] != 0:
                    raise Wrong(str(result))
                p = self._partition.pop(number, None)
                if p is not None:
                    del self._open[p][number]
                    self._stamps[p] = max(self._stamps.get(p, 0), result[3])
                done.append(number)
        return done


# --- etcd: gRPC over HTTP/2 -----------------------------------------------------------------------------

HEADERS, DATA, RST, SETTINGS, PING, GOAWAY, WINDOW = 1, 0, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WIDE = (1 << 31) - 1


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, raw: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def header_block(path: str, authority: str) -> bytes:
    def text(raw: bytes) -> bytes:
        assert len(raw) < 127
        return bytes([len(raw)]) + raw

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(path.encode()),
            b"\x01" + text(authority.encode()),
            b"\x0f\x10" + text(b"application/grpc"),
            b"\x00" + text(b"te") + text(b"trailers"),
        )
    )


class Etcd:
    """Unary calls of etcd's KV service, each a stream; ``keys``: raw keys; linearizable reads."""

    def __init__(self, keys: Sequence[bytes], value: bytes, authority: str) -> None:
        self.keys = keys
        self.value = value
        self._put = header_block("/etcdserverpb.KV/Put", authority)
        self._range = header_block("/etcdserverpb.KV/Range", authority)
        self._watch = header_block("/etcdserverpb.Watch/Watch", authority)
        self._stream = -1
        self._buffer = b""
        self._answers: dict[int, bytes] = {}
        self._received = 0
        self.reply = b""
        #: payloads of streams that do not end (watches)
        self.messages: list[bytes] = []

    def begin(self) -> bytes:
        settings = struct.pack(">HIHI", 4, WIDE, 2, 0)  # initial window, no push
        return (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW, 0, 0, struct.pack(">I", WIDE - 65535))
        )

    def _call(self, block: bytes, message: bytes, end: bool = True) -> tuple[bytes, int]:
        self._stream += 2
        stream = self._stream
        body = b"\0" + struct.pack(">I", len(message)) + message
        head = frame(HEADERS, END_HEADERS, stream, block)
        return head + frame(DATA, END_STREAM if end else 0, stream, body), stream

    def put(self, n: int) -> tuple[bytes, int]:
        key = self.keys[n % len(self.keys)]
        return self._call(self._put, field(1, key) + field(2, self.value))

    def get(self, n: int) -> tuple[bytes, int]:
        return self._call(self._range, field(1, self.keys[n % len(self.keys)]))

    def listing(self, n: int) -> tuple[bytes, int]:
        key = self.keys[n % len(self.keys)]
        start = key[: key.rindex(b"/") + 1]
        return self._call(self._range, field(1, start) + field(2, start[:-1] + b"0"))

    def watch(self, prefix: bytes) -> bytes:
        """A watch of everything below ``prefix``, which ends in a slash."""
        create = field(1, prefix) + field(2, prefix[:-1] + b"0")
        return self._call(self._watch, field(1, create), end=False)[0]

    def join(self, requests: Sequence[bytes]) -> bytes:
        return b"".join(requests)

    def feed(self, data: bytes) -> list[int]:
        buffer = self._buffer + data if self._buffer else data
        at, size, done = 0, len(buffer), []
        reply = b""
        while size - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if size - at - 9 < length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            body = buffer[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == DATA:
                self._received += length
                self._answers[stream] = self._answers.get(stream, b"") + body
                if stream == self._stream and not flags & END_STREAM and self._is_watching:
                    self._take_messages(stream)
            elif kind == HEADERS and flags & END_STREAM:
                if not self._answers.pop(stream, b""):
                    raise Wrong("etcd refused a call")
                done.append(stream)
            elif kind == SETTINGS and not flags & ACK:
                reply += frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                reply += frame(PING, ACK, 0, body)
            elif kind in (RST, GOAWAY):
                raise Wrong(f"etcd ended a stream or the connection: {body!r:.80}")
        self._buffer = buffer[at:]
        if self._received > 1 << 29:
            reply += frame(WINDOW, 0, 0, struct.pack(">I", self._received))
            self._received = 0
        self.reply = reply
        return done

    _is_watching = False

    def watching(self) -> None:
        """From here on the last stream is a watch: its messages go to ``messages``."""
        self._is_watching = True

    def _take_messages(self, stream: int) -> None:
        raw = self._answers[stream]
        at = 0
        while len(raw) - at >= 5:
            (length,) = struct.unpack_from(">I", raw, at + 1)
            if len(raw) - at - 5 < length:
                break
            self.messages.append(raw[at + 5 : at + 5 + length])
            at += 5 + length
        self._answers[stream] = raw[at:]


def count_fields(message: bytes, number: int) -> int:
    """How often a length-delimited field stands in a protobuf message."""
    at = count = 0

    def read() -> int:
        nonlocal at
        shift = value = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(message):
        tag = read()
        if tag & 7 == 2:
            length = read()
            at += length
            count += tag >> 3 == number
        elif tag & 7 == 0:
            read()
        else:
            raise Wrong(f"an odd protobuf field: {tag}")
    return count


# --- Redis ------------------------------------------------------------------------------------------------


def resp(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Redis:
    """SET and WAIT 1, pipelined: an answer counts when a replica has it on disk too (fsync always)."""

    def __init__(self, keys: Sequence[bytes], value: bytes) -> None:
        self.keys = keys
        self.value = value
        self._number = 0
        self._buffer = b""
        self._due: list[tuple[int, bool]] = []
        self._wait = resp(b"WAIT", b"1", b"0")
        self.reply = b""

    def begin(self) -> bytes:
        return b""

    def put(self, n: int) -> tuple[bytes, int]:
        self._number += 1
        self._due.append((self._number, True))
        return resp(b"SET", self.keys[n % len(self.keys)], self.value) + self._wait, self._number

    def get(self, n: int) -> tuple[bytes, int]:
        self._number += 1
        self._due.append((self._number, False))
        return resp(b"GET", self.keys[n % len(self.keys)]), self._number

    def listing(self, n: int) -> tuple[bytes, int]:
        raise NotImplementedError("Redis has no ordered listing of keys")

    def join(self, requests: Sequence[bytes]) -> bytes:
        return b"".join(requests)

    def feed(self, data: bytes) -> list[int]:
        buffer = self._buffer + data
        at, done = 0, []
        due = self._due
        taken = 0
        while taken < len(due):
            number, is_put = due[taken]
            end = buffer.find(b"\r\n", at)
            if end < 0:
                break
            if is_put:
                second = buffer.find(b"\r\n", end + 2)
                if second < 0:
                    break
                if buffer[at : at + 3] != b"+OK" or buffer[end + 2 : second] in (b":0", b""):
                    raise Wrong(f"Redis answered {buffer[at:second]!r:.80}")
                at = second + 2
            else:
                if buffer[at : at + 1] != b"$":
                    raise Wrong(f"Redis answered {buffer[at:end]!r:.80}")
                length = int(buffer[at + 1 : end])
                if length < 0:
                    raise Wrong("Redis does not know a key that was put")
                if len(buffer) < end + 4 + length:
                    break
                at = end + 4 + length
            done.append(number)
            taken += 1
        del due[:taken]
        self._buffer = buffer[at:]
        return done
