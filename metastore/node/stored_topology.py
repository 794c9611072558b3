"""The topology as a node keeps it for a start without etcd (R12): row by row, each change as large as what has changed.

Kept is what ``TopologyTable.to_wire`` tells, under a key for each row: ``head``, ``nodes/NAME``, ``namespaces/NAME``,
``partitions/NUMBER``. All rows of one change are durable together (``storage.kept``), so that what is read back is the map as it
was at one of them: the last good one. Builds from before kept all of it as one fact; that is read where there is nothing else.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgpack

from metastore import fields
from metastore.changes import RowKey
from metastore.decoding import unpack_own
from metastore.storage.facts import read_fact
from metastore.storage.records import Fact
from metastore.storage.store import Store
from metastore.topology import TopologyTable

log = logging.getLogger("metastore.node")

#: what builds from before kept all of it as
FACT_TOPOLOGY: Final = "topology"
HEAD_ROW: Final = b"head"
KINDS: Final = ("nodes", "namespaces", "partitions")


class StoredTopology:
    """``table`` as it was kept, and from then on what keeps it. ``kept``: up to which of etcd's revisions it would survive a
    restart without etcd."""

    def __init__(self, store: Store, cluster: str) -> None:
        self._store = store
        rows, facts, none = store.kept.found(), store.facts, TopologyTable(cluster)
        found = read_fact({"rows": rows}, "rows", table_of, none, none) if rows else none
        if facts.get(FACT_TOPOLOGY) is not None:
            complete = read_fact(facts, FACT_TOPOLOGY, TopologyTable.from_wire, none, none)
            if found is none or complete.revision > found.revision:  # one ran here meanwhile
                found, rows = complete, {}
        self.table = found  # what there is nothing of, etcd and the peers tell anew
        if self.table.left_out:
            names = ", ".join(self.table.left_out[:10])
            log.warning("records of this node's stored topology are not valid, and are left out: %s", names)
        self.kept = self.table.revision
        self.bytes_written = 0
        #: number of the newest change that is kept, None = all of it is to be written
        self._upto = self.table.changes.number if rows and not self.table.left_out else None
        self._keeping: tuple[int, int] | None = None
        if self.table.complete:
            self.table.changes.begin(self.table.revision)

    def keep(self) -> None:
        """Write what has changed."""
        table = self.table
        rows = None if self._upto is None else table.changes.after(self._upto)
        complete = rows is None
        changed: dict[bytes, bytes | None] = {HEAD_ROW: msgpack.packb(table.head())}
        for row in table.rows() if rows is None else rows:
            if row[0] in KINDS:
                plain = table.row(row)
                changed[key_of(row)] = None if plain is None else msgpack.packb(plain)
        seq = self._store.keep_rows(changed, complete)
        if self._store.facts.get(FACT_TOPOLOGY) is not None:
            seq = self._store.append(Fact(FACT_TOPOLOGY, None))  # later than what takes its place
        self.bytes_written += sum(len(key) + len(row or b"") for key, row in changed.items())
        self._upto, self._keeping = table.changes.number, (seq, table.revision)

    def durable(self, seq: int) -> None:
        """The log is durable up to ``seq``."""
        if self._keeping is not None and self._keeping[0] <= seq:
            self.kept, self._keeping = self._keeping[1], None


def key_of(row: RowKey) -> bytes:
    kind, name = row
    return f"{kind}/{name:05d}".encode() if kind == "partitions" else f"{kind}/{name}".encode()


def table_of(rows: dict[bytes, bytes]) -> TopologyTable:
    """The table whose rows these are; what is of a later version is passed over. Raises InvalidRequest."""
    wire: dict[str, Any] = {kind: [] for kind in KINDS}
    for key, raw in sorted(rows.items()):
        kind = key.partition(b"/")[0].decode("ascii", "replace")
        if key == HEAD_ROW:
            wire |= fields.mapping(fields.text, fields.anything, 100)(_unpacked(raw))
        elif kind in KINDS:
            wire[kind].append(_unpacked(raw))
    return TopologyTable.from_wire(wire)


def _unpacked(raw: bytes) -> Any:
    """None: it is not valid."""
    try:
        return unpack_own(raw)
    except (ValueError, msgpack.UnpackException):
        return None
