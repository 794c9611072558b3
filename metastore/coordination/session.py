"""What every session is: a lease that its own task keeps alive, and its owner is notified of a new one."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from metastore.coordination.interface import Session


class KeptSession(ABC):
    """Base of those that implement Session. ``ttl_s``: of the lease, in seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._task: asyncio.Task[None] | None = None
        self.lease_id = 0
        self.margin_s = ttl_s
        self.on_change: Callable[[Session], None] = lambda session: None

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _set(self, lease_id: int) -> None:
        if lease_id != self.lease_id:
            self.lease_id = lease_id
            self.on_change(self)

    @abstractmethod
    async def _run(self) -> None:
        """Keep the lease, for ever."""

    async def _end(self) -> None:
        """End the task. The lease is for the caller to give back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @abstractmethod
    async def close(self) -> None: ...
