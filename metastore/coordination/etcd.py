"""etcd through aetcd: the real coordination service.

aetcd supplies connections, stubs and messages. Its own keep-alive, watcher and transaction
helpers are not used: they wait without bound while a server is silent, and a watch does not
survive a compaction. Here each call has a timeout and each stream a liveness check.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import aetcd
from aetcd import rpc

from metastore.clock import now_ns
from metastore.coordination.interface import (
    KV,
    Change,
    Compare,
    Delete,
    Get,
    OnChange,
    Op,
    Put,
    Session,
    TxnResult,
)
from metastore.coordination.mirror import Mirror
from metastore.errors import CoordinationError, CoordinationUnavailable, CoordinationUnknown

log = logging.getLogger("metastore.etcd")

CALL_TIMEOUT_S = 2.0
FAIL_FAST_S = (0.05, 0.2)
RETRY_S = (0.2, 1.0)
WATCH_SILENCE_S = 3.0
RANGE_PAGE = 2000
CHANNEL_OPTIONS = {
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


def _prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _kv(raw: Any) -> KV:
    return KV(raw.key.decode(), raw.value, raw.mod_revision, raw.create_revision, raw.lease)


def _compare(c: Compare) -> Any:
    if c.what == "mod":
        return rpc.Compare(
            result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=c.key.encode(), mod_revision=c.revision
        )
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.VALUE, key=c.key.encode(), value=c.value)


def _op(op: Op) -> Any:
    if isinstance(op, Put):
        put = rpc.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease)
        return rpc.RequestOp(request_put=put)
    if isinstance(op, Delete):
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=op.key.encode()))
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=op.key.encode()))


class EtcdCoordinator:
    """Implements Coordinator. ``endpoints``: ``host:port``, tried in turn, the last good first.

    ``known_cluster_id``, ``known_revision``: what an earlier run saw. If etcd's identity changes
    or its revision goes back, it is not trusted any more and every call fails (R13).
    """

    def __init__(
        self, endpoints: Sequence[str], known_cluster_id: int | None = None, known_revision: int = 0
    ) -> None:
        self.endpoints = list(endpoints)
        self.cluster_id = known_cluster_id
        self.revision = known_revision
        self.connected = False
        self.untrusted = ""
        self._clients: dict[str, aetcd.Client] = {}
        self._current = 0
        self._closed_until = 0.0
        self._watches: list[EtcdWatch] = []
        self._sessions: list[EtcdSession] = []

    # --- calls ------------------------------------------------------------------------------

    async def client(self) -> aetcd.Client:
        endpoint = self.endpoints[self._current % len(self.endpoints)]
        client = self._clients.get(endpoint)
        if client is None:
            host, _, port = endpoint.rpartition(":")
            client = aetcd.Client(host=host, port=int(port), options=CHANNEL_OPTIONS)
            self._clients[endpoint] = client
            await client.connect()  # makes the channel and the stubs; does not wait for a server
        return client

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
                if not self._see(response.header, before if check else 0):
                    error = (
                        CoordinationUnknown(self.untrusted)
                        if write
                        else CoordinationUnavailable(self.untrusted)
                    )
                    break
                self._set_connected(True)
                return response
            except TimeoutError:
                error = (
                    CoordinationUnknown(f"etcd gave no answer within {CALL_TIMEOUT_S} s")
                    if write
                    else CoordinationUnavailable(f"etcd gave no answer within {CALL_TIMEOUT_S} s")
                )
            except rpc.AioRpcError as e:
                error = self._classify(e, write)
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
        if e.code() in (
            rpc.StatusCode.INVALID_ARGUMENT,
            rpc.StatusCode.NOT_FOUND,
            rpc.StatusCode.FAILED_PRECONDITION,
            rpc.StatusCode.RESOURCE_EXHAUSTED,
        ):
            return CoordinationUnavailable(f"etcd refused: {e.details()}")
        return CoordinationUnknown(f"etcd: {e.details()}")

    def distrust(self, why: str) -> None:
        if not self.untrusted:
            self.untrusted = f"{why}; rebuild its records from the stores before going on"
            log.critical("%s", self.untrusted)
        self._set_connected(False)

    def _see(self, header: Any, at_least: int) -> bool:
        """R13: note etcd's identity and revision; False when they contradict what is known."""
        if self.cluster_id is None:
            self.cluster_id = header.cluster_id
        if header.cluster_id != self.cluster_id:
            self.distrust(
                f"etcd's cluster id is {header.cluster_id:x} and was {self.cluster_id:x}: it was replaced or restored"
            )
        elif header.revision < at_least:
            self.distrust(
                f"etcd's revision went back from {at_least} to {header.revision}: it was restored from a backup"
            )
        if self.untrusted:
            return False
        self.revision = max(self.revision, header.revision)
        return True

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            log.info("etcd answers" if connected else "etcd does not answer; data goes on being served")

    async def get(self, key: str) -> KV | None:
        request = rpc.RangeRequest(key=key.encode())
        r = await self.call(lambda c: c.kvstub.Range(request, timeout=CALL_TIMEOUT_S), write=False)
        return _kv(r.kvs[0]) if r.kvs else None

    async def range(self, prefix: str) -> tuple[int, list[KV]]:
        raw = prefix.encode()
        start, revision = raw, 0
        found: list[KV] = []
        while True:  # pages of one revision: an answer has a size limit
            request = rpc.RangeRequest(
                key=start, range_end=_prefix_end(raw), limit=RANGE_PAGE, revision=revision
            )

            def ask(c: aetcd.Client, request: Any = request) -> Awaitable[Any]:
                return c.kvstub.Range(request, timeout=CALL_TIMEOUT_S)  # type: ignore[no-any-return]

            r = await self.call(ask, write=False)
            revision = revision or r.header.revision
            found += [_kv(kv) for kv in r.kvs]
            if not r.more:
                return revision, found
            start = r.kvs[-1].key + b"\0"

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        request = rpc.TxnRequest(
            compare=[_compare(c) for c in compares],
            success=[_op(o) for o in then],
            failure=[_op(o) for o in otherwise],
        )
        r = await self.call(lambda c: c.kvstub.Txn(request, timeout=CALL_TIMEOUT_S), write=True)
        taken = then if r.succeeded else otherwise
        kvs = [
            _kv(response.response_range.kvs[0]) if response.response_range.kvs else None
            for op, response in zip(taken, r.responses, strict=True)
            if isinstance(op, Get)
        ]
        return TxnResult(r.succeeded, r.header.revision, kvs)

    # --- sessions and watches -------------------------------------------------------------------

    def session(self, ttl_s: float) -> EtcdSession:
        session = EtcdSession(self, ttl_s)
        self._sessions.append(session)
        return session

    def watch(self, prefix: str, on_change: OnChange) -> EtcdWatch:
        watch = EtcdWatch(self, prefix, on_change)
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


class EtcdWatch(Mirror):
    """Implements Watch: a reading of the prefix, then the stream from the next revision on; after
    a compaction, or in any doubt, a reading again, of which only the differences count."""

    def __init__(self, coordinator: EtcdCoordinator, prefix: str, on_change: OnChange) -> None:
        super().__init__()
        self._etcd = coordinator
        self._prefix = prefix
        self._on_change = on_change
        self.ready = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        self._task.cancel()

    async def _run(self, reread: bool = True) -> None:
        while True:
            try:
                if reread:
                    revision, content = await self._etcd.range(self._prefix)
                    self._deliver(revision, self.snapshot(revision, content))
                    self.ready.set()
                reread = await self._stream()
            except CoordinationError as e:
                log.debug("watch: %s", e)
            except rpc.AioRpcError as e:
                log.debug("watch: %s", e.details())
            except Exception:
                log.exception("the watch failed; it begins again")
                reread = True
            await asyncio.sleep(random.uniform(*RETRY_S) / 2)

    def _deliver(self, revision: int, changes: list[Change]) -> None:
        if changes or not self.ready.is_set():
            try:
                self._on_change(revision, changes)
            except Exception:
                log.exception("a watch's consumer failed")

    async def _stream(self) -> bool:
        """Follow events until the stream ends; whether the prefix must be read again."""
        client = await self._etcd.client()
        # a member cut off from its leader ends the stream instead of keeping it without news
        call = rpc.WatchStub(client.channel).Watch(metadata=(("hasleader", "true"),))
        raw = self._prefix.encode()
        create = rpc.WatchCreateRequest(
            key=raw, range_end=_prefix_end(raw), start_revision=self.revision + 1, progress_notify=True
        )
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await call.write(rpc.WatchRequest(create_request=create))
            while True:
                response = await self._read(call)
                if response is None:
                    self._etcd.next_endpoint(client)
                    return False
                if response.canceled or response.compact_revision:
                    return True
                if not self._etcd._see(response.header, self.revision if response.created else 0):
                    raise CoordinationUnavailable(self._etcd.untrusted)
                if response.created or not response.events:
                    continue
                events = [
                    (e.kv.key.decode(), _kv(e.kv) if e.type == rpc.Event.PUT else None)
                    for e in response.events
                ]
                revision = max(e.kv.mod_revision for e in response.events)
                self._etcd.revision = max(self._etcd.revision, revision)
                self._deliver(revision, self.events(revision, events))
        except (
            TimeoutError,
            rpc.AioRpcError,
            asyncio.InvalidStateError,
        ) as e:  # the last: it ended as we wrote
            log.debug("watch: %s", e)
            self._etcd.next_endpoint(client)
            return False
        finally:
            call.cancel()

    @staticmethod
    async def _read(call: Any) -> Any:
        """The next response; None when the stream ended or stays dead silent when asked."""
        reading = asyncio.ensure_future(call.read())
        try:
            done, _ = await asyncio.wait({reading}, timeout=WATCH_SILENCE_S)
            if not done:
                progress = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await call.write(progress)
                done, _ = await asyncio.wait({reading}, timeout=CALL_TIMEOUT_S)
            if not done:
                return None
            response = reading.result()
            return response if response else None
        finally:
            if not reading.done():
                reading.cancel()
