"""What a leader's node answers, and when: nothing before it is committed, nothing that its grants do not cover (R6,
R7, R8, R15)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metastore.clock import now_ns
from metastore.core import effects as fx
from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.events import PartingProposed, QuorumAsked
from metastore.core.messages import Process
from metastore.core.replica import InvariantBroken
from metastore.errors import Moved, NotLeader, OutcomeUnknown, StorageError, Unavailable
from metastore.keys import storage_key_of
from metastore.layout import first_epoch
from metastore.node.node import FACT_LARGEST_GRANT, Node
from metastore.operations import NOT_FOUND, OK
from metastore.storage.records import Fact
from metastore.storage.store import Store
from tests.unit.node.leading import EPOCH, LONG_NS, Leading, P, X

SECOND_NS = 1_000_000_000


def storage_key(key: str) -> bytes:
    return storage_key_of("n", key)


def deposed(led: Leading) -> None:
    """``y`` owns the next term."""
    epoch = first_epoch(2)
    config = replace(led.record, epoch=epoch, leader="y")
    led.node.on_peer_messages(Process("y", "sy", "1"), [m.Seal(P, epoch, pack_config(config), 0)])


# --- R1, R5: what waits for the disk ---------------------------------------------------------------------------


async def test_nothing_that_promises_leaves_before_it_is_durable(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        led.begin()
        assert not led.sent(m.Seal), "its own seal is not on the disk yet"
        await led.until(lambda: led.sent(m.Seal))
        assert led.store.durable_seq >= 1


async def test_what_is_held_leaves_with_its_own_round(tmp_path: Path) -> None:
    """What was appended while a round is under way is not in it."""
    async with Leading(tmp_path) as led:
        await led.durable()
        log, rounds = led.store.log, list[Any]()
        writer, log.writer = log.writer, rounds.append
        led.store.append(Fact("first", 1))
        led.node.ticks._send(fx.Send("x", "first", True))
        led.store.start_sync()
        led.store.append(Fact("second", 2))
        led.node.ticks._send(fx.Send("x", "second", True))
        told = [[message for _, message in led.out]]
        for _ in range(2):
            log.write_pieces(rounds.pop())
            log.group_written(None)
            led.store.start_sync()
            told.append([message for _, message in led.out])
        log.writer = writer
        assert told == [[], ["first"], ["first", "second"]]


async def test_what_is_held_stays_when_the_node_has_failed(tmp_path: Path) -> None:
    """R14: whatever failed, something before it may be lost."""
    async with Leading(tmp_path) as led:
        led.begin()
        led.node.halt.fail(StorageError("test"))
        led.store.start_sync()
        async with asyncio.timeout(60):
            while led.store.durable_seq < led.store.last_seq:
                await asyncio.sleep(0)
        assert led.out == []


async def test_what_was_held_for_an_earlier_connection_is_not_sent_on_a_later_one(tmp_path: Path) -> None:
    """R8: numbers of heartbeats owed to one run of a leader would count as grants to the next."""
    async with Leading(tmp_path) as led:
        led.begin()
        assert [held[1] for held in led.node.ticks._held].count("x") == 1
        led.node.on_peer_up("x")
        seals = [held for held in led.node.ticks._held if held[1] == "x"]
        assert len(seals) == 1, "sent anew, once"
        assert [held[1] for held in led.node.ticks._held].count("y") == 1


async def test_the_largest_grant_is_durable_before_any_is_given(tmp_path: Path) -> None:
    async with Leading(tmp_path, grant_ms=700) as led:
        led.node.on_peer_messages(X, [m.Heartbeat(7, 0, [])])
        assert not led.sent(m.HeartbeatAck)
        await led.until(lambda: led.sent(m.HeartbeatAck))
        assert led.store.facts[FACT_LARGEST_GRANT] == 700_000_000
    store = Store.open(tmp_path, cluster="metastore", node="f")
    began = now_ns()
    node = Node(led.node.config, store, "2")
    assert node.core.ctx.seal_not_before_ns >= began + 700_000_000, "nothing is sealed before that is over"
    node.start()
    await node.stop(hand_over=False)


# --- R6, R7: what is answered ----------------------------------------------------------------------------------


async def test_a_write_is_answered_when_a_quorum_has_it(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        asker = led.put("k")
        led.propose()
        assert not asker.results
        await led.durable()
        assert not asker.results, "its own copy is one of three"
        led.node.on_peer_messages(X, [m.Appended(P, EPOCH, led.replica.log.last_index)])
        await led.until(lambda: asker.results)
        assert asker.results == [[1, OK, 1, 2, True]]
        assert led.store.get(P, storage_key("k")) is not None


async def test_a_quorum_of_others_does_not_answer_what_is_not_on_this_disk_nor_committed(
    tmp_path: Path,
) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        go = asyncio.Event()
        writer = led.store.log.writer
        assert writer is not None
        loop = asyncio.get_running_loop()

        async def later(pieces: Any) -> None:
            await go.wait()
            assert writer is not None
            writer(pieces)

        tasks: list[asyncio.Task[None]] = []

        def write(pieces: Any) -> None:
            tasks.append(loop.create_task(later(pieces)))

        led.store.log.writer = write
        asker = led.put("k")
        led.propose()
        led.node.on_peer_messages(X, [m.Appended(P, EPOCH, led.replica.log.last_index)])
        await asyncio.sleep(0)
        assert not asker.results
        assert led.replica.commit_index == led.replica.log.last_index - 1
        go.set()
        await led.until(lambda: asker.results)


async def test_who_waits_when_leadership_is_lost_learns_that_nothing_is_known(tmp_path: Path) -> None:
    """R7: proposed and not committed is unknown, never failure; not proposed is nothing done."""
    async with Leading(tmp_path) as led:
        await led.lead()
        proposed = led.put("a")
        led.propose()
        waiting = led.put("b")
        deposed(led)
        assert proposed.statuses() == [OutcomeUnknown.status]
        assert waiting.statuses() == [NotLeader.status]
        assert led.node.failure is None
        assert not led.host.waiters
        assert not led.host.writes.pending


async def test_a_reign_that_ended_leaves_nothing_proposed(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        led.put("a", seq=1)
        led.propose()
        assert led.host.machine.proposals.current(storage_key("a")) is not None
        deposed(led)
        assert led.host.machine.proposals.current(storage_key("a")) is None
        assert not led.host.machine.proposals.proposed(led.replica.log.last_index)


async def test_nothing_is_resolved_behind_the_commit_index(tmp_path: Path) -> None:
    """Conditions are judged on all that is committed, or not at all."""
    async with Leading(tmp_path) as led:
        await led.lead()
        led.put("k")
        led.store.partitions[P].meta.applied -= 1
        with pytest.raises(InvariantBroken, match="R7"):
            led.host.propose_pending(now_ns())
        led.store.partitions[P].meta.applied += 1


async def test_a_write_whose_deadline_has_passed_is_not_proposed(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        last = led.replica.log.last_index
        asker = led.put("k")
        led.host.propose_pending(now_ns() + 2 * LONG_NS)
        assert asker.results[0][2].startswith("the deadline passed before the write was proposed")
        assert led.replica.log.last_index == last


# --- R8 --------------------------------------------------------------------------------------------------------------


async def test_a_read_is_answered_at_once_while_grants_are_held(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        assert led.get("k").statuses() == [NOT_FOUND]


async def test_a_read_whose_grants_end_while_it_reads_waits_for_a_quorum(tmp_path: Path) -> None:
    """The process may have been paused between the check and the reading."""
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k")
        read = led.host.machine.read

        def reading(key: bytes) -> bytes | None:
            led.end_grants()
            return read(key)

        led.host.machine.read = reading
        asker = led.get("k")
        assert not asker.results
        led.host.machine.read = read
        led.grant()
        await led.until(lambda: asker.results)
        assert asker.statuses() == [OK]


async def test_a_parked_read_is_confirmed_by_what_was_sent_after_it_came(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        core = led.node.core
        core.handle(now_ns(), QuorumAsked())
        before = core.last_number
        led.end_grants()
        asker = led.get("k")
        led.node.on_peer_messages(X, [m.HeartbeatAck(before, 0, 0, [])])
        assert not asker.results
        await led.until(lambda: core.last_number > before)
        led.node.ticks.run_effects()
        led.node.on_peer_messages(X, [m.HeartbeatAck(core.last_number, 0, 0, [])])
        await led.until(lambda: asker.results)
        assert asker.statuses() == [NOT_FOUND]


async def test_a_parked_write_is_proposed_only_when_it_is_confirmed(tmp_path: Path) -> None:
    """So that a leader that slept refuses what it can no longer do."""
    async with Leading(tmp_path) as led:
        await led.lead()
        led.end_grants()
        asker = led.put("k")
        assert not led.host.writes.pending
        led.grant()
        assert led.host.writes.pending or led.host.waiters
        assert not asker.results


async def test_a_parked_read_of_a_leader_that_was_deposed_goes_elsewhere(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        led.end_grants()
        asker = led.get("k")
        deposed(led)
        await led.until(lambda: asker.results)
        assert asker.statuses() == [NotLeader.status]


# --- R15 -----------------------------------------------------------------------------------------------------------


def due(led: Leading, key: str) -> bool:
    """Whether the record's time is up on this leader's clock an hour from now."""
    return bool([k for k, _ in led.host.deadlines.due(now_ns() + LONG_NS, 100) if k == storage_key(key)])


async def test_a_touch_is_answered_while_grants_are_held_and_renews(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        led.host.deadlines.add_time(-599 * SECOND_NS)
        asker = led.touch("k")
        led.propose()
        assert asker.results == [[3, OK, 1, 0, 600_000]]
        assert not led.host.deadlines.is_over(now_ns() + 599 * SECOND_NS, storage_key("k"), 1)


async def test_a_touch_whose_grants_end_before_its_answer_is_not_answered_with_success(
    tmp_path: Path,
) -> None:
    """A later leader's clock may have run out already, and another hold the lock."""
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        asker = led.touch("k")
        led.end_grants()
        led.propose()
        assert asker.statuses() == [Unavailable.status]


async def test_a_touch_without_grants_waits_for_a_quorum(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        led.end_grants()
        asker = led.touch("k")
        led.propose()
        assert not asker.results


async def test_a_touch_of_what_is_not_committed_waits_for_it(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        led.put("k", ttl_ms=600_000)
        touch = led.touch("k")
        led.propose()
        assert not touch.results
        await led.acknowledged()
        await led.until(lambda: touch.results)
        assert touch.results == [[3, OK, 1, 0, 600_000]]


def expire(led: Leading) -> None:
    """The clock of TTLs jumps ahead by ten minutes."""
    led.host.deadlines.add_time(-601 * SECOND_NS)
    led.host.sweep(now_ns())


async def test_what_is_over_goes_by_an_entry_that_names_its_version(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        expire(led)
        assert led.host.writes.expired == [(storage_key("k"), 1)]
        assert led.store.get(P, storage_key("k")) is not None, "nothing goes by a clock alone"
        led.propose()
        await led.acknowledged()
        await led.until(lambda: led.store.get(P, storage_key("k")) is None)


async def test_a_touch_between_due_and_proposed_counts(tmp_path: Path) -> None:
    """Thousands may be due at once; so many go by one entry, and touches are answered meanwhile."""
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        expire(led)
        last = led.replica.log.last_index
        led.host.writes.touched(now_ns(), [3, 0, P, storage_key("k"), None], 0, (OK, 1, 0, 600_000))
        led.propose()
        assert not led.host.writes.expired
        assert led.replica.log.last_index == last, "it is not over any more"


async def test_what_a_split_took_away_does_not_expire_here(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        expire(led)
        last = led.replica.log.last_index
        led.node.core.handle(now_ns(), PartingProposed(P, int.from_bytes(storage_key("k")[:8], "big")))
        led.host.split.narrow()
        led.propose()
        assert led.replica.log.last_index == last


async def test_a_partition_ends_where_etcds_record_says(tmp_path: Path) -> None:
    """R18: the state may not know it: it was opened by an older record, say."""
    async with Leading(tmp_path) as led:
        await led.lead()
        point = int.from_bytes(storage_key("k")[:8], "big")
        assert led.host.state.covers(storage_key("k"))
        led.node.control.assignment.config_changed("c1", replace(led.record, hi=point), 5)
        assert led.host.state.hi == storage_key("k")[:8]
        assert led.put("k").statuses() == [Moved.status]


async def test_a_split_that_is_proposed_closes_what_is_above_whoever_asks(tmp_path: Path) -> None:
    """R18: where the range ends follows from who knows, also when etcd's record comes once more meanwhile."""
    async with Leading(tmp_path) as led:
        await led.lead()
        point = storage_key("k")[:8]
        led.node.core.handle(now_ns(), PartingProposed(P, int.from_bytes(point, "big")))
        led.host.split.narrow()
        led.host.split.narrow()
        assert led.host.state.hi == point
        assert not led.host.state.covers(storage_key("k"))
        deposed(led)
        assert led.host.state.covers(storage_key("k")), "it is forgotten"


async def test_what_is_applied_is_the_stores_word(tmp_path: Path) -> None:
    """One fact, one owner: nobody can say otherwise, and nothing has to be kept in step."""
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k")
        with pytest.raises(AttributeError):
            led.host.applied = 0  # type: ignore[misc]
        led.store.partitions[P].meta.applied += 5
        assert led.host.applied == led.store.partitions[P].applied_index
        led.store.partitions[P].meta.applied -= 5


async def test_deadlines_are_an_active_leaders(tmp_path: Path) -> None:
    """Anew and in full when a reign begins; nobody else lets anything expire."""
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        led.host.deadlines.add_time(-599 * SECOND_NS)
        led.node.core._replicas[P].set_role("resigning", "test")
        led.node.ticks.run_effects()
        expire(led)
        assert not led.host.writes.expired, "about to resign"
        led.node.core._replicas[P].set_role("active", "test")
        led.node.ticks.run_effects()
        led.host.sweep(now_ns() + 599 * SECOND_NS)
        assert not led.host.writes.expired, "anew"
        deposed(led)
        assert not led.host.deadlines.running
        led.host.sweep(now_ns() + LONG_NS)
        assert not led.host.writes.expired


async def test_a_process_that_slept_lets_nothing_expire_for_it(tmp_path: Path) -> None:
    async with Leading(tmp_path) as led:
        await led.lead()
        await led.written("k", ttl_ms=600_000)
        led.host.deadlines.add_time(LONG_NS)
        led.host.sweep(now_ns() + LONG_NS)
        assert not led.host.writes.expired
        assert due(led, "k") is False
