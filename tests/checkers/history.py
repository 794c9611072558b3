"""Operations as their callers saw them, on one clock; written values are unique."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

NEVER = 1 << 62
ABSENT = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one key.

    ``kind``: read, put or delete. ``when``: the version that the record had to have, ABSENT, or
    None for no condition. ``outcome``: ok; refused (the condition did not hold; ``version`` is what
    the record's was, 0 = absent); none (it certainly never took effect); unknown (it may take effect
    once, at any time after it began). ``version``: of the write, or of what was read; a read or a
    delete that found nothing has 0. ``began``, ``ended``: any one clock; ``ended`` of an unknown is
    ignored. ``value``: written or read, "" = nothing was there."""

    client: int
    key: str
    kind: str
    began: int
    ended: int
    outcome: str = "ok"
    value: str = ""
    version: int = 0
    when: int | None = None

    def __str__(self) -> str:
        text = f"{self.began}..{'?' if self.outcome == 'unknown' else self.ended} client {self.client} {self.kind} {self.key}"
        if self.kind == "put":
            text += f" = {self.value}"
        if self.when is not None:
            text += f" if {'absent' if self.when == ABSENT else f'at {self.when}'}"
        if self.kind == "read":
            return f"{text}: {f'{self.value} at {self.version}' if self.value else 'nothing'}"
        return f"{text}: {self.outcome}" + (f" at {self.version}" if self.outcome != "unknown" else "")


def save(path: Path, operations: Iterable[Operation]) -> None:
    """As JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(asdict(op)) + b"\n" for op in operations))


def load(path: Path) -> list[Operation]:
    return [Operation(**orjson.loads(line)) for line in path.read_bytes().splitlines()]
