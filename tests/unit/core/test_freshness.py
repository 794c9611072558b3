"""R8, stale reads: a copy is never called newer than it is, whoever leads, and whoever thinks to lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from metastore.core import messages as m
from metastore.core.events import PeerDown, QuorumAsked, Restored, Tick
from metastore.core.logindex import LogIndex
from metastore.core.messages import FRESH, HEALTHY
from metastore.core.replica import ACTIVE
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord
from tests.unit.core.nodes import CONFIG, START, TERM1, Node, deliver, process

OLD = (("a", "sa"), ("b", "sb"), ("c", "sc"))
NEW = (("d", "sd"), ("e", "se"), ("f", "sf"))
#: an entry with one change that nothing else depends on
ENTRY = b"\x95\x00\x90\x90\x90\x90"
SETTINGS = CoreSettings()

Drop = Callable[[str, str, Any], bool]


def nobody(src: str, dst: str, message: Any) -> bool:
    return False


class Cluster:
    """Cores of one partition on one clock; ``a`` leads it first."""

    def __init__(self, config: ConfigRecord = CONFIG) -> None:
        self.config = config
        self.now = START
        self.nodes = {
            n: Node(process(n), Restored(LogIndex(), TERM1, process("a", "0"), config, 0))
            for n, _ in config.members()
        }
        self["a"].replica.elect_without_etcd(self.now, "test")
        self.run(2000)
        assert self["a"].replica.role == ACTIVE

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def run(self, ms: int, drop: Drop = nobody, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, ``ms`` at most; whether ``until`` came true."""
        deliver(self.nodes, self.now, drop)
        end = self.now + ms * MS
        while self.now < end and not until():
            self.now += 10 * MS
            for node in self.nodes.values():
                if node.up:
                    node.core.handle(self.now, Tick(False))
            deliver(self.nodes, self.now, drop)
        return until()

    def leaders(self, among: set[str]) -> list[Node]:
        return [n for name, n in self.nodes.items() if name in among and n.up and n.replica.role == ACTIVE]

    def acknowledge(self, leader: Node, drop: Drop = nobody) -> int:
        """A write, acknowledged by its leader now; its entry."""
        index = leader.replica.propose(self.now, ENTRY)
        deliver(self.nodes, self.now, drop)
        assert leader.replica.commit_index >= index
        return index

    def claims(self, name: str) -> int:
        """As of which moment a replica says that its copy is complete."""
        age = self[name].replica.age_ns(self.now)
        return 0 if age is None else self.now - age


@pytest.mark.parametrize(
    "config",
    [replace(CONFIG, replicas=OLD, joint=NEW), replace(CONFIG, replicas=(*OLD, *NEW[:2]))],
    ids=["joint", "five replicas"],
)
def test_who_was_cut_off_with_a_deposed_leader_is_as_old_as_that(config: ConfigRecord) -> None:
    """F5 of its kind: the leader is alive, and was told so lately; that it still leads nobody has said."""
    cluster = Cluster(config)
    here = {"a", "d"}
    there = {n for n, _ in config.members()} - here
    cluster.run(1000)
    assert cluster.claims("d") > cluster.now - 500 * MS

    def parted(src: str, dst: str, message: Any) -> bool:
        return (src in here) != (dst in here)

    for name, node in cluster.nodes.items():
        for other in here if name in there else there:
            node.core.handle(cluster.now, PeerDown(other))
    assert cluster.run(4000, parted, lambda: bool(cluster.leaders(there)))
    cluster.acknowledge(cluster.leaders(there)[0], parted)
    acknowledged = cluster.now
    for _ in range(300):
        cluster.run(10, parted)
        assert cluster.claims("d") <= acknowledged
        assert cluster.claims("a") <= acknowledged


@pytest.mark.parametrize("late", [m.Append, m.Appended, m.Sealed], ids=lambda kind: kind.__name__)
def test_a_new_leader_is_not_fresh_before_it_is_active(late: type[Any]) -> None:
    """F8 of its kind: what the old leader acknowledged last is in both logs, and committed in neither."""
    cluster = Cluster()
    cluster.run(1000)

    def unknown(src: str, dst: str, message: Any) -> bool:
        """That it is committed nobody hears."""
        return src == "a" and type(message) is m.Heartbeat

    index = cluster.acknowledge(cluster["a"], unknown)
    acknowledged = cluster.now
    cluster["a"].take()
    cluster["a"].up = False
    for name in ("b", "c"):
        assert cluster[name].replica.commit_index < index <= cluster[name].replica.log.last_index
        cluster[name].core.handle(cluster.now, PeerDown("a"))

    def slow(src: str, dst: str, message: Any) -> bool:
        return type(message) is late and src != dst

    def behind(name: str) -> bool:
        return cluster[name].replica.commit_index < index

    waited = 0
    for _ in range(300):
        cluster.run(10, slow)
        for name in ("b", "c"):
            if behind(name):
                assert cluster.claims(name) <= acknowledged, cluster[name].replica.role
                waited += cluster[name].replica.term is not None
    assert waited, "nobody was about to lead"
    assert cluster.run(6000, nobody, lambda: not behind("b") and not behind("c"))
    cluster.run(500)
    assert min(cluster.claims("b"), cluster.claims("c")) > acknowledged


def says(node: Node, now: int) -> int:
    """What its next heartbeats say."""
    node.take()
    node.core.handle(now, QuorumAsked())
    said: int
    (said,) = {beat[2] for h in node.sent(m.Heartbeat) for beat in h.beats}
    return said


def test_what_a_heartbeat_says_by_role() -> None:
    """A sign of life is one thing, a proof of freshness another."""
    cluster = Cluster()
    a, now = cluster["a"], cluster.now
    term = a.replica.term
    assert term is not None
    assert says(a, now) == HEALTHY | FRESH
    assert says(a, term.read_until_ns - 1) == HEALTHY | FRESH
    assert says(a, term.read_until_ns) == HEALTHY, "its grants are over: somebody else may lead"
    a.core._ctx.stuck = True
    assert says(a, now) == FRESH, "its disk hangs: it is to be replaced, and until then it may read"
    a.core._ctx.stuck = False
    for role in ("sealing", "adopting", "activating", "resigning"):
        a.replica.role = role
        assert says(a, now) == HEALTHY, role
    a.replica.role = "resigned"
    a.take()
    a.core.handle(now, QuorumAsked())
    assert not a.sent(m.Heartbeat)


@pytest.mark.parametrize("said", [0, HEALTHY, FRESH, HEALTHY | FRESH])
@pytest.mark.parametrize("behind", [False, True])
def test_what_a_follower_makes_of_it(said: int, behind: bool) -> None:
    owner = process("a")
    node = Node(process("b"), Restored(LogIndex(), TERM1, owner, CONFIG, 0))
    echo, now = START + 500 * MS, START + 700 * MS
    node.core.handle(now, m.Heartbeat(1, echo, [(0, TERM1, said, int(behind))]), owner)
    assert node.replica.fresh_ns == (echo if said & FRESH and not behind else 0)
    assert node.replica.contact_ns == (now if said & HEALTHY else START)
    # neither an earlier one that comes late, nor one of another's term, nor an echo of the future
    node.core.handle(now, m.Heartbeat(2, echo - 1, [(0, TERM1, said, int(behind))]), owner)
    node.core.handle(now, m.Heartbeat(3, now, [(0, TERM1, said, int(behind))]), process("c"))
    assert node.replica.fresh_ns == (echo if said & FRESH and not behind else 0)
    node.core.handle(now, m.Heartbeat(4, now + 10**15, [(0, TERM1, said, int(behind))]), owner)
    assert node.replica.fresh_ns <= now


def test_the_age_of_a_copy() -> None:
    """Nought at an active leader that holds its grants; stretched by what clocks may differ, else."""
    cluster = Cluster()
    a, b = cluster["a"].replica, cluster["b"].replica
    term, now = a.term, cluster.now
    assert term is not None
    assert a.age_ns(now) == 0
    assert a.age_ns(term.read_until_ns - 1) == 0
    later = term.read_until_ns
    assert a.age_ns(later) == SETTINGS.stretched(later - term.quorum_acked_at_ns())
    a.role = "activating"  # what an earlier leader acknowledged may not be committed here yet
    assert a.age_ns(now) is None
    assert b.age_ns(now) == SETTINGS.stretched(now - b.fresh_ns)
    b.fresh_ns = 0
    assert b.age_ns(now) is None
