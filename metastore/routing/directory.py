"""Where partitions are, as this client knows it: the topology table, and keeping it fresh by asking around."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from metastore.errors import ClientClosed, MetastoreError, NoCommonVersion, Unavailable
from metastore.routing.connection import CONNECT_TIMEOUT_S
from metastore.routing.pool import Pool
from metastore.routing.unreachable import UnreachableNodes
from metastore.topology import TopologyTable

log = logging.getLogger("metastore.client")

REFRESH_S: Final = 5.0
MIN_REFRESH_GAP_S: Final = 0.2
#: how often all of the topology is asked for, and not only what has changed
FULL_REFRESH_S: Final = 600.0
#: one that does not answer is not waited for longer before the next is asked too
ASK_NEXT_S: Final = 0.25
MAX_ASKED: Final = 6


class Directory:
    """See the module. ``table`` may be fed from elsewhere too (the router's etcd watch). ``seeds``: addresses to begin with; not
    ``direct``: only the router is asked."""

    def __init__(self, table: TopologyTable, pool: Pool, seeds: list[str], direct: bool) -> None:
        self.table = table
        self._pool, self._direct = pool, direct
        self.seeds = list(seeds)
        self.unreachable = UnreachableNodes(self._reach)
        self._refreshing: asyncio.Task[bool] | None = None
        self._refused: NoCommonVersion | None = None
        self._refreshed_at = -1e9
        #: when the complete topology was received last, and whether an answer has contradicted it since
        self._full_refresh_at = -1e9
        self._doubted = False
        self._refresher: asyncio.Task[None] | None = None

    def keep_fresh(self) -> None:
        """Ask for what has changed every few seconds, from now on. Raises ClientClosed."""
        if self._pool.closed:
            raise ClientClosed("the client is closed")
        if self._refresher is None:
            self._refresher = asyncio.get_running_loop().create_task(self._refresh_forever())

    def shut(self) -> list[asyncio.Task[Any]]:
        """What is under way."""
        return [t for t in (self._refresher, self._refreshing) if t is not None]

    async def ready(self, until: float) -> None:
        """Return once the topology is known. Raises NoCommonVersion when no server sends it and a node does not speak with
        this client, Unavailable at ``until``."""
        if self.table.complete and self._refresher is not None:
            return
        self.keep_fresh()
        loop = asyncio.get_running_loop()
        while not self.table.complete:
            if self._pool.closed:
                raise ClientClosed("the client is closed")
            if loop.time() >= until:
                asked = ", ".join([*self.seeds, *([self._pool.router_url] if self._pool.router_url else [])])
                text = (
                    f"none of {asked} answered with it in time: are nodes or routers there?"
                    if asked
                    else "no address is given"
                )
                raise Unavailable(f"the topology is not known: {text}", retry_after_s=1)
            self._refused = None
            if not await self.refresh(until) and self._refused is not None:
                raise self._refused

    async def refresh(self, until: float | None = None) -> bool:
        """Ask around for the table, which does not fit what was met; shared by all who want it at once, at most a few a
        second. Returns by ``until`` (loop time): whether every key has a partition now."""
        self.refresh_soon()
        assert self._refreshing is not None
        timeout_s = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        await asyncio.wait({self._refreshing}, timeout=timeout_s)
        return self.table.complete

    def refresh_soon(self) -> None:
        """As ``refresh``; nobody waits for it."""
        self._doubted = True
        self._begin_refresh()

    def _begin_refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> bool:
        loop = asyncio.get_running_loop()
        wait = self._refreshed_at + MIN_REFRESH_GAP_S - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        self._refreshed_at = loop.time()
        known = [n.rpc for n in self.table.nodes.values() if n.rpc not in self.unreachable.addresses]
        addresses = random.sample(known, len(known)) + random.sample(self.seeds, len(self.seeds))
        asked = list(dict.fromkeys(addresses))[:MAX_ASKED] if self._direct else []
        asking: list[Callable[[], Awaitable[TopologyTable]]] = [partial(self._table_of, a) for a in asked]
        if self._pool.router is not None:
            asking.append(partial(self._pool.router.topology, CONNECT_TIMEOUT_S))
        return await self._ask_around(asking)

    async def _ask_around(self, asking: list[Callable[[], Awaitable[TopologyTable]]]) -> bool:
        """Ask one after the other, the next one too when one takes long, until a table is complete."""
        pending: list[asyncio.Future[TopologyTable]] = []
        try:
            while asking or pending:
                if asking:
                    pending.append(asyncio.ensure_future(asking.pop(0)()))
                timeout_s = ASK_NEXT_S if asking else None
                await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                answers = [p for p in pending if p.done()]
                pending = [p for p in pending if not p.done()]
                for answer in answers:
                    try:
                        self.table.merge(answer.result())
                        if self.table.complete:
                            return True
                    except MetastoreError as e:
                        self._refused = e if isinstance(e, NoCommonVersion) else self._refused
                        log.debug("topology: %s", e.message)
            return self.table.complete
        finally:
            for answer in pending:
                answer.cancel()

    async def _table_of(self, address: str) -> TopologyTable:
        """What a node knows; of what is here already, only what has changed. All of it now and then, and sooner when it
        is in doubt, so that nothing that is wrong here stays for long. Raises MetastoreError."""
        connection = await self._pool.connect(address)
        now = asyncio.get_running_loop().time()
        whole = not self.table.complete or now >= self._full_refresh_at + (
            REFRESH_S if self._doubted else FULL_REFRESH_S
        )
        found = TopologyTable.from_wire(
            await connection.topology(CONNECT_TIMEOUT_S, 0 if whole else self.table.revision)
        )
        if found.since is None and found.complete:
            self._full_refresh_at, self._doubted = now, False
        return found

    async def _refresh_forever(self) -> None:
        """Constant work: one request every few seconds, whether all is well or not."""
        while True:
            await asyncio.sleep(REFRESH_S * random.uniform(0.7, 1.3))
            self._begin_refresh()
            assert self._refreshing is not None
            await asyncio.wait({self._refreshing})

    async def _reach(self, address: str) -> bool:
        """Whether a node answers now; learns from what it says."""
        try:
            self.table.merge(await self._table_of(address))
            return True
        except MetastoreError:
            return False
