"""Following etcd's records: what a watch delivers, read at the door, and put into a topology table.

Used by nodes and routers. A record that is not valid is left out, counted, told in the log once and kept in ``bad`` for
status, metrics and cellctl doctor show; its last valid state holds until it is repaired or removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from metastore import schema
from metastore.coordination.interface import KV, Change
from metastore.fields import BadRecord
from metastore.layout import Layout
from metastore.logs import Ration
from metastore.schema import Parts, shown
from metastore.topology import TopologyTable

log = logging.getLogger("metastore.records")

#: so many bad records are remembered by their keys, and told in status
MAX_REMEMBERED: Final = 1000
MAX_TOLD: Final = 20
#: read ahead without a pause: a few milliseconds
SLICE_RECORDS: Final = 200


class Seen(NamedTuple):
    """One change of a record of a known kind. ``record``: what it says; None = removed, or ``bad``: it is not valid."""

    parts: Parts
    record: Any
    new: KV | None
    bad: bool


class Following:
    """See the module. ``table`` is kept as etcd has it."""

    def __init__(self, layout: Layout, table: TopologyTable) -> None:
        self.layout = layout
        self.table = table
        #: keys of records that are not valid now (as they are shown), and why
        self.bad: dict[str, str] = {}
        self.bad_total = 0
        self._began = False
        #: key -> value and what it says, of what was read ahead
        self._ahead: dict[str, tuple[bytes, Any]] = {}
        self._ration = Ration(log, "%d more records that are not valid")

    async def read_ahead(self, content: Sequence[KV]) -> None:
        """Read what is to be delivered next, a slice at a time, so that a cluster of many records lets others have their turn
        in between: the half of what ``take`` costs. Changes nothing; what a record says follows from its value alone."""
        self._ahead = {}
        if len(content) <= SLICE_RECORDS:
            return
        for i in range(0, len(content), SLICE_RECORDS):
            for kv in content[i : i + SLICE_RECORDS]:
                parts = self.layout.parse(kv.key)
                try:
                    if schema.kind_of(parts) is not None:
                        self._ahead[kv.key] = kv.value, schema.read(parts, kv.value)
                except BadRecord:
                    continue  # ``take`` finds it, and tells
            await asyncio.sleep(0)

    def take(self, revision: int, changes: Sequence[Change]) -> list[Seen]:
        """A watch's delivery, which the table follows; the first one is all that there is. Returns what to act on, without
        kinds that are not known: of each record its last change (and where that is not valid, the last one before that
        does), and what was removed last: a partition that has moved to another cell has its new record then."""
        met: dict[Parts, list[Seen]] = {}
        for change in changes:
            found = self._read(change)
            if found is not None:
                before = [seen for seen in met.get(found.parts, ()) if not seen.bad]
                met[found.parts] = [*before, found] if found.bad else [found]
        seen = [each for record in sorted(met.values(), key=lambda r: r[-1].new is None) for each in record]
        self.table.apply([(each.parts, each.record) for each in seen if not each.bad], revision)
        self._ahead = {}
        if not self._began:
            self._began = True
            self.table.begin([self.layout.parse(change.key) for change in changes], revision)
        self.table.note_unreadable(
            self.table.unreadable | {"/".join(parts) for parts, record in met.items() if record[-1].bad}
        )
        return seen

    def _read(self, change: Change) -> Seen | None:
        parts, new = self.layout.parse(change.key), change.new
        try:
            if schema.kind_of(parts) is None:
                return None
        except BadRecord as e:  # whose record it is cannot be known
            if new is None:
                self._is_well(change.key)
            else:
                self.note(change.key, e)
            return None
        try:
            record = None if new is None else self._record(change.key, parts, new.value)
        except BadRecord as e:
            self.note(change.key, e)
            return Seen(parts, None, new, True)
        self._is_well(change.key)
        return Seen(parts, record, new, False)

    def _record(self, key: str, parts: Parts, value: bytes) -> Any:
        """What a record says. Raises BadRecord."""
        ahead = self._ahead.get(key)
        return ahead[1] if ahead is not None and ahead[0] == value else schema.read(parts, value)

    def note(self, key: str, why: BadRecord) -> None:
        """A record that is not valid was met."""
        name = shown(key)
        self.bad_total += 1
        if self.bad.get(name) == why.message:
            return
        if name in self.bad or len(self.bad) < MAX_REMEMBERED:
            self.bad[name] = why.message
        self._ration.line(
            logging.ERROR, "record %s in etcd is not valid and is left out: %s", name, why.message
        )

    def _is_well(self, key: str) -> None:
        if self.bad and self.bad.pop(shown(key), None) is not None:
            self._ration.line(logging.INFO, "record %s in etcd is valid again, or was removed", shown(key))

    def status(self) -> dict[str, Any]:
        """For status: what is not valid now (some of it, by key), how much that is, and how often such was met."""
        told = sorted(self.bad.items())[:MAX_TOLD]
        return {
            "bad": dict(told),
            "bad_now": len(self.bad),
            "bad_total": self.bad_total,
            "aside": sorted(self.table.aside)[:MAX_TOLD],
        }
