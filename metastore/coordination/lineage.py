"""From which etcd to which the cluster's records went on (R13), and when a process goes over to the new one.

An etcd that lost what it knew (wiped, restored from a backup, replaced) is distrusted: its terms and revisions were handed
out before. An operator rebuilds its records from the stores (``cellctl control rebuild``), and last of all writes one
record that says so: the lineage. A process that distrusts what it meets looks for nothing else there, and goes over to it
when that record, compared with what the process knows itself, proves that the rebuilding knew all of that:

    it was written for this etcd       (a copy of it elsewhere, which has another cluster id, says nothing)
    its number is higher than any followed  (the etcd that it is found in may itself have been set back to an earlier one)
    it replaces the etcd known here         by its cluster id
    it is based on no less than was seen    (else there was something in the old one that the rebuilding has not seen)

``base`` is added to each revision of the new etcd, in every process: revisions go on above all that were seen of the old
one, so nothing that is ordered by them ever goes back. Pure, but for ``Follower``, which looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from metastore.coordination.interface import KV, Compare, Known, Peek
from metastore.coordination.waiting import set_within
from metastore.errors import CoordinationError
from metastore.fields import BadRecord
from metastore.layout import LineageRecord

log = logging.getLogger("metastore.lineage")

LOOK_S: Final = 1.0
#: raw revision that no record has
NEVER: Final = -1


def objection(record: LineageRecord, known: Known, seen: Peek, trusted: bool) -> str:
    """Why the record that is ``seen`` gives a process no leave to go over to the etcd it is found in; "" = it does.
    ``trusted``: that one is trusted already, and only its base is another from here on."""
    if record.cluster_id != seen.cluster_id:
        return (
            f"the rebuilding {record.number} was of the etcd {record.cluster_id:x}, and this one is {seen.cluster_id:x}: "
            "it was copied or restored since"
        )
    if record.number <= known.number:
        return (
            f"etcd's records are of rebuild {record.number}, and this process has followed rebuild {known.number}: etcd's records "
            "were lost again since"
        )
    if trusted:
        return "" if record.base >= known.base else f"its base {record.base} is below {known.base}"
    if known.cluster_id is not None and known.cluster_id not in record.replaces:
        return f"the rebuilding {record.number} did not know of the etcd {known.cluster_id:x}, which is known here"
    if record.base < known.revision:
        return (
            f"the rebuilding {record.number} knew of etcd up to revision {record.base}, and this process has seen "
            f"{known.revision}"
        )
    return ""


class Lineal:
    """What a coordinator knows of the service's identity (R13), and the translation of its revisions."""

    def __init__(self, known: Known) -> None:
        self.cluster_id = known.cluster_id
        self.revision = known.revision
        self.base = known.base
        self.number = known.number
        self.untrusted = ""

    @property
    def known(self) -> Known:
        return Known(self.cluster_id, self.revision, self.base, self.number)

    def follow(self, record: LineageRecord, seen: Peek) -> None:
        """Trust the service from here on; ``objection`` has none."""
        self.cluster_id, self.base, self.number = record.cluster_id, record.base, record.number
        self.revision = max(self.revision, record.base + seen.revision)
        self.untrusted = ""

    def told(self, kv: KV) -> KV:
        """A record of the service as everybody here sees it."""
        if not self.base:
            return kv
        return replace(
            kv, mod_revision=kv.mod_revision + self.base, create_revision=kv.create_revision + self.base
        )

    def asked(self, compare: Compare) -> Compare:
        """A condition as the service understands it. A revision from before it is one that no record of it has."""
        if not self.base or compare.what == "value" or not compare.revision:
            return compare
        raw = compare.revision - self.base
        if compare.what == "since":
            return replace(compare, revision=max(raw, 0))
        return replace(compare, revision=raw if raw > 0 else NEVER)


class Follows(Protocol):
    """The part of Coordinator that a Follower needs."""

    @property
    def known(self) -> Known: ...

    @property
    def untrusted(self) -> str: ...

    async def peek(self, key: str) -> Peek: ...

    def follow(self, record: LineageRecord, seen: Peek) -> None: ...


class Follower:
    """Looks for a lineage record: each second while etcd is distrusted, and when the watch shows that there is another."""

    def __init__(self, coordinator: Follows, key: str, followed: Callable[[], None] = lambda: None) -> None:
        self._etcd = coordinator
        self._key = key
        self._followed = followed
        self._due = asyncio.Event()
        self._said = ""

    def notice(self) -> None:
        """The record has changed."""
        self._due.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await set_within(self._due, LOOK_S)
            if self._etcd.untrusted or self._due.is_set():
                self._due.clear()
                try:
                    await self.look()
                except CoordinationError as e:
                    log.debug("lineage: %s", e)
                    if not self._etcd.untrusted:
                        self._due.set()
                        await asyncio.sleep(LOOK_S)

    async def look(self) -> bool:
        """One try; whether this process has gone over. Raises CoordinationError."""
        etcd = self._etcd
        seen = await etcd.peek(self._key)
        if seen.value is None:
            return False
        try:
            record = LineageRecord.from_json(seen.value)
        except BadRecord as e:
            self._say(str(e))
            return False
        known, distrusted = etcd.known, etcd.untrusted
        if not distrusted and record.number == known.number:
            return False
        why = objection(record, known, seen, not distrusted)
        if why:
            self._say(f"etcd was rebuilt, and is not trusted all the same: {why}")
            return False
        etcd.follow(record, seen)
        log.warning(
            "etcd is trusted again: its records were rebuilt from the nodes' stores (rebuild number %d, after revision %d)%s",
            record.number,
            record.base,
            f"; before: {distrusted}" if distrusted else "",
        )
        self._said = ""
        self._followed()
        return True

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.error("%s", what)
