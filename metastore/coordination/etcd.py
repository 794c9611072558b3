"""etcd through aetcd: the real coordination service.

aetcd supplies connections, stubs and messages. Its own keep-alive, watcher and transaction
helpers are not used: they wait without bound while a server is silent, and a watch does not
survive a compaction. Here each call has a timeout and each stream a liveness check.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from metastore.addresses import split_address
from metastore.clock import now_ns
from metastore.coordination.etcd_calls import (
    CALL_TIMEOUT_S,
    RETRY_S,
    aetcd,
    compare_of,
    kv_of,
    op_of,
    prefix_end,
    rpc,
)
from metastore.coordination.etcd_watch import EtcdWatch
from metastore.coordination.interface import (
    KV,
    QUIET_S,
    Compare,
    Get,
    OnChange,
    OnRead,
    Op,
    Session,
    TxnResult,
)
from metastore.coordination.lineage import Known, Lineal, Peek
from metastore.coordination.troubles import trouble_of
from metastore.errors import CoordinationError, CoordinationUnavailable, CoordinationUnknown
from metastore.layout import LineageRecord

log = logging.getLogger("metastore.etcd")

FAIL_FAST_S = (0.05, 0.2)
RANGE_PAGE = 2000
CHANNEL_OPTIONS = {
    #: what lay in between while a watch was away comes in one piece, and a page of records too
    "grpc.max_receive_message_length": -1,
    "grpc.keepalive_time_ms": 2000,
    "grpc.keepalive_timeout_ms": 2000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.enable_retries": 0,
    "grpc.use_local_subchannel_pool": 1,
}
#: gRPC says UNAVAILABLE both for "never connected" and for "the connection broke under it"
NOT_SENT = ("failed to connect", "connection refused", "connections to all backends failing")

#: certainly without effect
REFUSALS = frozenset(
    {
        rpc.StatusCode.INVALID_ARGUMENT,
        rpc.StatusCode.NOT_FOUND,
        rpc.StatusCode.FAILED_PRECONDITION,
        rpc.StatusCode.RESOURCE_EXHAUSTED,
        rpc.StatusCode.PERMISSION_DENIED,
        rpc.StatusCode.UNAUTHENTICATED,
    }
)
#: so long after a write was refused the next one is expected to be refused too
REFUSED_S = 3.0


class EtcdCoordinator(Lineal):
    """Implements Coordinator. ``endpoints``: ``host:port``, tried in turn, the last good first.

    ``known``: what an earlier run saw. If etcd's identity changes or its revision goes back, it is not trusted
    any more and every call fails (R13), until its records were rebuilt (``follow``).
    """

    def __init__(self, endpoints: Sequence[str], known: Known | None = None) -> None:
        super().__init__(known or Known())
        self.endpoints = list(endpoints)
        self.connected = False
        #: what ails it, by what it was asked for: "read", "write", "member HOST:PORT"
        self._troubles: dict[str, str] = {}
        self._clients: dict[str, aetcd.Client] = {}
        self._current = 0
        self._closed_until = 0.0
        self._write_refused = -REFUSED_S
        self._watches: list[EtcdWatch] = []
        self._sessions: list[EtcdSession] = []

    # --- calls ------------------------------------------------------------------------------

    async def client(self) -> aetcd.Client:
        endpoint = self.endpoints[self._current % len(self.endpoints)]
        client = self._clients.get(endpoint)
        if client is None:
            host, port = split_address(endpoint)
            bracketed = f"[{host}]" if ":" in host else host  # it goes into a URL
            client = aetcd.Client(host=bracketed, port=port, options=CHANNEL_OPTIONS)
            self._clients[endpoint] = client
            await client.connect()  # makes the channel and the stubs; does not wait for a server
        return client

    def endpoint_of(self, client: aetcd.Client) -> str:
        """``host:port`` of a client that ``client`` gave."""
        return next((endpoint for endpoint, known in self._clients.items() if known is client), "?")

    def next_endpoint(self, failed: aetcd.Client) -> None:
        """Pass over the endpoint of ``failed``, unless another caller has done so already."""
        if self._clients.get(self.endpoints[self._current % len(self.endpoints)]) is failed:
            self._current += 1

    async def call(
        self, make: Callable[[aetcd.Client], Awaitable[Any]], *, write: bool, check: bool = True
    ) -> Any:
        """One request, at each endpoint once while it certainly had no effect."""
        loop = asyncio.get_running_loop()
        if self.untrusted:
            raise CoordinationUnavailable(self.untrusted)
        if loop.time() < self._closed_until:
            raise CoordinationUnavailable("etcd did not answer just now")
        error: CoordinationError | None = None
        for _ in self.endpoints:
            before = self.revision
            client = await self.client()
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    response = await make(client)
                if not self.see(response.header, before if check else 0):
                    error = (
                        CoordinationUnknown(self.untrusted)
                        if write
                        else CoordinationUnavailable(self.untrusted)
                    )
                    break
                self._set_connected(True)
                self.note_trouble("write" if write else "read", "")
                return response
            except TimeoutError:
                error = (
                    CoordinationUnknown(f"etcd gave no answer within {CALL_TIMEOUT_S} s")
                    if write
                    else CoordinationUnavailable(f"etcd gave no answer within {CALL_TIMEOUT_S} s")
                )
            except rpc.AioRpcError as e:
                error = self._classify(e, write)
                self.note_trouble("write" if write else "read", trouble_of(e.details() or ""))
                if e.code() in REFUSALS:
                    raise error from e  # it is there, and has answered
            self.next_endpoint(client)
            if write and isinstance(error, CoordinationUnknown):
                break
        self._set_connected(False)
        self._closed_until = loop.time() + random.uniform(*FAIL_FAST_S)
        assert error is not None
        raise error

    @staticmethod
    def _classify(e: Any, write: bool) -> CoordinationError:
        details = (e.details() or "").lower()
        if not write or (e.code() == rpc.StatusCode.UNAVAILABLE and any(t in details for t in NOT_SENT)):
            return CoordinationUnavailable(f"etcd: {e.details()}")
        if e.code() in REFUSALS:
            return CoordinationUnavailable(f"etcd refused: {e.details()}")
        return CoordinationUnknown(f"etcd: {e.details()}")

    def distrust(self, why: str) -> None:
        if not self.untrusted:
            self.untrusted = why
            log.critical(
                "etcd is distrusted, because %s; data goes on being served; its records can be rebuilt from the stores: "
                "cellctl control rebuild",
                why,
            )
        self._set_connected(False)

    @property
    def trouble(self) -> str:
        return self.untrusted or next(iter(self._troubles.values()), "")

    @property
    def takes_writes(self) -> bool:
        refused_s = asyncio.get_running_loop().time() - self._write_refused
        return not self.untrusted and ("write" not in self._troubles or refused_s > REFUSED_S)

    def note_trouble(self, about: str, trouble: str) -> None:
        """What is known to ail ``about``; "" = nothing, any more."""
        known = self._troubles.pop(about, "")
        if trouble:
            if about == "write":
                self._write_refused = asyncio.get_running_loop().time()
            self._troubles[about] = trouble
            if not known:
                log.warning("%s", trouble)
        elif known:
            log.info("over: %s", known)

    def see(self, header: Any, at_least: int) -> bool:
        """R13: note etcd's identity and revision; False when they contradict what is known."""
        if self.cluster_id is None:
            self.cluster_id = header.cluster_id
        if header.cluster_id != self.cluster_id:
            self.distrust(
                f"etcd's cluster id is {header.cluster_id:x} and was {self.cluster_id:x}: it was replaced or restored"
            )
        elif self.base + header.revision < at_least:
            self.distrust(
                f"etcd's revision went back from {at_least - self.base} to {header.revision}: it was restored from a backup"
            )
        if self.untrusted:
            return False
        self.revision = max(self.revision, self.base + header.revision)
        return True

    async def peek(self, key: str) -> Peek:
        request = rpc.RangeRequest(key=key.encode())
        client = await self.client()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                r = await client.kvstub.Range(request, timeout=CALL_TIMEOUT_S)
        except (TimeoutError, rpc.AioRpcError) as e:
            self.next_endpoint(client)
            raise CoordinationUnavailable(f"etcd: {e}"[:300]) from None
        return Peek(r.header.cluster_id, r.header.revision, r.kvs[0].value if r.kvs else None)

    def follow(self, record: LineageRecord, seen: Peek) -> None:
        was = self.untrusted
        super().follow(record, seen)
        self._closed_until = 0.0
        if was:  # its leases are of another etcd, or of what was there before
            for session in self._sessions:
                session.forget()
        for watch in self._watches:
            watch.begin_again()

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            log.info("etcd answers" if connected else "etcd does not answer; data goes on being served")

    async def get(self, key: str) -> KV | None:
        request = rpc.RangeRequest(key=key.encode())
        r = await self.call(lambda c: c.kvstub.Range(request, timeout=CALL_TIMEOUT_S), write=False)
        return self.told(kv_of(r.kvs[0])) if r.kvs else None

    async def range(self, prefix: str) -> tuple[int, list[KV]]:
        raw = prefix.encode()
        start, revision = raw, 0
        found: list[KV] = []
        while True:  # pages of one revision: an answer has a size limit
            request = rpc.RangeRequest(
                key=start, range_end=prefix_end(raw), limit=RANGE_PAGE, revision=revision
            )

            def ask(c: aetcd.Client, request: Any = request) -> Awaitable[Any]:
                return c.kvstub.Range(request, timeout=CALL_TIMEOUT_S)  # type: ignore[no-any-return]

            r = await self.call(ask, write=False)
            revision = revision or r.header.revision
            found += [self.told(kv_of(kv)) for kv in r.kvs]
            if not r.more:
                return self.base + revision, found
            start = r.kvs[-1].key + b"\0"

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

    # --- sessions and watches -------------------------------------------------------------------

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
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await client.close()
        self._clients.clear()


class EtcdSession:
    """Implements Session."""

    def __init__(self, coordinator: EtcdCoordinator, ttl_s: float) -> None:
        self._etcd = coordinator
        self._ttl_s = ttl_s
        self._expires_ns = 0
        self._task: asyncio.Task[None] | None = None
        self.lease_id = 0
        self.margin_s = ttl_s
        self.on_change: Callable[[Session], None] = lambda session: None

    @property
    def alive(self) -> bool:
        return self.lease_id != 0 and now_ns() < self._expires_ns

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _set(self, lease_id: int) -> None:
        if lease_id != self.lease_id:
            self.lease_id = lease_id
            self.on_change(self)

    async def _run(self) -> None:
        while True:
            try:
                if not self.alive:
                    self._set(0)
                    await self._grant()
                else:
                    await self._renew()
                await asyncio.sleep(self._ttl_s / 3)
            except CoordinationError as e:
                log.debug("lease: %s", e)
                if not self.alive:
                    self._set(0)
                await asyncio.sleep(min(random.uniform(*RETRY_S), self._ttl_s / 6))
            except Exception:
                log.exception("the lease task failed; it goes on")
                await asyncio.sleep(RETRY_S[1])

    async def _grant(self) -> None:
        sent = now_ns()
        request = rpc.LeaseGrantRequest(TTL=max(1, round(self._ttl_s)))
        r = await self._etcd.call(
            lambda c: c.leasestub.LeaseGrant(request, timeout=CALL_TIMEOUT_S), write=True, check=False
        )
        self._expires_ns = sent + int(r.TTL * 1e9)
        self._set(r.ID)

    async def _renew(self) -> None:
        sent, lease = now_ns(), self.lease_id

        async def keep_alive(client: aetcd.Client) -> Any:
            async def requests() -> Any:
                yield rpc.LeaseKeepAliveRequest(ID=lease)

            async for response in client.leasestub.LeaseKeepAlive(requests(), timeout=CALL_TIMEOUT_S):
                return response
            raise TimeoutError

        r = await self._etcd.call(keep_alive, write=False, check=False)
        if r.TTL > 0:
            self.margin_s = min(self.margin_s, (self._expires_ns - now_ns()) / 1e9)
            self._expires_ns = sent + int(r.TTL * 1e9)
        else:  # etcd has let the lease expire
            self._expires_ns = 0
            self._set(0)
            await self._grant()

    def forget(self) -> None:
        """The lease is none any more; another is asked for."""
        self._expires_ns = 0
        self._set(0)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.alive:
            request = rpc.LeaseRevokeRequest(ID=self.lease_id)
            self.lease_id = 0
            with contextlib.suppress(CoordinationError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._etcd.call(
                        lambda c: c.leasestub.LeaseRevoke(request, timeout=1.0), write=True, check=False
                    )
