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
"""

from __future__ import annotations

from typing import Final

import msgpack

from metastore.errors import HistoryChanged

COUNT_BITS: Final = 44
MAX_GENERATIONS: Final = 512
#: no entry is made beyond it: more than an entry can change is left up to the next generation
LAST_COUNT: Final = (1 << COUNT_BITS) - (1 << 24)
#: a version that there never is, of no history at all: a condition that never holds
NO_VERSION: Final = 1 << 62
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


def first_version(generation: int) -> int:
    """Where a generation begins."""
    return generation << COUNT_BITS


def count_of(version: int) -> int:
    """How many changes of its generation there were up to a version."""
    return version & _COUNT_MASK


def within_history(version: int, count: int) -> int:
    """The number ``count`` of the history that ``version`` is of."""
    return first_version(generation_of(version)) + count


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
        "again, and take locks again",
        version=version,
        generation=now,
    )
