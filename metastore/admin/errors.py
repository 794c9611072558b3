"""Errors of changing records of the control plane, and how callers see those of the control plane itself."""

from __future__ import annotations

from metastore.errors import (
    CoordinationUnavailable,
    CoordinationUnknown,
    MetastoreError,
    OutcomeUnknown,
    Unavailable,
)


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


def as_callers_see(error: MetastoreError) -> MetastoreError:
    """An error of the control plane as what it means to who asked for a change; any other error as it is."""
    if isinstance(error, CoordinationUnavailable):
        return Unavailable(f"the control plane does not answer; nothing was changed: {error.message}")
    if isinstance(error, CoordinationUnknown):
        return OutcomeUnknown(f"the control plane did not answer in time: {error.message}")
    return error
