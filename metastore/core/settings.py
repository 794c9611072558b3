"""The timings and bounds of the core, in nanoseconds and counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """R8, R9, R15. Only liveness depends on these, but for ``grant_ns`` and
    ``clock_rate_error_ppm``, whose meaning R4 and R8 fix."""

    heartbeat_ns: int = 150 * MS
    grant_ns: int = 900 * MS
    suspect_after_ns: int = 1000 * MS
    election_stagger_ns: int = 100 * MS
    prevote_timeout_ns: int = 250 * MS
    campaign_retry_ns: int = 500 * MS
    retry_ns: int = 300 * MS
    seal_retry_ns: int = 100 * MS
    activation_patience_ns: int = 5000 * MS
    handoff_timeout_ns: int = 2000 * MS
    snapshot_timeout_ns: int = 10_000 * MS
    rebuild_retry_ns: int = 2000 * MS
    damping_window_ns: int = 60_000 * MS
    damping_free_elections: int = 5
    damping_max_ns: int = 10_000 * MS
    clock_rate_error_ppm: int = 500
    claim_without_etcd: bool = True
    max_append_bytes: int = 1 << 20
    max_inflight_entries: int = 512
    #: partitions led here that may get new replicas at once
    max_moves: int = 1 << 30

    def stretched(self, duration_ns: int) -> int:
        """At least ``duration_ns`` on any clock, whatever the rates: R4's margin."""
        return duration_ns + duration_ns * 2 * self.clock_rate_error_ppm // 1_000_000 + 1

    def shrunk(self, duration_ns: int) -> int:
        """At most ``duration_ns`` on any clock: R8's margin for a grant held."""
        return duration_ns - duration_ns * 2 * self.clock_rate_error_ppm // 1_000_000 - 1
