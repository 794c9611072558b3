"""Examples of the records in etcd, of the log's entries and what they hold, and of what goes to people and files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from cellctl import snapshot_file
from metastore import layout, namespaces, schema
from metastore import operations as c
from metastore.client.watch import resume_tokens
from metastore.core.configs import pack_config, read_config
from metastore.core.entry import entry_payload, entry_position, pack_entry
from metastore.core.machine import Machine
from metastore.core.payloads import read_payload
from metastore.decoding import inflate
from metastore.history import ResumePoint, Version, pack_mark
from metastore.records import COUNTER, Record, pack_record, unpack_record
from metastore.topology import TopologyTable
from router.snapshot import load_snapshot, save_snapshot
from tests.golden.formats import Example, Form

EPOCH: Final = 5 << 16 | 2
POINT: Final = bytes.fromhex("2a00000000000000")
LKEY: Final = POINT + b"ns\0dir/key"
_A, _B = b"a" * 16, b"b" * 16

# --- etcd -------------------------------------------------------------------------------------------------

CONFIG: Final = layout.ConfigRecord(
    3,
    0,
    1 << 63,
    EPOCH,
    "n1",
    (("n1", "s" * 32), ("n2", "t" * 32)),
    (("n2", "t" * 32), ("n3", "u" * 32)),
    (1, EPOCH - 1, 60),
    2,
)
ETCD: Final[dict[str, Any]] = {
    "meta": layout.ClusterMeta(1, "c", 64, "xxh3", {"kind": "even"}),
    "cell": layout.CellRecord(0.5, True),
    "node": layout.NodeRecord("n1", "c1", "s" * 32, "h1:1", "h1:2", "z", 3, "run3", 1),
    "features": layout.FeaturesRecord(2),
    "lineage": layout.LineageRecord(2, 0xABC, 4711, (0xA, 0xB), 1_700_000_000_000),
    "mark": layout.MarkRecord("s" * 32, 3, "run3", 71),
    "config": CONFIG,
    "config-first": layout.ConfigRecord(3, 0, 1 << 64, EPOCH, None, (("n1", "s" * 32),)),
    "leader": layout.LeaderRecord("n1", "run3", EPOCH),
    "move": layout.MoveRecord(3, "c2", (("n4", "v" * 32),), True, "rebalance"),
    "split": layout.SplitRecord(3, 64, 1 << 62, "hot"),
    "history": layout.HistoryRecord(
        3, EPOCH, "c1", "n1", ("n1", "n2"), "election", "lost", 1_700_000_000_000
    ),
    "policy": namespaces.Policy("segments:2", 60_000, 10, 1000, True, False),
}


#: of kinds without a class of their own in ``layout``: key, what is said, and how it is written
PLAIN: Final[dict[str, tuple[tuple[str, ...], Any, Callable[[Any], bytes]]]] = {
    "presence": (("presence", "n1"), schema.Presence("run3"), schema.Presence.to_bytes),
    "usage": (("usage", "n1"), {"ns": [3, 70], "other": [0, 0]}, schema.usage_to_json),
    "next-partition": (("next_partition",), 65, schema.next_partition_to_bytes),
    "drained": (("drained", "n1"), schema.Mark(), schema.Mark.to_bytes),
    "paused": (("paused",), schema.Mark(), schema.Mark.to_bytes),
}


def _etcd_written(record: Any) -> bytes:
    if isinstance(record, layout.ClusterMeta | layout.NodeRecord):
        return layout.to_json(record)
    written: bytes = record.to_json()
    return written


def _etcd_reader(record: Any) -> Callable[[bytes], Any]:
    if isinstance(record, layout.NodeRecord):
        return layout.node_record_from_json
    if isinstance(record, namespaces.Policy):
        return namespaces.policy_from_json
    reader: Callable[[bytes], Any] = type(record).from_json
    return reader


# --- what entries hold ----------------------------------------------------------------------------------------


def _payloads() -> dict[str, bytes]:
    """By the leader's own hand: one of each kind of row."""
    machine = Machine(lambda _: None)
    found: dict[str, bytes] = {}

    def entry(name: str, index: int, *ops: tuple[bytes, list[Any]], expired: Any = ()) -> None:
        payload, _ = machine.proposals.resolve(index, list(ops), expired)
        assert payload is not None
        found[name] = payload

    entry("put", 1, (_A, [1, c.PUT, 3, LKEY, 1, 1, 0, None, b"v", "text/plain", 60_000]))
    entry("unnumbered", 2, (_A, [1, c.PUT, 3, LKEY + b"2", 0, 0, 0, None, b"v", "", 0]))
    entry("add", 3, (_B, [1, c.ADD, 3, LKEY + b"n", 1, 1, 0, None, 5]))
    entry("fenced", 4, (_A, [1, c.PUT, 3, LKEY + b"3", 2, 2, 0, None, b"w", "", 0, ["lock", 9]]))
    entry("nothing", 5, (_A, [1, c.PUT, 3, LKEY, 3, 3, 0, c.ABSENT, b"v", "", 0]))
    entry("delete", 6, (_A, [1, c.DELETE, 3, LKEY + b"2", 4, 4, 0, None]))
    parts = [
        [c.GET, LKEY],
        [c.PUT, LKEY + b"4", b"x", "", 0],
        [c.ADD, LKEY + b"n", 1],
        [c.DELETE, LKEY + b"3"],
    ]
    entry("txn", 7, (_B, [1, c.TXN, 3, LKEY, 2, 2, 0, [], parts, []]))
    entry("expire", 8, expired=[(LKEY, 1)])
    machine.proposals.count_above(b"\x80" + bytes(7))
    machine.proposals.count_slice([], None)
    found["split"] = machine.proposals.resolve_split(
        9, EPOCH, 64, (1 << 64) - 1, [("n1", "s" * 32), ("n2", "t" * 32)]
    )
    found["forget"] = bytes.fromhex("950090919" + "20e07" + "9090")
    found["mark"] = pack_mark(2)
    found["no-op"] = b""
    return found


PAYLOADS: Final = _payloads()
ENTRY: Final = pack_entry(99, EPOCH, PAYLOADS["put"])


def _read_entry(blob: bytes) -> Any:
    payload = entry_payload(blob)
    return entry_position(blob), read_payload(payload) if payload else None


def _entry(payload: bytes) -> Example:
    value = ((99, EPOCH), read_payload(payload) if payload else None)
    return Example(value, lambda v: pack_entry(v[0][0], v[0][1], payload), _read_entry)


def _record(
    version: int, created: int, value: bytes, kind: str = "", ttl: int = 0, flags: int = 0
) -> Example:
    return Example(
        Record(Version(version), Version(created), value, kind, ttl, bool(flags & COUNTER)),
        lambda r: pack_record(
            r.version, r.created, r.value, r.content_type.encode(), r.ttl_ms, COUNTER if r.counter else 0
        ),
        unpack_record,
    )


# --- what goes to people and files ------------------------------------------------------------------------------


def _even(count: int, *versions: int) -> resume_tokens.Position:
    points = [(i * ((1 << 64) // count)).to_bytes(8, "big") for i in range(count)]
    return list(zip(points, map(ResumePoint, versions), strict=True))


RESUME: Final = {
    "even": _even(2, 17, 300),
    "one": _even(1, 1 << 40),
    "points": [(bytes(8), 17), (POINT, 300)],
    "even-generations": _even(2, 17, 1 << 44 | 5),
    "points-generations": [(bytes(8), 2 << 44 | 1), (POINT, 2 << 44 | 300)],
}

SNAPSHOT: Final[list[tuple[str, Any]]] = [
    (
        "head",
        {
            "cluster": "c",
            "at_ms": 1_700_000_000_000,
            "partitions": 1,
            "namespaces": [["ns", namespaces.Policy().to_plain()]],
        },
    ),
    ("part", {"partition": 3, "epoch": EPOCH, "index": 99, "version": 17}),
    ("rows", [[LKEY, pack_record(17, 12, b"value", b"text/plain", 60_000)]]),
    ("done", {"partition": 3, "records": 1}),
    ("end", {"partitions": 1, "records": 1}),
]


def _snapshot_written(value: Any) -> bytes:
    out = io.BytesIO()
    out.write(snapshot_file.MAGIC)
    for kind, body in value:
        snapshot_file.write_frame(out, kind, body)
    return out.getvalue()


def _inflated(raw: bytes) -> list[bytes]:
    """The frames of a snapshot's file as they were before they were compressed: zlib is free in how it does that."""
    at, found = len(snapshot_file.MAGIC), [raw[: len(snapshot_file.MAGIC)]]
    while at < len(raw):
        length, crc = snapshot_file.HEAD.unpack_from(raw, at)
        at += snapshot_file.HEAD.size + length
        body = raw[at - length : at]
        assert zlib.crc32(body) == crc
        found += [struct.pack(">I", len(raw) > at), inflate(body, 1 << 20)]
    return found


def _table() -> TopologyTable:
    table = TopologyTable("c")
    table.apply_kv(("nodes", "n1"), _etcd_written(ETCD["node"]), 5)
    whole = layout.ConfigRecord(3, 0, 1 << 63, EPOCH, "n1", (("n1", "s" * 32), ("n2", "t" * 32)))
    upper = layout.ConfigRecord(4, 1 << 63, 1 << 64, EPOCH, None, (("n1", "s" * 32),), parent=(3, EPOCH, 60))
    table.apply_kv(("config", "c1", "00003"), whole.to_json(), 6)
    table.apply_kv(("config", "c1", "00004"), upper.to_json(), 7)
    table.apply_kv(("leader", "c1", "00003"), layout.LeaderRecord("n2", "run8", EPOCH + 1).to_json(), 8)
    table.apply_kv(("namespaces", "ns"), namespaces.Policy("key", 60_000).to_json(), 9)
    return table


TABLE: Final = _table()


def _router_written(value: Any) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "topology"
        save_snapshot(str(path), orjson.dumps(TopologyTable.from_wire(value).to_wire()))
        return path.read_bytes()


def _router_read(raw: bytes) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "topology"
        path.write_bytes(raw)
        table = TopologyTable()
        load_snapshot(str(path), table)
        return table.to_wire()


def forms() -> list[Form]:
    records = {
        "plain": _record(17, 12, b"value"),
        "typed": _record(17, 12, b"value", "text/plain"),
        "timed": _record(17, 12, b"value", "", 60_000),
        "counter": _record(17, 12, b"-5", "", 60_000, COUNTER),
    }
    files = Example(
        SNAPSHOT,
        _snapshot_written,
        lambda raw: list(snapshot_file.read_frames(io.BytesIO(raw), Path("x"))),
        _inflated,
    )
    return [
        Form(
            "etcd",
            layout.FORMAT,
            {
                **{name: Example(one, _etcd_written, _etcd_reader(one)) for name, one in ETCD.items()},
                **{
                    name: Example(one, write, partial(schema.read, parts))
                    for name, (parts, one, write) in PLAIN.items()
                },
            },
        ),
        Form("entry", 1, {name: _entry(payload) for name, payload in PAYLOADS.items()}),
        Form("record", 1, records),
        Form("config", 1, {"config": Example(CONFIG, pack_config, lambda raw: read_config(raw, 3))}),
        Form(
            "resume",
            1,
            {
                name: Example(
                    at,
                    lambda v: resume_tokens.encode_resume(v).encode(),
                    lambda raw: resume_tokens.decode_resume(raw.decode()),
                )
                for name, at in RESUME.items()
            },
        ),
        Form("snapshot", 1, {"whole": files}),
        Form("router", 1, {"topology": Example(TABLE.to_wire(), _router_written, _router_read)}),
    ]
