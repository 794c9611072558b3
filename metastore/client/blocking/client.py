"""The client for threads."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

from metastore.client.blocking.namespace import Namespace
from metastore.client.blocking.portal import Portal
from metastore.client.client import AsyncClient, ClientStats
from metastore.client.codecs import BYTES, Codec

T = TypeVar("T")


class Client:
    """AsyncClient for threads: one client serves any number of them. Use as a context manager, or call
    ``close`` at the end; one that is forgotten is closed when it is collected, and at exit.

    Arguments, methods, results and errors are AsyncClient's. Its event loop runs in a daemon thread,
    which starts with the first call. May be made before a fork (a server that preloads): the child starts its own
    thread, with connections and request ids of its own; watchers, locks and leaderships stay the
    parent's.
    """

    def __init__(
        self,
        nodes: Sequence[str] | str = (),
        *,
        router: str | None = None,
        cluster: str = "",
        deadline_s: float = 10.0,
        name: str = "python",
        direct: bool = True,
    ) -> None:
        def make() -> AsyncClient:
            return AsyncClient(
                nodes, router=router, cluster=cluster, deadline_s=deadline_s, name=name, direct=direct
            )

        make()  # refuses what is wrong
        self.deadline_s = deadline_s
        self._portal = Portal(make)

    def start(self) -> None:
        """Learn the topology now. Raises Unavailable when nobody tells it within the deadline."""
        client = self._portal.client()
        self._portal.call(client.start)

    def close(self) -> None:
        """End everything: what is under way ends with ClientClosed, or OutcomeUnknown, and watches end."""
        self._portal.close()

    def __enter__(self) -> Client:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def namespace(self, name: str) -> Namespace[bytes]: ...

    @overload
    def namespace(self, name: str, codec: Codec[T]) -> Namespace[T]: ...

    def namespace(self, name: str, codec: Any = BYTES) -> Namespace[Any]:
        """The keys of a namespace, values by ``codec`` (JSON, MSGPACK, TEXT, BYTES, or one of your own). Costs
        nothing. Raises InvalidRequest when ``name`` is not valid."""
        return Namespace(self._portal, name, self.deadline_s, codec)

    def stats(self) -> ClientStats:
        """Counts of retries and the like."""
        client = self._portal.client()

        async def look() -> ClientStats:
            return client.stats()

        return self._portal.call(look)
