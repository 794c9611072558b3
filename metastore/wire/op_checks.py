"""Checks of a client's operations before anything acts on them, made from ``metastore.operations``. Sans-I/O.

``op_shape`` and ``check_op`` are called for every operation of every request that is not plain: they are written
for speed, return None when all is well and the error otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from metastore.elements import (
    COUNT_END,
    MAX_STORAGE_KEY_BYTES,
    MAX_TTL_MS,
    ONE_REQUEST,
    U64_END,
    has_key_shape,
    shown,
)
from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.keys import MAX_KEY_BYTES, MAX_VALUE_BYTES, is_content_type, is_storage_key
from metastore.operations import (
    AT,
    AT_LEAST,
    COMPOUND,
    GET,
    HEAD,
    ID_AT,
    KIND_AT,
    LINEARIZABLE,
    MANY_KEYS,
    OPERATIONS,
    PARTITION_AT,
    PUT,
    Op,
    check_size,
    keys_of,
)
from metastore.wire.client_messages import (
    CLIENT_ID_BYTES,
    MAX_OPS_PER_FRAME,
    MAX_TIMEOUT_MS,
    WATCH_ANY,
    WATCH_KEYS,
)

_LENGTHS: Final = {kind: op.lengths for kind, op in OPERATIONS.items()}
_CHECKS: Final = {kind: tuple(field.check for field in op.all_fields) for kind, op in OPERATIONS.items()}
#: kind -> where consistency and its argument stand
_CONSISTENT: Final = {kind: (at, AT["arg"][kind]) for kind, at in AT["consistency"].items()}
_SIMPLE_PUT, _SIMPLE_GET = _LENGTHS[PUT][0], _LENGTHS[GET][0]
WATCH_FLAGS: Final = WATCH_ANY | WATCH_KEYS


def check_request(body: Any) -> MetastoreError | None:
    """Whether a request is ``[client_id, timeout_ms, ops]`` within the bounds; not the operations in it."""
    if type(body) is not list or len(body) != 3 or type(body[2]) is not list:
        return InvalidRequest("the body is not [client_id, timeout_ms, [op, …]]")
    client, timeout_ms, ops = body
    if type(client) is not bytes or len(client) != CLIENT_ID_BYTES:
        return InvalidRequest(f"the client id is not {CLIENT_ID_BYTES} bytes")
    if type(timeout_ms) is not int or not 0 < timeout_ms <= MAX_TIMEOUT_MS:
        return InvalidRequest(f"timeout_ms {shown(timeout_ms, 20)} is not within 1 and {MAX_TIMEOUT_MS}")
    if len(ops) > MAX_OPS_PER_FRAME:
        return TooLarge(f"{len(ops)} operations; the limit is {MAX_OPS_PER_FRAME}")
    return None


#: namespaces found good, so that the next of their keys need not be matched
_good_namespaces: set[bytes] = set()
_MAX_GOOD: Final = 4096


def is_simple(op: Any) -> bool:
    """Whether ``op`` is a linearizable GET, or a PUT without fence, as nearly all are. True only for what
    ``op_shape`` and ``check_op`` let pass; they say what is wrong with others, if anything is."""
    if type(op) is not list:
        return False
    if len(op) == _SIMPLE_PUT:
        (
            op_id,
            kind,
            partition,
            storage_key,
            seq,
            lowest_open,
            last_seen,
            condition,
            value,
            content_type,
            ttl_ms,
        ) = op
        if not (
            kind == PUT
            and type(seq) is type(lowest_open) is type(last_seen) is int
            and 0 <= seq < ONE_REQUEST
            and 0 <= lowest_open < COUNT_END
            and 0 <= last_seen < COUNT_END
            and (condition is None or (type(condition) is int and -1 <= condition < COUNT_END))
            and type(value) is bytes
            and len(value) <= MAX_VALUE_BYTES
            and type(content_type) is str
            and is_content_type(content_type)
            and (ttl_ms is None or (type(ttl_ms) is int and 0 <= ttl_ms <= MAX_TTL_MS))
        ):
            return False
    elif len(op) == _SIMPLE_GET:
        op_id, kind, partition, storage_key, consistency, arg = op
        if kind != GET or consistency != LINEARIZABLE or type(consistency) is not int or arg is not None:
            return False
    else:
        return False
    if not (
        type(kind) is type(op_id) is type(partition) is int
        and 0 <= op_id < U64_END
        and has_key_shape(storage_key)
    ):
        return False
    if kind == GET:
        return True
    nul = storage_key.find(0, 8)
    if len(storage_key) - nul - 1 > MAX_KEY_BYTES or not storage_key[nul:].isascii():
        return False
    namespace = storage_key[8:nul]
    if namespace in _good_namespaces:
        return True
    if not is_storage_key(storage_key):
        return False
    if len(_good_namespaces) < _MAX_GOOD:
        _good_namespaces.add(namespace)
    return True


def op_shape(op: Any) -> MetastoreError | None:
    """Whether ``op`` is an array of a known kind with an id and a partition."""
    if type(op) is not list or len(op) < HEAD:
        return InvalidRequest(f"an operation is not an array of at least {HEAD} elements")
    kind = op[KIND_AT]
    lengths = _LENGTHS.get(kind) if type(kind) is int else None
    if lengths is None:
        return InvalidRequest(f"unknown operation {shown(kind)}")
    if len(op) not in lengths:
        return InvalidRequest(f"operation {kind} has {len(op)} elements instead of {lengths[0]}")
    op_id = op[ID_AT]
    if type(op_id) is not int or not 0 <= op_id < U64_END or type(op[PARTITION_AT]) is not int:
        return InvalidRequest("operation id or partition is not a count")
    return None


def check_op(op: Op) -> MetastoreError | None:
    """The contents of an operation whose shape is right."""
    kind = op[KIND_AT]
    for check, value in zip(_CHECKS[kind], op[HEAD:], strict=False):  # the last may be left out
        error = check(value)
        if error is not None:
            return error
    if kind in _CONSISTENT:
        consistency_at, arg_at = _CONSISTENT[kind]
        if op[consistency_at] == AT_LEAST and op[arg_at] is None:
            return InvalidRequest("at_least needs a version")
    if kind in COMPOUND:
        return check_size(op)
    if (
        kind in MANY_KEYS
        and len({storage_key[8 : storage_key.index(0, 8)] for storage_key in keys_of(op)}) > 1
    ):
        return InvalidRequest(f"the keys of operation {kind} are of several namespaces")
    return None


def _is_filter(wanted: Any) -> bool:
    return type(wanted) is bytes and len(wanted) <= MAX_STORAGE_KEY_BYTES


def check_watch(body: Any) -> MetastoreError | None:
    """A WATCH frame: ``[watch_id, partition, start, end, after, flags, wanted]``."""
    if type(body) is not list or len(body) != 7 or type(body[1]) is not int or not _is_filter(body[6]):
        return InvalidRequest("malformed watch")
    if type(body[0]) is not int or not 0 <= body[0] < U64_END:
        return InvalidRequest("watch id is not a count")
    if any(type(end) is not bytes or len(end) > MAX_STORAGE_KEY_BYTES + 1 for end in body[2:4]):
        return InvalidRequest("an end of a watch is not bytes, or too long")
    if body[4] is not None and (type(body[4]) is not int or not 0 <= body[4] < COUNT_END):
        return InvalidRequest(f"a watch resumes after {shown(body[4], 20)}, which is not a version")
    if type(body[5]) is not int or body[5] & ~WATCH_FLAGS:
        return InvalidRequest(f"unknown flags {shown(body[5], 20)} of a watch")
    return None
