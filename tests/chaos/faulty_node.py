"""A storage node whose disk and wall clock do as a control file says: ``DATA_DIR.faults``.

``{"sync_delay_ms": 80}``, ``{"sync_fails": true}``, ``{"sync_hangs": true}``, ``{"clock_jump_s": 86400}``.
Nothing of the node itself is changed but the calls to the operating system. What is written and not
synced is kept account of, for the day the power goes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from metastore.node.main import main
from metastore.storage.disk import Disk
from tests.chaos.planted import PLANTED
from tests.chaos.unsynced import Journal, folder_of


class Faults:
    """The control file, read again when it changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = 0
        self.now: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            changed, self.now = 0, {}
        if changed and changed != self.seen:
            self.now = json.loads(self.path.read_text())
        self.seen = changed
        return self.now.get(name, 0)


def install(faults: Faults) -> None:
    sync, clock = Disk.sync, time.time

    def faulty_sync(self: Disk, fd: int) -> None:
        while faults.get("sync_hangs"):
            time.sleep(0.05)
        delay = faults.get("sync_delay_ms")
        if delay:
            time.sleep(delay / 1000)
        if faults.get("sync_fails"):
            raise OSError(5, "Input/output error")
        sync(self, fd)

    Disk.one_call = False  # each write and each sync is to pass by here
    Disk.sync = faulty_sync  # type: ignore[method-assign]
    time.time = lambda: clock() + faults.get("clock_jump_s")


if __name__ == "__main__":
    data_dir = sys.argv[sys.argv.index("--data-dir") + 1]
    Journal(folder_of(data_dir)).install()
    bug = os.environ.get("METASTORE_PLANTED")
    if bug:
        PLANTED[bug].bug()
    install(Faults(Path(data_dir + ".faults")))
    sys.exit(main())
