"""etcd through aetcd: the real coordination service."""

from __future__ import annotations

from collections.abc import Sequence

from metastore.coordination.etcd_calls import CALL_TIMEOUT_S, compare_of, kv_of, op_of, rpc
from metastore.coordination.etcd_connection import EtcdConnection
from metastore.coordination.etcd_session import EtcdSession
from metastore.coordination.etcd_watch import EtcdWatch
from metastore.coordination.interface import (
    QUIET_S,
    Compare,
    Get,
    Known,
    OnChange,
    OnRead,
    Op,
    Peek,
    TxnResult,
)
from metastore.layout import LineageRecord


class EtcdCoordinator(EtcdConnection):
    """Implements Coordinator. ``endpoints`` and ``known``: as of the connection."""

    def __init__(self, endpoints: Sequence[str], known: Known | None = None) -> None:
        super().__init__(endpoints, known)
        self._watches: list[EtcdWatch] = []
        self._sessions: list[EtcdSession] = []

    def follow(self, record: LineageRecord, seen: Peek) -> None:
        was = self.untrusted
        super().follow(record, seen)
        if was:  # its leases are of another etcd, or of what was there before
            for session in self._sessions:
                session.forget()
        for watch in self._watches:
            watch.begin_again()

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        request = rpc.TxnRequest(
            compare=[compare_of(self.asked(c)) for c in compares],
            success=[op_of(o) for o in then],
            failure=[op_of(o) for o in otherwise],
        )
        r = await self.call(lambda c: c.kvstub.Txn(request, timeout=CALL_TIMEOUT_S), write=True)
        taken = then if r.succeeded else otherwise
        kvs = [
            self.told(kv_of(response.response_range.kvs[0])) if response.response_range.kvs else None
            for op, response in zip(taken, r.responses, strict=True)
            if isinstance(op, Get)
        ]
        return TxnResult(r.succeeded, self.base + r.header.revision, kvs)

    def session(self, ttl_s: float) -> EtcdSession:
        session = EtcdSession(self, ttl_s)
        self._sessions.append(session)
        return session

    def watch(
        self, prefix: str, on_change: OnChange, quiet_s: float = QUIET_S, on_read: OnRead | None = None
    ) -> EtcdWatch:
        watch = EtcdWatch(self, prefix, on_change, quiet_s, on_read)
        self._watches.append(watch)
        return watch

    async def close(self) -> None:
        for watch in self._watches:
            watch.close()
        for session in self._sessions:
            await session.close()
        await super().close()
