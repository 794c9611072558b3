"""A replica is caught up by a snapshot (R17), while leaders change and it may crash at any point, as a state machine.

Three replicas. Node 0 leads epoch 1, and one election may make another the leader of epoch 2: it seals a majority and adopts
the highest log among it, in one step. A log is sent whole where it reaches back far enough, else a snapshot of the sender's
applied state is, which may come late. What is in a log is durable at once; the switch is one transaction. What a leader
was told of its followers' logs it believes until it ends.

An entry is the epoch that made it and whether it is the first of that leader or of a client; a history is a tuple of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tests.model.checker import Violation

NODES = (0, 1, 2)
#: found to break nothing: what a snapshot stands for is committed without whoever needs it, and is in the log of every
#: later leader
ANY_EPOCH = "R1 a snapshot of an earlier epoch is switched in"
EARLY = "R17 it is acknowledged before it is switched in"
LOG_FIRST = "R17 the old log goes before the switch"
History = tuple[int, ...]


@dataclass(frozen=True)
class Bounds:
    """What a run explores. ``broken``: the clause left out."""

    writes: int = 1
    elections: int = 0
    snapshots: int = 1
    compactions: int = 1
    crashes: int = 0
    broken: str = ""


class Node(NamedTuple):
    """``state``: what it holds, ``at``: the position that it says it stands at; ``base``: where the log begins, ``log``: what
    follows; ``switching``: what is staged and agreed to; ``void``: what the log had before a switch."""

    sealed: int
    leads: bool
    commit: int
    state: History
    at: int
    base: int
    log: History
    switching: History | None
    void: History

    @property
    def end(self) -> int:
        return self.base + len(self.log)

    def full(self) -> History:
        """All that it has or had, as its state and its log say."""
        return self.state[: self.base] + self.log


class World(NamedTuple):
    """``told``: (epoch, node, up to where it has the leader's log, as that was told); ``sent``: snapshots on their way
    (epoch, to, history); ``committed``: what the invariants remember; ``left``: budgets."""

    nodes: tuple[Node, ...]
    told: frozenset[tuple[int, int, int]]
    sent: frozenset[tuple[int, int, History]]
    committed: History
    left: tuple[int, ...]


WRITES, ELECTIONS, SNAPSHOTS, COMPACTIONS, CRASHES = range(5)


def initial(bounds: Bounds) -> World:
    """Node 0 leads epoch 1; node 2 has a suffix that an earlier leader left alone."""
    empty = Node(0, False, 0, (), 0, 0, (), None, ())
    leader = empty._replace(sealed=1, leads=True, log=(1,))
    nodes = (leader, empty, empty._replace(log=(0, 0)))
    left = (bounds.writes, bounds.elections, bounds.snapshots, bounds.compactions, bounds.crashes)
    return World(nodes, frozenset({(1, 0, 1)}), frozenset(), (), left)


def common(one: History, other: History) -> int:
    at, end = 0, min(len(one), len(other))
    while at < end and one[at] == other[at]:
        at += 1
    return at


class Snapshots:
    """The steps of a world within ``bounds``."""

    def __init__(self, bounds: Bounds) -> None:
        self.b = bounds

    def broken(self, clause: str) -> bool:
        return self.b.broken == clause

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for n, node in enumerate(world.nodes):
            if node.leads:
                yield from self.lead(world, n, node)
            if node.commit > node.at and node.end >= node.commit and node.at == len(node.state):
                applied = node._replace(state=node.full()[: node.commit], at=node.commit)
                yield f"{n} applies up to {node.commit}", self.set(world, n, applied)
            if world.left[COMPACTIONS] and node.at > node.base and node.switching is None:
                log = node.log[node.at - node.base :]
                yield (
                    f"{n} compacts to {node.at}",
                    self.set(world, n, node._replace(base=node.at, log=log), COMPACTIONS),
                )
            if node.switching is not None:
                yield from self.switch(world, n, node, node.switching)
            if world.left[CRASHES]:
                yield f"{n} crashes and starts again", self.set(world, n, self.restarted(node), CRASHES)
            if world.left[ELECTIONS] and not node.leads and node.switching is None:
                yield from self.elect(world, n, node)
        for snapshot in world.sent:
            yield from self.arrive(world, *snapshot)

    def set(self, world: World, n: int, node: Node, spend: int | None = None) -> World:
        """Raises Violation when what a node says of itself is not so."""
        whole = len(node.state) == node.at and node.state == world.committed[: node.at]
        if not whole and node.switching is None:
            raise Violation(f"I3: the state of {n} is not what its position {node.at} says")
        if node.commit < world.nodes[n].commit and spend != CRASHES:
            raise Violation(f"I4: {n} goes back from {world.nodes[n].commit} to {node.commit}")
        epochs = (*node.state[: node.base][-1:], *node.log)
        if any(later < earlier for earlier, later in pairwise(epochs)):
            raise Violation(f"I2: epochs fall along the log of {n}")
        left = world.left
        if spend is not None:
            left = (*left[:spend], left[spend] - 1, *left[spend + 1 :])
        nodes = (*world.nodes[:n], node, *world.nodes[n + 1 :])
        said = world.committed
        if sum(1 for other in nodes if other.full()[: len(said)] == said) < 2:
            raise Violation(f"I3: {said} is committed, and no majority has it")
        return world._replace(nodes=nodes, left=left)

    # --- the leader ------------------------------------------------------------------------------------

    def lead(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        epoch = node.sealed
        if world.left[WRITES]:
            grown = self.set(world, n, node._replace(log=(*node.log, epoch)), WRITES)
            yield f"{n} proposes", self.tell(grown, epoch, n, node.end + 1)
        for f, other in enumerate(world.nodes):
            if f != n and other.sealed <= epoch:
                yield from self.replicate(world, n, f)
        for upto in range(len(world.committed) + 1, node.end + 1):
            having = sum(1 for f in NODES if (epoch, f, upto) in world.told)
            if having >= 2 and node.full()[upto - 1] == epoch:
                full = node.full()[:upto]
                if full[: len(world.committed)] != world.committed:
                    raise Violation(f"I3: {n} commits {full} where {world.committed} was")
                after = self.set(world._replace(committed=full), n, node._replace(commit=upto))
                yield f"{n} commits {upto}", after
        if node.commit < len(world.committed) and node.full()[: len(world.committed)] == world.committed:
            yield (
                f"{n} knows what is committed",
                self.set(world, n, node._replace(commit=len(world.committed))),
            )

    @staticmethod
    def tell(world: World, epoch: int, n: int, upto: int) -> World:
        return world._replace(told=world.told | {(epoch, n, i) for i in range(1, upto + 1)})

    def replicate(self, world: World, n: int, f: int) -> Iterator[tuple[str, World]]:
        node, other = world.nodes[n], world.nodes[f]
        full, epoch = node.full(), node.sealed
        same = common(full, other.full())
        if other.switching is not None and not self.broken("R17 appends are taken while it is switched in"):
            return
        if same >= node.base and (
            same < node.end or other.end > node.end or (epoch, f, node.end) not in world.told
        ):
            if same < other.commit:
                raise Violation(f"I4: {f} truncates to {same}, below its commit index {other.commit}")
            fresh = other._replace(sealed=epoch, leads=False, log=full[other.base :])
            yield f"{f} takes the log of {n}", self.tell(self.set(world, f, fresh), epoch, f, node.end)
        elif same >= node.base and other.commit < node.commit:
            yield f"{f} hears what is committed", self.set(world, f, other._replace(commit=node.commit))
        if same < node.base and world.left[SNAPSHOTS]:
            what = node.state
            if self.broken("R17 a snapshot has what is not committed"):
                what = full
            sealed = other._replace(sealed=epoch, leads=False)
            after = self.set(world, f, sealed, SNAPSHOTS)
            yield (
                f"{n} sends {f} a snapshot at {len(what)}",
                after._replace(sent=after.sent | {(epoch, f, what)}),
            )

    # --- who gets it -------------------------------------------------------------------------------------

    def arrive(self, world: World, epoch: int, f: int, what: History) -> Iterator[tuple[str, World]]:
        """It is staged; whether it is of use is decided now."""
        node, at = world.nodes[f], len(what)
        rest = world._replace(sent=world.sent - {(epoch, f, what)})
        if node.switching is not None or (node.sealed != epoch and not self.broken(ANY_EPOCH)):
            yield f"{f} discards the snapshot of {epoch}", rest
            return
        low = at <= node.commit and not self.broken("R17 a snapshot below the commit index is switched in")
        full = node.full()
        holds = len(full) >= at > 0 and full[at - 1] == what[-1] and at >= node.base
        if self.broken("R17 a log that holds its position is thrown away"):
            holds = False
        if self.broken("R17 a snapshot below the commit index is switched in") and at <= node.commit:
            holds = False
        if low or holds:
            yield f"{f} has what the snapshot stands for", self.tell(rest, epoch, f, min(at, node.end))
            return
        after = self.set(rest, f, node._replace(switching=what))
        if self.broken(EARLY):
            after = self.tell(after, node.sealed, f, at)
        yield f"{f} agrees to the snapshot at {at}", after

    def switch(self, world: World, f: int, node: Node, what: History) -> Iterator[tuple[str, World]]:
        """One transaction: state, position, and the log that begins there."""
        at = len(what)
        if self.broken(LOG_FIRST) and node.end > node.at:
            kept = node.log[: node.at - node.base]
            yield f"{f} drops its log", self.set(world, f, node._replace(log=kept))
        if self.broken("R17 the state is switched before its position") and node.state != what:
            yield f"{f} has the state of {at}", self.set(world, f, node._replace(state=what))
            return
        void = node.full()[at:] if node.end > at else ()
        done = node._replace(state=what, at=at, base=at, log=(), commit=at, switching=None, void=void)
        yield f"{f} switches to {at}", self.tell(self.set(world, f, done), node.sealed, f, at)

    def restarted(self, node: Node) -> Node:
        """What is staged is gone; the log is what is durable of it. (The leader of epoch 1 does not go on.)"""
        log = node.log
        if self.broken("R17 what the log had before the switch is found again") and not log:
            log = node.void
        commit = max(node.at, node.base)
        return node._replace(leads=False, commit=commit, switching=None, void=(), log=log)

    # --- another leader ------------------------------------------------------------------------------------

    def elect(self, world: World, n: int, node: Node) -> Iterator[tuple[str, World]]:
        """R3: of a majority that answers SEAL, the highest log. Who switches a snapshot in does not answer."""
        for m, other in enumerate(world.nodes):
            if m == n or other.sealed >= 2 or node.sealed >= 2 or other.switching is not None:
                continue
            best = max((other, node), key=_position)
            history = (*best.full(), 2)
            if history[: len(world.committed)] != world.committed:
                raise Violation(f"I3: {n} leads epoch 2 without {world.committed}")
            mine = node._replace(sealed=2, leads=True)
            # what it lacks comes as a log or, where that does not reach back so far, by a snapshot: in one step here
            if common(node.full(), best.full()) >= best.base:
                mine = mine._replace(log=history[mine.base :])
            else:
                mine = mine._replace(
                    state=best.state,
                    at=best.at,
                    base=best.at,
                    log=history[best.at :],
                    commit=max(node.commit, best.at),
                )
            after = self.set(world, m, other._replace(sealed=2, leads=False))
            after = self.set(after, n, mine, ELECTIONS)
            yield f"{n} seals {m}, and leads epoch 2", self.tell(after, 2, n, len(history))


def _position(node: Node) -> tuple[int, int]:
    full = node.full()
    return (full[-1] if full else 0, len(full))
