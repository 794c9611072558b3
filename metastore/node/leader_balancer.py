"""Leaders spread evenly by themselves, slowly; and away from a node that is to hold none (R11).

Every node minds its own: now and then the one that leads at least two more than another replica of one of
its partitions hands that one over. It goes by the topology's leaders, which may be a moment old: at worst a
partition changes hands once too often. A node that lost leaders by silence gets none for a while (core.lapses).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from random import Random
from typing import NamedTuple, Protocol

from metastore.clock import now_ns
from metastore.core.events import TransferWanted
from metastore.core.replica import ACTIVE
from metastore.node.ports import HasConfig, HasCore, HasLinks, HasPartitions, HasTopology, Stops


class Led(NamedTuple):
    """A partition led here, and the members that could take it over now."""

    p: int
    targets: tuple[str, ...]


class HandOver(NamedTuple):
    p: int
    to: str


def next_hand_over(
    me: str, led: Iterable[Led], leads: Mapping[str, int], drained: Collection[str]
) -> HandOver | None:
    """What to hand over now, None = nothing. ``leads``: how many partitions each node leads. Pure."""
    away = me in drained
    mine = leads.get(me, 0)
    choices = [
        (leads.get(to, 0), part.p, to)
        for part in led
        for to in part.targets
        if to not in drained and (away or leads.get(to, 0) + 2 <= mine)
    ]
    if not choices:
        return None
    _, p, to = min(choices)
    return HandOver(p, to)


class Elections(Protocol):
    """What this needs of the control plane."""

    @property
    def drained(self) -> set[str]:
        """Nodes that are to hold nothing."""

    def can_elect(self) -> bool:
        """Whether etcd answers and this node's lease is alive, as far as is known."""


class Here(HasConfig, HasCore, HasPartitions, HasLinks, HasTopology, Stops, Protocol):
    """What this needs of the node."""

    @property
    def control(self) -> Elections: ...


class LeaderBalancer:
    """See the module. Called at every tick."""

    def __init__(self, node: Here) -> None:
        self.node = node
        self._random = Random(random.random())
        self._again_ns = now_ns() + self._pause_ns()
        #: peer -> since when it is connected; one that comes and goes gets no leaders
        self._since: dict[str, int] = {}

    def _pause_ns(self) -> int:
        """With jitter, so that two nodes seldom give at once."""
        return int(self.node.config.leader_spread_s * 1e9 * self._random.uniform(0.7, 1.3))

    def tick(self, now: int) -> None:
        node = self.node
        connected = node.links.connected()
        self._since = {n: self._since.get(n, now) for n in connected}
        ctx = node.core.ctx
        # who has no room for more leads nothing while others have some
        closed = node.control.drained | ctx.peer_room.keys() | ({node.config.node} if ctx.room else set())
        away = node.config.node in closed
        if not node.config.leader_spread_s and not away:
            return
        if now < self._again_ns and not away:
            return
        self._again_ns = now + self._pause_ns()
        if node.stopping or node.core.ctx.moves_paused or not node.control.can_elect():
            return
        me = node.config.node
        leads = dict(node.topology.led)
        leads[me] = sum(h.replica.role == ACTIVE for h in node.partitions.values())
        found = next_hand_over(me, self._led(now, away), leads, closed)
        if found is not None:
            node.core.handle(now, TransferWanted(found.p, found.to))

    def _led(self, now: int, away: bool) -> list[Led]:
        steady_ns = 0 if away else int(self.node.config.leader_spread_s * 1e9)
        led, lapses = [], self.node.core.ctx.lapses
        for p, partition in self.node.partitions.items():
            replica, term = partition.replica, partition.replica.term
            if replica.role != ACTIVE or term is None or replica.move is not None or term.config.joint:
                continue
            if not away and now - term.started_ns < steady_ns:
                continue
            last = replica.log.last_index
            targets = tuple(
                n
                for n, _ in term.config.members()
                if n in self._since
                and now - self._since[n] >= steady_ns
                and (away or not lapses.waits_ns(now, n))
                and term.progress[n].sealed
                and last - term.progress[n].match <= 64
            )
            if targets:
                led.append(Led(p, targets))
        return led
