"""What tests do to processes and their folders, so that it is done when they go on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

#: for what is due at once on a machine of its own. Nothing is measured by it, so it is generous: what takes this long
#: is broken, not slow. With thirty processes to a processor a node takes minutes to start
PATIENCE_S = 600.0


def pause(*pids: int) -> None:
    """SIGSTOP, and wait until no thread of them runs any more: ``kill`` returns before that, and on a busy machine
    the process goes on for long enough to answer what is sent to it next."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while not all(map(_is_stopped, pids)):
        assert time.monotonic() < deadline, f"SIGSTOP has not stopped {pids}"
        time.sleep(0.002)


def resume(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    # the state follows the command's name, which may hold anything: "12 (etcd) T 1 …"
    threads = [path.read_text().rpartition(")")[2] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state.split()[0] in ("T", "t") for state in threads)


def copy_of_running(folder: Path, copy: Path) -> None:
    """A copy of a data folder that is written meanwhile, without its lock. Begun anew when a file went before it was copied: what
    that leaves is a folder that never was."""
    while True:
        try:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("LOCK", "*.new"))
            return
        except shutil.Error as e:
            if any(Path(source).exists() for source, *_ in e.args[0]):
                raise
            shutil.rmtree(copy)
