"""Errors that only HTTP knows; all others are metastore.errors. None of them travels on the wire."""

from __future__ import annotations

from metastore.errors import InvalidRequest, MetastoreError


class NoSuchPath(MetastoreError):
    """There is nothing at this path; ``/openapi.json`` and ``/docs`` tell what there is."""

    code, http_status = "no_such_path", 404


class MethodNotAllowed(MetastoreError):
    """The path does not take this method. ``detail["allow"]``: those it takes."""

    code, http_status = "method_not_allowed", 405


class MalformedHttp(InvalidRequest):
    """What came is not well-formed HTTP; the connection is closed."""

    code = "malformed_http"


class UnsupportedMediaType(InvalidRequest):
    """The body is of another type than the operation takes."""

    code, http_status = "unsupported_media_type", 415


class ExpectationFailed(InvalidRequest):
    """An ``Expect`` header other than ``100-continue``."""

    code, http_status = "expectation_failed", 417


class IdempotencyMismatch(MetastoreError):
    """The Idempotency-Key was used for another request on this record; nothing was done."""

    code, http_status = "idempotency_mismatch", 422


class RoutingFixed(MetastoreError):
    """The routing rule of a namespace cannot be changed: it says where its records are."""

    code, http_status = "routing_fixed", 409


class TooManyNamespaces(MetastoreError):
    """The cluster has as many namespaces with a policy as it may have; nothing was done. Those without one, and what is
    in them, are not counted. ``detail["limit"]``."""

    code, http_status = "too_many_namespaces", 507


class NamespaceNotEmpty(MetastoreError):
    """The namespace holds records that another routing rule would not find. ``detail["record_key"]``: one."""

    code, http_status = "namespace_not_empty", 409
