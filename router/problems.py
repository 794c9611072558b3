"""Errors as RFC 9457 problem documents, with ``code``, ``retryable`` and ``outcome``."""

from __future__ import annotations

import math
from typing import Any

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
    return web.Response(
        status=error.http_status, body=body, headers=headers, content_type="application/problem+json"
    )
