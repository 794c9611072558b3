"""A step of the real core as plain data: what happened, the replica before and after, what it asked for; and what
``Rules`` remembers of a reign and of splits while it replays steps."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.messages import KINDS as MESSAGES
from metastore.core.messages import Process
from metastore.core.replica import Replica
from metastore.core.rows import SplitOff
from metastore.layout import ConfigRecord, Member

#: where a View has its log
LOG: Final = slice(4, 8)

# names of events that are no messages, with what stands in ``Step.args``; others are called by the name of their class
#: etcd's record: (config, mod revision)
RECORD: Final = "etcd's record"
#: an election ended: (record won or None, its mod revision)
CAMPAIGNED: Final = "campaign done"
#: a swap of the record ended: (the record or None, its mod revision, reason)
CHANGED: Final = "change done"
#: a whole snapshot is staged (R17): (epoch, index, the entry's epoch)
STAGED: Final = "snapshot staged"
#: it has been switched in: (index, the entry's epoch)
INSTALLED: Final = "snapshot installed"
#: the state alone has been replaced (R14): (done,)
REBUILT: Final = "state rebuilt"
#: an empty replica has become what an entry of its parent split off (R18): (index, the entry's epoch)
FORKED: Final = "became what was split off"
#: what was split off is known, and so its entry is committed (R18): (the entry's epoch, index)
LEARNED: Final = "an entry is known to be committed"


NAMES: Final = {
    ev.ConfigSeen: RECORD,
    ev.CampaignEnded: CAMPAIGNED,
    ev.ChangeEnded: CHANGED,
    ev.SnapshotStaged: STAGED,
    ev.SnapshotInstalled: INSTALLED,
    ev.StateRebuilt: REBUILT,
    ev.SplitTaken: FORKED,
    ev.EntryCommitted: LEARNED,
}


def told(event: Any, src: Process | None) -> tuple[Any, Process | None, tuple[Any, ...]]:
    """``event`` and ``args`` of the Step that an event of the core, or a message of ``src``, is, and who sent it."""
    kind = type(event)
    if kind in KINDS:
        return event, src, ()
    if isinstance(event, ev.SnapshotStaged):
        return STAGED, event.src, (event.epoch, event.index, event.index_epoch)
    fields = tuple(getattr(event, f) for f in _FIELDS.setdefault(kind, fields_of(kind)) if f != "p")
    return NAMES.get(kind, kind.__name__), None, fields


_FIELDS: dict[type[Any], tuple[str, ...]] = {}
KINDS: Final = frozenset(MESSAGES.values())


def fields_of(kind: type[Any]) -> tuple[str, ...]:
    found: tuple[str, ...] | None = getattr(kind, "_fields", None)
    return found if found is not None else tuple(f.name for f in dataclasses.fields(kind))


class View(NamedTuple):
    """A replica between two events. ``firsts``, ``epochs``: the runs of the log after ``base``."""

    sealed: int
    owner: Process | None
    role: str
    commit: int
    base: tuple[int, int]
    last: int
    firsts: tuple[int, ...]
    epochs: tuple[int, ...]
    #: until when it takes itself to hold a quorum's grants (R8)
    read_until: int
    #: when its copy last was known to hold all that was acknowledged (R8, stale reads)
    fresh: int
    #: its partition's record as it knows it, and the revision at which etcd has that (0: not known)
    config: ConfigRecord | None = None
    mod: int = 0
    #: a snapshot is being switched in (R17)
    installing: bool = False
    #: its state is damaged, and the first entry that its log lacks (R14), 0 = none
    damaged: bool = False
    lost: int = 0

    def epoch_at(self, index: int) -> int:
        """Of an entry held, or of the base. Raises IndexError beyond both."""
        if index == self.base[1]:
            return self.base[0]
        if not self.base[1] < index <= self.last:
            raise IndexError(index)
        return self.epochs[bisect_right(self.firsts, index) - 1]

    def has(self, epoch: int, index: int) -> bool:
        """Whether the log holds that very entry, as far as it says."""
        return self.base[1] <= index <= self.last and self.epoch_at(index) == epoch

    def position(self) -> tuple[int, int]:
        return (self.epochs[-1] if self.epochs else self.base[0], self.last)


class Step(NamedTuple):
    """``event``: the message received, or the name of what happened; ``src``: who sent it; ``args``: what else came with
    an event that has a name; ``held``: partitions of which the disk has a copy that is more than empty, where
    that is looked at."""

    now: int
    event: Any
    src: Process | None
    before: View
    after: View
    effects: list[fx.Effect]
    args: tuple[Any, ...] = ()
    held: frozenset[int] = frozenset()


def view_of(replica: Replica) -> View:
    """The replica as it is now."""
    log, term = replica.log, replica.term
    return View(
        replica.sealed_epoch,
        replica.owner,
        replica.role,
        replica.commit_index,
        (log.base_epoch, log.base_index),
        log.last_index,
        tuple(log._firsts),
        tuple(log._epochs),
        term.read_until_ns if term is not None else 0,
        replica.fresh_ns,
        replica.config,
        replica.config_mod_revision,
        replica.installing,
        replica.damaged,
        replica.lost_index,
    )


class Answer(NamedTuple):
    """A SEAL's answer, as it came (R3)."""

    position: tuple[int, int]
    remaining: int
    arrived: int


class Reign:
    """What one epoch's owner may rely on, from the messages it got."""

    def __init__(self, epoch: int, config: ConfigRecord, me: Process) -> None:
        self.epoch, self.config, self.me = epoch, config, me
        self.members = set(config.members())
        self.answers: dict[str, list[Answer]] = {}
        self.match: dict[str, int] = {}
        #: R10: what those have acknowledged who are no members yet
        self.learned: dict[Member, int] = {}
        self.hold: dict[str, int] = {}
        self.noop = 0
        #: it was active under this epoch
        self.activated = False

    def is_member(self, src: Process | None) -> bool:
        return src is not None and (src.node, src.store) in self.members

    def quorum(self, having: set[str]) -> bool:
        sets = [s for s in (self.config.replicas, self.config.joint) if s is not None]
        return all(2 * sum(1 for node, _ in s if node in having) > len(s) for s in sets)


class Partings:
    """R18: what entries split off, by the word of those who proposed them. One for all replicas of a world."""

    def __init__(self) -> None:
        self.of: dict[int, dict[tuple[int, int], SplitOff]] = {}
        #: (partition, epoch, index) of those that some replica knows to be committed, by R6
        self.committed: set[tuple[int, int, int]] = set()
        #: children, and stores that etcd's record of them has left out at some time
        self.left: set[tuple[int, Member]] = set()

    def note(self, p: int, split: SplitOff) -> None:
        self.of.setdefault(p, {})[split.epoch, split.entry] = split

    def in_log(self, p: int, view: View) -> list[SplitOff]:
        """Of the entries that a replica of ``p`` has, or has had before its log began."""
        found = self.of.get(p)
        if not found:
            return []
        return [
            split
            for (epoch, index), split in found.items()
            if view.has(epoch, index) or (index <= view.base[1] and (p, epoch, index) in self.committed)
        ]

    def commit(self, p: int, before: int, view: View) -> None:
        """Entries of ``view`` above ``before`` and up to its commit index are committed."""
        for epoch, index in self.of.get(p, ()):
            if before < index <= view.commit and view.has(epoch, index):
                self.committed.add((p, epoch, index))

    def needed(self, p: int, store: Member, upto: int, held: Iterable[int]) -> list[int]:
        """What committed entries of ``p`` up to ``upto`` split off for this store too, and its disk does not have as such."""
        return [
            split.child
            for (epoch, index), split in self.of.get(p, {}).items()
            if index <= upto
            and (p, epoch, index) in self.committed
            and store in split.members
            and split.child not in held
            and (split.child, store) not in self.left
        ]


def child_of(p: int, split: SplitOff) -> ConfigRecord:
    """R18: the record that a child begins with: it follows from the entry alone."""
    term = (split.epoch >> 16) + 1
    lo = int.from_bytes(split.at, "big")
    return ConfigRecord(
        split.child,
        lo,
        split.last + 1,
        term << 16,
        split.members[0][0],
        split.members,
        parent=(p, split.epoch, split.entry),
    )
