"""Every error of the store, defined once, with its policy as class attributes.

Nobody parses messages: callers look at the class, or at ``code``, ``retryable`` and ``outcome``.
What matters most after a failed write is whether it took effect, so that is what the two base
classes say, and an ``except`` can tell: DidNotHappen (``outcome`` none: it certainly did not and will
not take effect) and MaybeHappened (``outcome`` unknown: it took effect at most once; R7).
The numeric ``status`` is the error's number on the binary wire; numbers are never reused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Outcome = Literal["none", "unknown"]


class MetastoreError(Exception):
    """Base of all errors. ``detail`` holds machine-readable facts (plain msgpack types)."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 99
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    outcome: ClassVar[Outcome] = "none"

    def __init__(self, message: str = "", **detail: Any) -> None:
        super().__init__(message or self.code)
        self.message = message or self.code
        self.detail: dict[str, Any] = detail


class DidNotHappen(MetastoreError):
    """The operation certainly had no effect and will have none: it is safe to do something else."""

    outcome = "none"


class MaybeHappened(MetastoreError):
    """The write may or may not have taken effect, or may yet, once at most (R7): read before deciding,
    or repeat it in a way that does no harm twice (a condition, the same request ids)."""

    outcome = "unknown"


class ConditionFailed(DidNotHappen):
    """The record is not in the state the condition asks for.

    ``detail["version"]`` is its current version, 0 when it is absent. ``record``: what was there, as
    the client's ``get`` gives it; None when nothing was, when it is large, and when this is the answer
    that an earlier attempt of the same call got.
    """

    code, status, http_status = "condition_failed", 2, 412
    record: Any = None


class NotLeader(DidNotHappen):
    """This replica does not lead the partition now.

    ``detail``: ``partition``, ``epoch`` (highest known), ``leader`` (node name or None),
    ``rpc`` (the leader's address or None). The operation was not carried out.
    """

    code, status, http_status, retryable = "not_leader", 3, 503, True


class Moved(DidNotHappen):
    """The node does not hold the key's partition. ``detail``: ``partition``, ``cell``, ``epoch``."""

    code, status, http_status, retryable = "moved", 4, 503, True


class OutcomeUnknown(MaybeHappened):
    """The write was proposed and then leadership or the deadline was lost: it may or may not
    take effect, once at most (R7). A retry with the same request id returns the first outcome."""

    code, status, http_status, retryable = "outcome_unknown", 5, 503, True


class Overloaded(DidNotHappen):
    """A bounded queue is full; nothing was done. ``detail["retry_after_s"]`` is a hint."""

    code, status, http_status, retryable = "overloaded", 6, 503, True


class Unavailable(DidNotHappen):
    """The partition has no leader with a quorum now; nothing was done."""

    code, status, http_status, retryable = "unavailable", 7, 503, True


class InvalidRequest(DidNotHappen):
    """The request breaks a rule or a bound; the message names value, bound and fix."""

    code, status, http_status = "invalid_request", 8, 400


class CrossPartition(InvalidRequest):
    """The keys of a transaction live in different partitions; the message names two of them."""

    code, status = "cross_partition", 20


class TooLarge(InvalidRequest):
    """A key, value, batch or frame is over its size limit."""

    code, status, http_status = "too_large", 9, 413


class RequestIdExpired(MaybeHappened):
    """The request id is older than the dedupe window (R7): it is refused, not executed now. What became of it
    earlier is forgotten, so read before deciding.

    A client that knows this to be its first attempt sends it again with ``detail["index"]`` as the last seen index.
    ``reused``: other requests of that client came after it; ``spent``: it was carried out, or refused,
    as the only request of its client.
    """

    code, status, http_status = "request_id_expired", 10, 409


class DeadlineExceeded(DidNotHappen):
    """The deadline passed before anything was proposed; nothing was done."""

    code, status, http_status, retryable = "deadline_exceeded", 11, 504, True


class TooStale(DidNotHappen):
    """This replica's copy is older than ``max_staleness``, lacks ``at_least``, or has not begun to be one (R8).

    ``detail["age_ms"]`` is its age, None when it is not known."""

    code, status, http_status, retryable = "too_stale", 12, 503, True


class ShuttingDown(DidNotHappen):
    """The node is stopping; nothing was done."""

    code, status, http_status, retryable = "shutting_down", 13, 503, True


class NotANumber(DidNotHappen):
    """``add`` met a record that is not a counter, or left the signed 64-bit range."""

    code, status, http_status = "not_a_number", 14, 409


class Fenced(DidNotHappen):
    """The write carried a fencing token below one that the partition has seen under that name.

    ``detail["token"]``: the highest seen. The holder of the lower one has been replaced."""

    code, status, http_status = "fenced", 15, 409


class FenceForgotten(Fenced):
    """As Fenced, and not certain: the partition has forgotten the name, so many were used after it, and cannot
    tell whether it saw a higher token of it. A client that still holds the lock acquires it again.

    ``detail["token"]``: the highest that was forgotten and may be of this name."""

    status = 21


class HistoryChanged(DidNotHappen):
    """A version that was given (a condition, a resume token, a lock token) is of another history of the partition than
    the one it is in now (R19): it went on without a quorum, or the cluster was filled from a snapshot. What was read
    before may be undone, so the version is not compared with any of now: read again, and go on from there.

    ``detail``: ``version`` that was given, ``generation`` that the partition is in."""

    code, status, http_status = "history_changed", 23, 409


class ConditionRequired(DidNotHappen):
    """The namespace accepts only writes that carry a condition; nothing was done."""

    code, status, http_status = "condition_required", 16, 428


class QuotaExceeded(DidNotHappen):
    """The namespace is at its quota of records or bytes; what would add to it is refused."""

    code, status, http_status = "quota_exceeded", 17, 507


class Compacted(DidNotHappen):
    """The changes asked for are older than what this replica keeps: list again, then watch from there.

    ``detail["oldest"]``: the oldest version from which a watch can resume here."""

    code, status, http_status = "compacted", 18, 410


class WrongRouting(DidNotHappen):
    """The key was placed by another routing rule than its namespace has: the sender's copy of the
    policy is old. Nothing was done."""

    code, status, http_status, retryable = "wrong_routing", 19, 503, True


class DiskLow(DidNotHappen):
    """There is too little room on the disks for what adds to them; nothing was done. Reads, deletes and
    touches go on. The message says where, how much is free, where the mark is, and what to do.

    ``detail["nodes"]``: whose disks; ``retry_after_s``: room is made by people, so not soon."""

    code, status, http_status, retryable = "disk_low", 22, 507, True


class InternalError(MaybeHappened):
    """A bug or a failed disk; the log of the node has the cause."""

    code, status = "internal", 99


class NotFound(DidNotHappen):
    """No such record. Raised only by calls that must return one."""

    code, status, http_status = "not_found", 1, 404


# --- errors that a client makes itself -------------------------------------------------


class LockLost(DidNotHappen):
    """The lease of a lock or a leadership has ended, or may have: another client may hold it now."""

    code, http_status = "lock_lost", 409


class DecodeFailed(DidNotHappen, ValueError):
    """A value is not what the namespace's codec decodes: another client wrote it. ``detail``: ``key``,
    ``content_type``."""

    code = "decode_failed"


class ClientClosed(DidNotHappen):
    """The client, or the watch, was closed; nothing was done."""

    code = "client_closed"


# --- errors that never travel to a client -------------------------------------------


class ProtocolError(DidNotHappen):
    """A peer or client sent bytes that are not the protocol. It is disconnected."""

    code = "protocol_error"


class NoCommonVersion(ProtocolError):
    """The two sides of a connection speak no version of the protocol in common. The message names the versions of both,
    and which side to upgrade first. Nothing was done."""

    code, status, http_status = "no_common_version", 24, 400


class StorageError(MaybeHappened):
    """Fail-stop (R14): a failed write or fsync, a full disk, a corrupt record."""

    code = "storage_error"


class NoRoom(StorageError):
    """The state has no room for a transaction, on the disk or in its map. Nothing was written, so, other than
    after a failed write, the same may be tried again."""

    code = "no_room"


class CorruptLog(StorageError):
    """A log block that was once durable does not check; the message names file and offset."""

    code = "corrupt_log"


class RottenEntry(CorruptLog):
    """An entry of one partition's log, read back while the node runs, is not as it was written. ``detail``: ``partition``,
    ``index``, and where it lies: ``segment`` and ``offset``."""

    code = "rotten_entry"


class CorruptState(StorageError):
    """A stored record does not match its checksum."""

    code = "corrupt_state"


class CorruptTree(CorruptState):
    """A key of the state has rotted: searches and writes since may have gone to the wrong place, so nothing in it
    can be trusted."""

    code = "corrupt_tree"


class CoordinationError(MetastoreError):
    """Base for errors of the coordination service (etcd)."""

    code = "coordination_error"
    retryable = True


class CoordinationUnavailable(CoordinationError, DidNotHappen):
    """The service did not accept the request: it certainly had no effect."""

    code = "coordination_unavailable"


class CoordinationUnknown(CoordinationError, MaybeHappened):
    """The request was sent and no answer came: read again before deciding."""

    code = "coordination_unknown"


class ConfigError(DidNotHappen):
    """A setting is wrong; the message says which, its bound, and what to change."""

    code = "config_error"


def _wire_classes() -> dict[int, type[MetastoreError]]:
    found: dict[int, type[MetastoreError]] = {}
    todo: list[type[MetastoreError]] = [MetastoreError]
    while todo:
        cls = todo.pop()
        todo.extend(cls.__subclasses__())
        if "status" in vars(cls) and cls is not MetastoreError:
            assert cls.status not in found, cls
            found[cls.status] = cls
    return found


BY_STATUS: dict[int, type[MetastoreError]] = _wire_classes()


def from_wire(status: int, message: str, detail: dict[str, Any]) -> MetastoreError:
    """The error that a result with ``status`` stands for; InternalError for a number that is not known here."""
    error = BY_STATUS.get(status, InternalError)(message)
    error.detail = dict(detail)
    return error
