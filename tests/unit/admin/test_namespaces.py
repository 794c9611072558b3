"""Namespaces in two phases, against etcd in memory and nodes that can be held back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metastore.admin.errors import NamespaceNotEmpty, RoutingFixed, TooManyNamespaces
from metastore.admin.namespaces import MAX_BARRIER_TRIES, NamespaceAdmin, barrier_keys
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.errors import (
    ConditionFailed,
    CoordinationUnavailable,
    InvalidRequest,
    MetastoreError,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from metastore.history import NO_VERSION
from metastore.keys import PARENT, WHOLE_KEY, PartitionMap, storage_key_of
from metastore.layout import Layout, LineageRecord, NodeRecord, to_json
from metastore.namespaces import DEFAULT, policy_from_json
from metastore.operations import DELETE, LIST
from metastore.topology import Placement, TopologyTable

LAYOUT = Layout("test")


class FakeNode:
    """A node as the admin sees it. ``lag``: how many times it tells an older revision first."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self.etcd = etcd
        self.lag = 0
        self.answers = True
        self.kept_apart: int | None = None
        #: the base of the lineage that it follows, and why it distrusts etcd
        self.base = 0
        self.untrusted = ""

    async def status(self, timeout_s: float) -> dict[str, Any]:
        if not self.answers:
            raise Unavailable("silent")
        revision = self.base + self.etcd.revision - (1 if self.lag > 0 else 0)
        self.lag -= 1
        kept = revision if self.kept_apart is None else self.kept_apart
        told = {"untrusted": self.untrusted}
        return {"topology_revision": self.base + self.etcd.revision, "topology_kept": kept, "etcd": told}


class FakeDispatcher:
    """Records that are there, and a story of what was asked in which order."""

    def __init__(self, etcd: MemoryEtcd, partitions: int = 4) -> None:
        self.table = TopologyTable("test")
        for r in PartitionMap.even(partitions).in_order():
            self.table.partitions[r.id] = Placement(r.id, r.lo, r.hi, "c1", ("n1", "n2"))
        self.nodes = {"n1:1": FakeNode(etcd), "n2:1": FakeNode(etcd)}
        self.records: set[bytes] = set()
        self.story: list[str] = []
        self.between: Any = None
        self.fails: MetastoreError | None = None

    async def ready(self, until: float) -> None:
        pass

    async def connect(self, address: str) -> FakeNode:
        return self.nodes[address]

    async def write(self, op: list[Any], storage_key: bytes, until: float) -> list[Any]:
        assert op[1] == DELETE
        assert op[7] == NO_VERSION
        self.story.append(f"barrier {self.table.route(storage_key).id}")
        if self.between is not None:
            self.between()
            self.between = None
        raise ConditionFailed("as meant", version=0)

    async def read(self, op: list[Any], storage_key: bytes, until: float) -> list[Any]:
        assert op[1] == LIST
        self.story.append(f"list {self.table.route(storage_key).id}")
        if self.fails is not None:
            raise self.fails
        rows = sorted(k for k in self.records if op[3] <= k < op[4] and k.startswith(op[9], 8))
        return [0, 0, [[k, 1] for k in rows[: op[5]]], None, 0, 1]


class World:
    def __init__(self) -> None:
        self.etcd = MemoryEtcd()
        self.coordinator = MemoryCoordinator(self.etcd, lambda: 0.0)
        self.dispatcher = FakeDispatcher(self.etcd)
        self.admin = NamespaceAdmin(self.coordinator, LAYOUT, self.dispatcher)  # type: ignore[arg-type]
        for name in ("n1", "n2"):
            record = NodeRecord(name, "c1", "s", f"{name}:1", f"{name}:2")
            self.set(LAYOUT.node(name), to_json(record))
            self.dispatcher.table.nodes[name] = record

    def set(self, key: str, value: bytes) -> None:
        from metastore.coordination.interface import Put

        self.etcd.txn([], [Put(key, value)], [])

    def stored(self, name: str = "x") -> Any:
        kv = self.etcd.kvs.get(LAYOUT.namespace(name))
        return None if kv is None else policy_from_json(kv.value)

    async def put(self, wanted: dict[str, Any], name: str = "x", seconds: float = 5, **when: Any) -> Any:
        return await self.admin.put(name, wanted, asyncio.get_running_loop().time() + seconds, **when)

    async def delete(self, name: str = "x", seconds: float = 5, **when: Any) -> None:
        await self.admin.delete(name, asyncio.get_running_loop().time() + seconds, **when)


async def test_a_default_route_is_one_step() -> None:
    w = World()
    made, new = await w.put({"max_records": 5})
    assert (new, made.policy.max_records, made.policy.ready) == (True, 5, True)
    changed, new = await w.put({"max_bytes": 7}, revision=made.revision)
    assert (new, changed.policy.max_records, changed.policy.max_bytes) == (False, 0, 7)
    for when in ({"revision": made.revision}, {"absent": True}):
        with pytest.raises(ConditionFailed) as failed:
            await w.put({}, **when)
        assert failed.value.detail["version"] == changed.revision
    with pytest.raises(ConditionFailed):
        await w.put({}, "y", exists=True)
    with pytest.raises(RoutingFixed, match="routes by parent, which cannot be changed to key"):
        await w.put({"routing": "key"})
    w.dispatcher.records.add(storage_key_of("x", "a/b"))
    with pytest.raises(ConditionFailed):
        await w.delete(revision=1)
    await w.delete()
    assert w.stored() is None, "its records stay and are found as before"
    with pytest.raises(NotFound):
        await w.delete()
    assert w.dispatcher.story == []


async def test_another_route_waits_then_bars_then_lists() -> None:
    w = World()
    w.dispatcher.nodes["n2:1"].lag = 2
    made, new = await w.put({"routing": "key", "default_ttl_ms": 9})
    assert (new, made.policy.routing, made.policy.ready) == (True, "key", True)
    assert w.stored() == made.policy
    story = w.dispatcher.story
    assert story[:4] == [f"list {p}" for p in range(4)], "first, before anybody is disturbed"
    assert sorted(story[4:8]) == [f"barrier {p}" for p in range(4)]
    assert story[8:] == [f"list {p}" for p in range(4)]
    changed, _ = await w.put({"max_records": 1})
    assert (changed.policy.routing, changed.policy.max_records) == ("key", 1), "routing may be left out later"
    with pytest.raises(RoutingFixed):
        await w.put({"routing": "segments:2"})


async def test_writes_are_refused_while_it_is_made() -> None:
    w = World()
    seen: list[Any] = []
    w.dispatcher.between = lambda: seen.append(w.stored())
    await w.put({"routing": "key"})
    assert [(p.ready, p.routing) for p in seen] == [(False, "key")]


@pytest.mark.parametrize("how", ["silent", "behind", "forgetful"])
async def test_a_node_that_does_not_know_is_named_and_nothing_changes(how: str) -> None:
    w = World()
    node = w.dispatcher.nodes["n2:1"]
    if how == "silent":
        node.answers = False
    elif how == "behind":
        node.lag = 1 << 30
    else:
        node.kept_apart = 1  # it has heard, but would have forgotten after a restart
    with pytest.raises(Unavailable, match=r"n2 (does not answer|is at revision)") as failed:
        await w.put({"routing": "key"}, seconds=0.3)
    assert failed.value.detail["nodes"] == ["n2"]
    assert w.stored() is None
    assert not any(s.startswith("barrier") for s in w.dispatcher.story)


async def test_records_that_would_be_lost_forbid_it() -> None:
    w = World()
    w.dispatcher.records.add(storage_key_of("x", "dir/file"))
    with pytest.raises(NamespaceNotEmpty, match="'dir/file'"):
        await w.put({"routing": "key"})
    assert w.stored() is None
    assert w.dispatcher.story, "looked at before anything was changed"
    assert not any(s.startswith("barrier") for s in w.dispatcher.story)
    w.dispatcher.records = {storage_key_of("y", "dir/file")}  # of another namespace
    assert (await w.put({"routing": "key"}))[1]


async def test_a_record_that_slipped_in_is_found_behind_the_barrier() -> None:
    """Written by a node that had not heard yet, after the first look."""
    w = World()
    w.dispatcher.between = lambda: w.dispatcher.records.add(storage_key_of("x", "dir/late"))
    with pytest.raises(NamespaceNotEmpty, match="'dir/late'"):
        await w.put({"routing": "key"})
    assert w.stored() is None, "rolled back: the namespace routes as before"


async def test_records_that_stay_where_they_are_do_not_forbid_it() -> None:
    w = World()
    w.dispatcher.records.add(storage_key_of("x", "flat"))  # by parent and by whole key at one point
    assert storage_key_of("x", "flat", PARENT) == storage_key_of("x", "flat", WHOLE_KEY)
    assert (await w.put({"routing": "key"}))[1]


async def test_removing_another_route() -> None:
    w = World()
    made, _ = await w.put({"routing": "key"})
    record = storage_key_of("x", "dir/file", WHOLE_KEY)
    w.dispatcher.records.add(record)
    with pytest.raises(NamespaceNotEmpty):
        await w.delete()
    assert w.stored() == made.policy
    w.dispatcher.records.clear()
    w.dispatcher.between = lambda: w.dispatcher.records.add(record)
    with pytest.raises(NamespaceNotEmpty):
        await w.delete()
    assert w.stored() == made.policy, "open again"
    w.dispatcher.records.clear()
    await w.delete()
    assert w.stored() is None


async def test_who_is_interrupted_can_go_on() -> None:
    """The process dies between the phases: the namespace is closed, and either request goes on."""
    for end in ("put", "delete"):
        w = World()
        w.dispatcher.fails = asyncio.CancelledError()  # type: ignore[assignment]
        w.dispatcher.between = lambda w=w: setattr(w.dispatcher, "fails", asyncio.CancelledError())
        w.dispatcher.fails = None
        with pytest.raises(asyncio.CancelledError):
            await w.put({"routing": "key"})
        assert w.stored().ready is False
        w.dispatcher.fails = None
        with pytest.raises(RoutingFixed):
            await w.put({"routing": "segments:1"})
        if end == "put":
            made, new = await w.put({"routing": "key"})
            assert (made.policy.ready, new) == (True, False)
        else:
            await w.delete()
            assert w.stored() is None


async def test_an_interrupted_making_over_records_is_undone_by_removing() -> None:
    w = World()
    w.set(LAYOUT.namespace("x"), b'{"routing": "key", "ready": false}')
    w.dispatcher.records.add(storage_key_of("x", "dir/file"))
    with pytest.raises(NamespaceNotEmpty, match="stays closed to writes until"):
        await w.put({"routing": "key"})
    assert w.stored().ready is False
    await w.delete()
    assert w.stored() is None


async def test_an_interrupted_removing_over_records_is_undone_by_putting() -> None:
    w = World()
    w.set(LAYOUT.namespace("x"), b'{"routing": "key", "ready": false}')
    w.dispatcher.records.add(storage_key_of("x", "dir/file", WHOLE_KEY))
    with pytest.raises(NamespaceNotEmpty):
        await w.delete()
    assert w.stored().ready is False
    await w.put({"routing": "key"})
    assert w.stored().ready is True


async def test_two_at_once_make_one() -> None:
    w = World()
    outcomes = await asyncio.gather(*(w.put({"routing": "key", "max_records": 3}) for _ in range(4)))
    assert {o[0].policy for o in outcomes} == {w.stored()}
    assert w.stored().ready is True


async def test_a_node_that_registers_meanwhile_is_asked_too() -> None:
    w = World()
    late = FakeNode(w.etcd)
    late.lag = 1
    w.dispatcher.nodes["n3:1"] = late

    class Late(FakeNode):
        async def status(self, timeout_s: float) -> dict[str, Any]:
            if LAYOUT.node("n3") not in w.etcd.kvs:
                w.set(LAYOUT.node("n3"), to_json(NodeRecord("n3", "c1", "s", "n3:1", "n3:2")))
            return await super().status(timeout_s)

    w.dispatcher.nodes["n1:1"] = Late(w.etcd)
    await w.put({"routing": "key"})
    assert late.lag < 1, "it was asked"


async def test_without_etcd_nothing_is_changed_and_doubt_is_told() -> None:
    w = World()
    w.etcd.up = False
    with pytest.raises(CoordinationUnavailable):
        await w.put({})
    w.etcd.up = True
    w.etcd.lose_next_answer = True
    made, new = await w.put({"max_records": 4})
    assert (new, w.stored()) == (True, made.policy), "it is looked up what became of it"
    w.dispatcher.between = lambda: setattr(w.etcd, "up", False)
    with pytest.raises(OutcomeUnknown, match="left closed to writes"):
        await w.put({"routing": "key"}, "y")
    w.etcd.up = True
    assert w.stored("y").ready is False
    await w.put({"routing": "key"}, "y")
    assert w.stored("y").ready is True


async def test_names_and_members_are_checked() -> None:
    w = World()
    for name in ("metastore", "Upper", "", "a/b"):
        with pytest.raises(InvalidRequest):
            await w.put({}, name)
    for wanted in ({"routing": "colour"}, {"max_records": -1}, {"colour": 1}):
        with pytest.raises(InvalidRequest):
            await w.put(wanted)


def test_every_partition_has_a_barrier_key() -> None:
    dispatcher = FakeDispatcher(MemoryEtcd(), 256)
    keys = barrier_keys(dispatcher)  # type: ignore[arg-type]
    assert {dispatcher.table.route(storage_key).id for storage_key in keys.values()} == set(range(256))
    assert len(keys) < MAX_BARRIER_TRIES


@pytest.mark.parametrize("routing", ["parent", "key"])
async def test_there_is_a_bound_of_namespaces(routing: str) -> None:
    """A new one beyond it is refused before anything is done; those that are there can be changed and removed."""
    w = World()
    w.admin.max_namespaces = 3
    made, _ = await w.put({"routing": routing})
    known = w.dispatcher.table.namespaces
    known.update({"x": made.policy, "y": DEFAULT, "z": DEFAULT})
    w.dispatcher.story.clear()
    with pytest.raises(
        TooManyNamespaces, match=r"has 3 namespaces .* \(max_namespaces = 3\); remove some"
    ) as refused:
        await w.put({"routing": routing}, "new")
    assert (refused.value.http_status, refused.value.outcome) == (507, "none")
    assert w.stored("new") is None
    assert w.dispatcher.story == []
    _, new = await w.put({"max_records": 5})
    assert not new
    await w.delete()
    del known["x"]
    assert (await w.put({"routing": routing}, "new"))[1]


# --- which etcd it is (R13) -------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["parent", "key"])
async def test_nothing_is_written_into_an_etcd_that_a_node_distrusts(routing: str) -> None:
    """No node would hear of it: not even where the router was started after etcd was lost, and knows of nothing else."""
    w = World()
    await w.put({"max_records": 5, "routing": routing})
    w.dispatcher.nodes["n2:1"].untrusted = "its revision went back"
    before = dict(w.etcd.kvs)
    for change in (w.put({"max_records": 6}), w.put({}, name="new"), w.delete()):
        with pytest.raises(
            Unavailable, match="node n2 distrusts etcd, because its revision went back; cellctl control"
        ):
            await change
    assert w.etcd.kvs == before
    w.dispatcher.nodes["n2:1"].answers = False  # and what is not known is no distrust
    await w.put({"max_records": 6, "routing": routing}, seconds=0)


async def test_where_etcd_was_rebuilt_nodes_are_waited_for_as_before() -> None:
    """Its own revisions begin anew; the nodes' go on, far above. A node that is behind must not count as one that knows."""
    w = World()
    w.set(LAYOUT.lineage, LineageRecord(1, w.etcd.cluster_id, 10_000, (77,), 5).to_json())
    for node in w.dispatcher.nodes.values():
        node.base = 10_000
    slow = w.dispatcher.nodes["n1:1"]
    slow.kept_apart = 10_000 + w.etcd.revision
    with pytest.raises(Unavailable, match=r"n1 is at revision 100\d\d of 100\d\d"):
        await w.put({"routing": "key"}, seconds=0.2)
    slow.kept_apart = None
    record, made = await w.put({"routing": "key"})
    assert made
    assert record.revision > 10_000
