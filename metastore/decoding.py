"""The one door for each kind of bytes that become objects: msgpack, JSON, zlib. Does no I/O.

A byte of msgpack or JSON may become an object of some seventy bytes, a byte of zlib a thousand others. So who did not
write the bytes itself says how much they may become, and it is counted *before* objects are made of them, or while they
are: what is refused has cost next to nothing. No other module calls the decoders (a test sees to it).

``unpack_body``, ``load_json`` and ``inflate`` are for what came from elsewhere: a socket, a file, etcd. ``unpack_own`` is for
rows and entries that this store has written under checksums of its own, or has checked when they came.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final

import msgpack
import orjson

from metastore.errors import ProtocolError

MAX_ARRAY: Final = 16384
MAX_MAP: Final = 4096
"""msgpack allocates an array when it reads its header, up to 1,024 levels deep: the element
bound keeps a hostile frame below about 130 MB, and that only until it fails to parse."""
#: A byte of msgpack may become an object of 72: of a small frame that is no harm, in a large one the
#: elements are counted. Values are what makes honest frames large, not their number.
UNCOUNTED_BYTES: Final = 64 << 10
MAX_ITEMS: Final = 300_000
#: of what a node or a router tells: the topology of 8,192 partitions and 10,000 namespaces has some 400,000
MAX_ANSWER_ITEMS: Final = 1_000_000
#: of a JSON document that is kept in etcd, or in a file of settings
MAX_RECORD_BYTES: Final = 2 << 20
#: of a topology, which is the largest document there is
MAX_DOCUMENT_BYTES: Final = 64 << 20


class Undecodable(ValueError):
    """The bytes are not what they should be, or more than they may be; the message says which and the bound."""


class TooMany(Undecodable):
    """They would become more objects, or bytes, than is allowed. Nothing was made of them."""


class _Items:
    """Counts the elements of what is being parsed; raises ValueError beyond ``left`` of them."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, made: Any) -> Any:
        self.left -= 1 + len(made)
        if self.left < 0:
            raise ValueError("too many elements")
        return made


#: as it decodes by default: lists, text as str, keys of maps bytes or str
_unpackb = msgpack.unpackb

#: msgpack that this store has written itself, under a checksum, or has checked when it came
unpack_own = msgpack.unpackb


def unpack_body(
    raw: bytes | memoryview,
    max_items: int = 0,
    uncounted_bytes: int = UNCOUNTED_BYTES,
    max_array: int = MAX_ARRAY,
) -> Any:
    """The msgpack value in ``raw``, within the limits; ``max_items``: elements in all, 0 = any; they are not counted in
    less than ``uncounted_bytes``. Raises ProtocolError."""
    size = len(raw)
    try:
        if size <= MAX_MAP:  # nearly always
            return _unpackb(raw, max_ext_len=0)  # no array or map may claim more elements than bytes
        hook = _Items(max_items) if max_items and size > uncounted_bytes else None
        return _unpackb(
            raw,
            list_hook=hook,
            object_hook=hook,
            max_array_len=min(max_array, size),
            max_map_len=MAX_MAP,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, UnicodeDecodeError, msgpack.UnpackException) as e:
        raise ProtocolError(f"frame body does not parse: {type(e).__name__}: {e}") from None


def first_number(raw: bytes) -> int:
    """The first element of an array that this store has packed, a number, without decoding the rest."""
    head = msgpack.Unpacker()
    head.feed(raw[:16])
    head.read_array_header()
    return int(head.unpack())


def unpack_value(raw: bytes) -> Any:
    """A user's value, which may be any msgpack; its size is bounded by the store. Raises ValueError and others."""
    return msgpack.unpackb(raw, strict_map_key=False)


# --- JSON -----------------------------------------------------------------------------------------


def load_json_value(raw: bytes) -> Any:
    """A user's value, which may be any JSON; its size is bounded by the store. Raises ValueError."""
    return orjson.loads(raw)


_SIGNS: Final = (b"[", b"{", b",", b":")
_NO_SIGNS: Final = bytes(c for c in range(256) if c not in b'[{,:"')


def json_items(raw: bytes, enough: int) -> int:
    """At least how many values ``raw`` would become: the signs that stand before each. Those within texts are left out
    only if with them there are more than ``enough``, which takes longer."""
    signs = sum(map(raw.count, _SIGNS))
    if signs <= enough:
        return signs
    # what is escaped ends no text; then all but signs and quotes goes, and the texts that had no signs
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_SIGNS)
    if bare.count(b'"') // 2 > enough + 1:  # before each text there is a sign
        return signs
    outside = b"".join(bare.replace(b'""', b"").split(b'"')[::2])
    return sum(map(outside.count, _SIGNS))


def load_json(
    raw: bytes, max_items: int = MAX_ITEMS, max_bytes: int = MAX_RECORD_BYTES, what: str = "the document"
) -> Any:
    """The JSON value in ``raw``. Raises Undecodable; TooMany, before anything is made of it, when it has over
    ``max_bytes``, or would become over ``max_items`` values."""
    size = len(raw)
    if size > max_bytes:
        raise TooMany(f"{what} has {size} bytes, over the limit of {max_bytes}")
    if size > max_items and json_items(raw, max_items) > max_items:
        raise TooMany(f"{what} has more than {max_items} elements, the limit")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise Undecodable(f"{what} is not JSON: {e}") from None


def read_json_file(path: Path, max_items: int = MAX_ITEMS, max_bytes: int = MAX_RECORD_BYTES) -> Any:
    """The JSON value in a file. Raises OSError, Undecodable."""
    return load_json(read_file(path, max_bytes), max_items, max_bytes, str(path))


def read_file(path: Path, max_bytes: int) -> bytes:
    """A whole file, of a bounded size. Raises OSError, TooMany."""
    with path.open("rb") as source:
        raw = source.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise TooMany(f"{path} has over {max_bytes} bytes, the limit")
    return raw


# --- zlib -----------------------------------------------------------------------------------------


def inflate(raw: bytes, max_bytes: int) -> bytes:
    """What ``raw`` is the whole of, compressed by zlib. Raises Undecodable; TooMany beyond ``max_bytes``, of which no
    more is made."""
    stream = zlib.decompressobj()
    try:
        made = stream.decompress(raw, max_bytes + 1)
    except zlib.error as e:
        raise Undecodable(f"it is not zlib data: {e}") from None
    if len(made) > max_bytes:
        raise TooMany(f"it becomes more than {max_bytes} bytes, the limit")
    if not stream.eof or stream.unused_data:
        raise Undecodable("the zlib data is cut short, or bytes follow it")
    return made
