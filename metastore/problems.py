"""Errors over HTTP as RFC 9457 problem documents, with ``code``, ``retryable`` and ``outcome``."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from metastore.errors import ConditionFailed, MetastoreError

TITLES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    412: "Condition failed",
    413: "Too large",
    500: "Internal error",
    503: "Service unavailable",
    504: "Deadline exceeded",
}
#: of errors that HTTP itself brings, before any operation is known
CODES: Final = {
    400: "malformed_request",
    404: "no_such_path",
    405: "method_not_allowed",
    413: "too_large",
    417: "expectation_failed",
    500: "internal",
}
MEDIA_TYPE: Final = "application/problem+json"


def problem_body(error: MetastoreError) -> dict[str, Any]:
    """The document for an error."""
    body: dict[str, Any] = {
        "type": f"urn:metastore:error:{error.code}",
        "title": TITLES.get(error.http_status, "Error"),
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "outcome": error.outcome,
    }
    if isinstance(error, ConditionFailed):
        body["version"] = error.detail.get("version", 0)
    return body


def problem(error: MetastoreError, head: bool = False) -> web.Response:
    """The response for an error. 503 always carries Retry-After, in whole seconds."""
    headers = {}
    if error.http_status == 503:
        headers["Retry-After"] = str(max(1, math.ceil(float(error.detail.get("retry_after_s", 1)))))
    if isinstance(error, ConditionFailed) and error.detail.get("version"):
        headers["ETag"] = f'"{error.detail["version"]}"'
    body = b"" if head else orjson.dumps(problem_body(error))
    return web.Response(status=error.http_status, body=body, headers=headers, content_type=MEDIA_TYPE)


def http_problem(status: int, detail: str) -> bytes:
    """The document for an error of HTTP itself: nothing was done, and a retry of the same request fails again."""
    code = CODES.get(status, f"http_{status}")
    title = TITLES.get(status)
    if title is None:
        title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    body = {
        "type": f"urn:metastore:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": False,
        "outcome": "none",
    }
    return orjson.dumps(body)
