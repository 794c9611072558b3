"""Operations as their callers saw them, on one clock; written values are unique, but for counters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

NEVER = 1 << 62
ABSENT = 0
#: operations of these kinds change no record
READS = ("read", "list", "touch")


@dataclass(frozen=True, slots=True)
class Check:
    """One compare of a transaction. ``what``: version (0 = absent) or value, compared with ``operand``; of an
    absent record only ``!=`` holds for a value."""

    key: str
    what: str
    relation: str
    operand: int | str


@dataclass(frozen=True, slots=True)
class Part:
    """One operation of a transaction, or a record that a listing told. ``kind``: get, put, delete or add.
    ``value``: written; read ("" = nothing was there); of an add the total. ``version``: as an Operation's."""

    kind: str
    key: str
    value: str = ""
    version: int = 0
    delta: int = 0
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one key, or a transaction or a listing, which are of several at one moment.

    ``kind``: read, put, delete, add, touch, txn or list. ``when``: the version that the record had to have,
    ABSENT, or None for no condition. ``outcome``: ok; refused (the condition did not hold; ``version`` is what
    the record's was, 0 = absent); fenced (``version`` is the token that was seen); not_a_number (an add
    found no counter; it changed nothing); none (it certainly never took effect); unknown (it may take effect
    once, at any time after it began). ``version``: of the write, or of what was read; what found nothing has 0.
    ``began``, ``ended``: any one clock; ``ended`` of an unknown is ignored. ``value``: written or read, "" =
    nothing was there; of an add the total, "" when it is unknown.

    ``ttl``: the record may go by itself so long after it was written or touched, on the history's clock, less
    the error of clocks; 0 = never. ``fence``: the name and the token that the write carried. ``locks``: the
    name of the fence that the write raises to its own version (R20). ``checks``, ``then``, ``otherwise``: of a
    transaction; the branch that was done has its results, and ``succeeded`` says which it was (None: unknown).
    ``then`` of a listing: a get for every key that could have been told."""

    client: int
    key: str
    kind: str
    began: int
    ended: int
    outcome: str = "ok"
    value: str = ""
    version: int = 0
    when: int | None = None
    delta: int = 0
    ttl: int = 0
    fence: tuple[str, int] | None = None
    locks: str = ""
    checks: tuple[Check, ...] = ()
    then: tuple[Part, ...] = ()
    otherwise: tuple[Part, ...] = ()
    succeeded: bool | None = None

    @property
    def keys(self) -> list[str]:
        """All that it reads or writes, each once, the first first."""
        if self.kind not in ("txn", "list"):
            return [self.key]
        named = [c.key for c in self.checks] + [p.key for p in (*self.then, *self.otherwise)]
        return list(dict.fromkeys(named))

    def done(self) -> tuple[Part, ...]:
        """The parts that were carried out, as far as that is known."""
        if self.outcome != "ok" or self.kind not in ("txn", "list"):
            return ()
        return self.then if self.succeeded is not False else self.otherwise

    def changes(self) -> list[tuple[str, str, int]]:
        """``(key, value, version)`` of what it certainly changed; of a deletion the value is ""."""
        if self.outcome != "ok" or self.kind in READS:
            return []
        if self.kind == "txn":
            parts = [p for p in self.done() if p.kind != "get" and p.version]
            return [(p.key, "" if p.kind == "delete" else p.value, p.version) for p in parts]
        return [(self.key, "" if self.kind == "delete" else self.value, self.version)] if self.version else []

    def told(self) -> list[tuple[str, str, int]]:
        """``(key, value, version)`` of every record that it read."""
        if self.outcome != "ok":
            return []
        if self.kind == "read":
            return [(self.key, self.value, self.version)]
        return [(p.key, p.value, p.version) for p in self.done() if p.kind == "get"]

    def __str__(self) -> str:
        what = self.kind if self.kind == "list" else f"{self.kind} {self.key}"
        text = f"{self.began}..{'?' if self.outcome == 'unknown' else self.ended} client {self.client} {what}"
        if self.kind == "put":
            text += f" = {self.value}"
        if self.kind == "add":
            text += f" by {self.delta}"
        if self.when is not None:
            text += f" if {'absent' if self.when == ABSENT else f'at {self.when}'}"
        if self.ttl:
            text += f", for {self.ttl}"
        if self.fence is not None:
            text += f", fence {self.fence[0]}:{self.fence[1]}"
        if self.kind == "txn":
            checks = " and ".join(f"{c.key}.{c.what} {c.relation} {c.operand}" for c in self.checks)
            text += f" if {checks or 'anything'} then {_parts(self.then)} else {_parts(self.otherwise)}"
            return f"{text}: {self.outcome}" + ("" if self.succeeded is None else f", {self.succeeded}")
        if self.kind == "list":
            return f"{text}: {_parts(self.then)}"
        if self.kind == "read":
            return f"{text}: {f'{self.value} at {self.version}' if self.value else 'nothing'}"
        total = f" = {self.value}" if self.kind == "add" and self.value else ""
        return f"{text}: {self.outcome}{total}" + (f" at {self.version}" if self.outcome != "unknown" else "")


def _parts(parts: tuple[Part, ...]) -> str:
    def one(part: Part) -> str:
        text = f"{part.kind} {part.key}" + (f" by {part.delta}" if part.kind == "add" else "")
        text += f" = {part.value}" if part.value else ""
        return f"{text} at {part.version}" if part.version else text

    return "[" + ", ".join(map(one, parts)) + "]"


def save(path: Path, operations: Iterable[Operation]) -> None:
    """As JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(asdict(op)) + b"\n" for op in operations))


def load(path: Path) -> list[Operation]:
    return [_loaded(orjson.loads(line)) for line in path.read_bytes().splitlines()]


def _loaded(raw: dict[str, Any]) -> Operation:
    raw["fence"] = None if raw["fence"] is None else tuple(raw["fence"])
    raw["checks"] = tuple(Check(**c) for c in raw["checks"])
    for branch in ("then", "otherwise"):
        raw[branch] = tuple(Part(**p) for p in raw[branch])
    return Operation(**raw)
