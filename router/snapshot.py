"""The router's file of the topology: what it serves by when it starts and has no newer one.

The file is written as a whole, and never while requests wait for it: each row is made once and again when it has changed, what is
written is these put together, and a thread writes it. With 10,000 namespaces and 8,192 partitions (2.6 MB) all rows take 160 ms of
the loop's time once, a slice at a time, and a change a few; so seldom that writing takes a hundredth of the time, every five seconds at
most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from pathlib import Path
from typing import Final

import orjson

from metastore.changes import RowKey
from metastore.decoding import MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES, Undecodable, load_json, read_file
from metastore.errors import InvalidRequest
from metastore.topology import TopologyTable

log = logging.getLogger("router")

INTERVAL_S: Final = 5.0
FIRST_S: Final = 0.1
#: times what writing one took passes before the next
SHARE: Final = 100
KINDS: Final = ("nodes", "namespaces", "partitions")
#: rows made without a pause: a few milliseconds
SLICE_ROWS: Final = 500


def load_snapshot(path: str, table: TopologyTable) -> None:
    """Merge the snapshot, if there is a good one: a checksum, and then the table. One that is not whole, or
    of before there was a checksum, is dropped with a warning: an epoch in it that has rotted could hide leaders for good."""
    try:
        crc, _, wire = read_file(Path(path), MAX_DOCUMENT_BYTES).partition(b"\n")
        if crc != _crc(wire):
            raise InvalidRequest("the snapshot does not match its checksum")
        found = TopologyTable.from_wire(load_json(wire, MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES))
        if found.left_out:
            names = ", ".join(found.left_out[:10])
            log.warning(
                "records of the topology snapshot %s are not valid, and are left out: %s", path, names
            )
        table.merge(found)
    except FileNotFoundError:
        pass
    except (OSError, Undecodable, InvalidRequest) as e:
        log.warning("the topology snapshot %s cannot be read and is ignored: %s", path, e)


def _crc(wire: bytes) -> bytes:
    return b"%08x" % zlib.crc32(wire)


def save_snapshot(path: str, wire: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.new"  # several routers may share a path
    with open(temporary, "wb") as f:
        f.write(_crc(wire) + b"\n" + wire)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


class Snapshot:
    """The file at ``path``, and its rows as ``table`` had them last."""

    def __init__(self, path: str, table: TopologyTable) -> None:
        self.path, self.table = path, table
        self._rows: dict[str, dict[RowKey, bytes]] = {kind: {} for kind in KINDS}
        #: of the newest change that the rows have; -1 = they have none
        self._upto = -1
        #: rows made, in all
        self.made = 0

    def _due(self) -> list[RowKey]:
        """Rows that are to be made, and it is noted that they are; all of them where it is not known which have changed."""
        changes = self.table.changes
        rows = None if self._upto < 0 else changes.after(self._upto)
        self._upto = changes.number
        if rows is None:
            self._rows = {kind: {} for kind in KINDS}
            return self.table.rows()
        return [row for row in rows if row[0] in KINDS]

    def _make(self, rows: list[RowKey]) -> None:
        for row in rows:
            plain, made = self.table.row(row), self._rows[row[0]]
            if plain is None:
                made.pop(row, None)
            else:
                made[row] = orjson.dumps(plain)
        self.made += len(rows)

    async def prepare(self) -> None:
        """Make what has changed, a slice at a time, until so little is left that ``wire`` does it at once."""
        while len(due := self._due()) > SLICE_ROWS:
            for i in range(0, len(due), SLICE_ROWS):
                self._make(due[i : i + SLICE_ROWS])
                await asyncio.sleep(0)
        self._make(due)

    def wire(self) -> bytes:
        """The table as it is now."""
        self._make(self._due())
        parts = [orjson.dumps(self.table.head())[:-1]]
        for kind in KINDS:
            parts += [b',"%s":[' % kind.encode(), b",".join(self._rows[kind].values()), b"]"]
        return b"".join([*parts, b"}"])

    async def keep(self) -> None:
        """Write the file as soon as there is a whole table, then when it has changed, for ever."""
        saved, pause_s = -1, FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            if self.table.complete and self.table.changes.number != saved:
                began = time.monotonic()
                try:
                    await self.prepare()
                    now, wire = self.table.changes.number, self.wire()
                    await asyncio.to_thread(save_snapshot, self.path, wire)
                    saved = now
                except OSError as e:
                    log.warning("the topology snapshot cannot be written: %s", e)
                pause_s = max(INTERVAL_S, SHARE * (time.monotonic() - began))
