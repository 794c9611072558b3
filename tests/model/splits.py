"""A partition of three replicas that is split in two, under R17 and R18, as a state machine.

The upper half of the parent becomes the child. Replication itself is taken as proven (protocol.py): a candidate
seals a quorum, adopts and appends its no-op in one step, a log is sent whole, and a leader sees what its
followers have. What is explored is what one replica does with two partitions: what it has applied, what of
that is on disk, which of its two copies may go, and who may lead the child.

An epoch is ``term * RESTARTS + restart``; an entry is ``epoch * KINDS + kind``. The parent's rows at
the beginning hold one acknowledged record above the point; entries of kind ABOVE are more of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.checker import Violation

NODES = (0, 1, 2)
SETS = tuple(tuple(n for n in NODES if mask >> n & 1) for mask in range(8))
RESTARTS, KINDS = 4, 3
#: a no-op or a write below the point; a write above it; the entry that splits
PLAIN, ABOVE, SPLIT = range(KINDS)
FOLLOWER, ELECTED, ACTIVE = range(3)
#: the child here: not; split off in memory only; empty on disk; the same, and split off in memory; whole on disk
NONE, FORK, EMPTY, OVER, BORN = range(5)
#: found to be needed for no invariant, since the entry says what the child begins with
INTENTION = "R18 the entry before the intention"
PAST_SPLIT = "R18 a forced failover goes on past the entry"
NOT_RESERVED = "R18 the child's first term is not reserved, and R1 takes any owner"
Log = tuple[int, ...]
Owner = tuple[int, int]


@dataclass(frozen=True)
class Bounds:
    """What a run explores. ``broken``: the clause left out."""

    #: of the parent, beyond the first: won in etcd, and claimed (R16, R12)
    elections: int = 0
    claims: int = 0
    #: of the child, beyond the first: won in etcd, and claimed
    child_elections: int = 0
    child_claims: int = 0
    below: int = 0
    above: int = 0
    #: processes that die and start again at once, and such as stay down
    crashes: int = 0
    deaths: int = 0
    #: how often etcd goes away
    outages: int = 0
    #: the parent is moved away from a node; the child is
    moves: int = 0
    child_moves: int = 0
    compactions: int = 0
    #: how often an operator has one replica of the parent go on alone, whose majority is down for good
    forces: int = 0
    grants: bool = False
    #: who may win or claim the parent, as bits
    candidates: int = 0b111
    #: every state is asked whether service can come back (S2), with etcd or without
    recovers: bool = False
    #: and etcd stays away when it is (I8)
    alone: bool = False
    broken: str = ""


class Node(NamedTuple):
    """``log``: the parent's, durable at once; ``base``: what of it is compacted away; ``applied`` in memory, ``flushed`` on
    disk; ``sealed``, ``role``, ``gone``: of the parent; ``child``, ``csealed``, ``clog``, ``crole``: of the child."""

    up: bool
    run: int
    log: Log
    base: int
    applied: int
    flushed: int
    sealed: int
    role: int
    gone: bool
    child: int
    csealed: int
    clog: Log
    crole: int


class World(NamedTuple):
    """``confs``: the replicas of the parent by term, as bits; ``winner``: who owns its newest term; ``intention``:
    (term, owner); ``record``: the child's in etcd, (term, owner, replicas); ``grants``: those that the first
    leader holds have not run out. ``parted``, ``told``, ``said``, ``owners``: what the invariants remember: the entry that was
    applied, what the child and the parent committed, who owned which epoch of the child. ``left``: budgets."""

    etcd: bool
    confs: tuple[int, ...]
    winner: Owner
    intention: tuple[int, Owner] | None
    record: tuple[int, Owner, int] | None
    grants: bool
    nodes: tuple[Node, ...]
    splitters: tuple[tuple[int, Owner], ...]
    parted: int
    told: Log
    said: Log
    owners: tuple[tuple[int, Owner], ...]
    left: tuple[int, ...]


#: indexes of ``World.left``
BUDGETS = ("elections", "claims", "child_elections", "child_claims", "below", "above", "crashes", "deaths",
           "outages", "moves", "child_moves", "compactions", "forces")  # fmt: skip
(ELECTIONS, CLAIMS, CELECTIONS, CCLAIMS, BELOW, ABOVES, CRASHES, DEATHS, OUTAGES, MOVES, CMOVES, COMPACTIONS, FORCES) = range(13)  # fmt: skip


def initial(bounds: Bounds) -> World:
    """Node 0 is active in term 1 of the parent; everybody has all that it ever wrote in rows."""
    leader = Node(True, 0, (), 0, 0, 0, RESTARTS, ACTIVE, False, NONE, 0, (), FOLLOWER)
    other = leader._replace(role=FOLLOWER)
    left = tuple(getattr(bounds, name) for name in BUDGETS)
    return World(
        True, (0, 7), (0, 0), None, None, bounds.grants, (leader, other, other), (), 0, (), (), (), left
    )


def common(one: Log, other: Log) -> int:
    at, end = 0, min(len(one), len(other))
    while at < end and one[at] == other[at]:
        at += 1
    return at


def split_at(log: Log) -> int:
    """The length of the log up to its split entry, 0 = it has none."""
    for at, entry in enumerate(log, 1):
        if entry % KINDS == SPLIT:
            return at
    return 0


def majorities(replicas: int, candidate: int) -> list[tuple[int, ...]]:
    """The smallest majorities of ``replicas`` that ``candidate`` is in."""
    members = SETS[replicas]
    need = len(members) // 2 + 1
    found = [s for s in SETS if len(s) == need and candidate in s]
    return [s for s in found if all(n in members for n in s)]


def is_majority(count: int, replicas: int) -> bool:
    return 2 * count > len(SETS[replicas])


class Splits:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds
        self.well: dict[tuple[bool, bool], set[World]] = defaultdict(set)

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if self.b.recovers:
            self.check_service(world)
        yield from self.calm(world)
        yield from self.faults(world)

    def calm(self, world: World) -> Iterator[tuple[str, World]]:
        """What happens when nothing else fails, what leads on first."""
        for n in NODES:
            if world.nodes[n].up:
                yield from self.keep(world, n)
        for n in NODES:
            if world.nodes[n].up:
                yield from self.lead(world, n)
                yield from self.lead_child(world, n)
        for n in NODES:
            if world.nodes[n].up:
                yield from self.begin_child(world, n)
                yield from self.begin(world, n)
        if world.grants:
            yield "the first leader's grants run out", world._replace(grants=False)

    # --- small helpers -----------------------------------------------------------------------------

    def set(self, world: World, n: int, node: Node, spend: int | None = None, **more: Any) -> World:
        nodes = world.nodes
        left = world.left
        if spend is not None:
            left = (*left[:spend], left[spend] - 1, *left[spend + 1 :])
        return world._replace(nodes=(*nodes[:n], node, *nodes[n + 1 :]), left=left, **more)

    def child_replicas(self, world: World) -> int:
        """By etcd's record, or by the entry: the parent's replicas of its term."""
        if world.record is not None:
            return world.record[2]
        return world.confs[world.parted // KINDS // RESTARTS]

    @staticmethod
    def term(world: World) -> int:
        return len(world.confs) - 1

    def may_part(self, world: World, n: int, node: Node, when: str) -> bool:
        """R17: whether the parent's rows above the point may go here, ``when``: snapshot or drop."""
        if node.child == BORN:
            return True
        if node.child == EMPTY and self.broken("R17 an empty child is durable enough"):
            return True
        if when == "snapshot":
            if self.broken("R17 a snapshot past the split takes the rows"):
                return True
            if node.child in (FORK, OVER):
                return self.broken("R17 a snapshot takes what is split off in memory only")
            # no record: nothing says that the child is not for this store
            return world.record is not None and not self.names(world, n)
        if node.child in (FORK, OVER):
            return self.broken("R17 dropped before what was split off is durable")
        named = world.record is not None and self.names(world, n)
        return not named or self.broken("R17 dropped while the child names this store")

    def knows(self, world: World, n: int) -> bool:
        """Whether ``n``, a replica of the child, has heard of it: from etcd, or from one that has it."""
        if not world.parted or not self.child_replicas(world) >> n & 1:
            return False
        if world.record is not None and world.etcd:
            return True
        if self.b.broken.endswith(("only etcd tells of a child", "and only etcd tells")):
            return False
        return any(x.up and x.child == BORN for x in world.nodes)

    def names(self, world: World, n: int) -> bool:
        """Whether etcd's record of the child names ``n``."""
        if self.broken("R17 keeps rows for a child that is elsewhere"):
            return True
        return world.record is not None and bool(world.record[2] >> n & 1)

    # --- the parent ----------------------------------------------------------------------------------

    def begin(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        """R2, R3, R12, R16: a new term, or a claim."""
        node, term = world.nodes[n], self.term(world)
        if node.gone:
            return
        may = world.confs[term] & self.b.candidates
        if world.etcd and may >> n & 1 and world.left[ELECTIONS]:
            won = self.set(world, n, node, ELECTIONS, confs=(*world.confs, world.confs[-1]))
            yield f"{n} wins the parent's term {term + 1}", won._replace(winner=(n, node.run))
        if world.winner == (n, node.run) and node.sealed < term * RESTARTS:
            yield from self.seal(world, n, term * RESTARTS, None)
        epoch = node.sealed + 1
        may = self.b.candidates
        if world.left[CLAIMS] and node.role == FOLLOWER and may >> n & 1 and epoch % RESTARTS:
            yield from self.seal(world, n, epoch, CLAIMS)

    def seal(self, world: World, n: int, epoch: int, spend: int | None) -> Iterator[tuple[str, World]]:
        """A quorum seals, the candidate adopts the highest log among it and appends its no-op."""
        if not world.confs[epoch // RESTARTS] >> n & 1:
            return
        for quorum in majorities(world.confs[epoch // RESTARTS], n):
            members = [world.nodes[q] for q in quorum]
            if any(m.gone or not m.up or m.sealed >= epoch for m in members):
                continue
            best = max(quorum, key=lambda q: (*_position(world.nodes[q].log), q == n))
            after: World | None = world
            if best != n:
                after = self.receive(world, n, best)
            if after is None:
                continue
            for q in quorum:
                role = ELECTED if q == n else FOLLOWER
                after = self.set(after, q, after.nodes[q]._replace(sealed=epoch, role=role))
            mine = after.nodes[n]
            after = self.set(after, n, mine._replace(log=(*mine.log, epoch * KINDS)), spend)
            yield f"{n} seals {quorum} for the parent's {_name(epoch)}, adopts the log of {best}", after

    def receive(self, world: World, n: int, source: int) -> World | None:
        """R5: the log of ``source`` becomes that of ``n``, by a snapshot where it must. None: it may not."""
        node, other = world.nodes[n], world.nodes[source]
        same = common(node.log, other.log)
        if same >= other.base:
            if same < node.applied:
                raise Violation(f"I4: {n} would truncate to {same}, below what it applied")
            return self.set(world, n, node._replace(log=other.log))
        at = split_at(other.log[: other.applied])
        if at and not self.may_part(world, n, node, "snapshot"):
            return None
        child = node.child
        if child in (FORK, OVER):
            child = NONE if child == FORK else EMPTY
        log, to = other.log[: other.applied], other.applied
        fresh = node._replace(log=log, base=to, applied=to, flushed=to, child=child)
        return self.check_rows(self.set(world, n, fresh), n, "took a snapshot of the parent")

    def lead(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node = world.nodes[n]
        if node.role == FOLLOWER or node.gone:
            return
        epoch, term = node.sealed, node.sealed // RESTARTS
        replicas = world.confs[term]
        have = [self.match(world, n, m) for m in SETS[replicas]]
        index = sorted(have, reverse=True)[len(have) // 2]
        if index > node.applied and node.log[index - 1] // KINDS == epoch:
            yield f"{n} commits {index} and applies it", self.apply(world, n, index, True)
        own = node.applied and node.log[node.applied - 1] // KINDS == epoch
        if node.role == ELECTED and own and (not world.grants or n == 0):
            after = self.set(world, n, node._replace(role=ACTIVE))
            yield f"{n} is active in the parent", self.check_parted(after, n)
        for m in SETS[replicas]:
            follower = world.nodes[m]
            if m == n or not follower.up or follower.gone or follower.sealed > epoch:
                continue
            sealed = follower._replace(sealed=epoch, role=FOLLOWER)
            if follower.log != node.log or sealed != follower:
                received = self.receive(self.set(world, m, sealed), m, n)
                if received is not None:
                    yield f"{m} gets the parent's log of {n}", received
            upto = min(node.applied, common(follower.log, node.log))
            if follower.sealed == epoch and upto > follower.applied:
                yield f"{m} applies {upto}", self.apply(world, m, upto, False)
        yield from self.change(world, n, node)

    def match(self, world: World, n: int, m: int) -> int:
        follower = world.nodes[m]
        if m == n:
            return len(world.nodes[n].log)
        if follower.sealed != world.nodes[n].sealed or follower.gone:
            return 0
        return common(follower.log, world.nodes[n].log)

    def change(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """What a leader has etcd write, and what it proposes."""
        epoch, term, own = node.sealed, node.sealed // RESTARTS, (n, node.run)
        at = split_at(node.log)
        applied = 0 < at <= node.applied
        current = world.etcd and world.winner == own and term == self.term(world)
        may = node.role == ACTIVE or not self.broken("R18 an active leader records, and only etcd tells")
        if current and applied and world.record is None and may:
            first = node.log[at - 1] // KINDS // RESTARTS + 1
            owner = dict(world.splitters)[node.log[at - 1] // KINDS]
            replicas = self.child_replicas(world)
            yield f"{n} records the child in etcd", world._replace(record=(first, owner, replicas))
        if node.role != ACTIVE and not self.broken("R18 splits before it is active"):
            return
        if current and not at and world.intention != (term, own):
            yield f"{n} has etcd hold the intention", world._replace(intention=(term, own))
        if not at and (world.intention == (term, own) or self.broken(INTENTION)):
            after = self.set(world, n, node._replace(log=(*node.log, epoch * KINDS + SPLIT)))
            splitters = tuple(sorted({**dict(world.splitters), epoch: own}.items()))
            yield f"{n} proposes the split", after._replace(splitters=splitters)
        if world.left[BELOW]:
            grown = node._replace(log=(*node.log, epoch * KINDS))
            yield f"{n} proposes a write below", self.set(world, n, grown, BELOW)
        late = at > node.applied and self.broken("R18 above is written until the entry is applied")
        if world.left[ABOVES] and (late or not self.is_closed(node)):
            grown = node._replace(log=(*node.log, epoch * KINDS + ABOVE))
            yield f"{n} proposes a write above", self.set(world, n, grown, ABOVES)
        if current and world.left[MOVES] and len(SETS[world.confs[term]]) > 2:
            # R10, as one step: joint and final
            waits = at and (world.record is None or not applied)
            if not waits or self.broken("R18 a move does not wait for the record"):
                for away in NODES:
                    if away != n:
                        yield from self.move(world, n, away)

    def is_closed(self, node: Node) -> bool:
        at = split_at(node.log)
        if self.broken("R18 above is served until the entry is applied"):
            at = at if at <= node.applied else 0
        return bool(at)

    def move(self, world: World, n: int, away: int) -> Iterator[tuple[str, World]]:
        node, term = world.nodes[n], self.term(world)
        replicas = world.confs[-1] & ~(1 << away)
        moved = self.set(world, n, node, MOVES, confs=(*world.confs, replicas))
        for text, after in self.seal(moved, n, (term + 1) * RESTARTS, None):
            yield f"the parent is moved away from {away}: {text}", after

    def apply(self, world: World, n: int, upto: int, leader: bool) -> World:
        """One transition of the state: parent and child. The leader answers what it applied."""
        node = world.nodes[n]
        known = common(world.said, node.log[:upto])
        if known < min(len(world.said), upto):
            raise Violation(f"I3: {n} commits {node.log[:upto]} where {world.said} was")
        if leader and upto > len(world.said):
            world = world._replace(said=node.log[:upto])
        at = split_at(node.log[:upto])
        if at and any(entry % KINDS == ABOVE for entry in node.log[at:upto]):
            raise Violation(f"I5: {n} has acknowledged a write above the point that the child lacks")
        child = node.child
        if at > node.applied:
            world = world._replace(parted=node.log[at - 1])
            if self.child_replicas(world) >> n & 1:
                child = {NONE: FORK, EMPTY: OVER}.get(child, child)
        return self.set(world, n, node._replace(applied=upto, child=child))

    # --- what a replica keeps --------------------------------------------------------------------------

    def keep(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node = world.nodes[n]
        pending = node.child in (FORK, OVER)
        if node.flushed < node.applied or pending:
            if self.broken("R18 parent and child are flushed apart") and node.flushed < node.applied:
                after = self.set(world, n, node._replace(flushed=node.applied))
                yield (
                    f"{n} flushes the parent",
                    self.check_rows(after, n, "flushed the parent without the child"),
                )
            child = BORN if pending else node.child
            after = self.set(world, n, node._replace(flushed=node.applied, child=child))
            yield f"{n} flushes", after
        if node.base < node.flushed and world.left[COMPACTIONS]:
            yield f"{n} compacts its log", self.set(world, n, node._replace(base=node.flushed), COMPACTIONS)
        told = self.knows(world, n)
        if told and node.child == NONE:
            yield f"{n} opens the child empty", self.set(world, n, node._replace(child=EMPTY))
        at = split_at(node.log)
        told = told and not self.broken("R18 what is known of the child does not prove its entry")
        if told and at > node.applied and node.log[at - 1] == world.parted and not node.gone:
            yield f"{n} has the child's entry, and applies it", self.apply(world, n, at, False)
        left = world.etcd and not node.gone and not world.confs[-1] >> n & 1
        if left and node.sealed <= self.term(world) * RESTARTS and self.may_part(world, n, node, "drop"):
            child = {FORK: NONE, OVER: EMPTY}.get(node.child, node.child)
            fresh = node._replace(gone=True, role=FOLLOWER, child=child)
            after = self.set(world, n, fresh)
            yield f"{n} drops the parent", self.check_rows(after, n, "dropped the parent")

    # --- the child -------------------------------------------------------------------------------------

    def begin_child(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node = world.nodes[n]
        if not world.parted or node.child not in (EMPTY, BORN) or not self.child_replicas(world) >> n & 1:
            return
        first = world.parted // KINDS // RESTARTS + 1
        own, record = (n, node.run), world.record
        reserved = dict(world.splitters)[world.parted // KINDS] == own
        if (reserved or self.broken(NOT_RESERVED)) and node.child == BORN and node.csealed < first * RESTARTS:
            yield from self.seal_child(world, n, first * RESTARTS, None)
        if record is not None and world.etcd and world.left[CELECTIONS]:
            won = self.set(world, n, node, CELECTIONS, record=(record[0] + 1, own, record[2]))
            yield f"{n} wins the child's term {record[0] + 1}", won
        if record is not None and record[1] == own and node.csealed < record[0] * RESTARTS:
            yield from self.seal_child(world, n, record[0] * RESTARTS, None)
        epoch = max(node.csealed, first * RESTARTS) + 1
        if world.left[CCLAIMS] and node.crole == FOLLOWER and epoch % RESTARTS:
            yield from self.seal_child(world, n, epoch, CCLAIMS)

    def seal_child(self, world: World, n: int, epoch: int, spend: int | None) -> Iterator[tuple[str, World]]:
        """R3: a majority of answers, one of them born; the highest log is adopted."""
        for quorum in majorities(self.child_replicas(world), n):
            members = [world.nodes[q] for q in quorum]
            if any(not m.up or m.child not in (EMPTY, OVER, BORN) for m in members):
                continue
            if any(
                m.csealed > epoch or (m.csealed == epoch and not self.broken(NOT_RESERVED)) for m in members
            ):
                continue
            born = [q for q in quorum if world.nodes[q].child == BORN]
            if self.broken("R3 only born replicas count in the child's quorum") and len(born) < len(quorum):
                continue
            if not born and not self.broken("R3 nobody born in the child's quorum"):
                continue
            best = max(
                born or quorum, key=lambda q: (world.nodes[q].clog[-1:], len(world.nodes[q].clog), q == n)
            )
            owner = (n, world.nodes[n].run)
            known = dict(world.owners).get(epoch, owner)
            if known != owner:
                raise Violation(f"I1: epoch {_name(epoch)} of the child is owned by {known} and {owner}")
            owners = tuple(sorted({**dict(world.owners), epoch: owner}.items()))
            after = world._replace(owners=owners)
            for q in quorum:
                after = self.set(after, q, after.nodes[q]._replace(csealed=epoch, crole=FOLLOWER))
            source = world.nodes[best]
            log = (*source.clog, epoch)
            fresh = after.nodes[n]._replace(clog=log, child=source.child, crole=ELECTED)
            after = self.set(after, n, fresh, spend)
            yield f"{n} seals {quorum} for the child's {_name(epoch)}, adopts the log of {best}", after

    def lead_child(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node = world.nodes[n]
        if node.crole == FOLLOWER:
            return
        epoch, replicas = node.csealed, self.child_replicas(world)
        for m in SETS[replicas]:
            follower = world.nodes[m]
            if m == n or not follower.up or follower.csealed > epoch:
                continue
            early = self.broken("R18 answers as the child before that is durable") and follower.child == FORK
            if follower.child not in (EMPTY, OVER, BORN) and not early:
                continue
            fresh = follower._replace(csealed=epoch, clog=node.clog, child=node.child, crole=FOLLOWER)
            if early:
                fresh = fresh._replace(child=FORK)
            if fresh != follower:
                yield f"{m} gets the child's log of {n}", self.set(world, m, fresh)
        if node.crole == ELECTED:
            have = [m for m in SETS[replicas] if self.has_child(world.nodes[m], epoch, node.clog)]
            if is_majority(len(have), replicas):
                if node.child != BORN or common(world.told, node.clog) < len(world.told):
                    raise Violation(f"I3: {n} is active in the child without what is acknowledged")
                told = world.told if len(world.told) > len(node.clog) else node.clog
                after = self.set(world, n, node._replace(crole=ACTIVE), told=told)
                yield f"{n} is active in the child", self.check_reads(after)
        elif (
            world.etcd
            and world.left[CMOVES]
            and world.record is not None
            and world.record[1] == (n, node.run)
        ):
            for away in SETS[replicas]:
                if away != n and len(SETS[replicas]) > 2:
                    yield from self.move_child(world, n, away)

    @staticmethod
    def has_child(node: Node, epoch: int, log: Log) -> bool:
        return node.csealed == epoch and node.clog == log

    def move_child(self, world: World, n: int, away: int) -> Iterator[tuple[str, World]]:
        assert world.record is not None
        term, owner, replicas = world.record
        record = (term + 1, owner, replicas & ~(1 << away))
        moved = self.set(world, n, world.nodes[n], CMOVES, record=record)
        for text, after in self.seal_child(moved, n, (term + 1) * RESTARTS, None):
            yield f"the child is moved away from {away}: {text}", after

    # --- faults ------------------------------------------------------------------------------------------

    def faults(self, world: World) -> Iterator[tuple[str, World]]:
        for n in NODES:
            node = world.nodes[n]
            if not node.up:
                continue
            if world.left[CRASHES]:
                yield f"{n} crashes and starts again", self.set(world, n, self.crashed(node), CRASHES)
            if world.left[DEATHS]:
                dead = self.crashed(node)._replace(up=False)
                yield f"{n} goes down for good", self.set(world, n, dead, DEATHS)
            if world.left[FORCES] and world.etcd:
                yield from self.force(world, n, node)
        if world.etcd and world.left[OUTAGES]:
            yield "etcd goes away", self.set(world, 0, world.nodes[0], OUTAGES, etcd=False)
        if not world.etcd:
            yield "etcd is back", world._replace(etcd=True)

    def force(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """R19: the parent goes on with ``n`` alone; what its log lacks is lost, as was said. Not past an entry that split it
        and is known: by the child's record, or by a copy of the child somewhere. Of one that is not, nothing is
        left, and the intention, which stands, is carried out anew."""
        replicas = world.confs[-1]
        if not replicas >> n & 1 or node.gone or self.has_majority(world, replicas):
            return
        lacks = bool(world.parted) and not split_at(node.log)
        if lacks and self.is_known(world):
            if not self.broken(PAST_SPLIT):
                return
        elif lacks:
            world = world._replace(parted=0, told=())
        kept = world.said[: common(world.said, node.log)]
        forced = self.set(world, n, node, FORCES, confs=(*world.confs, 1 << n), said=kept)
        yield f"{n} goes on alone", forced._replace(winner=(n, node.run))

    @staticmethod
    def is_known(world: World) -> bool:
        """Whether anybody can tell an operator that the parent was split."""
        return world.record is not None or any(x.up and x.child != NONE for x in world.nodes)

    @staticmethod
    def crashed(node: Node) -> Node:
        child = {FORK: NONE, OVER: EMPTY}.get(node.child, node.child)
        clog = () if node.child == FORK else node.clog
        return node._replace(
            run=node.run + 1, applied=node.flushed, role=FOLLOWER, child=child, clog=clog, crole=FOLLOWER
        )

    # --- invariants ----------------------------------------------------------------------------------------

    def check_rows(self, world: World, n: int, what: str) -> World:
        """S3 and S1, where a replica gives up the parent's rows above the point: it holds them as the child's."""
        node = world.nodes[n]
        if not world.parted or not self.child_replicas(world) >> n & 1 or node.child == BORN:
            return world
        if node.gone or split_at(node.log[: node.flushed]):
            law = "S3" if "flushed" in what else "S1"
            raise Violation(f"{law}: {n} {what} and has nothing left of what is above the point")
        return world

    def check_reads(self, world: World) -> World:
        """I5: the parent's first leader, in the dark, must not answer for what the child has now."""
        node = world.nodes[0]
        reads = world.grants and node.role == ACTIVE and node.sealed == RESTARTS and node.up
        if reads and not self.is_closed(node):
            raise Violation("I5: 0 still reads above the point, where the child writes")
        return world

    def check_parted(self, world: World, n: int) -> World:
        """S3: who is active in the newest term has parted with what was split off, as everybody else has."""
        node = world.nodes[n]
        newest = node.sealed // RESTARTS == self.term(world)
        if newest and world.parted and not split_at(node.log):
            raise Violation(f"S3: {n} is active with all of the parent, part of which is the child")
        return world

    def check_service(self, world: World) -> None:
        """S2: what has a majority alive can be served again, without a further fault."""
        lower = self.has_majority(world, world.confs[-1])
        upper = self.has_majority(world, self.child_replicas(world)) if world.parted else lower
        if (lower or upper) and not self.recovers(world, lower, upper):
            halves = "the halves" if lower and upper else "the lower half" if lower else "the upper half"
            raise Violation(f"S2: a majority of {halves} is alive and never serves again")

    @staticmethod
    def has_majority(world: World, replicas: int) -> bool:
        return is_majority(sum(1 for n in SETS[replicas] if world.nodes[n].up), replicas)

    def serves(self, world: World, lower: bool, upper: bool) -> bool:
        """Whether both halves, or the one that is asked for, have a leader that nobody has superseded."""
        nodes = world.nodes
        top = max(node.sealed for node in nodes)
        parent = [x for x in nodes if x.up and x.role == ACTIVE and x.sealed == top]
        if world.parted:
            high = max(node.csealed for node in nodes)
            child = any(x.up and x.crole == ACTIVE and x.csealed == high for x in nodes)
            # who has proposed the entry must know what became of it
            return (bool(parent) or not lower) and (child or not upper)
        return any(not self.is_closed(x) for x in parent)

    def recovers(self, world: World, lower: bool, upper: bool) -> bool:
        """Whether some way of calm steps leads to service: depth first, what is known is not walked again."""
        ample = [0] * len(BUDGETS)
        ample[ELECTIONS] = ample[CELECTIONS] = 2
        if self.b.alone:
            ample[CLAIMS] = ample[CCLAIMS] = 2
        start = world._replace(left=tuple(ample), told=(), said=(), owners=(), intention=None)
        well = self.well[lower, upper]
        if start in well:
            return True
        seen, way = {start}, [(start, self.onward(start))]
        while way:
            state, ahead = way[-1]
            if state in well or self.serves(state, lower, upper):
                well.update(state for state, _ in way)
                return True
            for _, after in ahead:
                if after not in seen:
                    seen.add(after)
                    way.append((after, self.onward(after)))
                    break
            else:
                way.pop()
        return False

    def onward(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self.calm(world)
        if not world.etcd and not self.b.alone:
            yield "etcd is back", world._replace(etcd=True)


def _position(log: Log) -> tuple[int, int]:
    return (log[-1] // KINDS if log else 0, len(log))


def _name(epoch: int) -> str:
    return f"{epoch // RESTARTS}.{epoch % RESTARTS}"
