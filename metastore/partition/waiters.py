"""Who waits for an entry to be committed (R6, R7): told so when it is, or that nothing is known when that is so.

Whether a quorum will ever take an entry its leader cannot know: disks may be full, followers may lag. So nobody waits
for longer than it said. What is answered with OutcomeUnknown may take effect later, once at most.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from metastore.errors import MetastoreError
from metastore.partition.ports import ReplySink

FOREVER_NS: Final = 1 << 62

Waiter = tuple[int, ReplySink, int, tuple[Any, ...], int]
"""``(entry, connection, op id, the answer without its id, deadline in ns)``."""


def error_result(op_id: int, error: MetastoreError) -> list[Any]:
    """The answer that an operation was refused, or failed."""
    return [op_id, error.status, error.message, error.detail]


class Waiters(deque[Waiter]):
    """See the module. In the order of their entries. ``until``: no deadline among them is earlier."""

    until = FOREVER_NS

    def answer(self, upto: int) -> None:
        """Entries up to ``upto`` are committed: so are the operations that were resolved into them."""
        while self and self[0][0] <= upto:
            _, connection, op_id, tail, _ = self.popleft()
            connection.answer([op_id, *tail])

    def end(self, error: MetastoreError) -> None:
        """All of them hear ``error``."""
        late = list(self)
        self.clear()
        self.until = FOREVER_NS
        _tell(late, error)

    def end_late(self, now: int, error: MetastoreError) -> None:
        """Those whose time is up hear ``error``; the others wait on."""
        rest = [waiter for waiter in self if now <= waiter[4]]
        late = [waiter for waiter in self if now > waiter[4]]
        self.clear()
        self.extend(rest)
        self.until = min((waiter[4] for waiter in rest), default=FOREVER_NS)
        _tell(late, error)


def _tell(waiters: list[Waiter], error: MetastoreError) -> None:
    for _, connection, op_id, _, _ in waiters:
        connection.answer(error_result(op_id, error))
