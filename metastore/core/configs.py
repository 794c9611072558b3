"""A partition's config as replicas keep and send it, and how one that a peer sent is read. Pure."""

from __future__ import annotations

from typing import Final

import msgpack

from metastore.decoding import unpack_own
from metastore.errors import ProtocolError
from metastore.layout import ConfigRecord

#: what reading something that a peer made up may raise
UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    msgpack.UnpackException,
)
MAX_CONFIG_BYTES: Final = 64 << 10


def pack_config(config: ConfigRecord) -> bytes:
    raw: bytes = msgpack.packb(config.to_plain())
    return raw


def unpack_config(raw: bytes) -> ConfigRecord:
    return ConfigRecord.from_plain(unpack_own(raw))


def read_config(raw: bytes, p: int) -> ConfigRecord:
    """The config that a peer sent for partition ``p``. Raises ProtocolError."""
    try:
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        config = unpack_config(raw)
        if config.partition != p:
            raise ValueError("another partition")
    except UNREADABLE as e:
        raise ProtocolError(f"partition {p}: not a config: {type(e).__name__}: {e}"[:200]) from None
    return config
