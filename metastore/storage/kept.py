"""Rows that a node keeps beside its facts, each by a key, and changes by what has changed: the topology. Pure.

A change is a fact in the log, ``[complete, part, more, {key: value or None}]``: values are bytes, None = the row is gone. With ``complete``
it takes the place of all that was there. What is too large for one record of the log is several, of which ``part`` counts; with
``more`` another follows. Such a change counts once the last of them is there, or not at all. In the state each row has a row of its own (table
``map``), written in the transaction that knows the log up to there, and the node's row says how many there are.

A build from before this was kept so takes the change for a fact that it does not know. What it then forgets of the log is
missing here; it leaves the number of rows out of the node's row, by which that is known, and the rows are dropped: etcd and the
peers tell them anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

log = logging.getLogger("metastore.facts")

#: a fact in the log alone: a change of these rows
FACT_ROWS: Final = "rows"
#: bytes of rows in one record of the log, about, where segments take that
PART_BYTES: Final = 1 << 20
MAX_KEY_BYTES: Final = 480

Rows = Mapping[bytes, bytes | None]


class KeptRows:
    """See the module. ``load`` what the state has, ``take`` what the log has, in its order."""

    def __init__(self) -> None:
        #: what was found at the start, until somebody asks for it; None = somebody has
        self._found: dict[bytes, bytes] | None = {}
        self._keys: set[bytes] = set()
        #: whether a change may build on what is here
        self._begun = True
        #: what the state does not have yet
        self._unsaved: dict[bytes, bytes | None] = {}
        #: of a change whose end has not come
        self._parts: dict[bytes, bytes | None] = {}
        self._complete = False

    def __len__(self) -> int:
        return len(self._keys)

    def load(self, rows: dict[bytes, bytes], is_complete: bool) -> None:
        """What the state has; not ``is_complete``: it was written to by a build that knows nothing of it."""
        self._keys, self._begun = set(rows), is_complete
        self._found = dict(rows) if is_complete else {}
        if not is_complete:
            self._unsaved = dict.fromkeys(rows)
            self._keys = set()

    def take(self, value: Any) -> None:
        """A change, as the log has it. One that is not valid is dropped with a warning, as all facts are."""
        if not _is_change(value):
            log.warning("a change of this node's stored topology cannot be read and is dropped")
            return
        complete, part, more, rows = value
        if part == 0:
            self._parts.clear()  # of a change that a crash cut off
            self._complete = complete
        self._parts.update(rows)
        if not more:
            rows, self._parts = self._parts, {}
            complete, self._complete = self._complete, False
            if complete:
                self._begun = True
                rows = {**dict.fromkeys(self._keys), **rows}
            if self._begun:
                self._put(rows)

    def _put(self, rows: Rows) -> None:
        self._unsaved.update(rows)
        for key, row in rows.items():
            if row is None:
                self._keys.discard(key)
            else:
                self._keys.add(key)
            if self._found is not None:
                if row is None:
                    self._found.pop(key, None)
                else:
                    self._found[key] = row

    def found(self) -> dict[bytes, bytes]:
        """The rows as they were found; to be asked once, since they are not kept in memory."""
        found, self._found = self._found, None
        return found or {}

    def unsaved(self) -> tuple[Rows, int]:
        """What a transaction of the state has to write, and how many rows there are then."""
        rows, self._unsaved = self._unsaved, {}
        return rows, len(self._keys)


def parts_of(rows: Rows, complete: bool, part_bytes: int = PART_BYTES) -> Iterator[list[Any]]:
    """The changes to log, one after the other, for a change of these rows."""
    part: dict[bytes, bytes | None] = {}
    number = size = 0
    for key, row in rows.items():
        if size > part_bytes:
            yield [complete, number, True, part]
            part, size, number = {}, 0, number + 1
        part[key] = row
        size += len(key) + len(row or b"")
    yield [complete, number, False, part]


def _is_change(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == 4
        and type(value[0]) is type(value[2]) is bool
        and type(value[1]) is int
        and type(value[3]) is dict
        and all(
            type(key) is bytes and 0 < len(key) <= MAX_KEY_BYTES and (row is None or type(row) is bytes)
            for key, row in value[3].items()
        )
    )
