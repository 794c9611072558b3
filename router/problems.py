"""Errors as RFC 9457 problem documents, with ``code``, ``retryable`` and ``outcome``."""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import orjson
from aiohttp import web

from metastore.admin.errors import as_callers_see
from metastore.client.results import AddResult, PutResult, TouchResult
from metastore.errors import (
    ConditionFailed,
    CorruptState,
    CrossPartition,
    DiskLow,
    Fenced,
    HistoryChanged,
    InternalError,
    MetastoreError,
    RequestIdExpired,
)
from metastore.records import Record, unpack_record
from router.errors import IdempotencyMismatch, MethodNotAllowed

TITLES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    410: "Gone",
    412: "Condition failed",
    413: "Too large",
    415: "Unsupported media type",
    417: "Expectation failed",
    422: "Idempotency key reused",
    428: "Condition required",
    500: "Internal error",
    503: "Service unavailable",
    504: "Deadline exceeded",
    507: "Insufficient storage",
}
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
PROBLEM_TYPE = "application/problem+json"


def value_json(value: bytes) -> dict[str, str]:
    """A value in JSON: text as text, other bytes as base64. Control characters but for tab and line
    ends are no text: JSON would spell each with six characters."""
    if _NOT_TEXT.search(value) is None:
        try:
            return {"value": value.decode()}
        except UnicodeDecodeError:
            pass
    return {"value_base64": base64.b64encode(value).decode()}


def item_json(key: str, record: Record, keys_only: bool = False) -> dict[str, Any]:
    """A record in a JSON answer."""
    item: dict[str, Any] = {"key": key, "version": record.version}
    if keys_only:
        return item
    item["created"] = record.created
    item["content_type"] = record.content_type
    item["ttl_ms"] = record.ttl_ms
    return item | value_json(record.value)


def result_json(key: str, result: Any) -> dict[str, Any]:
    """The result of an operation of the client, in a JSON answer."""
    if isinstance(result, Record):
        return item_json(key, result)
    if isinstance(result, PutResult):
        return {"key": key, "version": result.version, "created": result.created}
    if isinstance(result, AddResult):
        return {"key": key, "version": result.version, "count": result.value}
    if isinstance(result, TouchResult):
        return {"key": key, "version": result.version, "ttl_ms": round(result.ttl_s * 1000)}
    return {"key": key, "version": result or 0}  # of a delete; of a read that found nothing


def for_http(error: MetastoreError) -> MetastoreError:
    """The error as HTTP shows it: an error about the inside becomes the error that it means for the caller."""
    if isinstance(error, RequestIdExpired) and error.detail.get("reused"):
        return IdempotencyMismatch(
            "this Idempotency-Key was used for another request on this record; nothing was done: "
            "give every request a key of its own, and send a retry unchanged"
        )
    if isinstance(error, RequestIdExpired):
        return RequestIdExpired(
            "this request, or its Idempotency-Key, is older than the dedupe window; nothing was done now, "
            "and the outcome of its first attempt is forgotten: read the record before deciding"
        )
    return as_callers_see(error)


def retry_after_s(error: MetastoreError) -> int:
    """Whole seconds, at least one."""
    try:
        return min(3600, max(1, math.ceil(float(error.detail.get("retry_after_s", 1)))))
    except (TypeError, ValueError):
        return 1


def comes_again(error: MetastoreError) -> bool:
    """Whether the answer says when to come again."""
    return error.http_status == 503 or isinstance(error, DiskLow)


def _current(error: MetastoreError) -> Record | None:
    """The record that failed a condition, if the error has it."""
    found = error.detail.get("current")
    if isinstance(found, Record):
        return found
    packed = error.detail.get("record")
    try:
        return unpack_record(packed) if isinstance(packed, bytes) else None
    except CorruptState:
        return None


def problem_body(error: MetastoreError, key: str | None = None) -> dict[str, Any]:
    """The document for an error; ``key`` of the record that it is about."""
    error = for_http(error)
    body: dict[str, Any] = {
        "type": f"urn:metastore:error:{error.code}",
        "title": TITLES.get(error.http_status, "Error"),
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "outcome": error.outcome,
    }
    if key is not None:
        body["key"] = key
    if comes_again(error):
        body["retry_after_s"] = retry_after_s(error)
    if isinstance(error, ConditionFailed):
        body["version"] = error.detail.get("version", 0)
        record = _current(error)
        if record is not None and key is not None:
            body["version"] = record.version
            body["current"] = item_json(key, record)
        elif not body["version"]:
            body["current"] = None
    elif isinstance(error, CrossPartition):
        body["keys"] = error.detail.get("keys", [])
    elif isinstance(error, Fenced):
        body["token"] = error.detail.get("token", 0)
    elif isinstance(error, HistoryChanged):
        body["version"] = error.detail.get("version", 0)
        body["generation"] = error.detail.get("generation", 0)
    for name in ("nodes", "missing", "oldest", "cell", "allow", "record_key"):
        if name in error.detail:
            body[name] = error.detail[name]
    return body


def problem(error: MetastoreError, key: str | None = None) -> web.Response:
    """The response for an error. 503, and 507 for a full disk, always carries Retry-After, in whole seconds."""
    error = for_http(error)
    body = problem_body(error, key)
    headers = {"Cache-Control": "no-store"}
    if comes_again(error):
        headers["Retry-After"] = str(body["retry_after_s"])
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.detail["allow"])
    if isinstance(error, ConditionFailed) and body["version"]:
        headers["ETag"] = f'"{body["version"]}"'
    return web.Response(
        status=error.http_status,
        body=orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE),
        headers=headers,
        content_type=PROBLEM_TYPE,
    )


def internal() -> InternalError:
    return InternalError("the router failed; its log has the cause")
