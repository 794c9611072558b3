"""Which history a version is of (R19). Pure.

The changes of a partition are numbered on, and what is handed out (ETags, resume positions, lock tokens, request
stamps) are such numbers. Where a partition has to go on without a quorum of its log, or a cluster is filled from a snapshot, numbers
would be given out a second time, for other changes. So a *generation* stands in the high bits of each:

    version = generation << COUNT_BITS | count

A new generation begins with a *mark*, the first entry of a leader's term: from there on the partition is at
``first_version(generation)``, which no change has. A version of another generation is refused (HistoryChanged), never
compared; records that were written before are shown as of the generation's first version. Within a
generation all is as it would be without.

With MAX_GENERATIONS of 2**COUNT_BITS changes each a version stays below 2**53: a safe integer of JavaScript.

Four kinds of numbers are made of it. They are counted alike and never mean the same, so each is a type of its own, and
becomes another only by the functions below that say why it may.
"""

from __future__ import annotations

from typing import Final, NewType

import msgpack

from metastore.errors import HistoryChanged

Version = NewType("Version", int)
"""The change that last wrote a record: its ETag. 0 = there is no record."""
ResumePoint = NewType("ResumePoint", int)
"""A version up to which all changes of one partition were seen: a watch goes on behind it."""
FencingToken = NewType("FencingToken", int)
"""What the holder of a lock shows with its writes (R20): greater than that of every earlier holder."""
LastSeenIndex = NewType("LastSeenIndex", int)
"""An index of a partition's log, of some generation: a request that carries it was not executed by any entry up to it (R7)."""

COUNT_BITS: Final = 44
MAX_GENERATIONS: Final = 512
#: no entry is made beyond it: more than an entry can change is left up to the next generation
LAST_COUNT: Final = (1 << COUNT_BITS) - (1 << 24)
#: a version that there never is, of no history at all: a condition that never holds
NO_VERSION: Final = Version(1 << 62)
#: of who has seen nothing of a partition yet
NOTHING_SEEN: Final = LastSeenIndex(0)
#: lower than every token
NO_TOKEN: Final = FencingToken(0)
#: all versions, of whatever history, are below it
VERSIONS: Final = MAX_GENERATIONS << COUNT_BITS
_COUNT_MASK: Final = (1 << COUNT_BITS) - 1
#: of a mark: an array of five, the version as it is packed from the first generation on, and four empty arrays
_MARK_BYTES: Final = 14
_MARK_END: Final = b"\x90" * 4


def generation_of(version: int) -> int:
    """The history that a version is of."""
    return version >> COUNT_BITS


def is_of_another(version: int, mine: int) -> bool:
    """Whether ``version`` is of another history than the version ``mine``. What no generation has is of none."""
    return generation_of(version) != generation_of(mine) and generation_of(version) < MAX_GENERATIONS


def first_version(generation: int) -> Version:
    """Where a generation begins."""
    return Version(generation << COUNT_BITS)


def token_of(version: Version) -> FencingToken:
    """The token of a lock: the version that its record was written at, and keeps while it is only touched."""
    return FencingToken(version)


def lock_version(token: FencingToken) -> Version:
    """The version of the record of the lock that has ``token``."""
    return Version(token)


def resume_after(version: Version) -> ResumePoint:
    """Where to go on when a partition was read at ``version``, or all its changes up to it were seen."""
    return ResumePoint(version)


def count_of(version: int) -> int:
    """How many changes of its generation there were up to a version."""
    return version & _COUNT_MASK


def within_history(seen: LastSeenIndex, index: int) -> LastSeenIndex:
    """The log index ``index`` in the history that ``seen`` is of."""
    return LastSeenIndex(first_version(generation_of(seen)) + index)


def pack_mark(generation: int) -> bytes:
    """The payload of the entry with which a leader begins its term where the partition has had its history
    changed; before that, the empty one. It has the form of any entry, without rows."""
    if not generation:
        return b""
    payload: bytes = msgpack.packb((first_version(generation), [], [], [], []))
    return payload


def is_mark(payload: bytes) -> bool:
    """Whether a payload begins a generation, or says again which one it is. Looks at a few bytes."""
    return len(payload) == _MARK_BYTES and payload.endswith(_MARK_END)


def history_changed(version: int, last_version: int) -> HistoryChanged:
    """The refusal of ``version`` by a partition that is at ``last_version``, or at any other of its generation."""
    now = generation_of(last_version)
    return HistoryChanged(
        f"version {version} is of generation {generation_of(version)} of its partition's history, which is in generation "
        f"{now}: it went on without a quorum or was restored in between, and what was read before may be undone; read "
        "again, and acquire locks again",
        version=version,
        generation=now,
    )
