"""Checks of what a server answers, before anything acts on it: ``op_checks`` the other way round. Sans-I/O.

The forms are those that ``client_messages`` describes. A server that answers otherwise is broken, of another
version, or not one: nothing it says is believed, and whoever asked is told so by an error with an outcome. Each
check returns "" when all is well, else what is wrong; ``check_answer`` is called for every answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeGuard

from metastore.history import COUNT_BITS, MAX_GENERATIONS
from metastore.records import HEAD_BYTES, is_sound
from metastore.wire.client_messages import (
    ADD,
    DELETE,
    EXPIRE,
    GET,
    KEYS_ONLY,
    LIST,
    NOT_FOUND,
    OK,
    PUT,
    TOUCH,
    TXN,
    WATCH_KEYS,
)
from metastore.wire.frames import shown

#: versions, indexes and ages are below it (metastore.history)
_END: Final = MAX_GENERATIONS << COUNT_BITS
_I63: Final = 1 << 63
MAX_MESSAGE: Final = 4000
MAX_HELLO_ELEMENTS: Final = 16


def is_count(value: Any) -> TypeGuard[int]:
    """Whether it can be a version, an index or an age."""
    return type(value) is int and 0 <= value < _END


def _is_age(value: Any) -> bool:
    return value is None or is_count(value)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_name(value: Any) -> bool:
    return value is None or type(value) is str


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_i64(value: Any) -> bool:
    return type(value) is int and -_I63 <= value < _I63


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _are_texts(value: Any) -> bool:
    return type(value) is list and all(map(_is_text, value))


#: what the detail of an error may hold, whichever error it is
DETAIL: Final[dict[str, Callable[[Any], bool]]] = {
    "age_ms": _is_age,
    "cell": _is_name,
    "epoch": lambda value: type(value) is int and 0 <= value < _I63,
    "family": lambda value: type(value) is list,
    "final": _is_flag,
    "generation": is_count,
    "index": is_count,
    "keys": _are_texts,
    "leader": _is_name,
    "missing": _are_texts,
    "nodes": _are_texts,
    "oldest": is_count,
    "partition": _is_i64,
    "record": lambda value: type(value) is bytes,
    "retry_after_s": _is_seconds,
    "reused": _is_flag,
    "rpc": _is_name,
    "spent": _is_flag,
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


def check_answer(op: list[Any], result: list[Any]) -> str:
    """Whether ``result``, an array with a number first, answers ``op``."""
    if len(result) < 3 or type(result[1]) is not int:
        return f"an answer of {len(result)} elements without a status"
    status = result[1]
    if status == OK:
        if _is_plain(op[1], result):  # as nearly all are
            return ""
        return _OK[op[1]](op, result)
    if status == NOT_FOUND:
        good = op[1] in (GET, TOUCH) and len(result) == 3 and _is_age(result[2])
        return "" if good else "not found, where nothing is looked for, or without an age"
    if len(result) != 4:
        return f"an answer of status {shown(status)} with {len(result)} elements"
    return check_error(status, result[2], result[3])


def _is_plain(kind: int, result: list[Any]) -> bool:
    """A GET's record, or a PUT done, in one look. True only for what ``_get`` and ``_put`` let pass."""
    if kind == GET and len(result) == 4:
        _, _, record, age = result
        return type(record) is bytes and len(record) >= HEAD_BYTES and type(age) is int and 0 <= age < _END
    if kind == PUT and len(result) == 5:
        _, _, version, index, created = result
        counts = type(version) is type(index) is int and 0 <= version < _END and 0 <= index < _END
        return counts and type(created) is bool
    return False


def _get(op: list[Any], result: list[Any]) -> str:
    if len(result) == 4 and _is_record(result[2]) and _is_age(result[3]):
        return ""
    return "a read's answer is not [id, 0, record, age]"


def _is_record(value: Any) -> bool:
    """Whether it has the size of one. Its checksum is for who reads the value (``records.unpack_record``)."""
    return type(value) is bytes and len(value) >= HEAD_BYTES


def _is_written(result: list[Any], length: int) -> bool:
    return len(result) == length and is_count(result[2]) and is_count(result[3])


def _put(op: list[Any], result: list[Any]) -> str:
    good = _is_written(result, 5) and type(result[4]) is bool
    return "" if good else "a put's answer is not [id, 0, version, index, created]"


def _delete(op: list[Any], result: list[Any]) -> str:
    return "" if _is_written(result, 4) else "a delete's answer is not [id, 0, version, index]"


def _add(op: list[Any], result: list[Any]) -> str:
    good = _is_written(result, 5) and _is_i64(result[4])
    return "" if good else "an addition's answer is not [id, 0, version, index, value]"


def _touch(op: list[Any], result: list[Any]) -> str:
    good = _is_written(result, 5) and is_count(result[4])
    return "" if good else "a touch's answer is not [id, 0, version, 0, ttl]"


def _list(op: list[Any], result: list[Any]) -> str:
    if len(result) != 6 or type(result[2]) is not list or not (_is_age(result[4]) and is_count(result[5])):
        return "a listing's answer is not [id, 0, rows, next, age, version]"
    start, end, limit, rows = op[3], op[4], op[5], result[2]
    if len(rows) > limit:
        return f"{len(rows)} rows where {limit} were asked for"
    is_good = is_count if op[6] & KEYS_ONLY else _is_record
    last = b""
    for row in rows:
        if type(row) is not list or len(row) != 2 or type(row[0]) is not bytes or not is_good(row[1]):
            return "a row of a listing is not [key, record or version]"
        if not last < row[0] or row[0] < start or (end and row[0] >= end):
            return "the rows of a listing are not in order, or not in the range that was asked for"
        last = row[0]
    following = result[3]
    if following is not None and not (type(following) is bytes and following > max(last, start)):
        return "a listing does not go on behind its last row"
    return ""


def _txn(op: list[Any], result: list[Any]) -> str:
    if len(result) != 5 or type(result[2]) is not bool or not is_count(result[3]):
        return "a transaction's answer is not [id, 0, succeeded, index, parts]"
    asked, parts = op[8 if result[2] else 9], result[4]
    if type(parts) is not list or len(parts) != len(asked):
        return f"a transaction's answer has other parts than the {len(asked)} that were asked for"
    for wanted, part in zip(asked, parts, strict=True):
        if type(part) is not list or not _is_part(wanted[0], part):
            return f"the answer to operation {wanted[0]} of a transaction is malformed"
    return ""


def _is_part(kind: int, part: list[Any]) -> bool:
    if kind == GET and part == [NOT_FOUND] and type(part[0]) is int:
        return True
    if len(part) < 2 or type(part[0]) is not int or part[0] != OK:
        return False
    if kind == GET:
        return len(part) == 2 and type(part[1]) is bytes and is_sound(part[1])
    if not is_count(part[1]) or len(part) != (2 if kind == DELETE else 3):
        return False
    return kind == DELETE or (_is_i64(part[2]) if kind == ADD else type(part[2]) is bool)


_OK: Final = {GET: _get, PUT: _put, DELETE: _delete, ADD: _add, LIST: _list, TXN: _txn, TOUCH: _touch}


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
    return "" if is_count(body[1]) else f"a watch is told of version {shown(body[1])}, which is none"


def check_changes(watch: list[Any], version: int, events: list[Any]) -> str:
    """The events of a frame for ``watch``, the body of its WATCH frame without the id."""
    _, start, end, _, flags, wanted = watch
    last = 0
    for event in events:
        if type(event) is not list or len(event) != 4 or type(event[1]) is not bytes:
            return "an event is not [kind, key, version, record]"
        kind, lkey, at, record = event
        if type(kind) is not int or kind not in (PUT, DELETE, EXPIRE):
            return f"an event of kind {shown(kind)}"
        if not start <= lkey < end or not lkey.startswith(wanted, 8):
            return "an event of a key that is not watched"
        if type(at) is not int or not last < at <= version:
            return f"an event at version {shown(at)}, told up to {version}"
        last = at
        if kind != PUT or flags & WATCH_KEYS:
            if record is not None:
                return "an event with a record where there is to be none"
        elif type(record) is not bytes or not is_sound(record):
            return "an event whose record is not sound"
    return ""
