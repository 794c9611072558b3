"""Messages between nodes that are well typed and make little sense, from a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import Any, get_type_hints

import msgpack

from metastore.core import messages as m
from metastore.core.configs import pack_config
from metastore.core.entry import pack_entry
from metastore.core.messages import KINDS
from metastore.core.rows import NOTHING
from metastore.layout import ConfigRecord
from metastore.records import pack_record
from metastore.storage.snapshot import DATA, METADATA
from metastore.wire.peer_messages import MAX_COUNT, MAX_GRANT_NS, encode

EPOCHS = frozenset({"epoch", "prev_epoch", "hint_epoch", "last_epoch", "at_epoch", "sealed", "resigned"})
INDEXES = frozenset({"prev_index", "hint_index", "last_index", "at_index", "match", "commit"})
GRANTS = frozenset({"grant_ns", "remaining_grant_ns"})


@dataclass
class Facts:
    """How the partition stands that the messages are about: nonsense near the truth goes further."""

    p: int
    epoch: int
    config: ConfigRecord
    last_index: int
    last_epoch: int
    commit: int
    version: int
    storage_key: bytes


class Nonsense:
    """See the module."""

    def __init__(self, rng: Random, facts: Facts) -> None:
        self.rng = rng
        self.facts = facts

    def epoch(self) -> int:
        f, rng = self.facts, self.rng
        near = [f.epoch, f.epoch, f.epoch, f.epoch + 1, max(0, f.epoch - 1), f.last_epoch]
        far = [0, (f.epoch >> 16) + 1 << 16, (f.epoch >> 16) + (1 << 33) << 16, MAX_COUNT - 1]
        return rng.choice(near if rng.random() < 0.8 else far)

    def index(self) -> int:
        f, rng = self.facts, self.rng
        base = rng.choice([f.last_index, f.last_index, f.commit, 0])
        return max(0, base + rng.randint(-2, 2)) if rng.random() < 0.9 else MAX_COUNT - 1

    def count(self) -> int:
        return self.rng.choice([0, 1, 2, self.rng.getrandbits(20), MAX_COUNT - 1])

    def blob(self, index: int, epoch: int) -> bytes:
        f, rng = self.facts, self.rng
        nothing = msgpack.packb([f.version, [], [[NOTHING, -1, 0, 0, 0]], [], []])
        whole = pack_entry(index, epoch, rng.choice([b"", nothing]))
        dice = rng.random()
        if dice < 0.7:
            return whole
        if dice < 0.8:
            return whole[: rng.randrange(len(whole))]
        if dice < 0.9:
            at = rng.randrange(len(whole))
            return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        return pack_entry(
            index, epoch, msgpack.packb(rng.choice([[], 7, [0, 1, 2, 3, 4], [0, [], [[9]], [], []]]))
        )

    def entries(self, prev: int, epoch: int) -> list[bytes]:
        rng = self.rng
        first = prev + 1 if rng.random() < 0.9 else self.index()
        return [
            self.blob(min(first + i, MAX_COUNT - 1), epoch if rng.random() < 0.85 else self.epoch())
            for i in range(rng.choice([0, 1, 1, 2, 5]))
        ]

    def config(self) -> bytes:
        f, rng = self.facts, self.rng
        whole = pack_config(f.config)
        dice = rng.random()
        if dice < 0.5:
            return whole
        if dice < 0.7:
            return pack_config(dataclasses.replace(f.config, epoch=self.epoch()))
        wrong: list[Any] = [
            dataclasses.replace(f.config, partition=f.p + 1),
            dataclasses.replace(f.config, replicas=()),
            dataclasses.replace(f.config, lo=5, hi=1),
            dataclasses.replace(f.config, hi=1 << 70),
            dataclasses.replace(f.config, replicas=((1, 2),)),  # type: ignore[arg-type]
        ]
        if dice < 0.9:
            return pack_config(rng.choice(wrong))
        no_config: list[bytes] = [
            b"",
            b"\xc1",
            msgpack.packb(7),
            msgpack.packb({"partition": f.p}),
            whole[:-3],
        ]
        return rng.choice(no_config)

    def rows(self) -> list[Any]:
        f, rng = self.facts, self.rng
        good = [
            [DATA, f.storage_key, pack_record(1, 1, b"v")],
            [METADATA, b"m", msgpack.packb([1, 0])],
            [METADATA, b"s" + b"c" * 16, msgpack.packb([0, 1, 1, 0, [[1, [0, 1, 1]]]])],
        ]
        bad = [
            [DATA, b"", b""],
            [DATA, f.storage_key, b"too short"],
            [DATA, f.storage_key[:13] + b"\xff\xfe", pack_record(1, 1, b"v")],
            [DATA, bytes(8) + b"x" * 3000, pack_record(1, 1, b"v")],
            [METADATA, b"s" + b"c" * 16, b"\xc1"],
            [METADATA, b"x" * 600, b"\x90"],
            [METADATA, b"m", msgpack.packb(["a", 1])],
            [9, b"k", b"v"],
        ]
        return [rng.choice(good if rng.random() < 0.7 else bad) for _ in range(rng.choice([0, 0, 1, 2]))]

    def message(self) -> Any:
        """A message whose fields have the types they should have."""
        rng = self.rng
        cls = KINDS[rng.choice(list(KINDS))]
        values: dict[str, Any] = {}
        for name, hint in get_type_hints(cls).items():
            if name == "p":
                values[name] = self.facts.p if rng.random() < 0.95 else rng.choice([self.facts.p + 1, 65535])
            elif name in EPOCHS:
                values[name] = self.epoch() if name != "resigned" else rng.choice([0, self.epoch()])
            elif name in INDEXES:
                values[name] = self.index()
            elif name in GRANTS:
                values[name] = rng.choice([0, 1, MAX_GRANT_NS - 1])
            elif name == "config":
                values[name] = self.config()
            elif name == "rows":
                values[name] = self.rows()
            elif name == "beats":
                values[name] = [
                    [self.facts.p, self.epoch(), rng.randrange(4), self.index()] for _ in range(2)
                ]
            elif name == "refused":
                values[name] = [[self.facts.p, self.epoch()] for _ in range(rng.randrange(2))]
            elif hint is bool:
                values[name] = rng.random() < 0.5
            elif hint is str:
                values[name] = rng.choice(["", "1", "x" * 200])
            elif name == "entries":
                values[name] = []
            else:
                values[name] = self.count()
        if "entries" in values:
            if rng.random() < 0.6:  # a place that matches
                values["prev_index"], values["prev_epoch"] = self.facts.last_index, self.facts.last_epoch
            values["entries"] = self.entries(values["prev_index"], values["epoch"])
        return cls(**values)

    def raw(self) -> list[Any]:
        """A message as the wire has it; one in four has a field of another type, or beyond bounds."""
        raw = encode(self.message())
        if self.rng.random() < 0.25:
            odd: list[Any] = [-1, 1 << 62, (1 << 64) - 1, None, "x", 1.5, [], {}, [[[]]], b"\xff"]
            value = self.rng.choice(odd)
            raw[self.rng.randrange(len(raw))] = value
        return raw


def seal(epoch: int, config: ConfigRecord, p: int) -> m.Seal:
    return m.Seal(p, epoch, pack_config(config), 0)
