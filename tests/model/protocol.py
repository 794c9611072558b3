"""One partition of three replicas under the rules R1 to R8, R11, R12 and R16, as a state machine.

Everything that may happen may happen at any time: anybody campaigns (R9 is liveness only), messages
wait in the network for ever (so they come late, again, in any order, or never), leases expire, etcd
is away (nobody campaigns), processes crash and restart. Time is a count of ticks that all clocks
share: the margin of R4 and R8 is assumed, not modelled.

An epoch is ``term * RESTARTS + restart``. A log is a tuple of entries ``(epoch, write)``, write 0 the no-op.
What the rules keep durable survives a crash: sealed epoch and owner, the synced log, the commit index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.checker import Violation

RESTARTS = 4
#: R1 alone makes these two harmless
ANY_OWNER = "R2 two owners of a term, and R1 takes either"
SAME_AGAIN = "R12 the same epoch again, and R1 takes either"
#: mutations under which a message that the rules call spent may still be acted on
KEEP_ALL = ("R1 ", "R2 ", "R12 ")
NODES = (0, 1, 2)
FOLLOWER, SEALING, ACTIVATING, ACTIVE, RESIGNED = range(5)
ROLES = ("follower", "sealing", "activating", "active", "resigned")
NOBODY = (-1, 0)
Log = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bounds:
    """What a run explores. ``broken``: the rule left out (see mutations)."""

    terms: int = 2
    writes: int = 1
    crashes: int = 0
    ticks: int = 0
    grant: int = 1
    restarts: int = 0
    claims: bool = False
    handoff: bool = False
    unsynced: bool = False
    #: appends also of the last entry alone, and of all but the last
    tails: bool = False
    #: who may campaign or claim: fewer names, fewer states
    candidates: tuple[int, ...] = (1, 2)
    #: whose clients write
    proposers: tuple[int, ...] = (0, 1, 2)
    broken: str = ""


class Node(NamedTuple):
    """A replica. ``answers``: per node ``(epoch, length, until)`` of its log and grants; ``given``: per
    grantee ``(epoch, until)``; ``wait``: answers no SEAL before (R8); ``resigned``: epoch handed over."""

    sealed: int
    owner: tuple[int, int]
    run: int
    log: Log
    synced: int
    commit: int
    role: int
    resigned: int
    noop: int
    answers: tuple[tuple[int, int, int] | None, ...]
    match: tuple[int, ...]
    hold: tuple[int, ...]
    given: tuple[tuple[int, int] | None, ...]
    wait: int


class World(NamedTuple):
    """``committed``, ``acked``, ``owners``: what the invariants remember; no process sees them."""

    now: int
    term: int
    winner: tuple[int, int]
    nodes: tuple[Node, ...]
    net: frozenset[tuple[Any, ...]]
    committed: Log
    acked: frozenset[int]
    owners: tuple[tuple[int, tuple[int, int]], ...]
    crashes: int
    write: int


BLANK: tuple[Any, ...] = (None, None, None)


def initial(bounds: Bounds) -> World:
    """Node 0 leads term 1; its no-op is everywhere and committed."""
    epoch = RESTARTS
    log: Log = ((epoch, 0),)
    leader = Node(epoch, (0, 0), 0, log, 1, 1, ACTIVE, 0, 1, BLANK, (1, 1, 1), (0, 0, 0), BLANK, 0)
    other = Node(epoch, (0, 0), 0, log, 1, 1, FOLLOWER, 0, 0, BLANK, (0, 0, 0), (0, 0, 0), BLANK, 0)
    owners = ((epoch, (0, 0)),)
    world = World(0, 1, (0, 0), (leader, other, other), frozenset(), log, frozenset(), owners, 0, 1)
    return Protocol(bounds).set(world, 0, leader)


def position(log: Log, length: int | None = None) -> tuple[int, int]:
    at = len(log) if length is None else length
    return (log[at - 1][0] if at else 0, at)


def put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def quorum(count: int) -> bool:
    return 2 * count > len(NODES)


class Protocol:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, rule: str) -> bool:
        return self.b.broken == rule

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for n in NODES:
            yield from self.alone(world, n)
        for message in world.net:
            yield from self.receive(world, message)
        if world.now < self.b.ticks:
            yield "a tick", self.tick(world)

    def tick(self, world: World) -> World:
        """Time passes; what has run out is told apart from nothing no more."""
        now = world.now + 1
        world = world._replace(now=now)
        for n in NODES:
            node = world.nodes[n]
            node = node._replace(
                hold=tuple(h if h > now else 0 for h in node.hold),
                given=tuple(g if g and g[1] > now else None for g in node.given),
                answers=tuple(a if a is None or a[2] > now else (*a[:2], 0) for a in node.answers),
                wait=node.wait if node.wait > now else 0,
            )
            world = self.set(world, n, node)
        return world

    def set(self, world: World, n: int, node: Node, *sent: tuple[Any, ...], **more: Any) -> World:
        """``node`` is what ``n`` is now; what it has to say is in the network at once, which is no
        loss: a message may wait for ever."""
        net = world.net.union(sent, self.says(world, n, node))
        world = world._replace(nodes=put(world.nodes, n, node), net=net, **more)
        if not self.b.broken.startswith(KEEP_ALL):
            net = world.net
            world = world._replace(net=frozenset(m for m in net if not self.is_spent(world, m)))
            if len(world.net) == len(net):
                world = world._replace(net=net)
        return self.check(world)

    def is_spent(self, world: World, message: tuple[Any, ...]) -> bool:
        """True when no process will ever act on it again, by R1 and by what its receiver knows: to
        take it away merges states that differ in nothing. Not where R1 or an epoch check is broken."""
        kind: str = message[0]
        epoch: int = message[1]
        if kind in ("seal", "append", "beat"):
            return all(node.sealed > epoch for node in world.nodes)
        if kind == "handoff":
            return world.nodes[1].sealed > epoch
        owner, src = message[2], message[3]
        node = world.nodes[owner[0]]
        if node.sealed > epoch or node.run != owner[1] or node.role == FOLLOWER:
            return True
        if kind == "sealed":
            return bool(node.role not in (SEALING, ACTIVATING) or node.answers[src] is not None)
        if kind == "acked":
            return bool(message[4] <= node.match[src])
        if self.broken("R8 holds from receipt"):
            return False
        return bool(message[4] + self.b.grant <= max(world.now, node.hold[src]))

    def says(self, world: World, n: int, node: Node) -> list[tuple[Any, ...]]:
        """R5 and R8: what a leader sends."""
        if node.role not in (ACTIVATING, ACTIVE):
            return []
        epoch, owner = node.sealed, (n, node.run)
        said: list[tuple[Any, ...]] = []
        ends = {0, len(node.log) - 1} if self.b.tails else {0}
        for prev, until in [(prev, len(node.log)) for prev in ends] + [(0, end) for end in ends if end]:
            before, entries = position(node.log, prev)[0], node.log[prev:until]
            said.append(("append", epoch, owner, prev, before, entries, node.commit))
        if self.b.ticks:
            said.append(("beat", epoch, owner, world.now))
        return said

    def follow(self, world: World, story: Iterable[str]) -> World:
        """The world after exactly these steps. Raises KeyError when one is not possible."""
        for what in story:
            world = dict(self.steps(world))[what]
        return world

    # --- what a process does by itself --------------------------------------------------------

    def alone(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node, b = world.nodes[n], self.b
        if n in b.candidates and world.term < b.terms and node.role != RESIGNED:
            # R2: the transaction; without its comparison two may win one term
            yield (
                f"{n} wins term {world.term + 1}",
                world._replace(term=world.term + 1, winner=(n, world.term + 1)),
            )
        if world.winner[0] == n and world.winner[1] * RESTARTS > node.sealed:
            yield self.begin(world, n, world.winner[1] * RESTARTS)
        rival = n in b.candidates and world.term > 1 and world.winner[0] != n
        if self.broken(ANY_OWNER) and rival and world.term * RESTARTS > node.sealed:
            yield self.begin(world, n, world.term * RESTARTS)
        spare = node.sealed % RESTARTS < b.restarts
        if node.role == FOLLOWER and node.owner[0] == n and node.owner[1] != node.run and spare:
            again = node.sealed + (0 if self.broken(SAME_AGAIN) else 1)
            yield self.begin(world, n, again)  # R12
        elif b.claims and node.role == FOLLOWER and spare and n in b.candidates:
            yield self.begin(world, n, node.sealed + 1)  # R16
        if node.role == SEALING:
            yield from self.adopt(world, n)
        if node.role in (ACTIVATING, ACTIVE):
            yield from self.lead(world, n)
        if node.synced < len(node.log):
            yield f"{n} syncs", self.set(world, n, self.count_self(node._replace(synced=len(node.log)), n))
        if world.crashes < b.crashes:
            yield f"{n} crashes", self.crash(world, n)

    def begin(self, world: World, n: int, epoch: int) -> tuple[str, World]:
        """R1: sealed, owner and config durable in one write; then SEAL to every member."""
        node = world.nodes[n]
        resigned = node.resigned
        fresh = self.deposed(node)._replace(
            sealed=epoch, owner=(n, node.run), role=SEALING, resigned=resigned
        )
        return f"{n} begins {epoch}", self.set(world, n, fresh, ("seal", epoch, (n, node.run), resigned))

    @staticmethod
    def deposed(node: Node) -> Node:
        return node._replace(
            role=FOLLOWER, noop=0, answers=BLANK, match=(0, 0, 0), hold=(0, 0, 0), resigned=0
        )

    def crash(self, world: World, n: int) -> World:
        node = world.nodes[n]
        forgets = not self.b.ticks or self.broken("R8 a restart forgets grants")
        kept = self.deposed(node)._replace(
            run=node.run + 1,
            log=node.log[: node.synced],
            commit=min(node.commit, node.synced),
            given=BLANK,
            wait=0 if forgets else world.now + self.b.grant,
        )
        if self.broken("R1 the seal is not durable"):
            kept = kept._replace(sealed=RESTARTS, owner=(0, 0))
        return self.set(world, n, kept, crashes=world.crashes + 1)

    def adopt(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        """R3: a quorum answered: take the highest log among them, then append the no-op."""
        node = world.nodes[n]
        answered = [i for i in NODES if node.answers[i] is not None]
        alone = self.broken("R3 no quorum of seals")
        if node.answers[n] is None or not (quorum(len(answered)) or alone):
            return
        best = max(answered, key=lambda i: (node.answers[i][:2], i == n))  # type: ignore[index]
        if self.broken("R3 the own log is kept"):
            best = n
        source = world.nodes[best]
        if (source.sealed, source.owner) != (node.sealed, node.owner):
            return  # the pull is refused (R1)
        keep = 0
        while keep < min(len(node.log), len(source.log)) and node.log[keep] == source.log[keep]:
            keep += 1
        if keep < node.commit:
            raise Violation(f"I4: {n} would truncate to {keep}, below its commit {node.commit}")
        log = (*source.log, (node.sealed, 0))
        synced = len(source.log) if self.b.unsynced else len(log)
        fresh = node._replace(log=log, synced=synced, role=ACTIVATING, noop=len(log))
        owner = (n, node.run)
        known = dict(world.owners).get(node.sealed, owner)
        if known != owner:
            raise Violation(f"I1: epoch {node.sealed} is owned by {known} and {owner}")
        owners = tuple(sorted({**dict(world.owners), node.sealed: owner}.items()))
        yield f"{n} adopts the log of {best}", self.set(world, n, self.count_self(fresh, n), owners=owners)

    def count_self(self, node: Node, n: int) -> Node:
        """R6: the leader counts its own copy only when it is durable."""
        if node.role not in (ACTIVATING, ACTIVE):
            return node
        own = len(node.log) if self.broken("R6 counts itself before the sync") else node.synced
        return node._replace(match=put(node.match, n, own))

    def lead(self, world: World, n: int) -> Iterator[tuple[str, World]]:
        node, b, epoch = world.nodes[n], self.b, world.nodes[n].sealed
        index = sorted(node.match)[1]
        if self.broken("R6 commits by itself"):
            index = node.match[n]
        if index > node.commit and (
            node.log[index - 1][0] == epoch or self.broken("R6 commits an old epoch's entry by counting")
        ):
            acked = world.acked
            if node.role == ACTIVE:
                acked = acked | {w for _, w in node.log[:index] if w}
            yield (
                f"{n} commits {index}",
                self.set(
                    world,
                    n,
                    node._replace(commit=index),
                    acked=acked,
                    committed=self.commit(world, node.log[:index]),
                ),
            )
        if node.role == ACTIVATING and node.commit >= node.noop:
            passed = [
                i for i in NODES if (a := node.answers[i]) is not None and (a[2] <= world.now or a[2] == 0)
            ]
            if quorum(len(passed)) or self.broken("R4 does not wait"):
                yield f"{n} is active", self.activate(world, n)
        if node.role == ACTIVE:
            if world.write <= b.writes and n in b.proposers:
                grown = node._replace(log=(*node.log, (epoch, world.write)))
                if not b.unsynced:
                    grown = grown._replace(synced=len(grown.log))
                yield (
                    f"{n} proposes write {world.write}",
                    self.set(world, n, self.count_self(grown, n), write=world.write + 1),
                )
            if b.handoff and n == 0 and node.commit == len(node.log) and node.match[1] == len(node.log):
                role = ACTIVE if self.broken("R11 resigns and goes on") else RESIGNED
                yield f"{n} resigns for 1", self.set(world, n, node._replace(role=role), ("handoff", epoch))

    def activate(self, world: World, n: int) -> World:
        node = world.nodes[n]
        for at, entry in enumerate(world.committed):
            if entry[0] <= node.sealed and (at >= len(node.log) or node.log[at] != entry):
                raise Violation(f"I3: {n} is active in {node.sealed} without committed entry {at + 1}")
        return self.set(world, n, node._replace(role=ACTIVE, answers=BLANK))

    @staticmethod
    def commit(world: World, prefix: Log) -> Log:
        known = world.committed
        short = min(len(known), len(prefix))
        if known[:short] != prefix[:short]:
            raise Violation(f"I3: {prefix} is committed where {known} was")
        return max(known, prefix, key=len)

    # --- messages ------------------------------------------------------------------------------

    def receive(self, world: World, message: tuple[Any, ...]) -> Iterator[tuple[str, World]]:
        kind = message[0]
        if kind in ("seal", "append", "beat"):
            for n in NODES:
                node = world.nodes[n]
                after = getattr(self, "on_" + kind)(world, n, node, *message[1:])
                if after is not None and after != world:
                    yield f"{n} gets {kind} of {message[1]}", after
        elif kind == "handoff":
            node = world.nodes[1]
            if node.sealed == message[1] and node.role == FOLLOWER and node.resigned != message[1]:
                yield "1 hears of the hand-off", self.set(world, 1, node._replace(resigned=message[1]))
        else:
            after = getattr(self, "on_" + kind)(world, *message[1:])
            if after is not None and after != world:
                yield f"{message[2][0]} gets {kind} from {message[3]}", after

    def obeys(self, node: Node, epoch: int, owner: tuple[int, int]) -> bool:
        """R1, for a message that needs its epoch sealed."""
        if self.broken("R1 appends of old epochs are taken"):
            return epoch <= node.sealed
        return (node.sealed, node.owner) == (epoch, owner)

    def on_seal(
        self, world: World, n: int, node: Node, epoch: int, owner: tuple[int, int], resigned: int
    ) -> World | None:
        """R3, answering side."""
        if world.now < node.wait:
            return None  # R8
        lower = epoch < node.sealed and not self.broken("R1 an old epoch seals again")
        any_owner = self.b.broken in ("R1 two owners of an epoch", ANY_OWNER, SAME_AGAIN)
        rival = epoch == node.sealed and owner != node.owner and not any_owner
        if lower or rival:
            return None
        fresh = node
        if (epoch, owner) != (node.sealed, node.owner):
            fresh = self.deposed(node)._replace(sealed=epoch, owner=owner)
        left = 0
        for grantee, grant in enumerate(node.given):
            if grant is None or grant[1] <= world.now or grantee == owner[0]:
                continue
            excused = resigned and (grant[0] == resigned or self.broken("R11 excuses other epochs"))
            if not excused:
                left = max(left, grant[1] - world.now)
        if self.broken("R3 reports no grants"):
            left = 0
        return self.set(world, n, fresh, ("sealed", epoch, owner, n, *position(fresh.log), left))

    def on_sealed(
        self, world: World, epoch: int, owner: tuple[int, int], src: int, last: int, length: int, left: int
    ) -> World | None:
        n = owner[0]
        node = world.nodes[n]
        if (node.sealed, node.owner, node.run) != (epoch, owner, owner[1]) or node.role not in (
            SEALING,
            ACTIVATING,
        ):
            return None
        if node.answers[src] is not None:
            return None
        until = world.now + left if left else 0  # R4: since the answer arrived
        return self.set(world, n, node._replace(answers=put(node.answers, src, (last, length, until))))

    def on_append(
        self, world: World, n: int, node: Node, epoch: int, owner: tuple[int, int], prev: int, prev_epoch: int,
        entries: Log, commit: int,
    ) -> World | None:  # fmt: skip
        """R5, receiving side; durable at once: only the leader's own copy may lag behind."""
        if n == owner[0] or not self.obeys(node, epoch, owner):
            return None
        log = node.log
        if prev > len(log):
            return None
        if prev > node.commit and log[prev - 1][0] != prev_epoch and not self.broken("R5 compares no epochs"):
            return None
        for at, entry in enumerate(entries, prev):
            if at < len(log) and log[at] != entry:
                if self.broken("R5 keeps what conflicts"):
                    continue
                if at < node.commit:
                    raise Violation(f"I4: {n} would truncate to {at}, below its commit {node.commit}")
                log = log[:at]
            if at >= len(log):
                log = (*log, entry)
        match = prev + len(entries)
        known = len(log) if self.broken("R6 commits beyond the match") else match
        fresh = node._replace(log=log, synced=len(log), commit=max(node.commit, min(commit, known)))
        if fresh.commit > node.commit:
            self.commit(world, fresh.log[: fresh.commit])
        return self.set(world, n, fresh, ("acked", epoch, owner, n, match))

    def on_acked(
        self, world: World, epoch: int, owner: tuple[int, int], src: int, match: int
    ) -> World | None:
        n = owner[0]
        node = world.nodes[n]
        if (node.sealed, node.run) != (epoch, owner[1]) or node.role not in (ACTIVATING, ACTIVE):
            return None
        if match <= node.match[src]:
            return None
        return self.set(world, n, node._replace(match=put(node.match, src, match)))

    def on_beat(
        self, world: World, n: int, node: Node, epoch: int, owner: tuple[int, int], sent: int
    ) -> World | None:
        """R8, giving side: promises from receipt."""
        if n == owner[0] or (node.sealed, node.owner) != (epoch, owner):
            return None
        given = put(node.given, owner[0], (epoch, world.now + self.b.grant))
        return self.set(world, n, node._replace(given=given), ("grant", epoch, owner, n, sent))

    def on_grant(self, world: World, epoch: int, owner: tuple[int, int], src: int, sent: int) -> World | None:
        """R8, holding side: counts from its own send time."""
        n = owner[0]
        node = world.nodes[n]
        if (node.sealed, node.owner, node.run) != (epoch, owner, owner[1]) or node.role == FOLLOWER:
            return None
        since = world.now if self.broken("R8 holds from receipt") else sent
        until = since + self.b.grant
        if until <= node.hold[src]:
            return None
        return self.set(world, n, node._replace(hold=put(node.hold, src, until)))

    # --- invariants -------------------------------------------------------------------------------

    def check(self, world: World) -> World:
        """I2, I5 and I6 in every state; I1, I3 and I4 where they could break."""
        nodes = world.nodes
        for a in NODES:
            for b in NODES[:a]:
                one, other = nodes[a].log, nodes[b].log
                for at in range(min(len(one), len(other)) - 1, -1, -1):
                    if one[at][0] == other[at][0]:
                        if one[: at + 1] != other[: at + 1]:
                            raise Violation(f"I2: {a} has {one}, {b} has {other}")
                        break
        for n in NODES:
            node = nodes[n]
            if node.role != ACTIVE or not self.b.ticks:
                continue
            held = 1 + sum(1 for i in NODES if i != n and node.hold[i] > world.now)
            if quorum(held) or self.broken("R8 reads without grants"):
                has = {w for _, w in node.log[: node.commit]}
                if not world.acked <= has:
                    raise Violation(
                        f"I5: {n} reads {sorted(has)} in {node.sealed}, {sorted(world.acked)} is acknowledged"
                    )
        return world
