"""The replicated state machine of one partition: conditions, versions, dedupe (R7). Pure.

The leader *resolves* operations against the latest state it has proposed, in log order, into
rows of plain effects; everybody *applies* rows, which needs no clock, no chance and no
condition. An entry's payload is msgpack ``[base_version, [[client_id, floor], ...], [row, ...]]``:

    [PUT, lkey, record, session, seq]     also for ADD (row kind ADD: the answer tells the count)
    [DELETE, lkey, session, seq]
    [NOTHING, session, seq, status, version]    a failed condition, or nothing to delete

``session`` is a position in the list of sessions, -1 when no dedupe was asked for. The n-th
changing row of an entry has the version ``base_version + n``, from 1: versions are dense.

Dedupe (R7). A session is one client's finished requests in this partition, kept until the
client says that it will not ask again (``floor``). At most MAX_SESSIONS are kept; the longest
unused goes first, and ``expired_below`` remembers the highest log index at which a forgotten
session was last used. A request carries a ``stamp``, the highest index its client had seen
when it was first sent; had it been executed, then after ``stamp``. So one that is not found
and has ``stamp >= expired_below`` was never executed, and any other is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from metastore.errors import ConditionFailed, CorruptState, NotANumber, RequestIdExpired
from metastore.records import COUNTER, HEAD_BYTES, pack_record, record_versions, unpack_record
from metastore.wire.client_messages import ADD, DELETE, EXISTS, PUT

NOTHING: Final = 0
MAX_SESSIONS: Final = 10_000
MAX_OUTCOMES: Final = 4096
INT64_MAX: Final = (1 << 63) - 1
META_KEY: Final = b"m"
SESSION_PREFIX: Final = b"s"

Tail = tuple[Any, ...]
"""An answer without its id: what follows the id in a RESPONSE (wire.client_messages)."""


class Resolved(NamedTuple):
    """What became of one operation: answer ``tail`` once entry ``at`` is committed (0 = now)."""

    at: int
    tail: Tail


class Applied(NamedTuple):
    """What applying an entry changed: records, and the aux rows to save with them."""

    changes: list[tuple[bytes, bytes | None]]
    aux: set[bytes]


class Session:
    """One client's outcomes in this partition."""

    __slots__ = ("floor", "guard", "last_index", "ordinal", "outcomes")

    def __init__(self, guard: int) -> None:
        self.guard = guard
        self.floor = 0
        self.last_index = 0
        self.ordinal = 0
        self.outcomes: dict[int, Tail] = {}

    def pack(self) -> bytes:
        raw: bytes = msgpack.packb(
            [self.guard, self.floor, self.last_index, self.ordinal, list(self.outcomes.items())]
        )
        return raw

    @classmethod
    def unpack(cls, raw: bytes) -> Session:
        guard, floor, last_index, ordinal, outcomes = msgpack.unpackb(raw)
        session = cls(guard)
        session.floor, session.last_index, session.ordinal = floor, last_index, ordinal
        session.outcomes = {seq: tuple(tail) for seq, tail in outcomes}
        return session


class Machine:
    """See the module. ``read``: the committed record of an lkey, packed, or None."""

    def __init__(self, read: Callable[[bytes], bytes | None]) -> None:
        self.read = read
        self.last_version = 0
        self.expired_below = 0
        self.sessions: dict[bytes, Session] = {}
        # the leader's state beyond what is committed
        self._version = 0
        self._records: dict[bytes, tuple[int, bytes | None]] = {}
        self._outcomes: dict[bytes, dict[int, Resolved]] = {}
        self._entries: dict[int, tuple[int, list[list[Any]], list[list[Any]]]] = {}

    # --- saving and loading ---------------------------------------------------------------

    def aux(self, key: bytes) -> bytes | None:
        """The aux row ``key`` as it is now; None = delete it."""
        if key == META_KEY:
            raw: bytes = msgpack.packb([self.last_version, self.expired_below])
            return raw
        session = self.sessions.get(key[1:])
        return session.pack() if session else None

    def reset(self) -> None:
        """Back to empty, before the rows of an installed snapshot are loaded (R17)."""
        self.last_version = self.expired_below = 0
        self.sessions = {}
        self.abandon()

    def load(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Start from saved aux rows."""
        loaded: list[tuple[bytes, Session]] = []
        for key, raw in rows:
            if key == META_KEY:
                self.last_version, self.expired_below = msgpack.unpackb(raw)
            elif key[:1] == SESSION_PREFIX:
                loaded.append((key[1:], Session.unpack(raw)))
        loaded.sort(key=lambda item: (item[1].last_index, item[1].ordinal))
        self.sessions = dict(loaded)
        self.abandon()

    # --- the leader: resolve --------------------------------------------------------------

    def proposed(self, index: int) -> bool:
        """Whether entry ``index`` was resolved here, so that applying it needs no payload."""
        return index in self._entries

    def abandon(self) -> None:
        """Forget what was proposed and is not committed: leadership began or ended."""
        self._version = self.last_version
        self._records.clear()
        self._outcomes.clear()
        self._entries.clear()

    def resolve(self, index: int, ops: list[tuple[bytes, list[Any]]]) -> tuple[bytes | None, list[Resolved]]:
        """Resolve ``(client_id, op)`` pairs (checked before) into the payload of entry ``index``.

        Returns the payload, None when no entry is needed, and what became of each op.
        """
        rows: list[list[Any]] = []
        sessions: dict[bytes, int] = {}
        floors: list[list[Any]] = []
        results: list[Resolved] = []
        base = self._version
        for client, op in ops:
            seq = op[4]
            if seq:
                known = self._known(client, seq, op[6])
                if known is not None:
                    results.append(known)
                    continue
                at = sessions.get(client)
                if at is None:
                    at = sessions[client] = len(floors)
                    floors.append([client, op[5]])
                elif op[5] > floors[at][1]:
                    floors[at][1] = op[5]
            else:
                at = -1
            row, tail = self._resolve_one(index, op, at, seq)
            rows.append(row)
            result = Resolved(index, tail)
            results.append(result)
            if seq:
                pending = self._outcomes.get(client)
                if pending is None:
                    pending = self._outcomes[client] = {}
                pending[seq] = result
        if not rows:
            return None, results
        self._entries[index] = (base, floors, rows)
        payload: bytes = msgpack.packb([base, floors, rows])
        return payload, results

    def _known(self, client: bytes, seq: int, stamp: int) -> Resolved | None:
        """The first outcome of a request id, or its refusal; None = it was never executed."""
        pending = self._outcomes.get(client)
        if pending is not None:
            found = pending.get(seq)
            if found is not None:
                return found
        session = self.sessions.get(client)
        if session is None:
            if stamp >= self.expired_below:
                return None
        else:
            tail = session.outcomes.get(seq)
            if tail is not None:
                return Resolved(0, tail)
            if seq >= session.floor and stamp >= session.guard:
                return None
        return Resolved(
            0,
            (
                RequestIdExpired.status,
                f"request id {seq} with stamp {stamp} is older than the dedupe window",
                {"index": self.expired_below, "reused": session is not None and seq < session.floor},
            ),
        )

    def current(self, lkey: bytes) -> bytes | None:
        """The record as of the latest proposal."""
        found = self._records.get(lkey)
        return self.read(lkey) if found is None else found[1]

    def _resolve_one(self, index: int, op: list[Any], at: int, seq: int) -> tuple[list[Any], Tail]:
        kind, lkey, condition = op[1], op[3], op[7]
        old = self.current(lkey)
        flags, version, created = (0, 0, 0) if old is None else record_versions(old)
        if condition is not None and (version == 0 if condition == EXISTS else version != condition):
            return self._nothing(at, seq, ConditionFailed.status, version, index)
        if kind == DELETE:
            if not version:
                return self._nothing(at, seq, 0, 0, index)
            self._version += 1
            self._records[lkey] = (index, None)
            return [DELETE, lkey, at, seq], (0, self._version, index)
        new_version = self._version + 1
        if kind == PUT:
            record = pack_record(new_version, created or new_version, op[8], op[9].encode(), op[10])
            tail: Tail = (0, new_version, index, not version)
        else:
            total = self._add(old, flags, op[8])
            if total is None:
                return self._nothing(at, seq, NotANumber.status, version, index)
            record = pack_record(new_version, created or new_version, b"%d" % total, b"", 0, COUNTER)
            tail = (0, new_version, index, total)
        self._version = new_version
        self._records[lkey] = (index, record)
        return [kind, lkey, record, at, seq], tail

    @staticmethod
    def _add(old: bytes | None, flags: int, delta: int) -> int | None:
        if old is None:
            total = delta
        elif flags & COUNTER:
            total = int(unpack_record(old).value) + delta
        else:
            return None
        return total if -INT64_MAX - 1 <= total <= INT64_MAX else None

    @staticmethod
    def _nothing(at: int, seq: int, status: int, version: int, index: int) -> tuple[list[Any], Tail]:
        return [NOTHING, at, seq, status, version], nothing_tail(status, version, index)

    # --- everybody: apply -------------------------------------------------------------------

    def apply(self, index: int, payload: bytes) -> Applied:
        """Apply a committed entry. Raises AssertionError when versions do not join up (I7)."""
        own = self._entries.pop(index, None)
        if own is not None:
            base, floors, rows = own
        elif payload:
            base, floors, rows = msgpack.unpackb(payload, use_list=True)
        else:
            return Applied([], set())
        if base != self.last_version:
            raise AssertionError(
                f"I7: entry {index} begins at version {base}, the state is at {self.last_version}"
            )
        changes: list[tuple[bytes, bytes | None]] = []
        tails: list[tuple[int, int, Tail]] = []
        version = base
        for row in rows:
            kind = row[0]
            if kind == NOTHING:
                _, at, seq, status, seen = row
                tail = nothing_tail(status, seen, index)
            else:
                version += 1
                if kind == DELETE:
                    _, lkey, at, seq = row
                    changes.append((lkey, None))
                    tail = (0, version, index)
                else:
                    _, lkey, record, at, seq = row
                    changes.append((lkey, record))
                    if kind == ADD:
                        tail = (0, version, index, int(unpack_record(record).value))
                    else:
                        tail = (0, version, index, record_versions(record)[2] == version)
            if at >= 0:
                tails.append((at, seq, tail))
        self.last_version = version
        aux = self._remember(index, floors, tails)
        if own is not None:
            self._forget_proposed(index, changes, floors, tails)
        elif not self._entries:
            self._version = version
        return Applied(changes, aux)

    def _forget_proposed(
        self,
        index: int,
        changes: list[tuple[bytes, bytes | None]],
        floors: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
    ) -> None:
        for lkey, _ in changes:
            found = self._records.get(lkey)
            if found is not None and found[0] == index:
                del self._records[lkey]
        for at, seq, _ in tails:
            pending = self._outcomes.get(floors[at][0])
            if pending is not None:
                pending.pop(seq, None)
                if not pending:
                    del self._outcomes[floors[at][0]]

    def _remember(
        self, index: int, floors: list[list[Any]], tails: list[tuple[int, int, Tail]]
    ) -> set[bytes]:
        aux = {META_KEY}
        touched: list[Session] = []
        for ordinal, (client, floor) in enumerate(floors):
            session = self.sessions.pop(client, None) or Session(self.expired_below)
            self.sessions[client] = session  # at the end: the most lately used
            session.last_index, session.ordinal = index, ordinal
            if floor > session.floor:
                session.floor = floor
                outcomes = session.outcomes
                for seq in [s for s in outcomes if s < floor]:
                    del outcomes[seq]
            touched.append(session)
            aux.add(SESSION_PREFIX + client)
        for at, seq, tail in tails:
            touched[at].outcomes[seq] = tail
        for session in touched:
            excess = len(session.outcomes) - MAX_OUTCOMES
            if excess > 0:
                for seq in sorted(session.outcomes)[:excess]:
                    del session.outcomes[seq]
                    session.floor = max(session.floor, seq + 1)
        while len(self.sessions) > MAX_SESSIONS:
            client = next(iter(self.sessions))
            gone = self.sessions.pop(client)
            self.expired_below = max(self.expired_below, gone.last_index)
            aux.add(SESSION_PREFIX + client)
        return aux


def check_payload(payload: bytes | memoryview) -> str | None:
    """Why ``payload`` is none that ``resolve`` makes; None if it can be applied, but for the version
    at which it begins. A follower asks before it stores what it is sent."""
    try:
        base, floors, rows = msgpack.unpackb(payload, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as e:
        return f"the payload does not parse: {type(e).__name__}"
    if type(base) is not int or base < 0 or type(floors) is not list or type(rows) is not list:
        return "the payload is not [version, floors, rows]"
    for item in floors:
        if type(item) is not list or len(item) != 2 or type(item[0]) is not bytes or type(item[1]) is not int:
            return "a floor is not [client, count]"
    sessions = len(floors)
    for row in rows:
        kind = row[0] if type(row) is list and row else None
        if kind == NOTHING and len(row) == 5:
            _, at, *counts = row
        elif kind == DELETE and len(row) == 4 and type(row[1]) is bytes:
            _, _, at, *counts = row
        elif kind in (PUT, ADD) and len(row) == 5 and type(row[1]) is type(row[2]) is bytes:
            _, _, record, at, *counts = row
            if len(record) < HEAD_BYTES or (kind == ADD and not _is_counter(record)):
                return "a row's record is none"
        else:
            return "a row of an unknown form"
        if type(at) is not int or not -1 <= at < sessions:
            return "a row of a session that is not there"
        if not all(type(count) is int and 0 <= count <= INT64_MAX for count in counts):
            return "a row whose counts are none"
    return None


def _is_counter(record: bytes) -> bool:
    try:
        int(unpack_record(record).value)
    except (ValueError, CorruptState):
        return False
    return True


def check_aux(key: bytes, raw: bytes) -> bool:
    """Whether an aux row that came with a snapshot is one that ``load`` takes."""
    try:
        if key == META_KEY:
            found = msgpack.unpackb(raw)
            return len(found) == 2 and all(type(v) is int and v >= 0 for v in found)
        session = Session.unpack(raw)
        counts = (session.guard, session.floor, session.last_index, session.ordinal, *session.outcomes)
        return key[:1] == SESSION_PREFIX and all(type(v) is int and v >= 0 for v in counts)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return False


def nothing_tail(status: int, version: int, index: int) -> Tail:
    """The answer to an operation that changed nothing."""
    if status == 0:
        return (0, 0, index)
    if status == ConditionFailed.status:
        text = f"the record is at version {version}" if version else "there is no such record"
        return (status, f"condition failed: {text}", {"version": version, "index": index})
    return (
        status,
        "the record is not a counter, or the sum leaves 64 bits",
        {"version": version, "index": index},
    )
