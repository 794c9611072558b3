"""What a process asks of the operating system when it starts."""

from __future__ import annotations

import resource


def open_files_limit() -> int:
    """How many files this process may have open, raised as far as it may raise that itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft
