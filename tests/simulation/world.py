"""A seeded world around the real core: nodes, disks, network, clocks, etcd and clients.

Everything random comes from one generator, everything ordered from one event queue, so a seed
is a schedule: the same seed gives the same trace. ``check`` is called after every event.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from metastore.core import effects as fx
from metastore.core.electing import PartitionReplica
from metastore.core.entry import entry_payload, entry_position
from metastore.core.logindex import LogIndex
from metastore.core.machine import META_KEY, SESSION_PREFIX, Machine
from metastore.core.messages import Appended, Process
from metastore.core.node import NodeCore
from metastore.core.replica import (
    ACTIVATING,
    ACTIVE,
    ADOPTING,
    RESIGNING,
    InvariantBroken,
    Restored,
    unpack_config,
)
from metastore.core.settings import MS, CoreSettings
from metastore.layout import ConfigRecord, LeaderRecord, term_of
from metastore.records import record_versions
from metastore.wire.client_messages import GET, PUT

SETTINGS = CoreSettings(
    heartbeat_ns=50 * MS,
    grant_ns=300 * MS,
    suspect_after_ns=300 * MS,
    settle_ns=30 * MS,
    prevote_timeout_ns=100 * MS,
    campaign_retry_ns=150 * MS,
    retry_ns=100 * MS,
    seal_retry_ns=60 * MS,
    handoff_timeout_ns=400 * MS,
    snapshot_timeout_ns=1000 * MS,
    damping_max_ns=400 * MS,
    activation_patience_ns=1500 * MS,
    clock_rate_error_ppm=2000,
    max_append_bytes=400,
    max_inflight_entries=8,
)
TICK_NS = 25 * MS
LEASE_NS = 700 * MS
P = 0


class Violation(AssertionError):
    """An invariant does not hold; the message says which and where."""


@dataclass
class Faults:
    """How hostile the world is; probabilities per message, means in ns."""

    loss: float = 0.02
    duplicate: float = 0.02
    slow: float = 0.1
    max_delay_ns: int = 20 * MS
    slow_delay_ns: int = 400 * MS
    crash_every_ns: int = 1500 * MS
    pause_every_ns: int = 1500 * MS
    cut_every_ns: int = 1500 * MS
    reset_every_ns: int = 1500 * MS
    depose_every_ns: int = 2500 * MS
    etcd_every_ns: int = 2500 * MS
    transfer_every_ns: int = 2000 * MS
    compact_every_ns: int = 700 * MS
    sync_max_ns: int = 15 * MS
    drift_ppm: int = 1500
    grant_ns: int = 300 * MS


@dataclass
class Disk:
    """What a node's disk holds of one partition: records in order, the first ``durable`` synced."""

    records: list[Any] = field(default_factory=list)
    durable: int = 0
    grant_given_ns: int = 0
    base: tuple[int, int, dict[bytes, bytes], list[tuple[bytes, bytes]]] = (0, 0, {}, [])


class Etcd:
    """Config and leader keys with revisions; leases by node process."""

    def __init__(self, members: tuple[tuple[str, str], ...]) -> None:
        self.revision = 1
        self.config = ConfigRecord(P, 0, 1 << 64, 0, None, members)
        self.config_mod = 1
        self.leader: bytes | None = None
        self.leader_owner = ""
        self.up = True
        self.leases: dict[str, int] = {}

    def elect(self, expect: int, new: ConfigRecord, replaces: bytes | None, mine: bytes, owner: str) -> bool:
        if self.config_mod != expect or self.leader != replaces or owner not in self.leases:
            return False
        self.revision += 1
        self.config, self.config_mod = new, self.revision
        self.leader, self.leader_owner = mine, owner
        return True


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
        self.disk.grant_given_ns = world.settings.grant_ns
        config = config or replace(world.etcd.config, epoch=0, leader=None)
        self.replica = self.core.add_replica(
            self.now(), P, Restored(log, sealed, owner, config, max(commit, self.applied))
        )
        if sealed < world.sealed_seen.get(self.name, 0):
            raise Violation(f"I7: {self.name} restarted with sealed {sealed} below what it promised")
        self.apply_to(self.replica.commit_index)
        if world.random.random() < 0.7 and world.etcd.up:
            self.see_etcd()
        self.core.resume_all(self.now())
        self.run()
        world.after(TICK_NS, self, self.tick)
        for other in world.nodes.values():
            if other is not self and other.up:
                world.after(world.random.randrange(5 * MS), other, lambda o=other: o.connected(self.name))
                world.after(world.random.randrange(5 * MS), self, lambda o=other: self.connected(o.name))

    def connected(self, name: str) -> None:
        self.core.peer_up(self.now(), name)
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
                world.after(world.random.randrange(5 * MS), other, lambda o=other: o.lost(self.name))

    def lost(self, name: str) -> None:
        if not self.world.nodes[name].up:
            self.core.peer_down(self.now(), name)
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
        out = []
        while first in self.blobs and (max_bytes > 0 or not out):
            out.append(self.blobs[first])
            max_bytes -= len(self.blobs[first])
            first += 1
        return out

    def tick(self) -> None:
        now = self.now()
        self.core.tick(now, self.can_elect)
        self.unpark(now)
        self.run()
        self.world.after(TICK_NS, self, self.tick)

    def receive(self, src: Process, message: Any) -> None:
        self.core.receive(self.now(), src, message)
        self.unpark(self.now())
        self.run()

    def run(self) -> None:
        while True:
            for effect in self.core.take():
                self.effect(effect)
            if self.inbox:
                self.core.receive(self.now(), self.me, self.inbox.popleft())
            elif not self.core.effects:
                break
        self.world.check_node(self)

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
            world.campaign(self, effect)
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
                world.saw_entry(self, index, epoch, blob)
        elif isinstance(record, fx.PersistTruncate):
            for i in [i for i in self.blobs if i > record.keep_index]:
                del self.blobs[i]
        self.disk.records.append(record)
        count = len(self.disk.records)
        generation = self.generation
        world.after(
            1 + world.random.randrange(world.faults.sync_max_ns), self, lambda: self.synced(count, generation)
        )

    def synced(self, count: int, generation: int) -> None:
        if generation != self.generation:
            return
        disk = self.disk
        disk.durable = max(disk.durable, min(count, len(disk.records)))
        for record in disk.records[:count]:
            if isinstance(record, fx.PersistSeal):
                seen = self.world.sealed_seen
                seen[self.name] = max(seen.get(self.name, 0), record.epoch)
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
            applied = self.machine.apply(index, b"" if self.machine.proposed(index) else payload)
            for key, record in applied.changes:
                if record is None:
                    self.state.pop(key, None)
                else:
                    self.state[key] = record
            self.applied = index
            self.world.saw_applied(self, index, entry_position(blob)[1], payload)
        while self.waiters and self.waiters[0][0] <= upto:
            _, answer, tail = self.waiters.popleft()
            answer(tail)

    def role_changed(self, effect: fx.RoleChanged) -> None:
        world = self.world
        world.story.append(
            f"{world.now / 1e9:.4f} {self.name} {effect.role} {effect.epoch:x} {effect.reason}"
        )
        # a quorum has sealed: from here on the epoch has an owner (R1, R16)
        if (
            effect.role in (ADOPTING, ACTIVATING)
            and world.owners.setdefault(effect.epoch, self.me) != self.me
        ):
            raise Violation(f"I1: epoch {effect.epoch:x} has two owners")
        if effect.role == ACTIVE:
            world.activated(self, effect.epoch)
        went_on = effect.role in (ACTIVE, RESIGNING) and self.role in (ACTIVE, RESIGNING)
        self.role = effect.role
        if not went_on:
            self.machine.abandon()
            if effect.role not in (ACTIVE, RESIGNING):
                while self.waiters:
                    self.waiters.popleft()[1](None)  # unknown

    def install(self) -> None:
        if self.installing is None:
            return
        index, epoch, state, aux = self.installing
        self.installing = None
        disk = self.disk
        seals = [r for r in disk.records if isinstance(r, fx.PersistSeal | fx.PersistConfig)]
        # one transaction: durable when it returns; earlier entries are void
        disk.records, disk.base = seals, (index, epoch, dict(state), list(aux))
        disk.durable = len(seals)
        for s in seals:
            if isinstance(s, fx.PersistSeal):
                self.world.sealed_seen[self.name] = max(self.world.sealed_seen.get(self.name, 0), s.epoch)
        held, self.held = self.held, deque()
        for _, node, message in held:
            self.route(node, message)
        self.blobs = {}
        self.state = dict(state)
        self.machine.reset()
        self.machine.load(list(aux))
        self.applied = index
        self.replica.on_snapshot_installed(self.now(), index, epoch)
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
        rows = [(META_KEY, self.machine.aux(META_KEY) or b"")]
        rows += [(SESSION_PREFIX + c, s.pack()) for c, s in self.machine.sessions.items()]
        disk.base = (upto, log.epoch_at(upto), dict(self.state), rows)
        self.core.log_compacted(P, upto)
        for i in [i for i in self.blobs if i <= upto]:
            del self.blobs[i]
        facts = [r for r in disk.records if isinstance(r, fx.PersistSeal | fx.PersistConfig)]
        kept = [self.blobs[i] for i in sorted(self.blobs)]
        disk.records = facts + ([fx.PersistEntries(P, kept, upto, 0)] if kept else [])
        disk.durable = len(disk.records)

    # --- control plane --------------------------------------------------------------------------

    def see_etcd(self) -> None:
        etcd = self.world.etcd
        self.can_elect = etcd.up
        if etcd.up:
            self.replica.on_config(self.now(), etcd.config, etcd.config_mod)
            self.replica.on_leader_value(etcd.leader)
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
            self.core.heartbeat(now)
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
        payload, results = self.machine.resolve(index, [(client, op)])
        if payload is not None:
            self.replica.propose(self.now(), payload)
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


@dataclass
class Operation:
    """A client's view of one operation, in true time."""

    kind: str
    key: bytes
    began: int
    value: bytes = b""
    ended: int = 0
    version: int = 0
    outcome: str = "unknown"


class World:
    """See the module."""

    def __init__(self, seed: int, *, nodes: int = 3, faults: Faults | None = None, clients: int = 5) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.settings = replace(SETTINGS, grant_ns=self.faults.grant_ns)
        if self.faults.reset_every_ns and self.faults.reset_every_ns < 1000 * MS:
            self.settings = replace(self.settings, damping_free_elections=1000)
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.events = 0
        self.story: list[str] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.healed = False
        self.cuts: set[tuple[str, str]] = set()
        self.resets: dict[tuple[str, str], int] = {}
        names = [f"n{i}" for i in range(nodes)]
        self.etcd = Etcd(tuple((n, "s-" + n) for n in names))
        self.nodes = {n: Node(self, n) for n in names}
        self.owners: dict[int, Process] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.states: dict[int, bytes] = {}
        self.sealed_seen: dict[str, int] = {}
        self.history: list[Operation] = []
        self.clients = [Client(self, i) for i in range(clients)]
        ppm = self.faults.drift_ppm
        for node in self.nodes.values():
            node.rate = 1 + self.random.uniform(-ppm, ppm) / 1e6
            node.offset = self.random.randrange(10**12)
            node.start()
        for client in self.clients:
            self.at(self.random.randrange(50 * MS), client.next)
        self.at(10 * MS, self.etcd_tick)
        f = self.faults
        for every, what in (
            (f.crash_every_ns, self.crash_one),
            (f.pause_every_ns, self.pause_one),
            (f.cut_every_ns, self.cut_one),
            (f.reset_every_ns, self.reset_one),
            (f.depose_every_ns, self.depose),
            (f.etcd_every_ns, self.etcd_away),
            (f.transfer_every_ns, self.transfer_one),
            (f.compact_every_ns, self.compact_one),
        ):
            if every:
                self.again(every, what)

    # --- time and events ---------------------------------------------------------------------

    def at(self, delay: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, what))

    def after(self, delay: int, node: Node, what: Callable[[], None]) -> None:
        """An event of one process: lost with it, late when it is paused."""
        generation = node.generation

        def fire() -> None:
            if node.up and node.generation == generation:
                if self.now < node.paused_until:
                    node.backlog.append(fire)
                else:
                    what()

        self.at(delay, fire)

    def again(self, every: int, what: Callable[[], None]) -> None:
        def fire() -> None:
            if not self.healed:
                what()
                self.again(every, what)

        self.at(int(self.random.expovariate(1 / every)) + 1, fire)

    def run(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        while self.queue and self.queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self.queue)
            self.events += 1
            what()
        self.now = end

    # --- network --------------------------------------------------------------------------------

    def send(self, src: Node, dst: str, message: Any) -> None:
        f, random = self.faults, self.random
        if type(message) is Appended:
            self.check_match(src, self.nodes[dst], message)
        if (src.name, dst) in self.cuts or (not self.healed and random.random() < f.loss):
            return
        target, me = self.nodes[dst], src.me
        generation, link = target.generation, (src.name, dst)
        resets = self.resets.get(link, 0)

        def arrive() -> None:
            if self.resets.get(link, 0) == resets:
                self.deliver(target, generation, me, message)

        for _ in range(2 if not self.healed and random.random() < f.duplicate else 1):
            slow = not self.healed and random.random() < f.slow
            delay = 1 + random.randrange(f.slow_delay_ns if slow else f.max_delay_ns)
            self.at(delay, arrive)

    def deliver(self, target: Node, generation: int, src: Process, message: Any) -> None:
        # a connection ends with the process it was opened to (R13)
        if target.up and target.generation == generation:
            self.note(f"{target.name} {type(message).__name__}")
            if self.now < target.paused_until:
                target.backlog.append(lambda: self.deliver(target, generation, src, message))
            else:
                target.receive(src, message)

    def note(self, text: str) -> None:
        self.digest.update(f"{self.now}{text}".encode())

    # --- etcd -----------------------------------------------------------------------------------

    def etcd_tick(self) -> None:
        etcd = self.etcd
        if etcd.up:
            for node in self.nodes.values():
                if node.up and self.now >= node.paused_until:
                    etcd.leases[node.me.node + node.me.incarnation] = self.now + LEASE_NS
            for owner in [o for o, until in etcd.leases.items() if until < self.now]:
                del etcd.leases[owner]
                if etcd.leader_owner == owner:
                    etcd.leader, etcd.leader_owner = None, ""
        for node in self.nodes.values():
            if node.up:
                self.after(self.random.randrange(20 * MS), node, node.see_etcd)
                self.after(self.random.randrange(20 * MS), node, lambda n=node: self.put_back(n))
        self.at(60 * MS, self.etcd_tick)

    def put_back(self, node: Node) -> None:
        """R12: a leader restores its key at its own epoch, if config still names it."""
        etcd, replica = self.etcd, node.replica
        owner = node.me.node + node.me.incarnation
        if not etcd.up or owner not in etcd.leases or replica.role != ACTIVE:
            return
        if etcd.config.leader != node.name or term_of(etcd.config.epoch) != term_of(replica.sealed_epoch):
            return
        if etcd.leader is None or LeaderRecord.from_json(etcd.leader).node == node.name:
            etcd.leader = LeaderRecord(node.name, node.me.incarnation, replica.sealed_epoch).to_json()
            etcd.leader_owner = owner

    def campaign(self, node: Node, effect: fx.Campaign) -> None:
        random, etcd = self.random, self.etcd
        mine = LeaderRecord(node.name, node.me.incarnation, effect.new.epoch).to_json()
        owner = node.me.node + node.me.incarnation

        def done(won: bool) -> None:
            node.replica.on_campaign_done(
                node.now(), effect.new if won else None, etcd.config_mod if won else 0
            )
            node.run()

        def arrive() -> None:
            won = etcd.up and etcd.elect(effect.expect_mod_revision, effect.new, effect.replace, mine, owner)
            # an answer that is lost: the node reads again, later, and finds what is there
            late = random.randrange(150 * MS) if random.random() < 0.2 else random.randrange(5 * MS)
            self.after(1 + late, node, lambda: done(won and etcd.config == effect.new))

        self.at(1 + random.randrange(5 * MS), arrive)

    # --- faults ---------------------------------------------------------------------------------

    def pick(self) -> Node:
        return self.nodes[self.random.choice(sorted(self.nodes))]

    def crash_one(self) -> None:
        victims, dice = [self.pick()], self.random.random()
        if dice < 0.3:  # all, or all but one
            victims = [n for n in self.nodes.values() if dice < 0.15 or n is not victims[0]]
        self.crash_all(victims, self.random.choice((60, 600)) * MS)

    def crash_all(self, victims: list[Node], most: int) -> None:
        for node in victims:
            if node.up:
                self.story.append(f"{self.now / 1e9:.4f} {node.name} crashes")
                node.crash()
                self.at(self.random.randrange(most), lambda n=node: None if n.up else n.start())

    def pause_one(self) -> None:
        node = self.pick()
        if node.up and self.now >= node.paused_until:
            self.story.append(f"{self.now / 1e9:.4f} {node.name} pauses")
            node.paused_until = self.now + self.random.randrange(1500 * MS)
            self.at(node.paused_until - self.now, lambda: self.wake(node))

    def wake(self, node: Node) -> None:
        backlog, node.backlog = node.backlog, []
        for fire in backlog:
            fire()

    def cut_one(self) -> None:
        a, b = self.random.sample(sorted(self.nodes), 2)
        links = {(a, b)} if self.random.random() < 0.5 else {(a, b), (b, a)}
        if self.random.random() < 0.3:  # a whole node, one way or both
            links = {(a, x) for x in self.nodes if x != a}
            if self.random.random() < 0.5:
                links |= {(x, a) for x in self.nodes if x != a}
        self.cuts |= links
        self.story.append(f"{self.now / 1e9:.4f} cut {sorted(links)}")
        self.at(self.random.randrange(900 * MS), lambda: self.cuts.difference_update(links))

    def reset_one(self) -> None:
        """Connections break while both ends live: each counts the other as lost at once (R9)."""
        a = self.pick().name
        others = [x for x in sorted(self.nodes) if x != a]
        if self.random.random() < 0.5:
            others = [self.random.choice(others)]
        self.part(a, others)

    def depose(self) -> None:
        """The leader alone on one side, and its followers forget what they can."""
        leaders = [n.name for n in self.nodes.values() if n.up and n.replica.role == ACTIVE]
        if leaders:
            others = [x for x in sorted(self.nodes) if x != leaders[-1]]
            self.part(leaders[-1], others)
            if self.random.random() < 0.6:
                self.crash_all([self.nodes[x] for x in others], 20 * MS)

    def part(self, a: str, others: list[str]) -> None:
        links = {(a, b) for b in others} | {(b, a) for b in others}
        self.story.append(f"{self.now / 1e9:.4f} resets {a} with {others}")
        for link in links:
            self.resets[link] = self.resets.get(link, 0) + 1
        self.cuts |= links
        for here, there in sorted(links):
            self.after(self.random.randrange(20 * MS), self.nodes[here], self.breaks(here, there))
        back = 20 * MS + self.random.randrange(700 * MS)
        self.at(back, lambda: self.cuts.difference_update(links))
        for here, there in sorted(links):
            node = self.nodes[here]
            self.after(back + self.random.randrange(20 * MS), node, lambda n=node, o=there: n.connected(o))

    def breaks(self, here: str, there: str) -> Callable[[], None]:
        node = self.nodes[here]

        def fire() -> None:
            node.core.peer_down(node.now(), there)
            node.run()

        return fire

    def etcd_away(self) -> None:
        self.etcd.up = False
        self.story.append(f"{self.now / 1e9:.4f} etcd is away")

        def back() -> None:
            self.etcd.up = self.etcd.up or not self.healed

        self.at(self.random.randrange(2000 * MS), back)

    def transfer_one(self) -> None:
        for node in self.nodes.values():
            if node.up and node.replica.role == ACTIVE and self.now >= node.paused_until:
                other = self.pick().name
                node.replica.transfer(node.now(), other)
                node.run()

    def compact_one(self) -> None:
        node = self.pick()
        if node.up:
            node.compact()

    def snapshot(self, node: Node, effect: fx.StartSnapshot) -> None:
        """Stream a consistent view of the applied state, in one piece, after a while."""
        target = self.nodes[effect.node]
        index, state = node.applied, dict(node.state)
        if index < node.replica.log.base_index:
            raise Violation("R17: the state is behind the log's base")
        epoch = node.replica.log.epoch_at(index)
        rows = [(META_KEY, node.machine.aux(META_KEY) or b"")]
        rows += [(SESSION_PREFIX + c, s.pack()) for c, s in node.machine.sessions.items()]
        src, generation = node.me, target.generation
        if (node.name, effect.node) in self.cuts or not target.up:
            return

        def arrive() -> None:
            if target.up and target.generation == generation and not target.replica.installing:
                target.installing = (index, epoch, state, rows)
                target.replica.on_snapshot_staged(target.now(), src, effect.epoch, index, epoch)
                target.run()

        late = self.random.choice((20, 200, 1500)) * MS
        self.after(1 + self.random.randrange(late), target, arrive)

    # --- checks ---------------------------------------------------------------------------------

    def saw_entry(self, node: Node, index: int, epoch: int, blob: bytes) -> None:
        log = node.replica.log
        prev = log.epoch_at(index - 1) if log.base_index <= index - 1 <= log.last_index else -1
        known = self.entries.get((epoch, index))
        if known is None:
            self.entries[epoch, index] = (blob, prev)
        elif known[0] != blob or (prev >= 0 and known[1] >= 0 and known[1] != prev):
            raise Violation(
                f"I2: two entries at index {index} of epoch {epoch:x}, or other entries before them"
            )

    def check_match(self, follower: Node, leader: Node, message: Appended) -> None:
        """I2: what a follower acknowledges as matching is what the leader has."""
        term = leader.replica.term if leader.up else None
        if term is None or term.epoch != message.epoch or not term.noop_index:
            return
        at, mine, its = message.match, follower.replica.log, leader.replica.log
        if max(mine.base_index, its.base_index) <= at <= its.last_index and (
            at > mine.last_index or mine.epoch_at(at) != its.epoch_at(at)
        ):
            raise Violation(
                f"I2: {follower.name} acknowledges {at} in {message.epoch:x} and does not have it"
            )

    def saw_applied(self, node: Node, index: int, epoch: int, payload: bytes) -> None:
        known = self.committed.setdefault(index, (epoch, payload))
        if known != (epoch, payload):
            raise Violation(f"I3: {node.name} applies another entry {index} than was committed before")
        digest = hashlib.blake2b(digest_size=8)
        for key in sorted(node.state):
            digest.update(key + node.state[key])
        digest.update(b"%d" % node.machine.last_version)
        for client, session in node.machine.sessions.items():
            digest.update(client + session.pack())
        if self.states.setdefault(index, digest.digest()) != digest.digest():
            raise Violation(f"the states of two replicas differ after entry {index}")

    def activated(self, node: Node, epoch: int) -> None:
        log = node.replica.log
        for index, (committed_epoch, _) in self.committed.items():
            if committed_epoch > epoch:
                continue  # a leader that woke up late need not know what came after it
            if index > log.last_index or (index >= log.base_index and log.epoch_at(index) != committed_epoch):
                raise Violation(f"I3: {node.name} is active in {epoch:x} without committed entry {index}")

    def check_node(self, node: Node) -> None:
        if self.sealed_seen.get(node.name, 0) > node.replica.sealed_epoch:
            raise Violation(f"I7: the sealed epoch of {node.name} went down")

    # --- the end ----------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults; everybody runs; etcd is not back yet."""
        self.healed = True
        self.cuts.clear()
        self.etcd.up = False
        for node in self.nodes.values():
            node.paused_until = 0
            self.wake(node)
            if not node.up:
                node.start()

    def finish(self, faulty_ns: int, calm_ns: int = 4_000 * MS) -> None:
        """Run with faults, then without, and require service and every promise kept."""
        try:
            self.run(faulty_ns)
            self.heal()
            if self.etcd.config.epoch:  # etcd has named a leader at least once
                self.run(calm_ns)
                if not any(n.replica.role == ACTIVE for n in self.nodes.values()):
                    raise Violation("I8: a quorum and no etcd, and nobody serves (R12, R16)")
            self.etcd.up = True
            self.run(calm_ns)
            for client in self.clients:
                client.stopped = True
            self.run(1500 * MS)
            active = [n for n in self.nodes.values() if n.replica.role == ACTIVE]
            if len(active) != 1:
                raise Violation(f"I8: {len(active)} active leaders after healing")
            named = (self.etcd.config.leader, term_of(self.etcd.config.epoch), self.etcd.leader_owner)
            leader = active[0]
            mine = (leader.name, term_of(leader.replica.sealed_epoch), leader.name + leader.me.incarnation)
            if named != mine:
                raise Violation(f"I8: etcd names {named}, the leader is {mine}")
            last = active[0].replica.commit_index
            behind = [n.name for n in self.nodes.values() if n.applied != last]
            if behind:
                raise Violation(f"I8: {behind} did not catch up with {last}")
            self.check_history(active[0])
        except (Violation, InvariantBroken, AssertionError) as e:
            story = "\n".join(self.story[-60:])
            raise Violation(f"seed {self.seed}: {type(e).__name__}: {e}\n{story}") from e

    def check_history(self, leader: Node) -> None:
        """Per key, by versions: acknowledged writes are not lost, reads are not stale (I5)."""
        by_version = {}
        for op in self.history:
            if op.kind == "write" and op.outcome == "ok":
                if op.version in by_version:
                    raise Violation(f"I5: version {op.version} belongs to two writes")
                by_version[op.version] = op
        for key in sorted({op.key for op in self.history}):
            # events in the order in which they ended; floor(t) = newest version known by time t
            ended = sorted(
                (o for o in self.history if o.key == key and o.outcome == "ok"), key=lambda o: o.ended
            )
            floors: list[tuple[int, int]] = []
            top = 0
            for op in ended:
                top = max(top, op.version)
                floors.append((op.ended, top))
            at, floor = 0, 0
            for op in sorted(ended, key=lambda o: o.began):
                while at < len(floors) and floors[at][0] < op.began:
                    floor = floors[at][1]
                    at += 1
                if op.version < floor:
                    raise Violation(
                        f"I5: {op} is at version {op.version}, yet {floor} was known before it began"
                    )
                if op.kind == "write" and op.version <= floor:
                    raise Violation(f"I5: {op} did not grow the version beyond {floor}")
            record = leader.state.get(key)
            version = record_versions(record)[1] if record else 0
            if version < top:
                raise Violation(f"I5: {key!r} ends at version {version}, {top} was acknowledged")
        values: dict[bytes, int] = {}
        for blob in (payload for _, payload in self.committed.values() if payload):
            for op in self.history:
                if op.kind == "write" and op.value in blob:
                    values[op.value] = values.get(op.value, 0) + 1
        doubled = [v for v, n in values.items() if n > 1]
        if doubled:
            raise Violation(f"I5: {doubled[0]!r} was applied {values[doubled[0]]} times")


class Client:
    """One client: one operation at a time, retried with the same request id until it ends.

    Odd ones read, often, and go to the oldest of several leaders: what is stale they find."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.id = b"c%015d" % number
        self.seq = 0
        self.stamp = 0
        self.reader = number % 2 == 1
        self.stopped = False

    def next(self) -> None:
        world, random = self.world, self.world.random
        if self.stopped:
            return
        key = b"\0" * 8 + b"ns\0k%d" % random.randrange(3)
        op = Operation("read" if self.reader or random.random() < 0.3 else "write", key, world.now)
        if op.kind == "write":
            self.seq += 1
            op.value = b"<%s-%d>" % (self.id[-3:], self.seq)
            request = [0, PUT, P, key, self.seq, self.seq, self.stamp, None, op.value, "", 0]
        else:
            request = [0, GET, P, key, 0, None]
        world.history.append(op)
        self.attempt(op, request, 0)

    def attempt(self, op: Operation, request: list[Any], number: int) -> None:
        world, random = self.world, self.world.random
        if number > 60:  # gives up: the outcome stays unknown
            world.at(random.randrange(10 * MS), self.next)
            return
        answered = [False]
        active = [n for n in world.nodes.values() if n.up and n.replica.role == ACTIVE]
        active.sort(key=lambda n: n.replica.sealed_epoch, reverse=not self.reader)
        node = active[0] if active and random.random() < 0.8 else world.pick()

        def answer(result: Any) -> None:
            if not answered[0] and random.random() > (0 if world.healed else world.faults.loss):
                world.at(1 + random.randrange(5 * MS), lambda: receive(result))

        def receive(result: Any) -> None:
            if answered[0] or op.ended:
                return
            answered[0] = True
            if result == "refused" or result is None:
                world.at(random.randrange(80 * MS), lambda: self.attempt(op, request, number + 1))
                return
            if result[0] == "read":
                op.version = record_versions(result[1])[1] if result[1] else 0
            elif result[0] == 0:
                op.version = result[1]
                self.stamp = max(self.stamp, result[2])
            else:
                raise Violation(f"I5: {op} got {result}")
            op.ended, op.outcome = world.now, "ok"
            world.at(random.randrange((8 if self.reader else 20) * MS), self.next)

        def give_up() -> None:
            if not answered[0] and not op.ended:
                answered[0] = True
                self.attempt(op, request, number + 1)

        # a request may wait in the socket of a paused process and be carried out late
        world.after(1 + random.randrange(5 * MS), node, lambda: node.operate(request, self.id, answer))
        world.at(300 * MS, give_up)
