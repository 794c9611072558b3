"""Examples of what a node has on its disk: the log's segments, the rows of the state, facts, ``store.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgpack

from metastore.coordination.interface import Known as Etcd
from metastore.core.configs import pack_config
from metastore.core.machine import Machine
from metastore.core.messages import ASKED, CONFIRMED, Lineage, Run
from metastore.history import FencingToken
from metastore.keys import END_OF_RING
from metastore.node import node, stored_topology
from metastore.node.control import agent as control
from metastore.node.features import FACT_LEVEL
from metastore.node.identity import FACT_GENERATIONS, FACT_REFUSED, FACT_REGISTERED, Known
from metastore.records import pack_record
from metastore.storage import damage, journal, kept, records
from metastore.storage import folder as data_folder
from metastore.storage.disk import Disk
from metastore.storage.engine import Slice
from metastore.storage.memory_engine import MemoryEngine
from metastore.storage.segments import SEGMENT_HEAD, SEGMENT_MAGIC, Border, block_bytes, parse_block
from metastore.storage.state import (
    BORDER_ROW,
    MAP_TABLE,
    META_TABLE,
    NODE_ROW,
    TABLES,
    Meta,
    State,
    meta_key,
    metadata_write,
    record_writes,
)
from metastore.topology import TopologyTable
from tests.golden.formats import Example, Form
from tests.golden.records import CONFIG, ENTRY, EPOCH, LKEY, PAYLOADS, TABLE
from tests.unit.storage.engines import rows_in

#: of the log's segments
LOG: Final = int(SEGMENT_MAGIC[-3:])

# --- the log ----------------------------------------------------------------------------------------------

OWNER: Final = b"\x93\xa2n1\xa1s\xa4run3"
LOG_RECORDS: Final[list[Any]] = [
    records.EntryRecord(3, 97, ENTRY),
    records.SealEntry(3, EPOCH, OWNER, pack_config(CONFIG)),
    records.ConfigEntry(3, pack_config(CONFIG)),
    records.TruncateEntry(3, 98),
    records.Fact("a fact", [1, "x", {"y": None}]),
    records.DropEntry(3),
]


def _block(value: Any) -> bytes:
    return block_bytes(7, 40, 6, b"".join(map(records.pack_record, value)))


def _read_block(raw: bytes) -> Any:
    found = parse_block(raw, 0)
    assert found is not None
    number, first_seq, durable, body, end = found
    assert (number, first_seq, durable, end) == (7, 40, 6, len(raw))
    return [record for _, record in records.unpack_records(body)]


def _log() -> dict[str, Example]:
    head = (SEGMENT_MAGIC, b"s" * 32, 3)
    return {
        "segment": Example(head, lambda v: SEGMENT_HEAD.pack(*v), SEGMENT_HEAD.unpack),
        **{type(one).__name__: Example([one], _block, _read_block) for one in LOG_RECORDS},
        "block-of-all": Example(LOG_RECORDS, _block, _read_block),
    }


# --- facts: kept in the log, and in the node's row of the state ------------------------------------------------

RUNS: Final = Lineage(
    (Run(3, "run3", 0, ASKED), Run(2, "run2", 71, CONFIRMED), Run(1, "run1", 40, CONFIRMED))
)
KNOWN: Final = {"n2": Known("t" * 32, 8, "run8", 55, True)}


#: the topology as a node keeps it
MAP_ROWS: Final[dict[bytes, bytes | None]] = {
    stored_topology.HEAD_ROW: msgpack.packb(TABLE.head()),
    **{stored_topology.key_of(row): msgpack.packb(TABLE.row(row)) for row in TABLE.rows()},
}


def _rows_of_change(plain: Any) -> Any:
    found = kept.KeptRows()
    found.take(plain)
    return found.found()


def _same(value: Any) -> Any:
    return value


#: key -> value, and how it is made plain and read back
FACTS: Final[dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    journal.FACT_RUNS: (
        RUNS,
        lambda v: [list(run) for run in v.runs],
        lambda p: Lineage(tuple(Run(*r) for r in p)),
    ),
    damage.FACT_LEFT: (12, _same, _same),
    FACT_GENERATIONS: (
        KNOWN,
        lambda v: {name: list(one) for name, one in v.items()},
        lambda p: {name: Known(*one) for name, one in p.items()},
    ),
    FACT_REGISTERED: (True, _same, _same),
    FACT_REFUSED: (["an old copy", "set it aside"], _same, _same),
    node.FACT_LARGEST_GRANT: (2_000_000_000, _same, _same),
    #: of builds from before it was kept row by row
    stored_topology.FACT_TOPOLOGY: (TABLE.to_wire(), _same, lambda p: TopologyTable.from_wire(p).to_wire()),
    kept.FACT_ROWS: (MAP_ROWS, lambda rows: next(kept.parts_of(rows, True)), _rows_of_change),
    FACT_LEVEL: (2, _same, _same),
    control.FACT_CLUSTER_ID: (77, _same, _same),
    control.FACT_REVISION: (4711, _same, _same),
    control.FACT_LINEAGE: (Etcd(0xABC, 4711, 4000, 2), list, control._known),
}


def _fact(key: str) -> Example:
    value, plain, read = FACTS[key]

    def back(raw: bytes) -> Any:
        [(_, found)] = records.unpack_records(raw)
        assert isinstance(found, records.Fact)
        assert found.key == key
        return read(found.value)

    return Example(value, lambda v: records.pack_record(records.Fact(key, plain(v))), back)


# --- the state ------------------------------------------------------------------------------------------------


def _in_state(work: Callable[[State], Any], rows: Any = ()) -> Any:
    """``work`` on a state of its own, with these rows in its tables as they are."""
    state = State(MemoryEngine(), create=True)
    state.engine.write(Slice(table.decode(), [(key, row)]) for table, key, row in rows)
    state.renew({})
    try:
        return work(state)
    finally:
        state.close()


def _rows(state: State) -> bytes:
    """Every row of every table, as it is on the disk."""
    tables = (*TABLES, MAP_TABLE)
    found = [[table.encode(), key, row] for table in tables for key, row in rows_in(state, table)]
    raw: bytes = msgpack.packb(found)
    return raw


def _row(value: Any, put: Callable[[State, Any], None], read: Callable[[State], Any]) -> Example:
    def write(v: Any) -> bytes:
        def work(state: State) -> bytes:
            put(state, v)
            return _rows(state)

        raw: bytes = _in_state(work)
        return raw

    return Example(value, write, lambda raw: _in_state(read, msgpack.unpackb(raw)))


_LONG_KEY: Final = LKEY + b"/" + b"x" * 600
_NODE: Final = {"store": "s" * 32, "facts": {"registered": True}, "seq": 40, "block": 6}
_METAS: Final = {
    3: Meta(
        5, 98, EPOCH - 1, 97, EPOCH, OWNER, pack_config(CONFIG), 33, False, 4, b"\x20" + bytes(7), END_OF_RING
    ),
    9: Meta(6, dropped=True),
}


def _put_metas(state: State, value: Any) -> None:
    plain, border, metas = value
    state.write(
        [
            (META_TABLE, NODE_ROW, msgpack.packb(plain)),
            (META_TABLE, BORDER_ROW, msgpack.packb(border)),
            *((META_TABLE, meta_key(p), meta.pack()) for p, meta in metas.items()),
        ]
    )


def _machine() -> Machine:
    """With a row of each kind beside its records."""
    state: dict[bytes, bytes] = {}
    machine = Machine(state.get)
    for index, name in enumerate(
        ("put", "unnumbered", "add", "fenced", "nothing", "delete", "txn", "split"), start=1
    ):
        payload = PAYLOADS[name]
        if name == "split":  # it begins where the one before it ended
            machine.proposals.count_above(b"\x80" + bytes(7))
            machine.proposals.count_slice([], None)
            payload = machine.proposals.resolve_split(index, EPOCH, 64, (1 << 64) - 1, [("n1", "s" * 32)])
            machine.proposals.abandon()
        for key, record in machine.apply(index, payload).changes:
            if record is None:
                state.pop(key, None)
            else:
                state[key] = record
    machine.fences.floors[b"\x01\x02"] = FencingToken(4)
    machine.dedupe.spent[b"c" * 16] = 6
    return machine


def _aux_of(machine: Machine) -> Any:
    """What a machine remembers, as plain values."""
    return {
        "version": machine.last_version,
        "usage": machine.usage,
        "timed": machine.timed,
        "splits": machine.splits,
        "fences": (machine.fences.by_name, machine.fences.floors),
        "spent": machine.dedupe.spent,
        "sessions": {
            client: (s.minimum, s.lowest_open, s.last_index, s.ordinal, dict(s.outcomes))
            for client, s in machine.sessions.items()
        },
        "rows": {key: machine.metadata(key) for key in machine.metadata_keys()},
    }


def _load_aux(state: State) -> Any:
    machine = Machine(lambda _: None)
    machine.load(state.metadata_rows(5))
    return _aux_of(machine)


def _state() -> dict[str, Example]:
    machine = _machine()
    aux = [(key, machine.metadata(key)) for key in machine.metadata_keys()]
    packed = pack_record(17, 12, b"value")
    return {
        "record": _row(
            packed,
            lambda state, v: state.write([], record_writes(5, {LKEY: v})),
            lambda state: state.get(5, LKEY),
        ),
        "record-long-key": _row(
            packed,
            lambda state, v: state.write([], record_writes(5, {_LONG_KEY: v})),
            lambda state: state.get(5, _LONG_KEY),
        ),
        "aux": _row(
            _aux_of(machine),
            lambda state, v: state.write([metadata_write(5, key, row) for key, row in aux]),
            _load_aux,
        ),
        "meta": _row((_NODE, Border(2, 5), _METAS), _put_metas, lambda state: state.saved()),
        "map": _row(
            MAP_ROWS,
            lambda state, v: state.write([(MAP_TABLE, key, row) for key, row in v.items()]),
            lambda state: state.map_rows(),
        ),
    }


# --- store.json -----------------------------------------------------------------------------------------------

IDENTITY: Final = {"format": data_folder.FORMAT, "store_id": "s" * 32, "cluster": "c", "node": "n1"}


def _identity_written(value: Any) -> bytes:
    with TemporaryDirectory() as folder:
        data_folder.write_identity(Path(folder), value, Disk())
        return (Path(folder) / "store.json").read_bytes()


def _identity_read(raw: bytes) -> Any:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("log/1", "state/data.mdb"):
            (folder / file).parent.mkdir()
            (folder / file).touch()
        (folder / "store.json").write_bytes(raw)
        return data_folder.read_identity(folder, "c", "n1")


def forms() -> list[Form]:
    return [
        Form("log", LOG, _log()),
        Form("fact", data_folder.FORMAT, {key: _fact(key) for key in FACTS}),
        Form("state", data_folder.FORMAT, _state()),
        Form(
            "store", data_folder.FORMAT, {"store.json": Example(IDENTITY, _identity_written, _identity_read)}
        ),
    ]
