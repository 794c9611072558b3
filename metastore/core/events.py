"""Everything that happens to the replicas of a node, as plain data: what goes into the core.

There is one door, ``NodeCore.handle``: it accepts these events, and the messages of ``core.messages`` with the process that
sent each. Nothing else changes a replica or what the replicas of a node share, so the events since a checkpoint, played
again, lead to the same effects (``core.journal``). An event of one replica names its partition ``p``; the others concern
all replicas here.

Times are in ns on the node's clock. What comes with every write is a NamedTuple, which is cheaper to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.layout import ConfigRecord, MoveRecord

# --- of all replicas of the node --------------------------------------------------------------


class Tick(NamedTuple):
    """Time has passed. ``can_elect``: etcd answers and this node's lease is alive, as far as is known; ``stuck``: the disk
    works at one sync for longer than a leader may be silent, so nothing is led from here; ``room``: of the disk, as in
    ``messages`` (ROOM, LOW or FULL)."""

    can_elect: bool
    stuck: bool = False
    room: int = 0


class QuorumAsked(NamedTuple):
    """Operations wait for a quorum to confirm this leader: a heartbeat leaves now (R8)."""


@dataclass(frozen=True, slots=True)
class LineageKnown:
    """R13: the processes that ran on this store lately, by their incarnations."""

    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """R12: the node has started, and etcd has not said otherwise in time: restarted owners go on."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The process stood still: what peers sent meanwhile has not been read yet, so nobody counts as silent."""


@dataclass(frozen=True, slots=True)
class MovesPaused:
    """Whether membership changes have been paused by an operator."""

    paused: bool


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A connection to ``node`` is open (again)."""

    node: str


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The connection to ``node`` was reset or refused: the process is lost at once (R9)."""

    node: str


@dataclass(frozen=True, slots=True)
class StoreRefused:
    """R13: the store is not what its name says: every leader here steps down, and no replica is left."""


# --- a replica comes and goes -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """What a replica finds in its store when it is opened. Its maker gives ``log`` away."""

    log: LogIndex
    sealed_epoch: int = 0
    owner: Process | None = None
    config: ConfigRecord | None = None
    commit_index: int = 0
    #: the epoch that was sealed when its data was dropped (R10): what it acknowledged before is gone by right
    emptied_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """A replica is here from now on, with what its store has of it."""

    p: int
    restored: Restored


@dataclass(frozen=True, slots=True)
class Dropped:
    """R10: the replica is no member any more, and its data goes."""

    p: int


# --- what etcd's records say --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfigSeen:
    """``config(p)``, as it stands in etcd at ``mod_revision``; 0 = it is not known to stand there."""

    p: int
    config: ConfigRecord
    mod_revision: int


@dataclass(frozen=True, slots=True)
class LeaderSeen:
    """``leader(p)``, raw; None = it is gone: its owner has resigned, or its lease has ended."""

    p: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class RecordSeen:
    """Whether etcd has a record of the partition that makes sense: without one nobody can be elected by it."""

    p: int
    is_sound: bool


@dataclass(frozen=True, slots=True)
class HomeSeen:
    """The cell whose records hold the partition."""

    p: int
    cell: str


@dataclass(frozen=True, slots=True)
class MoveWanted:
    """R10: what etcd wants of the partition's membership; None = nothing."""

    p: int
    move: MoveRecord | None


@dataclass(frozen=True, slots=True)
class CampaignEnded:
    """R2: the election transaction has ended. ``won``: the new config at ``mod_revision``; None = lost, or no etcd."""

    p: int
    won: ConfigRecord | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class ChangeEnded:
    """R10: the swap of ``config(p)`` has ended. ``new``: the record now, at ``mod_revision``; None = it is not, and this
    changed nothing. ``reason``: the effect's."""

    p: int
    new: ConfigRecord | None
    mod_revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class TransferWanted:
    """R11: leadership is to go to ``to``. Nothing happens where that is not possible (``Replica.can_transfer``)."""

    p: int
    to: str


# --- the log and the state ----------------------------------------------------------------------


class Propose(NamedTuple):
    """R7: one entry, of an active leader. Its index is the log's last afterwards."""

    p: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Compacted:
    """R17: the store has removed the log up to ``index``: a replica that needs it gets a snapshot."""

    p: int
    index: int


@dataclass(frozen=True, slots=True)
class StateLost:
    """R14: the state has turned out to be damaged; the log is not."""

    p: int


@dataclass(frozen=True, slots=True)
class EntryLost:
    """R14: an entry that the state does not have yet has rotted in the log."""

    p: int
    index: int


@dataclass(frozen=True, slots=True)
class RebuildDue:
    """R14: the damaged state waits to be rebuilt: the leader is asked for a snapshot, now and then."""

    p: int


# --- snapshots (R17) ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """A snapshot to ``node`` moves on: it gets more time."""

    p: int
    node: str


@dataclass(frozen=True, slots=True)
class SnapshotRefused:
    """``node`` does not accept a snapshot now: it is asked again in a while."""

    p: int
    node: str


@dataclass(frozen=True, slots=True)
class SnapshotStaged:
    """A whole snapshot of entry ``index`` of ``index_epoch``, which ``src`` sent under ``epoch``, is staged here."""

    p: int
    src: Process
    epoch: int
    index: int
    index_epoch: int


@dataclass(frozen=True, slots=True)
class SnapshotInstalled:
    """The store has switched the staged snapshot in; the log begins behind ``index``."""

    p: int
    index: int
    index_epoch: int


@dataclass(frozen=True, slots=True)
class StateRebuilt:
    """R14: the damaged state has been replaced; not ``done``: it could not be, and is as it was."""

    p: int
    done: bool


# --- splits (R18) -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartingProposed:
    """The point at which an entry that is proposed, and not applied yet, splits the partition; None = there is none."""

    p: int
    at: int | None


@dataclass(frozen=True, slots=True)
class SplitApplied:
    """An entry split off ``child``, its first config, and etcd's record does not say so yet, as far as is known.
    ``durable``: the child is durable here."""

    p: int
    child: ConfigRecord
    durable: bool


@dataclass(frozen=True, slots=True)
class SplitOff:
    """The replica is what an applied entry split off ``parent``: the owner that its first config names begins its term."""

    p: int
    parent: int


@dataclass(frozen=True, slots=True)
class SplitTaken:
    """The store has made this copy, which was empty, what its parent's entry ``index`` of ``index_epoch`` split off."""

    p: int
    index: int
    index_epoch: int


@dataclass(frozen=True, slots=True)
class EntryCommitted:
    """Somebody has applied entry ``index`` of ``epoch``: it is committed."""

    p: int
    epoch: int
    index: int


OfNode = (
    Tick
    | QuorumAsked
    | LineageKnown
    | Resumed
    | Stalled
    | MovesPaused
    | PeerUp
    | PeerDown
    | StoreRefused
    | Opened
    | Dropped
)
OfReplica = (
    ConfigSeen
    | LeaderSeen
    | RecordSeen
    | HomeSeen
    | MoveWanted
    | CampaignEnded
    | ChangeEnded
    | TransferWanted
    | Propose
    | Compacted
    | StateLost
    | EntryLost
    | RebuildDue
    | SnapshotProgress
    | SnapshotRefused
    | SnapshotStaged
    | SnapshotInstalled
    | StateRebuilt
    | PartingProposed
    | SplitApplied
    | SplitOff
    | SplitTaken
    | EntryCommitted
)
Event = OfNode | OfReplica
