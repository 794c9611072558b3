"""Whose a data folder is: its lock, and ``store.json``, which says store, cluster, node and format (R13).

``store.json`` is written last when a store is made, so that with it there is a log and a state, always: either of
them missing beside it is a loss, and is told. Without it there is nothing but what a creation that was cut short has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import zlib
from pathlib import Path
from typing import Any, Final

import orjson

from metastore.decoding import Undecodable, read_json_file
from metastore.errors import ConfigError, CorruptLog, CorruptState
from metastore.storage.disk import Disk

FORMAT: Final = 3
FOLDERS: Final = ("log", "state")


class Folder:
    """A data folder that this process has locked, and whose it is. ``identity``: what ``store.json`` says, or will say once a
    store that is ``created`` here has all that it needs (``seal``)."""

    def __init__(self, path: Path, identity: dict[str, Any], created: bool, lock_fd: int = -1) -> None:
        self.path, self.identity, self.created = path, identity, created
        self.store_id: str = identity["store_id"]
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path, cluster: str, node: str, disk: Disk) -> Folder:
        """Lock the folder, or make it. Raises ConfigError (locked, other cluster, node or format), CorruptLog, CorruptState."""
        make_folders(path, disk)
        lock_fd = lock_folder(path)
        try:
            found = read_identity(path, cluster, node)
            return cls(path, found or new_identity(cluster, node), found is None, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise

    def seal(self, disk: Disk) -> None:
        """Log and state are there: from here on the store exists."""
        if self.created:
            write_identity(self.path, self.identity, disk)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def lock_folder(folder: Path) -> int:
    """The descriptor that holds the lock. Raises ConfigError when another process has it."""
    fd = os.open(folder / "LOCK", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"{folder} is in use by process {holder}; stop it, or name another folder"
        ) from None
    with contextlib.suppress(OSError):  # for people only: a full disk is no reason not to start
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def make_folders(folder: Path, disk: Disk) -> None:
    """The folder of a store, and those within it if it is a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "store.json").exists():
        for sub in FOLDERS:
            (folder / sub).mkdir(exist_ok=True)
    for made in (folder.resolve().parent, folder):  # names as durable as what is under them
        disk.sync_folder(made)


def read_identity(folder: Path, cluster: str, node: str) -> dict[str, Any] | None:
    """What ``store.json`` says; None when the store is yet to be made. Raises ConfigError (other format, cluster or
    node), CorruptLog, CorruptState."""
    path = folder / "store.json"
    if not path.exists():
        return None
    try:
        found: Any = read_json_file(path)
    except Undecodable as e:
        raise CorruptLog(f"{path} is damaged ({e}); replace the node") from None
    if type(found) is not dict:
        raise CorruptLog(f"{path} is damaged (it holds no object); replace the node")
    if found.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} has data format {found.get('format')!r}; this version reads {FORMAT}: use the version that wrote "
            "it (cellctl snapshot save there and restore here takes the records over), or another, empty folder"
        )
    if found.pop("crc", None) != _crc(found) or type(found.get("store_id")) is not str:
        raise CorruptLog(f"{path} is damaged (its checksum does not match); replace the node")
    for name, wanted in (("cluster", cluster), ("node", node)):
        if found.get(name) != wanted:
            raise ConfigError(f"{folder} belongs to {name} {found.get(name)!r}, not {wanted!r}")
    for sub, file, error in (("log", "", CorruptLog), ("state", "data.mdb", CorruptState)):
        if not (folder / sub / file).exists():
            raise error(f"{folder / sub / file} is missing though {path} is there; replace the node")
    return found


def new_identity(cluster: str, node: str) -> dict[str, Any]:
    return {"format": FORMAT, "store_id": secrets.token_hex(16), "cluster": cluster, "node": node}


def write_identity(folder: Path, identity: dict[str, Any], disk: Disk) -> None:
    """From here on the store exists."""
    temporary = folder / "store.new"
    with temporary.open("wb") as f:
        f.write(orjson.dumps(identity | {"crc": _crc(identity)}))
        f.flush()
        os.fsync(f.fileno())
    temporary.rename(folder / "store.json")
    disk.sync_folder(folder)


def _crc(identity: dict[str, Any]) -> int:
    return zlib.crc32(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS))
