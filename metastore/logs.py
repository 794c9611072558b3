"""Logging: one line per event, for people or as JSON; quiet when all is well."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson

from metastore.errors import ConfigError

FIELDS = ("node", "partition", "epoch")
LINES_PER_S = 5


class HumanFormatter(logging.Formatter):
    """``12:34:56.789 INFO metastore.node: message node=c1n1 partition=3 epoch=1.0``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(
            f" {name}={epoch_text(value) if name == 'epoch' else value}"
            for name in FIELDS
            if (value := getattr(record, name, None)) is not None
        )
        text = (
            f"{clock}.{int(record.msecs):03d} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        )
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def epoch_text(epoch: Any) -> str:
    """An epoch as ``term.restart``."""
    return f"{epoch >> 16}.{epoch & 0xFFFF}" if isinstance(epoch, int) else str(epoch)


def setup_logging(level: str = "info", style: str = "human", *, node: str = "") -> None:
    """Log to standard error. ``node`` is put on every line. Raises ConfigError."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log_level = {level!r}: use debug, info, warning or error")
    if style not in ("human", "json"):
        raise ConfigError(f"log_format = {style!r}: use human or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else HumanFormatter())
    if node:

        def add_node(record: logging.LogRecord) -> bool:
            if not hasattr(record, "node"):
                record.node = node
            return True

        handler.addFilter(add_node)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for noisy in ("asyncio", "aetcd", "grpc"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


def log_event(logger: logging.Logger, message: str, **fields: Any) -> None:
    """An INFO line with the fields node, partition and epoch."""
    logger.info(message, extra=fields)


class Ration:
    """Log lines about what others send, a few a second: they shall not fill the disk either. ``more``: what is said, with a
    number, of those left out."""

    def __init__(self, logger: logging.Logger, more: str) -> None:
        self._log = logger
        self._more = more
        self._second = 0
        self._count = 0

    def line(self, level: int, text: str, *args: object) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._count > LINES_PER_S:
                self._log.log(level, self._more, self._count - LINES_PER_S)
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= LINES_PER_S:
            self._log.log(level, text, *args)
