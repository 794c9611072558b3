"""The volatile state of one leadership: answers to SEAL, progress of followers, read grants. Pure.

A Term exists from winning an epoch until losing it and is never reused (R12).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from metastore.core.quorum import is_quorum, quorum_value
from metastore.core.settings import CoreSettings
from metastore.layout import ConfigRecord, Member

FOREVER = 1 << 62


class SealAnswer(NamedTuple):
    """R3's answer and when it arrived, on the owner's clock (R4)."""

    last_epoch: int
    last_index: int
    commit: int
    remaining_grant_ns: int
    arrived_ns: int


@dataclass(slots=True)
class Progress:
    """What the leader knows of one member's log (R5)."""

    sealed: bool = False
    match: int = 0
    #: the most that its store has ever acknowledged under this epoch, and the process that did (R13)
    acked: int = 0
    acked_by: str = ""
    next: int = 0
    probing: bool = True
    snapshotting_since_ns: int = 0
    #: an entry that cannot be sent any more though it is above the log's base: it has rotted (R14). A snapshot has to
    #: bring it, whatever before it is acknowledged meanwhile
    gap: int = 0
    sent_commit: int = 0
    last_send_ns: int = 0
    last_ack_ns: int = 0
    last_seal_ns: int = 0
    last_recall_ns: int = 0


@dataclass(slots=True)
class Term:
    """One term of one leader: ``epoch`` under ``config``, whose quorums never change."""

    epoch: int
    config: ConfigRecord
    me: str
    started_ns: int
    resigned_epoch: int = 0
    #: why it began, for people
    reason: str = ""
    answers: dict[str, SealAnswer] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    hold_until: dict[str, int] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    acked_at_ns: dict[str, int] = field(default_factory=dict)
    noop_index: int = 0
    pull_from: str | None = None
    pull_target: tuple[int, int] = (0, 0)
    pull_sent_ns: int = 0
    #: nodes brought up to date before they join (R10): node -> store. They count in no quorum
    learners: dict[str, str] = field(default_factory=dict)
    handoff_to: str | None = None
    handoff_since_ns: int = 0
    last_quorum_ns: int = 0
    read_until_ns: int = 0
    #: ``config.members()``
    members: frozenset[Member] = frozenset()

    def __post_init__(self) -> None:
        self.last_quorum_ns = self.started_ns
        self.members = frozenset(self.config.members())
        for node, _ in self.config.members():
            self.progress[node] = Progress()
        self.count_grants()

    def learn(self, node: str, store: str) -> None:
        """Begin to bring ``node`` up to date."""
        self.learners[node] = store
        self.progress[node] = Progress()

    def unlearn(self, node: str) -> None:
        del self.learners[node], self.progress[node]

    def others(self) -> list[str]:
        """Everybody replicated to, learners too."""
        return [node for node in self.progress if node != self.me]

    def sealed_quorum(self) -> bool:
        """R3: answers from a quorum, the owner's own among them."""
        return self.me in self.answers and is_quorum(self.config, self.answers) and self.has_origin()

    def has_origin(self) -> bool:
        """R18: whether somebody among them has what the partition began with. A member that has not come to the
        split yet lacks nothing that it ever acknowledged, so it counts; but all of them may be such."""
        parent = self.config.parent
        return parent is None or any(
            (a.last_epoch, a.last_index) >= parent[1:] for a in self.answers.values()
        )

    def best_answer(self) -> str:
        """R3: whose log to adopt; the owner's own if none is higher."""
        own = self.answers[self.me]
        best, position = self.me, (own.last_epoch, own.last_index)
        for node in sorted(self.answers):
            a = self.answers[node]
            if (a.last_epoch, a.last_index) > position:
                best, position = node, (a.last_epoch, a.last_index)
        return best

    def grants_passed(self, now: int, settings: CoreSettings) -> bool:
        """R4: a quorum of answers whose remaining grants are over, each since it arrived."""
        over = {
            node
            for node, a in self.answers.items()
            if a.remaining_grant_ns == 0 or now > a.arrived_ns + settings.stretched(a.remaining_grant_ns)
        }
        return is_quorum(self.config, over)

    def committed_index(self) -> int:
        """R6: the highest index a quorum has acknowledged under this epoch."""
        progress = self.progress
        return quorum_value(self.config, lambda n: progress[n].match)

    def count_grants(self) -> None:
        """Set ``read_until_ns``: until when a quorum's grants are held, the leader counting (R8)."""
        hold = self.hold_until
        self.read_until_ns = quorum_value(self.config, lambda n: FOREVER if n == self.me else hold.get(n, 0))

    def quorum_acked(self) -> int:
        """R8: a quorum has acknowledged a heartbeat of this number or a later one."""
        acked = self.acked
        return quorum_value(self.config, lambda n: FOREVER if n == self.me else acked.get(n, 0))

    def quorum_acked_at_ns(self) -> int:
        """A quorum has acknowledged a heartbeat sent at this time or later."""
        acked = self.acked_at_ns
        return quorum_value(self.config, lambda n: FOREVER if n == self.me else acked.get(n, 0))
