"""etcd as a simulated process sees it: requests and answers take their time, and can be lost.

A request is carried out by the service, whatever becomes of the process that sent it meanwhile:
it may be paused, or dead, when its transaction commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from metastore.coordination.interface import KV, Compare, Known, Op, Peek, TxnResult
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import CoordinationError, CoordinationUnavailable, CoordinationUnknown
from tests.simulation.process.network import Network

NAME = "etcd"
CALL_TIMEOUT_S = 0.3
POLL_S = 0.04


class SimCoordinator(MemoryCoordinator):
    """A connection of process ``name``; links to and from ``etcd`` can be shut like any."""

    def __init__(
        self,
        network: Network,
        service: MemoryEtcd,
        name: str,
        known: Known | None = None,
    ) -> None:
        events = network.events
        super().__init__(service, lambda: events.now / 1e9, known, POLL_S)
        self._network = network
        self._there, self._back = (name, NAME), (NAME, name)

    def reach(self) -> MemoryEtcd:
        """For lease and watch, which need both ways."""
        self.cut = self._network.is_shut(self._there) or self._network.is_shut(self._back)
        return super().reach()

    def _carry_out(self, what: Callable[[MemoryEtcd], Any], write: bool, trusted: bool) -> Any:
        self.cut = False
        if not trusted:
            if not self.service.up:
                raise CoordinationUnavailable("the service is away")
            return what(self.service)
        service = super().reach()
        result = what(service)
        if write and service.lose_next_answer:
            service.lose_next_answer = False
            return None
        return result

    async def _ask(
        self, what: Callable[[MemoryEtcd], Any], *, write: bool = False, trusted: bool = True
    ) -> Any:
        network, events = self._network, self._network.events
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def arrive() -> None:
            if network.is_shut(self._there):
                return
            try:
                outcome = self._carry_out(what, write, trusted)
            except CoordinationUnavailable as e:
                outcome = e
            if outcome is not None:
                events.at(network.delay(), lambda: answer(outcome))

        def answer(outcome: Any) -> None:
            if not network.is_shut(self._back):
                loop.call_soon(deliver, outcome)

        def deliver(outcome: Any) -> None:
            if not future.done():
                future.set_result(outcome)

        events.at(network.delay(), arrive)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                outcome = await future
        except TimeoutError:
            self.connected = False
            text = f"etcd gave no answer within {CALL_TIMEOUT_S} s"
            raise CoordinationUnknown(text) if write else CoordinationUnavailable(text) from None
        if isinstance(outcome, CoordinationError):
            raise outcome
        return outcome

    async def get(self, key: str) -> KV | None:
        found: list[KV | None] = await self._ask(lambda service: [self.read(service, key)])
        return found[0]

    async def peek(self, key: str) -> Peek:
        found: Peek = await self._ask(lambda service: self.peeked(service, key), trusted=False)
        return found

    async def range(self, prefix: str) -> tuple[int, list[KV]]:
        found: tuple[int, list[KV]] = await self._ask(lambda service: self.read_all(service, prefix))
        return found

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        result: TxnResult = await self._ask(
            lambda service: self.swap(service, compares, then, otherwise), write=True
        )
        self.revision = max(self.revision, result.revision)
        return result
