"""The open connections of a client: one to each node, made when it is needed, and the one through a router."""

from __future__ import annotations

import asyncio
from typing import Final

from metastore import net
from metastore.routing.connection import CONNECT_TIMEOUT_S, NodeConnection
from metastore.routing.failures import ConnectionLost
from metastore.routing.router_connection import RouterConnection

LOOK_S: Final = 0.1


class Pool:
    """See the module. ``router``: its URL, None = there is none."""

    def __init__(self, cluster: str, name: str, router: str | None) -> None:
        self._cluster, self._name = cluster, name
        self.router = RouterConnection(router, name) if router else None
        self.router_url = self.router.url if self.router else None
        #: nothing is opened any more
        self.closed = False
        self._connections: dict[str, NodeConnection] = {}
        self._connecting: dict[str, asyncio.Task[NodeConnection]] = {}

    def open_connection(self, address: str) -> NodeConnection | RouterConnection | None:
        """What is open to ``address`` already."""
        connection = self._connections.get(address)
        if connection is not None:
            return None if connection.lost else connection
        return self.router if address == self.router_url else None

    def is_unresponsive(self, address: str) -> bool:
        """Whether a node owes answers, or owed them when it was last heard of."""
        connection = self._connections.get(address)
        return connection is not None and (
            connection.timed_out if connection.lost else connection.unresponsive
        )

    async def connect(
        self, address: str, until: float | None = None, patience_s: float = CONNECT_TIMEOUT_S
    ) -> NodeConnection:
        """The open connection to a node, or a new one. Raises ConnectionLost."""
        connection = self._connections.get(address)
        if connection is not None and not connection.lost:
            return connection
        if self.closed:
            raise ConnectionLost("the client is closed", sent=False)
        pending = self._connecting.get(address)
        if pending is None:
            loop = asyncio.get_running_loop()
            pending = loop.create_task(self._open(address))
            self._connecting[address] = pending

            def opened(task: asyncio.Task[NodeConnection]) -> None:
                self._connecting.pop(address, None)
                if not task.cancelled():
                    task.exception()  # retrieved, even when no caller waits for it any more

            pending.add_done_callback(opened)
        await self._wait_for(pending, until, patience_s)
        if not pending.done() or pending.cancelled():
            raise ConnectionLost(f"{address} did not accept a connection within {patience_s:g} s", sent=False)
        return pending.result()

    @staticmethod
    async def _wait_for(pending: asyncio.Task[NodeConnection], until: float | None, left_s: float) -> None:
        """For ``left_s`` of a loop that turns; the time that ours stands still hardly counts."""
        loop = asyncio.get_running_loop()
        while left_s > 0 and not pending.done():
            began = loop.time()
            step_s = LOOK_S if until is None else min(LOOK_S, until - began)
            if step_s <= 0:
                return
            await asyncio.wait({pending}, timeout=step_s)
            left_s -= min(loop.time() - began, 1.5 * LOOK_S)

    async def _open(self, address: str) -> NodeConnection:
        before = self._connections.get(address)
        timed_out = before is not None and before.timed_out
        try:
            async with asyncio.timeout(3 * CONNECT_TIMEOUT_S):
                connection = await net.dial(
                    lambda: NodeConnection(self._cluster, self._name, timed_out=timed_out), address
                )
        except TimeoutError:
            raise ConnectionLost(
                f"{address} did not accept a connection within {3 * CONNECT_TIMEOUT_S:g} s", sent=False
            ) from None
        except (OSError, ValueError) as e:
            # ValueError: as a table said, it is no address, or a host that is no name
            refused = isinstance(e, ConnectionRefusedError | ValueError)
            text = f"{address}: {getattr(e, 'strerror', None) or e}"
            raise ConnectionLost(text, sent=False, refused=refused) from None
        self._connections[address] = connection
        return connection

    def shut(self) -> list[asyncio.Task[NodeConnection]]:
        """Open nothing any more; the attempts that are under way."""
        self.closed = True
        return list(self._connecting.values())

    async def close(self) -> None:
        """What is under way on the connections ends with ConnectionLost."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        if self.router is not None:
            await self.router.close()
