"""What has changed of a topology table is told, and no more: whoever learns by changes knows what he knows who is told all."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from metastore.changes import Changes
from metastore.coordination.interface import KV
from metastore.coordination.mirror import Mirror
from metastore.following import Following
from metastore.layout import ConfigRecord, Layout, LeaderRecord, NodeRecord, first_epoch, to_json
from metastore.namespaces import Policy
from metastore.topology import TopologyTable

LAYOUT = Layout("c")
PARTITIONS = 4


class Etcd:
    """All that happened to some records, by revision."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.revision = 10
        self.kvs: dict[str, KV] = {}
        self.history: list[tuple[int, str, KV | None]] = []
        self.term = 1
        for p in range(PARTITIONS):
            self.put(LAYOUT.config("c1", p), self.config(p))

    def config(self, p: int) -> bytes:
        self.term += 1
        width = (1 << 64) // PARTITIONS
        members = tuple((n, f"s{n}") for n in self.random.sample(["n1", "n2", "n3", "n4"], 2))
        epoch = first_epoch(self.term)
        return ConfigRecord(p, p * width, (p + 1) * width, epoch, members[0][0], members).to_json()

    def put(self, key: str, value: bytes | None) -> None:
        self.revision += 1
        if value is None:
            self.kvs.pop(key, None)
            self.history.append((self.revision, key, None))
        else:
            kv = KV(key, value, self.revision, self.revision)
            self.kvs[key] = kv
            self.history.append((self.revision, key, kv))

    def happen(self) -> None:
        r = self.random
        name = f"n{r.randrange(1, 6)}"
        match r.randrange(6):
            case 0:
                self.put(LAYOUT.config("c1", p := r.randrange(PARTITIONS)), self.config(p))
            case 1:
                self.term += 1
                leader = LeaderRecord(name, "i", first_epoch(self.term))
                self.put(LAYOUT.leader("c1", r.randrange(PARTITIONS)), leader.to_json())
            case 2:
                record = NodeRecord(name, "c1", f"s{name}", f"h:{r.randrange(1, 3)}", "h:9")
                self.put(LAYOUT.node(name), to_json(record))
            case 3:
                self.put(LAYOUT.node(name), None)
            case 4:
                policy = Policy(max_records=r.randrange(2))
                self.put(LAYOUT.namespace(f"ns{r.randrange(4)}"), policy.to_json())
            case _:
                self.put(LAYOUT.namespace(f"ns{r.randrange(4)}"), None)


class Node:
    """Follows etcd, at times far behind it, and by a new reading where its history is gone."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.table = TopologyTable("c")
        self.begin()

    def begin(self) -> None:
        self.mirror = Mirror()
        self.following = Following(LAYOUT, self.table)
        self.read()

    def read(self) -> None:
        if self.following.table is not self.table:
            return self.begin()
        changes = self.mirror.snapshot(self.etcd.revision, list(self.etcd.kvs.values()))
        self.following.take(self.mirror.revision, changes)
        self.table.changes.read_again(self.mirror.read_at)

    def follow(self, upto: int) -> None:
        events = [(k, kv) for at, k, kv in self.etcd.history if self.mirror.revision < at <= upto]
        if events:
            self.following.take(upto, self.mirror.events(upto, events))

    def start_again(self) -> None:
        """From what it kept (``node.stored_topology``)."""
        self.table = TopologyTable.from_wire(self.table.to_wire())
        self.table.changes.begin(self.table.revision)


def known(table: TopologyTable, etcd: Etcd) -> Any:
    """All but leaders, which go by what replicas tell as well, and nodes that are gone: while a partition names one, everybody keeps
    what he knew last."""
    there: dict[str, bool] = {}
    for revision, key, kv in etcd.history:
        if revision <= table.revision:
            there[key] = kv is not None
    wire = table.to_wire()
    wire["nodes"] = [n for n in wire["nodes"] if there.get(LAYOUT.node(n["node"]))]
    for placement in wire["partitions"]:
        del placement["leader"], placement["epoch"]
    return [wire[kind] for kind in ("revision", "nodes", "namespaces", "partitions")]


@pytest.mark.parametrize("seed", range(60))
def test_who_learns_by_changes_knows_what_he_knows_who_is_told_all(seed: int) -> None:
    random = Random(seed)
    etcd = Etcd(random)
    nodes = [Node(etcd) for _ in range(3)]
    by_change, by_all = TopologyTable("c"), TopologyTable("c")
    told_little = 0
    for _ in range(150):
        for _ in range(random.randrange(4)):
            etcd.happen()
        node = random.choice(nodes)
        match random.randrange(8):
            case 0:
                node.read()
            case 1:
                node.start_again()  # etcd is away: it has what it kept, and what replicas tell
            case 2:
                node.begin()
            case 3 | 4:
                if node.following.table is node.table:
                    node.follow(random.randint(node.mirror.revision, etcd.revision))
            case 5:
                node.table.know_leader(random.randrange(PARTITIONS), "n3", first_epoch(etcd.term) + 1)
            case _:
                asked = by_change.revision if by_change.complete else None
                wire = node.table.to_wire(asked)
                told_little += "since" in wire
                by_change.merge(TopologyTable.from_wire(wire))
                by_all.merge(TopologyTable.from_wire(node.table.to_wire()))
                assert known(by_change, etcd) == known(by_all, etcd)
    assert told_little > 5


def test_a_change_is_told_alone_and_once() -> None:
    node = Node(etcd := Etcd(Random(1)))
    etcd.put(LAYOUT.namespace("one"), Policy().to_json())
    node.follow(etcd.revision)
    wire = node.table.to_wire(etcd.revision - 1)
    assert [wire[kind] for kind in ("nodes", "partitions", "removed")] == [[], [], []]
    assert [name for name, _ in wire["namespaces"]] == ["one"]
    assert node.table.to_wire(etcd.revision)["namespaces"] == []
    etcd.put(LAYOUT.namespace("one"), None)
    node.follow(etcd.revision)
    assert node.table.to_wire(etcd.revision - 1)["removed"] == [["namespaces", "one"]]


def test_who_asks_for_what_is_not_remembered_is_told_all() -> None:
    node = Node(etcd := Etcd(Random(1)))
    assert "since" not in node.table.to_wire(etcd.revision - 1), "the time before its first reading"
    assert node.table.told_since(etcd.revision, limit=0) is not None
    etcd.put(LAYOUT.namespace("one"), Policy().to_json())
    node.follow(etcd.revision)
    assert node.table.told_since(etcd.revision - 1, limit=0) is None
    client = TopologyTable.from_wire(node.table.to_wire(etcd.revision))
    other = TopologyTable("c")
    other.merge(client)
    assert other.revision == 0, "changes of a table that one does not have are no table"


def test_changes_that_are_forgotten_are_known_to_be() -> None:
    changes = Changes(limit=3)
    changes.begin(1)
    for at in range(2, 7):
        changes.note(("nodes", f"n{at}"), at)
    assert changes.since(5) == [("nodes", "n6")]
    assert changes.since(3) == [("nodes", "n6"), ("nodes", "n5"), ("nodes", "n4")]
    assert changes.since(2) is None
    assert changes.after(2) == [("nodes", "n6"), ("nodes", "n5"), ("nodes", "n4")]
    assert changes.after(1) is None


def test_a_hint_is_told_to_all_until_etcd_knows_as_much() -> None:
    node = Node(etcd := Etcd(Random(1)))
    epoch = first_epoch(etcd.term + 1)
    node.table.know_leader(2, "n3", epoch)
    for revision in (etcd.revision, etcd.revision + 9):
        told = node.table.to_wire(revision)
        assert [(row["id"], row["leader"]) for row in told["partitions"]] == [(2, "n3")]
    etcd.put(LAYOUT.config("c1", 2), etcd.kvs[LAYOUT.config("c1", 2)].value)
    node.follow(etcd.revision)
    assert len(node.table.to_wire(etcd.revision)["partitions"]) == 1, "etcd knows less"
    etcd.put(LAYOUT.leader("c1", 2), LeaderRecord("n3", "i", epoch).to_json())
    node.follow(etcd.revision)
    assert node.table.to_wire(etcd.revision)["partitions"] == []
    assert len(node.table.to_wire(etcd.revision - 1)["partitions"]) == 1
