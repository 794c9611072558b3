"""etcd in the simulated world: one config, one leader key, leases; reached with delay, or away."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from metastore.core import effects as fx
from metastore.core.events import CampaignEnded
from metastore.core.replica import ACTIVE
from metastore.core.settings import MS
from metastore.layout import ConfigRecord, LeaderRecord, term_of

if TYPE_CHECKING:
    from tests.simulation.core.node import Node
    from tests.simulation.core.world import World

LEASE_NS = 700 * MS
P = 0


class Etcd:
    """Config and leader keys with revisions; leases by node process."""

    def __init__(self, world: World, members: tuple[tuple[str, str], ...]) -> None:
        self.world = world
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

    def tick(self) -> None:
        """Leases are renewed and run out; nodes see what there is."""
        world = self.world
        if self.up:
            for node in world.nodes.values():
                if node.up and world.now >= node.paused_until:
                    self.leases[node.me.node + node.me.incarnation] = world.now + LEASE_NS
            for owner in [o for o, until in self.leases.items() if until < world.now]:
                del self.leases[owner]
                if self.leader_owner == owner:
                    self.leader, self.leader_owner = None, ""
        for node in world.nodes.values():
            if node.up:
                world.after(world.random.randrange(20 * MS), node, node.see_etcd)
                world.after(world.random.randrange(20 * MS), node, partial(self.put_back, node))
        world.at(60 * MS, self.tick)

    def put_back(self, node: Node) -> None:
        """R12: a leader restores its key at its own epoch, if config still names it."""
        replica = node.replica
        owner = node.me.node + node.me.incarnation
        if not self.up or owner not in self.leases or replica.role != ACTIVE:
            return
        if self.config.leader != node.name or term_of(self.config.epoch) != term_of(replica.sealed_epoch):
            return
        if self.leader is None or LeaderRecord.from_json(self.leader).node == node.name:
            self.leader = LeaderRecord(node.name, node.me.incarnation, replica.sealed_epoch).to_json()
            self.leader_owner = owner

    def campaign(self, node: Node, effect: fx.Campaign) -> None:
        """R2: the request travels, then its answer."""
        world, random = self.world, self.world.random
        mine = LeaderRecord(node.name, node.me.incarnation, effect.new.epoch).to_json()
        owner = node.me.node + node.me.incarnation

        def done(won: bool) -> None:
            new, revision = (effect.new, self.config_mod) if won else (None, 0)
            node.do(CampaignEnded(P, new, revision))
            node.run()

        def arrive() -> None:
            won = self.up and self.elect(effect.expect_mod_revision, effect.new, effect.replace, mine, owner)
            # an answer that is lost: the node reads again, later, and finds what is there
            late = random.randrange(150 * MS) if random.random() < 0.2 else random.randrange(5 * MS)
            world.after(1 + late, node, lambda: done(won and self.config == effect.new))

        world.at(1 + random.randrange(5 * MS), arrive)
