"""The elements that operations and answers are made of, and the bounds of each. Pure.

A *check* looks at a value that came from outside: it returns None when the value is within the bounds, else the error that
says what the value is, what the bound is, and whose value it is. A *test* of an answer's element only returns whether it is
good. Checks and tests are called for nearly every operation: they are written for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.history import NO_TOKEN, VERSIONS
from metastore.keys import (
    MAX_CONTENT_TYPE_BYTES,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    is_content_type,
    is_storage_key,
)
from metastore.records import HEAD_BYTES

Check = Callable[[Any], MetastoreError | None]
Test = Callable[[Any], bool]

MAX_TTL_MS: Final = 10 * 365 * 86_400_000
MAX_FENCE_NAME_BYTES: Final = 256
#: a lowest open request from here on says: this client makes a single request, and another process may repeat it. No
#: request has such a number itself
ONE_REQUEST: Final = 1 << 62
#: of a put, in place of a fencing token: the record is a lock, which raises its fence (R20)
RAISE: Final = NO_TOKEN
#: what a request became is remembered at least so long (and at least of the last requests: core.dedupe)
DEDUPE_WINDOW_S: Final = 600
MAX_STORAGE_KEY_BYTES: Final = 8 + 64 + 1 + MAX_KEY_BYTES
U64_END: Final = 1 << 64
#: bytes that a row of a listing takes beside its key, when it is a version
VERSION_BYTES: Final = 8
I64_END: Final = 1 << 63
#: versions that clients give, request numbers and stamps are below it
COUNT_END: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Field:
    """One element of an operation, or of a part of a transaction.

    ``size``: about how many bytes a value takes, None = nothing to speak of. ``keys``: the storage keys in a value. ``parts``:
    whether the value is a list of operations."""

    name: str
    check: Check
    size: Callable[[Any], int] | None = None
    keys: Callable[[Any], list[bytes]] | None = None
    parts: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """One element of an answer. ``size``: how many bytes of keys and records are in it, None = none."""

    name: str
    is_good: Test
    size: Callable[[Any], int] | None = None


def shown(value: Any, limit: int = 40) -> str:
    """``value`` for an error message: short, and without walking through what a stranger nested."""
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value[:limit])[:limit]
    if value is None or kind in (bool, int, float):
        return repr(value)[:limit]
    return f"a {kind.__name__} of {len(value)}" if kind in (list, dict) else f"a {kind.__name__}"


# --- of operations ------------------------------------------------------------------------------


def whole(low: int, high: int, text: str, *, or_none: bool = False) -> Check:
    """The check of a whole number from ``low`` to ``high``, or of None too. ``text``: of the error; ``{}`` in it is the value."""

    def check(value: Any) -> MetastoreError | None:
        if (type(value) is int and low <= value <= high) or (or_none and value is None):
            return None
        return InvalidRequest(text.format(shown(value, 20)))

    return check


def raw(limit: int, text: str) -> Check:
    """The check of bytes, of at most ``limit``. ``text``: of the error."""

    def check(value: Any) -> MetastoreError | None:
        return None if type(value) is bytes and len(value) <= limit else InvalidRequest(text)

    return check


def has_key_shape(storage_key: Any) -> bool:
    """Whether it is ``point (8), namespace, NUL, key``: neither namespace nor key empty, none too long."""
    if type(storage_key) is not bytes or not 11 <= len(storage_key) <= MAX_STORAGE_KEY_BYTES:
        return False
    nul = storage_key.find(0, 8)
    return 8 < nul <= 72 and nul < len(storage_key) - 1


def check_storage_key(storage_key: Any) -> MetastoreError | None:
    """Of a key that is looked for: it has the form of a storage key."""
    return None if has_key_shape(storage_key) else InvalidRequest("malformed storage key")


def check_stored(storage_key: Any) -> MetastoreError | None:
    """Of a key that is written: its namespace and key can be stored."""
    if not has_key_shape(storage_key):
        return InvalidRequest("malformed storage key")
    if not is_storage_key(storage_key):
        return InvalidRequest("the storage key's namespace or key is not one that can be stored")
    return None


_check_count = whole(0, COUNT_END - 1, "request id part {} is not a count below 2**63")
check_condition = whole(
    -1, COUNT_END - 1, "condition {} is not a version, 0 (absent) or -1 (exists)", or_none=True
)
check_ttl_ms = whole(0, MAX_TTL_MS, f"ttl_ms {{}} is not within 0 and {MAX_TTL_MS}", or_none=True)
check_delta = whole(-I64_END, I64_END - 1, "delta {} is not a signed 64-bit number")


def check_seq(seq: Any) -> MetastoreError | None:
    """Of the number of a request (R7)."""
    if type(seq) is int and 0 <= seq < ONE_REQUEST:
        return None
    return _check_count(seq) or InvalidRequest(
        f"request number {seq} is not within 0 and {ONE_REQUEST - 1}: number requests from 1 on; the others say that "
        "a client makes a single request"
    )


def check_value(value: Any) -> MetastoreError | None:
    if type(value) is not bytes:
        return InvalidRequest("the value is not bytes")
    return None if len(value) <= MAX_VALUE_BYTES else too_large(value)


def too_large(value: bytes) -> TooLarge:
    return TooLarge(f"value of {len(value)} bytes is over the limit of {MAX_VALUE_BYTES} bytes")


def check_content_type(content_type: Any) -> MetastoreError | None:
    if type(content_type) is str and is_content_type(content_type):
        return None
    return InvalidRequest(
        f"the content type is not ASCII that can be printed, of at most {MAX_CONTENT_TYPE_BYTES} bytes"
    )


def fence(*, raises: bool) -> Check:
    """The check of ``[name, token]``. ``raises``: the token may be RAISE."""

    def check(fence: Any) -> MetastoreError | None:
        if type(fence) is not list or len(fence) != 2 or type(fence[0]) is not str:
            return InvalidRequest("a fence is not [name, token]")
        name, token = fence
        if not name or len(name.encode("utf-8", "replace")) > MAX_FENCE_NAME_BYTES:
            return InvalidRequest(f"a fence's name is not text of 1 to {MAX_FENCE_NAME_BYTES} bytes")
        if type(token) is not int or not 0 < token < VERSIONS:
            if raises and token == RAISE and type(token) is int:
                return None
            return InvalidRequest(f"fencing token {shown(token, 20)} is not a version")
        return None

    return check


KEY: Final = Field("key", check_storage_key, keys=lambda storage_key: [storage_key])
STORED_KEY: Final = Field("key", check_stored, keys=lambda storage_key: [storage_key])
SEQ: Final = Field("seq", check_seq)
LOWEST_OPEN: Final = Field("lowest_open", _check_count)
LAST_SEEN: Final = Field("last_seen", _check_count)
CONDITION: Final = Field("condition", check_condition)
VALUE_FIELD: Final = Field("value", check_value, size=len)
CONTENT_TYPE: Final = Field("content_type", check_content_type)
TTL_MS: Final = Field("ttl_ms", check_ttl_ms)
DELTA: Final = Field("delta", check_delta)
FENCE: Final = Field("fence", fence(raises=False))
FENCE_OR_RAISE: Final = Field("fence", fence(raises=True))


# --- of answers -----------------------------------------------------------------------------------


def is_count(value: Any) -> TypeGuard[int]:
    """Whether it can be a version, an index or an age that a server tells."""
    return type(value) is int and 0 <= value < VERSIONS


def is_age(value: Any) -> bool:
    return value is None or is_count(value)


def is_flag(value: Any) -> bool:
    return type(value) is bool


def is_i64(value: Any) -> bool:
    return type(value) is int and -I64_END <= value < I64_END


def is_record(value: Any) -> bool:
    """Whether it has the size of one. Its checksum is for who reads the value (``records.unpack_record``)."""
    return type(value) is bytes and len(value) >= HEAD_BYTES


def is_list(value: Any) -> bool:
    return type(value) is list


def parts_told_size(parts: list[list[Any]]) -> int:
    """Of the records that a transaction has read."""
    return sum(len(part[1]) for part in parts if len(part) > 1 and type(part[1]) is bytes)


def is_renamed(parts: Any) -> bool:
    """What a transaction of a delete and a put is answered: ``[[0, version], [0, version, created]]``."""
    if type(parts) is not list or [len(part) if type(part) is list else 0 for part in parts] != [2, 3]:
        return False
    (deleted, gone), (put, version, created) = parts
    return deleted == put == 0 and is_count(gone) and is_count(version) and type(created) is bool


def rows_size(rows: list[list[Any]]) -> int:
    """Of a listing's rows: keys, and records or versions."""
    return sum(len(key) + (len(row) if type(row) is bytes else VERSION_BYTES) for key, row in rows)


VERSION_TOLD: Final = Told("version", is_count)
INDEX_TOLD: Final = Told("index", is_count)
AGE_TOLD: Final = Told("age_ms", is_age)
RECORD_TOLD: Final = Told("record", is_record, size=len)
