"""The stage on which a transcript is played: cores of a few nodes over disks, a network and an etcd in memory, where nothing
happens unless the script says so. The verbs of a script are the methods of ``Stage`` (``a verb`` is ``a_verb``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from metastore.core import effects as fx
from metastore.core import events as ev
from metastore.core import messages as m
from metastore.core.configs import unpack_config
from metastore.core.entry import entry_position
from metastore.core.logindex import LogIndex
from metastore.core.messages import Process
from metastore.core.node import NodeCore
from metastore.core.readable import config_text, epoch_text, line_of
from metastore.core.settings import MS, CoreSettings
from metastore.errors import ProtocolError
from metastore.layout import ConfigRecord, Member, MoveRecord, SplitRecord, first_epoch

START = 100_000 * MS
TICK = 25 * MS
P = 0
#: sent all the time, and said by ``state`` well enough
QUIET = (m.Heartbeat, m.HeartbeatAck)


class Letter(NamedTuple):
    src: Process
    dst: str
    message: Any


class Machine:
    """One node: its core, and a disk whose writes are durable once ``synced``."""

    def __init__(self, stage: Stage, name: str, config: ConfigRecord) -> None:
        self.stage, self.name, self.run = stage, name, 0
        self.records: list[Any] = []
        self.durable = 0
        self.slow = False
        self.config = config
        self.grant_ns = 0
        self.base = (0, 0)
        self.up = False
        self.can_elect = self.stuck = False
        self.room = m.ROOM
        self.staged: ev.SnapshotStaged | None = None
        self.begin()

    def begin(self) -> None:
        """A process begins with what is on the disk."""
        stage = self.stage
        self.run, self.up = self.run + 1, True
        self.me = Process(self.name, f"s{self.name}", str(self.run))
        self.held: list[tuple[int, str, Any]] = []
        self.core = NodeCore(self.me, stage.settings, Random(1), self.read, stage.now, self.grant_ns)
        self.grant_ns = stage.settings.grant_ns
        del self.records[self.durable :]
        self.blobs: dict[int, bytes] = {}
        sealed, owner, config, commit = 0, None, self.config, 0
        index, epoch = self.base
        log = LogIndex(epoch, index)
        for record in self.records:
            match record:
                case fx.PersistEntries():
                    for blob in record.blobs:
                        at = entry_position(blob)
                        if at[0] > index:
                            log.append(*at)
                            self.blobs[at[0]] = blob
                    commit = max(commit, record.commit)
                case fx.PersistTruncate():
                    log.truncate(record.keep_index)
                    self.blobs = {i: b for i, b in self.blobs.items() if i <= record.keep_index}
                case fx.PersistSeal():
                    sealed, owner, config = record.epoch, record.owner, unpack_config(record.config)
                case fx.PersistConfig():
                    config = unpack_config(record.config)
        runs = tuple(str(n) for n in range(self.run, 0, -1))
        self.core.handle(stage.now, ev.LineageKnown(runs))
        commit = max(min(commit, log.last_index), index)
        self.core.handle(stage.now, ev.Opened(P, ev.Restored(log, sealed, owner, config, commit)))

    def read(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        return [self.blobs[i] for i in range(first, max(self.blobs, default=0) + 1)]

    @property
    def replica(self) -> Any:
        return self.core.replicas[P]

    def hears(self, event: Any, src: Process | None = None) -> None:
        """One event of the core; its effects are carried out, as far as they are this machine's own."""
        try:
            self.core.handle(self.stage.now, event, src)
        except (ProtocolError, AssertionError) as e:
            self.stage.say(f"{self.name}: {type(e).__name__}: {e}")
        while effects := self.core.take():
            for effect in effects:
                self.carry_out(effect)

    def carry_out(self, effect: Any) -> None:
        stage = self.stage
        match effect:
            case fx.Send():
                if effect.durable and len(self.records) > self.durable:
                    self.held.append((len(self.records), effect.node, effect.message))
                else:
                    self.route(effect.node, effect.message)
                return
            case fx.PersistEntries():
                self.blobs.update({entry_position(blob)[0]: blob for blob in effect.blobs})
            case fx.PersistTruncate():
                self.blobs = {i: b for i, b in self.blobs.items() if i <= effect.keep_index}
            case fx.Campaign() | fx.ChangeConfig():
                stage.asked[self.name] = effect
            case fx.MoveEnded():
                stage.move_ended = True
        stage.say(f"{self.name}: {shown(effect)}")
        if isinstance(effect, fx.PersistEntries | fx.PersistTruncate | fx.PersistSeal | fx.PersistConfig):
            self.records.append(effect)
            if not self.slow:
                self.sync()

    def sync(self) -> None:
        self.durable = len(self.records)
        while self.held and self.held[0][0] <= self.durable:
            _, node, message = self.held.pop(0)
            self.route(node, message)

    def route(self, node: str, message: Any) -> None:
        self.stage.letters.append(Letter(self.me, node, message))


def shown(effect: Any) -> str:
    """An effect in few words, where ``line_of`` says more than a reader needs."""
    match effect:
        case fx.RoleChanged():
            return f"is {effect.role} in {epoch_text(effect.epoch)} ({effect.reason})"
        case fx.PersistEntries():
            return f"logs {line_of(effect).split('entries=')[1].split(' commit')[0]}"
        case fx.PersistSeal():
            return f"seals {epoch_text(effect.epoch)} of {effect.owner.node}"
        case fx.PersistTruncate():
            return f"removes what is behind entry {effect.keep_index}"
        case fx.PersistConfig():
            return f"keeps the record: {config_text(unpack_config(effect.config))}"
        case fx.Committed():
            return f"commits up to {effect.upto}"
        case fx.Campaign():
            return f"asks etcd for {epoch_text(effect.new.epoch)} ({effect.reason})"
        case fx.ChangeConfig():
            return f"asks etcd for the record: {config_text(effect.new)} ({effect.reason})"
    return line_of(effect).replace(" p=0", "")


class Etcd:
    """The partition's two records."""

    def __init__(self, config: ConfigRecord) -> None:
        self.config, self.mod, self.leader = config, 1, None if config.leader is None else b"of the lease"
        self.up = True


class Stage:
    """See the module. Each verb says what came of it."""

    def __init__(self) -> None:
        self.now = START
        self.settings = CoreSettings()
        self.machines: dict[str, Machine] = {}
        self.letters: list[Letter] = []
        self.asked: dict[str, fx.Campaign | fx.ChangeConfig] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.said: list[str] = []
        self.move_ended = False
        self.etcd: Etcd

    def say(self, text: str) -> None:
        self.said.append(text)

    def play(self, line: str) -> list[str]:
        """One line of a script: a verb and its words. Returns what came of it."""
        verb, *words = line.split()
        method: Callable[..., None] | None = getattr(self, verb.replace("-", "_"), None)
        if method is None or verb.startswith("_"):
            raise ValueError(f"no verb {verb!r}")
        method(*words)
        said, self.said = self.said, []
        return said

    def _some(self, names: Iterable[str]) -> list[Machine]:
        wanted = list(names)
        chosen = (
            list(self.machines.values()) if wanted in ([], ["all"]) else [self.machines[n] for n in wanted]
        )
        return [one for one in chosen if one.up]

    # --- who is there -----------------------------------------------------------------------

    def nodes(self, *names: str) -> None:
        """These are there, with a partition that has never been led."""
        members = tuple((n, f"s{n}") for n in names)
        config = ConfigRecord(P, 0, 1 << 64, 0, None, members)
        self.etcd = Etcd(config)
        for name in names:
            self.machines[name] = Machine(self, name, config)

    def join(self, name: str) -> None:
        """A node that has no copy of its own yet: it opens one when a record names it."""
        self.machines[name] = Machine(self, name, self.etcd.config)

    def led_by(self, name: str) -> None:
        """``name`` is elected and active, in whatever way, and nobody has anything left to say."""
        self.see()
        machine = self.machines[name]
        machine.hears(ev.CampaignEnded(P, None, 0))
        config = self.etcd.config
        won = replace(config, epoch=first_epoch((config.epoch >> 16) + 1), leader=name)
        self.etcd.config, self.etcd.mod, self.etcd.leader = won, self.etcd.mod + 1, b"of the lease"
        machine.hears(ev.CampaignEnded(P, won, self.etcd.mod))
        self.deliver()
        self.see()
        self.wait("150")
        self.said.clear()
        self.asked.clear()
        self.state()

    def crash(self, name: str) -> None:
        """The process dies, and what was not durable with it."""
        machine = self.machines[name]
        machine.up = False
        self.letters = [one for one in self.letters if name not in (one.src.node, one.dst)]

    def put_back(self, name: str) -> None:
        """The folder is as it was before the last record became durable."""
        machine = self.machines[name]
        del machine.records[-1:]
        machine.durable = len(machine.records)

    def restart(self, name: str) -> None:
        """A new process of the node, which has waited for etcd's word and heard none."""
        self.machines[name].begin()
        self.machines[name].hears(ev.Resumed())

    def state(self, *names: str) -> None:
        """What each replica is, in a line."""
        for machine in self._some(names):
            r = machine.replica
            epoch, index = r.log.last_position()
            base = f", from {r.log.base_index + 1} on" if r.log.base_index else ""
            owner = r.leader_node or "nobody"
            more = "".join(
                f", {text}" for text, so in (("installing", r.installing), ("damaged", r.damaged)) if so
            )
            self.say(
                f"{machine.name}: {r.role} in {epoch_text(r.sealed_epoch)} of {owner}, log to "
                f"{index}@{epoch_text(epoch)}{base}, committed {r.commit_index}{more}"
            )

    # --- etcd -------------------------------------------------------------------------------

    def see(self, *names: str) -> None:
        """etcd's watch tells these (all) what stands there."""
        for machine in self._some(names):
            machine.can_elect = True
            machine.hears(ev.HomeSeen(P, ""))
            machine.hears(ev.ConfigSeen(P, self.etcd.config, self.etcd.mod))
            machine.hears(ev.LeaderSeen(P, self.etcd.leader))

    def etcd_away(self) -> None:
        self.etcd.up = False
        for machine in self.machines.values():
            machine.can_elect = False

    def etcd_back(self) -> None:
        self.etcd.up = True
        for machine in self.machines.values():
            machine.can_elect = True

    def lease_ends(self) -> None:
        """The leader's key goes with the lease of its node."""
        self.etcd.leader = None
        self.see()

    def unrecorded(self, *names: str) -> None:
        """etcd has no record of the partition that makes sense."""
        for machine in self._some(names):
            machine.hears(ev.RecordSeen(P, False))

    def answer(self, name: str) -> None:
        """etcd carries out, or refuses, the transaction that ``name`` asked for."""
        effect, etcd, machine = self.asked.pop(name, None), self.etcd, self.machines[name]
        if effect is None:
            self.say(f"{name}: has asked for nothing")
            return
        fits = etcd.up and effect.expect_mod_revision == etcd.mod
        if isinstance(effect, fx.Campaign):
            fits = fits and effect.replace == etcd.leader
        if fits:
            etcd.config, etcd.mod = effect.new, etcd.mod + 1
            etcd.leader = f"{etcd.config.leader}'s".encode() if etcd.config.leader else None
        self.say(f"etcd: {'done' if fits else 'refused'}")
        new, mod = (effect.new, etcd.mod) if fits else (None, 0)
        if isinstance(effect, fx.Campaign):
            machine.hears(ev.CampaignEnded(P, new, mod))
        else:
            machine.hears(ev.ChangeEnded(P, new, mod, effect.reason))

    # --- the network ------------------------------------------------------------------------

    def deliver(self, src: str = "", dst: str = "", kind: str = "") -> None:
        """All messages (from ``src``, to ``dst``, of that kind), and what they lead to, until there are none."""
        while self._deliver_once(src, dst, kind):
            pass

    def _matches(self, one: Letter, src: str, dst: str, kind: str) -> bool:
        return (
            src in ("", "*", one.src.node)
            and dst in ("", "*", one.dst)
            and kind in ("", type(one.message).__name__)
        )

    def _deliver_once(self, src: str, dst: str, kind: str) -> bool:
        for at, one in enumerate(self.letters):
            to_itself = one.src.node == one.dst
            if to_itself or self._matches(one, src, dst, kind):
                del self.letters[at]
                target = self.machines.get(one.dst)
                cut = (one.src.node, one.dst) in self.cuts
                if target is not None and target.up and not cut:
                    if not to_itself and not isinstance(one.message, QUIET):
                        self.say(f"{one.src.node} -> {one.dst}: {line_of(one.message).replace(' p=0', '')}")
                    target.hears(one.message, one.src)
                return True
        return False

    def drop(self, src: str = "", dst: str = "", kind: str = "") -> None:
        """Messages that are on their way are lost."""
        self.letters = [one for one in self.letters if not self._matches(one, src, dst, kind)]

    def cut(self, one: str, *others: str) -> None:
        """No message passes between ``one`` and these."""
        self.cuts |= {(one, other) for other in others} | {(other, one) for other in others}

    def heal(self) -> None:
        self.cuts.clear()

    def lost(self, name: str, *at: str) -> None:
        """The connection to ``name`` is reset, at these."""
        for machine in self._some(at):
            if machine.name != name:
                machine.hears(ev.PeerDown(name))

    def connected(self, name: str, *at: str) -> None:
        for machine in self._some(at):
            if machine.name != name:
                machine.hears(ev.PeerUp(name))

    # --- time -------------------------------------------------------------------------------

    def wait(self, ms: str, *names: str) -> None:
        """So many ms pass at these (all), tick by tick; messages arrive at once."""
        end = self.now + int(ms) * MS
        while self.now < end:
            self.now = min(self.now + TICK, end)
            self.tick(*names)
            self.deliver()

    def sleep(self, ms: str) -> None:
        """Time passes, and nobody runs."""
        self.now += int(ms) * MS

    def tick(self, *names: str) -> None:
        for machine in self._some(names):
            machine.hears(ev.Tick(machine.can_elect, machine.stuck, machine.room))
        if self.move_ended:  # and its record goes
            self.move_ended = False
            for machine in self._some(()):
                machine.hears(ev.MoveWanted(P, None))

    # --- what an operator, a client and a disk do --------------------------------------------

    def propose(self, name: str, text: str) -> None:
        self.machines[name].hears(ev.Propose(P, text.encode()))

    def transfer(self, name: str, to: str) -> None:
        can = self.machines[name].replica.can_transfer(to)
        if not can:
            self.say(f"{name}: cannot hand over to {to}")
        self.machines[name].hears(ev.TransferWanted(P, to))

    def move(self, *target: str) -> None:
        """An operator wants these replicas; ``node:store`` for another store than usual, ``cancel`` to go back."""
        members: list[Member] = []
        for one in target:
            if one != "cancel":
                node, _, store = one.partition(":")
                members.append((node, store or f"s{node}"))
        record = MoveRecord(P, "", tuple(members), cancel="cancel" in target)
        for machine in self._some(()):
            machine.hears(ev.MoveWanted(P, record))

    def pause_moves(self, *names: str) -> None:
        for machine in self._some(names):
            machine.hears(ev.MovesPaused(True))

    def disk(self, name: str, how: str) -> None:
        """slow: nothing becomes durable; synced: all is, now; stuck, well, full, low."""
        machine = self.machines[name]
        machine.slow = how == "slow" or (machine.slow and how != "synced")
        machine.stuck = how == "stuck"
        machine.room = {"full": m.FULL, "low": m.LOW}.get(how, m.ROOM)
        if how == "synced":
            machine.sync()

    def compact(self, name: str, index: str) -> None:
        machine = self.machines[name]
        epoch = machine.replica.log.epoch_at(int(index))
        machine.hears(ev.Compacted(P, int(index)))
        machine.base = (int(index), epoch)
        machine.blobs = {i: blob for i, blob in machine.blobs.items() if i > int(index)}

    def stage_snapshot(self, src: str, dst: str) -> None:
        """What ``src`` has committed has come to ``dst`` as a snapshot, and is whole."""
        sender, r = self.machines[src].me, self.machines[src].replica
        at = r.commit_index
        staged = ev.SnapshotStaged(P, sender, r.sealed_epoch, at, r.log.epoch_at(at))
        self.machines[dst].staged = staged
        self.machines[dst].hears(staged)

    def install(self, name: str) -> None:
        """The store has switched what is staged in."""
        machine = self.machines[name]
        staged = machine.staged
        assert staged is not None
        machine.base = (staged.index, staged.index_epoch)
        machine.records = [r for r in machine.records if isinstance(r, fx.PersistSeal | fx.PersistConfig)]
        machine.blobs, machine.durable = {}, len(machine.records)
        machine.hears(ev.SnapshotInstalled(P, staged.index, staged.index_epoch))

    def rotten_state(self, name: str) -> None:
        self.machines[name].hears(ev.StateLost(P))
        self.machines[name].hears(ev.RebuildDue(P))

    def rotten_entry(self, name: str, index: str) -> None:
        self.machines[name].hears(ev.EntryLost(P, int(index)))
        self.machines[name].hears(ev.RebuildDue(P))

    def rebuilt(self, name: str) -> None:
        self.machines[name].hears(ev.StateRebuilt(P, True))

    def split_applied(self, name: str, at_percent: str, child: str = "1") -> None:
        """The entry that splits the partition is applied at ``name``, and the child is durable there."""
        r = self.machines[name].replica
        config, epoch, index = r.config, r.sealed_epoch, r.commit_index
        record = SplitRecord(P, (1 << 64) * int(at_percent) // 100, int(child))
        first = ConfigRecord(
            record.child,
            record.at,
            config.hi,
            first_epoch((epoch >> 16) + 1),
            r.leader_node,
            config.replicas,
            parent=(P, epoch, index),
        )
        self.machines[name].hears(ev.SplitApplied(P, first, True))

    def reads(self, *names: str) -> None:
        """Whether each may serve linearizable reads now, and how old its copy is at most."""
        for machine in self._some(names):
            r = machine.replica
            age = r.age_ns(self.now)
            how_old = "of unknown age" if age is None else f"{age / MS:.0f} ms old at most"
            self.say(f"{machine.name}: {'serves reads' if r.can_read(self.now) else 'no'}, {how_old}")
