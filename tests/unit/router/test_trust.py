"""A router that has just started remembers nothing of etcd (R13): it believes one only that has what nodes know."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from metastore.coordination.interface import Put
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import Unavailable
from metastore.layout import ConfigRecord, Layout, LeaderRecord, NodeRecord, first_epoch, to_json
from metastore.namespaces import Policy
from metastore.routing.dispatcher import Dispatcher
from metastore.topology import TopologyTable
from router.trust import Trust, Word, word_of

LAYOUT = Layout("c")
MEMBERS = tuple((f"n{i}", f"s{i}") for i in (1, 2, 3))


class FakeNode:
    """What a node knows, and says of etcd."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.table = TopologyTable("c")
        self.revision = 0
        self.untrusted = ""
        self.up = True

    def knows(self, etcd: MemoryEtcd) -> None:
        """All that etcd has now."""
        for key, kv in etcd.kvs.items():
            self.table.apply_kv(LAYOUT.parse(key), kv.value, etcd.revision)
        self.revision = self.table.revision = etcd.revision

    async def status(self, timeout_s: float) -> dict[str, Any]:
        return {"node": self.name, "etcd": {"revision": self.revision, "untrusted": self.untrusted}}

    async def topology(self, timeout_s: float, since: int = 0) -> Any:
        return self.table.to_wire()


class Asking(Dispatcher):
    """A dispatcher of these nodes."""

    def __init__(self, nodes: dict[str, FakeNode], seeds: list[str]) -> None:
        super().__init__(seeds, "c")
        self.fakes = nodes
        self.pool.connect = self.connect  # type: ignore[method-assign]

    async def connect(self, address: str, until: float | None = None, patience_s: float = 0.0) -> Any:
        node = self.fakes.get(address)
        if node is None or not node.up:
            raise Unavailable("silent")
        return node


class Started:
    """A router's part that deals with etcd, just started."""

    def __init__(self, etcd: MemoryEtcd, nodes: dict[str, FakeNode], seeds: list[str]) -> None:
        self.coordinator = MemoryCoordinator(etcd, asyncio.get_running_loop().time, poll_s=0.001)
        self.dispatcher = Asking(nodes, seeds)
        self.trust = Trust(LAYOUT, self.dispatcher, self.coordinator)
        self.trust.watch = self.coordinator.watch(LAYOUT.root, self.trust.take)
        self.task = asyncio.get_running_loop().create_task(self.trust.run())

    @property
    def table(self) -> TopologyTable:
        return self.dispatcher.table

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not what():
                assert not self.task.done(), self.task.result()
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.task.cancel()
        await self.dispatcher.close()
        await self.coordinator.close()


def put(etcd: MemoryEtcd, key: str, value: bytes) -> None:
    etcd.txn([], [Put(key, value)], [])


def config(term: int, leader: str, members: Any = MEMBERS) -> bytes:
    return ConfigRecord(0, 0, 1 << 64, first_epoch(term), leader, members).to_json()


def led(etcd: MemoryEtcd, term: int, leader: str) -> None:
    put(etcd, LAYOUT.config("c1", 0), config(term, leader))
    put(etcd, LAYOUT.leader("c1", 0), LeaderRecord(leader, "i", first_epoch(term)).to_json())


@pytest.fixture
def etcd() -> MemoryEtcd:
    found = MemoryEtcd()
    for i in (1, 2, 3):
        record = NodeRecord(f"n{i}", "c1", f"s{i}", f"n{i}:1", f"n{i}:2")
        put(found, LAYOUT.node(f"n{i}"), to_json(record))
    led(found, 5, "n1")
    return found


@pytest.fixture
def nodes() -> dict[str, FakeNode]:
    return {f"n{i}:1": FakeNode(f"n{i}") for i in (1, 2, 3)}


@pytest.fixture
async def start(etcd: MemoryEtcd, nodes: dict[str, FakeNode]) -> AsyncIterator[Callable[..., Started]]:
    made: list[Started] = []

    def begin(*seeds: str) -> Started:
        made.append(Started(etcd, nodes, list(seeds)))
        return made[-1]

    yield begin
    for one in made:
        await one.close()


async def test_an_etcd_that_nodes_know_is_believed_and_followed(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started]
) -> None:
    for node in nodes.values():
        node.knows(etcd)
    router = start()  # no seeds: etcd tells where nodes are
    await router.until(lambda: not router.trust.doubt)
    assert router.table.partitions[0].leader == "n1"
    put(etcd, LAYOUT.namespace("ns"), Policy(max_records=7).to_json())
    led(etcd, 6, "n2")
    await router.until(lambda: router.table.partitions[0].epoch == first_epoch(6))
    assert router.table.policy("ns").max_records == 7


@pytest.mark.parametrize("bump", [0, 1_000_000], ids=["as it was", "its revision raised"])
@pytest.mark.parametrize("says", ["", "it was restored"], ids=["nodes do not see it", "nodes distrust it"])
async def test_an_etcd_restored_from_an_hour_ago_is_not(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started], bump: int, says: str
) -> None:
    """Its records of then are of other members, and lack a policy: nothing of them gets into the table."""
    before = copy.deepcopy((etcd.kvs, etcd.revision))
    put(etcd, LAYOUT.namespace("ns"), Policy(max_records=7).to_json())
    moved = (("n2", "s2"), ("n3", "s3"), ("n4", "s4"))
    put(etcd, LAYOUT.config("c1", 0), config(9, "n3", moved))
    for node in nodes.values():
        node.knows(etcd)
        node.untrusted = says
    etcd.kvs, etcd.revision = before[0], before[1] + bump
    router = start("n1:1")
    await router.dispatcher.refresh()
    await router.until(lambda: "restored" in router.trust.doubt)
    await router.until(lambda: router.table.complete)
    put(etcd, LAYOUT.namespace("other"), Policy(max_records=1).to_json())  # and it is written to
    for _ in range(3):
        await router.trust.look()
    placed = router.table.partitions[0]
    assert (placed.leader, placed.epoch, placed.replicas) == ("n3", first_epoch(9), ("n2", "n3", "n4"))
    assert set(router.table.namespaces) == {"ns"}
    assert router.table.revision < 1_000_000


async def test_nor_is_one_before_a_node_was_heard(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started]
) -> None:
    for node in nodes.values():
        node.up = False
    router = start("n1:1")
    await router.until(lambda: router.trust.watch.ready.is_set())
    await router.trust.look()
    assert not router.table.partitions
    nodes["n2:1"].up = True
    nodes["n2:1"].knows(etcd)
    await router.until(lambda: not router.trust.doubt)
    assert router.table.partitions[0].leader == "n1"


async def test_a_deposed_leader_that_alone_is_heard_first_is_not_believed_for_long(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started]
) -> None:
    """It knows nothing of its successors; etcd does, and so do they."""
    nodes["n1:1"].knows(etcd)
    led(etcd, 8, "n2")
    router = start("n1:1")
    await router.until(lambda: not router.trust.doubt)
    assert (router.table.partitions[0].leader, router.table.partitions[0].epoch) == ("n2", first_epoch(8))
    # nor what it says afterwards, by a hint or a table
    assert not router.table.apply_hint(0, "n1", first_epoch(5))
    router.table.merge(TopologyTable.from_wire(nodes["n1:1"].table.to_wire()))
    assert router.table.partitions[0].leader == "n2"


async def test_a_deposed_leaders_word_without_etcd(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started]
) -> None:
    """Whoever knows a higher epoch is believed over it."""
    nodes["n1:1"].knows(etcd)
    led(etcd, 8, "n2")
    nodes["n2:1"].knows(etcd)
    etcd.up = False
    router = start("n1:1")
    await router.dispatcher.refresh()
    assert router.table.partitions[0].leader == "n1"
    router.table.merge(TopologyTable.from_wire(nodes["n2:1"].table.to_wire()))
    assert router.table.partitions[0].leader == "n2"
    router.table.merge(TopologyTable.from_wire(nodes["n1:1"].table.to_wire()))
    assert router.table.partitions[0].leader == "n2"


async def test_an_etcd_that_was_away_is_asked_about_again(
    etcd: MemoryEtcd, nodes: dict[str, FakeNode], start: Callable[..., Started]
) -> None:
    """It comes back restored, with a higher revision, so that the stream alone shows nothing."""
    for node in nodes.values():
        node.knows(etcd)
    router = start()
    await router.until(lambda: not router.trust.doubt)
    etcd.up = False
    await router.until(lambda: router.trust._was_away)
    led(etcd, 9, "n3")
    for node in nodes.values():
        node.knows(etcd)
        node.untrusted = "a sealed term is missing"
    etcd.kvs[LAYOUT.config("c1", 0)] = copy.deepcopy(etcd.kvs[LAYOUT.node("n1")])
    put(etcd, LAYOUT.config("c1", 0), config(5, "n1", MEMBERS[:1]))
    etcd.revision += 1_000_000
    etcd.compact()
    etcd.up = True
    await router.until(lambda: "distrusts etcd" in router.trust.doubt)
    await router.until(lambda: router.table.revision == nodes["n1:1"].revision)
    assert router.table.partitions[0].leader == "n3"
    assert router.table.partitions[0].replicas == ("n1", "n2", "n3")
    # and once they trust it again, so does the router
    led(etcd, 30, "n2")
    for node in nodes.values():
        node.untrusted = ""
        node.knows(etcd)
    await router.until(lambda: not router.trust.doubt)
    assert router.table.partitions[0].epoch == first_epoch(30)


@pytest.mark.parametrize(
    "status",
    [None, [], {}, {"etcd": 5}, {"etcd": {"revision": "9"}}, {"etcd": {"revision": 0}},
     {"etcd": {"revision": 1, "untrusted": 7}}, {"etcd": {"revision": True}}],
)  # fmt: skip
def test_what_makes_no_sense_is_no_word(status: Any) -> None:
    assert word_of("a:1", status) is None


def test_a_node_that_distrusts_counts_whatever_it_has_seen() -> None:
    assert word_of("a:1", {"etcd": {"untrusted": "gone"}}) == Word("a:1", 0, "gone")
    assert word_of("a:1", {"node": "n", "etcd": {"revision": 5, "untrusted": ""}}) == Word("n", 5, "")
