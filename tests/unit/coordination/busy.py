"""An etcd in which others are at work too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metastore.coordination.interface import Compare, Op, TxnResult
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd


class Busy(MemoryCoordinator):
    """``happens``: what others do just before its next transaction."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        super().__init__(etcd, asyncio.get_running_loop().time)
        self.happens: list[Op] = []

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        happens, self.happens = self.happens, []
        if happens:
            await super().txn([], happens)
        return await super().txn(compares, then, otherwise)
