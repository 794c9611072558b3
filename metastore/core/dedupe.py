"""What a partition remembers of finished requests, so that a retry gets the first outcome (R7). Pure.

A *session* is one client's finished requests in this partition, kept until the client says that it
will not ask again (``floor``). At most MAX_SESSIONS are kept, and in all MAX_ALL_OUTCOMES and
MAX_ALL_OUTCOME_BYTES of what they remember; the longest unused goes first, and
``expired_below`` remembers the highest log index at which a forgotten session was last used. A
request carries a ``stamp``, the highest index its client had seen when it was first sent; had it
been executed, then after ``stamp``. So one that is not found and has ``stamp >= expired_below`` was
never executed, and any other is refused. The table is replicated state: all that it does follows
from the entries alone.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from metastore.errors import RequestIdExpired

MAX_SESSIONS: Final = 10_000
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

    __slots__ = ("floor", "guard", "last_index", "ordinal", "outcomes", "size")

    def __init__(self, guard: int) -> None:
        self.guard = guard
        self.floor = 0
        self.last_index = 0
        self.ordinal = 0
        self.outcomes: dict[int, Tail] = {}
        self.size = 0

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
        session.size = sum(map(outcome_bytes, session.outcomes.values()))
        return session

    def forget(self, seq: int) -> None:
        self.size -= outcome_bytes(self.outcomes.pop(seq))

    def raise_floor(self, floor: int) -> None:
        """The client has finished everything below ``floor``."""
        if floor <= self.floor:
            return
        self.floor = floor
        outcomes = self.outcomes
        if len(outcomes) == 1:  # one request at a time: the plain case
            for seq, tail in outcomes.items():
                if seq >= floor:
                    return
                self.size -= outcome_bytes(tail)
            outcomes.clear()
            return
        for seq in [s for s in outcomes if s < floor]:
            tail = outcomes.pop(seq)
            self.size -= OUTCOME_BYTES if len(tail) < 4 else outcome_bytes(tail)

    def bound(self) -> None:
        """Forget the oldest outcomes beyond what may be kept: they count as finished."""
        while len(self.outcomes) > MAX_OUTCOMES or self.size > MAX_OUTCOME_BYTES:
            seq = min(self.outcomes)
            self.forget(seq)
            self.floor = max(self.floor, seq + 1)


class Sessions:
    """See the module. ``by_client`` is ordered from the longest unused to the most lately used."""

    def __init__(self) -> None:
        self.by_client: dict[bytes, Session] = {}
        self.expired_below = 0
        #: how many outcomes all sessions hold, and their bytes
        self.outcomes = 0
        self.size = 0

    def load(self, sessions: list[tuple[bytes, Session]], expired_below: int) -> None:
        sessions.sort(key=lambda item: (item[1].last_index, item[1].ordinal))
        self.by_client = dict(sessions)
        self.expired_below = expired_below
        self.outcomes = sum(len(session.outcomes) for _, session in sessions)
        self.size = sum(session.size for _, session in sessions)

    def known(self, client: bytes, seq: int, stamp: int) -> Tail | None:
        """The first outcome of a request id, or its refusal; None = it was never executed."""
        session = self.by_client.get(client)
        if session is None:
            if stamp >= self.expired_below:
                return None
        else:
            tail = session.outcomes.get(seq)
            if tail is not None:
                return tail
            if seq >= session.floor and stamp >= session.guard:
                return None
        return self.refusal(seq, stamp, session is not None and seq < session.floor)

    def refusal(self, seq: int, stamp: int, reused: bool) -> Tail:
        """``reused``: the client itself has said that it would not send this one (again)."""
        return (
            RequestIdExpired.status,
            f"request id {seq} with stamp {stamp} is older than the dedupe window",
            {"index": self.expired_below, "reused": reused},
        )

    def remember(
        self, index: int, floors: list[list[Any]], tails: list[tuple[int, int, Tail]]
    ) -> tuple[list[bytes], list[bytes]]:
        """Outcomes of entry ``index``: ``floors`` = [[client, floor], ...], ``tails`` = [(position
        in floors, seq, tail), ...]. The clients whose sessions changed, and those forgotten."""
        by_client = self.by_client
        touched: list[Session] = []
        changed: list[bytes] = []
        for ordinal, (client, floor) in enumerate(floors):
            session = by_client.pop(client, None) or Session(self.expired_below)
            by_client[client] = session  # at the end: the most lately used
            self.outcomes -= len(session.outcomes)
            self.size -= session.size
            session.last_index, session.ordinal = index, ordinal
            session.raise_floor(floor)
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
            len(by_client) > MAX_SESSIONS
            or self.outcomes > MAX_ALL_OUTCOMES
            or self.size > MAX_ALL_OUTCOME_BYTES
        ):
            client = next(iter(by_client))
            forgotten = by_client.pop(client)
            self.outcomes -= len(forgotten.outcomes)
            self.size -= forgotten.size
            self.expired_below = max(self.expired_below, forgotten.last_index)
            gone.append(client)
        return changed, gone
