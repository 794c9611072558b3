"""Checks of what a server answers, before anything acts on it: ``op_checks`` the other way round. Sans-I/O.

The forms of answers are those of ``metastore.operations``. A server that answers otherwise is broken, of another
version, or not one: nothing it says is believed, and the caller gets an error with an outcome. Each
check returns "" when all is well, else what is wrong; ``check_answer`` is called for every answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from metastore.elements import I64_END, RECORD_TOLD, is_age, is_count, is_flag, is_i64, is_record, shown
from metastore.history import VERSIONS
from metastore.operations import (
    DELETE,
    EXPIRE,
    FLAGS_AT,
    GET,
    KEYS_ONLY,
    KIND_AT,
    LIST,
    NOT_FOUND,
    OK,
    OPERATIONS,
    OTHERWISE_AT,
    PART_RESULTS,
    PUT,
    RESULT_HEAD,
    START_AT,
    STATUS_AT,
    THEN_AT,
    TXN,
    Op,
)
from metastore.records import HEAD_BYTES, is_sound
from metastore.wire.client_messages import WATCH_KEYS

MAX_MESSAGE: Final = 4000
MAX_HELLO_ELEMENTS: Final = 16


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_name(value: Any) -> bool:
    return value is None or type(value) is str


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_texts(value: Any) -> bool:
    return type(value) is list and all(map(_is_text, value))


#: what the detail of an error may hold, whichever error it is
DETAIL: Final[dict[str, Callable[[Any], bool]]] = {
    "age_ms": is_age,
    "cell": _is_name,
    "epoch": lambda value: type(value) is int and 0 <= value < I64_END,
    "family": lambda value: type(value) is list,
    "final": is_flag,
    "generation": is_count,
    "index": is_count,
    "keys": _are_texts,
    "leader": _is_name,
    "missing": _are_texts,
    "nodes": _are_texts,
    "oldest": is_count,
    "partition": is_i64,
    "record": lambda value: type(value) is bytes,
    "retry_after_s": _is_seconds,
    "reused": is_flag,
    "rpc": _is_name,
    "spent": is_flag,
    "token": is_count,
    "version": is_count,
}


def check_error(status: Any, message: Any, detail: Any) -> str:
    """The three parts of an error, as they stand in results, in ERROR and in WATCH_END frames."""
    if type(status) is not int or not 0 < status < 1 << 16 or type(message) is not str:
        return f"an error of status {shown(status)} without a text"
    if type(detail) is not dict:
        return f"the detail of error {status} is {shown(detail)}, not a map"
    for name, value in detail.items():
        good = DETAIL.get(name)
        if good is not None and not good(value):
            return f"in the detail of error {status}, {name} is {shown(value)}"
    return ""


def described(detail: dict[Any, Any]) -> dict[str, Any]:
    """Of the detail of an error, what is described here: the rest is of another version, and passed over."""
    return {name: value for name, value in detail.items() if name in DETAIL}


def check_answer(op: Op, result: list[Any]) -> str:
    """Whether ``result``, an array with a number first, answers ``op``."""
    if len(result) < 3 or type(result[STATUS_AT]) is not int:
        return f"an answer of {len(result)} elements without a status"
    status, kind = result[STATUS_AT], op[KIND_AT]
    if status == OK:
        return "" if _is_simple(kind, result) else _check_good(op, result)  # plain, as nearly all are
    if status == NOT_FOUND:
        good = OPERATIONS[kind].misses and len(result) == 3 and is_age(result[-1])
        return "" if good else "not found, where nothing is looked for, or without an age"
    if len(result) != 4:
        return f"an answer of status {shown(status)} with {len(result)} elements"
    return check_error(status, *result[RESULT_HEAD:])


def _is_simple(kind: int, result: list[Any]) -> bool:
    """A GET's record, or a PUT done, in one look. True only for what ``_check_good`` lets pass."""
    if kind == GET and len(result) == 4:
        _, _, record, age = result
        return (
            type(record) is bytes and len(record) >= HEAD_BYTES and type(age) is int and 0 <= age < VERSIONS
        )
    if kind == PUT and len(result) == 5:
        _, _, version, index, created = result
        counts = type(version) is type(index) is int and 0 <= version < VERSIONS and 0 <= index < VERSIONS
        return counts and type(created) is bool
    return False


def _check_good(op: Op, result: list[Any]) -> str:
    """An answer that begins with id and OK: each element by itself, and what some owe to the operation."""
    operation = OPERATIONS[op[KIND_AT]]
    told, values = operation.result, result[RESULT_HEAD:]
    if len(values) != len(told) or not all(t.is_good(v) for t, v in zip(told, values, strict=True)):
        return f"the answer to a {operation.name} is not [id, 0, {', '.join(t.name for t in told)}]"
    owed = _OWED.get(operation.kind)
    return "" if owed is None else owed(op, values)


def _list(op: Op, values: list[Any]) -> str:
    start, end, limit, flags = op[START_AT : FLAGS_AT + 1]
    rows, following, *_ = values
    if len(rows) > limit:
        return f"{len(rows)} rows where {limit} were asked for"
    is_good = is_count if flags & KEYS_ONLY else is_record
    last = b""
    for row in rows:
        if type(row) is not list or len(row) != 2 or type(row[0]) is not bytes or not is_good(row[1]):
            return "a row of a listing is not [key, record or version]"
        if not last < row[0] or row[0] < start or (end and row[0] >= end):
            return "the rows of a listing are not in order, or not in the range that was asked for"
        last = row[0]
    if following is not None and not following > max(last, start):
        return "a listing does not continue after its last row"
    return ""


def _txn(op: Op, values: list[Any]) -> str:
    succeeded, _, parts = values
    asked = op[THEN_AT if succeeded else OTHERWISE_AT]
    if len(parts) != len(asked):
        return f"a transaction's answer has other parts than the {len(asked)} that were asked for"
    for (kind, *_), part in zip(asked, parts, strict=True):
        if type(part) is not list or not _is_part(kind, part):
            return f"the answer to operation {kind} of a transaction is malformed"
    return ""


def _is_part(kind: int, part: list[Any]) -> bool:
    """Whether ``part`` answers an operation of that kind within a transaction."""
    if not part or type(part[0]) is not int:
        return False
    if part[0] == NOT_FOUND:
        return OPERATIONS[kind].misses and len(part) == 1
    told = PART_RESULTS[kind]
    if part[0] != OK or len(part) != 1 + len(told):
        return False
    for element, value in zip(told, part[1:], strict=True):
        if not element.is_good(value) or (element is RECORD_TOLD and not is_sound(value)):
            return False
    return True


_OWED: Final = {LIST: _list, TXN: _txn}


# --- frames beside answers --------------------------------------------------------------------------


def check_hello(body: Any) -> str:
    """``[cluster, node, cell, store_id, incarnation]``; what follows that is for ``versions``, or of a later one."""
    good = type(body) is list and 5 <= len(body) <= MAX_HELLO_ELEMENTS and _are_texts(body[:5])
    return "" if good else "a HELLO_OK does not begin with five texts"


def check_told(body: Any) -> str:
    """A TOPOLOGY or STATUS frame: ``[map]``, or ``[None]``; what is in the map its reader looks at."""
    good = type(body) is list and len(body) == 1 and (body[0] is None or type(body[0]) is dict)
    return "" if good else "a map was asked for, and something else came"


def check_end(body: Any) -> str:
    """A WATCH_END frame: ``[watch_id, status, message, detail]``."""
    if type(body) is not list or len(body) != 4 or type(body[0]) is not int:
        return "a WATCH_END is not [id, status, message, detail]"
    return check_error(*body[1:])


def check_refusal(body: Any) -> str:
    """An ERROR frame: ``[status, message, detail]``."""
    if type(body) is not list or len(body) != 3:
        return "an ERROR is not [status, message, detail]"
    return check_error(*body)


def check_events(body: Any) -> str:
    """Whether an EVENTS frame is ``[watch_id, version, [event, …]]``; not the events, which only make sense to who
    knows the watch (``check_changes``)."""
    if type(body) is not list or len(body) != 3 or type(body[0]) is not int or type(body[2]) is not list:
        return "an EVENTS is not [id, version, events]"
    return (
        "" if is_count(body[1]) else f"a watch message has version {shown(body[1])}, which is not a version"
    )


def check_changes(watch: list[Any], version: int, events: list[Any]) -> str:
    """The events of a frame for ``watch``, the body of its WATCH frame without the id."""
    _, start, end, _, flags, wanted = watch
    last = 0
    for event in events:
        if type(event) is not list or len(event) != 4 or type(event[1]) is not bytes:
            return "an event is not [kind, key, version, record]"
        kind, storage_key, at, record = event
        if type(kind) is not int or kind not in (PUT, DELETE, EXPIRE):
            return f"an event of kind {shown(kind)}"
        if not start <= storage_key < end or not storage_key.startswith(wanted, 8):
            return "an event of a key that is not watched"
        if type(at) is not int or not last < at <= version:
            return f"an event at version {shown(at)}in a message up to {version}"
        last = at
        if kind != PUT or flags & WATCH_KEYS:
            if record is not None:
                return "an event with a record where there is to be none"
        elif type(record) is not bytes or not is_sound(record):
            return "an event whose record is not sound"
    return ""
