"""Which nodes are reached through the router only, and when they can be reached again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

PROBE_S: Final = (1.0, 30.0)


class UnreachableNodes:
    """Addresses that did not answer while the router could reach what is behind them. They are
    avoided, and tried by one task in the background, at growing intervals, so that no operation has
    to wait for it. ``reach(address)``: whether it answers now."""

    def __init__(self, reach: Callable[[str], Awaitable[bool]]) -> None:
        self.addresses: set[str] = set()
        self._reach = reach
        self._prober: asyncio.Task[None] | None = None

    def add(self, addresses: Iterable[str]) -> None:
        self.addresses.update(addresses)
        if self.addresses and (self._prober is None or self._prober.done()):
            self._prober = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        pause = PROBE_S[0]
        while self.addresses:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, PROBE_S[1])
            addresses = sorted(self.addresses)
            answers = await asyncio.gather(*map(self._reach, addresses))
            for address, answered in zip(addresses, answers, strict=True):
                if answered:
                    self.addresses.discard(address)
                    pause = PROBE_S[0]

    async def close(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
