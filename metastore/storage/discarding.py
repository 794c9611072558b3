"""Setting a store aside (R13): its node then begins with a new one, empty. Nothing is deleted."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Final

from metastore.decoding import Undecodable, read_json_file
from metastore.errors import ConfigError
from metastore.storage.disk import Disk
from metastore.storage.folder import lock_folder

ASIDE: Final = "discarded"
#: what a store consists of, in the order in which it goes: a folder without its identity, but with a log, is
#: not opened, so an interrupted run leaves nothing that a node would take for its store
PARTS: Final = ("store.json", "state", "log")


def discard(path: str | Path, *, cluster: str, node: str) -> Path:
    """Move the store in ``path`` into a folder below it, which is returned. An interrupted run is simply run
    again. Raises ConfigError: no store, in use, or another node's."""
    folder = Path(path)
    present = [part for part in PARTS if (folder / part).exists()]
    if not present:
        raise ConfigError(f"{folder} holds no store: there is nothing to set aside")
    lock_fd = lock_folder(folder)
    try:
        name = _identity(folder / "store.json", cluster, node)
        aside = _new_folder(folder / ASIDE, name)
        for part in present:
            (folder / part).rename(aside / part)
            for changed in (aside, folder):
                Disk().sync_folder(changed)
        return aside
    finally:
        os.close(lock_fd)


def _identity(path: Path, cluster: str, node: str) -> str:
    """The store's id. Raises ConfigError when it is another node's; what cannot be read is no obstacle."""
    try:
        found = read_json_file(path)
        owner = (found.get("cluster"), found.get("node"))
        name = str(found.get("store_id"))[:32]
    except (OSError, Undecodable, AttributeError):
        return "unknown"
    if owner != (cluster, node):
        raise ConfigError(
            f"{path.parent} belongs to node {owner[1]!r} of cluster {owner[0]!r}, not to {node!r} of {cluster!r}"
        )
    return name if name.isalnum() else "unknown"


def _new_folder(below: Path, name: str) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in itertools.count():
        made = below / f"{name}-{stamp}{f'-{number}' if number else ''}"
        if not made.exists():
            made.mkdir(parents=True)
            Disk().sync_folder(below)
            return made
    raise AssertionError
