"""The Python client, asynchronous: direct to leaders over the binary protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, overload

from metastore.addresses import check_address
from metastore.client.codecs import BYTES, Codec
from metastore.client.namespace import AsyncNamespace
from metastore.errors import InvalidRequest
from metastore.routing.dispatcher import Dispatcher
from metastore.routing.gate import MAX_UNDER_WAY

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClientStats:
    """Counts since the client was made, and what is there now.

    ``retries``: attempts that failed and were repeated. ``budget_empty``: retries that found the retry
    budget empty, and slowed down. ``under_way``, ``waiting``: operations now, and those that wait for
    their turn. ``unreachable``: nodes that are reached through the router only, now.
    """

    retries: int
    budget_empty: int
    under_way: int
    waiting: int
    unreachable: int


def node_addresses(nodes: Sequence[str] | str) -> list[str]:
    """``host:port`` each; one string may hold several, with commas. Raises InvalidRequest."""
    found = [part.strip() for part in nodes.split(",")] if isinstance(nodes, str) else list(nodes)
    for address in found:
        if "://" in address:
            raise InvalidRequest(f"node {address!r:.100} is a URL: give router={address!r:.100}")
        try:
            check_address(address)
        except ValueError as e:
            raise InvalidRequest(f"node {address!r:.100} {e} (the node's rpc address)") from None
    return found


class AsyncClient:
    """A client of one cluster. Use as an async context manager, or call ``close`` at the end.

    ``nodes``: ``host:port`` of any nodes, to learn the topology from. ``router``: URL of a router, which
    tells the topology too, and through which everything goes that cannot go to the nodes directly.
    ``direct``: False = everything goes through the router, for networks that let nothing else through.
    ``cluster``: the cluster's name, to be refused by any other. ``deadline_s``: default time limit of a
    call, in seconds. ``name``: shown in the nodes' logs.

    One client serves any number of tasks of one event loop; operations that are begun in the same turn of
    the loop share frames. Nothing is connected before ``start``, ``async with``, or the first call. After a
    fork, make a new one in the child.
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
        seeds = node_addresses(nodes)
        if not seeds and router is None:
            raise InvalidRequest("give nodes=['host:port'], or router='http://host:port', or both")
        if not direct and router is None:
            raise InvalidRequest("direct=False needs a router")
        self.dispatcher = Dispatcher(
            seeds, cluster, name=name, router=router, direct=direct, max_under_way=MAX_UNDER_WAY
        )
        self.deadline_s = deadline_s

    async def start(self) -> None:
        """Learn the topology now. Raises Unavailable when no server sends it within the deadline."""
        await self.dispatcher.start(self.deadline_s)

    async def close(self) -> None:
        """End everything: what is under way ends with ClientClosed, or OutcomeUnknown, and watches end."""
        await self.dispatcher.close()

    async def __aenter__(self) -> AsyncClient:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    def namespace(self, name: str) -> AsyncNamespace[bytes]: ...

    @overload
    def namespace(self, name: str, codec: Codec[T]) -> AsyncNamespace[T]: ...

    def namespace(self, name: str, codec: Any = BYTES) -> AsyncNamespace[Any]:
        """The keys of a namespace, values by ``codec`` (JSON, MSGPACK, TEXT, BYTES, or one of your own). Costs
        nothing. Raises InvalidRequest when ``name`` is not valid."""
        return AsyncNamespace(self.dispatcher, name, self.deadline_s, codec)

    def stats(self) -> ClientStats:
        """Counts of retries and the like."""
        dispatcher = self.dispatcher
        admission = dispatcher.admission
        assert admission is not None
        return ClientStats(
            retries=dispatcher.retries,
            budget_empty=dispatcher.budget.empty_count,
            under_way=admission.under_way,
            waiting=admission.waiting,
            unreachable=len(dispatcher.unreachable.addresses),
        )
