"""Snapshots being sent, to peers and into backups: each keeps the state's file from reusing the pages that it
reads, so that the file grows with every write meanwhile and never shrinks again. So none may last for ever.

Its reader has to read ``snapshot_min_kib_s`` on average over the time that it is waited for, beyond a grace, and
all of it within ``snapshot_max_s``; else it is broken off, and may begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from metastore.clock import now_ns
from metastore.config import NodeConfig
from metastore.errors import Unavailable

GRACE_NS: Final = 30_000_000_000


class Pin:
    """One snapshot on its way: of which partition, to whom."""

    def __init__(self, config: NodeConfig, p: int, to: str) -> None:
        self.p, self.to = p, to
        self.began_ns = now_ns()
        self.sent_bytes = 0
        self._waited_ns = 0
        self._min_kib_s = config.snapshot_min_kib_s
        self._max_ns = int(config.snapshot_max_s * 1e9)

    async def wait(self, what: Awaitable[Any], patience_s: float) -> None:
        """Wait for its reader. Raises TimeoutError; Unavailable when it is too slow."""
        began = now_ns()
        try:
            async with asyncio.timeout(patience_s):
                await what
        finally:
            self._waited_ns += now_ns() - began
        self.check()

    def check(self) -> None:
        """Raises Unavailable."""
        if now_ns() - self.began_ns > self._max_ns:
            raise Unavailable(
                f"the snapshot of partition {self.p} for {self.to} took longer than {self._max_ns / 1e9:g} s (snapshot_max_s): "
                "raise that, or snapshot_mib_s; or split the partition",
                retry_after_s=1,
            )
        waited_ns = self._waited_ns - GRACE_NS
        if waited_ns > 0 and self.sent_bytes * 1_000_000_000 < (self._min_kib_s << 10) * waited_ns:
            raise Unavailable(
                f"{self.to} reads the snapshot of partition {self.p} too slowly: {self.sent_bytes} bytes in the "
                f"{self._waited_ns / 1e9:.0f} s that the sender waited (snapshot_min_kib_s = {self._min_kib_s}); look at its disk and the network, or lower that",
                retry_after_s=1,
            )


class Pins:
    """All of a node's."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._open: dict[Pin, None] = {}
        #: broken off for being slow
        self.ended = 0

    @contextmanager
    def pin(self, p: int, to: str) -> Iterator[Pin]:
        pin = Pin(self._config, p, to)
        self._open[pin] = None
        try:
            yield pin
        except (TimeoutError, Unavailable):
            self.ended += 1
            raise
        finally:
            del self._open[pin]

    def status(self) -> list[dict[str, Any]]:
        """Those under way, the oldest first."""
        now = now_ns()
        return [
            {
                "partition": pin.p,
                "to": pin.to,
                "sent_bytes": pin.sent_bytes,
                "seconds": (now - pin.began_ns) // 1_000_000_000,
            }
            for pin in self._open
        ]
