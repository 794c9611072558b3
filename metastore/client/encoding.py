"""Encoding of operations: from a caller's arguments to the wire's elements, and results back. Pure."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from metastore.client.codecs import Codec, decoded
from metastore.client.results import (
    Add,
    AddResult,
    Compare,
    Consistency,
    Get,
    Op,
    OpResult,
    Put,
    PutResult,
)
from metastore.elements import MAX_TTL_MS
from metastore.errors import InvalidRequest
from metastore.history import Version
from metastore.operations import (
    ABSENT,
    ADD,
    AT_LEAST,
    CREATED,
    DELETE,
    EQUAL,
    EXISTS,
    GET,
    GREATER,
    LESS,
    LINEARIZABLE,
    LIST,
    MAX_TXN_PARTS,
    NOT_EQUAL,
    NOT_FOUND,
    PUT,
    STALE,
    TOUCH,
    VALUE,
    VERSION,
)
from metastore.operations import Op as WireOp
from metastore.records import unpack_record

_TARGETS: Final = {"version": VERSION, "created": CREATED, "value": VALUE}
_RELATIONS: Final = {"==": EQUAL, "!=": NOT_EQUAL, "<": LESS, ">": GREATER}
T = TypeVar("T")


def condition_of(version: Version | None, absent: bool, exists: bool) -> int | None:
    """The wire's condition. Raises InvalidRequest when more than one is given."""
    if (version is not None) + absent + exists > 1:
        raise InvalidRequest("give at most one of version, absent and exists")
    return ABSENT if absent else EXISTS if exists else version


def consistency_of(
    consistency: Consistency, max_staleness_ms: int | None, at_least: int | None
) -> tuple[int, int | None]:
    """The wire's consistency and its argument. Raises InvalidRequest."""
    if max_staleness_ms is not None and consistency != "stale":
        raise InvalidRequest("max_staleness needs consistency='stale'")
    if consistency == "stale":
        return STALE, max_staleness_ms
    if consistency == "at_least" or at_least is not None:
        if at_least is None:
            raise InvalidRequest("consistency='at_least' needs at_least=version")
        return AT_LEAST, at_least
    if consistency != "linearizable":
        raise InvalidRequest(f"consistency {consistency!r:.40}: use linearizable, stale or at_least")
    return LINEARIZABLE, None


def ttl_ms_of(ttl_s: float | None) -> int | None:
    """The wire's TTL. Raises InvalidRequest."""
    if ttl_s is None:
        return None
    if not isinstance(ttl_s, int | float) or not math.isfinite(ttl_s) or not 0 <= ttl_s * 1000 <= MAX_TTL_MS:
        raise InvalidRequest(f"ttl_s = {ttl_s!r:.40} is not within 0 and {MAX_TTL_MS // 1000} seconds")
    return max(1, round(ttl_s * 1000)) if ttl_s else 0


def encode_cursor(start: bytes) -> str:
    """A cursor that says: go on from here."""
    return base64.urlsafe_b64encode(start).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Raises InvalidRequest."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        if len(raw) < 8 or encode_cursor(raw) != cursor:
            raise ValueError
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"cursor {cursor!r:.80} was not made by this store; pass the cursor of the page before"
        ) from None
    return raw


def check_txn(compare: Sequence[Compare[T]], then: Sequence[Op[T]], otherwise: Sequence[Op[T]]) -> list[str]:
    """The keys of a transaction, in order of mention. Raises InvalidRequest."""
    if len(compare) + len(then) + len(otherwise) == 0:
        raise InvalidRequest("the transaction has no compares and no operations; give at least one")
    if max(len(compare), len(then), len(otherwise)) > MAX_TXN_PARTS:
        raise InvalidRequest(
            f"the transaction has {len(compare)} compares, {len(then)} and {len(otherwise)} operations; the limit of each is {MAX_TXN_PARTS}"
        )
    return [c.key for c in compare] + [op.key for op in (*then, *otherwise)]


def encode_compare(storage_key: bytes, compare: Compare[T], codec: Codec[T]) -> list[Any]:
    """A compare on the wire. Raises InvalidRequest, and what the codec raises."""
    target = _choice("what", compare.what, _TARGETS)
    operand: Any = compare.operand
    if target == VALUE:
        operand = codec.encode(operand)
    return [storage_key, target, _choice("relation", compare.relation, _RELATIONS), operand]


def _choice(name: str, given: str, known: dict[str, int]) -> int:
    found = known.get(given)
    if found is None:
        raise InvalidRequest(f"{name} = {given!r:.40} in a compare: use {', '.join(known)}")
    return found


def encode_part(storage_key: bytes, op: Op[T], codec: Codec[T]) -> list[Any]:
    """An operation of a transaction on the wire. Raises InvalidRequest, and what the codec raises."""
    if isinstance(op, Get):
        return [GET, storage_key]
    if isinstance(op, Add):
        return [ADD, storage_key, op.delta]
    if op.version is not None:
        raise InvalidRequest(
            f"{op.key!r:.200}: an operation of a transaction takes no condition; add a Compare instead"
        )
    if isinstance(op, Put):
        return [
            PUT,
            storage_key,
            codec.encode(op.value),
            op.content_type or codec.content_type,
            ttl_ms_of(op.ttl_s),
        ]
    return [DELETE, storage_key]


def part_result(op: Op[T], part: list[Any], codec: Codec[T]) -> OpResult[T]:
    """The result of an operation of a transaction. Raises DecodeFailed."""
    if isinstance(op, Get):
        return None if part[0] == NOT_FOUND else decoded(codec, op.key, unpack_record(part[1]))
    if isinstance(op, Put):
        return PutResult(part[1], bool(part[2]))
    if isinstance(op, Add):
        return AddResult(part[2], part[1])
    return int(part[1])


# --- operations: id, partition and request id are set on the way -----------------------------------


def get_op(storage_key: bytes, consistency: int, arg: int | None) -> WireOp:
    return [0, GET, 0, storage_key, consistency, arg]


def touch_op(storage_key: bytes, condition: int | None) -> WireOp:
    return [0, TOUCH, 0, storage_key, condition]


def list_op(
    start: bytes, end: bytes, limit: int, flags: int, consistency: int, arg: int | None, wanted: bytes
) -> WireOp:
    op = [0, LIST, 0, start, end, limit, flags, consistency, arg]
    return [*op, wanted] if wanted else op


def write_op(kind: int, storage_key: bytes, elements: Sequence[Any], fence: tuple[str, int] | None) -> WireOp:
    """``elements``: those behind the request id, in the order of the description."""
    op = [0, kind, 0, storage_key, 0, 0, 0, *elements]
    return op if fence is None else [*op, list(fence)]
