"""The coordination service of a process that has not connected to one yet: it is away, and nothing is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from metastore.coordination.interface import (
    KV,
    QUIET_S,
    Compare,
    OnChange,
    OnRead,
    Op,
    Peek,
    Session,
    TxnResult,
)
from metastore.coordination.lineage import Lineal
from metastore.coordination.mirror import Mirror
from metastore.errors import CoordinationUnavailable


def _away() -> CoordinationUnavailable:
    return CoordinationUnavailable("no coordination service is connected yet")


class AbsentCoordinator(Lineal):
    """Implements Coordinator."""

    connected = False
    takes_writes = False

    @property
    def trouble(self) -> str:
        return ""

    async def get(self, key: str) -> KV | None:
        raise _away()

    async def range(self, prefix: str) -> tuple[int, list[KV]]:
        raise _away()

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        raise _away()

    def distrust(self, why: str) -> None:
        self.untrusted = why

    async def peek(self, key: str) -> Peek:
        raise _away()

    def session(self, ttl_s: float) -> AbsentSession:
        return AbsentSession()

    def watch(
        self, prefix: str, on_change: OnChange, quiet_s: float = QUIET_S, on_read: OnRead | None = None
    ) -> AbsentWatch:
        return AbsentWatch()

    async def close(self) -> None:
        pass


class AbsentSession:
    """Implements Session: there is no lease."""

    lease_id = 0
    alive = False
    margin_s = 0.0

    def __init__(self) -> None:
        self.on_change: Callable[[Session], None] = lambda _: None

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


class AbsentWatch(Mirror):
    """Implements Watch: it has delivered nothing."""

    silent_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.ready = asyncio.Event()

    def begin_again(self) -> None:
        pass

    def close(self) -> None:
        pass
