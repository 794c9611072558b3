"""Why a partition does not serve an operation, as the error that its client is answered with."""

from __future__ import annotations

from typing import Final

from metastore.clock import now_ns
from metastore.core.messages import FULL, LOW
from metastore.core.quorum import is_quorum
from metastore.core.replica import ACTIVE, RESIGNING
from metastore.errors import (
    CorruptState,
    DiskLow,
    MetastoreError,
    Moved,
    NotLeader,
    Overloaded,
    ShuttingDown,
    TooStale,
    Unavailable,
)
from metastore.operations import ID_AT, Op, adds, is_local, is_read
from metastore.partition.ports import ReplySink
from metastore.partition.state import PROPOSING, PartitionState
from metastore.partition.waiters import error_result
from metastore.topology import placement_to_plain

#: of partitions told with an error: beyond it the topology has to be asked for
MAX_FAMILY: Final = 64


class Refusals:
    """See the module."""

    def __init__(self, state: PartitionState) -> None:
        self.state = state
        self.p, self.replica, self.around = state.p, state.replica, state.around
        self.me = state.replica.ctx.me.node

    # --- where it is --------------------------------------------------------------------------

    def elsewhere(self) -> MetastoreError:
        """For a key, or a range, that this partition does not hold: with what was split off it, as far as is known here."""
        text = f"partition {self.p} does not hold the whole key range of this operation; refresh the topology"
        family = self.around.family(self.p) if self.state.machine.splits else []
        if not 1 < len(family) <= MAX_FAMILY:  # a part of it would leave a gap
            return Moved(text, partition=self.p)
        return Moved(text, partition=self.p, family=[placement_to_plain(q) for q in family])

    def not_leader(self) -> MetastoreError:
        """For what only a leader may do, when this replica is none."""
        replica, around = self.replica, self.around
        leader = replica.leader_node
        if around.stopping and leader == self.me:
            return ShuttingDown("this node is stopping", retry_after_s=0.1)
        missing = self.missing(now_ns())
        if missing:
            return self.no_quorum(missing)
        if replica.role == RESIGNING or leader == self.me:
            return Unavailable(
                f"partition {self.p}: leadership is {replica.role} here", retry_after_s=0.2, partition=self.p
            )
        without = not replica.ctx.settings.claim_without_etcd and not around.can_elect()
        if without and replica.leader_is_lost(now_ns()):
            return Unavailable(
                f"partition {self.p}: its leader {leader} is lost, and etcd does not answer, so no other can be elected; "
                "stale reads are served",
                retry_after_s=2,
                partition=self.p,
                final=True,
            )
        return NotLeader(
            f"partition {self.p} is led by {leader}",
            partition=self.p,
            epoch=replica.sealed_epoch,
            leader=leader,
            rpc=around.address_of(leader),
        )

    # --- no quorum ----------------------------------------------------------------------------

    def missing(self, now: int) -> list[str]:
        """The replicas that are away while without them there is no quorum, as seen from here for longer than
        an election would take; none = there may be one."""
        replica, term = self.replica, self.replica.term
        patience = 2 * replica.ctx.settings.suspect_after_ns
        config = replica.config if term is None else term.config
        if config is None:
            return []
        members = {n for n, _ in config.members()}
        if term is not None and replica.role in PROPOSING:
            if replica.has_quorum(now):
                return []
            away = {n for n in members if now - term.acked_at_ns.get(n, 0) >= patience}
        else:
            away = {n for n in members if self.around.away_for_s(n) * 1e9 >= patience}
        away.discard(self.me)
        return [] if is_quorum(config, members - away) else sorted(away)

    def no_quorum(self, missing: list[str]) -> Unavailable:
        """The refusal of what needs a quorum while those are away. ``final``: this replica knows no better."""
        return Unavailable(
            f"partition {self.p} has no quorum of its replicas: {self.me} cannot reach "
            f"{', '.join(missing)}; stale reads are served",
            retry_after_s=1,
            partition=self.p,
            missing=missing,
            final=True,
        )

    # --- no room ------------------------------------------------------------------------------

    def no_room(self, op: Op) -> MetastoreError | None:
        """Why a write is refused for want of room; None = it is not. What frees room, or ends a lock, goes on
        as long as anything can be logged; so does everything once somebody leads who has room."""
        replica = self.replica
        if replica.role != ACTIVE or is_read(op):
            return None
        room, low = replica.ctx.room, replica.short_of_room(LOW)
        if replica.short_of_room(FULL):
            return self.no_room_at_all()
        if not low or not adds(op):
            return None
        elif room and self.target_with_room():
            text = f"the disk of {self.me} is nearly full; partition {self.p} is being handed to a node that has room"
            return Overloaded(text, retry_after_s=0.3)
        else:
            own = f": {self.around.room_text()}" if room else " (disk_low_mib)"
            what = f"partition {self.p} accepts deletes only, since the disks of {', '.join(low)} are nearly full{own}"
        text = f"{what}; delete records, or make room on the disks: cellctl doctor"
        return DiskLow(text, nodes=low, retry_after_s=10)

    def no_room_at_all(self) -> DiskLow | None:
        """Why nothing can be logged: this leader's disk is full, or those of so many others are that no quorum can take
        an entry. Whatever was proposed would wait, and could come true long after everybody has given up."""
        full = self.replica.short_of_room(FULL)
        if not full:
            return None
        if self.replica.ctx.room == FULL:
            what = f"the disk of {self.me} is full, so nothing can be written: {self.around.room_text()}"
        else:
            what = (
                f"the disks of {', '.join(full)} are full, so no quorum of partition {self.p} can log a write"
            )
        return DiskLow(f"{what}; make room on the disks: cellctl doctor", nodes=full, retry_after_s=10)

    def target_with_room(self) -> bool:
        """Whether a replica that can be led from has room (node.leader_balancer hands over to it)."""
        around, ctx, term = self.around, self.replica.ctx, self.replica.term
        if term is None or ctx.moves_paused or not around.can_elect() or term.config.joint:
            return False
        low = ctx.peer_room
        return any(n != self.me and n not in low and not around.away_for_s(n) for n, _ in term.members)

    # --- damage (R14) -------------------------------------------------------------------------

    def refuses_damaged(self, connection: ReplySink, op: Op) -> bool:
        """R14: nothing is read here while the state is damaged. What is for the leader goes on to it, if that
        is another node."""
        local = is_local(op)
        if self.replica.role != ACTIVE and not local:
            return False
        error: MetastoreError = self.damage()
        if local:
            error = TooStale(error.message, age_ms=None)
        connection.answer(error_result(op[ID_AT], error))
        return True

    def damage(self) -> MetastoreError:
        return Unavailable(
            f"partition {self.p}: its copy on this node is damaged; another replica has to lead and serve",
            retry_after_s=0.2,
            partition=self.p,
        )

    def is_rotten(self, error: CorruptState) -> MetastoreError:
        """What was read from the state is not what was put there (R14): what to answer."""
        self.around.rotten(self.p, error)
        return self.damage()
