"""Who may stay connected, and how much of the node's memory all clients together may hold.

What a stranger can make a node keep, and the bound of each:

- connections that have not said who they are: MAX_STRANGERS, the oldest goes for a new one, so that
  neither clients nor peers are locked out by those who only connect; each ends after its hello's time;
- halves of frames and answers that nobody reads: ``memory_bytes`` in all. Beyond it the
  longest-standing of those who hold any are disconnected: a client that keeps up is never among them;
- writes that wait for the log or for a quorum: as much again; beyond it they are refused;
- a frame that began, or answers of which nothing is taken: ``patience_s``, then the connection ends.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from metastore.core.settings import MS
from metastore.logs import Ration

log = logging.getLogger("metastore.clients")

MAX_BEFORE_HELLO: Final = 1024
SWEEP_NS: Final = 250 * MS


class Held(Protocol):
    """A connection, as far as admission goes: three methods, and what is counted of it."""

    #: nothing of it counts any more
    gone: bool
    #: bytes of a frame that has not ended, and of answers that are not read
    unfinished: int
    unread: int

    @property
    def since_ns(self) -> int:
        """When it connected."""

    def measure(self, now: int, /) -> int:
        """How many bytes of answers wait to be read by the other side, now."""

    def held_since_ns(self) -> int:
        """Since when it has got no further."""

    def close(self) -> None:
        """Disconnect it."""


class Admission:
    """See the module. All times in ns on the node's clock."""

    def __init__(self, max_connections: int, patience_ns: int, memory_bytes: int) -> None:
        self.max_connections = max_connections
        self.patience_ns = patience_ns
        self.memory_bytes = memory_bytes
        #: said hello
        self.clients: set[Held] = set()
        #: connected, and no hello yet; the oldest first
        self.before_hello: dict[Held, None] = {}
        #: bytes of unfinished frames, of waiting writes and of answers not taken
        self.unfinished = 0
        self.waiting = 0
        self.unread = 0
        self.evicted = 0
        self.refused = 0
        self.ration = Ration(log, "%d more clients disconnected")
        #: who holds unfinished frames, or unread answers
        self.holding: dict[Held, None] = {}
        self._swept_ns = 0

    # --- connections ------------------------------------------------------------------------

    def arrived(self, connection: Held) -> None:
        if len(self.before_hello) >= MAX_BEFORE_HELLO:
            self.evict(next(iter(self.before_hello)), "others wait to say hello")
        self.before_hello[connection] = None

    def greeted(self, connection: Held) -> bool:
        """A client's hello; whether there is room for it."""
        self.before_hello.pop(connection, None)
        if len(self.clients) >= self.max_connections:
            self.refused += 1
            return False
        self.clients.add(connection)
        return True

    def left(self, connection: Held) -> None:
        """Closed, or no client but a peer: nothing of it counts any more."""
        connection.gone = True
        self.before_hello.pop(connection, None)
        self.clients.discard(connection)
        self.holding.pop(connection, None)
        self.unfinished -= connection.unfinished
        self.unread -= connection.unread
        connection.unfinished = connection.unread = 0

    def evict(self, connection: Held, why: str) -> None:
        self.evicted += 1
        self.ration.line(logging.INFO, "client disconnected: %s", why)
        connection.close()
        self.left(connection)

    # --- memory -----------------------------------------------------------------------------

    @property
    def writes_full(self) -> bool:
        return self.waiting > self.memory_bytes

    def holds(self, connection: Held, unfinished: int, unread: int, now: int) -> None:
        """What ``connection`` makes this node keep has changed. May disconnect others, and it."""
        self._note(connection, unfinished, unread)
        if self.unfinished + self.unread > self.memory_bytes:
            self.make_room(now)

    def _note(self, connection: Held, unfinished: int, unread: int) -> None:
        if connection.gone:
            return
        self.unfinished += unfinished - connection.unfinished
        self.unread += unread - connection.unread
        connection.unfinished, connection.unread = unfinished, unread
        if unfinished or unread:
            self.holding[connection] = None
        else:
            self.holding.pop(connection, None)

    def _measure(self, connection: Held, now: int) -> None:
        self._note(connection, connection.unfinished, connection.measure(now))

    def make_room(self, now: int) -> None:
        """Look what really is held; if it is too much, the longest-standing go."""
        for connection in list(self.holding):
            self._measure(connection, now)
        if self.unfinished + self.unread <= self.memory_bytes:
            return
        enough = self.memory_bytes * 3 // 4
        for connection in sorted(self.holding, key=lambda c: c.held_since_ns()):
            if self.unfinished + self.unread <= enough:
                return
            self.evict(connection, "it holds memory that others need, and makes no progress")

    def sweep(self, now: int) -> None:
        """Called often; ends connections that do not get on."""
        if now - self._swept_ns < SWEEP_NS:
            return
        self._swept_ns = now
        while self.before_hello:  # the oldest is the first
            oldest = next(iter(self.before_hello))
            if now - oldest.since_ns <= self.patience_ns:
                break
            self.evict(oldest, "no hello")
        for connection in list(self.holding):
            self._measure(connection, now)
            if connection in self.holding and now - connection.held_since_ns() > self.patience_ns:
                why = "a frame does not end" if connection.unfinished else "it does not read its answers"
                self.evict(connection, why)

    def stats(self) -> dict[str, int]:
        """Figures for status and metrics."""
        return {
            "connections": len(self.clients),
            "before_hello": len(self.before_hello),
            "unfinished_bytes": self.unfinished,
            "waiting_bytes": self.waiting,
            "unread_bytes": self.unread,
            "evicted_total": self.evicted,
            "refused_total": self.refused,
        }
