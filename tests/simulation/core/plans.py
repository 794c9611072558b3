"""What the worlds around the core are made of, as data: a seed takes one plan after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metastore.core.settings import MS, CoreSettings

SETTINGS = CoreSettings(
    heartbeat_ns=50 * MS,
    grant_ns=300 * MS,
    suspect_after_ns=300 * MS,
    election_stagger_ns=30 * MS,
    prevote_timeout_ns=100 * MS,
    campaign_retry_ns=150 * MS,
    retry_ns=100 * MS,
    seal_retry_ns=60 * MS,
    handoff_timeout_ns=400 * MS,
    snapshot_timeout_ns=1000 * MS,
    damping_max_ns=400 * MS,
    activation_patience_ns=1500 * MS,
    clock_rate_error_ppm=2000,
    max_append_bytes=400,
    max_inflight_entries=8,
)


@dataclass(frozen=True)
class Plan:
    """How hostile the world is; probabilities per message, means in ns."""

    loss: float = 0.02
    duplicate: float = 0.02
    slow: float = 0.1
    max_delay_ns: int = 20 * MS
    slow_delay_ns: int = 400 * MS
    crash_every_ns: int = 1500 * MS
    pause_every_ns: int = 1500 * MS
    cut_every_ns: int = 1500 * MS
    reset_every_ns: int = 1500 * MS
    depose_every_ns: int = 2500 * MS
    etcd_every_ns: int = 2500 * MS
    transfer_every_ns: int = 2000 * MS
    compact_every_ns: int = 700 * MS
    sync_max_ns: int = 15 * MS
    drift_ppm: int = 1500
    #: about so soon after it began a leader crashes or is cut off; 0 = it need not
    dethrone_ns: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


#: a leader is missed soon, and its log goes over entry by entry
QUICK = {
    "heartbeat_ns": 15 * MS,
    "grant_ns": 60 * MS,
    "suspect_after_ns": 120 * MS,
    "election_stagger_ns": 10 * MS,
    "prevote_timeout_ns": 40 * MS,
    "campaign_retry_ns": 50 * MS,
    "retry_ns": 60 * MS,
    "seal_retry_ns": 30 * MS,
    "max_append_bytes": 1,
    "damping_free_elections": 1000,
}

PLANS: dict[str, Plan] = {
    "everything": Plan(),
    "calm network, crashes": Plan(loss=0, duplicate=0, slow=0, crash_every_ns=500 * MS, cut_every_ns=0),
    "bad network": Plan(loss=0.15, duplicate=0.1, slow=0.3, crash_every_ns=4000 * MS),
    "pauses and drift": Plan(pause_every_ns=400 * MS, crash_every_ns=0, drift_ppm=1990),
    "cuts": Plan(cut_every_ns=300 * MS, crash_every_ns=3000 * MS),
    "no etcd for long": Plan(etcd_every_ns=800 * MS, crash_every_ns=700 * MS),
    "slow disks, snapshots": Plan(sync_max_ns=150 * MS, compact_every_ns=100 * MS, crash_every_ns=800 * MS),
    "resets, long grants": Plan(
        reset_every_ns=700 * MS,
        depose_every_ns=700 * MS,
        crash_every_ns=1000 * MS,
        etcd_every_ns=0,
        cut_every_ns=0,
        max_delay_ns=4 * MS,
        settings={"grant_ns": 800 * MS, "damping_free_elections": 1000},
    ),
    "short reigns": Plan(
        dethrone_ns=120 * MS,
        crash_every_ns=0,
        cut_every_ns=0,
        etcd_every_ns=0,
        pause_every_ns=0,
        transfer_every_ns=0,
        reset_every_ns=0,
        depose_every_ns=0,
        slow=0,
        loss=0,
        max_delay_ns=30 * MS,
        settings=QUICK,
    ),
    "hand-offs": Plan(transfer_every_ns=200 * MS, pause_every_ns=800 * MS),
}
#: how long a world is hostile
FAULTY_NS = 5_000 * MS
