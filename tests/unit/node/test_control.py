"""What a node asks of etcd, compare by compare: R2, R10, R12, R13. A transaction is right by itself, whatever the
replicas would make of a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.config import NodeConfig
from metastore.coordination.interface import Delete, Known, Op, Put, Session
from metastore.coordination.memory import MemoryCoordinator, MemoryEtcd
from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.core.messages import Process
from metastore.core.rows import UpperHalf
from metastore.keys import storage_key_of
from metastore.layout import ConfigRecord, Layout, LeaderRecord, NodeRecord, first_epoch, to_json
from metastore.node.control.agent import FACT_CLUSTER_ID, FACT_REVISION, known_etcd, usage_pause_s
from metastore.node.control.registration import Outcome
from metastore.node.node import Node
from metastore.records import pack_record
from metastore.storage.records import EntryRecord
from metastore.storage.store import Store
from tests.typed import put_in_log

P = 0
TERM1, TERM2, TERM3 = first_epoch(1), first_epoch(2), first_epoch(3)
LAYOUT = Layout("metastore")
CONFIG_KEY, LEADER_KEY = LAYOUT.config("c1", P), LAYOUT.leader("c1", P)
LEADER = Process("l", "sl", "1")


class Fixture:
    """A node with a real store, and etcd in memory, which has the record of one partition. ``l`` leads it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder, cluster="metastore", node="f")
        config = NodeConfig(cell="c1", node="f", data_dir=str(folder), rpc="127.0.0.1:9", http="127.0.0.1:9")
        self.node = Node(config, self.store, "1")
        self.control = self.node.control
        self.etcd = MemoryEtcd()
        self.mine = ("f", self.store.store_id)
        self.record = ConfigRecord(P, 0, 1 << 64, TERM1, "l", (("l", "sl"), self.mine, ("x", "sx")))

    async def start(self) -> None:
        self.put(CONFIG_KEY, self.record.to_json())
        self.put(LEADER_KEY, self.leader_value("l"))
        self.node.start()
        self.coordinator = MemoryCoordinator(self.etcd, lambda: now_ns() / 1e9)
        self.control.connect(self.coordinator)
        self.control.follow()
        await self.until(lambda: self.control.ready.is_set() and self.control.session.alive)
        self.host = self.node.partitions[P]

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not what():
                await asyncio.sleep(0)

    def put(self, key: str, value: bytes) -> int:
        return self.etcd.txn([], [Put(key, value)], []).revision

    def revision(self, key: str = CONFIG_KEY) -> int:
        return self.etcd.kvs[key].mod_revision

    @staticmethod
    def leader_value(node: str, epoch: int = TERM1) -> bytes:
        return LeaderRecord(node, "1", epoch).to_json()

    def campaign(self, **changed: Any) -> fx.Campaign:
        """As the core asks for it when nothing has changed."""
        new = replace(self.record, epoch=TERM2, leader="f")
        effect = fx.Campaign(P, self.revision(), new, self.leader_value("l"), "test")
        return effect._replace(**changed)

    def change(self, **changed: Any) -> fx.ChangeConfig:
        new = replace(self.record, epoch=TERM2, leader="f", joint=(self.mine,))
        return fx.ChangeConfig(P, self.revision(), new, None, "test")._replace(**changed)

    def config(self) -> ConfigRecord:
        return ConfigRecord.from_json(self.etcd.kvs[CONFIG_KEY].value)

    def seal(self, epoch: int, owner: Process = LEADER) -> None:
        config = replace(self.record, epoch=epoch, leader=owner.node)
        self.node.on_peer_messages(owner, [m.Seal(P, epoch, pack_config(config), 0)])

    def lead(self, epoch: int = TERM1) -> None:
        """``f`` as an active leader of that epoch, so far as control looks."""
        replica = self.node.core._replicas[P]
        replica.begin_term(now_ns(), epoch, replace(self.record, leader="f"), "test")
        replica.role = "active"


@pytest.fixture
async def f(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    await fixture.start()
    yield fixture
    await fixture.node.stop(hand_over=False)


# --- R2 -----------------------------------------------------------------------------------------------------


async def test_an_election_names_the_owner_and_its_lease_at_once(f: Fixture) -> None:
    won = await f.control.record_changes.elect(f.campaign())
    assert won is not None
    assert won[0] == f.config() == replace(f.record, epoch=TERM2, leader="f")
    assert won[1] == f.revision() == f.revision(LEADER_KEY), "one transaction"
    leader = f.etcd.kvs[LEADER_KEY]
    assert leader.value == f.leader_value("f", TERM2)
    assert leader.lease == f.control.session.lease_id != 0


async def test_an_election_compares_the_record_that_was_read(f: Fixture) -> None:
    campaign = f.campaign()
    moved = replace(f.record, epoch=TERM2, leader="l")
    f.put(CONFIG_KEY, moved.to_json())
    assert await f.control.record_changes.elect(campaign) is None
    assert f.config() == moved


@pytest.mark.parametrize("allowed", [b"another value", None])
async def test_an_election_replaces_the_very_leader_that_was_lost(f: Fixture, allowed: bytes | None) -> None:
    """R9 says which value may be replaced, or that there is none."""
    assert await f.control.record_changes.elect(f.campaign(replace=allowed)) is None
    assert f.config() == f.record
    assert f.etcd.kvs[LEADER_KEY].value == f.leader_value("l")


async def test_who_loses_learns_what_there_is_instead(f: Fixture) -> None:
    campaign = f.campaign()
    taken = replace(f.record, epoch=TERM2, leader="x")
    f.put(CONFIG_KEY, taken.to_json())
    await f.control.record_changes.elect(campaign)
    assert f.host.replica.config == taken


async def test_without_a_lease_nobody_is_elected(f: Fixture) -> None:
    f.control.session.lease_id = 0  # type: ignore[misc]
    assert await f.control.record_changes.elect(f.campaign()) is None
    assert f.config() == f.record


async def test_an_election_whose_answer_is_lost_is_decided_by_what_is_there(f: Fixture) -> None:
    f.etcd.lose_next_answer = True
    won = await f.control.record_changes.elect(f.campaign())
    assert won == (f.config(), f.revision())
    assert f.config().leader == "f"


async def test_a_lost_answer_is_no_victory(f: Fixture) -> None:
    campaign = f.campaign()
    taken = replace(f.record, epoch=TERM2, leader="x")
    f.put(CONFIG_KEY, taken.to_json())
    f.put(LEADER_KEY, f.leader_value("x", TERM2))
    f.etcd.lose_next_answer = True
    assert await f.control.record_changes.elect(campaign) is None
    assert f.config() == taken


async def test_nor_a_lost_answer_after_which_the_leader_is_another(f: Fixture) -> None:
    """Its key names the epoch: one of an earlier term of this very process does not count."""
    campaign = f.campaign()
    f.put(CONFIG_KEY, replace(f.record, epoch=TERM3, leader="f").to_json())
    f.put(LEADER_KEY, f.leader_value("f", TERM3))
    f.etcd.lose_next_answer = True
    assert await f.control.record_changes.elect(campaign) is None


# --- R10 ----------------------------------------------------------------------------------------------------


async def test_a_change_compares_the_record_of_its_leaders_own_term(f: Fixture) -> None:
    change = f.change()
    later = replace(f.record, epoch=TERM2, leader="x")
    revision = f.put(CONFIG_KEY, later.to_json())
    assert await f.control.record_changes.swap(change) == 0
    assert f.config() == later
    await f.until(lambda: f.control.assignment.revisions.get(P) == revision)
    assert await f.control.record_changes.swap(change) == 0, "whatever record is known by now"
    assert f.config() == later


async def test_a_change_is_told_with_its_revision(f: Fixture) -> None:
    change = f.change()
    assert await f.control.record_changes.swap(change) == f.revision()
    assert f.config() == change.new
    assert f.etcd.kvs[LEADER_KEY].value == f.leader_value("f", TERM2)


async def test_a_change_to_another_leader_takes_the_leader_key_away(f: Fixture) -> None:
    """R10: whom the record names puts it back itself."""
    assert await f.control.record_changes.swap(f.change(new=replace(f.record, epoch=TERM2, leader="x")))
    assert LEADER_KEY not in f.etcd.kvs


@pytest.mark.parametrize("made", [True, False])
async def test_a_change_whose_answer_is_lost_is_decided_by_what_is_there(f: Fixture, made: bool) -> None:
    change = f.change()
    if not made:
        f.put(CONFIG_KEY, replace(f.record, epoch=TERM2, leader="x").to_json())
    f.etcd.lose_next_answer = True
    assert await f.control.record_changes.swap(change) == (f.revision() if made else 0)


async def test_the_last_step_to_another_cell_is_one_transaction(f: Fixture) -> None:
    new = replace(f.record, epoch=TERM2, leader="x")
    elsewhere = LAYOUT.config("c2", P)
    f.put(elsewhere, b"something")
    assert await f.control.record_changes.swap(f.change(new=new, cell="c2")) == 0
    assert f.config() == f.record
    del f.etcd.kvs[elsewhere]
    assert await f.control.record_changes.swap(f.change(new=new, cell="c2")) == f.revision(elsewhere)
    assert CONFIG_KEY not in f.etcd.kvs


async def test_data_goes_once_the_record_names_this_store_no_more(f: Fixture) -> None:
    f.put(CONFIG_KEY, replace(f.record, epoch=TERM2, replicas=(("l", "sl"), ("x", "sx"))).to_json())
    await f.until(lambda: P not in f.node.partitions)
    assert f.store.partitions[P].dropped


async def test_data_stays_where_a_later_term_is_sealed_than_the_records(f: Fixture) -> None:
    """Whoever leads that term counts on this copy: the record that takes it out is older, or etcd is."""
    f.seal(TERM3)
    revision = f.put(
        CONFIG_KEY, replace(f.record, epoch=TERM2, replicas=(("l", "sl"), ("x", "sx"))).to_json()
    )
    await f.until(lambda: f.coordinator.revision >= revision and P in f.control.assignment.elsewhere)
    f.control.assignment.drop_what_left()
    assert P in f.node.partitions
    assert not f.store.partitions[P].dropped


async def test_what_is_dropped_remembers_what_it_has_promised(f: Fixture) -> None:
    """R10: for ever, so that nobody whose term is over is obeyed when the partition comes back."""
    f.seal(TERM2)
    f.node.drop_partition(P)
    info = f.store.partitions[P]
    assert (info.sealed_epoch, bool(info.owner)) == (TERM2, True)
    host = f.node.open_partition(f.record)
    assert (host.replica.sealed_epoch, host.replica.owner) == (TERM2, LEADER)
    assert host.replica.log.last_index == 0


# --- R12 -----------------------------------------------------------------------------------------------------


async def put_back(f: Fixture) -> bytes | None:
    await f.control.record_changes.put_back(P, f.host.replica.sealed_epoch)
    found = f.etcd.kvs.get(LEADER_KEY)
    return None if found is None else found.value


async def leads(f: Fixture) -> None:
    """etcd's record names ``f``, which leads, and its key is gone with an earlier lease."""
    revision = f.put(CONFIG_KEY, replace(f.record, epoch=TERM2, leader="f").to_json())
    f.etcd._delete(LEADER_KEY)
    await f.until(
        lambda: (
            f.control.assignment.revisions.get(P) == revision and f.control.assignment.leaders.get(P) is None
        )
    )
    f.node.core._replicas[P].role = "active"


async def test_a_leader_whose_lease_was_lost_puts_its_key_back(f: Fixture) -> None:
    await leads(f)
    assert await put_back(f) == f.leader_value("f", TERM2)
    assert f.etcd.kvs[LEADER_KEY].lease == f.control.session.lease_id


async def test_a_key_on_a_lease_of_before_is_put_on_the_present_one(f: Fixture) -> None:
    """It goes when that lease does, and its leader would be taken for lost."""
    await leads(f)
    before = f.etcd.grant(600, now_ns() / 1e9)
    f.etcd.txn([], [Put(LEADER_KEY, f.leader_value("f", TERM2), before)], [])
    f.control.assignment.leaders[P] = f.etcd.kvs[LEADER_KEY]
    assert await put_back(f) == f.leader_value("f", TERM2)
    assert f.etcd.kvs[LEADER_KEY].lease == f.control.session.lease_id != before


async def test_not_when_the_record_has_changed_since(f: Fixture) -> None:
    """Somebody else may own the next term, and its key have gone too."""
    await leads(f)
    known = f.control.assignment.revisions[P]
    f.etcd.up = False  # the watch does not hear of it
    f.put(CONFIG_KEY, replace(f.record, epoch=TERM3, leader="x").to_json())
    f.etcd._delete(LEADER_KEY)
    f.etcd.up = True
    f.control.assignment.revisions[P] = known
    f.control.assignment.leaders[P] = None
    await f.control.record_changes.put_back(P, TERM2)
    found = f.etcd.kvs.get(LEADER_KEY)
    assert found is None or found.value != f.leader_value("f", TERM2)


async def test_nor_over_the_key_of_another(f: Fixture) -> None:
    await leads(f)
    f.put(LEADER_KEY, f.leader_value("x", TERM2))
    f.control.assignment.leaders[P] = f.etcd.kvs[LEADER_KEY]
    assert await put_back(f) == f.leader_value("x", TERM2)
    f.control.assignment.leaders[P] = None
    assert await put_back(f) == f.leader_value("x", TERM2), "it was not seen"


# --- R13 -----------------------------------------------------------------------------------------------------


async def test_etcd_that_has_forgotten_a_sealed_term_is_not_trusted(f: Fixture) -> None:
    """It was restored from a backup: its terms were handed out before."""
    f.seal(TERM3)
    await f.control.record_changes.compare_terms(P, f.host)
    assert "term 1, and it was at 3" in f.coordinator.untrusted
    assert not f.control.can_elect()


async def test_a_watch_that_is_behind_is_no_reason_for_distrust(f: Fixture) -> None:
    f.seal(TERM3)
    newer = replace(f.record, epoch=TERM3, leader="l").to_json()
    f.etcd.kvs[CONFIG_KEY] = replace(f.etcd.kvs[CONFIG_KEY], value=newer)
    assert f.control.assignment.terms[P] == 1
    await f.control.record_changes.compare_terms(P, f.host)
    assert not f.coordinator.untrusted


async def test_the_same_terms_are_not_even_asked_about(f: Fixture) -> None:
    f.coordinator.cut = True
    await f.control.record_changes.compare_terms(P, f.host)
    assert not f.coordinator.untrusted


async def test_which_rebuilding_is_followed_is_durable(f: Fixture) -> None:
    """As one fact, beside which the highest revision seen counts."""
    c = f.coordinator
    c.cluster_id, c.base, c.number, c.revision = 9, 700, 3, 750
    f.control._followed()
    assert known_etcd(f.store.facts) == c.known
    assert known_etcd({**f.store.facts, FACT_CLUSTER_ID: 5, FACT_REVISION: 900}) == Known(9, 900, 700, 3)
    assert known_etcd({FACT_CLUSTER_ID: 5, FACT_REVISION: 900}) == Known(5, 900)


async def test_who_is_not_registered_elects_nobody(f: Fixture) -> None:
    for registered in (True, False):
        f.control.link.registered = registered
        assert f.control.can_elect() == registered


@pytest.mark.parametrize("outcome", ["wait", "refused", "no lease", "done"])
async def test_who_is_not_registered_changes_nothing(f: Fixture, outcome: Outcome) -> None:
    async def register(session: Session) -> Outcome:
        return outcome

    async def tell_mark() -> bool:
        return True

    f.control.registration.register = register  # type: ignore[method-assign]
    f.control.registration.tell_mark = tell_mark  # type: ignore[method-assign]
    f.control.link.registered = False
    await leads(f)
    await f.control._reconcile()
    assert (LEADER_KEY in f.etcd.kvs) == (outcome == "done")


# --- R18 -----------------------------------------------------------------------------------------------------


async def test_what_was_split_off_waits_for_the_entry_that_did_it(f: Fixture) -> None:
    """It is opened with what it begins with, and empty only when that will not come."""
    child = ConfigRecord(1, 1 << 63, 1 << 64, TERM2, "l", f.record.replicas, parent=(P, TERM1, 7))
    f.put(LAYOUT.config("c1", 1), child.to_json())
    f.put(CONFIG_KEY, replace(f.record, hi=1 << 63, epoch=TERM2).to_json())
    await f.until(lambda: 1 in f.control.assignment.unopened)
    assert 1 not in f.node.partitions
    f.control.open_now(1)
    assert 1 in f.node.partitions


async def test_a_partition_stays_until_what_was_split_off_it_is_durable(f: Fixture) -> None:
    """The record of the parent has moved on before the flush that has the child."""
    store, submit = f.store, f.store.checkpoints.submit
    f.seal(TERM1)
    put_in_log(store, EntryRecord(P, 1, pack_entry(1, TERM1, b"split")))
    await f.until(lambda: store.durable_seq == store.last_seq)
    store.checkpoints.submit = lambda: None  # type: ignore[method-assign]
    store.checkpoints.on_split = lambda child, parent: None
    split_off = UpperHalf(1, (1 << 63).to_bytes(8, "big"), [], pack_config(f.record))
    store.apply(P, 1, TERM1, [(storage_key_of("n", "k"), pack_record(1, 1, b"v"))], set(), split_off)
    others = replace(f.record, hi=1 << 63, epoch=TERM2, replicas=(("l", "sl"), ("x", "sx")))
    f.put(CONFIG_KEY, others.to_json())
    try:
        await f.until(lambda: P in f.control.assignment.elsewhere)
        f.control.assignment.drop_what_left()
        assert P in f.node.partitions
        assert f.node.failure is None
    finally:
        store.checkpoints.submit = submit  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        await store.save(P, 1)
    await f.until(lambda: store.holds(1))
    f.control.assignment.drop_what_left()
    assert P not in f.node.partitions


# --- records that make no sense, or that go (the rest of it: test_poison) ---------------------------------------


async def test_a_bad_record_lets_the_partition_be_claimed_until_it_is_mended(f: Fixture) -> None:
    """R16: nobody can be elected by it, so a live lease must not keep its members from going on."""
    for gone in (False, True):
        if gone:
            f.etcd.revision += 1
            f.etcd._delete(CONFIG_KEY)
        else:
            f.put(CONFIG_KEY, b"{")
        await f.until(lambda: f.host.replica.unrecorded)
        assert f.host.replica.config == f.record
        if not gone:
            assert await f.control.record_changes.elect(f.campaign(expect_mod_revision=7)) is None
            assert f.host.replica.config == f.record, "what it found instead"
        f.put(CONFIG_KEY, f.record.to_json())
        await f.until(lambda: not f.host.replica.unrecorded)
        assert f.host.replica.config_mod_revision == f.revision()


async def test_a_partition_that_moves_to_another_cell_has_a_record_all_along(f: Fixture) -> None:
    """One transaction puts the new record and removes the old one, in whichever order they are seen."""
    there = LAYOUT.config("c2", P)
    for number, (new, old) in enumerate(((there, CONFIG_KEY), (CONFIG_KEY, there)) * 2):
        record = replace(f.record, epoch=first_epoch(2 + number), leader="x")
        ops: list[Op] = [Put(new, record.to_json()), Delete(old)]
        f.etcd.txn([], ops if number < 2 else ops[::-1], [])
        await f.until(lambda new=new: f.host.replica.config_mod_revision == f.revision(new))  # type: ignore[misc]
        assert not f.host.replica.unrecorded
        f.put(new, b"{")
        await f.until(lambda: f.host.replica.unrecorded)
        f.put(new, record.to_json())
        await f.until(lambda: not f.host.replica.unrecorded)


async def test_nothing_is_opened_for_a_range_that_is_anothers(f: Fixture) -> None:
    other = ConfigRecord(77, 0, 5, TERM1, "l", (f.mine,))
    f.put(LAYOUT.config("c1", 77), other.to_json())
    await f.until(lambda: 77 in f.node.topology.aside)
    assert 77 not in f.node.partitions
    assert f.control.status()["records"]["aside"] == [77]
    # it fits when the other makes room
    f.put(CONFIG_KEY, replace(f.record, lo=5, epoch=TERM2).to_json())
    await f.until(lambda: 77 in f.node.partitions)


async def test_an_error_of_ones_own_half_way_through_a_record_ends_the_node(f: Fixture) -> None:
    """R14: the record is in order, and what it asked for is half done: nothing that follows may be answered."""

    def breaks(*_: Any) -> None:
        raise KeyError("ours")

    f.node.core._replicas[P].on_config = breaks  # type: ignore[method-assign, assignment]
    f.put(CONFIG_KEY, replace(f.record, epoch=TERM2).to_json())
    await f.until(lambda: f.node.failure is not None)
    assert isinstance(f.node.failure, KeyError)


async def test_a_node_that_was_removed_is_no_peer_any_more(f: Fixture) -> None:
    for name in ("x", "zz"):
        record = NodeRecord(name, "c1", f"s{name}", "127.0.0.1:1", "127.0.0.1:1")
        f.put(LAYOUT.node(name), to_json(record))
    await f.until(lambda: {"x", "zz"} <= f.node.links._targets.keys())
    for name in ("x", "zz"):
        f.etcd.revision += 1
        f.etcd._delete(LAYOUT.node(name))
    await f.until(lambda: "zz" not in f.node.topology.nodes)
    assert "zz" not in f.node.links._targets
    assert "zz" not in f.node.links._dialling
    assert "x" in f.node.links._targets, "a partition names it"
    f.put(CONFIG_KEY, replace(f.record, epoch=TERM2, replicas=(("l", "sl"), f.mine)).to_json())
    await f.until(lambda: "x" not in f.node.links._targets)


def test_a_large_record_of_usage_is_written_more_seldom() -> None:
    assert [usage_pause_s(n) for n in (0, 1000, 2000, 10_000)] == [2.0, 2.0, 4.0, 20.0]
