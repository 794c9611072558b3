"""The poison matrix: every kind of record, in every field every wrong type, through the door that a node has.

Whatever stands in etcd, the node goes on, keeps the last good state of that record and of all others, says which key it
is, starts again from what it has kept, and is well as soon as the record is.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from metastore import schema
from metastore.config import NodeConfig
from metastore.coordination.interface import KV, Change
from metastore.fields import BadRecord
from metastore.keys import PartitionMap
from metastore.layout import Layout, first_epoch
from metastore.node.node import Node
from metastore.storage.options import StorageOptions
from metastore.storage.store import Store
from metastore.topology import TopologyTable

LAYOUT = Layout("metastore")
TERM = first_epoch(1)


def config(p: int, count: int = 4) -> dict[str, Any]:
    found = PartitionMap.even(count).ranges[p]
    return {
        "partition": p,
        "lo": f"{found.lo:016x}",
        "hi": f"{found.hi:016x}",
        "epoch": TERM,
        "leader": "l",
        "replicas": [["l", "sl"], ["x", "sx"], ["f", "sf"] if p == 1 else ["y", "sy"]],
        "joint": [["l", "sl"], ["z", "sz"]],
        "parent": [0, TERM, 7],
        "generation": 0,
    }


def node(name: str) -> dict[str, Any]:
    return {
        "node": name,
        "cell": "c1",
        "store_id": f"s{name}",
        "rpc": "127.0.0.1:9",
        "http": "127.0.0.1:8",
        "zone": "z",
        "generation": 3,
        "incarnation": "i",
    }


#: key below the cluster's root -> a good record, with all of its fields
GOOD: dict[str, Any] = {
    "meta": {"format": 1, "cluster": "metastore", "partitions": 4, "hash": "h", "ring": {"kind": "r"}},
    "cells/c1": {"weight": 1.0, "draining": False},
    "nodes/l": node("l"),
    "nodes/gone": node("gone"),
    "presence/l": None,
    **{f"config/c1/{p:05d}": config(p) for p in range(4)},
    "leader/c1/00001": {"node": "l", "incarnation": "i", "epoch": TERM},
    "moves/00002": {"partition": 2, "cell": "c1", "target": [["l", "sl"]], "cancel": False, "cause": "t"},
    "splits/00003": {"partition": 3, "child": 9, "at": "e000000000000000", "cause": "t"},
    "next_partition": 10,
    "namespaces/ns": {
        "routing": "key",
        "default_ttl_ms": 5,
        "max_records": 1,
        "max_bytes": 1,
        "require_condition": True,
        "ready": True,
    },
    "usage/x": {"ns": [1, 2]},
}
RAW = {"presence/l": b"i"}
#: fields that may be missing, and fields of which anything is good
OPTIONAL = {
    "weight", "draining", "zone", "generation", "incarnation", "joint", "parent", "cancel", "cause", "routing",
    "default_ttl_ms", "max_records", "max_bytes", "require_condition", "ready", "ns",
}  # fmt: skip
WRONG: list[Any] = [
    None, True, 7, -1, 0.5, 1e300, 1 << 63, 1 << 80, "", "x/y", "x\0", "\ud800", "-5", "9" * 400, [], [[]], {}, {"a": 1},
    [None], [["a"]], [["a", "b"], ["a", "c"]], [["a", 5]], [[5, "b"]], "a" * 70_000, [1] * 50, b"\xff",
]  # fmt: skip


def dumps(value: Any) -> bytes:
    """JSON, and what only resembles it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    if isinstance(value, bytes):
        return b'"' + value + b'"'
    if isinstance(value, str) and value == "\ud800":
        return b'"\\ud800"'
    if isinstance(value, dict):
        return b"{" + b",".join(orjson.dumps(k) + b":" + dumps(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(dumps, value)) + b"]"
    return orjson.dumps(value)


def raw(key: str) -> bytes:
    return RAW.get(key) or dumps(GOOD[key])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all parts of a value but itself."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from leaves(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], instead: Any) -> Any:
    made = copy.deepcopy(value)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = instead
    return made


def poisons(key: str) -> Iterator[tuple[str, bytes]]:
    """``(what was done, the value)``: each makes no sense, or is as good as another."""
    good = raw(key)
    yield "empty", b""
    yield "no JSON", b"{]"
    yield "no UTF-8", b'{"\xff\xfe": "\xff"}'
    yield "nested", b"[" * 50_000
    for cut in (1, len(good) // 2, len(good) - 1):
        yield f"cut at {cut}", good[:cut]
    for instead in WRONG:
        yield f"is {instead!r:.20}", dumps(instead)
    plain = GOOD[key]
    if not isinstance(plain, dict):
        return
    for path in leaves(plain):
        for instead in WRONG:
            yield f"{path} is {instead!r:.20}", dumps(changed(plain, path, instead))
        if len(path) == 1:
            yield f"{path} is missing", dumps({k: v for k, v in plain.items() if k != path[0]})


class Poisoned:
    """A node and the watch of etcd that it follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revision = 10
        self.open()

    def open(self) -> None:
        small = StorageOptions(segment_bytes=1 << 20, log_retention_bytes=2 << 20, reserve_bytes=0)
        self.store = Store.open(self.folder, cluster="metastore", node="f", options=small)
        config = NodeConfig(
            cell="c1", node="f", data_dir=str(self.folder), rpc="127.0.0.1:9", http="127.0.0.1:9"
        )
        self.node = Node(config, self.store, "1")
        self.node.start()

    async def restart(self, first: dict[str, bytes]) -> None:
        """Stop, start from the folder, and find ``first`` in etcd."""
        self.node.remember_topology()
        await self.node.stop(hand_over=False)
        self.open()
        self.put(first)

    def put(self, records: Mapping[str, bytes | None]) -> None:
        self.revision += 1
        changes = []
        for key, value in records.items():
            full = LAYOUT.root + key
            if value is not None:
                value = value.replace(b'"sf"', b'"%s"' % self.store.store_id.encode())
            new = None if value is None else KV(full, value, self.revision, 1)
            changes.append(Change(full, None, new))
        self.node.control._on_change(self.revision, changes)

    def state(self) -> Any:
        """What the node knows of etcd's records."""
        control, table = self.node.control, self.node.topology.to_wire()
        del table["revision"]
        # which of them could not be read is no part of what is known
        table.pop("unreadable", None)
        return (
            table,
            {p: (move, control.assignment.homes.get(p)) for p, (move, _) in control.assignment.moves.items()},
            dict(control.assignment.splits),
            set(control.drained),
            dict(self.node.quotas.others),
            {q: (host.replica.config, host.replica.leader_node) for q, host in self.node.partitions.items()},
        )


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Poisoned]:
    poisoned = Poisoned(tmp_path)
    poisoned.put({key: raw(key) for key in GOOD})
    yield poisoned
    await poisoned.node.stop(hand_over=False)


def makes_sense(key: str, value: bytes) -> bool:
    try:
        schema.read(LAYOUT.parse(LAYOUT.root + key), value)
    except BadRecord:
        return False
    return True


@pytest.mark.parametrize("key", GOOD)
async def test_every_wrong_type_in_every_field(p: Poisoned, key: str) -> None:
    before, tried, refused = p.state(), 0, 0
    for what, value in poisons(key):
        tried += 1
        good = makes_sense(key, value)
        p.put({key: value})
        assert p.node.failure is None, what
        if not good:
            refused += 1
            assert p.state() == before, f"{what}: the last good state is kept"
            assert list(p.node.control.records.bad) == [LAYOUT.root + key], what
        TopologyTable.from_wire(p.node.topology.to_wire())
        p.put({key: raw(key)})
        assert p.state() == before, f"{what}, and then mended"
        assert not p.node.control.records.bad, what
    assert refused > tried / 2 or key in RAW, "most of them make no sense"


@pytest.mark.parametrize("key", GOOD)
async def test_missing_fields_are_of_an_earlier_version_or_bad(key: str) -> None:
    for field in GOOD[key] if isinstance(GOOD[key], dict) else ():
        value = dumps({k: v for k, v in GOOD[key].items() if k != field})
        needed = key.split("/")[0] == "leader"
        assert makes_sense(key, value) == (field in OPTIONAL and not needed), field


@pytest.mark.parametrize("key", GOOD)
async def test_a_node_starts_again_while_it_is_there_and_is_well_when_it_is_gone(
    p: Poisoned, key: str
) -> None:
    before = p.state()
    every = {k: raw(k) for k in GOOD}
    for value in (b"{]", dumps([5])):
        p.put({key: value})
        await p.restart(every | {key: value})
        assert p.node.failure is None
        kept, then = p.state(), before
        # moves, splits and usage are not kept over a restart: etcd is there, or nothing can be moved
        if key.partition("/")[0] in ("moves", "splits", "usage"):
            kept, then = kept[0], then[0]
        assert kept == then
        p.put({key: raw(key)})
        assert p.state() == before
    p.put({key: b"{]"})
    p.put({key: None})
    assert not p.node.control.records.bad
    await p.restart({k: v for k, v in every.items() if k != key})
    assert p.node.failure is None


async def test_keys_that_make_no_sense(p: Poisoned) -> None:
    before = p.state()
    for key in (
        "nodes/\udcff\udcfe", "nodes/", "config/c1/xyz", "config/c1/", "config//00001", "config/c1/-0001", "config/c1/123456",
        "moves/x", "splits/\udc80", "leader/c1/x", "namespaces/NO NAME", "usage/\0", "presence/", "\udcff",
    ):  # fmt: skip
        for value in (b"", b"{}", raw("nodes/l"), raw("config/c1/00001")):
            p.put({key: value})
            assert p.node.failure is None
            assert p.state() == before, key
            assert list(p.node.control.records.bad) == [schema.shown(LAYOUT.root + key)]
            orjson.dumps(p.node.control.records.status())
        p.put({key: None})
        assert not p.node.control.records.bad


async def test_a_record_under_the_key_of_another(p: Poisoned) -> None:
    before = p.state()
    for key, value in (
        ("nodes/x", raw("nodes/l")),
        ("config/c1/00002", raw("config/c1/00001")),
        ("moves/00001", raw("moves/00002")),
    ):
        p.put({key: value})
        assert p.state() == before, key
        assert "is of" in p.node.control.records.bad[LAYOUT.root + key]
        p.put({key: RAW.get(key) or dumps(GOOD[key]) if key in GOOD else None})


async def test_what_a_later_version_has_is_passed_over(p: Poisoned) -> None:
    """Two versions can live together: one more field, and keys of kinds that are not known here."""
    before = p.state()
    for key, value in GOOD.items():
        if isinstance(value, dict) and not key.startswith("usage"):
            p.put({key: dumps({**value, "later": {"a": [1, None]}})})
    assert p.state()[0] == before[0]
    p.put({"feature/x": b"\xff", "zoo": b"", "nodes/l/more": b"5", "config/c1/00001/x/y": b"{"})
    assert not p.node.control.records.bad
    assert p.state()[0] == before[0]


@pytest.mark.parametrize(
    "key", [k for k in GOOD if k.split("/")[0] in ("cells", "config", "moves", "namespaces")]
)
def test_what_is_written_again_keeps_what_a_later_version_has_in_it(key: str) -> None:
    parts = LAYOUT.parse(LAYOUT.root + key)
    record = schema.read(parts, dumps({**GOOD[key], "later": {"a": [1, None]}, "another": "ü"}))
    again = orjson.loads(record.to_json())
    assert again["later"] == {"a": [1, None]}
    assert again["another"] == "ü"
    assert schema.read(parts, record.to_json()) == record
    with pytest.raises(BadRecord, match=r"are kept|are the most"):
        schema.read(parts, dumps({**GOOD[key], "later": "x" * 20_000}))
