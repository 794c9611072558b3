"""A lease of etcd that is kept alive for as long as the process lives, and made anew when it was lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Any

from metastore.clock import now_ns
from metastore.coordination.etcd_calls import CALL_TIMEOUT_S, RETRY_S, aetcd, rpc
from metastore.coordination.etcd_connection import EtcdConnection
from metastore.coordination.session import KeptSession
from metastore.errors import CoordinationError

log = logging.getLogger("metastore.etcd")


class EtcdSession(KeptSession):
    """Implements Session."""

    def __init__(self, coordinator: EtcdConnection, ttl_s: float) -> None:
        super().__init__(ttl_s)
        self._etcd = coordinator
        self._expires_ns = 0

    @property
    def alive(self) -> bool:
        return self.lease_id != 0 and now_ns() < self._expires_ns

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
                log.exception("the lease task failed; it is tried again")
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
        await self._end()
        if self.alive:
            request = rpc.LeaseRevokeRequest(ID=self.lease_id)
            self.lease_id = 0
            with contextlib.suppress(CoordinationError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._etcd.call(
                        lambda c: c.leasestub.LeaseRevoke(request, timeout=1.0), write=True, check=False
                    )
