"""The Python client, asynchronous: direct to leaders over the binary protocol."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from metastore.client.dispatch import Dispatcher
from metastore.client.namespace import Namespace


class AsyncClient:
    """A client of one cluster.

    ``nodes``: ``host:port`` of any nodes, to learn the topology from. ``deadline_s``: default time
    limit of a call. Use as an async context manager, or call ``start`` and ``close``.
    """

    def __init__(
        self, nodes: Sequence[str], *, cluster: str = "", deadline_s: float = 10.0, name: str = "python"
    ) -> None:
        self.dispatcher = Dispatcher(list(nodes), cluster, name=name)
        self.deadline_s = deadline_s

    async def start(self) -> None:
        """Raises Unavailable when no node tells the topology within the deadline."""
        await self.dispatcher.start(self.deadline_s)

    async def close(self) -> None:
        await self.dispatcher.close()

    async def __aenter__(self) -> AsyncClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def namespace(self, name: str) -> Namespace:
        """Raises InvalidRequest when ``name`` is not valid."""
        return Namespace(self.dispatcher, name, self.deadline_s)
