"""Which rows of a topology table have changed: who knows how it was gets what is other since, and no more. Pure.

A row is ``(kind, name)``: of ``nodes`` and ``namespaces`` by their names, of ``partitions`` by their numbers. Each change has
a number, for readers of the table in this process (what is kept on disk), and a revision of etcd, for those that have a table
of its own (clients, by ``TOPOLOGY_REQUEST``). A table is of a revision: it has all that etcd had then. What a replica alone has
told (a hint) is of no revision: it is told to everybody, until etcd tells the same or better.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

RowKey = tuple[str, str | int]
"""Kind and name."""

#: so many changed rows are remembered; who asks for what was before is told everything
MAX_CHANGES: Final = 1 << 17


class Changes:
    """See the module. Costs a few steps at each change, and as many as there are rows to tell at each question."""

    __slots__ = ("_hints", "_rows", "floor", "limit", "number", "told_from")

    def __init__(self, limit: int = MAX_CHANGES) -> None:
        self.limit = limit
        #: of the newest change
        self.number = 0
        #: changes up to this number are not all remembered
        self.floor = 0
        #: from this revision on it is known what has changed; None = not from any yet
        self.told_from: int | None = None
        #: row -> (number, revision), in the order of the numbers
        self._rows: OrderedDict[RowKey, tuple[int, int]] = OrderedDict()
        #: rows that are as only a replica has told
        self._hints: dict[RowKey, None] = {}

    def note(self, row: RowKey, revision: int, hint: bool = False) -> None:
        """The row is another, or gone, since ``revision``."""
        self.number += 1
        self._rows[row] = self.number, revision
        self._rows.move_to_end(row)
        if hint:
            self._hints[row] = None
        elif self._hints:
            self._hints.pop(row, None)
        if len(self._rows) > self.limit:
            _, (self.floor, oldest) = self._rows.popitem(last=False)
            if self.told_from is not None:
                self.told_from = max(self.told_from, oldest)

    def begin(self, revision: int) -> None:
        """The table has all that etcd has at ``revision``, by a reading; what came and went before is not told one by one."""
        self.told_from = revision

    def read_again(self, revision: int) -> None:
        """As ``begin``, of a later reading."""
        if self.told_from is not None and revision > self.told_from:
            self.told_from = revision

    def after(self, number: int) -> list[RowKey] | None:
        """Rows changed after that change, the newest first; None = that is not remembered."""
        if number < self.floor:
            return None
        found: list[RowKey] = []
        for row, (at, _) in reversed(self._rows.items()):
            if at <= number:
                break
            found.append(row)
        return found

    def since(self, revision: int, limit: int = MAX_CHANGES) -> list[RowKey] | None:
        """Rows that a table of ``revision`` may lack; None = that is not remembered, or they are more than ``limit``."""
        if self.told_from is None or revision < self.told_from:
            return None
        if len(self._hints) > limit:
            return None
        found = list(self._hints)
        for row, (_, at) in reversed(self._rows.items()):
            if at <= revision:
                break
            if row not in self._hints:
                if len(found) >= limit:
                    return None
                found.append(row)
        return found
