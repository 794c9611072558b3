"""Fail-stop (R14): the first error after which nothing that follows may be answered ends the node, loudly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("metastore.node")


class Halt:
    """See the module. ``failed`` is set once ``failure`` is."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        #: is called once, with why: nothing that it does may raise or take long
        self.on_failed: Callable[[str], None] = lambda why: None

    def fail(self, error: BaseException) -> None:
        """Stop serving; the process ends."""
        if self.failure is None:
            self.failure = error
            log.critical("node stops: %s: %s", type(error).__name__, error, extra={"node": self._node})
            self.failed.set()
            self.on_failed(f"{type(error).__name__}: {error}")

    def fail_stop(self, error: Exception) -> None:
        """Whatever came up while effects were carried out: some of them are lost, so nothing that
        follows may be answered. No exception is harmless here."""
        log.error("fail-stop", exc_info=error)
        self.fail(error)

    def ended(self, task: asyncio.Task[Any]) -> None:
        """A background task ended: by an error, the node does too."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.fail_stop(error)
