"""The operations of clients, each described once: its elements with their bounds, its answer, what it reads and writes. Pure.

An operation is an array ``[id, kind, partition, …]``, as the decoder makes it; what follows is of its kind, and stands in
OPERATIONS. Checks, routing, sizes, what dedupe looks at and the JSON forms are made from that table; code that handles one kind
finds its elements by the positions below, which are made from the table too. ``wire.client_messages`` says in words what each
element means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from metastore import elements as e
from metastore.elements import Field, Told, raw, shown, whole
from metastore.errors import InvalidRequest, MetastoreError, TooLarge
from metastore.keys import MAX_VALUE_BYTES

Op = list[Any]
"""An operation, as the decoder makes it."""

GET: Final = 1
PUT: Final = 2
DELETE: Final = 3
ADD: Final = 4
LIST: Final = 5
TXN: Final = 6
TOUCH: Final = 7
RENAME: Final = 9
#: no operation of a client: the leader's delete of a record whose TTL has passed
EXPIRE: Final = 8

OK: Final = 0
NOT_FOUND: Final = 1

LINEARIZABLE: Final = 0
STALE: Final = 1
AT_LEAST: Final = 2

ABSENT: Final = 0
EXISTS: Final = -1

#: flag of a LIST
KEYS_ONLY: Final = 1

#: targets and relations of a TXN's compares
VERSION, VALUE, CREATED = 0, 1, 2
EQUAL, NOT_EQUAL, LESS, GREATER = 0, 1, 2, 3

MAX_LIST_LIMIT: Final = 10_000
MAX_TXN_PARTS: Final = 128
MAX_TXN_READ_BYTES: Final = 1 << 20
MAX_TXN_BYTES: Final = 2 << 20
#: about what an operation takes beside its keys and values, and each part and compare of a transaction
OP_BYTES: Final = 96


# --- transactions: lists within an operation ----------------------------------------------------


def _check_compares(compares: Any) -> MetastoreError | None:
    if type(compares) is not list or len(compares) > MAX_TXN_PARTS:
        return InvalidRequest(f"the compares of a transaction are not a list of at most {MAX_TXN_PARTS}")
    return next(filter(None, map(_check_compare, compares)), None)


def _check_compare(compare: Any) -> MetastoreError | None:
    if type(compare) is not list or len(compare) != 4 or not e.has_key_shape(compare[0]):
        return InvalidRequest("a compare is not [storage key, target, relation, operand]")
    _, target, relation, operand = compare
    if type(target) is not int or not 0 <= target <= CREATED:
        return InvalidRequest(f"target {shown(target, 20)} of a compare is not known")
    if type(relation) is not int or not 0 <= relation <= GREATER:
        return InvalidRequest(f"relation {shown(relation, 20)} of a compare is not known")
    if target == VALUE:
        if type(operand) is not bytes or len(operand) > MAX_VALUE_BYTES:
            return InvalidRequest("a value is compared with bytes, of the size of a value at most")
    elif type(operand) is not int or not 0 <= operand < e.COUNT_END:
        return InvalidRequest(f"a version is compared with {shown(operand, 20)}, which is none")
    return None


def _check_parts(parts: Any) -> MetastoreError | None:
    if type(parts) is not list or len(parts) > MAX_TXN_PARTS:
        return InvalidRequest(
            f"a branch of a transaction is not a list of at most {MAX_TXN_PARTS} operations"
        )
    return next(filter(None, map(_check_part, parts)), None)


def _check_part(part: Any) -> MetastoreError | None:
    if type(part) is not list or not part or type(part[0]) is not int:
        return InvalidRequest("an operation of a transaction is not an array that begins with its kind")
    fields = PARTS.get(part[0])
    if fields is None or len(part) != 1 + len(fields):
        return InvalidRequest(f"operation {part[0]} of a transaction is malformed")
    for field, value in zip(fields, part[1:], strict=True):
        error = field.check(value)
        if error is not None:
            return error
    return None


def _compares_size(compares: list[list[Any]]) -> int:
    return sum(
        OP_BYTES + len(storage_key) + (len(operand) if target == VALUE else 0)
        for storage_key, target, _, operand in compares
    )


def _parts_size(parts: list[list[Any]]) -> int:
    """As those of operations are: each part's key, and its elements that have a size."""
    size = 0
    for part in parts:
        size += OP_BYTES + len(part[PART_KEY_AT])
        for at, measure in _PART_SIZES[part[0]]:
            size += measure(part[at])
    return size


def _keys_in_compares(compares: list[list[Any]]) -> list[bytes]:
    return [compare[0] for compare in compares]


def _keys_in_parts(parts: list[list[Any]]) -> list[bytes]:
    return [part[PART_KEY_AT] for part in parts]


# --- the description ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of operation. ``fields``: the elements behind id, kind and partition, the first of which says where the operation
    is routed; ``optional``: one more, which may be left out. ``result``: the elements of a good answer behind id and OK.

    ``reads``: it is answered from the state. ``writes``: it has a request id and is proposed. (Neither: it is for the leader, and
    nothing is proposed.) ``adds``: it may add data. ``copies``: its entry holds a record that it only names. ``misses``: it may be answered NOT_FOUND. ``part``: the names of the elements
    behind key in a transaction, None = it is not for one; ``part_result``: of the answer's behind OK. ``conditions``: which of
    ``version``, ``absent`` and ``exists`` mean something to it. ``since``: the first version of the protocol between clients and
    nodes that has it (``wire.versions``). ``text``: one sentence for documents."""

    kind: int
    name: str
    fields: tuple[Field, ...]
    result: tuple[Told, ...]
    text: str
    optional: Field | None = None
    reads: bool = False
    writes: bool = False
    adds: bool = False
    copies: bool = False
    misses: bool = False
    part: tuple[str, ...] | None = None
    part_result: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    since: int = 1

    @property
    def all_fields(self) -> tuple[Field, ...]:
        return self.fields if self.optional is None else (*self.fields, self.optional)

    @property
    def lengths(self) -> tuple[int, int]:
        """How many elements it has, without and with the optional one."""
        return HEAD + len(self.fields), HEAD + len(self.all_fields)

    def field(self, name: str) -> Field | None:
        return next((f for f in self.all_fields if f.name == name), None)

    def at(self, name: str) -> int:
        """The position of an element."""
        return HEAD + [f.name for f in self.all_fields].index(name)

    def told_at(self, name: str) -> int:
        """The position of an element of its answer."""
        return RESULT_HEAD + [t.name for t in self.result].index(name)


#: elements before those of an operation's kind: id, kind, partition; of an answer: id, status
HEAD: Final = 3
RESULT_HEAD: Final = 2
_REQUEST = (e.STORED_KEY, e.SEQ, e.LOWEST_OPEN, e.LAST_SEEN)
_CONSISTENCY = (
    Field("consistency", whole(LINEARIZABLE, AT_LEAST, "unknown consistency {}")),
    Field(
        "arg", whole(0, e.COUNT_END - 1, "consistency argument {} is not a count below 2**63", or_none=True)
    ),
)
_END = raw(e.MAX_STORAGE_KEY_BYTES + 1, "an end of a list is not bytes, or too long")
_WRITTEN = (e.VERSION_TOLD, e.INDEX_TOLD)
_ANY = ("version", "absent", "exists")

_ALL = (
    Operation(
        GET,
        "get",
        (e.KEY, *_CONSISTENCY),
        (e.RECORD_TOLD, e.AGE_TOLD),
        "Read a record.",
        reads=True,
        misses=True,
        part=(),
        part_result=("record",),
    ),
    Operation(
        PUT,
        "put",
        (*_REQUEST, e.CONDITION, e.VALUE_FIELD, e.CONTENT_TYPE, e.TTL_MS),
        (*_WRITTEN, Told("created", e.is_flag)),
        "Write a record.",
        e.FENCE_OR_RAISE,
        writes=True,
        adds=True,
        part=("value", "content_type", "ttl_ms"),
        part_result=("version", "created"),
        conditions=_ANY,
    ),
    Operation(
        DELETE,
        "delete",
        (*_REQUEST, e.CONDITION),
        _WRITTEN,
        "Delete a record, if there is one.",
        e.FENCE,
        writes=True,
        part=(),
        part_result=("version",),
        conditions=("version", "exists"),
    ),
    Operation(
        ADD,
        "add",
        (*_REQUEST, e.CONDITION, e.DELTA),
        (*_WRITTEN, Told("count", e.is_i64)),
        "Add to a counter, from 0 when absent.",
        e.FENCE,
        writes=True,
        adds=True,
        part=("delta",),
        part_result=("version", "count"),
        conditions=_ANY,
    ),
    Operation(
        LIST,
        "list",
        (
            Field("start", _END),
            Field("end", _END),
            Field("limit", whole(1, MAX_LIST_LIMIT, f"limit {{}} is not within 1 and {MAX_LIST_LIMIT}")),
            Field("flags", whole(-e.I64_END, e.U64_END - 1, "flags {} is not a number")),
            *_CONSISTENCY,
        ),
        (
            Told("rows", e.is_list, size=e.rows_size),
            Told("next", lambda start: start is None or type(start) is bytes),
            e.AGE_TOLD,
            e.VERSION_TOLD,
        ),
        "List records.",
        Field("wanted", raw(e.MAX_STORAGE_KEY_BYTES, "the start of a list is not bytes, or too long")),
        reads=True,
    ),
    Operation(
        TXN,
        "txn",
        (
            *_REQUEST,
            Field("compares", _check_compares, _compares_size, _keys_in_compares),
            Field("then", _check_parts, _parts_size, _keys_in_parts, parts=True),
            Field("otherwise", _check_parts, _parts_size, _keys_in_parts, parts=True),
        ),
        (Told("succeeded", e.is_flag), e.INDEX_TOLD, Told("parts", e.is_list, size=e.parts_told_size)),
        "A transaction.",
        e.FENCE,
        writes=True,
    ),
    Operation(
        RENAME,
        "rename",
        (
            *_REQUEST,
            e.CONDITION,
            Field("to", e.check_stored, keys=lambda storage_key: [storage_key]),
            Field(
                "to_condition",
                whole(ABSENT, ABSENT, "the condition on the new key is {}, not absence", or_none=True),
            ),
        ),
        (Told("succeeded", e.is_flag), e.INDEX_TOLD, Told("parts", e.is_renamed)),
        "Give a record another key.",
        e.FENCE,
        writes=True,
        adds=True,
        copies=True,
        conditions=("version", "exists"),
        since=2,
    ),
    Operation(
        TOUCH,
        "touch",
        (e.KEY, e.CONDITION),
        (*_WRITTEN, Told("ttl_ms", e.is_count)),
        "Restart a record's TTL.",
        misses=True,
        conditions=("version",),
    ),
)
OPERATIONS: Final[dict[int, Operation]] = {op.kind: op for op in _ALL}
BY_NAME: Final[dict[str, Operation]] = {op.name: op for op in _ALL}

# --- made from it: kinds, positions -----------------------------------------------------------------

READS: Final = frozenset(op.kind for op in _ALL if op.reads)
#: each has a request id, and is proposed unless it only reads
WRITES: Final = frozenset(op.kind for op in _ALL if op.writes)
ADDING: Final = frozenset(op.kind for op in _ALL if op.adds)
#: kind -> the version of the protocol it came with, of those that are not of the first
LATER: Final[dict[int, int]] = {op.kind: op.since for op in _ALL if op.since > 1}
#: made of parts, each of which is an operation
COMPOUND: Final = frozenset(op.kind for op in _ALL if any(f.parts for f in op.fields))
#: whose entries may be much larger than they are
WEIGHED: Final = COMPOUND | frozenset(op.kind for op in _ALL if op.copies)
#: where the elements stand that several kinds have, of every kind that has it
AT: Final[dict[str, dict[int, int]]] = {
    name: {op.kind: op.at(name) for op in _ALL if op.field(name) is not None}
    for name in dict.fromkeys(f.name for op in _ALL for f in op.all_fields)
}


def _shared(name: str, kinds: frozenset[int]) -> int:
    """The one position that an element has in all ``kinds``."""
    (at,) = {AT[name][kind] for kind in kinds}
    return at


ID_AT: Final = 0
KIND_AT: Final = 1
PARTITION_AT: Final = 2
#: the storage key that says where an operation is routed; of a LIST, its start
KEY_AT: Final = HEAD
SEQ_AT: Final = _shared("seq", WRITES)
LOWEST_OPEN_AT: Final = _shared("lowest_open", WRITES)
LAST_SEEN_AT: Final = _shared("last_seen", WRITES)
CONDITION_AT: Final = _shared("condition", WRITES - COMPOUND)
CONSISTENCY_AT: Final = AT["consistency"]
#: an operation is fenced if it is longer than this
FENCE_AT: Final = AT["fence"]
VALUE_AT: Final = AT["value"][PUT]
CONTENT_TYPE_AT: Final = AT["content_type"][PUT]
TTL_MS_AT: Final = AT["ttl_ms"][PUT]
DELTA_AT: Final = AT["delta"][ADD]
TO_AT: Final = AT["to"][RENAME]
TO_CONDITION_AT: Final = AT["to_condition"][RENAME]
COMPARES_AT: Final = AT["compares"][TXN]
THEN_AT: Final = AT["then"][TXN]
OTHERWISE_AT: Final = AT["otherwise"][TXN]
TOUCH_CONDITION_AT: Final = AT["condition"][TOUCH]
START_AT: Final = AT["start"][LIST]
END_AT: Final = AT["end"][LIST]
FLAGS_AT: Final = AT["flags"][LIST]
WANTED_AT: Final = AT["wanted"][LIST]

STATUS_AT: Final = 1
#: of the answer to a write: the index of its entry (R7)
(INDEX_AT,) = {OPERATIONS[kind].told_at("index") for kind in WRITES}

#: kind -> the elements of a part behind its kind
PARTS: Final[dict[int, tuple[Field, ...]]] = {
    op.kind: (op.fields[0], *(f for name in op.part if (f := op.field(name)) is not None))
    for op in _ALL
    if op.part is not None
}
#: kind -> the elements of a part's answer behind OK
PART_RESULTS: Final[dict[int, tuple[Told, ...]]] = {
    op.kind: tuple(t for name in op.part_result for t in op.result if t.name == name)
    for op in _ALL
    if op.part is not None
}
PART_KEY_AT: Final = 1


def _part_at(kind: int, name: str) -> int:
    return 1 + [f.name for f in PARTS[kind]].index(name)


PART_VALUE_AT: Final = _part_at(PUT, "value")
PART_TTL_MS_AT: Final = _part_at(PUT, "ttl_ms")
_PART_SIZES: Final = {
    kind: tuple((at, f.size) for at, f in enumerate(fields, 1) if f.size is not None)
    for kind, fields in PARTS.items()
}
#: kind -> positions and measures of what may be large
_SIZES: Final = {
    op.kind: tuple((op.at(f.name), f.size) for f in op.fields if f.size is not None) for op in _ALL
}
#: that may be too large
SIZED: Final = frozenset(kind for kind, found in _SIZES.items() if found)
_KEYS: Final = {
    op.kind: tuple((op.at(f.name), f.keys) for f in op.fields[1:] if f.keys is not None) for op in _ALL
}
#: with other keys than the one that says where they are routed
MANY_KEYS: Final = frozenset(kind for kind, found in _KEYS.items() if found)
#: of one record each: what a batch is made of
SINGLE: Final = frozenset(op.kind for op in _ALL if op.fields[0].keys is not None) - MANY_KEYS
_BRANCHES: Final = {op.kind: tuple(op.at(f.name) for f in op.fields if f.parts) for op in _ALL}
_TOLD_SIZES: Final = {
    op.kind: tuple((op.told_at(t.name), t.size) for t in op.result if t.size is not None) for op in _ALL
}

# --- made from it: questions, of operations whose form was checked -----------------------------------


def parts_of(op: Op) -> Iterator[list[Any]]:
    """The parts of a compound operation, of all its branches."""
    return chain.from_iterable([op[at] for at in _BRANCHES[op[KIND_AT]]])


def is_write(op: Op) -> bool:
    """Whether it has to be proposed."""
    return op[KIND_AT] in WRITES and not is_read(op)


def is_read(op: Op) -> bool:
    """Whether it changes nothing, whatever it finds, and needs no entry: fences are looked at while an entry is made."""
    kind = op[KIND_AT]
    if kind in COMPOUND:
        return len(op) == FENCE_AT[kind] and all(part[0] in READS for part in parts_of(op))
    return kind in READS


def is_local(op: Op) -> bool:
    """Whether any replica may answer it."""
    at = CONSISTENCY_AT.get(op[KIND_AT])
    return at is not None and bool(op[at] != LINEARIZABLE)


def adds(op: Op) -> bool:
    """Whether a write may add data."""
    kind = op[KIND_AT]
    return any(part[0] in ADDING for part in parts_of(op)) if kind in COMPOUND else kind in ADDING


def keys_of(op: Op) -> list[bytes]:
    """The storage keys that it names, the one that says where it is routed first; one may be there twice."""
    storage_keys = [op[KEY_AT]]
    for at, keys in _KEYS[op[KIND_AT]]:
        storage_keys += keys(op[at])
    return storage_keys


def size_of(op: Op) -> int:
    """About how many bytes it takes, while it waits or on its way."""
    size = OP_BYTES + len(op[KEY_AT])
    for at, measure in _SIZES[op[KIND_AT]]:
        size += measure(op[at])
    return size


def work_of(op: Op) -> tuple[int, int]:
    """How many changes it may make or records it may read, itself counted too; and how many bytes it may read."""
    kind = op[KIND_AT]
    if kind not in WEIGHED:
        return 1, 0
    if kind not in COMPOUND:
        return len(keys_of(op)), MAX_VALUE_BYTES
    kinds = [part[0] for part in parts_of(op)]
    return 1 + len(kinds), MAX_TXN_READ_BYTES if any(kind in READS for kind in kinds) else 0


def answer_size(op: Op, result: list[Any]) -> int:
    """How many bytes of keys and records a checked answer holds."""
    if result[STATUS_AT] != OK:
        return 0
    return sum(measure(result[at]) for at, measure in _TOLD_SIZES[op[KIND_AT]])


def check_size(op: Op) -> MetastoreError | None:
    """Whether an operation, well-formed as to the rest, is too large. Clients ask before they send one, too: what is refused
    for its size takes no room on its way."""
    kind = op[KIND_AT]
    if kind not in COMPOUND:
        at = AT["value"].get(kind)
        return e.too_large(op[at]) if at is not None and len(op[at]) > MAX_VALUE_BYTES else None
    size = sum(
        len(storage_key) + len(operand)
        for storage_key, target, _, operand in op[COMPARES_AT]
        if target == VALUE
    )
    for part in parts_of(op):
        size += len(part[PART_KEY_AT])
        if part[0] == PUT:
            if len(part[PART_VALUE_AT]) > MAX_VALUE_BYTES:
                return e.too_large(part[PART_VALUE_AT])
            size += len(part[PART_VALUE_AT])
    if size > MAX_TXN_BYTES:
        return TooLarge(f"a transaction of {size} bytes is over the limit of {MAX_TXN_BYTES} bytes")
    return None
