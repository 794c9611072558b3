"""Requests to etcd through aetcd, each with a timeout; which member answers, whether it is the etcd that is known.

aetcd supplies connections, stubs and messages. Its own keep-alive, watcher and transaction
helpers are not used: they wait without bound while a server is silent, and a watch does not
survive a compaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from metastore.addresses import split_address
from metastore.coordination.etcd_calls import (
    CALL_TIMEOUT_S,
    aetcd,
    kv_of,
    prefix_end,
    rpc,
)
from metastore.coordination.interface import (
    KV,
    Known,
    Peek,
)
from metastore.coordination.lineage import Lineal
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
    # the time of one attempt to connect, whatever its name says: a busy etcd, or a far one, takes its part of a second to
    # greet. Less than a call has, so that the call knows that nothing was sent, and another endpoint is asked
    "grpc.min_reconnect_backoff_ms": 1000,
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


class EtcdConnection(Lineal):
    """Requests to etcd. ``endpoints``: ``host:port``, tried in turn, the last good first.

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
            raise CoordinationUnavailable("etcd did not answer a moment ago, and is not asked again yet")
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
                "etcd is distrusted, because %s; data is still served; etcd's records can be rebuilt from the nodes' stores: "
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
            log.info("etcd has recovered from: %s", known)

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
        super().follow(record, seen)
        self._closed_until = 0.0

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            log.info("etcd answers" if connected else "etcd does not answer; data is still served")

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

    async def close(self) -> None:
        """Close the connections to all endpoints."""
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await client.close()
        self._clients.clear()
