"""What a node changes in etcd's records: elections (R2), membership (R10), splits (R18), its own leader keys (R12).

Which transaction it is, and what became of one whose answer was lost, is decided in ``transactions``; here it is sent, and the replica hears
of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from metastore import schema
from metastore.clock import now_ns
from metastore.coordination.interface import KV
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.replica import ACTIVE
from metastore.errors import CoordinationError, CoordinationUnknown, StorageError
from metastore.fields import BadRecord
from metastore.layout import ConfigRecord, first_epoch, term_of
from metastore.logs import log_event
from metastore.node.control import transactions, view
from metastore.node.control.assignment import Assignment, Here
from metastore.node.control.link import Link
from metastore.node.control.transactions import Author
from metastore.partition.partition import Partition

log = logging.getLogger("metastore.control")

MAX_CONCURRENT_CAMPAIGNS: Final = 16


def _now_ms() -> int:
    """The time of day, for history."""
    return int(time.time() * 1000)


class RecordChanges:
    """See the module. ``spawn``: has something done; ``note``: told of a record that is not valid."""

    def __init__(
        self,
        node: Here,
        link: Link,
        assignment: Assignment,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        note: Callable[[str, BadRecord], None],
    ) -> None:
        self.node, self._link, self._assignment = node, link, assignment
        self._spawn, self._note = spawn, note
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CAMPAIGNS)
        self._ending: set[int] = set()
        self.campaigns = 0
        self.elections_won = 0

    def _happens(self, event: ev.OfReplica) -> None:
        self.node.core.handle(now_ns(), event)

    def campaign(self, effect: fx.Campaign) -> None:
        self.campaigns += 1
        self._spawn(self._campaign(effect))

    async def _campaign(self, effect: fx.Campaign) -> None:
        node, p = self.node, effect.p
        won: tuple[ConfigRecord, int] | None = None
        try:
            async with self._slots:
                won = await self.elect(effect)
        except CoordinationError as e:
            log.debug("campaign for partition %d: %s", p, e)
        except (StorageError, AssertionError):
            raise
        except Exception:
            log.exception("the campaign for partition %d failed", p)
        partition = node.partitions.get(p)
        if partition is None:
            return
        if won:
            self.elections_won += 1
            fields = {"node": node.me.node, "partition": p, "epoch": effect.new.epoch}
            log_event(log, f"elected: {effect.reason}", **fields)
            self._happens(ev.CampaignEnded(p, *won))
        else:
            self._happens(ev.CampaignEnded(p, None, 0))
        node.ticks.run_effects()

    async def elect(self, effect: fx.Campaign) -> tuple[ConfigRecord, int] | None:
        """The election transaction; who commits it owns the term (R2)."""
        me = self._link.author()
        if me is None:
            return None
        made = transactions.election(
            self._link.layout, self._assignment.home(effect.p), me, effect, _now_ms()
        )
        config, leader = made.otherwise
        try:
            result = await self._link.coordinator.txn(*made)
        except CoordinationUnknown:
            # decide by what is there, never by the lost answer
            found = await self._link.coordinator.get(config.key), await self._link.coordinator.get(leader.key)
            at = transactions.election_found(me, effect, *found)
            return (effect.new, at) if at else None
        if result.succeeded:
            return effect.new, result.revision
        self._catch_up(effect.p, *result.kvs)
        return None

    def _catch_up(self, p: int, config: KV | None, leader: KV | None) -> None:
        """What the transaction found instead: the watch may be behind, or cut off from news."""
        partition = self.node.partitions.get(p)
        if partition is None:
            return
        record = self._config_in(config)
        if config is not None and record is not None:
            self._assignment.revisions[p] = max(config.mod_revision, self._assignment.revisions.get(p, 0))
            self._happens(ev.ConfigSeen(p, record, config.mod_revision))
        self._assignment.leaders[p] = leader
        self._happens(ev.LeaderSeen(p, leader.value if leader else None))

    def _config_in(self, kv: KV | None) -> ConfigRecord | None:
        """A partition's record as a reading found it; None = there is none that makes sense."""
        if kv is None:
            return None
        try:
            return schema.read_record(self._link.layout.parse(kv.key), kv.value, ConfigRecord)
        except BadRecord as e:
            self._note(kv.key, e)
            return None

    def change_config(self, effect: fx.ChangeConfig) -> None:
        self._spawn(self._change(effect))

    async def _change(self, effect: fx.ChangeConfig) -> None:
        node, p = self.node, effect.p
        done = 0
        try:
            done = await self.swap(effect)
        except CoordinationError as e:
            log.debug("change of partition %d: %s", p, e)
        partition = node.partitions.get(p)
        if partition is None:
            return
        fields = {"node": node.me.node, "partition": p, "epoch": effect.new.epoch}
        if done:
            log_event(log, f"membership: {effect.reason}", **fields)
            self._assignment.revisions[p] = max(done, self._assignment.revisions.get(p, 0))
        new = effect.new if done else None
        self._happens(ev.ChangeEnded(p, new, done, effect.reason))
        node.ticks.run_effects()

    async def swap(self, effect: fx.ChangeConfig) -> int:
        """The compare-and-swap of ``config(p)``; the revision that it was made at, 0 = it was not."""
        home, me = self._assignment.home(effect.p), self._link.author()
        if me is None and effect.new.leader == self.node.me.node:
            return 0
        move = self._assignment.moves.get(effect.p)
        made = transactions.change(
            self._link.layout,
            home,
            me or Author(self.node.me.node, self.node.me.incarnation, 0),
            effect,
            move[0] if move else None,
            self._led_at(effect.child) if me is not None else None,
            _now_ms(),
        )
        try:
            result = await self._link.coordinator.txn(*made)
            return result.revision if result.succeeded else 0
        except CoordinationUnknown:
            # decide by what is there, never by the lost answer
            found = await self._link.coordinator.get(
                transactions.changed_key(self._link.layout, home, effect)
            )
            return transactions.change_found(effect, found)

    def _led_at(self, child: ConfigRecord | None) -> int | None:
        """The epoch at which a child is led here already."""
        partition = self.node.partitions.get(child.partition) if child is not None else None
        return partition.replica.sealed_epoch if partition is not None and partition.role == ACTIVE else None

    def move_ended(self, effect: fx.MoveEnded) -> None:
        self._spawn(self._end_move(effect))

    async def _end_move(self, effect: fx.MoveEnded) -> None:
        found = self._assignment.moves.get(effect.p)
        if found is None or effect.p in self._ending:
            return
        self._ending.add(effect.p)
        try:
            made = transactions.end_of_move(self._link.layout, effect.p, found[1])
            await self._link.coordinator.txn(*made)
            fields = {"node": self.node.me.node, "partition": effect.p}
            log_event(log, f"move {effect.how}", **fields)
        except CoordinationError as e:
            log.debug("end of the move of partition %d: %s", effect.p, e)
        finally:
            self._ending.discard(effect.p)

    async def compare_terms(self, p: int, partition: Partition) -> None:
        """R13: a term sealed here was etcd's before. The watch may be behind it, a fresh reading
        cannot; one that is says that etcd was restored from a backup."""
        sealed = term_of(partition.replica.sealed_epoch)
        if self._assignment.terms.get(p, sealed) >= sealed:
            return
        found = await self._link.coordinator.get(self._link.layout.config(self._assignment.home(p), p))
        record = self._config_in(found)
        if record is not None:
            term = term_of(record.epoch)
            if term < sealed:
                self._link.coordinator.distrust(
                    f"etcd has partition {p} at term {term}, and it was at {sealed}"
                )

    async def put_back(self, p: int, epoch: int) -> None:
        """R12: ``leader(p)`` at our own epoch and on the present lease, if config still names us."""
        me, seen = self._link.author(), self._assignment.leaders.get(p)
        if me is None or not transactions.is_to_be_put_back(me, epoch, seen):
            return
        cell, replica = self._assignment.home(p), self.node.partitions[p].replica
        term, config = replica.term, replica.config
        began = None
        if epoch != first_epoch(term_of(epoch)) and term is not None and config is not None:
            began_ms = _now_ms() - (now_ns() - term.started_ns) // 1_000_000
            kind = "restart" if "R12" in term.reason else "claim"
            of = replace(config, epoch=epoch)
            began = transactions.event(self._link.layout, of, cell, kind, term.reason, began_ms)
        known = self._assignment.revisions.get(p, 0)
        made = transactions.put_back(self._link.layout, cell, me, p, epoch, seen, known, began)
        await self._link.coordinator.txn(*made)

    async def keep_leader_keys(self) -> None:
        """R12, R13: of each partition here: its term compared with etcd's, and its leader key put back where that is amiss. Raises
        CoordinationError."""
        me = self.node.me.node
        for p, partition in list(self.node.partitions.items()):
            await self.compare_terms(p, partition)
            replica = partition.replica
            if p in self._assignment.revisions and view.leads_as_recorded(
                replica.config, replica.sealed_epoch, replica.role == ACTIVE, me
            ):
                await self.put_back(p, replica.sealed_epoch)
