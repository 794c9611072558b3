"""Planted bugs that both simulations plant: of the core alone, and of whole nodes."""

from __future__ import annotations

from typing import Any

from metastore.core.leading import LeadingReplica
from metastore.core.messages import FRESH, HEALTHY
from metastore.core.replica import ACTIVE, Replica
from tests.simulation.planting import Planter


def a_sign_of_life_is_proof(patch: Planter) -> None:
    """R8: a heartbeat of who gets on is taken for one of who may read."""
    grant = Replica.grant

    def granted(self: Any, now: int, src: Any, epoch: int, says: int, *rest: int) -> bool:
        return grant(self, now, src, epoch, says | (FRESH if says & HEALTHY else 0), *rest)

    patch.setattr(Replica, "grant", granted)


def a_leader_to_be_is_new(patch: Planter) -> None:
    """R8: the age counts from a quorum's answer before the no-op is committed."""
    age_ns = LeadingReplica.age_ns

    def age(self: Any, now: int) -> int | None:
        known: int | None = age_ns(self, now)
        term = self.term
        if term is None or not term.noop_index or self.role == ACTIVE:
            return known
        since: int = now - min(now, term.quorum_acked_at_ns())
        return since if known is None else min(known, since)

    patch.setattr(LeadingReplica, "age_ns", age)
