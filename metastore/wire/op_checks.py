"""Checks of a client's operations before anything acts on them. Sans-I/O.

One function, called for every operation of every request: it is written for speed, returns
None when all is well and the error otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.keys import (
    MAX_CONTENT_TYPE_BYTES,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    is_content_type,
    is_storage_key,
)
from metastore.wire.client_messages import ADD, AT_LEAST, DELETE, GET, LIST, MAX_LIST_LIMIT, PUT
from metastore.wire.frames import shown

_LENGTHS: Final = {GET: 6, PUT: 11, DELETE: 8, ADD: 9, LIST: 9}
_MAX_LKEY: Final = 8 + 64 + 1 + MAX_KEY_BYTES
_MAX_TTL_MS: Final = 10 * 365 * 86_400_000
_U64: Final = 1 << 64
_I64: Final = 1 << 63
_I63: Final = (1 << 63) - 1


def op_shape(op: Any) -> MetastoreError | None:
    """Whether ``op`` is an array of a known kind with an id and a partition."""
    if type(op) is not list or len(op) < 3:
        return InvalidRequest("an operation is not an array of at least 3 elements")
    length = _LENGTHS.get(op[1]) if type(op[1]) is int else None
    if length is None:
        return InvalidRequest(f"unknown operation {shown(op[1], 40)}")
    if len(op) != length:
        return InvalidRequest(f"operation {op[1]} has {len(op)} elements instead of {length}")
    if type(op[0]) is not int or not 0 <= op[0] < _U64 or type(op[2]) is not int:
        return InvalidRequest("operation id or partition is not a count")
    return None


def check_op(op: list[Any]) -> MetastoreError | None:
    """The contents of an operation whose shape is right."""
    kind, lkey = op[1], op[3]
    if type(lkey) is not bytes or len(lkey) > _MAX_LKEY:
        return InvalidRequest("the storage key is not bytes, or too long")
    if kind == GET:
        if len(lkey) < 11 or lkey.find(0, 9) < 0:
            return InvalidRequest("malformed storage key")
        return _check_consistency(op[4], op[5])
    if kind == LIST:
        if type(op[4]) is not bytes or len(op[4]) > _MAX_LKEY + 1:
            return InvalidRequest("the end of a list is not bytes, or too long")
        if type(op[5]) is not int or not 1 <= op[5] <= MAX_LIST_LIMIT:
            return InvalidRequest(f"limit {shown(op[5], 20)} is not within 1 and {MAX_LIST_LIMIT}")
        if type(op[6]) is not int:
            return InvalidRequest("flags is not a number")
        return _check_consistency(op[7], op[8])
    if not is_storage_key(lkey):
        return InvalidRequest("malformed storage key")
    for value in (op[4], op[5], op[6]):
        if type(value) is not int or not 0 <= value < _I63:
            return InvalidRequest(f"request id part {shown(value, 20)} is not a count below 2**63")
    condition = op[7]
    if condition is not None and (type(condition) is not int or not -1 <= condition < _I63):
        return InvalidRequest(f"condition {shown(condition, 20)} is not a version, 0 (absent) or -1 (exists)")
    if kind == PUT:
        return _check_put(op)
    if kind == ADD and (type(op[8]) is not int or not -_I64 <= op[8] < _I64):
        return InvalidRequest(f"delta {shown(op[8], 20)} is not a signed 64-bit number")
    return None


def _check_put(op: list[Any]) -> MetastoreError | None:
    value, content_type, ttl_ms = op[8], op[9], op[10]
    if type(value) is not bytes:
        return InvalidRequest("the value is not bytes")
    if len(value) > MAX_VALUE_BYTES:
        return TooLarge(f"value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES} bytes")
    if type(content_type) is not str or not is_content_type(content_type):
        return InvalidRequest(
            f"the content type is not printable ASCII text of at most {MAX_CONTENT_TYPE_BYTES} bytes"
        )
    if type(ttl_ms) is not int or not 0 <= ttl_ms <= _MAX_TTL_MS:
        return InvalidRequest(f"ttl_ms {shown(ttl_ms, 20)} is not within 0 and {_MAX_TTL_MS}")
    if ttl_ms:
        return InvalidRequest("ttl_ms: records that expire are not served by this version; leave it 0")
    return None


def _check_consistency(consistency: Any, arg: Any) -> MetastoreError | None:
    if type(consistency) is not int or not 0 <= consistency <= AT_LEAST:
        return InvalidRequest(f"unknown consistency {shown(consistency, 20)}")
    if arg is not None and (type(arg) is not int or not 0 <= arg < _I63):
        return InvalidRequest(f"consistency argument {shown(arg, 20)} is not a count below 2**63")
    if consistency == AT_LEAST and arg is None:
        return InvalidRequest("at_least needs a version")
    return None
