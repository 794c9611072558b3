"""Writes down what the core heard lately: when the node stops by a failure, and when it is asked (``metastore.replay`` plays it)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metastore.core.recording import Recording, pack
from metastore.errors import Overloaded
from metastore.wire.versions import build

if TYPE_CHECKING:
    from metastore.node.node import Node

log = logging.getLogger("metastore.recorder")

FOLDER: Final = "recordings"
SUFFIX: Final = ".msrec"
PARTIAL: Final = ".partial"
#: files that are kept in the folder; the oldest go
MAX_FILES: Final = 8
#: how long a node that stops waits for its file: the disk may be what it stops for
PATIENCE_S: Final = 5.0


def recording_of(node: Node, why: str) -> Recording:
    """What there is at this moment. ``why``: what makes somebody ask, for people."""
    core = node.core
    return Recording(
        build(), node.config.node, int(time.time() * 1000), why, core.journal.halves(core.effects)
    )


class Asked:
    """Recordings for callers by HTTP, one at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._busy = False

    async def pack(self) -> bytes:
        """The bytes of a file. Raises Overloaded."""
        if self._busy:
            raise Overloaded("a recording is being packed already", retry_after_s=2)
        self._busy = True
        try:
            return await asyncio.to_thread(pack, recording_of(self._node, "asked by HTTP"))
        finally:
            self._busy = False


class Recorder:
    """Writes files, in the folder ``recordings`` of the node's data. Packing takes a second or two, so it is done in a thread of its own; nothing in a journal changes
    meanwhile."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._folder = Path(node.config.data_dir) / FOLDER
        self._writing: threading.Thread | None = None

    def write_soon(self, why: str) -> None:
        """Begin to write a file, unless one is being written. What goes wrong is logged and harms nobody."""
        if self._writing is not None and self._writing.is_alive():
            return
        thread = threading.Thread(
            target=self._write, args=(recording_of(self._node, why),), name="recorder", daemon=True
        )
        self._writing = thread
        thread.start()

    def wait(self, patience_s: float = PATIENCE_S) -> None:
        """Until what is being written is there, but no longer than that."""
        if self._writing is not None:
            self._writing.join(patience_s)

    def _write(self, recording: Recording) -> None:
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(recording.at_ms / 1000))
        path = self._folder / f"{when}-{recording.at_ms % 1000:03}{SUFFIX}"
        fields = {"node": recording.node}
        try:
            raw = pack(recording)
            self._folder.mkdir(exist_ok=True)
            old = sorted(self._folder.glob(f"*{SUFFIX}"))[: -(MAX_FILES - 1)]
            for gone in [*old, *self._folder.glob(f"*{PARTIAL}")]:
                gone.unlink()
            partial = path.with_suffix(PARTIAL)
            partial.write_bytes(raw)
            partial.rename(path)
        except Exception as e:
            log.error("what the core heard lately cannot be written to %s: %s", path, e, extra=fields)
        else:
            log.warning("what the core heard lately is in %s (%s)", path, recording.why, extra=fields)
