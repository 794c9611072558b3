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


class Seen(NamedTuple):
    """R13: what somebody knows of a store: ``incarnation`` ran on it as its ``generation``, and told that its log was
    durable up to its record ``mark``."""

    generation: int
    incarnation: str
    mark: int = 0


#: a run and etcd: it has not asked to be registered; it may have been; it was
UNASKED, ASKED, CONFIRMED = 0, 1, 2
#: how many runs a store remembers, the present one included
MAX_RUNS: Final = 64


class Run(NamedTuple):
    """R13: a process that ran on a store. ``end``: the last record of its log, as the next run found it; ``asked``: UNASKED,
    ASKED or CONFIRMED."""

    generation: int
    incarnation: str
    end: int = 0
    asked: int = UNASKED


class Lineage(NamedTuple):
    """R13: the runs of a store that it remembers, the newest first, which is the present one. Only a store that descends
    from what is known of it has that in its own lineage: a copy of its folder parts from it with the first process that runs
    on either, and falls short of what the process that ran when it was taken told later.

    The oldest are forgotten beyond MAX_RUNS, but never one that etcd's record may name: the last that etcd
    confirmed, and those that asked it since. What is not remembered is not passed over: it counts as never seen."""

    runs: tuple[Run, ...] = ()

    @property
    def generation(self) -> int:
        """How many processes have run on the store."""
        return self.runs[0].generation if self.runs else 0

    def begun(self, incarnation: str, end: int) -> Lineage:
        """With one run more; ``end``: the last record of the log that the one before left."""
        before = list(self.runs)
        if before:
            before[0] = before[0]._replace(end=end)
        runs = [Run(self.generation + 1, incarnation), *before]
        if len(runs) > MAX_RUNS:
            older = range(1, len(runs))
            confirmed = next((at for at in older if runs[at].asked == CONFIRMED), len(runs))
            spare = [at for at in older if at > confirmed or not runs[at].asked]
            # nothing is, where etcd's answers were lost time and again
            del runs[spare[-1] if spare else max(at for at in older if at != confirmed)]
        return Lineage(tuple(runs))

    def noted(self, asked: int) -> Lineage:
        """With what the present run knows of etcd's record."""
        return Lineage((self.runs[0]._replace(asked=asked), *self.runs[1:]))

    def has(self, seen: Seen) -> bool:
        """Whether this store descends from what was ``seen`` of it. Records of versions that had no runs name none."""
        if not seen.incarnation:
            return seen.generation <= self.generation
        return self._find(seen) is not None and not self.lacks(seen)

    def lacks(self, seen: Seen) -> bool:
        """Whether a run of this store reported more than it left here: what is here was copied while it ran."""
        run = self._find(seen)
        return run is not None and run is not self.runs[0] and run.end < seen.mark

    def contradicts(self, seen: Seen) -> bool:
        """Whether this store cannot descend from what was ``seen``, whatever it has forgotten: another run was its generation of
        that number, or that told more, or there have not been so many."""
        if not seen.incarnation:
            return seen.generation > self.generation
        remembered = any(run.generation == seen.generation for run in self.runs)
        return self.lacks(seen) or (remembered and not self.has(seen)) or seen.generation > self.generation

    def end_of(self, seen: Seen) -> int:
        """The last record that the run left here, 0 when it is not known here."""
        run = self._find(seen)
        return run.end if run is not None else 0

    def _find(self, seen: Seen) -> Run | None:
        wanted = seen.generation, seen.incarnation
        return next((run for run in self.runs if (run.generation, run.incarnation) == wanted), None)


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
