"""Each step of the real core, as whole nodes take it, judged by the rules (``tests.simulation.core.rules``).

One ``Rules`` for each process and partition; what a split made begins from what its parent has applied here. What the
records in etcd may become is looked at where they are: in the transactions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from metastore.coordination.interface import Compare, Op, TxnResult
from metastore.coordination.memory import MemoryEtcd
from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import messages as m
from metastore.core.messages import Process
from metastore.layout import ConfigRecord, LeaderRecord
from metastore.node.node import FACT_LARGEST_GRANT, Node
from metastore.storage.rows import unseal
from metastore.storage.state import META_TABLE, Meta, meta_key
from tests.simulation.core.rules import Rules
from tests.simulation.core.steps import (
    INSTALLED,
    Partings,
    Step,
    View,
    child_of,
    told,
    view_of,
)
from tests.simulation.violation import Violation
from tests.unit.storage.engines import FaultyEngine

if TYPE_CHECKING:
    from tests.simulation.process.process import Process as Machine


class Judge:
    """All that is judged in a world, and what is known there of splits. ``failed``: told of the first violation,
    whoever catches what is raised."""

    def __init__(self, etcd: MemoryEtcd, failed: Callable[[Violation], None]) -> None:
        self.etcd, self.failed = etcd, failed
        self.partings = Partings()
        self.rules: dict[tuple[Process, int], Rules] = {}
        self.seen: dict[tuple[Process, int], View] = {}
        self._txn = etcd.txn
        etcd.txn = self.txn  # type: ignore[method-assign]

    def fail(self, text: str, p: int) -> NoReturn:
        self.end(Violation(f"step: {text}", p))

    def end(self, error: Violation) -> NoReturn:
        self.failed(error)
        raise error

    # --- records in etcd: R2, R10, R18 -------------------------------------------------------

    def records(self) -> dict[int, tuple[str, ConfigRecord, int]]:
        """Partition -> (key, record, mod revision)."""
        found: dict[int, tuple[str, ConfigRecord, int]] = {}
        for key, kv in self.etcd.kvs.items():
            if "/config/" in key:
                record = ConfigRecord.from_json(kv.value)
                if record.partition in found:
                    self.fail("R10 two cells have a record of it", record.partition)
                found[record.partition] = key, record, kv.mod_revision
        return found

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> TxnResult:
        writes = any("/config/" in getattr(op, "key", "") for op in (*then, *otherwise))
        if not writes:
            return self._txn(compares, then, otherwise)
        before = self.records()
        result = self._txn(compares, then, otherwise)
        if result.succeeded:
            self.compare(before, self.records(), compares)
        return result

    def compare(
        self,
        before: dict[int, tuple[str, ConfigRecord, int]],
        after: dict[int, tuple[str, ConfigRecord, int]],
        compares: Sequence[Compare],
    ) -> None:
        """What one transaction may make of the records."""
        for p, (_, record, _) in after.items():
            if p not in before:
                self.made(p, record, after)
        for p, (key, old, mod) in before.items():
            if p not in after:
                self.fail("R10 a record goes, and none takes its place", p)
            now_key, new, now_mod = after[p]
            if now_mod == mod and now_key == key:
                continue
            if not any(c.key == key and c.what == "mod" and c.revision == mod for c in compares):
                self.fail("R10 a record is changed without a look at the one that was there", p)
            if new.epoch >> 16 != (old.epoch >> 16) + 1 or new.epoch & 0xFFFF:
                self.fail("R2 a record is not of the next term", p)
            if new.hi != old.hi and not any(c not in before and after[c][1].lo == new.hi for c in after):
                self.fail("R18 a record is narrowed, and none is made of the rest", p)
            self.led(p, new)
            for member in {*old.members()} - {*new.members()}:
                self.partings.left.add((p, member))

    def led(self, p: int, record: ConfigRecord) -> None:
        """``leader(p)`` is the new owner's at its epoch, or is gone: what stood there was of an earlier term."""
        for key, kv in self.etcd.kvs.items():
            if key.endswith(f"/{p:05d}") and "/leader/" in key:
                leader = LeaderRecord.from_json(kv.value)
                if (leader.node, leader.epoch) != (record.leader, record.epoch):
                    self.fail("R10 the leader of the term before is left in its place", p)

    def made(self, p: int, record: ConfigRecord, after: dict[int, tuple[str, ConfigRecord, int]]) -> None:
        """A partition's first record."""
        if record.parent is None:
            return
        parent, epoch, index = record.parent
        split = self.partings.of.get(parent, {}).get((epoch, index))
        if split is None or (parent, epoch, index) not in self.partings.committed:
            self.fail("R18 the record of what no committed entry split off", p)
        if record != child_of(parent, split):
            self.fail("R18 the child's record is not what its entry made", p)
        if after[parent][1].hi != record.lo:
            self.fail("R18 a child has a record, and its parent's is as wide as before", p)
        if any(key.endswith(f"/splits/{parent:05d}") for key in self.etcd.kvs):
            self.fail("R18 a split is recorded, and still to be done", p)

    # --- replicas -------------------------------------------------------------------------------

    def opened(self, me: Process, p: int, rules: Rules, view: View, held: frozenset[int], new: bool) -> None:
        """A replica is there from here on: at the start, or ``new``. What was split off has what its parent had."""
        self.rules[me, p], self.seen[me, p] = rules, view
        parent = view.config.parent if view.config is not None else None
        if parent is None or not new or not view.last:
            return
        if view.base != parent[1:] or view.commit != view.last or view.last != view.base[1]:
            self.fail("R18 what was split off begins elsewhere than at its entry", p)
        if parent not in self.partings.committed:
            self.fail("R18 opens what no committed entry split off", p)
        above = self.seen.get((me, parent[0]))
        if (
            above is None
            or above.commit < parent[2]
            or not (parent[2] <= above.base[1] or above.has(*parent[1:]))
        ):
            self.fail("R18 opens what was split off, and its parent here has not come to the entry", p)
        if p not in held:
            self.fail("R18 opens what was split off before it is durable", p)

    def dropped(self, me: Process, p: int, held: frozenset[int]) -> None:
        """R10: a copy goes only when a record as new as all that it has sealed names its store no more."""
        rules, view = self.rules.pop((me, p)), self.seen.pop((me, p))
        config = view.config
        if config is None or (me.node, me.store) in config.members():
            self.fail(f"R10 {me.node} drops its copy, and is a member", p)
        if config.epoch >> 16 < view.sealed >> 16:
            self.fail(f"R10 {me.node} drops its copy by a record that is older than what it has sealed", p)
        if view.installing:
            self.fail(f"R17 {me.node} drops its copy while a snapshot is switched in", p)
        rules.keeps_children(Step(0, "drop", None, view, view, [], (), held), 1 << 62)


class Recorder:
    """Writes the steps of one process."""

    def __init__(self, judge: Judge, machine: Machine, node: Node) -> None:
        self.judge, self.machine, self.node = judge, machine, node
        self.me, self.core, self.engine = node.me, node.core, machine.engine
        owed = node.store.facts.get(FACT_LARGEST_GRANT, 0)
        self.quiet_until = machine.loop.now_ns() + owed if owed else 0
        self._handle = self.core.handle
        self.core.handle = node.ticks.handle = self.handle  # type: ignore[method-assign]
        self._queue = node.snapshots._queue
        node.snapshots._queue = self.queue  # type: ignore[method-assign]

    def opened(self, p: int) -> None:
        judge, node = self.judge, self.node
        rules = Rules(self.me, node.settings, self.quiet_until, p, judge.partings)
        judge.opened(self.me, p, rules, view_of(self.core._replicas[p]), self.held(p), node.core_started)

    def held(self, p: int) -> frozenset[int]:
        """Partitions that p's splits made, and p itself, of which the disk has a copy that is more than empty, as the
        state on it says."""
        found = {split.child for split in self.judge.partings.of.get(p, {}).values()} | {p}
        return frozenset(child for child in found if applied_on(self.engine, child))

    # --- events -------------------------------------------------------------------------------

    def handle(self, now: int, event: Any, src: Process | None = None) -> None:
        """One event of the core, as one step of each replica that it is of."""
        if self.node.identity.refused:
            self._handle(now, event, src)
            return
        if isinstance(event, ev.Opened | ev.Dropped):
            self._handle(now, event, src)
            if isinstance(event, ev.Opened):
                self.opened(event.p)
            else:
                self.judge.dropped(self.me, event.p, self.held(event.p))
            return
        name, src, args = told(event, src)
        core = self.core
        ps = list(core.replicas) if not hasattr(event, "p") else [p for p in [event.p] if p in core.replicas]
        effects, judge = core.effects, self.judge
        first = len(effects)
        try:
            self._handle(now, event, src)
        finally:
            new = effects[first:]
            for p in ps:
                replica = core._replicas.get(p)
                if replica is not None:
                    before, after = judge.seen[self.me, p], view_of(replica)
                    judge.seen[self.me, p] = after
                    mine = new if len(ps) == 1 else [effect for effect in new if concerns(effect, p)]
                    if mine or src is not None or before != after:
                        self.check(p, Step(now, name, src, before, after, mine, args))

    def check(self, p: int, step: Step) -> None:
        if step.event == INSTALLED or any(type(effect) is fx.ChangeConfig for effect in step.effects):
            step = step._replace(held=self.held(p))
        try:
            self.judge.rules[self.me, p].check(step)
        except Violation as e:
            self.judge.end(e)

    def queue(self, to: str, message: Any) -> None:
        """R17: a snapshot says which position it is of, and what was split off up to there."""
        if isinstance(message, m.SnapshotBegin):
            p, judge = message.p, self.judge
            view = judge.seen.get((self.me, p))
            at = message.at_epoch, message.at_index
            if view is None or message.at_index > view.commit or (view.base[1] < at[1] and not view.has(*at)):
                judge.fail(f"R17 {self.me.node} sends a snapshot of what is not committed", p)
            known = {s.child for s in judge.partings.in_log(p, view) if s.entry <= at[1]}
            if known - {child for child, _ in message.splits}:
                judge.fail(f"R18 {self.me.node} sends a snapshot that is silent of what was split off", p)
        self._queue(to, message)


def concerns(effect: fx.Effect, p: int) -> bool:
    """Whether an effect is part of a step of partition ``p``; what is for several is part of each."""
    if type(effect) is not fx.Send:
        return bool(effect.p == p)  # type: ignore[union-attr]
    message = effect.message
    if type(message) is m.Heartbeat:
        return any(beat[0] == p for beat in message.beats)
    return type(message) is m.HeartbeatAck or bool(message.p == p)


def applied_on(engine: FaultyEngine, p: int) -> int:
    """Up to which entry the state on a disk has partition ``p``; 0 = it has nothing of it."""
    key = meta_key(p)
    row = engine.row(META_TABLE, key)
    return 0 if row is None else Meta.unpack(unseal(key, row)).applied
