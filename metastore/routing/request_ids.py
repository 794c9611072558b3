"""Request ids: what makes a retry of a write harmless (R7)."""

from __future__ import annotations

import hashlib
import os
from typing import Final

from metastore.elements import DEDUPE_WINDOW_S, ONE_REQUEST
from metastore.errors import ClientClosed, DiskLow, MetastoreError, OutcomeUnknown
from metastore.history import NOTHING_SEEN, LastSeenIndex
from metastore.wire.client_messages import CLIENT_ID_BYTES

#: what may be lost between the age that somebody tells and the partition that looks: ages in whole seconds, the way there, clocks
#: that do not go alike for the length of the window, a process that stood still
AGE_MARGIN_S: Final = 30.0


class RequestIds:
    """Request ids of one client (R7): ``lowest_open`` and ``last_seen`` are kept per partition.

    A client makes its own. With ``RequestIds.named("order 4711")`` the write that is given it is
    carried out once, however often, and from whichever process, it is sent again with ids of that
    name: later ones get the first outcome, within the store's dedupe window.
    """

    #: whether a request that the store does not remember may be taken for one that was never executed
    restamps = True

    def __init__(self, client_id: bytes | None = None) -> None:
        self.client_id = client_id or os.urandom(CLIENT_ID_BYTES)
        self._seq = 0
        self._open: dict[int, dict[int, None]] = {}
        self._last_seen: dict[int, LastSeenIndex] = {}

    @staticmethod
    def named(name: str, age_s: float | None = None) -> SingleRequest:
        """The ids of one write, which ``name`` stands for; give them to one only. ``age_s``: how long ago that
        write was first sent, by any process (0: this is the first time; None: not known)."""
        raw = name.encode("utf-8", "surrogateescape")
        return SingleRequest(hashlib.blake2b(raw, digest_size=CLIENT_ID_BYTES).digest(), age_s)

    def about(self, error: MetastoreError) -> MetastoreError:
        """``error`` of an attempt, as it is of the request."""
        return error

    def lasts(self, left_s: float) -> None:
        """Attempts of the next write may go on for ``left_s`` more seconds."""

    def begin(self, partition: int) -> tuple[int, LastSeenIndex]:
        """``(seq, last_seen)`` for a new write."""
        self._seq += 1
        opened = self._open.get(partition)
        if opened is None:
            opened = self._open[partition] = {}
        opened[self._seq] = None
        return self._seq, self.last_seen(partition)

    def last_seen(self, partition: int) -> LastSeenIndex:
        """The highest index seen from a partition so far, 0 = none."""
        return self._last_seen.get(partition, NOTHING_SEEN)

    def lowest_open(self, *partitions: int) -> int:
        """No write below it is under way to these (more than one: some were split off others)."""
        opened = [self._open[p] for p in partitions if self._open.get(p)]
        return min((next(iter(seqs)) for seqs in opened), default=self._seq + 1)

    def end(self, partition: int, seq: int) -> None:
        """The write will not be sent again."""
        opened = self._open.get(partition)
        if opened is not None:
            opened.pop(seq, None)

    def seen(self, partition: int, index: LastSeenIndex) -> None:
        if index > self._last_seen.get(partition, NOTHING_SEEN):
            self._last_seen[partition] = index


class SingleRequest(RequestIds):
    """The id of one request, which processes before this one may have sent.

    What is said of its outcome is about the request, not the attempt: that this attempt was refused before
    the partition looked whether it knows the request does not say that none before it was carried out.
    With its age told, more can be said: at 0 it is the first attempt, and what would be older than the dedupe window, less
    a margin, when its last attempt ends, is refused with RequestIdExpired if the partition does not remember it, never carried
    out once more.
    """

    def __init__(self, client_id: bytes, age_s: float | None = None) -> None:
        super().__init__(client_id)
        self.first = age_s is not None and age_s <= 0
        self._age_s = age_s
        self.lasts(0.0)

    def lasts(self, left_s: float) -> None:
        # the partition may look as late as that, and what it has forgotten by then was carried out a window ago or longer
        age_s = self._age_s
        self.restamps = age_s is None or age_s + left_s <= DEDUPE_WINDOW_S - AGE_MARGIN_S

    def last_seen(self, partition: int) -> LastSeenIndex:
        return super().last_seen(partition) if self.restamps else NOTHING_SEEN

    def lowest_open(self, *partitions: int) -> int:
        return ONE_REQUEST

    def about(self, error: MetastoreError) -> MetastoreError:
        # what is not retryable came from the partition, which looked, or is about the request itself; so does
        # DiskLow, which a request that is known passes by
        looked = not error.retryable or isinstance(error, DiskLow)
        if self.first or error.outcome != "none" or (looked and not isinstance(error, ClientClosed)):
            return error
        text = f"an earlier attempt may have taken effect; this one failed: {error.message}"
        return OutcomeUnknown(text, **error.detail)
