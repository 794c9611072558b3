"""Checks of a client's operations before anything acts on them. Sans-I/O.

``op_shape`` and ``check_op`` are called for every operation of every request: they are written
for speed, return None when all is well and the error otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.history import VERSIONS
from metastore.keys import (
    MAX_CONTENT_TYPE_BYTES,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    is_content_type,
    is_storage_key,
)
from metastore.namespaces import MAX_TTL_MS
from metastore.wire.client_messages import (
    ADD,
    AT_LEAST,
    CLIENT_ID_BYTES,
    CREATED,
    DELETE,
    GET,
    GREATER,
    LINEARIZABLE,
    LIST,
    MAX_FENCE_NAME_BYTES,
    MAX_LIST_LIMIT,
    MAX_OPS_PER_FRAME,
    MAX_TIMEOUT_MS,
    MAX_TXN_BYTES,
    MAX_TXN_PARTS,
    ONE_REQUEST,
    PUT,
    RAISE,
    TOUCH,
    TXN,
    VALUE,
    WATCH_ANY,
    WATCH_KEYS,
)
from metastore.wire.frames import shown

#: kind -> elements without and with a fence
_LENGTHS: Final = {
    GET: (6, 6),
    PUT: (11, 12),
    DELETE: (8, 9),
    ADD: (9, 10),
    LIST: (9, 10),
    TXN: (10, 11),
    TOUCH: (5, 5),
}
_PART_LENGTHS: Final = {GET: 2, PUT: 5, DELETE: 2, ADD: 3}
_MAX_LKEY: Final = 8 + 64 + 1 + MAX_KEY_BYTES
_U64: Final = 1 << 64
_I64: Final = 1 << 63
_I63: Final = (1 << 63) - 1
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


def is_plain(op: Any) -> bool:
    """Whether ``op`` is a linearizable GET, or a PUT without fence, as nearly all are. True only for what
    ``op_shape`` and ``check_op`` let pass; they say what is wrong with others, if anything is."""
    if type(op) is not list:
        return False
    if len(op) == 11:
        op_id, kind, partition, lkey, seq, floor, stamp, condition, value, content_type, ttl_ms = op
        if not (
            kind == PUT
            and type(seq) is type(floor) is type(stamp) is int
            and 0 <= seq < ONE_REQUEST
            and 0 <= floor < _I63
            and 0 <= stamp < _I63
            and _check_condition(condition) is None
            and _check_put(value, content_type, ttl_ms) is None
        ):
            return False
    elif len(op) == 6:
        op_id, kind, partition, lkey, consistency, arg = op
        if kind != GET or consistency != LINEARIZABLE or type(consistency) is not int or arg is not None:
            return False
    else:
        return False
    if not (type(kind) is type(op_id) is type(partition) is int and 0 <= op_id < _U64 and _is_lkey(lkey)):
        return False
    if kind == GET:
        return True
    nul = lkey.find(0, 8)
    if len(lkey) - nul - 1 > MAX_KEY_BYTES or not lkey[nul:].isascii():
        return False
    namespace = lkey[8:nul]
    if namespace in _good_namespaces:
        return True
    if not is_storage_key(lkey):
        return False
    if len(_good_namespaces) < _MAX_GOOD:
        _good_namespaces.add(namespace)
    return True


def op_shape(op: Any) -> MetastoreError | None:
    """Whether ``op`` is an array of a known kind with an id and a partition."""
    if type(op) is not list or len(op) < 3:
        return InvalidRequest("an operation is not an array of at least 3 elements")
    lengths = _LENGTHS.get(op[1]) if type(op[1]) is int else None
    if lengths is None:
        return InvalidRequest(f"unknown operation {shown(op[1])}")
    if len(op) not in lengths:
        return InvalidRequest(f"operation {op[1]} has {len(op)} elements instead of {lengths[0]}")
    if type(op[0]) is not int or not 0 <= op[0] < _U64 or type(op[2]) is not int:
        return InvalidRequest("operation id or partition is not a count")
    return None


def check_op(op: list[Any]) -> MetastoreError | None:
    """The contents of an operation whose shape is right."""
    kind, lkey = op[1], op[3]
    if kind == LIST:
        return _check_list(op)
    if not _is_lkey(lkey):
        return InvalidRequest("malformed storage key")
    if kind == GET:
        return _check_consistency(op[4], op[5])
    if kind == TOUCH:
        return _check_condition(op[4])
    if not is_storage_key(lkey):
        return InvalidRequest("the storage key's namespace or key is not one that can be stored")
    error = _check_request_id(op[4], op[5], op[6])
    if error is not None:
        return error
    if kind == TXN:
        return _check_txn(op)
    condition = op[7]
    if condition is not None and (type(condition) is not int or not -1 <= condition < _I63):
        return _check_condition(condition)
    if kind == PUT:
        error = _check_put(op[8], op[9], op[10])
    elif kind == ADD:
        error = _check_delta(op[8])
    else:
        error = None
    if error is None and len(op) != _LENGTHS[kind][0]:
        return _check_fence(op[-1], takes=kind == PUT)
    return error


def _check_request_id(seq: Any, floor: Any, stamp: Any) -> MetastoreError | None:
    for value in (seq, floor, stamp):
        if type(value) is not int or not 0 <= value < _I63:
            return InvalidRequest(f"request id part {shown(value, 20)} is not a count below 2**63")
    if seq >= ONE_REQUEST:
        return InvalidRequest(
            f"request number {seq} is not within 0 and {ONE_REQUEST - 1}: number requests from 1 on; the others say that "
            "a client makes a single request"
        )
    return None


def _is_lkey(lkey: Any) -> bool:
    """``point (8), namespace, NUL, key``: neither namespace nor key empty, none too long."""
    if type(lkey) is not bytes or not 11 <= len(lkey) <= _MAX_LKEY:
        return False
    nul = lkey.find(0, 8)
    return 8 < nul <= 72 and nul < len(lkey) - 1


def _is_filter(wanted: Any) -> bool:
    return type(wanted) is bytes and len(wanted) <= _MAX_LKEY


def _check_list(op: list[Any]) -> MetastoreError | None:
    for end in (op[3], op[4]):
        if type(end) is not bytes or len(end) > _MAX_LKEY + 1:
            return InvalidRequest("an end of a list is not bytes, or too long")
    if type(op[5]) is not int or not 1 <= op[5] <= MAX_LIST_LIMIT:
        return InvalidRequest(f"limit {shown(op[5], 20)} is not within 1 and {MAX_LIST_LIMIT}")
    if type(op[6]) is not int:
        return InvalidRequest("flags is not a number")
    if len(op) == 10 and not _is_filter(op[9]):
        return InvalidRequest("what a list is to begin with is not bytes, or too long")
    return _check_consistency(op[7], op[8])


def _check_condition(condition: Any) -> MetastoreError | None:
    if condition is not None and (type(condition) is not int or not -1 <= condition < _I63):
        return InvalidRequest(f"condition {shown(condition, 20)} is not a version, 0 (absent) or -1 (exists)")
    return None


def _check_delta(delta: Any) -> MetastoreError | None:
    if type(delta) is not int or not -_I64 <= delta < _I64:
        return InvalidRequest(f"delta {shown(delta, 20)} is not a signed 64-bit number")
    return None


def _check_put(value: Any, content_type: Any, ttl_ms: Any) -> MetastoreError | None:
    if type(value) is not bytes:
        return InvalidRequest("the value is not bytes")
    if len(value) > MAX_VALUE_BYTES:
        return _too_large(value)
    if type(content_type) is not str or not is_content_type(content_type):
        return InvalidRequest(
            f"the content type is not ASCII that can be printed, of at most {MAX_CONTENT_TYPE_BYTES} bytes"
        )
    if ttl_ms is not None and (type(ttl_ms) is not int or not 0 <= ttl_ms <= MAX_TTL_MS):
        return InvalidRequest(f"ttl_ms {shown(ttl_ms, 20)} is not within 0 and {MAX_TTL_MS}")
    return None


def _check_fence(fence: Any, *, takes: bool = False) -> MetastoreError | None:
    if type(fence) is not list or len(fence) != 2 or type(fence[0]) is not str:
        return InvalidRequest("a fence is not [name, token]")
    if not fence[0] or len(fence[0].encode("utf-8", "replace")) > MAX_FENCE_NAME_BYTES:
        return InvalidRequest(f"a fence's name is not text of 1 to {MAX_FENCE_NAME_BYTES} bytes")
    if type(fence[1]) is not int or not 0 < fence[1] < VERSIONS:
        if takes and fence[1] == RAISE and type(fence[1]) is int:
            return None
        return InvalidRequest(f"fencing token {shown(fence[1], 20)} is not a version")
    return None


def _check_txn(op: list[Any]) -> MetastoreError | None:
    for compares in op[7:8]:
        if type(compares) is not list or len(compares) > MAX_TXN_PARTS:
            return InvalidRequest(f"the compares of a transaction are not a list of at most {MAX_TXN_PARTS}")
        for compare in compares:
            error = _check_compare(compare)
            if error is not None:
                return error
    for parts in op[8:10]:
        if type(parts) is not list or len(parts) > MAX_TXN_PARTS:
            return InvalidRequest(
                f"a branch of a transaction is not a list of at most {MAX_TXN_PARTS} operations"
            )
        for part in parts:
            error = _check_part(part)
            if error is not None:
                return error
    return check_size(op) or (_check_fence(op[10]) if len(op) == 11 else None)


def check_size(op: list[Any]) -> MetastoreError | None:
    """Whether a PUT or a TXN, well-formed as to the rest, is too large. Clients ask before they send one, too: what is refused
    for its size takes no room on its way."""
    if op[1] == PUT:
        return _too_large(op[8]) if len(op[8]) > MAX_VALUE_BYTES else None
    size = sum(len(c[0]) + len(c[3]) for c in op[7] if c[1] == VALUE)
    for parts in op[8:10]:
        for part in parts:
            size += len(part[1])
            if part[0] == PUT:
                if len(part[2]) > MAX_VALUE_BYTES:
                    return _too_large(part[2])
                size += len(part[2])
    if size > MAX_TXN_BYTES:
        return TooLarge(f"a transaction of {size} bytes is over the limit of {MAX_TXN_BYTES} bytes")
    return None


def _too_large(value: bytes) -> TooLarge:
    return TooLarge(f"value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES} bytes")


def _check_compare(compare: Any) -> MetastoreError | None:
    if type(compare) is not list or len(compare) != 4 or not _is_lkey(compare[0]):
        return InvalidRequest("a compare is not [storage key, target, relation, operand]")
    _, target, relation, operand = compare
    if type(target) is not int or not 0 <= target <= CREATED:
        return InvalidRequest(f"target {shown(target, 20)} of a compare is not known")
    if type(relation) is not int or not 0 <= relation <= GREATER:
        return InvalidRequest(f"relation {shown(relation, 20)} of a compare is not known")
    if target == VALUE:
        if type(operand) is not bytes or len(operand) > MAX_VALUE_BYTES:
            return InvalidRequest("a value is compared with bytes, of the size of a value at most")
    elif type(operand) is not int or not 0 <= operand < _I63:
        return InvalidRequest(f"a version is compared with {shown(operand, 20)}, which is none")
    return None


def _check_part(part: Any) -> MetastoreError | None:
    if type(part) is not list or not part or type(part[0]) is not int:
        return InvalidRequest("an operation of a transaction is not an array that begins with its kind")
    if _PART_LENGTHS.get(part[0]) != len(part) or not _is_lkey(part[1]):
        return InvalidRequest(f"operation {part[0]} of a transaction is malformed")
    if part[0] != GET and not is_storage_key(part[1]):
        return InvalidRequest("a storage key's namespace or key is not one that can be stored")
    if part[0] == PUT:
        return _check_put(part[2], part[3], part[4])
    return _check_delta(part[2]) if part[0] == ADD else None


def _check_consistency(consistency: Any, arg: Any) -> MetastoreError | None:
    if type(consistency) is not int or not 0 <= consistency <= AT_LEAST:
        return InvalidRequest(f"unknown consistency {shown(consistency, 20)}")
    if arg is not None and (type(arg) is not int or not 0 <= arg < _I63):
        return InvalidRequest(f"consistency argument {shown(arg, 20)} is not a count below 2**63")
    if consistency == AT_LEAST and arg is None:
        return InvalidRequest("at_least needs a version")
    return None


def check_watch(body: Any) -> MetastoreError | None:
    """A WATCH frame: ``[watch_id, partition, start, end, after, flags, wanted]``."""
    if type(body) is not list or len(body) != 7 or type(body[1]) is not int or not _is_filter(body[6]):
        return InvalidRequest("malformed watch")
    if type(body[0]) is not int or not 0 <= body[0] < _U64:
        return InvalidRequest("watch id is not a count")
    if any(type(end) is not bytes or len(end) > _MAX_LKEY + 1 for end in body[2:4]):
        return InvalidRequest("an end of a watch is not bytes, or too long")
    if body[4] is not None and (type(body[4]) is not int or not 0 <= body[4] < _I63):
        return InvalidRequest(f"a watch resumes after {shown(body[4], 20)}, which is no version")
    if type(body[5]) is not int or body[5] & ~WATCH_FLAGS:
        return InvalidRequest(f"unknown flags {shown(body[5], 20)} of a watch")
    return None
