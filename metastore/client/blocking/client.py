"""The Python client, for threads: direct to leaders over the binary protocol.

Made from ``metastore/client/client.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

from metastore.client.blocking.bases import ClientBase
from metastore.client.blocking.namespace import Namespace
from metastore.client.client import AsyncClient, ClientStats
from metastore.client.codecs import BYTES, Codec

T = TypeVar("T")


class Client(ClientBase):
    """A client of one cluster. Use as a context manager, or call ``close`` at the end.

    ``nodes``: ``host:port`` of any nodes, to learn the topology from. ``router``: URL of a router,
    which tells the topology too, and through which everything goes that cannot go to the nodes
    directly. ``direct``: False = everything goes through the router, for networks that let nothing else
    through. ``cluster``: the cluster's name, to be refused by any other. ``deadline_s``: default time
    limit of a call, in seconds. ``name``: shown in the nodes' logs.

    One client serves any number of threads. Its event loop runs in a daemon thread, which starts with
    the first call. One that is forgotten is closed when it is collected, and at exit. May be made
    before a fork (a server that preloads): the child starts its own thread, with connections and
    request ids of its own; watchers, locks and leaderships stay the parent's."""

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
        super().__init__(
            lambda: AsyncClient(
                nodes, router=router, cluster=cluster, deadline_s=deadline_s, name=name, direct=direct
            )
        )

    def start(self) -> None:
        """Learn the topology now. Raises Unavailable when no server sends it within the deadline."""
        inner = self._inner
        self._call(lambda: inner.start())

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
        inner = self._inner
        return self._look(lambda: inner.stats())
