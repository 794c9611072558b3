"""Clients of the simulated world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metastore.core.replica import ACTIVE
from metastore.core.settings import MS
from metastore.operations import GET, PUT
from metastore.records import record_versions
from tests.simulation.core.etcd import P
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.core.world import World


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


class Client:
    """One client: one operation at a time, retried with the same request id until it ends.

    Odd ones read, often, and go to the oldest of several leaders: what is stale they find."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.id = b"c%015d" % number
        self.seq = 0
        self.last_seen = 0
        self.reader = number % 2 == 1
        self.stopped = False
        self.idle = False

    def next(self) -> None:
        world, random = self.world, self.world.random
        if self.stopped:
            self.idle = True
            return
        key = b"\0" * 8 + b"ns\0k%d" % random.randrange(3)
        op = Operation("read" if self.reader or random.random() < 0.3 else "write", key, world.now)
        if op.kind == "write":
            self.seq += 1
            op.value = b"<%s-%d>" % (self.id[-3:], self.seq)
            request = [0, PUT, P, key, self.seq, self.seq, self.last_seen, None, op.value, "", 0]
        else:
            request = [0, GET, P, key, 0, None]
        world.checks.history.append(op)
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
            if not answered[0] and random.random() > (0 if world.healed else world.plan.loss):
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
                self.last_seen = max(self.last_seen, result[2])
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
