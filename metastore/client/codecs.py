"""Codecs: what a namespace's values are in Python, and the bytes that are kept.

A codec is any object with ``content_type``, ``encode`` and ``decode`` (the Codec protocol below). One
that also has ``decode_counter`` says what the record of a counter is, else ``decode`` gets its digits.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

import msgpack
import orjson

from metastore.decoding import load_json_value, unpack_value
from metastore.errors import DecodeFailed
from metastore.records import Record

T = TypeVar("T")


class Codec(Protocol[T]):
    """``content_type`` is kept with every value that is written (ASCII, at most 127 bytes). What ``encode``
    raises reaches the caller as it is, before anything is sent; what ``decode`` raises becomes
    DecodeFailed."""

    @property
    def content_type(self) -> str: ...

    def encode(self, value: T, /) -> bytes: ...

    def decode(self, raw: bytes, /) -> T: ...


class _Bytes:
    """Values are bytes, as they are; the default."""

    content_type: Final = ""

    def encode(self, value: bytes | bytearray | memoryview, /) -> bytes:
        """Raises TypeError."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        raise TypeError(
            f"a value of type {type(value).__name__} is not bytes: encode it, or give the namespace a codec, "
            "as in client.namespace(name, codec=JSON)"
        )

    def decode(self, raw: bytes, /) -> bytes:
        return raw


class _Text:
    """Values are str, kept as UTF-8."""

    content_type: Final = "text/plain; charset=utf-8"

    def encode(self, value: str, /) -> bytes:
        """Raises TypeError, UnicodeEncodeError."""
        if not isinstance(value, str):
            raise TypeError(f"a value of type {type(value).__name__} is not str")
        return value.encode()

    def decode(self, raw: bytes, /) -> str:
        return raw.decode()


class _Json:
    """Values are what JSON can hold; also dataclasses, datetimes and UUIDs, which come back as plain data."""

    content_type: Final = "application/json"

    def encode(self, value: Any, /) -> bytes:
        """Raises TypeError."""
        return orjson.dumps(value)

    def decode(self, raw: bytes, /) -> Any:
        return load_json_value(raw)


class _Msgpack:
    """Values are what msgpack can hold, bytes too."""

    content_type: Final = "application/msgpack"

    def encode(self, value: Any, /) -> bytes:
        """Raises TypeError, ValueError, OverflowError."""
        raw: bytes = msgpack.packb(value)
        return raw

    def decode(self, raw: bytes, /) -> Any:
        return unpack_value(raw)

    def decode_counter(self, raw: bytes, /) -> int:
        return int(raw)


BYTES: Final = _Bytes()
TEXT: Final = _Text()
JSON: Final = _Json()
MSGPACK: Final = _Msgpack()


def decoded(codec: Codec[T], key: str, record: Record[bytes]) -> Record[T]:
    """The record with its value decoded. Raises DecodeFailed."""
    if isinstance(codec, _Bytes):
        return record
    try:
        decode = getattr(codec, "decode_counter", codec.decode) if record.counter else codec.decode
        value: T = decode(record.value)
    except Exception as e:
        kind = f" (content type {record.content_type!r})" if record.content_type else ""
        raise DecodeFailed(
            f"the value of {key!r:.200}{kind} at version {record.version} is not what the namespace's codec "
            f"decodes: {type(e).__name__}: {e}",
            key=key,
            content_type=record.content_type,
        ) from e
    return Record(record.version, record.created, value, record.content_type, record.ttl_ms, record.counter)
