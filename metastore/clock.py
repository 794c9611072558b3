"""The one clock of a node: never jumps, counts suspended time (R15)."""

from __future__ import annotations

import time

_clock_gettime_ns, _BOOTTIME = time.clock_gettime_ns, time.CLOCK_BOOTTIME


def now_ns() -> int:
    """CLOCK_BOOTTIME in ns. A process that slept, or whose machine did, sees that it did."""
    return _clock_gettime_ns(_BOOTTIME)
