"""What the core asks its driver to do. Plain data, carried out in the order given.

``Persist`` effects go to the log in order. A ``Send`` with ``durable=True`` leaves only when
everything this partition persisted before it is durable (R1, R5); to the process itself it
comes back as a received message, which is how a leader counts its own copy (R6).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from metastore.core.messages import Process
from metastore.errors import RottenEntry
from metastore.layout import ConfigRecord


class PersistEntries(NamedTuple):
    """``epoch``: under which they are written; the store compares it with the one sealed (R1).
    ``entries``: what ``Context.read_payload`` made of each, None = they are this leader's own."""

    p: int
    blobs: list[bytes]
    commit: int
    epoch: int
    entries: list[Any] | None = None


class PersistSeal(NamedTuple):
    """R1: sealed epoch, owner and that epoch's config, in one record."""

    p: int
    epoch: int
    owner: Process
    config: bytes


class PersistTruncate(NamedTuple):
    """``epoch``: under which the suffix is removed; the store compares it with the one sealed (R1)."""

    p: int
    keep_index: int
    epoch: int


class PersistConfig(NamedTuple):
    p: int
    config: bytes


class Send(NamedTuple):
    node: str
    message: Any
    durable: bool = False


class Committed(NamedTuple):
    """Entries up to ``upto`` are committed: apply them in order (R6)."""

    p: int
    upto: int


class RoleChanged(NamedTuple):
    """For logs, for pending operations and for observers. ``role``, ``was`` as in Replica."""

    p: int
    role: str
    was: str
    epoch: int
    reason: str


class Campaign(NamedTuple):
    """R2: run the election transaction. ``replace``: the leader value that R9 allows to
    replace (raw), None = the key must be absent. Answer with NodeCore.campaign_done."""

    p: int
    expect_mod_revision: int
    new: ConfigRecord
    replace: bytes | None
    reason: str
    #: by a leader that resigned on purpose (R11)
    handed_over: bool = False


class ChangeConfig(NamedTuple):
    """R10: replace ``config(p)`` by ``new``, if it is still at ``expect_mod_revision``. ``cell``: where the
    record is to be afterwards (another one than now: the move's last step). Answer with
    NodeCore.change_done."""

    p: int
    expect_mod_revision: int
    new: ConfigRecord
    cell: str | None
    reason: str
    #: R18: the record of the partition that is split off by it
    child: ConfigRecord | None = None


class MoveEnded(NamedTuple):
    """R10: nothing is left to do of the partition's move: its record goes."""

    p: int
    how: str


class Sought(NamedTuple):
    """R18: a member seals ``p``, which is not here, under ``config``."""

    p: int
    config: ConfigRecord


class Lacking(NamedTuple):
    """R13: ``node`` has less than its store acknowledged to this leader, for all that is known here."""

    p: int
    node: str
    what: str


class Rotten(NamedTuple):
    """R14: an entry of this replica's log cannot be read back any more."""

    p: int
    error: RottenEntry


class Condemned(NamedTuple):
    """R13: this store has less than it acknowledged: it is an old copy, and is to take part in nothing."""

    p: int
    why: str


class StartSnapshot(NamedTuple):
    """R17: ``node`` needs more than the log holds; stream it a snapshot under ``epoch``."""

    p: int
    node: str
    epoch: int


class InstallSnapshot(NamedTuple):
    """R17: switch the staged snapshot in; answer with NodeCore.snapshot_installed. ``keep_log`` (R14): in the place of a
    damaged state alone; answer with ``on_rebuilt``."""

    p: int
    at_index: int
    at_epoch: int
    keep_log: bool = False


class DiscardSnapshot(NamedTuple):
    p: int


Effect = (
    PersistEntries
    | PersistSeal
    | PersistTruncate
    | PersistConfig
    | Send
    | Committed
    | RoleChanged
    | Campaign
    | ChangeConfig
    | MoveEnded
    | Sought
    | Lacking
    | Rotten
    | Condemned
    | StartSnapshot
    | InstallSnapshot
    | DiscardSnapshot
)
