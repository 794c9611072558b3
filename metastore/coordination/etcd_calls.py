"""etcd's messages, and ours. The only module that imports aetcd first: gRPC is told to be quiet before that."""

from __future__ import annotations

import os
from typing import Any, Final

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import aetcd
from aetcd import rpc

from metastore.coordination.interface import KV, Compare, Delete, Op, Put

__all__ = [
    "CALL_TIMEOUT_S",
    "RETRY_S",
    "aetcd",
    "compare_of",
    "key_of",
    "kv_of",
    "op_of",
    "prefix_end",
    "rpc",
]

CALL_TIMEOUT_S: Final = 2.0
RETRY_S: Final = (0.2, 1.0)


def prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def key_of(raw: bytes) -> str:
    """A key as text. What is no UTF-8 in it is kept as surrogates, so that such a key is a record like another, which
    its readers find to be not valid (metastore.schema)."""
    return raw.decode("utf-8", "surrogateescape")


def kv_of(raw: Any) -> KV:
    return KV(key_of(raw.key), raw.value, raw.mod_revision, raw.create_revision, raw.lease)


def compare_of(c: Compare) -> Any:
    if c.what == "mod":
        return rpc.Compare(
            result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=c.key.encode(), mod_revision=c.revision
        )
    if c.what == "since":
        return rpc.Compare(
            result=rpc.Compare.LESS,
            target=rpc.Compare.MOD,
            key=c.key.encode(),
            range_end=prefix_end(c.key.encode()),
            mod_revision=c.revision + 1,
        )
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.VALUE, key=c.key.encode(), value=c.value)


def op_of(op: Op) -> Any:
    if isinstance(op, Put):
        put = rpc.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease)
        return rpc.RequestOp(request_put=put)
    if isinstance(op, Delete):
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=op.key.encode()))
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=op.key.encode()))
