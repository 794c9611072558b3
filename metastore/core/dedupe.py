"""What a partition remembers of finished requests, so that a retry gets the first outcome (R7). Pure.

A *session* is one client's finished requests in this partition, kept until the client says that it
will not ask again (``lowest_open``). The MAX_SESSIONS most lately used are kept whatever their age, and
beyond them up to MAX_YOUNG_SESSIONS for as long as they are younger than WINDOW_S; in all
MAX_ALL_OUTCOMES and MAX_ALL_OUTCOME_BYTES of what they remember. The longest unused goes first, and
``expired_below`` remembers the highest log index at which a forgotten session was last used.

The table is replicated state: all that it does follows from the entries alone. It has no clock, so
what is older than the window the leader says, by its own (``Window``), in the entry that makes it so.

*Is a request that is not found new, or forgotten?* A client that lives on says so: its requests carry a
``last_seen``, the highest index it had seen when it first sent them; one that was executed, was after its
``last_seen``. So what is not found and has ``last_seen >= expired_below`` was never executed, and any other is
refused. But who sends a *single* request (its lowest open request is at ONE_REQUEST or above), an Idempotency-Key over
HTTP say, may be a new process each time, with no true last seen index. Of such a session a mark stays when its
outcome goes: the MAX_SPENT last of them are refused, not executed, when they come again.

Stamps and ``expired_below`` are indexes within a history of the partition (R19, ``metastore.history``): the index stands in
the low bits, so that those of an earlier history are lower, and say nothing of this one.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgpack

from metastore.decoding import MAX_ITEMS, unpack_body
from metastore.elements import DEDUPE_WINDOW_S, ONE_REQUEST
from metastore.errors import RequestIdExpired
from metastore.history import LastSeenIndex, Version, first_version

MAX_SESSIONS: Final = 10_000
MAX_YOUNG_SESSIONS: Final = 40_000
MAX_SPENT: Final = 50_000
WINDOW_NS: Final = DEDUPE_WINDOW_S * 1_000_000_000
#: how often a leader notes where its log ends
WINDOW_STEP_NS: Final = WINDOW_NS // 20
MAX_OUTCOMES: Final = 4096
MAX_OUTCOME_BYTES: Final = 2 << 20
OUTCOME_BYTES: Final = 32
PART_BYTES: Final = 24
#: of all sessions: who never says that requests are finished shall not fill the memory of every replica
MAX_ALL_OUTCOMES: Final = 200_000
MAX_ALL_OUTCOME_BYTES: Final = 64 << 20

Tail = tuple[Any, ...]
"""An answer without its id: what follows the id in a RESPONSE (wire.client_messages)."""


def outcome_bytes(tail: Tail) -> int:
    """About what an outcome takes: much, when a transaction has many parts or has read records."""
    if len(tail) < 4 or type(tail[3]) is not list:
        return OUTCOME_BYTES
    read = sum(len(part[1]) for part in tail[3] if len(part) > 1 and type(part[1]) is bytes)
    return OUTCOME_BYTES + PART_BYTES * len(tail[3]) + read


class Session:
    """One client's outcomes in this partition."""

    __slots__ = ("last_index", "lowest_open", "minimum", "ordinal", "outcomes", "size")

    def __init__(self, minimum: LastSeenIndex) -> None:
        self.minimum = minimum
        self.lowest_open = 0
        self.last_index = 0
        self.ordinal = 0
        self.outcomes: dict[int, Tail] = {}
        self.size = 0

    def pack(self) -> bytes:
        raw: bytes = msgpack.packb(
            [self.minimum, self.lowest_open, self.last_index, self.ordinal, list(self.outcomes.items())]
        )
        return raw

    @classmethod
    def unpack(cls, raw: bytes) -> Session | int:
        """A session, or the mark that one has left (``Sessions.spent``)."""
        row = unpack_body(raw, MAX_ITEMS, max_array=MAX_ITEMS)
        if type(row) is int:
            return row
        minimum, lowest_open, last_index, ordinal, outcomes = row
        session = cls(minimum)
        session.lowest_open, session.last_index, session.ordinal = lowest_open, last_index, ordinal
        session.outcomes = {seq: tuple(tail) for seq, tail in outcomes}
        session.size = sum(map(outcome_bytes, session.outcomes.values()))
        return session

    def forget(self, seq: int) -> None:
        self.size -= outcome_bytes(self.outcomes.pop(seq))

    def raise_lowest_open(self, lowest_open: int) -> None:
        """The client has finished everything below ``lowest_open``."""
        if lowest_open <= self.lowest_open:
            return
        self.lowest_open = lowest_open
        outcomes = self.outcomes
        if len(outcomes) == 1:  # one request at a time: the plain case
            for seq, tail in outcomes.items():
                if seq >= lowest_open:
                    return
                self.size -= outcome_bytes(tail)
            outcomes.clear()
            return
        for seq in [s for s in outcomes if s < lowest_open]:
            tail = outcomes.pop(seq)
            self.size -= OUTCOME_BYTES if len(tail) < 4 else outcome_bytes(tail)

    def bound(self) -> None:
        """Forget the oldest outcomes beyond what may be kept: they count as finished."""
        while len(self.outcomes) > MAX_OUTCOMES or self.size > MAX_OUTCOME_BYTES:
            seq = min(self.outcomes)
            self.forget(seq)
            self.lowest_open = max(self.lowest_open, seq + 1)


class Sessions:
    """See the module. ``by_client`` is ordered from the longest unused to the most lately used."""

    def __init__(self) -> None:
        self.by_client: dict[bytes, Session] = {}
        #: clients of a single request whose outcome is forgotten -> when that was made (last_index << 16 |
        #: ordinal); the longest forgotten first
        self.spent: dict[bytes, int] = {}
        self.expired_below = LastSeenIndex(0)
        #: stamps are log indexes of a history, which begin here (R19)
        self.history = first_version(0)
        #: how many outcomes all sessions hold, and their bytes
        self.outcomes = 0
        self.size = 0

    def begin_history(self, first: Version, index: int) -> None:
        """R19: entry ``index`` begins a history. A last seen index of before says nothing of what was executed since; nor does one
        of another history of that number, which was cut where that parted from this (R18): before this entry."""
        self.history = first
        self.expired_below = LastSeenIndex(first + index)

    def load(self, rows: list[tuple[bytes, Session | int]], expired_below: LastSeenIndex) -> None:
        sessions = [(client, row) for client, row in rows if isinstance(row, Session)]
        sessions.sort(key=lambda item: (item[1].last_index, item[1].ordinal))
        self.by_client = dict(sessions)
        marks = [(client, row) for client, row in rows if isinstance(row, int)]
        self.spent = dict(sorted(marks, key=lambda item: item[1]))
        self.expired_below = expired_below
        self.outcomes = sum(len(session.outcomes) for _, session in sessions)
        self.size = sum(session.size for _, session in sessions)

    def known(self, client: bytes, seq: int, last_seen: LastSeenIndex) -> Tail | None:
        """The first outcome of a request id, or its refusal; None = it was never executed."""
        session = self.by_client.get(client)
        if session is None:
            if client in self.spent:
                return self.refusal(seq, last_seen, reused=False, spent=True)
            if last_seen >= self.expired_below:
                return None
        else:
            tail = session.outcomes.get(seq)
            if tail is not None:
                return tail
            if seq >= session.lowest_open and last_seen >= session.minimum:
                return None
        return self.refusal(seq, last_seen, session is not None and seq < session.lowest_open)

    def refusal(self, seq: int, last_seen: LastSeenIndex, reused: bool, spent: bool = False) -> Tail:
        """``reused``: the client itself has said that it would not send this one (again); ``spent``: it has
        sent its only request before, and what became of that is forgotten."""
        detail: dict[str, Any] = {"index": self.expired_below, "reused": reused}
        if spent:
            detail["spent"] = True
        text = f"request id {seq} with last seen index {last_seen} is older than the dedupe window"
        return (RequestIdExpired.status, text, detail)

    def has_old(self, horizon: int) -> bool:
        """Whether a session could go if all up to entry ``horizon`` is older than the window."""
        by_client = self.by_client
        return len(by_client) > MAX_SESSIONS and next(iter(by_client.values())).last_index <= horizon

    def remember(
        self,
        index: int,
        lowest_open_of: list[list[Any]],
        tails: list[tuple[int, int, Tail]],
        horizon: int = 0,
    ) -> tuple[list[bytes], list[bytes]]:
        """Outcomes of entry ``index``: ``lowest_open_of`` = [[client, lowest open request], ...], ``tails`` = [(position
        in it, seq, tail), ...]; it says that all up to ``horizon`` is older than the window. The clients
        whose sessions changed, and those forgotten."""
        by_client = self.by_client
        touched: list[Session] = []
        changed: list[bytes] = []
        for ordinal, (client, lowest_open) in enumerate(lowest_open_of):
            session = by_client.pop(client, None)
            if session is None:
                session = Session(self.expired_below)
                self.spent.pop(client, None)  # a client has a session or a mark, as in what is saved
            by_client[client] = session  # at the end: the most lately used
            self.outcomes -= len(session.outcomes)
            self.size -= session.size
            session.last_index, session.ordinal = index, ordinal
            session.raise_lowest_open(lowest_open)
            touched.append(session)
            changed.append(client)
        for at, seq, tail in tails:
            session = touched[at]
            session.outcomes[seq] = tail
            session.size += OUTCOME_BYTES if len(tail) < 4 else outcome_bytes(tail)
        for session in touched:
            if len(session.outcomes) > MAX_OUTCOMES or session.size > MAX_OUTCOME_BYTES:
                session.bound()
            self.outcomes += len(session.outcomes)
            self.size += session.size
        gone: list[bytes] = []
        while (
            len(by_client) > MAX_YOUNG_SESSIONS
            or self.outcomes > MAX_ALL_OUTCOMES
            or self.size > MAX_ALL_OUTCOME_BYTES
            or self.has_old(horizon)
        ):
            self._forget_oldest(gone)
        return changed, gone

    def _forget_oldest(self, gone: list[bytes]) -> None:
        client = next(iter(self.by_client))
        session = self.by_client.pop(client)
        self.outcomes -= len(session.outcomes)
        self.size -= session.size
        self.expired_below = max(self.expired_below, LastSeenIndex(self.history + session.last_index))
        gone.append(client)
        if session.lowest_open >= ONE_REQUEST:
            self.spent[client] = session.last_index << 16 | min(session.ordinal, 0xFFFF)
            if len(self.spent) > MAX_SPENT:
                longest = next(iter(self.spent))
                del self.spent[longest]
                gone.append(longest)


class Window:
    """What is older than the dedupe window, on a leader's clock: it begins anew, in full, with every term
    (R15), so that it may be longer than WINDOW_S and is never shorter."""

    def __init__(self) -> None:
        #: (when, the last entry then)
        self._marks: deque[tuple[int, int]] = deque()

    def begin(self, now: int, last_index: int) -> None:
        """A term begins."""
        self._marks.clear()
        self._marks.append((now, last_index))

    def end(self) -> None:
        self._marks.clear()

    def horizon(self, now: int, last_index: int) -> int:
        """Every entry up to this one was made longer ago than the window; 0 = none is known to be."""
        marks = self._marks
        if not marks:
            return 0
        if now - marks[-1][0] >= WINDOW_STEP_NS:
            marks.append((now, last_index))
        while len(marks) > 1 and now - marks[1][0] > WINDOW_NS:
            marks.popleft()
        return marks[0][1] if now - marks[0][0] > WINDOW_NS else 0
