"""Messages between replicas. Pure data; the wire packs each as an array.

``p`` is the partition, ``epoch`` the sender's epoch in that partition (R1). Every message
travels on a connection that named both processes (node, store, incarnation) when it opened,
so each names the store that it is for (R13) without carrying it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Process(NamedTuple):
    """One run of one node on one store. Owners of epochs are processes (R1, R12)."""

    node: str
    store: str
    incarnation: str


class Lineage(NamedTuple):
    """R13: the generation of a store, which is how many processes have run on it, and the last of those, the
    newest first. Only a store that descends from what is known of it has all of that in its own lineage: a copy
    of its folder parts from it with the first process that runs on either."""

    generation: int = 0
    runs: tuple[str, ...] = ()

    def descends_from(self, generation: int, incarnation: str) -> bool:
        """Whether ``incarnation`` may be the process that ran on this very store as its ``generation``."""
        back = self.generation - generation
        if back < 0:
            return False
        return not incarnation or back >= len(self.runs) or self.runs[back] == incarnation


#: R9, a sign of life: the leader gets on, so it is not to be replaced. It proves nothing about its copy
HEALTHY: Final = 1
#: R8, a proof: when this was sent its sender could serve linearizable reads, so all that anybody had
#: acknowledged by then is within ``commit``
FRESH: Final = 2

#: a node's disk has room; it is below its mark; nothing more can be logged there
ROOM, LOW, FULL = 0, 1, 2

Beat = tuple[int, int, int, int]
"""``(p, epoch, says, commit)``; ``says``: the sum of HEALTHY and FRESH, as far as each holds."""


class Heartbeat(NamedTuple):
    """Leader to peer, for all partitions it leads there (R8).

    ``number`` names the message; ``echo``: the receiver's own clock, from its last acknowledgement that
    the leader has heard: the leader knew all that it says here later than that; ``beats``: one for each
    partition. A leader that hears no quorum itself is not HEALTHY, so that it keeps nobody from electing (R9);
    one that may not serve linearizable reads is not FRESH, so that nobody's copy is as new as this heartbeat
    (R8); commit tells a follower how far behind it is and never raises its own (R6)."""

    number: int
    echo: int
    beats: list[Beat]


class HeartbeatAck(NamedTuple):
    """Grants reads for ``grant_ns`` to every beat but the refused [(p, sealed_epoch), ...] (R8).
    ``clock``: the sender's, to be echoed; ``room``: how much its disk has, ROOM, LOW or FULL."""

    number: int
    clock: int
    grant_ns: int
    refused: list[tuple[int, int]]
    room: int = ROOM


class Seal(NamedTuple):
    """R3. ``config``: packed config of the epoch; ``resigned``: the epoch handed over (R11), 0 if none."""

    p: int
    epoch: int
    config: bytes
    resigned: int


class Sealed(NamedTuple):
    """R3: the replica's position, commit index and remaining grant, read as it sealed."""

    p: int
    epoch: int
    last_epoch: int
    last_index: int
    commit: int
    remaining_grant_ns: int


class Refused(NamedTuple):
    """R1: ``epoch`` was not acted on; the replica has sealed ``sealed`` (lower: seal me first)."""

    p: int
    epoch: int
    sealed: int


class Append(NamedTuple):
    """R5. ``entries``: contiguous entry blobs from ``prev_index + 1`` on."""

    p: int
    epoch: int
    prev_epoch: int
    prev_index: int
    commit: int
    entries: list[bytes]


class Appended(NamedTuple):
    """R5: durable, and equal to the leader's log, up to ``match``."""

    p: int
    epoch: int
    match: int


class Missed(NamedTuple):
    """R5: the log lacks ``prev``; its last position at or below that is the hint."""

    p: int
    epoch: int
    hint_epoch: int
    hint_index: int


class Pull(NamedTuple):
    """R3: the new owner asks a sealed replica for entries after ``prev``."""

    p: int
    epoch: int
    prev_epoch: int
    prev_index: int


class Pulled(NamedTuple):
    """R3: entries after ``prev`` of the sealed replica's log."""

    p: int
    epoch: int
    prev_epoch: int
    prev_index: int
    entries: list[bytes]


class PullMissed(NamedTuple):
    """R3: the log lacks ``prev``; the hint as in Missed."""

    p: int
    epoch: int
    hint_epoch: int
    hint_index: int


class PreVote(NamedTuple):
    """R9: have you lost the leader too? ``epoch``: the newest the sender has sealed."""

    p: int
    epoch: int
    round: int


class PreVoteReply(NamedTuple):
    p: int
    epoch: int
    round: int
    lost: bool


class HandOff(NamedTuple):
    """R11: the leader of ``epoch`` has resigned in your favour; campaign."""

    p: int
    epoch: int


class Appoint(NamedTuple):
    """R10: etcd's record of the next term, made by the leader of ``epoch`` as its last act, names you
    its owner; that leader has resigned (R11). Without ``config``: it has resigned, and is about to."""

    p: int
    epoch: int
    config: bytes
    mod_revision: int


class Appointed(NamedTuple):
    """R11: it is known here that the leader of ``epoch`` has resigned."""

    p: int
    epoch: int


class Recall(NamedTuple):
    """R13: under ``epoch``, which is the sender's, the process ``run`` on your store has acknowledged ``match``. A
    later process that does not have that runs on an old copy of the store, and takes part in nothing."""

    p: int
    epoch: int
    match: int
    run: str


class SnapshotBegin(NamedTuple):
    """R17: a snapshot at ``(at_epoch, at_index)`` follows, in chunks. ``splits`` = [(child, entry), ...]: what was
    split off the partition up to there (R18)."""

    p: int
    epoch: int
    snapshot: int
    at_index: int
    at_epoch: int
    splits: list[tuple[int, int]]


class SnapshotChunk(NamedTuple):
    """R17: ``rows`` = [(kind, key, value), ...]; no rows = the end."""

    p: int
    epoch: int
    snapshot: int
    number: int
    rows: list[tuple[int, bytes, bytes]]


class SnapshotAck(NamedTuple):
    """R17: chunk ``number`` is staged; ``ok`` False = give up this snapshot."""

    p: int
    epoch: int
    snapshot: int
    number: int
    ok: bool


class Rebuild(NamedTuple):
    """R14: the sender's state of the partition is damaged, its log is not: the owner of ``epoch`` is to send a
    snapshot, which takes the place of the state alone."""

    p: int
    epoch: int


Message = (
    Heartbeat
    | HeartbeatAck
    | Seal
    | Sealed
    | Refused
    | Append
    | Appended
    | Missed
    | Pull
    | Pulled
    | PullMissed
    | PreVote
    | PreVoteReply
    | HandOff
    | Appoint
    | Appointed
    | Recall
    | SnapshotBegin
    | SnapshotChunk
    | SnapshotAck
    | Rebuild
)

#: number on the wire -> (class, types of its fields); numbers are never reused
KINDS: dict[int, type[Any]] = {
    1: Heartbeat,
    2: HeartbeatAck,
    3: Seal,
    4: Sealed,
    5: Refused,
    6: Append,
    7: Appended,
    8: Missed,
    9: Pull,
    10: Pulled,
    11: PullMissed,
    12: PreVote,
    13: PreVoteReply,
    14: HandOff,
    15: SnapshotBegin,
    16: SnapshotChunk,
    17: SnapshotAck,
    18: Appoint,
    19: Appointed,
    20: Recall,
    21: Rebuild,
}
NUMBERS: dict[type[Any], int] = {cls: n for n, cls in KINDS.items()}
