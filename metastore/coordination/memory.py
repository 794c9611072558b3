"""The coordination service in memory: for tests and simulation; same suite as etcd.

``MemoryEtcd`` is the service, synchronous, with time given to it. ``MemoryCoordinator`` is a
connection to it. Faults are switches: ``up``, ``lose_next_answer``, ``cut`` of one connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from metastore.coordination.interface import (
    KV,
    QUIET_S,
    Change,
    Compare,
    Get,
    Known,
    OnChange,
    OnRead,
    Op,
    Peek,
    Put,
    TxnResult,
)
from metastore.coordination.lineage import Lineal
from metastore.coordination.mirror import Mirror
from metastore.coordination.session import KeptSession
from metastore.errors import CoordinationError, CoordinationUnavailable, CoordinationUnknown
from metastore.layout import LineageRecord

POLL_S = 0.005
FULL = "the service is full (alarm NOSPACE)"


class MemoryEtcd:
    """Keys, revisions, leases and a history that can be compacted. ``now_s`` never goes back."""

    def __init__(self, cluster_id: int = 1) -> None:
        self.cluster_id = cluster_id
        self.revision = 1
        self.up = True
        self.lose_next_answer = False
        #: watches hear nothing, while all else goes on
        self.blind = False
        #: readings and leases go on, and nothing is written
        self.full = False
        self.kvs: dict[str, KV] = {}
        self.leases: dict[int, tuple[float, float]] = {}
        self.history: list[tuple[int, str, KV | None]] = []
        self.compacted = 0
        self._next_lease = 1

    def advance(self, now_s: float) -> None:
        """Let leases expire."""
        if self.up:
            for lease in [i for i, (_, until) in self.leases.items() if until <= now_s]:
                self.revoke(lease)

    def grant(self, ttl_s: float, now_s: float) -> int:
        self._next_lease += 1
        self.leases[self._next_lease] = (ttl_s, now_s + ttl_s)
        return self._next_lease

    def keep_alive(self, lease: int, now_s: float) -> bool:
        if lease not in self.leases:
            return False
        ttl_s = self.leases[lease][0]
        self.leases[lease] = (ttl_s, now_s + ttl_s)
        return True

    def revoke(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None:
            held = [key for key, kv in self.kvs.items() if kv.lease == lease]
            if held:
                self.revision += 1
                for key in held:
                    self._delete(key)

    def compact(self) -> None:
        """Forget the history up to now."""
        self.compacted = self.revision
        self.history.clear()

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> TxnResult:
        succeeded = all(self._holds(c) for c in compares)
        ops = then if succeeded else otherwise
        if any(isinstance(op, Put) and op.lease and op.lease not in self.leases for op in ops):
            raise CoordinationUnavailable("requested lease not found")
        if any(not isinstance(op, Get) for op in ops):
            if self.full:
                raise CoordinationUnavailable(FULL)
            self.revision += 1
        found: list[KV | None] = []
        for op in ops:
            if isinstance(op, Get):
                found.append(self.kvs.get(op.key))
            elif isinstance(op, Put):
                old = self.kvs.get(op.key)
                created = old.create_revision if old else self.revision
                kv = KV(op.key, op.value, self.revision, created, op.lease)
                self.kvs[op.key] = kv
                self.history.append((self.revision, op.key, kv))
            else:
                self._delete(op.key)
        return TxnResult(succeeded, self.revision, found)

    def _holds(self, c: Compare) -> bool:
        kv = self.kvs.get(c.key)
        if c.what == "mod":
            return (kv.mod_revision if kv else 0) == c.revision
        if c.what == "since":
            return all(kv.mod_revision <= c.revision for key, kv in self.kvs.items() if key.startswith(c.key))
        return kv is not None and kv.value == c.value

    def _delete(self, key: str) -> None:
        if self.kvs.pop(key, None) is not None:
            self.history.append((self.revision, key, None))


class MemoryCoordinator(Lineal):
    """Implements Coordinator over a MemoryEtcd; ``clock`` in seconds."""

    def __init__(
        self,
        service: MemoryEtcd,
        clock: Callable[[], float],
        known: Known | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        super().__init__(known or Known())
        self.service = service
        self.clock = clock
        self.poll_s = poll_s
        self.cut = False
        self.connected = False
        self._tasks: list[MemorySession | MemoryWatch] = []

    def reach(self) -> MemoryEtcd:
        """The service, if it can be reached and trusted (R13). Raises CoordinationUnavailable."""
        service = self.service
        self.connected = service.up and not self.cut
        if self.untrusted:
            self.connected = False
            raise CoordinationUnavailable(self.untrusted)
        if not self.connected:
            raise CoordinationUnavailable("the service is away")
        service.advance(self.clock())
        if self.cluster_id is None:
            self.cluster_id = service.cluster_id
        if service.cluster_id != self.cluster_id or self.base + service.revision < self.revision:
            self.distrust("the service was replaced or restored from a backup")
            raise CoordinationUnavailable(self.untrusted)
        self.revision = self.base + service.revision
        return service

    async def peek(self, key: str) -> Peek:
        await asyncio.sleep(0)
        if not self.service.up or self.cut:
            raise CoordinationUnavailable("the service is away")
        return self.peeked(self.service, key)

    @staticmethod
    def peeked(service: MemoryEtcd, key: str) -> Peek:
        kv = service.kvs.get(key)
        return Peek(service.cluster_id, service.revision, kv.value if kv is not None else None)

    def follow(self, record: LineageRecord, seen: Peek) -> None:
        was = self.untrusted
        super().follow(record, seen)
        for task in self._tasks:
            if isinstance(task, MemoryWatch):
                task.due_again = True
            elif was:
                task.forget()

    def read(self, service: MemoryEtcd, key: str) -> KV | None:
        """A record of the service as everybody here sees it."""
        kv = service.kvs.get(key)
        return self.told(kv) if kv is not None else None

    def read_all(self, service: MemoryEtcd, prefix: str) -> tuple[int, list[KV]]:
        """As ``range``."""
        found = [self.told(kv) for key, kv in sorted(service.kvs.items()) if key.startswith(prefix)]
        return self.base + service.revision, found

    def swap(
        self, service: MemoryEtcd, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
    ) -> TxnResult:
        """As ``txn``."""
        result = service.txn([self.asked(c) for c in compares], then, otherwise)
        kvs = [self.told(kv) if kv is not None else None for kv in result.kvs]
        return TxnResult(result.succeeded, self.base + result.revision, kvs)

    @property
    def trouble(self) -> str:
        return self.untrusted or ("" if self.takes_writes else FULL)

    @property
    def takes_writes(self) -> bool:
        return not self.service.full

    def distrust(self, why: str) -> None:
        self.untrusted = self.untrusted or why
        self.connected = False

    async def get(self, key: str) -> KV | None:
        await asyncio.sleep(0)
        return self.read(self.reach(), key)

    async def range(self, prefix: str) -> tuple[int, list[KV]]:
        await asyncio.sleep(0)
        return self.read_all(self.reach(), prefix)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        await asyncio.sleep(0)
        service = self.reach()
        result = self.swap(service, compares, then, otherwise)
        if service.lose_next_answer:
            service.lose_next_answer = False
            raise CoordinationUnknown("the answer was lost")
        self.revision = max(self.revision, result.revision)
        return result

    def session(self, ttl_s: float) -> MemorySession:
        session = MemorySession(self, ttl_s)
        self._tasks.append(session)
        return session

    def watch(
        self, prefix: str, on_change: OnChange, quiet_s: float = QUIET_S, on_read: OnRead | None = None
    ) -> MemoryWatch:
        watch = MemoryWatch(self, prefix, on_change, on_read)
        self._tasks.append(watch)
        return watch

    async def close(self) -> None:
        for task in self._tasks:
            if isinstance(task, MemorySession):
                await task.close()
            else:
                task.close()


class MemorySession(KeptSession):
    """Implements Session."""

    def __init__(self, coordinator: MemoryCoordinator, ttl_s: float) -> None:
        super().__init__(ttl_s)
        self._c = coordinator
        self._until = 0.0

    @property
    def alive(self) -> bool:
        return self.lease_id != 0 and self._c.clock() < self._until

    async def _run(self) -> None:
        while True:
            now = self._c.clock()
            try:
                service = self._c.reach()
                if not self.lease_id or not service.keep_alive(self.lease_id, now):
                    self._set(0)
                    self._set(service.grant(self._ttl_s, now))
                self._until = now + self._ttl_s
            except CoordinationUnavailable:
                if not self.alive:
                    self._set(0)
            await asyncio.sleep(min(self._ttl_s / 6, self._c.poll_s))

    def forget(self) -> None:
        self._until = 0.0
        self._set(0)

    async def close(self) -> None:
        await self._end()
        if self.lease_id and self._c.service.up and not self._c.cut:
            self._c.service.revoke(self.lease_id)
        self.lease_id = 0


class MemoryWatch(Mirror):
    """Implements Watch."""

    def __init__(
        self, coordinator: MemoryCoordinator, prefix: str, on_change: OnChange, on_read: OnRead | None = None
    ) -> None:
        super().__init__()
        self._c = coordinator
        self._prefix = prefix
        self._on_change = on_change
        self._on_read = on_read
        self._heard_s = coordinator.clock()
        #: everything is to be read anew
        self.due_again = True
        self.ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def begin_again(self) -> None:
        self.due_again = True

    def close(self) -> None:
        self._task.cancel()

    @property
    def silent_s(self) -> float:
        return self._c.clock() - self._heard_s

    async def _run(self) -> None:
        while True:
            try:
                service = self._c.reach()
                if service.blind:
                    raise CoordinationUnavailable("it hears nothing")
                c, base = self._c, self._c.base
                if self.due_again or self.revision < base + service.compacted:
                    self.due_again = False
                    try:
                        revision, content = await c.range(self._prefix)
                        if self._on_read is not None:
                            await self._on_read(content)
                    except CoordinationError:
                        self.due_again = True
                        raise
                    if base != c.base:
                        continue
                    changes: list[Change] = self.snapshot(revision, content)
                else:
                    events = [e for e in service.history if base + e[0] > self.revision]
                    mine = [
                        (key, c.told(kv) if kv is not None else None)
                        for _, key, kv in events
                        if key.startswith(self._prefix)
                    ]
                    changes = self.events(base + service.revision, mine)
                if changes or not self.ready.is_set():
                    self._on_change(self.revision, changes)
                self.ready.set()
                self._heard_s = self._c.clock()
            except CoordinationUnavailable:
                pass
            await asyncio.sleep(self._c.poll_s)
