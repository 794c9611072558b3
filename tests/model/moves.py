"""The replicas of a partition change (R10): learners, both sets at once, the new set; or back. As a state machine.

Replication itself is taken as proven (protocol.py): a quorum seals and its highest log is adopted in one step, a
log is sent whole, and a leader sees what its followers have. What is explored is who may lead under which
config: swaps in etcd that come late or whose answers are lost, rivals, claims without etcd (R16), records seen late by those
who leave, the move to another cell.

An epoch is ``term * RESTARTS + restart``; an entry is its epoch, negative for a client's write. A config is
``(replicas, joint)``, both as bits, joint 0 when there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from tests.model.checker import Violation

RESTARTS = 4
FOLLOWER, BEGUN, ELECTED, ACTIVE = range(4)
Config = tuple[int, int]
Owner = tuple[int, int]
Log = tuple[int, ...]
#: found to be needed for no invariant: quorums of both sets do not need it
LEARNED = "R10 new members join without the log"
#: nor do they need that who makes the joint term is active: that term is sealed, adopted and waited for by itself
JOINS_EARLY = "R10 joins before it is active"


@dataclass(frozen=True)
class Bounds:
    """What a run explores: ``old`` becomes ``new`` (bits). ``broken``: the clause left out."""

    nodes: int = 4
    old: int = 0b0111
    new: int = 0b1000
    #: won by election, beyond the first; swaps that change the config
    elections: int = 1
    swaps: int = 2
    claims: int = 0
    crashes: int = 0
    writes: int = 0
    #: a node may act on what etcd said earlier, and drop
    drops: bool = False
    grants: bool = False
    #: who may win by election or claim
    candidates: int = 0b1111
    broken: str = ""


class Node(NamedTuple):
    """``conf``: the config of ``sealed`` (R1); ``gone``: it was told to leave and has dropped its data."""

    run: int
    log: Log
    sealed: int
    conf: Config
    role: int
    gone: bool


class Record(NamedTuple):
    """What etcd holds in one cell. ``term``: compared by swaps, as mod_revision is."""

    term: int
    conf: Config
    owner: Owner


class World(NamedTuple):
    """``records``: one, or two where a move between cells is broken; ``past``: what watches may still tell;
    ``swaps``: on their way to etcd: (term compared, config, owner); ``grants``: the first leader's have not run out;
    ``committed``, ``owners``: what the invariants remember; ``left``: budgets."""

    records: tuple[Record, ...]
    past: frozenset[tuple[int, int]]
    swaps: frozenset[tuple[int, Config, Owner]]
    grants: bool
    nodes: tuple[Node, ...]
    committed: Log
    owners: tuple[tuple[int, Owner], ...]
    left: tuple[int, ...]


ELECTIONS, SWAPS, CLAIMS, CRASHES, WRITES = range(5)


def initial(bounds: Bounds) -> World:
    """Node 0 is active in term 1, and its log is everywhere among the old."""
    conf = (bounds.old, 0)
    nodes = []
    for n in range(bounds.nodes):
        if bounds.old >> n & 1:
            nodes.append(Node(0, (RESTARTS,), RESTARTS, conf, ACTIVE if n == 0 else FOLLOWER, False))
        else:
            nodes.append(Node(0, (), 0, (0, 0), FOLLOWER, True))
    left = (bounds.elections, bounds.swaps, bounds.claims, bounds.crashes, bounds.writes)
    record = Record(1, conf, (0, 0))
    return World(
        (record,),
        frozenset(),
        frozenset(),
        bounds.grants,
        tuple(nodes),
        (RESTARTS,),
        ((RESTARTS, (0, 0)),),
        left,
    )


@cache
def bits(mask: int) -> tuple[int, ...]:
    return tuple(n for n in range(mask.bit_length()) if mask >> n & 1)


def is_majority(having: int, of: int) -> bool:
    return 2 * (having & of).bit_count() > of.bit_count()


def epoch_of(entry: int) -> int:
    return abs(entry)


def common(one: Log, other: Log) -> int:
    at, end = 0, min(len(one), len(other))
    while at < end and one[at] == other[at]:
        at += 1
    return at


class Moves:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def is_quorum(self, conf: Config, having: int) -> bool:
        replicas, joint = conf
        if self.broken("R10 learners count"):
            need = replicas.bit_count() // 2
            return having.bit_count() > need and (not joint or having.bit_count() > joint.bit_count() // 2)
        if self.broken("R10 the old set is quorum enough"):
            joint = 0
        if self.broken("R10 the new set is quorum enough") and joint:
            replicas = joint
        return is_majority(having, replicas) and (not joint or is_majority(having, joint))

    def quorums(self, conf: Config, n: int) -> list[int]:
        """The smallest that ``n`` is in."""
        members = conf[0] | conf[1]
        if self.broken("R10 learners count"):
            members |= self.b.new
        found = [
            q for q in range(1 << self.b.nodes) if q >> n & 1 and not q & ~members and self.is_quorum(conf, q)
        ]
        return [q for q in found if not any(other != q and not other & ~q for other in found)]

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for n, node in enumerate(world.nodes):
            yield from self.become(world, n, node)
            if node.role >= BEGUN:
                yield from self.lead(world, n, node)
            if self.b.drops:
                yield from self.leave(world, n, node)
            if world.left[CRASHES]:
                fresh = node._replace(run=node.run + 1, role=FOLLOWER)
                yield f"{n} crashes and starts again", self.set(world, n, fresh, CRASHES)
        for swap in world.swaps:
            yield from self.arrive(world, *swap)
        if world.grants:
            yield "the first leader's grants run out", world._replace(grants=False)

    def set(self, world: World, n: int, node: Node, spend: int | None = None, **more: Any) -> World:
        left = world.left
        if spend is not None:
            left = (*left[:spend], left[spend] - 1, *left[spend + 1 :])
        return world._replace(nodes=(*world.nodes[:n], node, *world.nodes[n + 1 :]), left=left, **more)

    # --- terms ------------------------------------------------------------------------------------

    def become(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        own = (n, node.run)
        for record in world.records:
            members = record.conf[0] | record.conf[1]
            may = members & self.b.candidates
            if may >> n & 1 and not node.gone and world.left[ELECTIONS]:
                won = Record(record.term + 1, record.conf, own)
                after = self.replace(self.set(world, n, node, ELECTIONS), record, won)
                yield f"{n} wins term {won.term}", after
            if record.owner == own and node.sealed < record.term * RESTARTS:
                yield from self.begin(world, n, record.term * RESTARTS, record.conf)
        if node.role == BEGUN:
            yield from self.seal(world, n, node)
        epoch = node.sealed + 1
        may = (node.conf[0] | node.conf[1]) & self.b.candidates
        if (
            world.left[CLAIMS]
            and node.role == FOLLOWER
            and not node.gone
            and may >> n & 1
            and epoch % RESTARTS
        ):
            conf = node.conf
            if self.broken("R16 claims under the config of the term before") and conf[1]:
                conf = (conf[0], 0)
            claimed = self.set(world, n, node, CLAIMS)
            for text, after in self.begin(claimed, n, epoch, conf):
                for more, sealed in self.seal(after, n, after.nodes[n]):
                    yield f"{text}; {more}", sealed

    @staticmethod
    def replace(world: World, old: Record, new: Record) -> World:
        """One swap in etcd; what was there is what watches may still tell."""
        past = world.past | {(old.term, old.conf[0] | old.conf[1])}
        return world._replace(records=tuple(new if r == old else r for r in world.records), past=past)

    def begin(self, world: World, n: int, epoch: int, conf: Config) -> Iterator[tuple[str, World]]:
        """R1: epoch, owner and config in one write."""
        fresh = world.nodes[n]._replace(sealed=epoch, conf=conf, role=BEGUN, gone=False)
        yield f"{n} begins {_name(epoch)}", self.set(world, n, fresh)

    def seal(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """R3: a quorum of the epoch's config answers, and the highest log among it is adopted."""
        epoch = node.sealed
        for quorum in self.quorums(node.conf, n):
            members = bits(quorum)
            others = [world.nodes[m] for m in members if m != n]
            if any(m.sealed >= epoch for m in others):
                continue
            if any(
                m.gone and not self.opens(world, i)
                for i, m in zip(members, [world.nodes[m] for m in members], strict=True)
            ):
                continue
            own = (n, node.run)
            known = dict(world.owners).get(epoch, own)
            if known != own:
                raise Violation(f"I1: epoch {_name(epoch)} is owned by {known} and {own}")
            owners = tuple(sorted({**dict(world.owners), epoch: own}.items()))
            best = max(members, key=lambda m: (*_position(world.nodes[m].log), m == n))
            log = (*world.nodes[best].log, epoch)
            after = world._replace(owners=owners)
            for m in members:
                role = ELECTED if m == n else FOLLOWER
                fresh = after.nodes[m]._replace(sealed=epoch, conf=node.conf, role=role, gone=False)
                after = self.set(after, m, fresh)
            after = self.set(after, n, after.nodes[n]._replace(log=log))
            yield f"{n} seals {members} for {_name(epoch)}, adopts the log of {best}", after

    def opens(self, world: World, n: int) -> bool:
        """R13: it answers for a partition that etcd has told it to hold."""
        return any((r.conf[0] | r.conf[1]) >> n & 1 for r in world.records)

    # --- a leader ---------------------------------------------------------------------------------------

    def lead(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        if node.role >= ELECTED:
            yield from self.replicate(world, n, node)
        if node.role == ACTIVE and world.left[WRITES]:
            grown = node._replace(log=(*node.log, -node.sealed))
            yield f"{n} proposes a write", self.set(world, n, grown, WRITES)
        yield from self.change(world, n, node)

    def replicate(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        epoch, having = node.sealed, 0
        members = node.conf[0] | node.conf[1]
        for m, other in enumerate(world.nodes):
            if m == n:
                having |= 1 << m
                continue
            learner = node.role == ACTIVE and self.b.new >> m & 1
            if not members >> m & 1 and not learner:
                continue
            if other.sealed == epoch and other.log == node.log:
                having |= 1 << m
                continue
            if other.sealed <= epoch:
                fresh = other._replace(log=node.log, sealed=epoch, conf=node.conf, role=FOLLOWER, gone=False)
                yield f"{m} gets the log of {n}", self.set(world, m, fresh)
        if not self.is_quorum(node.conf, having):
            return
        if node.log != world.committed[: len(node.log)]:
            short = min(len(node.log), len(world.committed))
            if node.log[:short] != world.committed[:short]:
                raise Violation(f"I3: {n} commits {node.log} where {world.committed} was")
            yield f"{n} commits", world._replace(committed=node.log)
            return
        # R4: what was granted to the first leader, by anybody of the quorum, has passed
        waits = world.grants and n != 0 and members & ~1 & self.b.old
        if node.role == ELECTED and not waits:
            yield f"{n} is active", self.check_reads(self.set(world, n, node._replace(role=ACTIVE)))

    def change(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """R10: the next swap."""
        if not world.left[SWAPS]:
            return
        term, (replicas, joint) = node.sealed // RESTARTS, node.conf
        compared = term
        if self.broken("R10 a swap compares what is there now"):
            compared = max(r.term for r in world.records)
        may = node.role == ACTIVE or self.broken(JOINS_EARLY)
        if joint == 0 and may and replicas == self.b.old:
            new = [world.nodes[m] for m in bits(self.b.new & ~replicas)]
            if self.broken(LEARNED) or all(x.log == node.log and x.sealed == node.sealed for x in new):
                yield from self.swap(world, n, compared, (replicas, self.b.new), n, "join")
        if joint:
            early = self.broken("R10 the joint term is left before it is activated")
            unwaited = self.broken("R10 the joint term is left before the wait is over")
            committed = unwaited and node.role == ELECTED and node.log == world.committed
            if node.role == ACTIVE or early or committed:
                for to in bits(joint):
                    yield from self.swap(world, n, compared, (joint, 0), to, "leave")
            yield from self.swap(
                world, n, compared, (replicas, 0), n if replicas >> n & 1 else bits(replicas)[0], "roll back"
            )

    def swap(
        self, world: World, n: int, compared: int, conf: Config, to: int, why: str
    ) -> Iterator[tuple[str, World]]:
        owner = (to, world.nodes[to].run)
        swap = (compared, conf, owner)
        if swap in world.swaps:
            return
        node = world.nodes[n]
        if why == "leave" and to != n:
            node = node._replace(role=FOLLOWER)  # R11: it has handed over
        sent = self.set(world, n, node, SWAPS, swaps=world.swaps | {swap})
        yield f"{n} asks to {why}: {_set(conf[0])} for {to}", sent
        if self.broken("R10 a swap without an answer counts as done") and to == n:
            for text, after in self.begin(sent, n, (compared + 1) * RESTARTS, conf):
                yield f"{n} asks to {why}, has no answer; {text}", after

    def arrive(self, world: World, compared: int, conf: Config, owner: Owner) -> Iterator[tuple[str, World]]:
        """etcd gets it, early or late; the asker finds out by reading what is there."""
        rest = world._replace(swaps=world.swaps - {(compared, conf, owner)})
        for record in world.records:
            if record.term != compared:
                continue
            new = Record(record.term + 1, conf, owner)
            after = self.replace(rest, record, new)
            if self.broken("R10 another cell's record is made before the old one goes") and not conf[1]:
                after = rest._replace(records=(*world.records, new))
            yield (
                f"etcd swaps: term {new.term} has {_set(conf[0])} {_set(conf[1])}, {owner[0]} owns it",
                after,
            )

    # --- who leaves -----------------------------------------------------------------------------------------

    def leave(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """R10: a record in etcd, seen now or late, does not name it."""
        if node.gone or not node.sealed:
            return
        said = [*world.past, *((r.term, r.conf[0] | r.conf[1]) for r in world.records)]
        for term, members in said:
            if members >> n & 1 or term == 1:
                continue
            if term < node.sealed // RESTARTS and not self.broken("R10 drops whatever it has sealed"):
                continue
            fresh = node._replace(log=(), role=FOLLOWER, gone=True)
            if self.broken("R10 who drops forgets what it sealed"):
                fresh = fresh._replace(sealed=0, conf=(0, 0))
            yield f"{n} drops by the record of term {term}", self.set(world, n, fresh)

    def check_reads(self, world: World) -> World:
        first = world.nodes[0]
        if world.grants and first.role == ACTIVE and first.sealed == RESTARTS:
            raise Violation("I5: 0 still holds its grants of term 1, and another is active")
        return world


def _position(log: Log) -> tuple[int, int]:
    return (epoch_of(log[-1]) if log else 0, len(log))


def _name(epoch: int) -> str:
    return f"{epoch // RESTARTS}.{epoch % RESTARTS}"


def _set(mask: int) -> str:
    return str(bits(mask))
