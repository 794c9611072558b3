"""What may befall the simulated world. Plans name these methods, and how often each comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metastore.coordination.interface import Compare, Delete, Op, Put, TxnResult
from metastore.core.events import TransferWanted
from metastore.layout import Layout, MoveRecord, SplitRecord
from metastore.namespaces import Policy
from metastore.storage.records import ENTRY_HEAD
from metastore.storage.rows import SUMS_BYTES
from metastore.storage.state import DATA_TABLE, METADATA_TABLE
from tests.chaos.mixed import NAMESPACE
from tests.simulation.process.etcd import NAME as ETCD
from tests.simulation.process.loop import MS
from tests.simulation.process.network import Link

if TYPE_CHECKING:
    from tests.simulation.process.process import Process
    from tests.simulation.process.world import World

MAX_CLOGGED = 5


class Faults:
    """Each method does one thing to somebody, drawn from the seed; what can be undone is undone
    after a while."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.events.random
        self._clogged: list[Link] = []

    def repeat(self, what: Callable[[], None], every_ns: int) -> None:
        world = self.world

        def fire() -> None:
            if not world.healed:
                what()
                self.repeat(what, every_ns)

        world.events.at(int(self.random.expovariate(1 / every_ns)) + 1, fire)

    def later(self, most_ms: int, what: Callable[[], None]) -> None:
        """``what`` within ``most_ms``, unless everything is healed before."""
        world = self.world
        world.events.at(self.random.randrange(most_ms * MS), lambda: None if world.healed else what())

    def pick(self) -> Process:
        return self.world.processes[self.random.choice(sorted(self.world.processes))]

    def pick_leader(self) -> Process:
        """One that leads something, if any does."""
        leaders = [p for p in self.world.processes.values() if p.runs and self.world.leads(p)]
        return self.random.choice(leaders) if leaders else self.pick()

    # --- whole disks (R13) ------------------------------------------------------------------

    def restore_old_copy(self) -> None:
        self.world.losses.restore_old_copy()

    def wipe(self) -> None:
        self.world.losses.wipe()

    def clone(self) -> None:
        self.world.losses.clone()

    def lose_etcd(self) -> None:
        self.world.control_losses.lose()

    # --- processes --------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: one, or a whole cell."""
        victims = [self.pick()]
        if self.random.random() < 0.15:
            victims = [p for p in self.world.processes.values() if p.config.cell == victims[0].config.cell]
        for victim in victims:
            victim.crash("is killed")

    def power(self) -> None:
        """A machine, or all of them, without power: what was not synced is gone, or half of it."""
        victims = [self.pick()]
        if self.random.random() < 0.3:
            victims = list(self.world.processes.values())
        for victim in victims:
            victim.crash("loses power", power=True)

    def pause(self) -> None:
        """SIGSTOP, SIGCONT."""
        self._stop(self.pick(), self.random.randrange(1500 * MS), tell=True)

    def flap(self) -> None:
        """A machine, always the same one, that stands still again and again for as long as it takes to be missed."""
        self._stop(self.world.processes[max(self.world.processes)], 700 * MS, tell=True)

    def stutter(self) -> None:
        """A starved process: for a while it runs by fits and starts."""
        victim, world = self.pick(), self.world
        world.tell(f"{victim.name} stutters")
        end = world.events.now + self.random.randrange(600 * MS)

        def again() -> None:
            if world.events.now < end and not world.healed:
                self._stop(victim, self.random.randrange(25 * MS), tell=False)
                world.events.at(self.random.randrange(40 * MS), again)

        again()

    def _stop(self, victim: Process, for_ns: int, *, tell: bool) -> None:
        if not victim.up or victim.loop.paused or self.world.losses.spares(victim):
            return
        world, loop = self.world, victim.loop
        loop.pause()
        if tell:
            world.tell(f"{victim.name} pauses")

        def wake() -> None:
            if loop.paused and not loop.dead:
                if tell:
                    world.tell(f"{victim.name} wakes")
                loop.wake()

        world.events.at(for_ns, wake)

    # --- disks --------------------------------------------------------------------------------

    def tear(self) -> None:
        """The process will die in the middle of one of its next disk operations."""
        victim = self.pick()
        if victim.up:
            victim.disk.cut_after = self.random.randrange(12)

    def rot(self) -> None:
        """A bit of a value of the state, on the disk of one machine: always the same one, so that what is lost is on
        the others. (A key that rots ends the node.)"""
        name = min(self.world.processes)
        process = self.world.processes[name]
        tables = process.engine.tables
        rows = [(table, key) for table in (DATA_TABLE, METADATA_TABLE) for key in sorted(tables[table].rows)]
        if rows:
            table, key = self.random.choice(rows)
            row = bytearray(tables[table].rows[key])
            row[self.random.randrange(len(row) - SUMS_BYTES)] ^= 1 << self.random.randrange(8)
            process.engine.rot(table, key, bytes(row))
            self.world.tell(f"{name}: a bit of {key.hex()} in {table} rots")

    def rot_log(self) -> None:
        """A bit of an entry of the log, on the disk of that one machine, that is not in its memory."""
        process = self.world.processes[min(self.world.processes)]
        if not process.runs:
            return
        log = process.node.store.log
        end = log.durable_end[0] << 32 | log.durable_end[1]
        places = [
            (p, index, location)
            for p, part in sorted(log.partitions.items())
            for index, location in enumerate(part.locations, part.index.base_index + 1)
            # older ones are needed by nobody
            if 0 < location < end and index not in part.blobs and index > part.index.last_index - 40
        ]
        if places:
            p, index, location = self.random.choice(places)
            file = process.disk.files[log.files.path(location >> 32)]
            at, bit = (
                (location & 0xFFFFFFFF) + ENTRY_HEAD.size + self.random.randrange(20),
                1 << self.random.randrange(8),
            )
            file.cache[at] ^= bit
            file.durable[at] ^= bit
            self.world.tell(f"{process.name}: a bit of entry {index} of partition {p} rots")

    def fail_sync(self) -> None:
        """R14."""
        victim = self.pick()
        if victim.up:
            self.world.tell(f"{victim.name} will fail a sync")
            victim.hurt = True
            victim.disk.fail_next_sync = True

    def full_disk(self) -> None:
        """R14: no space for the log, or for the state."""
        victim = self.pick()
        if victim.up:
            what = self.random.choice(("log", "state"))
            self.world.tell(f"{victim.name} has no space left for its {what}")
            victim.hurt = True
            if what == "log":
                victim.disk.fail_next_write = True
            else:
                victim.engine.fail_next = True

    def slow_disk(self) -> None:
        """Syncs take up to a third of a second for a while."""
        victim, usual = self.pick(), self.world.plan.max_sync_ms * MS
        victim.max_sync_ns = self.random.choice((40, 120, 350)) * MS
        self.world.tell(f"{victim.name} has a slow disk")
        self.later(1500, lambda: setattr(victim, "max_sync_ns", usual))

    def flush(self) -> None:
        """The state is written now, whatever is under way."""
        victim = self.pick()
        if victim.runs:
            victim.loop.enter(victim.node.store.checkpoints.freeze)

    # --- network --------------------------------------------------------------------------------

    def others(self, than: str) -> list[str]:
        """Whoever else has links."""
        return [x for x in [*sorted(self.world.processes), *self.world.client_names(), ETCD] if x != than]

    def cut(self) -> None:
        """A link, one way or both, or a whole node."""
        world, random = self.world, self.random
        a, b = random.sample(sorted(world.processes), 2)
        links = {(a, b)} if random.random() < 0.5 else {(a, b), (b, a)}
        if random.random() < 0.3:
            links = {(a, x) for x in self.others(a)}
            if random.random() < 0.5:
                links |= {(b, a) for a, b in links}
        ordered = sorted(links)
        world.tell(f"cut {', '.join(f'{a} > {b}' for a, b in ordered)}")
        world.network.shut_links(ordered)
        self.later(1200, lambda: world.network.open_links(ordered))

    def clog(self) -> None:
        """A link holds what it carries. Now and then all that are clogged come free, in any order."""
        world, random = self.world, self.random
        a = self.pick().name
        b = random.choice(world.client_names() if random.random() < 0.5 else self.others(a))
        link = (a, b) if random.random() < 0.5 else (b, a)
        if link not in self._clogged:
            world.tell(f"clogged {link[0]} > {link[1]}")
            self._clogged.append(link)
            world.network.shut_links([link])
        if len(self._clogged) >= MAX_CLOGGED or random.random() < 0.25:
            self.later(700, self._unclog)

    def _unclog(self) -> None:
        clogged, self._clogged = self._clogged, []
        self.random.shuffle(clogged)
        at = 0
        for link in clogged:
            at += self.random.randrange(40 * MS)
            self.world.events.at(at, lambda link=link: self._free(link))  # type: ignore[misc]

    def _free(self, link: Link) -> None:
        if not self.world.healed:
            self.world.tell(f"free again: {link[0]} > {link[1]}")
            self.world.network.open_links([link], within_ns=1)

    def dam(self) -> None:
        """What a client who watches is told stays on the way for a while: its watches fall behind."""
        self._dam(self.random.choice(self.world.workloads.watches).name, 1200)

    def _dam(self, to: str, most_ms: int) -> None:
        world = self.world
        links = [(a, to) for a in sorted(world.processes)]
        world.tell(f"{to} hears nothing")
        world.network.shut_links(links)
        self.later(most_ms, lambda: world.network.open_links(links))

    def divide_unseen(self) -> None:
        """A partition is to be two while nobody who watches hears of anything, and etcd goes away soon."""
        for watch in self.world.workloads.watches:
            self._dam(watch.name, 900)
        self.divide()
        self.later(200, self.etcd)

    def reset(self) -> None:
        """Streams between two nodes, or a client's, break while both live."""
        a = self.pick().name
        b = self.random.choice(self.others(a))
        self.world.tell(f"resets {a} - {b}")
        self.world.network.reset_between(a, b)
        self.world.network.reset_between(b, a)

    def split(self) -> None:
        """A leader is alone, with some of the clients perhaps; streams to the others break."""
        self._split(self.pick_leader())

    def _split(self, alone: Process) -> None:
        world, network = self.world, self.world.network
        here = {alone.name} | {c for c in world.client_names() if self.random.random() < 0.5}
        if self.random.random() < 0.5:
            here.add(ETCD)
        there = [x for x in self.others(alone.name) if x not in here]
        world.tell(f"split: {', '.join(sorted(here))} from {', '.join(there)}")
        both = [(a, b) for a in sorted(here) for b in there]
        for a, b in both:
            network.reset_between(a, b)
            network.reset_between(b, a)
        links = both + [(b, a) for a, b in both]
        world.events.at(2 * network.max_delay_ns, lambda: network.shut_links(links))
        world.events.at(
            2 * network.max_delay_ns + 1 + self.random.randrange(900 * MS), lambda: network.open_links(links)
        )

    def depose(self) -> None:
        """A leader is alone, and its followers start anew: they forget what they can (R8)."""
        leader = self.pick_leader()
        self._split(leader)
        for other in list(self.world.processes.values()):
            if other is not leader and other.config.cell == leader.config.cell:
                other.crash("is killed", longest_ms=20)

    # --- etcd, operators ------------------------------------------------------------------------

    def etcd(self) -> None:
        """Away for a while, or an answer of it lost."""
        world = self.world
        if self.random.random() < 0.3:
            world.etcd.lose_next_answer = True
            return
        world.tell("etcd is away")
        world.etcd.up = False

        def back() -> None:
            world.tell("etcd is back")
            world.etcd.up = True

        self.later(2500, back)

    def trap_etcd(self) -> None:
        """Away from the next step of a split, a move or an election on, at once or within a few steps of the nodes."""
        etcd = self.world.etcd
        if "txn" in vars(etcd):
            return  # it is set
        carry_out = etcd.txn

        def txn(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> TxnResult:
            result = carry_out(compares, then, otherwise)
            steps = ("/splits/", "/moves/", "/config/")
            if result.succeeded and any(step in op.key for op in then for step in steps):
                del etcd.txn
                self.later(self.random.choice((1, 20, 150)), self._away)
            return result

        etcd.txn = txn  # type: ignore[method-assign]

    def _away(self) -> None:
        world = self.world
        world.tell("etcd is away, in the middle of something")
        world.etcd.up = False

        def back() -> None:
            world.tell("etcd is back")
            world.etcd.up = True

        self.later(2500, back)

    def policy(self) -> None:
        """The policy of a namespace changes: what is to have a condition, how long records live, how many there are."""
        world, random, key = self.world, self.random, Layout("sim").namespace(NAMESPACE)
        if not world.etcd.up:
            return
        policy = Policy(
            default_ttl_ms=random.choice((0, int(world.plan.default_ttl_s * 1000))),
            max_records=random.choice((0, 0, 3)),
            require_condition=random.random() < 0.2,
        )
        world.tell(f"the policy of {NAMESPACE}: {policy}")
        known = random.random() < 0.8
        world.etcd.txn([], [Put(key, policy.to_json()) if known else Delete(key)], [])

    def compact_etcd(self) -> None:
        self.world.etcd.compact()

    def move(self) -> None:
        """An operator wants a partition's replicas elsewhere, or changes their mind (R10)."""
        world, random, layout = self.world, self.random, Layout("sim")
        if not world.etcd.up or not world.control_losses.is_over():
            return
        p = random.choice(world.partitions())
        key = layout.move(p)
        known = world.etcd.kvs.get(key)
        if known is not None:
            if random.random() < 0.3:
                move = MoveRecord.from_json(known.value)
                world.tell(f"the move of p{p} is cancelled")
                world.etcd.txn([], [Put(key, dataclasses.replace(move, cancel=True).to_json())], [])
            return
        cell = f"c{random.randrange(world.plan.cells) + 1}"
        names = sorted(n for n, q in world.processes.items() if q.config.cell == cell)
        sample = random.sample(names, min(3, len(names)))
        target = tuple((n, world.processes[n].store_id) for n in sample)
        world.tell(f"p{p} is to move to {[n for n, _ in target]}")
        world.etcd.txn([], [Put(key, MoveRecord(p, cell, target, cause="test").to_json())], [])

    def divide(self) -> None:
        """An operator wants a partition to be two (R18); four times at most."""
        world, layout = self.world, Layout("sim")
        if not world.etcd.up or len(world.partitions()) >= world.plan.partitions + 4:
            return
        if not world.control_losses.is_over():
            return
        p = self.random.choice(world.partitions())
        known = world.etcd.kvs.get(layout.next_partition)
        child = int(known.value) if known else world.plan.partitions
        config = world.config(p)
        if world.etcd.kvs.get(layout.split(p)) is not None or config.hi - config.lo < 2:
            return
        split = SplitRecord(p, child, (config.lo + config.hi) // 2, "test")
        world.tell(f"p{p} is to be split, the upper half p{child}")
        puts = [Put(layout.next_partition, b"%d" % (child + 1)), Put(layout.split(p), split.to_json())]
        world.etcd.txn([], puts, [])

    def hand_over(self) -> None:
        """A leader hands over (R11)."""
        process, world = self.pick(), self.world
        if not process.runs:
            return

        def transfer() -> None:
            for p, host in process.node.partitions.items():
                if host.replica.role == "active" and host.replica.term is not None:
                    to = self.random.choice(sorted(host.replica.term.others()))
                    process.node.core.handle(process.loop.now_ns(), TransferWanted(p, to))
            process.node.ticks.run_effects()

        process.loop.enter(transfer)
        assert not world.healed

    def heal(self) -> None:
        """No more faults: everybody runs and hears everybody."""
        world = self.world
        world.healed = True
        world.tell("healed")
        self._clogged.clear()
        world.network.slow_share = 0.0
        vars(world.etcd).pop("txn", None)
        world.etcd.up = True
        world.etcd.txn([], [Delete(Layout("sim").namespace(NAMESPACE))], [])
        world.etcd.lose_next_answer = False
        for process in world.processes.values():
            process.disk.cut_after = None
            process.disk.fail_next_sync = process.disk.fail_next_write = False
            process.engine.fail_next = False
            process.max_sync_ns = world.plan.max_sync_ms * MS
            if process.up and process.loop.paused:
                process.loop.wake()
            process.restart()
        world.network.open_all()
