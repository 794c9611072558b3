"""Reads: local ones from any replica, linearizable ones of a leader that holds enough grants (R8)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import xxhash

from metastore.clock import now_ns
from metastore.core.replica import ACTIVE
from metastore.core.transactions import read_txn
from metastore.errors import CorruptState, MetastoreError, Overloaded, TooStale
from metastore.history import history_changed
from metastore.operations import (
    AT_LEAST,
    COMPOUND,
    CONSISTENCY_AT,
    FLAGS_AT,
    GET,
    ID_AT,
    KEY_AT,
    KEYS_ONLY,
    KIND_AT,
    NOT_FOUND,
    OK,
    START_AT,
    WANTED_AT,
    Op,
)
from metastore.partition.confirmation import Confirmation
from metastore.partition.ports import ReplySink
from metastore.partition.refusals import Refusals
from metastore.partition.state import PartitionState
from metastore.partition.transition import Transition
from metastore.partition.waiters import error_result
from metastore.records import record_versions

MAX_LIST_BYTES: Final = 2 << 20
MAX_LIST_LOOKS: Final = 20_000
DIGEST_SLICE: Final = 500
#: of one tick; what comes beyond it is refused. More than clients have of a tick in all (MAX_CLIENT_NS): other frames wait for
#: the next one, and it is one frame's many listings that are refused
MAX_LISTING_NS: Final = 60_000_000


class Reads:
    """See the module."""

    def __init__(
        self, state: PartitionState, refusals: Refusals, confirmation: Confirmation, transition: Transition
    ) -> None:
        self.state, self.refusals = state, refusals
        self.confirmation, self.transition = confirmation, transition
        self.replica, self.machine = state.replica, state.machine

    def linearizable(self, connection: ReplySink, client: bytes, op: Op, deadline: int) -> None:
        """One that sees every write acknowledged before it came."""
        replica = self.replica
        if replica.role == ACTIVE:
            result, size = self.read(connection, op, 0)
            if replica.can_read(now_ns()):  # R8: after the data was read
                connection.answer(result, size)
                return
            self.confirmation.add(connection, client, op, deadline)
        else:
            self.transition.reject(connection, client, op, deadline)

    def local(self, connection: ReplySink, op: Op) -> None:
        """A stale or at-least read, from any replica."""
        state = self.state
        at = CONSISTENCY_AT[op[KIND_AT]]
        consistency, arg = op[at : at + 2]
        age_ms = state.age_ms()
        error: MetastoreError | None = None
        if not state.has_state():
            error = TooStale(f"this replica of partition {state.p} has no state yet", age_ms=None)
        elif consistency == AT_LEAST:
            last = self.machine.last_version
            if arg and self.machine.is_left_behind(arg, self.replica.can_read(now_ns())):
                error = history_changed(arg, last)
            elif last < arg:
                error = TooStale(f"this replica is at version {last}, below {arg}", age_ms=age_ms)
        elif arg is not None and (age_ms is None or age_ms > arg):
            error = TooStale(f"this replica is {age_ms} ms old, over {arg} ms", age_ms=age_ms)
        if error is not None:
            connection.answer(error_result(op[ID_AT], error))
        else:
            connection.answer(*self.read(connection, op, age_ms))

    def read(self, connection: ReplySink, op: Op, age_ms: int | None) -> tuple[list[Any], int]:
        """The answer, and about how many bytes it is."""
        try:
            return self._read(connection, op, age_ms)
        except CorruptState as e:
            return error_result(op[ID_AT], self.refusals.is_rotten(e)), 0

    def _read(self, connection: ReplySink, op: Op, age_ms: int | None) -> tuple[list[Any], int]:
        if connection.crowded():
            error = Overloaded("too many answers wait to be read on this connection", retry_after_s=0.1)
            return error_result(op[ID_AT], error), 0
        kind = op[KIND_AT]
        if kind == GET:
            record = self.machine.read(op[KEY_AT])
            if record is None:
                return [op[ID_AT], NOT_FOUND, age_ms], 0
            if self.machine.first_version:
                record = self.machine.shown(record)
            return [op[ID_AT], OK, record, age_ms], len(record)
        if kind in COMPOUND:
            tail, size = read_txn(self.machine, self.machine.read, op)
            return [op[ID_AT], *tail], size
        agenda = self.state.agenda
        if agenda.listing_ns > MAX_LISTING_NS:
            error = Overloaded("too many listings at once", retry_after_s=0.1)
            return error_result(op[ID_AT], error), 0
        began = now_ns()
        result = self.list_rows(op, age_ms)
        agenda.listing_ns += now_ns() - began
        return result

    def list_rows(self, op: Op, age_ms: int | None) -> tuple[list[Any], int]:
        """The answer to a listing, and about how many bytes it is. Raises CorruptState."""
        state, machine = self.state, self.machine
        start, end, limit, flags = op[START_AT : FLAGS_AT + 1]
        hi = state.hi
        wanted = op[WANTED_AT] if len(op) > WANTED_AT else b""
        upto = min(end, hi) if end else hi
        rows, following, size = state.store.scan(start, upto, limit, MAX_LIST_BYTES, wanted, MAX_LIST_LOOKS)
        # what lies beyond this partition (it may have been split, R18) others tell
        tail = [hi if following is None and end > hi else following, age_ms, machine.last_version]
        if machine.first_version:
            shown = machine.shown
            rows = [(k, shown(r)) for k, r in rows]
        if flags & KEYS_ONLY:
            return [op[ID_AT], OK, [[k, record_versions(r)[1]] for k, r in rows], *tail], size
        return [op[ID_AT], OK, rows, *tail], size

    def digest(self) -> Generator[None, None, dict[str, Any] | None]:
        """A checksum over every record and what dedupe remembers, as of one applied index; None when the state moved on
        meanwhile. Yields between slices, for others to have their turn. Raises Unavailable."""
        state, machine = self.state, self.machine
        if self.replica.damaged:
            raise self.refusals.damage()
        applied, start, records = state.store.applied, b"", 0
        total = xxhash.xxh3_128()
        while True:
            try:
                rows = state.store.scan(start, b"\xff" * 9, DIGEST_SLICE, MAX_LIST_BYTES).rows
            except CorruptState as e:
                raise self.refusals.is_rotten(e) from None
            if not rows:
                break
            for storage_key, record in rows:
                total.update(len(storage_key).to_bytes(4, "big") + storage_key + record)
            records += len(rows)
            start = rows[-1][0] + b"\0"
            yield
            if state.store.applied != applied:
                return None
        for key in machine.metadata_keys():
            total.update(key + (machine.metadata(key) or b""))
        version = machine.last_version
        return {"applied": applied, "version": version, "records": records, "digest": total.hexdigest()}
