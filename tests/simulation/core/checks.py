"""The invariants of the simulated world, checked in every step, and the history at the end."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from metastore.core.messages import Appended, Process
from metastore.records import record_versions
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.core.clients import Operation
    from tests.simulation.core.node import Node
    from tests.simulation.core.world import World

VALUE = re.compile(rb"<[0-9]+-[0-9]+>")


class Checks:
    """What no process sees: every entry, every state, every operation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners: dict[int, Process] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.states: dict[int, bytes] = {}
        self.sealed_seen: dict[str, int] = {}
        self.history: list[Operation] = []
        #: when something was acknowledged, and its entry or the last before it
        self.acknowledged: tuple[list[int], list[int]] = ([], [])

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
            raise Violation(f"states: those of two replicas differ after entry {index}")

    def activated(self, node: Node, epoch: int) -> None:
        log = node.replica.log
        for index, (committed_epoch, _) in self.committed.items():
            if committed_epoch > epoch:
                continue  # a leader that woke up late need not know what came after it
            if index > log.last_index or (index >= log.base_index and log.epoch_at(index) != committed_epoch):
                raise Violation(f"I3: {node.name} is active in {epoch:x} without committed entry {index}")

    def reads_alone(self, node: Node) -> None:
        """I6: no earlier leader may still read once a later one is active."""
        epoch = node.replica.sealed_epoch
        for other in self.world.nodes.values():
            replica = other.replica
            if other.up and replica.sealed_epoch < epoch and replica.can_read(other.now()):
                raise Violation(
                    f"I6: {node.name} is active in {epoch:x}, and {other.name} still reads in "
                    f"{replica.sealed_epoch:x}"
                )

    def saw_sealed(self, node: Node, epoch: int) -> None:
        """The seal of ``epoch`` is durable at ``node``."""
        self.sealed_seen[node.name] = max(self.sealed_seen.get(node.name, 0), epoch)

    def saw_acknowledged(self, index: int) -> None:
        times, entries = self.acknowledged
        times.append(self.world.now)
        entries.append(max(index, entries[-1] if entries else 0))

    def check_node(self, node: Node) -> None:
        if self.sealed_seen.get(node.name, 0) > node.replica.sealed_epoch:
            raise Violation(f"I7: the sealed epoch of {node.name} went down")
        self.check_age(node)

    def check_age(self, node: Node) -> None:
        """R8: a replica has everything that was acknowledged longer ago than the age that it tells."""
        now = node.now()
        age_ns = node.replica.age_ns(now)
        if age_ns is None:
            return
        moment = int((now - age_ns - node.offset) / node.rate) - 2  # in true time
        times, entries = self.acknowledged
        before = bisect_left(times, moment)
        if before and node.applied < entries[before - 1]:
            raise Violation(
                f"stale: {node.name} ({node.replica.role}) is at entry {node.applied} and says that it is {age_ns} ns "
                f"old; {entries[before - 1]} was acknowledged {moment - times[before - 1]} ns before that"
            )

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
        for _, payload in self.committed.values():
            for value in VALUE.findall(payload):
                values[value] = values.get(value, 0) + 1
        doubled = [v for v, n in values.items() if n > 1]
        if doubled:
            raise Violation(f"I5: {doubled[0]!r} was applied {values[doubled[0]]} times")
