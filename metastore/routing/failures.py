"""How an attempt fails without an answer, and errors as servers tell them. No I/O."""

from __future__ import annotations

from typing import Any

from metastore.errors import MetastoreError, from_wire
from metastore.wire.answer_checks import MAX_MESSAGE, described


class ConnectionLost(MetastoreError):
    """The connection ended, or never began, before the answer came. ``detail["sent"]`` says
    whether the operation may have reached the node; ``refused`` whether nobody listened. Stays
    inside the client, as does AttemptTimeout."""

    code = "connection_lost"
    retryable = True


class Malformed(ConnectionLost):
    """The connection was given up because what came over it is not the protocol: by a server that is broken, is of
    another version, or is none. An operation may have been carried out all the same."""

    code = "malformed_answer"


class AttemptTimeout(MetastoreError):
    """The node holds the connection open and does not answer."""

    code = "attempt_timeout"
    retryable = True


def error_told(status: int, message: str, detail: dict[Any, Any]) -> MetastoreError:
    """The error that a server told, by parts that were checked."""
    return from_wire(status, message[:MAX_MESSAGE], described(detail))
