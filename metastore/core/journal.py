"""What came into the core lately, and what came out: enough to play it again. Pure.

A journal has two halves. Each begins with a checkpoint of all replicas here and of what they share, and holds references to
what followed, in order: events with their time and sender, what was read from the log, and the effects as the driver
took them. A full half becomes the older one, whose predecessor goes. Nothing is copied or packed but at a checkpoint, so an
event costs one tuple. ``recording`` makes a file of it, ``metastore.replay`` plays that again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import messages as m

#: bounds of a half. They are looked at once a tick: what one tick brings may come on top
MAX_RECORDS: Final = 8192
MAX_BYTES: Final = 16 << 20
#: more records where there are more replicas than this, so that checkpoints cost little beside what they are of
RECORDS_PER_REPLICA: Final = 8
#: about what a record or an effect takes in memory, and a beat of a heartbeat
RECORD_BYTES: Final = 300
EFFECT_BYTES: Final = 150
BEAT_BYTES: Final = 130


class LogRead(NamedTuple):
    """The core read its log: ``blobs`` from ``first`` on, or why not."""

    p: int
    first: int
    blobs: list[bytes]
    error: Exception | None


Record = tuple[int, Any, Any] | LogRead | list[fx.Effect]
"""``(now, event, sender or None)``, a reading of the log, or effects that the driver took."""


class Half(NamedTuple):
    """``checkpoint``: see ``NodeCore.checkpoint``."""

    checkpoint: dict[str, Any]
    records: list[Record]


class Journal:
    """See the module. ``checkpoint`` makes one of the core as it is."""

    def __init__(self, checkpoint: Callable[[], dict[str, Any]]) -> None:
        self._checkpoint = checkpoint
        self.older: Half | None = None
        self.current = Half({}, [])
        #: notes one record; another method of another list after each ``turn``
        self.note: Callable[[Record], None] = self.current.records.append
        self._weighed = 0
        self._bytes = 0

    def begin(self) -> None:
        """The core is as it begins: the first checkpoint."""
        self.current = Half(self._checkpoint(), self.current.records)

    def look(self, replicas: int) -> None:
        """Begin a new half when this one is full. To be called once a tick."""
        records = self.current.records
        self._bytes += weight(records, self._weighed)
        self._weighed = len(records)
        if self._weighed >= max(MAX_RECORDS, RECORDS_PER_REPLICA * replicas) or self._bytes >= MAX_BYTES:
            self.turn()

    def turn(self) -> None:
        """The half that ends has the effects that the driver has not taken yet; the one that begins has them in its checkpoint, and
        again when they are taken."""
        checkpoint = self._checkpoint()
        self.note(checkpoint["effects"])
        self.older = self.current
        self.current = Half(checkpoint, [])
        self.note = self.current.records.append
        self._weighed = self._bytes = 0

    def halves(self, pending: list[fx.Effect]) -> list[Half]:
        """What there is, for a caller that packs it elsewhere: records are never changed. ``pending``: effects that the driver has not taken
        yet."""
        now = Half(self.current.checkpoint, [*self.current.records, list(pending)])
        return [now] if self.older is None else [self.older, now]


def weight(records: list[Any], first: int) -> int:
    """About how many bytes of memory the records from ``first`` on keep, once what has been decoded of entries is let go: it is
    many small objects, and follows from their bytes. One function: this is done for every event."""
    size = RECORD_BYTES * (len(records) - first)
    for at in range(first, len(records)):
        record = records[at]
        if type(record) is tuple:
            event = record[1]
            kind = type(event)
            if kind is m.Append or kind is m.Pulled:
                for blob in event.entries:
                    size += len(blob)
            elif kind is ev.Propose:  # and the entry that was made of it
                size += 2 * len(event.payload)
            elif kind is m.Heartbeat:
                size += BEAT_BYTES * len(event.beats)
            elif kind is m.Seal or kind is m.Appoint:
                size += len(event.config)
        elif type(record) is LogRead:
            for blob in record.blobs:
                size += len(blob)
        else:
            size += EFFECT_BYTES * len(record)
            for place, effect in enumerate(record):
                kind = type(effect)
                if kind is fx.Send:
                    if type(effect.message) is m.Heartbeat:
                        size += BEAT_BYTES * len(effect.message.beats)
                elif kind is fx.PersistEntries and effect.entries is not None:
                    record[place] = fx.PersistEntries(effect.p, effect.blobs, effect.commit, effect.epoch)
    return size
