"""Errors that only HTTP knows; all others are metastore.errors. None of them travels on the wire."""

from __future__ import annotations

from metastore.errors import InvalidRequest, MetastoreError


class NoSuchPath(MetastoreError):
    """There is nothing at this path; ``/openapi.json`` and ``/docs`` list all of them."""

    code, http_status = "no_such_path", 404


class MethodNotAllowed(MetastoreError):
    """The path does not accept this method. ``detail["allow"]``: those it accepts."""

    code, http_status = "method_not_allowed", 405


class MalformedHttp(InvalidRequest):
    """What came is not well-formed HTTP; the connection is closed."""

    code = "malformed_http"


class UnsupportedMediaType(InvalidRequest):
    """The body is of another type than the operation accepts."""

    code, http_status = "unsupported_media_type", 415


class ExpectationFailed(InvalidRequest):
    """An ``Expect`` header other than ``100-continue``."""

    code, http_status = "expectation_failed", 417


class IdempotencyMismatch(MetastoreError):
    """The Idempotency-Key was used for another request on this record; nothing was done."""

    code, http_status = "idempotency_mismatch", 422
