"""A node of the simulated world: the real core, with a simulated disk, clock and driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core.configs import unpack_config
from metastore.core.electing import PartitionReplica
from metastore.core.entry import entry_payload, entry_position
from metastore.core.logindex import LogIndex
from metastore.core.machine import Machine
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.replica import ACTIVATING, ACTIVE, ADOPTING, RESIGNING
from metastore.core.rows import META_KEY, SESSION_PREFIX
from metastore.core.settings import MS
from metastore.layout import ConfigRecord
from metastore.operations import GET
from tests.simulation.core.etcd import P
from tests.simulation.core.rules import Rules
from tests.simulation.core.steps import Step, told, view_of
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.core.world import World

TICK_NS = 25 * MS


@dataclass
class Disk:
    """What a node's disk holds of one partition: records in order, the first ``durable`` synced."""

    records: list[Any] = field(default_factory=list)
    durable: int = 0
    grant_given_ns: int = 0
    base: tuple[int, int, dict[bytes, bytes], list[tuple[bytes, bytes]]] = (0, 0, {}, [])


class Node:
    """One node: the core with a simulated disk, clock and driver (as metastore.node does it)."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = Disk()
        self.up = False
        self.paused_until = 0
        self.backlog: list[Callable[[], None]] = []
        self.generation = 0
        self.rate = 1.0
        self.offset = 0
        self.core: NodeCore
        self.replica: PartitionReplica
        self.machine: Machine
        self.me: Process

    # --- clock ----------------------------------------------------------------------------

    def now(self) -> int:
        return self.offset + int(self.world.now * self.rate)

    # --- life -----------------------------------------------------------------------------

    def start(self) -> None:
        world = self.world
        self.up, self.generation = True, self.generation + 1
        self.me = Process(self.name, "s-" + self.name, f"{self.generation}")
        self.held: deque[tuple[int, str, Any]] = deque()
        self.inbox: deque[Any] = deque()
        self.waiters: deque[tuple[int, Any, Any]] = deque()
        self.parked: list[tuple[int, Any]] = []
        self.seals: deque[tuple[int, int]] = deque()
        self.installing: tuple[Any, ...] | None = None
        self.role = "follower"
        self.can_elect = False
        log, sealed, owner, config, commit, blobs = self.recover()
        self.blobs = blobs
        self.state = dict(self.disk.base[2])
        self.machine = Machine(lambda k: self.state.get(k))
        self.machine.load(self.disk.base[3])
        self.applied = self.disk.base[0]
        self.core = NodeCore(
            self.me,
            world.settings,
            Random(world.random.random()),
            self.read_log,
            self.now(),
            self.disk.grant_given_ns,
        )
        owed, self.disk.grant_given_ns = self.disk.grant_given_ns, world.settings.grant_ns
        config = config or replace(world.etcd.config, epoch=0, leader=None)
        restored = ev.Restored(log, sealed, owner, config, max(commit, self.applied))
        self.core.handle(self.now(), ev.Opened(P, restored))
        self.replica = self.core._replicas[P]
        self.rules = Rules(self.me, world.settings, self.now() + owed if owed else 0, P)
        self.seen = view_of(self.replica)
        if sealed < world.checks.sealed_seen.get(self.name, 0):
            raise Violation(f"I7: {self.name} restarted with sealed {sealed} below what it promised")
        self.apply_to(self.replica.commit_index)
        if world.random.random() < 0.7 and world.etcd.up:
            self.see_etcd()
        self.do(ev.Resumed())
        self.run()
        world.after(TICK_NS, self, self.tick)
        for other in world.nodes.values():
            if other is not self and other.up:
                world.after(world.random.randrange(5 * MS), other, partial(other.connected, self.name))
                world.after(world.random.randrange(5 * MS), self, partial(self.connected, other.name))

    def connected(self, name: str) -> None:
        self.do(ev.PeerUp(name))
        self.run()

    def crash(self) -> None:
        world, disk = self.world, self.disk
        self.up = False
        self.backlog.clear()
        self.paused_until = 0
        keep = world.random.randint(disk.durable, len(disk.records))
        del disk.records[keep:]
        disk.durable = keep
        for other in world.nodes.values():
            if other.up:
                world.after(world.random.randrange(5 * MS), other, partial(other.lost, self.name))

    def lost(self, name: str) -> None:
        if not self.world.nodes[name].up:
            self.lose(name)

    def lose(self, name: str) -> None:
        """The connection to ``name`` was reset or refused."""
        self.do(ev.PeerDown(name))
        self.run()

    def recover(self) -> tuple[LogIndex, int, Process | None, ConfigRecord | None, int, dict[int, bytes]]:
        index, epoch = self.disk.base[0], self.disk.base[1]
        log, sealed, owner, config = LogIndex(epoch, index), 0, None, None
        commit, blobs = 0, {}
        for record in self.disk.records:
            if isinstance(record, fx.PersistEntries):
                for blob in record.blobs:
                    i, e = entry_position(blob)
                    if i > index:
                        log.append(i, e)
                        blobs[i] = blob
                commit = max(commit, record.commit)
            elif isinstance(record, fx.PersistTruncate):
                log.truncate(max(record.keep_index, index))
                for i in [i for i in blobs if i > record.keep_index]:
                    del blobs[i]
            elif isinstance(record, fx.PersistSeal):
                sealed, owner, config = record.epoch, record.owner, unpack_config(record.config)
            elif isinstance(record, fx.PersistConfig):
                config = unpack_config(record.config)
        return log, sealed, owner, config, min(commit, log.last_index), blobs

    # --- driving the core -------------------------------------------------------------------

    def read_log(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        out: list[bytes] = []
        while first in self.blobs and (max_bytes > 0 or not out):
            out.append(self.blobs[first])
            max_bytes -= len(self.blobs[first])
            first += 1
        return out

    def tick(self) -> None:
        now = self.now()
        self.do(ev.Tick(self.can_elect))
        self.unpark(now)
        self.run()
        self.world.after(TICK_NS, self, self.tick)

    def receive(self, src: Process, message: Any) -> None:
        self.do(message, src)
        self.unpark(self.now())
        self.run()

    def do(self, event: Any, src: Process | None = None) -> None:
        """One event of the core, and the check that it was a step that the rules allow."""
        now = self.now()
        if not self.world.checked:
            self.core.handle(now, event, src)
            return
        effects, before = self.core.effects, self.seen
        first = len(effects)
        self.core.handle(now, event, src)
        self.seen = after = view_of(self.replica)
        name, src, args = told(event, src)
        step = Step(now, name, src, before, after, effects[first:], args)
        if self.world.trace is not None:
            self.world.trace.append((self.me, self.rules.quiet_until, step))
        self.rules.check(step)

    def run(self) -> None:
        while True:
            for effect in self.core.take():
                self.effect(effect)
            if self.inbox:
                message = self.inbox.popleft()
                self.do(message, self.me)
            elif not self.core.effects:
                break
        self.world.checks.check_node(self)

    def effect(self, effect: Any) -> None:
        world = self.world
        if isinstance(effect, fx.Send):
            if effect.durable and len(self.disk.records) > self.disk.durable:
                self.held.append((len(self.disk.records), effect.node, effect.message))
            else:
                self.route(effect.node, effect.message)
        elif isinstance(effect, fx.PersistEntries | fx.PersistTruncate | fx.PersistSeal | fx.PersistConfig):
            self.persist(effect)
        elif isinstance(effect, fx.Committed):
            self.apply_to(effect.upto)
        elif isinstance(effect, fx.RoleChanged):
            self.role_changed(effect)
        elif isinstance(effect, fx.Campaign):
            world.etcd.campaign(self, effect)
        elif isinstance(effect, fx.StartSnapshot):
            world.snapshot(self, effect)
        elif isinstance(effect, fx.InstallSnapshot):
            world.after(world.random.randrange(30 * MS), self, self.install)
        elif isinstance(effect, fx.DiscardSnapshot):
            self.installing = None

    def persist(self, record: Any) -> None:
        world = self.world
        if isinstance(record, fx.PersistEntries):
            for blob in record.blobs:
                index, epoch = entry_position(blob)
                self.blobs[index] = blob
                world.checks.saw_entry(self, index, epoch, blob)
        elif isinstance(record, fx.PersistTruncate):
            for i in [i for i in self.blobs if i > record.keep_index]:
                del self.blobs[i]
        self.disk.records.append(record)
        count = len(self.disk.records)
        if isinstance(record, fx.PersistSeal):
            self.seals.append((count, record.epoch))
        generation = self.generation
        world.after(
            1 + world.random.randrange(world.plan.sync_max_ns), self, lambda: self.synced(count, generation)
        )

    def synced(self, count: int, generation: int) -> None:
        if generation != self.generation:
            return
        disk = self.disk
        disk.durable = max(disk.durable, min(count, len(disk.records)))
        while self.seals and self.seals[0][0] <= disk.durable:
            self.world.checks.saw_sealed(self, self.seals.popleft()[1])
        while self.held and self.held[0][0] <= disk.durable:
            _, node, message = self.held.popleft()
            self.route(node, message)
        self.run()

    def route(self, node: str, message: Any) -> None:
        if node == self.name:
            self.inbox.append(message)
        else:
            self.world.send(self, node, message)

    def apply_to(self, upto: int) -> None:
        while self.applied < upto:
            index = self.applied + 1
            blob = self.blobs[index]
            payload = entry_payload(blob)
            applied = self.machine.apply(index, b"" if self.machine.proposals.proposed(index) else payload)
            for key, record in applied.changes:
                if record is None:
                    self.state.pop(key, None)
                else:
                    self.state[key] = record
            self.applied = index
            self.world.checks.saw_applied(self, index, entry_position(blob)[1], payload)
        while self.waiters and self.waiters[0][0] <= upto:
            index, answer, tail = self.waiters.popleft()
            self.world.checks.saw_acknowledged(index)
            answer(tail)

    def role_changed(self, effect: fx.RoleChanged) -> None:
        world = self.world
        world.tell(f"{self.name} {effect.role} {effect.epoch:x} {effect.reason}")
        # a quorum has sealed: from here on the epoch has an owner (R1, R16)
        if (
            effect.role in (ADOPTING, ACTIVATING)
            and world.checks.owners.setdefault(effect.epoch, self.me) != self.me
        ):
            raise Violation(f"I1: epoch {effect.epoch:x} has two owners")
        if effect.role == ACTIVE:
            world.checks.activated(self, effect.epoch)
            world.checks.reads_alone(self)
        went_on = effect.role in (ACTIVE, RESIGNING) and self.role in (ACTIVE, RESIGNING)
        self.role = effect.role
        if effect.role in (ACTIVATING, ACTIVE):
            world.faults.dethrone(self)
        if not went_on:
            self.machine.proposals.abandon()
            if effect.role not in (ACTIVE, RESIGNING):
                while self.waiters:
                    self.waiters.popleft()[1](None)  # unknown

    def install(self) -> None:
        if self.installing is None:
            return
        index, epoch, state, metadata = self.installing
        self.installing = None
        disk = self.disk
        seals = [r for r in disk.records if isinstance(r, fx.PersistSeal | fx.PersistConfig)]
        # one transaction: durable when it returns; earlier entries are void
        disk.records, disk.base = seals, (index, epoch, dict(state), list(metadata))
        disk.durable = len(seals)
        for s in seals:
            if isinstance(s, fx.PersistSeal):
                self.world.checks.saw_sealed(self, s.epoch)
        self.seals.clear()
        held, self.held = self.held, deque()
        for _, node, message in held:
            self.route(node, message)
        self.blobs = {}
        self.state = dict(state)
        self.machine.reset()
        self.machine.load(list(metadata))
        self.applied = index
        self.do(ev.SnapshotInstalled(P, index, epoch))
        self.run()

    def compact(self) -> None:
        """Forget log up to what is applied and durable, as the store does."""
        if self.replica.installing:
            return
        log, disk = self.replica.log, self.disk
        upto = self.world.random.randint(log.base_index, self.applied)
        durable_last = 0
        for record in disk.records[: disk.durable]:
            if isinstance(record, fx.PersistEntries):
                durable_last = max(durable_last, entry_position(record.blobs[-1])[0])
        if upto <= log.base_index or self.applied > durable_last or len(disk.records) > disk.durable:
            return
        # the saved state stands at ``applied``; the log is kept from there on only
        upto = self.applied
        rows = [(META_KEY, self.machine.metadata(META_KEY) or b"")]
        rows += [(SESSION_PREFIX + c, s.pack()) for c, s in self.machine.sessions.items()]
        disk.base = (upto, log.epoch_at(upto), dict(self.state), rows)
        self.do(ev.Compacted(P, upto))
        for i in [i for i in self.blobs if i <= upto]:
            del self.blobs[i]
        facts = [r for r in disk.records if isinstance(r, fx.PersistSeal | fx.PersistConfig)]
        kept = [self.blobs[i] for i in sorted(self.blobs)]
        disk.records = facts + ([fx.PersistEntries(P, kept, upto, 0)] if kept else [])
        disk.durable = len(disk.records)

    def wake(self) -> None:
        """A pause is over."""
        backlog, self.backlog = self.backlog, []
        for fire in backlog:
            fire()

    # --- control plane --------------------------------------------------------------------------

    def see_etcd(self) -> None:
        etcd = self.world.etcd
        self.can_elect = etcd.up
        if etcd.up:
            self.do(ev.ConfigSeen(P, etcd.config, etcd.config_mod))
            self.do(ev.LeaderSeen(P, etcd.leader))
            self.run()

    # --- clients ----------------------------------------------------------------------------------

    def operate(self, op: list[Any], client: bytes, answer: Callable[[Any], None]) -> None:
        replica, now = self.replica, self.now()
        if replica.role != ACTIVE:
            answer("refused")
        elif replica.can_read(now):
            self.carry_out(op, client, answer)
        elif replica.has_quorum(now):
            self.parked.append((self.core.last_number, (op, client, answer)))
            self.do(ev.QuorumAsked())
        else:
            answer("refused")
        self.run()

    def carry_out(self, op: list[Any], client: bytes, answer: Callable[[Any], None]) -> None:
        if op[1] == GET:
            record = self.state.get(op[3])
            if self.replica.can_read(self.now()) or self.confirmed:
                answer(("read", record))
            else:
                answer("refused")
            return
        index = self.replica.log.last_index + 1
        payload, results = self.machine.proposals.resolve(index, [(client, op)])
        if payload is not None:
            self.do(ev.Propose(P, payload))
        at, tail = results[0]
        if at > self.applied:
            self.waiters.append((at, answer, tail))
        else:
            answer(tail)

    confirmed = False

    def unpark(self, now: int) -> None:
        parked, self.parked = self.parked, []
        for mark, (op, client, answer) in parked:
            if self.replica.role != ACTIVE:
                answer("refused")
            elif self.replica.confirmed_since(mark):
                self.confirmed = True
                self.carry_out(op, client, answer)
                self.confirmed = False
            elif not self.replica.has_quorum(now):
                answer("refused")
            else:
                self.parked.append((mark, (op, client, answer)))
